"""data: the embedded datasets as folders of pictures."""

from __future__ import annotations

from pathlib import Path


def data(name: str, *, out: str | Path, split: str = "train", count: int | None = None) -> Path:
    """Write an embedded dataset as a folder of pictures, to try onbrand on.

    Pictures as PNG and metadata.jsonl, as `fit`, `train` and `check` read them. try-on has people, and under
    conditions/ the garment of each, cut out: what a ControlNet is given. Its test split holds garments kept from
    training.

    Args:
        name: garments, photos or try-on
        out: folder for the pictures
        split: train, validation or test; photos have no validation
        count: the first pictures only; left out: all

    Returns:
        The folder.

    Raises:
        ValueError: an unknown name or split, or a count beyond what the split holds.
    """
    from onbrand.datasets import fashion, garments, try_on

    writers = {
        "garments": garments.write_garments,
        "photos": fashion.write_folder,
        "try-on": try_on.write_try_on,
    }
    if name not in writers:
        raise ValueError(f"an embedded dataset is one of {', '.join(writers)}; got {name!r}")
    folder = writers[name](out, split, count)
    written = len((folder / "metadata.jsonl").read_text().splitlines())
    print(f"wrote {written} pictures and metadata.jsonl to {folder}")
    return folder
