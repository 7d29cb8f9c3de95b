"""diagnose: does a model that starts from noise miss this brand, how badly, and what helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onbrand.io import command, write_json

LOOKS = (0, 1, 2, 4)
"""Looks ahead of which the diagnosis tells."""


def diagnose(
    brand: str | Path,
    *,
    model: str | Path | None = None,
    scheduler: str | None = None,
    steps: int = 20,
    spacing: str | None = None,
    zero_snr: bool = False,
) -> dict[str, Any]:
    """Say whether a model that starts from noise will miss the brand's look, how badly, and what to do.

    Needs no network pass: the prior and the sampler's noise schedule are enough (Eq. 4-7, per component). Prints one
    line of numbers a class and the findings, each with a code explained in docs/findings.md; writes brand/leak.json.

    Args:
        brand: folder that `fit` wrote
        model: model or run that will make the pictures; left out: the one that the brand was fitted with
        scheduler: diffusers' class name of the sampler, such as DPMSolverMultistepScheduler; left out: the model's own
        steps: sampling steps
        spacing: leading, trailing or linspace; left out: the scheduler's own
        zero_snr: ask it of the model's schedule rescaled to zero terminal SNR (a model must be trained for it)

    Returns:
        What leak.json says: numbers by class, and the findings.

    Raises:
        ValueError: a scheduler that no start can enter, or that cannot be rescaled, with the reason.
    """
    given = dict(locals())
    from dataclasses import asdict

    from onbrand.api._inputs import open_model, prior_file
    from onbrand.core import Prior, findings, measure_leak
    from onbrand.core.leak import prompt_says
    from onbrand.models import pipeline
    from onbrand.models.scheduler import VANISHING, read, rescaled, with_options

    prior = Prior.load(prior_file(brand))
    pipe = open_model(prior.provenance.model if model is None else model, "cpu")
    base = rescaled(pipe.scheduler) if zero_snr else pipe.scheduler
    schedule = read(with_options(base, scheduler, spacing), steps)
    trained = pipeline.offset_of(pipe) or {}
    window = (trained["first"], len(schedule.abars) - 1) if trained.get("gain") == "window" else None

    classes: dict[str, Any] = {}
    found: dict[tuple[str, str], dict[str, str]] = {}
    for name, gaussian in prior.gaussians.items():
        leak = measure_leak(gaussian, schedule.abar)
        numbers = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in vars(leak).items()}
        classes[name] = {"count": gaussian.count, **numbers}
        if not trained and schedule.abar >= VANISHING and gaussian.k:
            classes[name]["prompt_say"] = prompt_says(gaussian, prior.text.get(name), schedule.abar, LOOKS)
        for finding in findings(leak, schedule.first, schedule.timesteps, window, trained.get("start"), schedule.abar):
            entry = found.setdefault((finding.code, finding.sentence), {**asdict(finding), "class": ""})
            entry["class"] = ", ".join(filter(None, (entry["class"], name)))
    print(f"{schedule.name}, {steps} steps: starts at timestep {schedule.first:g}, abar {schedule.abar:.4g}\n")
    width = max(len("class"), *map(len, classes))
    print(f"{'class':<{width}}  {'photos':>7}  {'sigma':>6}  {'bright':>6}  {'nats':>7}  {'AUC':>5}  {'K worth':>7}")
    for name, one in classes.items():
        print(
            f"{name:<{width}}  {one['count']:>7}  {one['sigma']:>6.2f}  {one['brightness']:>6.2f}  {one['nats']:>7.1f}"
            f"  {one['auc']:>5.3f}  {one['k_worth']:>7}"
        )
    says = {name: one["prompt_say"] for name, one in classes.items() if "prompt_say" in one}
    if says:
        print("\nThe prompt's say from the class mean, by looks ahead, of an ideal network (docs/method.md, section 7)")
        print(f"{'class':<{width}}  " + "  ".join(f"{number:>5}" for number in LOOKS))
        for name, one in says.items():
            print(f"{name:<{width}}  " + "  ".join(f"{one['all'][str(number)]:>5.2f}" for number in LOOKS))
    for entry in found.values():
        print(f"\n{entry['code']} {entry['title']} ({entry['class']})\n  {entry['sentence']}")
        if entry["remedy"]:
            print(f"  -> {entry['remedy']}")
    result = {
        "scheduler": schedule.name,
        "steps": steps,
        "first": schedule.first,
        "abar": schedule.abar,
        "classes": classes,
        "findings": list(found.values()),
        "command": command(diagnose, given),
    }
    folder = Path(brand) if Path(brand).is_dir() else Path(brand).parent
    write_json(folder / "leak.json", result)
    return result
