"""The measurements for a GPU, rehearsed on the CPU; their page is made of their record alone."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
SOME = "parity/step float32,training/lora,encode/bf16 batch 1,generate/no batch 1,sweep/full bf16 checkpointing"


@pytest.fixture(scope="module")
def tool() -> Iterator[Any]:
    before, sys.path[:0] = set(sys.modules), [str(FOLDER)]
    yield importlib.import_module
    sys.path.remove(str(FOLDER))
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == FOLDER:
            del sys.modules[name]


@pytest.fixture
def rehearsed(tool: Any, tmp_path: Path) -> Any:
    """(main with flags added, the record's file)."""
    flags = ["--device", "cpu", "--small", "--results", str(tmp_path)]
    return lambda *more: tool("gpu").main([*flags, *more]), tmp_path / "gpu-cpu.json"


@pytest.mark.prove  # it takes half a minute
@pytest.mark.filterwarnings("ignore:.* (was|were) fitted on .* images", "ignore:.*start from the text needs 20")
def test_some_of_it(rehearsed: Any) -> None:
    main, file = rehearsed
    assert main("--only", SOME) == 0
    entries = json.loads(file.read_text())["entries"]
    assert len(entries) == len(SOME.split(","))
    assert entries["parity/step float32"]["gradient"] == 0, "the CPU beside itself"
    assert all(low <= middle <= high for middle, low, high in entries["training/lora"]["images_a_second"].values())
    text = file.with_name("gpu.md").read_text()
    assert "| float32 |" in text and "| lora | 2 | diffusers, 1 workers |" in text and "checkpointing batch 2" in text
    assert "these numbers say nothing" in text


@pytest.mark.prove
@pytest.mark.filterwarnings("ignore")
def test_all_of_it(rehearsed: Any) -> None:
    main, file = rehearsed
    assert main() == 0
    record = json.loads(file.read_text())
    kills = [record["entries"][f"parity/kill{end}"] for end in ("", " deterministic")]
    assert all(entry["resumed"]["same"] and entry["resumed_from"] < entry["killed_at"] for entry in kills)


def test_what_is_made_is_not_made_again_and_one_that_fails_stops_no_other(
    rehearsed: Any, tool: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []

    def measured(name: Any) -> Any:
        made.append(name)
        if name == "sweep/b" and made.count(name) == 1:
            raise KeyError("no such thing")
        return {"method": "full", "batch": 1, "images_a_second": {"onbrand": (1.0, 1.0, 1.0)}}

    names = ("sweep/a x", "sweep/b", "sweep/c x")
    rows = {name: lambda name=name: measured(name) for name in names}
    monkeypatch.setattr(tool("gpu"), "measurements", lambda device, small: rows)
    main, file = rehearsed
    assert main("--only", "sweep", "--seconds", "-1") == 0 and made == []
    assert "3 measurements are left" in capsys.readouterr().out
    assert main() == 1 and made == list(names)
    record = json.loads(file.read_text())
    assert list(record["entries"]) == ["sweep/a x", "sweep/c x"] and "no such thing" in record["failed"]["sweep/b"]
    assert "`sweep/b` failed" in file.with_name("gpu.md").read_text()
    rows["sweep/b x"] = rows.pop("sweep/b")
    made.clear()
    assert main("--again", "sweep/c") == 0 or made
    assert made == ["sweep/c x", "sweep/b"]
    file.write_text(json.dumps(record | {"machine": record["machine"] | {"torch": "0.1"}}))
    with pytest.raises(SystemExit, match="another torch"):
        main()


def test_without_a_gpu_it_says_so(
    tool: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tool("gpu").main([]) == 0
    assert capsys.readouterr().out == "no GPU here, nothing is measured; `--device cpu --small` rehearses\n"


def test_the_page_is_that_of_the_records(tool: Any) -> None:
    page = tool("gpu_page")
    records = [json.loads(file.read_text()) for file in sorted(page.RESULTS.glob("gpu-*.json"))]
    assert page.PAGE.read_text() == page.page(records)
    assert "Nothing has been measured on a GPU yet" in page.page([])


def test_a_row_of_a_gpu(tool: Any) -> None:
    page = tool("gpu_page")
    rates = {"onbrand": [30.0, 29.0, 31.0], "diffusers": [20.0, 19.0, 21.0]}
    entry = {
        "batch": 8, "images_a_second": rates, "times_as_fast": {"diffusers": [1.5, 1.4, 1.6]},
        "idle": {"onbrand": 0.031, "diffusers": 0.4}, "peak_gb": {"onbrand": 41.26, "diffusers": 44.0},
    }  # fmt: skip
    text = page.training({"training/full": entry, "training/lora": {"out_of_memory": True}})
    assert "| full | 8 | onbrand | 30.00 (29.00 to 31.00) |  | 3 % | 41.3 |" in text
    assert "| full | 8 | diffusers | 20.00 (19.00 to 21.00) | 1.50 (1.40 to 1.60) | 40 % | 44.0 |" in text
    assert "| lora |  |  | out of memory |" in text
    wanted = page.goals({"training/full": entry, "training/offset": {"times_as_long": {"mean": [1.03, 1.02, 1.04]}}})
    assert "| full fine-tuning, times as fast as the example | at least 1.5 | 1.50 (1.40 to 1.60) | reached |" in wanted
    assert "| a step with offset, times as long | at most 1.02 | 1.03 (1.02 to 1.04) | short |" in wanted
    assert wanted.count("| not measured |") == 2 and "waits for Python" not in wanted and page.goals({}) == ""


def test_the_time_in_which_a_gpu_works(tool: Any) -> None:
    spans = [("kernel", 0, 10), ("gpu_memcpy", 5, 10), ("kernel", 6, 2), ("cuda_runtime", 20, 50), ("kernel", 40, 1)]
    events = [{"cat": cat, "ts": ts, "dur": dur} for cat, ts, dur in spans] + [{"ph": "M"}]
    assert tool("gpu_timing").busy(events) == pytest.approx(16e-6)
