"""What of a folder goes into a repository of the Hub, and how: weights, prior, results, a card and its images."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from tempfile import TemporaryDirectory
from typing import Any

from onbrand.core.prior import BESIDE, BUCKETS, FILE, Prior, joined, save_all
from onbrand.errors import OnbrandError
from onbrand.exporting.card import CARD, Kind, write_card
from onbrand.hub import asking, is_hub_id
from onbrand.io import check_links, read_json, write_json, write_text
from onbrand.models.checkpoint import LORA, is_lora, lora_metadata, model_folder, trained_start_in, write_record
from onbrand.models.controlnet import PART, TOGETHER
from onbrand.models.loading import SHIPPED
from onbrand.models.lora import KOHYA, rename
from onbrand.models.weights import read_config
from onbrand.sampling.manifest import LINES, read_manifest

UNREAD = ("conditions", "latents", "priors", "state", "trace")
"""Folders that nothing is uploaded from, nor looked into."""
PLACES = {"_name_or_path", "name_or_path"}
"""Keys of configurations that say where a part was loaded from."""
SHOWN = 4
"""Images of a folder that the card shows: the first."""
KEPT = {
    "fit.json": ("resolution", "flip", "k", "used", "classes", "buckets", "versions"),
    "leak.json": (
        "scheduler", "num_inference_steps", "start_timestep", "abar", "trained_noise_offset", "classes", "findings",
        "buckets",
    ),
    "check.json": (
        "count", "n_reference", "all", "properties", "measures", "attributes", "held_out", "descriptive", "background",
        "versions",
    ),
}  # fmt: skip
"""Of results: what says nothing of files, folders and commands here."""


def upload(source: Path, name: str) -> str:
    """Upload what of a folder belongs on the Hub, in one commit, and print it before; the repository's address.

    Raises:
        OnbrandError: the folder holds nothing for the Hub, or a link that leads out of it; or the Hub has not taken
            it: then all is where it was.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, command = HfApi(), shlex.join(["onbrand", "push", str(source), "--hub_model_id", name])
    with TemporaryDirectory() as stage:
        files = gather(source, Path(stage), name)
        try:
            with asking(name, "hub", f"{name!r} on the Hub is as it was"):
                about = api.model_info(name)
                print(f"uploads to {name}, which is {'private' if about.private else 'public'}:")
                print("\n".join(f"  {place} ({file.stat().st_size / 1e6:.2f} MB)" for place, file in files.items()))
                # of an upload before, which would be taken for a part of this one
                own = BUCKETS if FILE in files else BESIDE
                others = [file for file in api.list_repo_files(name) if file.split("/")[0] == own and file not in files]
                changes = [CommitOperationAdd(place, str(file)) for place, file in files.items()]
                api.create_commit(
                    name, [*changes, *map(CommitOperationDelete, others)], commit_message="Upload with onbrand"
                )
        except OnbrandError as error:
            raise OnbrandError("hub", f"{error}; {source} has everything, and `{command}` uploads it") from error
    address = f"{api.endpoint}/{name}"
    print(f"wrote {address}")
    return address


def gather(source: Path, stage: Path, name: str) -> dict[str, Path]:
    """Place in the repository -> file: of the folder itself, or of `stage` if it must not be uploaded as it is.

    name: of the repository, for the card.
    """
    check_links(source, UNREAD)
    model = model_folder(source) if source.is_dir() else source
    beside, lora = model / BESIDE, is_lora(model)
    files = _weights(model, stage)
    if not files and not (source / FILE).is_file():
        raise OnbrandError(
            "folder",
            f"{source} holds nothing for the Hub: give a folder that `onbrand fit`, `train` or `merge` wrote, with "
            f"{FILE}, model/, model_index.json, model.safetensors or {LORA}",
        )
    kind: Kind = "lora" if lora else "model" if files else "prior"
    place = source if kind == "prior" else beside
    prior = Prior.load(place) if (place / FILE).is_file() else None
    base = prior.provenance.model if prior else ""
    base = str(lora_metadata(model)[1].get("base") or "" if lora else read_json(source / "run.json").get("model", base))
    record = trained_start_in(model)
    if prior is not None:
        prior = _renamed(prior)
    if kind == "prior":
        assert prior is not None
        save_all(prior, stage)
        files |= _results(source, stage, prior)
    else:
        write_record(stage, prior, record)
        together = Path(TOGETHER).name
        files |= {TOGETHER: beside / together} if (beside / together).is_file() else {}
    if lora and base != public(base):
        for file in (file for file in (LORA, KOHYA) if file in files):
            rename(model / file, stage / file, public(base), prior.fingerprint if prior else None)
    files |= _images(source, stage)
    files |= {file.relative_to(stage).as_posix(): file for file in sorted(stage.rglob("*")) if file.is_file()}
    if (source / CARD).is_file():
        return {CARD: source / CARD} | files
    write_card(stage / CARD, name, kind, public(base), prior, record, files)
    return {CARD: stage / CARD} | files


def public(model: str) -> str:
    """A model's name as strangers may read it: of a place on this machine the last word."""
    return model if model in SHIPPED or is_hub_id(model) else PureWindowsPath(model).name


def _renamed(prior: Prior) -> Prior:
    """The prior with its model's name by `public`."""
    own = prior.provenance.model
    if public(own) == own:
        return prior
    print(f"the prior's model, {own}, is called {public(own)} there, and the prior's fingerprint is another")
    return joined(
        [replace(one, provenance=replace(one.provenance, model=public(own)), buckets={}) for one in prior.all]
    )


def _weights(model: Path, stage: Path) -> dict[str, Path]:
    """The files of a LoRA or a model; of its configurations that name a place here, copies that do not in `stage`."""
    names = [name for name in (LORA, KOHYA, "model.safetensors", "model_index.json") if (model / name).is_file()]
    if "model_index.json" in names:
        index = read_json(model / "model_index.json")
        parts = [part for part in sorted(model.iterdir()) if part.name in index or part.name.startswith(PART)]
        names += [f"{part.name}/{file.name}" for part in parts for file in sorted(part.glob("[!.]*")) if file.is_file()]
    for name in (name for name in names if name.endswith(("config.json", "model_index.json"))):
        content = read_config(model / name, "model")
        if PLACES & set(content):
            others = {key: value for key, value in content.items() if key not in PLACES}
            write_text(stage / name, json.dumps(others, indent=2, ensure_ascii=False) + "\n")
    return {name: model / name for name in names}


def _results(brand: Path, stage: Path, prior: Prior) -> dict[str, Path]:
    """The class means; fit.json and leak.json by KEPT go to `stage`."""
    fit, leak = _kept(brand / "fit.json"), _kept(brand / "leak.json")
    if fit:
        own = {"model": prior.provenance.model, "refused": [], "fingerprints": {"prior": prior.fingerprint}}
        write_json(stage / "fit.json", fit | own)
    if leak:
        write_json(stage / "leak.json", leak)
    sizes = [("", fit), *(("{}x{}/".format(*one["resolution"]), one) for one in fit.get("buckets", ()))]
    means = [f"means/{size}{one['file']}.png" for size, part in sizes for one in part.get("classes", {}).values()]
    return {mean: brand / mean for mean in means if (brand / mean).is_file()}


def _images(source: Path, stage: Path) -> dict[str, Path]:
    """The first images of images/, or of each folder in it, of the same requests; their check.json by KEPT goes to
    `stage`. Of a run also its last validation image."""
    folder = source / "images"
    rows = {f"images/{row.name}": row for row in sorted(folder.glob("*"))}
    rows = {place: row for place, row in ({"images": folder} | rows).items() if (row / LINES).is_file()}
    lines = {
        place: {
            (line["prompt"], line["seed"]): row / line["file"]
            for line in read_manifest(row).values()
            if (row / line["file"]).is_file()
        }
        for place, row in rows.items()
    }
    files: dict[str, Path] = {}
    for place, row in rows.items():
        shared = [key for key in lines[place] if all(key in others for others in lines.values())] or list(lines[place])
        files |= {f"{place}/{i}.png": lines[place][key] for i, key in enumerate(shared[:SHOWN])}
        if check := _kept(row / "check.json"):
            write_json(stage / place / "check.json", check | {"images": []})
    if validation := sorted((source / "validation").glob("*.png")):
        files["images/validation.png"] = validation[-1]
    return files


def _kept(file: Path) -> dict[str, Any]:
    """A result, as much of it as KEPT names; {} without the file."""
    content = read_json(file)
    return {key: content[key] for key in KEPT[file.name] if key in content}
