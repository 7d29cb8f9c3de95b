"""What a report says, as plain data, and its rendering to one self-contained HTML page."""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from onbrand.data.images import open_image
from onbrand.errors import UnreadableImage
from onbrand.evaluation.properties import HEADLINES

WIDEST = 256
"""Images wider than this many pixels are scaled down for the page."""


@dataclass(frozen=True)
class Thumb:
    """One image on the page."""

    src: str
    """A data URI; "" for an image that cannot be shown."""
    alt: str
    """What it shows, for those who cannot see it."""
    caption: str = ""
    failed: tuple[str, ...] = ()
    """Names of the properties it fails."""
    missing: str = ""
    """Why it cannot be shown."""


@dataclass(frozen=True)
class Score:
    """A number with its interval."""

    name: str
    title: str
    value: float
    low: float | None = None
    high: float | None = None
    rate: bool = True
    """True: a rate in [0, 1], written in percent. False: a number of its own scale."""

    def text(self, value: float | None = None) -> str:
        """The value, or another of the same scale, as it is read: `97 %`, or `.75`, `15.2`, `137`."""
        shown = self.value if value is None else value
        if self.rate:
            return f"{_percent(shown)}\u00a0%"
        return f"{shown:.{2 if abs(shown) < 9.995 else 1 if abs(shown) < 99.95 else 0}f}".removeprefix("0")

    def interval(self) -> str:
        """`95 to 98 %`; "" without an interval."""
        if self.low is None or self.high is None:
            return ""
        low = _percent(self.low) if self.rate else self.text(self.low)
        return f"{low} to {self.text(self.high)}"


def _percent(rate: float) -> str:
    """Whole percents, but 99.6 is not 100 and .4 is not 0."""
    return f"{100 * rate:.0f}" if rate in (0, 1) or 0.005 <= rate < 0.995 else f"{100 * rate:.1f}"


@dataclass(frozen=True)
class Row:
    """Images made in one way: one line of the comparison."""

    name: str
    caption: str
    """The way, in words that a retailer understands."""
    sentence: str = ""
    images: tuple[Thumb, ...] = ()
    scores: tuple[Score, ...] = ()
    count: int = 0
    """Images that the scores were measured on."""
    tone: str = ""
    """`before`, `after`, `real` or nothing: how the page colours it."""

    @property
    def headlines(self) -> tuple[Score, ...]:
        """The scores that stand beside the images, if they were measured."""
        return tuple(score for name in HEADLINES if (score := self.score(name)))

    def score(self, name: str) -> Score | None:
        """The score of this name; None if this row lacks it."""
        return next((score for score in self.scores if score.name == name), None)


@dataclass(frozen=True)
class Number:
    """One large number of the first screen: before and after."""

    title: str
    after: Score
    before: Score | None = None
    real: Score | None = None


@dataclass(frozen=True)
class Property:
    """One line of the check table: a property, its rule, and its score in every row."""

    title: str
    rule: str
    lines: tuple[tuple[Row, Score], ...]
    largest: float = 1.0
    """The right end of its scale."""


@dataclass(frozen=True)
class ClassCard:
    """A fitted class."""

    name: str
    count: int
    mean: Thumb | None = None
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Finding:
    """A finding of the diagnosis."""

    code: str
    title: str
    sentence: str
    remedy: str = ""
    level: str = "note"
    classes: str = ""


@dataclass(frozen=True)
class Strip:
    """What the network predicts, step by step, while it makes one image."""

    caption: str
    images: tuple[Thumb, ...]
    tone: str = ""


@dataclass(frozen=True)
class Page:
    """Everything a report says. An empty part is left out of the page."""

    title: str
    lead: str = ""
    columns: tuple[str, ...] = ()
    """The prompts over the columns of the comparison."""
    ending: str = ""
    """Words that every prompt ends with, said once."""
    before: Row | None = None
    after: Row | None = None
    numbers: tuple[Number, ...] = ()
    classes: tuple[ClassCard, ...] = ()
    fitted: str = ""
    refused: tuple[tuple[str, str], ...] = ()
    findings: tuple[Finding, ...] = ()
    modes: str = ""
    """SVG: the signal of each component at the first step."""
    rows: tuple[Row, ...] = ()
    strips: tuple[Strip, ...] = ()
    curves: tuple[tuple[str, str], ...] = ()
    """(caption, SVG) of the learning curves."""
    validation: tuple[Thumb, ...] = ()
    properties: tuple[Property, ...] = ()
    commands: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    """Versions and fingerprints."""
    notes: tuple[str, ...] = ()
    sizes: dict[str, Any] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """True if there is nothing to show."""
        return not (self.rows or self.classes or self.findings or self.curves or self.strips)


def image(source: Path | Image.Image, alt: str, widest: int = WIDEST, **more: Any) -> Thumb:
    """Embed an image in the page: lossless up to `widest` pixels, so that pure white stays pure.

    A file that cannot be opened is warned of, and the page says in its place why.

    Args:
        source: a file, or an image.
        alt: what it shows, for those who cannot see it.
        widest: pixels; wider images are scaled down.
        more: other fields of Thumb.
    """
    try:
        pixels = source.convert("RGB") if isinstance(source, Image.Image) else open_image(source, smallest=1)
    except UnreadableImage as error:
        warnings.warn(f"{error}: the page says so in its place", stacklevel=2)
        return Thumb("", alt, missing=error.reason, **more)
    encoding: str = "PNG"
    options: dict[str, Any] = {"optimize": True}
    if pixels.width > widest:
        height = max(1, round(pixels.height * widest / pixels.width))
        pixels = pixels.resize((widest, height), Image.Resampling.LANCZOS)
        encoding, options = "WEBP", {"quality": 90, "method": 6}
    buffer = io.BytesIO()
    pixels.save(buffer, encoding, **options)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Thumb(f"data:image/{encoding.lower()};base64,{data}", alt, **more)


def drawing(svg: str) -> str:
    """An SVG text as a data URI."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def render(page: Page) -> str:
    """Render the page as one HTML text: its images and styles are inside, nothing is fetched, no script runs."""
    loader = jinja2.PackageLoader("onbrand.reporting", ".")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["drawing"] = drawing
    return environment.get_template("page.html.j2").render(page=page)
