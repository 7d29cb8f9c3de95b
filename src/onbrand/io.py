"""What every room writes with: files and folders that appear whole or not at all, digests, versions."""

from __future__ import annotations

import codecs
import errno
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from onbrand.errors import OnbrandError, quote

DRAFT = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
"""Names of drafts: what is written before it has its own name, or on its way out."""


@contextmanager
def whole_file(path: Path, durable: bool = False) -> Iterator[Path]:
    """A name to write a file under, which becomes `path` when the block ends well, and is gone when it does not.

    The file is there, empty, when the block begins: a place that may not be written is found before the work is done.
    A link at `path` is replaced, its target stays as it was.

    durable: flushed to the disk before it is renamed, and its name after, so that a power cut leaves it whole too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        raise IsADirectoryError(errno.EISDIR, "a file is to be written, and a folder is there", str(path))
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "a file is to be written, and a device or pipe is there", str(path))
    draft = draft_of(path)
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield draft
        if durable:
            with open(draft, "rb") as file:
                os.fsync(file.fileno())
        os.replace(draft, path)
        if durable and os.name == "posix":
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of `path` when the block ends well.

    What killed processes left of the same folder is removed. A link at `path` is replaced, its target stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    for name in os.listdir(path.parent):
        if name.startswith(f".{_stem(path)}.") and len(name) == len(draft.name) and DRAFT.fullmatch(name):
            remove(path.with_name(name))
    draft.mkdir()
    try:
        yield draft
        discard(path)
        os.replace(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def draft_of(path: Path) -> Path:
    """A name beside `path` that nobody can guess, to be created exclusively."""
    return path.with_name(f".{_stem(path)}.{os.urandom(8).hex()}.tmp")


def _stem(path: Path) -> str:
    """A path's name in that of its draft; a digest of one so long that its draft's would be too long."""
    return path.name if len(os.fsencode(path.name)) <= 200 else digest(os.fsencode(path.name))[:32]


def discard(path: Path) -> None:
    """Remove a file or folder such that a kill in between leaves no half of it under its name; a link, not its target.

    Nothing happens if it is not there.
    """
    if path.is_symlink() or path.exists():
        rubbish = draft_of(path)
        os.replace(path, rubbish)
        remove(rubbish)


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link, not its target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_drafts(folder: Path) -> None:
    """Remove what killed processes left in a folder that no other process writes into, and in its own folders."""
    for draft in (*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")):
        if DRAFT.fullmatch(draft.name) and not draft.parent.is_symlink():
            remove(draft)


def append(path: Path) -> IO[bytes]:
    """A file opened to add lines to, made if it is not there; OSError for a link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags, 0o666), "ab")


def inside(folder: Path, name: object, where: str | Path) -> Path:
    """The path of what a file names: relative to its own folder and in it, wherever links lead.

    Args:
        folder: the folder.
        name: what stands in the file.
        where: the file, for the error.

    Raises:
        OnbrandError: the name is no text, or leads out of the folder.
    """
    try:
        path = folder / str(name)
        local = isinstance(name, str | os.PathLike) and not Path(name).is_absolute() and not Path(name).drive
        local = local and os.path.normpath(str(name)).split(os.sep, 1)[0] != ".."
        if local and path.resolve().is_relative_to(folder.resolve()):
            return path
    except (ValueError, OSError, RuntimeError):  # what is no path at all, and links in a circle
        pass
    raise OnbrandError(
        "folder",
        f"{where} names {str(name)[:200]!r}, which does not lie in {folder}; nothing outside of it is opened: "
        "take that out, or copy the file there",
    )


def check_links(folder: Path, unread: Sequence[str] = ()) -> None:
    """OnbrandError for the first link in a folder, at any depth, that leads out of it.

    Args:
        folder: the folder.
        unread: names of folders in it that are not looked into.
    """
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in unread)
        for name in (*folders, *sorted(files)):
            if os.path.islink(os.path.join(here, name)):
                inside(folder, os.path.relpath(os.path.join(here, name), folder), "a link")


SCHEMA = 2
"""Of every JSON file that a verb leaves. Files without a schema are of the first, which `upgrade` reads."""
SEAL = "sha256"
"""The key of a file's own digest, in what only a program writes."""
Upgrade = Callable[[Mapping[str, Any]], dict[str, Any]]
DEEPEST, LARGEST = 40, 2**64
"""What is nested deeper, or a whole number beyond, is in no file of ours and stops its reader: it is refused."""
LONG, ESCAPED = re.compile("[0-9]{20}"), re.compile(r"\\u(?:0000|[dD])")
"""ASCII without these, and of at most DEEPEST brackets, holds nothing that `parse` would find in walking its values."""
RENAMED = {
    "ground": "background", "ground_near": "background_near", "ground_border": "background_border",
    "ground_share": "background_share", "ground_mean": "background_mean", "ground_spread": "background_spread",
    "ground_pure": "background_pure", "kind": "class", "kind_lead": "class_lead",
    "kind_likelihood": "class_likelihood", "kind_variety": "class_diversity", "stray": "out_of_distribution",
    "told": "descriptive", "learnt": "n_reference", "of": "n", "share": "rate", "pictures": "images",
}  # fmt: skip
"""Key of schema 1 -> of schema 2, in check.json, compare.json, reference.json, unseen.json and demo.json."""
AS_THEY_ARE = {"attributes", "classes", "methods", "rows"}
"""Keys whose own keys are names that somebody gave."""


def write_text(path: Path, text: str) -> None:
    """Write text, whole or not at all; what UTF-8 does not know, in names of files, is written as it is escaped."""
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_png(path: Path, image: Any, durable: bool = False) -> None:
    """Write an image of PIL as PNG, whole or not at all; durable: as `whole_file` has it."""
    with whole_file(path, durable) as draft:
        image.save(draft, format="PNG")


def write_json(path: Path, content: Mapping[str, Any], sealed: bool = False) -> None:
    """Write JSON with its schema's version, whole or not at all.

    Args:
        path: the file.
        content: what it says.
        sealed: with its own digest, by which `read_json` knows it from what a disk or a hand has changed.
    """
    seal = {SEAL: digest(content)} if sealed else {}
    text = json.dumps({"schema": SCHEMA, **content, **seal}, indent=2, ensure_ascii=False)
    # names of files may hold bytes that are no text: they are read back as the escapes that they are printed as
    write_text(path, re.sub("[\ud800-\udfff]", lambda half: "\\" + plain(half[0]), text) + "\n")


def keep_json(path: Path, content: Mapping[str, Any], sealed: bool = False) -> None:
    """Write JSON that no later work needs; if it cannot be, the folder being read-only or full, a warning says so."""
    try:
        write_json(path, content, sealed)
    except OSError as error:
        warnings.warn(f"{path} is not kept ({error.strerror or error}): it is computed again when needed", stacklevel=2)


def read_json(path: Path, name: str = "", former: Upgrade | None = None) -> dict[str, Any]:
    """The JSON object in a file by the present schema; {} without the file.

    Args:
        path: the file.
        name: what it is by the names of `schemas.SCHEMAS`; the default is its own. One of no such name is not checked.
        former: makes content of schema 1 that of the present one; the default is `upgrade`, or nothing for what has no
            former names.

    Raises:
        OnbrandError: it is damaged or of a later schema: the file, the field, what it must be and is, and the way on.
    """
    return read_content(path.read_bytes(), path, name or path.name, former) if path.is_file() else {}


def read_content(content: str | bytes, place: object, name: str, former: Upgrade | None = None) -> dict[str, Any]:
    """`read_json` of the text itself. place: where it stands, for the error."""
    from onbrand.schemas import SCHEMAS, fault  # with pydantic, which no command needs before it reads a file

    schema = SCHEMAS.get(name)
    try:
        value: dict[str, Any] = parse(content)
        if not isinstance(value, dict):
            raise ValueError(f"a JSON object is expected, not {quote(value)}")
        number = value.get("schema", 1)
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"schema must be a whole number from 1 on, is {quote(number)}")
        own = {key: item for key, item in value.items() if key not in ("schema", SEAL)}
        if SEAL in value and value[SEAL] != digest(own):
            raise ValueError("it was changed since it was written")
        if number <= SCHEMA:
            value = (former or (upgrade if schema is None or schema.renamed else dict))(value)
            reason = fault(value, schema.part) if schema else ""
            if reason:
                raise ValueError(reason)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, ValueError) else "it is of no schema that is known"
        remedy = f"; {schema.remedy}" if schema and schema.remedy else ""
        raise OnbrandError(schema.code if schema else "folder", f"{place} is damaged: {reason}{remedy}") from error
    if number > SCHEMA:
        code = schema.code if schema else "folder"
        raise OnbrandError(code, f"{place} is of schema {number}, this onbrand knows up to {SCHEMA}: update onbrand")
    return value


def read_lines(path: Path, name: str = "") -> list[dict[str, Any]]:
    """The objects in a file of JSON lines, as `read_json` reads one; none without the file.

    Empty lines are passed over, and a last line that a kill cut short.

    Raises:
        OnbrandError: another line is damaged; the message names it by its number.
    """
    if not path.is_file():
        return []
    *lines, rest = path.read_bytes().split(b"\n")  # not splitlines: text may hold other ends of lines
    entries = [
        read_content(line, f"{path} line {number}", name or path.name, dict)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if rest.strip():
        with suppress(OnbrandError):
            entries.append(read_content(rest, path, name or path.name, dict))
    return entries


def parse(content: str | bytes) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: in plain words why it cannot be used: it is no JSON, nested deeper than DEEPEST, or holds whole
            numbers of more than 64 bits, a key twice, or text with NUL or with half a surrogate pair.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is no UTF-8 text") from error
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if "\n" in error.doc.strip() else ""
        message = error.msg.removesuffix(" at")  # as of "Unterminated string starting at"
        raise ValueError(f"it is no JSON: {message} at {line}column {error.colno}") from error
    except RecursionError as error:
        raise ValueError(f"it is nested too deeply, over {DEEPEST}") from error
    except ValueError as error:  # a key twice; Python reads no number of so many digits
        digits = re.search(r"value has (\d+) digits", str(error))
        raise ValueError(f"it holds a number of {digits[1]} digits" if digits else f"it holds {error}") from error
    brackets = text.count("[") + text.count("{")
    if brackets > DEEPEST or not text.isascii() or ESCAPED.search(text) or LONG.search(text):
        _check_values(value)
    return value


def _check_values(value: Any, most: float = math.inf) -> None:
    """ValueError for what `parse` refuses in a value that was read, and for more than `most` values: YAML's aliases."""
    items: list[tuple[Any, int]] = [(value, 0)]
    count = 0
    while items:
        item, depth = items.pop()
        count += 1
        if count > most:
            raise ValueError(f"it holds more than {most} values")
        if depth > DEEPEST:
            raise ValueError(f"it is nested too deeply, over {DEEPEST}")
        if isinstance(item, dict):
            items += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, list):
            items += [(part, depth + 1) for part in item]
        elif isinstance(item, int) and abs(item) >= LARGEST:
            raise ValueError(f"it holds a number of {len(str(abs(item)))} digits")
        elif isinstance(item, str) and re.search("[\0\ud800-\udfff]", item):
            raise ValueError(f"{quote(item)} holds a NUL or half of a surrogate pair")


def read_yaml(path: Path) -> Any:
    """What a YAML file says, such as config.yaml; None for an empty one.

    Raises:
        ValueError: in plain words why it cannot be used, as `parse` has them.
        OSError: it cannot be opened.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is no UTF-8 text") from error
    except yaml.YAMLError as error:
        raise ValueError(f"it is no YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError(f"it is nested too deeply, over {DEEPEST}") from error
    except ValueError as error:  # a number of thousands of digits, a date that is none
        raise ValueError(f"it holds what no setting is: {str(error)[:80]}") from error
    _check_values(content, 100_000)
    return content


def text_lines(path: Path, code: str) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, each with its number, from 1: the one reader of lists that people
    write, of JSON lines too (`json_lines`).

    UTF-8, or UTF-16 and UTF-32 with a byte order mark. A line ends where an editor ends it; the separators that
    Unicode has besides (U+2028) are letters. OnbrandError of this code for other bytes, with their line.
    """
    content = path.read_bytes()
    marks = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
             (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
    encoding = next((name for mark, name in marks if content.startswith(mark)), "utf-8-sig")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        where = f" line {line}" if encoding == "utf-8-sig" else ""
        raise OnbrandError(
            code, f"{path}{where} is not {encoding.removesuffix('-sig').upper()} ({error.reason}): save it as UTF-8"
        ) from error
    for number, line_text in enumerate(re.split(r"\r\n|\n|\r", text), 1):
        if "\0" in line_text:
            raise OnbrandError(
                code,
                f"{path} line {number} holds a NUL, which no text has: save it as UTF-8; got {quote(line_text, 60)}",
            )
        if line_text.strip():
            yield number, line_text


def json_lines(path: Path, code: str) -> Iterator[tuple[int, Any]]:
    """The values of a file of JSON lines, each with its line's number, from 1; blank lines are passed over.

    OnbrandError of this code, with the line, for what is no JSON, and for what no other program would take: a key
    twice, a nesting of thousands, a number of thousands of digits, a NUL, half a surrogate pair. (NaN passes, as
    Python and pandas write it.)
    """
    for number, line in text_lines(path, code):
        yield number, json_of(line, code, f"{path} line {number}")


def json_of(text: str, code: str, place: str) -> Any:
    """The value of a JSON text; OnbrandError of this code as `json_lines` has it. place: where it stands."""
    try:
        return parse(text)
    except ValueError as error:
        raise OnbrandError(
            code, f"{place} cannot be read as JSON ({error}); got {quote(text.strip(), 60)}: mend that line"
        ) from error


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError for a key that stands in it twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} twice")
    return content


def upgrade(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of schema 1 says by the keys of schema 2; what names its schema passes unchanged."""
    if "schema" in content:
        return dict(content)
    present = _renamed(content, True)
    if "findings" in present:  # leak.json
        for former, name in (("steps", "num_inference_steps"), ("first", "start_timestep")):
            if former in present:
                present[name] = present.pop(former)
    return {"schema": SCHEMA, **present}


def _renamed(value: Any, keys: bool) -> Any:
    """The value with its keys renamed (keys: unless these are names that somebody gave), and its lists of keys."""
    if isinstance(value, Mapping):
        return {
            RENAMED.get(name, name) if keys else name: _renamed(item, name not in AS_THEY_ARE)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [RENAMED.get(item, item) if isinstance(item, str) else _renamed(item, True) for item in value]
    return value


CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that steer whatever shows them: ends of lines, tabs, a terminal's commands, turns of direction."""


def plain(text: object) -> str:
    """Text that somebody gave, as it is and on one line: what would steer a terminal, table or figure is escaped."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


NO_FILE = re.compile(r"[. ]*|(?:con|prn|aux|nul|com\d|lpt\d)(?:[. ].*)?", re.IGNORECASE)
"""Names that are no names of files: of folders, and of what Windows has devices for."""


def file_names(names: Sequence[str]) -> dict[str, str]:
    """Names that somebody gave, each with the name of a file of its own, without an ending."""
    files: dict[str, str] = {}
    for number, name in enumerate(names):
        file = re.sub(r"[^\w ,.-]", "_", name)[:80].encode()[:200].decode(errors="ignore")
        file = f"_{file}" if NO_FILE.fullmatch(file) else file
        # where upper and lower case are one, so are such files
        files[name] = f"{file} {number}" if file.casefold() in map(str.casefold, files.values()) else file
    return files


def digest(content: object) -> str:
    """sha256 in hex of bytes, or of what JSON makes of anything else."""
    from hashlib import sha256  # here, as below: `onbrand --help` needs none of it

    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return sha256(data).hexdigest()


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    import platform
    from importlib.metadata import version

    numbers = {name: version(name) for name in ("onbrand", "torch", "diffusers", "transformers")}
    return numbers | {"python": platform.python_version()}
