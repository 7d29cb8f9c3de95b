"""What onbrand is on a GPU: the same numbers as on a CPU, and how fast beside diffusers; resumable.

python benchmarks/gpu.py [--only parity,training,encode,generate,sweep] [--seconds N] [--results FOLDER]

Every measurement is an entry of FOLDER/gpu-<device>.json, written as soon as it is made and not made again (--again
makes it again). A page, made of these files alone, is written at the end: docs/research/gpu.md, or gpu.md in another
FOLDER.
Without a GPU nothing is measured; `--device cpu --small` rehearses all of it at a size for two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from gpu_page import RESULTS, ROOT, publish

PARTS = ("parity", "training", "encode", "generate", "sweep")
"""By importance, in which they are measured."""
REHEARSALS = ROOT / "runs" / "gpu"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, or beginnings of the names of measurements")
    parser.add_argument("--again", help="beginnings of the names of measurements to make again")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no measurement after so many")
    parser.add_argument("--results", type=Path, help="folder of the record; left out: benchmarks/results")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="a rehearsal")
    given = parser.parse_args(arguments)
    begin = time.monotonic()
    if given.device == "cpu" and not given.small:
        parser.error("the CPU is for a rehearsal: add --small")
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    if given.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here, nothing is measured; `--device cpu --small` rehearses")
        return 0
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
    folder = given.results or (REHEARSALS if given.small else RESULTS)
    file, record = opened(folder, machine(given.device, given.small))
    entries, failed = record["entries"], record["failed"]
    names = tuple(given.only.split(","))
    wanted = {name: make for name, make in measurements(given.device, given.small).items() if name.startswith(names)}
    if not wanted:
        parser.error(f"no measurement's name begins with {given.only}: take {', '.join(PARTS)}")
    for name in list(entries):
        if given.again and name.startswith(tuple(given.again.split(","))):
            del entries[name]
    for name, make in wanted.items():
        if name in entries:
            continue
        if time.monotonic() - begin > given.seconds:
            print(f"{sum(name not in entries for name in wanted)} measurements are left: the same command goes on")
            break
        started = time.monotonic()
        failed.pop(name, None)
        try:
            entries[name] = rounded(make())
        except torch.cuda.OutOfMemoryError:
            entries[name] = {"out_of_memory": True}
        except Exception as error:  # the others are measured all the same
            failed[name] = f"{type(error).__name__}: {str(error)[:300]}"
            traceback.print_exc()
        if name in entries:
            entries[name]["seconds"] = round(time.monotonic() - started, 1)
        write(file, json.dumps(record, indent=1) + "\n")
        print(f"{name}: {failed.get(name) or json.dumps(entries[name])}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"wrote {file} and {publish(folder)}")
    return int(any(name in failed for name in wanted))


def measurements(device: str, small: bool) -> dict[str, Any]:
    """Every measurement by its name, in the order of PARTS."""
    import gpu_parity
    import gpu_rates
    import gpu_training
    from gpu_models import SMALL, Size

    size = SMALL if small else Size()
    if small and device == "cuda":
        raise SystemExit("a rehearsal is for the CPU: add --device cpu")
    return (
        gpu_parity.measurements(size)
        | gpu_training.measurements(size)
        | gpu_rates.measurements(size)
        | gpu_training.sweep(size)
    )


def machine(device: str, small: bool) -> dict[str, Any]:
    """What was measured on."""
    import accelerate
    import diffusers
    import torch
    import transformers

    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    libraries = {library.__name__: library.__version__ for library in (torch, diffusers, transformers, accelerate)}
    return {"device": name, "cores": os.cpu_count(), "python": platform.python_version(), "small": small, **libraries}


def opened(folder: Path, told: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The record's file and what it holds so far; refused where it was begun with other libraries."""
    slug = re.sub(r"[^a-z0-9]+", "-", told["device"].lower()).strip("-")
    file = folder / f"gpu-{slug}.json"
    if not file.exists():
        return file, {"machine": told, "entries": {}, "failed": {}}
    record = json.loads(file.read_text())
    differing = [name for name, value in told.items() if record["machine"].get(name) != value]
    if differing:
        raise SystemExit(f"{file} was begun with another {', '.join(differing)}: give --results another folder")
    return file, record


def rounded(value: Any) -> Any:
    """Every number in it to six digits."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def write(file: Path, text: str) -> None:
    """Under another name, then renamed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.tmp")
    draft.write_text(text)
    os.replace(draft, file)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    sys.exit(main())
