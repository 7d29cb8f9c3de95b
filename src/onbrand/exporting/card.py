"""The card of a repository on the Hub: what is in it, how it is used, what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from onbrand.evaluation.properties import ALL
from onbrand.hub import is_hub_id
from onbrand.io import read_json, write_text
from onbrand.models.loading import SHIPPED
from onbrand.reporting.page import Score

if TYPE_CHECKING:
    from onbrand.core.prior import Prior

CARD = "README.md"
"""Its name."""
Kind = Literal["prior", "lora", "model"]
LEADS = {
    "prior": "Where {base} starts to draw images like this brand's photos",
    "lora": "A LoRA for {base}",
    "model": "{base}, fine-tuned",
}
LINES = {
    "prior": 'pipe = DiffusionPipeline.from_pretrained("{base}")',
    "lora": 'pipe = DiffusionPipeline.from_pretrained("{base}")\npipe.load_lora_weights("{name}")',
    "model": 'pipe = DiffusionPipeline.from_pretrained("{name}")',
}
CODE = """import onbrand
from diffusers import DiffusionPipeline

{lines}
prior = onbrand.Prior.from_pretrained("{name}")
prompts = [{prompt!r}]
latents = onbrand.start(pipe, prior, prompts, seeds=[0], num_inference_steps=20{start})
image = pipe(prompts, latents=latents, num_inference_steps=20).images[0]"""
PLAIN = """from diffusers import DiffusionPipeline

{lines}
image = pipe("...").images[0]"""


def write_card(
    file: Path, name: str, kind: Kind, base: str, prior: Prior | None, start: Mapping[str, Any] | None,
    files: Mapping[str, Path],
) -> None:  # fmt: skip
    """Write the card.

    Args:
        file: where.
        name: of the repository.
        kind: what is in it.
        base: the model that it belongs to; "": not known.
        prior: in it.
        start: that its weights were trained with.
        files: place in the repository -> file, of all others.
    """
    from huggingface_hub import ModelCard, ModelCardData

    licence = _licence(base)
    known = base if is_hub_id(base) else None
    data = ModelCardData(
        base_model=known, library_name="onbrand" if kind == "prior" else "diffusers", pipeline_tag="text-to-image",
        tags=["onbrand", "diffusers", "text-to-image", *([] if kind == "model" else [kind])], **licence,
    )  # fmt: skip
    words = f"[{base}](https://huggingface.co/{base})" if known else f"`{base}`" if base else "Stable Diffusion"
    lead = LEADS[kind].format(base=words)
    if start is not None:
        lead += ", trained with the start {start} ({gain} gain, timestep {start_timestep})".format(**start)
    if prior is not None:
        classes = ", ".join(map(_cell, prior.sizes))
        height, width = prior.size
        lead += f". The prior: a mean and principal components of each class of image ({classes}), {width} x {height}"
    trained = {key: start[key] for key in ("gain", "start", "k", "start_timestep") if key in start} if start else None
    lines = LINES[kind].format(base=base or "...", name=name)
    code = "" if "model.safetensors" in files else PLAIN.format(lines=lines)
    if code and prior is not None:
        more = f",\n                        trained_start={trained}" if trained and kind == "lora" else ""
        code = CODE.format(lines=lines, name=name, prompt=f"{prior.classes[0]}, ...", start=more)
    fit, leak = (read_json(files[name]) if name in files else {} for name in ("fit.json", "leak.json"))
    checks = {_cell(one.parent.name): read_json(one) for one in files.values() if one.name == "check.json"}
    means = [
        {"title": _cell(title), "file": quote(mean)}
        for title, one in fit.get("classes", {}).items() if (mean := f"means/{one['file']}.png") in files
    ]  # fmt: skip
    findings = [
        {key: _cell(one[key]) for key in ("code", "title", "sentence")} | {"classes": _cell(one.get("class", ""))}
        for one in leak.get("findings", ())
    ]
    card = ModelCard.from_template(
        data, template_path=str(Path(__file__).with_suffix(".md.j2")), title=Path(name).name, lead=f"{lead}.",
        means=means, code=code, findings=findings, rows=list(checks),
        checks=_table(list(checks.values())), images=_shown(files), prior=prior.fingerprint if prior else None,
    )  # fmt: skip
    write_text(file, str(card))
    print(f"licence: {licence.get('license') or 'that of the base model is not known, set it on the page'}")


def _licence(base: str) -> dict[str, Any]:
    """What the card of the base model says of its licence; {}: not known."""
    from huggingface_hub import HfApi

    if base in SHIPPED:
        return {"license": "apache-2.0"}
    if not is_hub_id(base):
        return {}
    try:
        data = HfApi().model_info(base).card_data
    except Exception:  # of whichever library asks the network: it is no reason to upload nothing
        return {}
    keys = ("license", "license_name", "license_link")
    return {key: data[key] for key in keys if data is not None and isinstance(data.get(key), str)}


def _table(checks: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """A row a property: its title, and its rate in each of the checks."""
    parts = [{"all": {"title": ALL[0], **check["all"]}} | check["properties"] for check in checks]
    titles = {name: part["title"] for one in parts for name, part in one.items()}
    return [(_cell(title), [_rate(one.get(name)) for one in parts]) for name, title in titles.items()]


def _rate(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ""
    score = Score("", "", entry["rate"], entry["low"], entry["high"])
    return f"{score.text()} ({score.interval()}, n = {entry['n']})"


def _shown(files: Mapping[str, Path]) -> list[tuple[str, list[str]]]:
    """The images of each folder, by its name."""
    rows: dict[str, list[str]] = {}
    for place in (place for place in files if place.startswith("images/") and place.endswith(".png")):
        row = "validation" if place == "images/validation.png" else Path(place).parent.name
        rows.setdefault(_cell(row), []).append(quote(place))
    return list(rows.items())


def _cell(text: str) -> str:
    """Text as it stands in a table: no markup, on one line."""
    return escape(" ".join(text.split())).replace("|", "&#124;")
