"""Run by test_kill: children generate, are killed -9 at random moments, resumed, and compared with one never killed."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from onbrand.options.generate import SamplingSettings
from onbrand.sampling.manifest import read_manifest, write_images
from onbrand.sampling.requests import Request
from worlds import tiny_pipeline, tiny_prior

REQUESTS = [Request(f"garment, item {seed}", seed) for seed in range(12)]
CONFIG = SamplingSettings(
    num_inference_steps=3, guidance_scale=2.0, batch_size=4, start="pca", scheduler="EulerAncestralDiscreteScheduler"
)


def start_child(folder: Path) -> int:
    """A forked process that fills `folder`: its pid."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if all(image.image for image in write_images(folder, PIPE, PRIOR, REQUESTS, CONFIG)) else 1
        finally:
            os._exit(status)
    return pid


def lines_in(folder: Path) -> int:
    path = folder / "manifest.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_somewhere(folder: Path) -> int:
    """Kill a run after a random number of its images and a random wait; how many lines it had written."""
    pid = start_child(folder)
    goal = random.randrange(len(REQUESTS) - 1)
    while lines_in(folder) < goal:
        time.sleep(0.0005)
    time.sleep(random.random() * 0.03)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return lines_in(folder)


def finish(folder: Path) -> dict[str, bytes]:
    _, status = os.waitpid(start_child(folder), 0)
    assert os.waitstatus_to_exitcode(status) == 0, f"resuming {folder} failed"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "manifest.jsonl"}


if __name__ == "__main__":
    out, moments = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    PIPE = tiny_pipeline()
    PRIOR = tiny_prior(PIPE, ("garment",))
    reference, entries = finish(out / "whole"), read_manifest(out / "whole")
    assert len(reference) == len(REQUESTS) + 1 and len(entries) == len(REQUESTS)
    for moment in range(moments):
        folder = out / f"killed-{moment}"
        counts = [kill_somewhere(folder)]
        if random.random() < 0.5:
            counts.append(kill_somewhere(folder) if counts[0] < len(REQUESTS) - 1 else counts[0])
        images = finish(folder)
        assert images == reference, (
            f"killed at {counts}: {[name for name in reference if images.get(name) != reference[name]]}"
        )
        assert read_manifest(folder) == entries, f"killed at {counts}: the manifests differ"
        print(f"killed after {counts} of {len(REQUESTS)}")
