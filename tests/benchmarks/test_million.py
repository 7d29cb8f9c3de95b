"""The projection to a million images: rates of records, GPUs as a parameter, nothing made up."""

import json
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_hours_follow_from_the_records_and_what_was_not_measured_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    project = runpy.run_path(str(FOLDER / "million.py"))["project"]
    entries = {f"encode/bf16 batch {batch}": {"images_a_second": {"onbrand": [rate, 0, 0]}} for batch, rate in
               ((1, 50.0), (8, 250.0))}  # fmt: skip
    for name, small in (("a", False), ("b", True)):
        machine = {"device": f"GPU {name}", "small": small}
        (tmp_path / f"gpu-{name}.json").write_text(json.dumps({"machine": machine, "entries": entries}))
    rates = {name: {"median": 1000.0} for name in ("k = 0", "k = 16", "k = 0 from sums")}
    (tmp_path / "fit-c.json").write_text(json.dumps({"rates": rates, "threads": 2, "shape": [4, 64, 64]}))
    lines = project(tmp_path, 1_800_000, (1, 4)).splitlines()
    assert "| encode | 250 | 2 | 0.5 | GPU a, encode/bf16 batch 8 |" in lines
    assert "| generate as many | not measured |  |  |  |" in lines
    assert "| fit, K = 0 | 1,000 | 0.5 | 0.5 | 2 threads, latents of 4x64x64 |" in lines
    assert project(FOLDER / "results", 10**6, (1, 8, 64)).count("hours") == 4
    sys.modules.pop("gpu_page")
