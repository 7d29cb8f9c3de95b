"""A start from the text of few photos (docs/research/log.md): what regressions explain of unseen photos.

    python research/few_text.py

Of the catalogue's test split, the share of the variance within the classes that is explained: by ridges of each class
alone, as `fit` makes them; of both genders' photos of one view together; of all photos together.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from onbrand.core import ConditionalFitter
from onbrand.core.fit import fit_rows
from onbrand.data.latents import iterate
from onbrand.data.records import read_folder
from onbrand.datasets.garments import garment_folder
from onbrand.models.fitting import embed_captions, encode_records
from onbrand.models.pipeline import load, to_x0

PHOTOS = (50, 100, 250, 900)
"""Of each class."""
K = 16
ALONE = [["female garment"], ["male garment"], ["female person"], ["male person"]]
GROUPS = {"its own": ALONE, "of its view": [[*ALONE[0], *ALONE[1]], [*ALONE[2], *ALONE[3]]], "all": [sum(ALONE, [])]}
"""Whose photos a class's regression is fitted to -> the classes that share one."""
Classes = dict[str, tuple[Tensor, Tensor]]
"""Class -> x0 `(N, C, h, w)` and its captions' embeddings `(N, E)`."""


def read(split: str, cache: Path) -> Classes:
    """A split's latents and embeddings by class."""
    pipe = load("tiny")
    records = read_folder(garment_folder(), split)[0]
    store, summary = encode_records(pipe, records, cache, (128, 128), False)
    embeddings = embed_captions(pipe, sorted({record.text for record in summary.used}))
    x0 = torch.cat([to_x0(pipe, mean) for mean, _ in iterate(store, summary.used, 512)])
    text = torch.stack([embeddings[record.text] for record in summary.used])
    names = [record.class_name for record in summary.used]
    rows = {name: [i for i, other in enumerate(names) if other == name] for name in chain(*ALONE)}
    return {name: (x0[own], text[own]) for name, own in rows.items()}


def explained(train: Classes, test: Classes, groups: Sequence[Sequence[str]], count: int) -> float:
    """Share of the test photos' variance about the class means of all training photos."""
    left = whole = 0.0
    for group in groups:
        few = {}
        for name in group:
            x0, text = train[name]
            few[name] = tuple(part[torch.arange(count) * len(x0) // count] for part in (x0, text))
        means = {name: (x0.mean(0), text.mean(0)) for name, (x0, text) in few.items()}
        x0, text = (torch.cat([few[name][i] - means[name][i] for name in group]) for i in range(2))
        fitter = ConditionalFitter(fit_rows(x0, K))
        fitter.update(text, x0, list(range(count)) * len(group))
        regression = fitter.finish()
        for name in group:
            truth, captions = test[name]
            mean = fitter.gaussian.place(regression.coordinates(captions - means[name][1])) + means[name][0]
            left += float((truth - mean).square().sum())
            whole += float((truth - train[name][0].mean(0)).square().sum())
    return 1 - left / whole


def main() -> None:
    with TemporaryDirectory() as cache:
        train, test = (read(split, Path(cache)) for split in ("train", "test"))
    print(f"| photos a class | {' | '.join(GROUPS)} |\n|--:|{'--:|' * len(GROUPS)}")
    for count in PHOTOS:
        print(f"| {count} | {' | '.join(f'{explained(train, test, one, count):.2f}' for one in GROUPS.values())} |")


if __name__ == "__main__":
    main()
