"""The Hub: what is fetched from it, and what it answers in words. It is asked for ids alone that somebody named."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from onbrand.errors import OnbrandError

ENDINGS = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")
"""Of files of weights: what ends so is no Hub id."""
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


def is_hub_id(name: str | Path) -> bool:
    """Whether `name` can be nothing but an id on the Hub, owner/name: no file's name, no place in a folder here."""
    text, path = name if isinstance(name, str) else name.as_posix(), Path(name).expanduser()
    is_id = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text) and path.suffix not in ENDINGS
    return bool(is_id) and not path.exists() and not path.parent.exists()


def fetch(name: str, patterns: Sequence[str], code: str, revision: str | None = None) -> Path:
    """The folder here with those files of a repository that fit the patterns, as the Hub has them now.

    Without a network it is as they were fetched last. OnbrandError, of this code, if they are not to be had.
    """
    from huggingface_hub import snapshot_download

    with asking(name, code, f"no folder {Path(name).absolute()}, and {name!r} on the Hub cannot be read"):
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))


def fetched(name: str, patterns: Sequence[str], code: str) -> Path:
    """`fetch`, which asks the Hub only if such files are known to be missing here, or nothing is known."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), local_files_only=True))
    except LocalEntryNotFoundError:
        return fetch(name, patterns, code)


def open_repository(name: str, private: bool) -> str:
    """Find that a repository may be written to, made if it is not there; its id.

    Raises:
        OnbrandError: there is no token, it has no right to write there, or the repository is public and private is
            asked for.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if get_token() is None:
        raise OnbrandError("hub", f"to write {name!r} on the Hub takes a token that may write: {LOGIN}")
    api = HfApi()
    with asking(name, "hub", f"{name!r} on the Hub cannot be written"):
        name = api.create_repo(name, private=private or None, exist_ok=True).repo_id
        # asks whether it may be written to, and writes nothing
        api.preupload_lfs_files(name, [CommitOperationAdd("README.md", b"#")])
        if private and not api.model_info(name).private:
            raise OnbrandError(
                "hub", f"{name!r} on the Hub is there and public; got private: make it so on its page, or leave it out"
            )
    return name


@contextmanager
def asking(name: str, code: str, what: str) -> Iterator[None]:
    """While this holds, whatever goes wrong between here and the Hub is an OnbrandError: `what`, why, the way on."""
    try:
        yield
    except OnbrandError:
        raise
    except Exception as error:  # of whichever library asks the network
        if isinstance(error, OSError) and error.errno is not None:  # of this machine's disk
            raise
        raise OnbrandError(code, f"{what}: {_reason(name, error)}") from error


def _reason(name: str, error: BaseException) -> str:
    """Why the Hub has not done what it was asked for, and what to do."""
    from huggingface_hub import errors, get_token, is_offline_mode

    while not hasattr(error, "response") and error.__cause__ is not None:  # what the library says of its own tries
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    who = "this token" if get_token() else "anybody without a token"
    if isinstance(error, errors.HFValidationError):
        return f"{name!r} is no id, which is owner/name of letters, digits, '-', '_' and '.': write it so"
    if isinstance(error, errors.GatedRepoError):
        return f"{who} has no access to it: ask for it on its page, then {LOGIN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision: take another"
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        return f"nothing there that {who} may see: look at its name; if it is private, {LOGIN}"
    if status == 403:
        return f"{who} has no right to do so: take a token that has (to write, of this owner), or another name"
    if status is not None:
        return f"the Hub answers {status}: try again later"
    if is_offline_mode():
        return "HF_HUB_OFFLINE is set, by which nothing is had but what was fetched before: unset it"
    words = (str(error).splitlines() or [""])[0]
    return f"the Hub does not answer ({type(error).__name__}: {words}): look at the network, and try again"
