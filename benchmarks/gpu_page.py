"""docs/research/gpu.md from the records of gpu.py; no number is written by hand.

`python benchmarks/gpu_page.py` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "research" / "gpu.md"

Entry = Mapping[str, Any]
HEAD = """# On a GPU

`make gpu` measures this and writes this page; it goes on where it was stopped. Speeds are of Stable Diffusion 1.5's
architecture with random weights at 512x512, each beside plain diffusers, in turn within one process: medians, in
brackets 95 % of a bootstrap's medians.
"""
NONE = """
**Nothing has been measured on a GPU yet.**
"""
PARITY = """
### The same numbers as on the CPU
The stand-in, catalogue images, compared with the CPU's float32. Mean, variances, loss, gradient: relative difference
of the worst class; components: the largest principal angle; images: mean absolute difference of 20 steps, of 255.
"""
KILL = """
`onbrand train` killed (SIGKILL) and resumed, beside a run that went through; and two runs that went through. Largest
difference of a weight:
"""
TRAINING = """
### Training
bfloat16; the whole UNet, or a LoRA of rank 8 in its attention. *diffusers* is a loop like its example scripts
(`benchmarks/gpu_training.py`): autoencoder and text encoder run in every step. Idle: share of a step in which the GPU
runs nothing.
"""
START = """
What the start costs: steps with offset mean over steps without a start, taken in turn one by one; a second run
without one is the control.
"""
PREFETCH = """
Batches prepared ahead of the step (`--prefetch`), and not:
"""
SWEEP = """
One setting at a time; a LoRA is of rank 8 in all layers, the default. Memory: the most that torch
allocated.
"""
WANTED = """
### What was wanted
The median counts, not the lower end of its interval. What has no number was not measured for want of time.
"""
GOALS = (
    ("full fine-tuning, times as fast as the example", "training/full", "times_as_fast", "diffusers", 1.5, True),
    ("a LoRA, times as fast as the example", "training/lora", "times_as_fast", "diffusers", 1.5, True),
    ("a step with offset, times as long", "training/offset", "times_as_long", "mean", 1.02, False),
    ("generation, times as fast as the pipeline", "generate/bf16 batch 8", "times_as_fast", "diffusers", 0.97, True),
)
"""Words, measurement, what of it, beside which, the number wanted, whether more is better."""
IDLE = """
A GPU that is idle for most of a step waits for Python, which launches its kernels one by one. A larger batch then
costs little; `--compile` launches fewer.
"""
RATES = {
    "encode": "### Encoding\nPhotos of a folder to latents: opened, encoded, brought back.\n",
    "generate": "### Generation\n20 steps, guidance 7.5, of one batch; onbrand starts from the class mean.\n",
}


def publish(folder: Path) -> Path:
    """Writes the page of a folder's records, docs/research/gpu.md or one beside them, and returns its path."""
    file = PAGE if folder.resolve() == RESULTS else folder / "gpu.md"
    file.write_text(page([json.loads(record.read_text()) for record in sorted(folder.glob("gpu-*.json"))]))
    return file


def page(records: Sequence[Mapping[str, Any]]) -> str:
    """The page, Markdown; it says so where there is no record."""
    return HEAD + ("".join(map(section, records)) or NONE)


def section(record: Mapping[str, Any]) -> str:
    """What one device did."""
    told, entries = record["machine"], record["entries"]
    libraries = ", ".join(f"{name} {told[name]}" for name in ("torch", "diffusers", "transformers", "accelerate"))
    small = " **A rehearsal at a small size: these numbers say nothing.**" if told["small"] else ""
    parts = [f"\n## {told['device']}\n{told['cores']} CPU cores, Python {told['python']}, {libraries}.{small}\n"]
    parts += [parity(entries), kill(entries), training(entries), offset(entries), ahead(entries)]
    parts += [rates(entries, part) for part in RATES]
    parts += [sweep(entries), goals(entries)]
    parts += [f"\n`{name}` failed: {why}\n" for name, why in record["failed"].items()]
    return "".join(parts)


def goals(entries: Mapping[str, Entry]) -> str:
    """A row a goal, where any was measured, and what a GPU that waits means."""
    rows = []
    for words, name, key, other, least, more in GOALS:
        found = entries.get(name, {}).get(key, {}).get(other)
        reached = found is not None and (found[0] >= least if more else found[0] <= least)
        verdict = "not measured" if found is None else "reached" if reached else "short"
        rows.append([words, f"{'at least' if more else 'at most'} {least:g}", spread(found), verdict])
    if all(row[3] == "not measured" for row in rows):
        return ""
    idle = max(entry.get("idle", {}).get("onbrand") or 0 for entry in entries.values())
    return WANTED + "\n" + table(["", "wanted", "measured", ""], rows) + (IDLE if idle > 0.5 else "")


def parity(entries: Mapping[str, Entry]) -> str:
    """A row an arithmetic."""
    columns: dict[str, tuple[str, Callable[[Entry], str]]] = {
        "mean": ("fit", lambda e: f"{e['mean']:.1e}"),
        "variances": ("fit", lambda e: f"{e['variances']:.1e}"),
        "components": ("fit", lambda e: f"{e['angle']:.2g}°"),
        "loss": ("step", lambda e: f"{e['loss']:.1e}"),
        "gradient": ("step", lambda e: "not finite" if e["gradient"] is None else f"{e['gradient']:.1e}"),
        "images": ("pictures", lambda e: f"{e['mean']:.3f}"),
        "worst image": ("pictures", lambda e: f"{e['worst']:.3f}"),
        "same bytes twice": ("pictures", lambda e: "yes" if e["same_twice"] else "no"),
    }
    rows = []
    for dtype in ("float32", "float16", "bfloat16"):
        found = {part: entries.get(f"parity/{part} {dtype}") for part in ("fit", "step", "pictures")}
        if any(found.values()):
            rows.append([dtype, *(cell(found[part], told) for part, told in columns.values())])
    return PARITY + "\n" + table(["arithmetic", *columns], rows) if rows else ""


def kill(entries: Mapping[str, Entry]) -> str:
    """A row a kind of algorithms."""
    rows = []
    for name, words in (("parity/kill", "torch's own"), ("parity/kill deterministic", "deterministic")):
        if entry := entries.get(name):
            steps = f"{entry['killed_at']} of {entry['steps']}, resumed at {entry['resumed_from']}"
            rows.append([words, steps, *(most(entry[key]) for key in ("resumed", "undisturbed"))])
    head = ["algorithms", "killed at step", "killed and resumed", "two that went through"]
    return KILL + "\n" + table(head, rows) if rows else ""


def most(entry: Entry) -> str:
    """The largest difference of weights."""
    return "none, bit for bit" if entry["same"] else f"{entry['most']:.1e}"


def training(entries: Mapping[str, Entry]) -> str:
    """A row a method and loop."""
    rows = []
    for method in ("full", "lora"):
        rows += beside(entries.get(f"training/{method}"), method)
    if entry := entries.get("training/controlnet"):
        rows += beside(entry, "controlnet")
    head = ["method", "batch", "loop", "images a second", "onbrand is times as fast", "idle", "memory, GB"]
    return TRAINING + "\n" + table(head, rows) if rows else ""


def beside(entry: Entry | None, first: str) -> list[list[str]]:
    """A row for each that was measured in turn."""
    if not entry:
        return []
    if "out_of_memory" in entry:
        return [[first, "", "", "out of memory", "", "", ""]]
    return [
        [
            first, str(entry["batch"]), name, spread(rate), spread(entry.get("times_as_fast", {}).get(name)),
            share(entry.get("idle", {}).get(name)), number(entry.get("peak_gb", {}).get(name)),
        ]
        for name, rate in entry["images_a_second"].items()
    ]  # fmt: skip


def offset(entries: Mapping[str, Entry]) -> str:
    """The start's cost."""
    entry = entries.get("training/offset")
    if not entry or "out_of_memory" in entry:
        return ""
    rows = [[name, spread(times, 4)] for name, times in entry["times_as_long"].items()]
    return START + "\n" + table(["run", "times as long"], rows)


def ahead(entries: Mapping[str, Entry]) -> str:
    """Prefetching."""
    rows = []
    for method in ("full", "lora"):
        rows += [row[:6] for row in beside(entries.get(f"training/prefetch {method}"), method)]
    head = ["method", "batch", "prefetch", "images a second", "as it is is times as fast", "idle"]
    return PREFETCH + "\n" + table(head, rows) if rows else ""


def rates(entries: Mapping[str, Entry], part: str) -> str:
    """A row a precision, batch and library."""
    rows = []
    for name, entry in entries.items():
        if name.startswith(f"{part}/"):
            rows += [row[:6] for row in beside(entry, name.removeprefix(f"{part}/").split()[0])]
    head = ["precision", "batch", "by", "images a second", "onbrand is times as fast", "idle"]
    return "\n" + RATES[part] + "\n" + table(head, rows) if rows else ""


def sweep(entries: Mapping[str, Entry]) -> str:
    """A row a setting."""
    rows = []
    for name, entry in entries.items():
        if name.startswith("sweep/"):
            method, setting = name.removeprefix("sweep/").split(" ", 1)
            (row,) = beside(entry, method)
            rows.append([method, setting, row[3], row[6]])
    return SWEEP + "\n" + table(["method", "setting", "images a second", "memory, GB"], rows) if rows else ""


def cell(entry: Entry | None, told: Callable[[Entry], str]) -> str:
    """What is told of an entry, where there is one."""
    return told(entry) if entry else ""


def spread(values: Sequence[float] | None, digits: int = 2) -> str:
    """Median (low to high)."""
    if values is None:
        return ""
    median, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{median} ({low} to {high})"


def share(value: float | None) -> str:
    """In per cent."""
    return "" if value is None else f"{100 * value:.0f} %"


def number(value: float | None) -> str:
    """GB."""
    return "" if value is None else f"{value:.1f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


if __name__ == "__main__":
    print(f"wrote {publish(RESULTS)}")
