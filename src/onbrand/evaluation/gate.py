"""A brand's gate: what `check` says of one image, asked while images are made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onbrand.data.buckets import bucket_of
from onbrand.errors import OnbrandError
from onbrand.evaluation.check import failures_of, judge_each
from onbrand.evaluation.likelihood import ALL
from onbrand.evaluation.loading import Images, open_references, pixels_of
from onbrand.evaluation.text import AttributeClassifier, open_judge, requested_labels
from onbrand.sampling.draws import Gate
from onbrand.sampling.requests import place_of
from onbrand.sampling.sampler import GeneratedImage, Plan

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def open_gate(
    plan: Plan,
    against: str | Path,
    max_draws: int,
    attributes: str | Path | None = None,
    pipe: DiffusionPipeline | None = None,
    brand: Path | None = None,
) -> Gate:
    """Learn what images are judged by, before any is made.

    The properties, ranges and numbers are those of `check` with the same photos, prior and attribute classifier.

    Args:
        plan: what will be made.
        against: folder of the brand's photos.
        max_draws: draws of an image, at most.
        attributes: an attribute classifier's folder or name; None: the text is not judged.
        pipe: the model whose autoencoder encodes for the prior, in float32; None: the plan's own.
        brand: folder that `fit` wrote, where the ranges are kept.

    Raises:
        OnbrandError: photos that nothing can be learned from, a request of a class or size that they do not show, or
            nothing that the attribute classifier reads.
    """
    prior, encoder = plan.prior, (pipe or plan.pipe) if plan.prior else None
    judges = [] if attributes is None else [_open_reader(attributes, plan)]
    first = prior.size if prior else plan.sizes[0]
    if first is None:
        raise OnbrandError(
            "request",
            f"images are judged at a size that is known before; {place_of(plan.requests, 0)} says none: give "
            "resolution, or a prior",
        )
    classes, places = plan.classes or [ALL] * len(plan.requests), [first] * len(plan.requests)
    if prior and len(prior.all) > 1:
        own = prior.sizes
        places = [bucket_of(size or first, own[name]) for size, name in zip(plan.sizes, classes, strict=True)]
    references = open_references(against, places, prior, encoder, brand)
    for index, (place, name) in enumerate(zip(places, classes, strict=True)):
        try:
            references[place].group(name)
        except OnbrandError as error:
            where = place_of(plan.requests, index)
            raise OnbrandError("request", f"{where}: {error}; give photos of it, or leave against out") from error

    def judge(images: Sequence[GeneratedImage]) -> list[list[str]]:
        pixels, requests = [image.image for image in images], [image.request for image in images]
        sample = Images(
            [str(image.index) for image in images], pixels, pixels_of(pixels, first),
            [request.prompt for request in requests], [image.class_name or ALL for image in images],
            [request.attributes for request in requests],
        )  # fmt: skip
        return failures_of(judge_each(sample, references, prior, encoder, judges, {}).passes)

    settings = {
        "max_draws": max_draws,
        "attributes": None if attributes is None else str(attributes),
        "n_reference": sum(reference.count[0] for reference in references.values()),
    }
    return Gate(judge, max_draws, settings)


def _open_reader(attributes: str | Path, plan: Plan) -> AttributeClassifier:
    """The attribute classifier, which reads something that a request names."""
    reader = open_judge(attributes)
    if not isinstance(reader, AttributeClassifier):
        raise OnbrandError(
            "classifier",
            f"an image is judged by an attribute classifier; {attributes} is a CLIPModel: take a folder with "
            "reader.json, or leave attributes out",
        )
    prompts = [request.prompt for request in plan.requests]
    labels = requested_labels(reader, prompts, [request.attributes for request in plan.requests])
    if not any((column >= 0).any() for column in labels.values()):
        raise OnbrandError(
            "classifier",
            f"no request names what {attributes} reads ({', '.join(reader.attributes)}): leave attributes out, or say "
            "in each request what is to be seen",
        )
    return reader
