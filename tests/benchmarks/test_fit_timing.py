"""The benchmark of fit, rehearsed on a few latents: its parts run, and what they say of accuracy holds."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

FILE = Path(__file__).parents[2] / "benchmarks" / "fit.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_of_fit", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_parts_run_and_components_explain_what_a_full_decomposition_does(tool: ModuleType, tmp_path: Path) -> None:
    shape = (4, 34, 34)
    tool.make(tmp_path, 600, shape)
    results = {part: tool.do(part, tmp_path, 600, shape, 1) for part in tool.PARTS}
    assert all(result["seconds"] > 0 and result["latents"] >= 512 for result in results.values())
    assert all(result["peak_memory_gb"] > 0 for result in results.values()) or sys.platform == "win32"
    assert results["explained"]["loss"] < 0.005
    assert set(tool.RATIOS.values()) <= set(tool.PARTS)
    assert {name.partition(" beside")[0] for name in tool.RATIOS} <= set(tool.PARTS)


@pytest.mark.prove
@pytest.mark.filterwarnings("ignore:.*its mean shows those images")
def test_a_sweep_is_measured_and_drawn(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def here(part: str, folder: Path, shape: tuple[int, int, int], count: int, classes: int) -> dict[str, float]:
        return tool.do(part, folder, count, shape, classes)  # type: ignore[no-any-return]

    monkeypatch.setattr(tool, "in_process", here)
    result = json.loads(json.dumps(tool.sweep(tmp_path, 8, (4, 34, 34), 1, 1)))
    assert {axis: [point[axis] for point in points] for axis, points in result.items()} == {
        "count": [4, 8, 16], "dimensions": [1156, 4624, 18496], "classes": [1, 10, 1000],
    }  # fmt: skip
    assert not any(tmp_path.iterdir())
    tool.draw(result, tmp_path / "sweep.png")
    with Image.open(tmp_path / "sweep.png") as image:
        assert image.size == (1300, 416)
