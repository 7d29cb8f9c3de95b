"""Figures: learning curves, the signal of each component at the first step, and the contact sheet of a check."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from onbrand.errors import OnbrandError
from onbrand.io import plain

INK, SOFT, LINE = "#1d1f21", "#55595f", "#d9d6cf"
COLOURS = ("#0d5c8a", "#a3431b", "#4b5320", "#7a3b8f", "#8a6d00", "#1b7f79")
"""Line colours in order: with the dashes, grey print and colour-blind eyes tell them apart."""
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
BAD = (179, 38, 30)


def curves(logs: Mapping[str, Sequence[Mapping[str, Any]]], key: str, label: str) -> str:
    """Draw one learning curve a run, each point the mean of 1/20 of the run.

    Args:
        logs: caption of a run -> the lines of its log.jsonl.
        key: the field to draw (`loss_outside`, ...); steps without it are passed over.
        label: of the vertical axis.

    Returns:
        SVG text; "" if no run has two steps with the field.
    """
    series = {name: [(float(line["step"]), float(line[key])) for line in lines if line.get(key) is not None]
              for name, lines in logs.items()}  # fmt: skip
    series = {name: points for name, points in series.items() if len(points) > 1}
    if not series:
        return ""
    figure, axis = _axes()
    for (name, points), colour, dash in zip(series.items(), _cycle(COLOURS), _cycle(DASHES), strict=False):
        steps, values = zip(*_smooth(points, max(1, len(points) // 20)), strict=True)
        axis.plot(steps, values, color=colour, linestyle=dash, linewidth=1.8, label=label_of(name))
    axis.set_xlabel("step")
    axis.set_ylabel(label)
    if len(series) > 1:
        axis.legend(frameon=False, fontsize=9)
    return _svg(figure)


def modes(leaks: Mapping[str, Mapping[str, Any]], count: int = 16) -> str:
    """Draw the signal over the noise at the first step, of the mean and of the spread in each component.

    Args:
        leaks: class -> its part of leak.json: `mean_power` and `spread_power` `(K,)`, abar mu_i^2 and abar lambda_i
            (Eq. 6 in each component), in units of the noise's variance.
        count: components to draw, the first ones.

    Returns:
        SVG text; "" if no class has a component.
    """
    leaks = {name: leak for name, leak in leaks.items() if leak.get("spread_power")}
    if not leaks:
        return ""
    figure, axis = _axes()
    for (name, leak), colour in zip(leaks.items(), _cycle(COLOURS), strict=False):
        spreads, means = leak["spread_power"][:count], leak["mean_power"][:count]
        places = range(1, len(spreads) + 1)
        prefix = label_of(f"{name}: ") if len(leaks) > 1 else ""
        axis.plot(places, spreads, "o-", color=colour, markersize=4, linewidth=1.2, label=f"{prefix}spread")
        axis.plot(places, means, "s:", color=colour, markersize=4, linewidth=1, mfc="white", label=f"{prefix}mean")
    axis.axhline(1, color=INK, linewidth=1)
    axis.set_yscale("log")
    axis.set_xlabel("component")
    axis.set_ylabel("signal / noise, first step")
    if len(leaks) <= len(COLOURS):  # of more, colours would name none
        figure.set_figheight(2.9 + 0.2 * len(leaks))  # lines cross all of the panel, and leave words no place in it
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return _svg(figure)


def contact_sheet(
    images: Sequence[Image.Image], captions: Sequence[str], failed: Sequence[Sequence[str]], *,
    columns: int = 10, side: int = 112,
) -> Image.Image:  # fmt: skip
    """Draw images in a grid, each over its caption; an image that fails a property has a red frame and names it.

    Args:
        images: B images of any size.
        captions: B captions.
        failed: the names of the properties that each image fails.
        columns: of the grid.
        side: pixels of an image in it.

    Returns:
        An RGB image.

    Raises:
        OnbrandError: no images.
    """
    if not images:
        raise OnbrandError("value", "a contact sheet needs at least one image: got none")
    columns = min(columns, len(images))
    gap, text = 10, 44
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + text + gap) + gap), (246, 245, 241))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10.5)
    for i, (image, caption, names) in enumerate(zip(images, captions, failed, strict=True)):
        left, top = gap + i % columns * (side + gap), gap + i // columns * (side + text + gap)
        thumb = image.convert("RGB")
        thumb.thumbnail((side, side), Image.Resampling.LANCZOS)
        if thumb.width < side > thumb.height:  # small images are enlarged, whole
            scale = side / max(thumb.size)
            thumb = thumb.resize((round(thumb.width * scale), round(thumb.height * scale)), Image.Resampling.LANCZOS)
        sheet.paste(thumb, (left + (side - thumb.width) // 2, top + (side - thumb.height) // 2))
        frame = (left - 1, top - 1, left + side, top + side)
        draw.rectangle(frame, outline=BAD if names else (217, 214, 207), width=3 if names else 1)
        draw.text((left, top + side + 2), _fit(plain(caption), font, side), fill=(85, 89, 95), font=font)
        first, rest = _two_lines([plain(name) for name in names], font, side)
        draw.text((left, top + side + 15), first, fill=BAD, font=font)
        draw.text((left, top + side + 28), _fit(rest, font, side), fill=BAD, font=font)
    return sheet


def _two_lines(names: Sequence[str], font: Any, width: int) -> tuple[str, str]:
    """The names on two lines: as many as fit in `width` pixels on the first, the others on the second."""
    count = max((n for n in range(1, len(names) + 1) if font.getlength(", ".join(names[:n])) <= width), default=1)
    return ", ".join(names[:count]), ", ".join(names[count:])


def _fit(text: str, font: Any, width: int) -> str:
    """The text; an ellipsis replaces its end if it is wider than `width` pixels."""
    text = text[: max(width, 1)]  # no letter is narrower than a pixel, and Pillow refuses to measure a book
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip(" ,") + "…"


def label_of(name: str) -> str:
    """A name as matplotlib draws it as it is: no formula between its dollars, and none that is left out of a legend."""
    text = plain(name).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _smooth(points: list[tuple[float, float]], width: int) -> list[tuple[float, float]]:
    """Means of `width` neighbours, at their middle step."""
    groups = [points[i : i + width] for i in range(0, len(points), width)]
    return [(sum(p[0] for p in group) / len(group), sum(p[1] for p in group) / len(group)) for group in groups]


def _cycle(items: Sequence[Any]) -> list[Any]:
    """The items repeated, more often than any figure has lines."""
    return list(items) * 8


def _axes() -> tuple[Any, Any]:
    """A plain figure that stays legible at the width of a phone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 2.9), layout="constrained")
    axis = figure.add_subplot()
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=9, colors=SOFT)
    axis.xaxis.label.set_fontsize(10)
    axis.yaxis.label.set_fontsize(10)
    axis.grid(axis="y", color=LINE, linewidth=0.6)
    return figure, axis


def _svg(figure: Any) -> str:
    """The figure as SVG text, the same bytes for the same figure."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "onbrand"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
