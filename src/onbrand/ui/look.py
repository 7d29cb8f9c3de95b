"""What photos and a model are, before any work: `python -m onbrand.ui.look PHOTOS MODEL OUT.json`."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from onbrand.data.records import Record, open_folder
from onbrand.errors import OnbrandError, UnreadableImage
from onbrand.io import plain, write_json

AHEAD = 4
"""Images decoded at a time."""


def look(photos: str, model: str) -> dict[str, Any]:
    """`photos`: `lines` of what was found, `classes` (name to count), `refused` (`file`, `reason`); `model`: `lines`.
    What cannot be used has an `error` instead."""
    return {"photos": _answered(look_at_photos, photos), "model": _answered(look_at_model, model)}


def look_at_photos(name: str) -> dict[str, Any]:
    """Opens every photo, as `fit` will."""
    folder = open_folder(name)
    root = folder.path if folder.path.is_dir() else folder.path.parent
    refused, sizes = list(folder.refused), Counter[tuple[int, int]]()
    used, bar = Counter[str](), tqdm(total=len(folder.records), desc="look", unit=" photos")
    with bar, ThreadPoolExecutor(AHEAD) as pool:
        for record, answer in zip(folder.records, pool.map(_size, folder.records), strict=True):
            bar.update()
            if isinstance(answer, UnreadableImage):
                refused.append(answer)
            else:
                used[record.class_name] += 1
                sizes[answer] += 1
    words = ", ".join(f"{width} x {height} ({count:,})" for (width, height), count in sizes.most_common(5))
    lines = [*map(plain, folder.contents), f"sizes: {words}" + (" ..." if len(sizes) > 5 else "")]
    listed = [{"file": _name(error.file, root), "reason": plain(error.reason)} for error in refused]
    return {"lines": lines, "classes": dict(used), "refused": listed}


def look_at_model(name: str) -> dict[str, Any]:
    """Opens the model, as `fit` will, in bfloat16."""
    from onbrand.models import pipeline
    from onbrand.models.families import family_of

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        pipe = pipeline.load(name, "cpu", "bfloat16")
    side, config = pipe.unet.config.sample_size, pipe.scheduler.config
    height, width = (side, side) if isinstance(side, int) else side
    factor = pipeline.factor_of(pipe)
    lines = [
        f"{family_of(pipe).name}, {height * factor} x {width * factor} pixels",
        f"predicts {config.prediction_type}; scheduler {type(pipe.scheduler).__name__}",
    ]
    return {"lines": lines + [plain(one.message) for one in caught if issubclass(one.category, UserWarning)]}


def _answered(ask: Any, name: str) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = ask(name)
    except (OnbrandError, OSError) as error:
        return {"error": plain(" ".join(str(error).split()))}
    return answer


def _size(record: Record) -> tuple[int, int] | UnreadableImage:
    try:
        return record.open().size
    except UnreadableImage as error:
        return error


def _name(file: Path, root: Path) -> str:
    return plain(file.relative_to(root) if file.is_relative_to(root) else file.name)


def main(arguments: Sequence[str]) -> int:
    """Writes OUT.json; 1 if photos or model cannot be used."""
    photos, model, out = arguments
    found = look(photos, model)
    write_json(Path(out), found)
    errors = [f"{name}: {part['error']}" for name, part in found.items() if "error" in part]
    print("\n".join(f"onbrand: error: {error}" for error in errors) or "both can be used")
    return bool(errors)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
