"""data: the embedded datasets as folders of images."""

from __future__ import annotations

from pathlib import Path

from onbrand.api._output import works_in
from onbrand.options._verb import verb
from onbrand.options.data import DataOptions


@verb(DataOptions)
@works_in("output_dir", "take a smaller num_images")
def data(options: DataOptions) -> Path:
    """Write an embedded dataset as a folder of images, to try onbrand on.

    Images as PNG and metadata.jsonl, as `fit`, `train` and `check` read them. try-on has people, and under conditions/
    the garment of each, cut out: what a ControlNet is given. Its test split holds garments kept from training.

    Returns:
        The folder.

    Raises:
        OnbrandError: an unknown name or split, or more images than the split holds.
    """
    from onbrand.datasets import fashion, garments, try_on

    writers = {
        "garments": garments.write_garments,
        "photos": fashion.write_folder,
        "try-on": try_on.write_try_on,
    }
    folder = writers[options.name](options.output_dir, options.split, options.num_images)
    written = len((folder / "metadata.jsonl").read_text().splitlines())
    print(f"wrote {written} images and metadata.jsonl to {folder}")
    return folder
