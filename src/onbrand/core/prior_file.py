"""The file of a prior: safetensors, its header JSON in one entry; nothing in it is executed, nothing taken unseen."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from onbrand.core.text import Conditional
from onbrand.errors import OnbrandError, quote
from onbrand.io import parse, whole_file

FORMAT = 1
"""Version of the file's layout."""
BACKGROUND = "ground"
"""What the file calls it: the header is part of the fingerprint by which runs and images know their prior."""
GAUSSIAN = ("mean", "components", "variances")
"""Tensors of a class in the file."""
ENTRY = {"name", "total", "count", "alpha"}
"""What the header says of a class."""
LATER = {"text_encoder"}
"""Of the provenance: what older files do not have, whose priors are to be known as the same."""


def write(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the file, whole or not at all, sealed with its fingerprint; of equal content equal bytes."""
    apart = {name: tensor.clone() for name, tensor in tensors.items()}  # the format knows no shared memory
    sealed = json.dumps({**header, "fingerprint": fingerprint_of(header, tensors)}, sort_keys=True)
    with whole_file(path) as draft:
        save_file(apart, draft, {"onbrand": sealed})  # one entry: several have no order


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `write` wrote: a header with provenance and classes, and the tensors of these classes, float32.

    Raises:
        OnbrandError: there is no such file, or it is of another kind.
        ValueError: it is not as it was written, or of another format.
    """
    if not path.is_file():
        raise OnbrandError("prior", f"no prior at {path}: write one with `onbrand fit`")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # copied: in the file they lie behind a header of any length, and a product of tensors that begin at
            # another place in memory is rounded otherwise
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (no dict)
    except SafetensorError as error:
        raise OnbrandError("prior", f"a prior is a safetensors file: {path} is not ({error}); fit it again") from error
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:  # of a dtype that torch lacks
        raise OnbrandError("prior", f"{path} holds what no prior does ({error}); fit it again") from error
    if "onbrand" not in metadata:
        raise OnbrandError("prior", f"{path} is a safetensors file, but no prior: it says nothing of onbrand; fit one")
    header = parse(metadata["onbrand"])
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        number = header.get("format") if isinstance(header, dict) else header
        raise ValueError(f"a prior of format {FORMAT} is read here, it is of {quote(number)}")
    seal = header.pop("fingerprint", None)
    expected = _names(header)
    if set(tensors) != expected:
        raise ValueError(f"its tensors are not those of its classes: {quote(sorted(set(tensors) ^ expected))}")
    other = [name for name, tensor in tensors.items() if tensor.dtype != torch.float32]
    if other:
        raise ValueError(f"its tensors are float32: not so {quote(sorted(other))}")
    if fingerprint_of(header, tensors) != seal:
        raise ValueError("it does not match the fingerprint it was saved with")
    return header, tensors


def _names(header: Mapping[str, Any]) -> set[str]:
    """The tensors that a header speaks of; ValueError for one that names no classes as `write` does."""
    classes = header.get("classes")
    if not isinstance(classes, list) or not isinstance(header.get("provenance"), dict):
        raise ValueError("its header has no provenance and classes")
    entries = [entry for entry in classes if isinstance(entry, dict) and set(entry) >= ENTRY]
    names = [entry["name"] for entry in entries]
    if len(entries) < len(classes) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"a class in its header has {', '.join(sorted(ENTRY))}: not so {quote(classes)}")
    if len(set(names)) < len(names):
        raise ValueError(f"its header names a class twice: {quote(names)}")
    return {
        f"class.{i}.{part}"
        for i, entry in enumerate(entries)
        for part in (*GAUSSIAN, *(f"text.{part}" for part in Conditional.TENSORS if entry["alpha"] is not None))
    }


def fingerprint_of(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """sha256 hex of a prior's header, but for LATER of its provenance, and of its tensors as they lie in the file."""
    about = {name: value for name, value in header["provenance"].items() if name not in LATER}
    digest = hashlib.sha256(json.dumps({**header, "provenance": about}, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.ndim else b"")
    return digest.hexdigest()
