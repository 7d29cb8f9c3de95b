"""A fit killed with SIGKILL anywhere and started again gives the files of a fit that was never killed."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from processes import SERVER


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fit that was never killed."""
    out = tmp_path_factory.mktemp("fits") / "whole"
    fit(world, out)
    return out


def work(world: Path, out: Path) -> None:
    """The child: a fit in one thread."""
    from onbrand.api import fit as api_fit

    torch.set_num_threads(1)
    out.mkdir(exist_ok=True)
    (out / "begun").touch()
    api_fit(world / "photos", world / "model", out, k=4, batch_size=2)


def fit(world: Path, out: Path, after: float | None = None) -> tuple[float, bool]:
    """A fit in a process of its own, killed `after` seconds from its beginning: its seconds, and whether it was."""
    process = SERVER.Process(target=work, args=(world, out))
    process.start()
    while process.is_alive() and not (out / "begun").exists():
        time.sleep(0.001)
    start = time.monotonic()
    process.join(after)
    if after is not None and process.is_alive():
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)  # 0: it ended in this very moment
    else:
        assert process.exitcode == 0
    (out / "begun").unlink()
    return time.monotonic() - start, process.exitcode == -signal.SIGKILL


def contents(out: Path) -> dict[str, bytes]:
    """What a fit leaves, but its cache and, in fit.json, the command that names its folder."""
    files = {
        str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and "latents" not in p.parts
    }
    fit_json = json.loads(files["fit.json"])
    assert str(out) in fit_json.pop("command")
    return files | {"fit.json": json.dumps(fit_json).encode()}


@pytest.mark.slow
@pytest.mark.parametrize("moments", [2, pytest.param(10, marks=pytest.mark.prove)])
def test_killed_and_started_again_it_is_the_fit_that_was_not(
    world: Path, whole: Path, tmp_path: Path, moments: int
) -> None:
    seed = random.randrange(2**32)
    print(f"moments from seed {seed}")
    draw, files = random.Random(seed), contents(whole)
    assert set(files) == {"prior.safetensors", "unseen.json", "fit.json", "means/block.png", "means/tall block.png"}
    seconds, kills = fit(world, tmp_path / "timed")[0], []
    for moment in range(moments):
        out = tmp_path / f"killed-{moment}"
        kills.append(fit(world, out, draw.uniform(0, 0.9 * seconds))[1])
        fit(world, out)
        assert contents(out) == files
    assert any(kills)
