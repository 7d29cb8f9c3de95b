"""A brand's leak in numbers and words: what `diagnose` measures of each class, finds, and prints."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from onbrand.core.findings import findings, offset_noise
from onbrand.core.leak import channel_means_lost, measure_leak, prompt_says
from onbrand.core.prior import Prior
from onbrand.io import plain

LOOKS = (0, 1, 2, 4)
"""Numbers of looks ahead for which the prompt's say is given."""


def diagnose_classes(
    prior: Prior,
    abar: float,
    first: float,
    timesteps: Sequence[float],
    trained_start: Mapping[str, Any] | None = None,
    last: float = 999,
    prompts: bool = True,
    noise_offset: float = 0.0,
) -> tuple[dict[str, dict[str, Any]], list[dict[str, str]]]:
    """The numbers of each class, and the findings, each once with the classes that it is true of.

    Args:
        prior: the brand's
        abar: alphas_cumprod in [0, 1] at the first inference timestep
        first: that timestep
        timesteps: of inference, falling
        trained_start: the start that the weights were trained with (`gain` and `start_timestep`); None: noise
        last: the noisiest training timestep, where a trained window ends
        prompts: also measure the prompt's say (for weights trained without a start, at an abar above 0)
        noise_offset: of the offset noise that the weights were trained with; 0: none
    """
    constant, window = None, None
    if trained_start:
        timestep = float(trained_start["start_timestep"])
        constant, window = (timestep, None) if trained_start["gain"] == "constant" else (None, (timestep, last))
    classes: dict[str, dict[str, Any]] = {}
    entries: dict[tuple[str, str], dict[str, str]] = {}
    for name, gaussian in prior.gaussians.items():
        leak = measure_leak(gaussian, abar)
        numbers = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in vars(leak).items()}
        classes[name] = {"count": gaussian.count, **numbers}
        if prompts and gaussian.k:
            classes[name]["prompt_say"] = prompt_says(gaussian, prior.text.get(name), abar, LOOKS)
        entries_of_class = findings(leak, first, timesteps, window, constant, abar)
        if noise_offset and abar > 0 and not trained_start:
            lost = [channel_means_lost(gaussian, abar, offset) for offset in (noise_offset, 0.0)]
            classes[name]["channel_means_lost"] = lost[0]
            entries_of_class.append(offset_noise(noise_offset, *lost))
        for finding in entries_of_class:
            entry = entries.setdefault((finding.code, finding.sentence), {**asdict(finding), "class": ""})
            entry["class"] = ", ".join(filter(None, (entry["class"], name)))
    return classes, list(entries.values())


def lines_of(classes: Mapping[str, Mapping[str, Any]], entries: Sequence[Mapping[str, str]]) -> list[str]:
    """What `diagnose_classes` returned, as a table of the numbers, one of the prompt's say, and the findings."""
    classes = {plain(name): numbers for name, numbers in classes.items()}
    width = max(len("class"), *map(len, classes))
    lines = [f"{'class':<{width}}  {'photos':>7}  {'sigma':>6}  {'bright':>6}  {'nats':>7}  {'AUC':>5}  {'K worth':>7}"]
    for name, numbers in classes.items():
        lines.append(
            f"{name:<{width}}  {numbers['count']:>7}  {numbers['sigma']:>6.2f}  {numbers['brightness']:>6.2f}"
            f"  {numbers['nats']:>7.1f}  {numbers['auc']:>5.3f}  {numbers['k_worth']:>7}"
        )
    says = {name: numbers["prompt_say"] for name, numbers in classes.items() if "prompt_say" in numbers}
    if says:
        where = "docs/concepts/method.md, section 7"
        lines.append(f"\nThe prompt's say from the class mean, by looks ahead, of an ideal network ({where})")
        lines.append(f"{'class':<{width}}  " + "  ".join(f"{number:>5}" for number in LOOKS))
        for name, numbers in says.items():
            lines.append(f"{name:<{width}}  " + "  ".join(f"{numbers['all'][str(number)]:>5.2f}" for number in LOOKS))
    for entry in entries:
        lines.append(f"\n{entry['code']} {entry['title']} ({plain(entry['class'])})\n  {entry['sentence']}")
        if entry["remedy"]:
            lines.append(f"  -> {entry['remedy']}")
    return lines
