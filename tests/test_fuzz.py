"""Every kind of file that onbrand writes, damaged at random: refused in one line, or taken and sound."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz.py")


def fuzz(count: int, seed: int) -> None:
    """Runs tests/fuzz.py in a process of its own, whose memory is limited."""
    print(f"{SCRIPT} {count} {seed}")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    process = subprocess.run(
        [sys.executable, SCRIPT, str(count), str(seed)], capture_output=True, text=True, env=environment
    )
    assert process.returncode == 0, process.stderr[-3000:]
    results = json.loads(process.stdout)
    assert {name: result["faults"][:3] for name, result in results.items() if result["faults"]} == {}
    taken = {"image", "sums"}  # made again, summed again
    assert all(result["refused"] > count / 4 for name, result in results.items() if name not in taken), results


@pytest.mark.slow
def test_a_damaged_file_is_refused_or_sound() -> None:
    fuzz(50, seed=0)


@pytest.mark.prove
def test_thousands_of_damaged_files_are_refused_or_sound() -> None:
    fuzz(5000, seed=random.randrange(2**32))
