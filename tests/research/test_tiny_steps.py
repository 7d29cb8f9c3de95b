"""What the parts of onbrand-tiny are trained by: whole states on a CPU, elsewhere light ones in small files."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def steps(tiny_tool: Any) -> Any:
    return tiny_tool("steps")


def train(steps: Any, out: Any, count: Any, device: Any, seconds: Any = math.inf) -> Any:
    """The weights after a run that learns to give 3 for random numbers."""
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))

    def loss(step: Any, generator: Any) -> Any:
        return (layer(torch.randn(8, 4, generator=generator, device=generator.device)) - 3).square().mean()

    steps.run("part", {"layer": layer}, loss, steps=count, lr=1e-2, out=out, keep=4, ema=0.9, device=device,
              seconds=seconds)  # fmt: skip
    return torch.cat([p.detach().flatten() for p in layer.parameters()])


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_a_run_that_is_out_of_time_goes_on(
    steps: Any, tmp_path: Path, device: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(steps, tmp_path, 12, device)
    out = tmp_path / "stopped"
    out.mkdir()
    for _ in range(11):
        with pytest.raises(SystemExit):
            train(steps, out, 12, device, seconds=0)
    assert "part: 11 of 12 steps; the same command goes on" in capsys.readouterr().out
    weights = train(steps, out, 12, device, seconds=0)
    if device == "cpu":
        assert torch.equal(weights, whole)
    else:
        assert not (out / "part.state.pt").exists()
        assert (train(steps, out, 12, device) - weights).abs().max() < 1e-2, "half precision"


def test_a_light_state_is_of_small_files_and_read_whole_or_not_at_all(
    steps: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "SHARD", 1000)
    average = [torch.randn(50, 40), torch.randn(3)]
    for step in (7, 9):
        steps.save_light(tmp_path, "part", {"step": step, "average": average, "buffers": [torch.tensor(5)]})
    files = sorted(tmp_path.iterdir())
    assert len(files) > 4 and all(file.stat().st_size <= 1000 for file in files)
    assert {file.name.split(".")[1] for file in files} == {"00000009"}
    state = steps.load_light(tmp_path, "part")
    assert state["step"] == 9 and state["buffers"] == [torch.tensor(5)]
    torch.testing.assert_close(state["average"], [a.half() for a in average])
    files[1].unlink()
    assert steps.load_light(tmp_path, "part") is None and steps.load_light(tmp_path, "other") is None
