"""Weights as they lie in files: what a file really is, whether it is whole, and whether its numbers are numbers."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from onbrand.errors import OnbrandError

NAMES = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>\w+))?(?:-\d{5}-of-(?P<count>\d{5}))?\.(?P<format>safetensors|bin)"
)
"""Of a network's files in diffusers' layout, whole or in shards; a variant is fp16, non_ema, ..."""
FEW = 3
"""Names that an error quotes."""


def check_file(file: Path, code: str) -> None:
    """OnbrandError, of this code, if `file` is called a file of weights and is none.

    It is looked at by its first bytes: a Git LFS pointer, a web page or a server's answer saved in its place, nothing
    at all, a pickle called .safetensors.
    """
    try:
        if file.exists() and not file.is_file():  # a pipe would be waited for
            raise OnbrandError(code, f"{file.absolute()} is no file but a folder, a pipe or a device: copy it anew")
        with open(file, "rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise OnbrandError(code, f"{file.absolute()} cannot be opened ({error.strerror}): copy it anew") from error
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    fault, remedy = "", "download it anew"
    if not head:
        fault = "is empty"
    elif text.startswith(b"version https://git-lfs"):
        fault, remedy = "is a Git LFS pointer, not the weights it stands for", "run `git lfs pull` where it comes from"
    elif text.startswith(b"<"):
        fault = "is a web page saved in place of the weights"
    elif re.match(rb'[{\[]\s*"', text):
        fault = f"is a text in place of the weights ({_quoted(text)})"
    elif file.suffix == ".safetensors" and head[:2] in (b"PK", b"\x80\x02", b"\x80\x04"):
        fault, remedy = "is a pickled file under the name of a safetensors file", "take a copy in safetensors"
    elif file.suffix != ".safetensors" and head[8:9] == b"{":
        fault, remedy = "is a safetensors file under another name", "name it .safetensors"
    elif text.isascii() and not text.translate(None, bytes(range(32, 127)) + b"\t\r\n"):
        fault = f"is a text in place of the weights ({_quoted(text)})"
    if fault:
        raise OnbrandError(code, f"{file.absolute()} {fault}: {remedy}")


def read_safetensors(file: Path, code: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file; OnbrandError, of this code, if it is none or damaged."""
    check_file(file, code)
    with _safetensors(file, code), safe_open(file, "pt") as content:
        names, metadata = content.keys(), dict(content.metadata() or {})
        return {name: content.get_tensor(name) for name in names}, metadata


def read_metadata(file: Path, code: str) -> dict[str, str]:
    """The metadata of a safetensors file; OnbrandError, of this code, if it is none or damaged."""
    check_file(file, code)
    with _safetensors(file, code), safe_open(file, "pt") as content:
        return dict(content.metadata() or {})


def read_safetensors_shapes(file: Path, code: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name and shape alone; OnbrandError, of this code, if it is none."""
    check_file(file, code)
    with _safetensors(file, code), safe_open(file, "pt") as content:
        names = content.keys()
        return {name: torch.empty(content.get_slice(name).get_shape(), device="meta") for name in names}


def read_config(file: Path, code: str) -> dict[str, Any]:
    """The JSON object in a model's file; OnbrandError, of this code, if there is no such file or it holds another."""
    if not file.is_file():
        raise OnbrandError(code, f"no {file.name} in {file.parent.absolute()}: download or copy it anew")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        check_pointer = file.read_bytes()[:40].startswith(b"version https://git-lfs")
        fault = "is a Git LFS pointer: run `git lfs pull` where it comes from" if check_pointer else (
            f"is no JSON ({first_line(error)}): download or copy it anew")  # fmt: skip
        raise OnbrandError(code, f"{file.absolute()} {fault}") from error
    if not isinstance(content, dict):
        raise OnbrandError(code, f"{file.absolute()} must hold a JSON object; got {str(content)[:60]!r}: copy it anew")
    return content


def files_of(folder: Path, code: str) -> tuple[list[Path], str | None, bool]:
    """The files of a network's weights in `folder`, their variant (None: the plain one), and whether in safetensors.

    Plain safetensors come first, then those in half precision, then any other variant; pickled ones last.
    OnbrandError, of this code, if there are none or one is no file of weights.
    """
    sets: dict[tuple[bool, str], list[Path]] = {}
    counts: dict[tuple[bool, str], int] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if match := NAMES.fullmatch(file.name):
            key = match["format"] != "safetensors", match["variant"] or ""
            sets.setdefault(key, []).append(file)
            counts[key] = int(match["count"] or 1)
    if not sets:
        raise OnbrandError(
            code,
            f"no weights in {folder.absolute()}: looked for diffusion_pytorch_model.safetensors, model.safetensors and "
            "their variants, as .fp16.safetensors; download or copy the model anew",
        )
    pickled, variant = min(sets, key=lambda one: (one[0], one[1] != "", one[1] != "fp16", one[1]))
    files, count = sets[pickled, variant], counts[pickled, variant]
    if len(files) < count:
        names = few([file.name for file in files])
        raise OnbrandError(
            code, f"{folder.absolute()} has {len(files)} of {count} files of weights ({names}): copy all"
        )
    for file in files:
        check_file(file, code) if pickled else read_metadata(file, code)
    return files, variant or None, not pickled


def open_network(network: Any, folder: Path, dtype: torch.dtype, code: str) -> Any:
    """The network, of a class of diffusers or transformers, in `folder`, in `dtype`, on the CPU.

    OnbrandError, of this code, that names the folder and the weights: if there are none, if they are damaged, if some
    are missing (the libraries draw those at random), or no numbers.
    """
    read_config(folder / "config.json", code)
    files, variant, safe = files_of(folder, code)
    for file in files if safe else ():
        check_dtypes(file, code)
    ours = issubclass(network, ModelMixin)  # transformers has renamed its dtype; diffusers says itself what is unlike
    options = {"torch_dtype": dtype} if ours else {"ignore_mismatched_sizes": True}
    with reading(str(folder.absolute()), code):
        model, report = network.from_pretrained(
            str(folder), variant=variant, use_safetensors=safe, local_files_only=True, output_loading_info=True,
            **options,
        )  # fmt: skip
        model = model.eval() if ours else model.to(dtype).eval()
    missing = sorted(report["missing_keys"])
    if missing:
        raise OnbrandError(
            code,
            f"{folder.absolute()} lacks {len(missing)} of the weights that its config.json asks for ({few(missing)}): "
            "download or copy it anew",
        )
    for name, theirs, wanted in report["mismatched_keys"]:
        raise OnbrandError(
            code,
            f"{folder.absolute()}: {name} has the shape {tuple(theirs)}, config.json asks for {tuple(wanted)}: copy "
            "both from one model",
        )
    unknown = sorted(name for name in report["unexpected_keys"] if not name.endswith("position_ids"))
    if unknown:
        warnings.warn(
            f"{folder.absolute()} holds {len(unknown)} weights that its config.json does not ask for and that are left "
            f"out ({few(unknown)})",
            stacklevel=2,
        )
    check_finite(model, str(folder.absolute()), code)
    return model


def check_finite(network: nn.Module, where: str, code: str, remedy: str = "take another copy") -> None:
    """OnbrandError, of this code, that names the weight and `where` it stands, if one is NaN, infinite or absent.

    remedy: what to do about numbers that are none."""
    for name, value in network.state_dict().items():
        if value.is_meta:
            raise OnbrandError(code, f"{where} lacks the weight {name}: take a whole model")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            wrong = int((~torch.isfinite(value)).sum())
            half = value.dtype == torch.float16 and not bool(value.isnan().any())
            remedy = "float16 holds none above 65504: take dtype float32 or bfloat16" if half else remedy
            raise OnbrandError(
                code, f"{where}: {wrong} of {value.numel()} numbers of {name} are NaN or infinite: {remedy}"
            )


def check_dtypes(file: Path, code: str) -> None:
    """OnbrandError, of this code, for a safetensors file of whole numbers: quantised weights, without their scales."""
    with _safetensors(file, code), safe_open(file, "pt") as content:
        dtypes = {name: str(content.get_slice(name).get_dtype()) for name in content.keys()}  # noqa: SIM118
    for name, dtype in dtypes.items():
        if not dtype.startswith(("F", "BF")) and not name.endswith("position_ids"):
            raise OnbrandError(
                code,
                f"{file.absolute()}: {name} holds {dtype}, as if it were quantised: take a copy in float32, float16 or "
                "bfloat16",
            )


def check_numbers(tensors: Mapping[str, Tensor], where: str, code: str) -> None:
    """OnbrandError, of this code, that names the tensor and `where` it stands, if one is NaN or infinite."""
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value.float()).all()):
            raise OnbrandError(
                code,
                f"{where}: numbers of {name} are NaN or infinite, as training that broke down leaves them: take "
                "another copy, or train with a smaller learning_rate",
            )


@contextmanager
def _safetensors(file: Path, code: str) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, UnicodeError, ValueError, KeyError) as error:
        raise OnbrandError(
            code, f"{file.absolute()} is damaged or cut short ({first_line(error)}): download or copy it anew"
        ) from error


@contextmanager
def reading(where: str, code: str) -> Iterator[None]:
    """While this holds, what the libraries raise of files that are not theirs is an OnbrandError that names `where`.

    They raise whatever they stumble over; memory that runs out is no fault of the files. No progress bars are drawn.
    """
    with quiet():
        try:
            yield
        except (OnbrandError, MemoryError):
            raise
        except Exception as error:
            if "alloc" in str(error).lower() or isinstance(error, torch.OutOfMemoryError):
                raise
            reason = f"{type(error).__name__}: {first_line(error)}"
            if "meta tensor" in reason:  # what torch calls a weight that nothing was read for
                reason = "weights that its configuration asks for are missing"
            raise OnbrandError(code, f"{where} cannot be read ({reason}): take another copy") from error


@contextmanager
def quiet() -> Iterator[None]:
    """While this holds, reading and writing local files draws no progress bars."""
    libraries = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()


def first_line(error: Exception) -> str:
    """What an error says first, in at most 200 characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = " ".join(" ".join(lines[:2] if lines[0].endswith(":") else lines[:1]).split()).partition(". If you want")[0]
    text = text.partition("; use sys.set_int_max_str_digits")[0]  # Python's advice, to programmers
    return text if len(text) <= 200 else f"{text[:200]}..."


def few(names: list[str]) -> str:
    """The first FEW of the names, and how many more there are."""
    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return ", ".join(names[:FEW]) + more


def _quoted(text: bytes) -> str:
    """The beginning of what stands in a file."""
    return repr(text[:50].decode("utf-8", "replace").split("\n")[0])
