"""Does the check hold (docs/research/log.md)? Real images that pass each property, violations that fail theirs."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "evaluation"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "reporting"))

import test_figures
from test_reference import UNSEEN, VIOLATIONS

from conftest import brand_images
from onbrand.core import Fitter, Prior, Provenance
from onbrand.core.fit import fit_rows
from onbrand.evaluation.likelihood import belongs, class_values, unseen_values
from onbrand.evaluation.loading import decode_x0, encode_x0
from onbrand.evaluation.reference import Reference, Verdict, judge, learn
from onbrand.evaluation.statistics import mean
from onbrand.models.pipeline import load

PROVENANCE = Provenance("tiny", 1.0, 0.0, (128, 128), "", False, (255, 255, 255))


def told(column: torch.Tensor) -> str:
    """A share and its 95 % bootstrap interval, in percent."""
    found = mean(column.float())
    return f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%})"


def photos() -> None:
    """Of the photos: one class of image."""
    reference, held = learn(brand_images("train", 2000)), brand_images("test", 1000)
    print("| property | photos held out pass |\n|---|---|")
    for name, passed in judge(reference, held).passed.items():
        print(f"| {name} | {told(passed)} |")
    print("\n| violation | property | fail it |\n|---|---|---|")
    for words, (name, broken) in (VIOLATIONS | {words: ("light", made) for words, made in UNSEEN.items()}).items():
        print(f"| {words} | {name} | {told(~judge(reference, broken(held)).passed[name])} |")


def figures() -> None:
    """Of garments and figures: four classes of image, each held against its own photos."""
    images, kinds = test_figures.load("train", 4020)
    held, classes = test_figures.load("test", 550)
    pipe = load("tiny")
    x0, held_x0 = encode_x0(pipe, images), encode_x0(pipe, held)
    decoded, through = decode_x0(pipe, x0), decode_x0(pipe, held_x0)
    fitter = Fitter(x0.shape[1:], 16)
    fitter.update(x0, kinds)
    prior = Prior(fitter.finish(), PROVENANCE)
    values = class_values(prior, x0, kinds)
    reference = learn(images, values, classes=kinds)
    wide = learn(images, values, classes=kinds, decoded=decoded)

    def held_against(one: Reference, shown: Tensor, asked: list[str], latents: Tensor = held_x0) -> Verdict:
        return judge(one, shown, class_values(prior, latents, asked), asked)

    found = [held_against(reference, held, classes), held_against(wide, held, classes),
             held_against(wide, through, classes, encode_x0(pipe, through))]  # fmt: skip
    print("\n| property | images | learnt with `decoded` | the same through the stock model's VAE |\n|---|---|---|---|")
    for name in found[0].passed:
        print(f"| {name} | " + " | ".join(told(one.passed[name][one.judged[name]]) for one in found) + " |")
    rows = [i for i, name in enumerate(classes) if name.endswith("person")]
    print("\n| violation by a figure | property | fail it | learnt with `decoded` |\n|---|---|---|---|")
    for words, (name, broken) in test_figures.VIOLATIONS.items():
        verdicts = [judge(one, broken(held[rows]), classes=[classes[i] for i in rows]) for one in (reference, wide)]
        print(f"| {words} | {name} | " + " | ".join(told(~one.passed[name]) for one in verdicts) + " |")
    turned = judge(reference, held[rows].flip(2), classes=[classes[i] for i in rows])
    print(f"| upside down | pose | {told(~turned.passed['pose'])} |")
    alone = [i for i, name in enumerate(classes) if name.endswith("garment")]
    asked = [classes[i].replace("garment", "person") for i in alone]
    other = judge(reference, held[alone], classes=asked)
    print(f"| garment where a figure was asked | pose | {told(~other.passed['pose'])} |")
    swap = {"garment": "person", "person": "garment", "male": "female", "female": "male"}
    for words, part in (("garment where a figure was asked, or the reverse", 1), ("the other gender's kind asked", 0)):
        wrong = [" ".join(swap[w] if i == part else w for i, w in enumerate(name.split())) for name in classes]
        passed = held_against(reference, held, wrong).passed["kind"]
        for view in ("person", "garment"):
            rows = torch.tensor([name.endswith(view) for name in classes])
            print(f"| a {view}: {words} | kind | {told(~passed[rows])} |")


def few() -> None:
    """The class of image by a prior of few photos, learnt from photos it has seen and from the same as if unseen."""
    images, kinds = test_figures.load("train", 4020)
    x0 = encode_x0(load("tiny"), images)
    order = torch.randperm(len(x0), generator=torch.Generator().manual_seed(0)).tolist()
    rows = {name: [i for i in order if kinds[i] == name] for name in sorted(set(kinds))}
    new = [i for own in rows.values() for i in own[-150:]]
    asked = [kinds[i] for i in new]
    other = [" ".join({"garment": "person", "person": "garment"}.get(w, w) for w in name.split()) for name in asked]
    print(
        "\n| photos of a kind | learnt as | new photos pass kind | of no kind | another view's kind fails | diversity |"
    )
    print("|---|---|---|---|---|---|")
    for count in (25, 50, 100, 200, 400, 800):
        prior = Prior({name: fit_rows(x0[own[:count]], 16) for name, own in rows.items()}, PROVENANCE)
        used = [i for own in rows.values() for i in own[:count]]
        names = [kinds[i] for i in used]
        unseen = [unseen_values(prior, x0[own[:count]], name) for name, own in rows.items()]
        columns = {number: torch.cat([one[number] for one in unseen]) for number in unseen[0]}
        for words, values in (("seen", class_values(prior, x0[used], names)), ("unseen", columns)):
            reference = learn(images[used], values, classes=names)
            right, wrong = (
                judge(reference, images[new], class_values(prior, x0[new], kind), kind).passed["kind"]
                for kind in (asked, other)
            )
            out_of_distribution = 1 - belongs(reference.lines, prior, x0[new]).float().mean()
            diversity = reference.held_out.get("diversity", 1.0)
            print(
                f"| {count} | {words} | {told(right)} | {out_of_distribution:.1%} | {told(~wrong)} | {diversity:.2f} |"
            )


def main() -> None:
    warnings.simplefilter("ignore", UserWarning)
    photos()
    figures()
    few()


if __name__ == "__main__":
    main()
