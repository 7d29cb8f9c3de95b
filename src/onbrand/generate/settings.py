"""What all pictures of a run have in common, and the error that says which of it differs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onbrand.models.bundle import fingerprint
from onbrand.models.control import nets_of

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from onbrand.core.prior import Prior
    from onbrand.generate.sample import Plan


def settings_of(work: Plan) -> dict[str, Any]:
    """What all pictures of a run have in common, as JSON."""
    told = [asdict(request) for request in work.requests]
    if nets_of(work.pipe):
        told = [one | {"read": [sha256_of(file) for file in one["conditioning"]]} for one in told]
    plain = [{name: value for name, value in one.items() if name != "conditioning" or value} for one in told]
    asked = json.dumps(plain)
    return {
        "config": json.loads(json.dumps(asdict(work.config))),
        "requests": {"count": len(work.requests), "sha256": hashlib.sha256(asked.encode()).hexdigest()},
        "fingerprints": fingerprints(work.pipe, work.prior),
        "dtype": dtype_of(work.pipe),
        "scheduler": {"class": work.schedule.name, **_plain(work.scheduler.config)},
        "offset": None if work.offset is None else dict(work.offset),
    }


def fingerprints(pipe: StableDiffusionPipeline, prior: Prior | None) -> dict[str, str | None]:
    """sha256 of what a picture is made with; the prior's is None without one."""
    modules = {name: fingerprint(getattr(pipe, name)) for name in ("unet", "vae", "text_encoder")}
    modules |= {f"controlnet {number}": fingerprint(net) for number, net in enumerate(nets_of(pipe), 1)}
    return {**modules, "prior": None if prior is None else prior.fingerprint}


def sha256_of(file: str) -> str:
    """Of a file's bytes, in hex."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def dtype_of(pipe: StableDiffusionPipeline) -> str:
    """The network's dtype by its name, as "float32"."""
    return str(pipe.unet.dtype).removeprefix("torch.")


def compare(what: str, recorded: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """ValueError naming each setting that differs."""
    then, here = _flat(recorded), _flat(now)
    skipped = {"config.trace"}  # leaves the pictures as they are
    differing = [key for key in {**then, **here} if then.get(key) != here.get(key) and key not in skipped]
    if differing:
        told = "; ".join(f"{key} was {short(then.get(key))!r}, is {short(here.get(key))!r}" for key in differing)
        raise ValueError(f"{what} was made with other settings: {told}. Set them so, or take another folder")


def short(value: Any) -> Any:
    """A long list (trained_betas) as its hash: the manifest has one line a picture."""
    if isinstance(value, list) and len(value) > 16:
        return "sha256:" + hashlib.sha256(json.dumps(value).encode()).hexdigest()
    return value


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's config as JSON holds it, without diffusers' own notes."""
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    return json.loads(json.dumps(own, default=lambda value: value.tolist()))


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
