"""kill -9 at random moments and resume: the same bytes as a run that was never killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("moments", [2, pytest.param(10, marks=pytest.mark.prove)])
def test_killed_and_resumed(tmp_path: Path, moments: Any) -> None:
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here.parents[1] / "src"), str(here.parent)])
    env = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": paths}
    command = [sys.executable, "-W", "ignore", str(here / "killed.py"), str(tmp_path), str(moments)]
    process = subprocess.run(command, capture_output=True, text=True, env=env)
    assert process.returncode == 0, process.stderr[-3000:]
    assert process.stdout.count("killed after") == moments
