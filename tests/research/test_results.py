"""Figures on README and docs/research's pages are those of docs/research/*.json."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {"results": "results.md", "log": "log.md", "searchable": "all-results.html"}


@pytest.fixture
def copy(tmp_path: Path) -> Any:
    """docs/research's figures and README in a folder of their own; the docs folder."""
    docs = tmp_path / "docs"
    (docs / "research").mkdir(parents=True)
    for file in (ROOT / "docs" / "research").glob("*.json"):
        shutil.copy2(file, docs / "research")
    shutil.copy2(ROOT / "README.md", tmp_path)
    return docs


def test_readme_is_as_the_script_writes_it(tool: Any, copy: Any) -> None:
    assert tool("pages").readme(copy) == (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_as_the_script_writes_it(tool: Any, copy: Any, name: Any) -> None:
    assert getattr(tool("pages"), name)(copy) == (ROOT / "docs" / "research" / PAGES[name]).read_text()


def test_readme_follows_the_figures(tool: Any, copy: Any) -> None:
    file = copy / "research" / "results-photos.json"
    table = json.loads(file.read_text())
    table["plain/noise"]["text"]["value"] = 0.77
    file.write_text(json.dumps(table))
    assert "by plain\ntraining, 77 %" in tool("pages").readme(copy)


def test_what_readme_and_the_demo_lead_with_holds(tool: Any) -> None:
    rows = {name.partition(":")[2]: one["all"] for name, one in tool("pages").named().items() if "lora8-300:" in name}
    trained, started, zero_snr, usual = (rows[f"{training}:lora8:300/{start}"] for training, start in (
        ("text-constant", "text+zeromean"), ("plain", "text+zeromean+look1"), ("zero-snr", "noise"), ("plain", "noise")
    ))  # fmt: skip
    assert max(zero_snr["high"], usual["high"]) < min(trained["low"], started["low"])
    before, after = (tool("demo").ROWS[name][:3] for name in ("before", "after"))
    assert (before, after) == (("plain", "noise", 0), ("plain", "text", 1))  # the LoRA as usual, nothing trained anew


def test_scores_are_found_by_their_present_names_and_by_those_of_schema_1(tool: Any) -> None:
    fill = tool("results_page").filled
    schema_1 = {"a": {"background": {"value": 0.575, "low": 0.5, "high": 0.6}}}
    schema_2 = {"a": {"background": schema_1["a"]["background"]}}
    for table in (schema_1, schema_2):
        assert fill("{a|background} {a|background|} {a|background|%}", table) == ".575 .575 (.500 to .600) 58 %"


def test_paired_differences_are_read_from_the_tables_of_a_comparison(tool: Any) -> None:
    row = "| c/d | +.060 (-.029 to +.092) | -.500 (-1.000 to +.000) |\n"
    differences = tool("results_page").differences(f"## A question\n\n| a/b less | text | all |\n|---|---|---|\n{row}")
    assert differences["A question"]["first"] == "a/b"
    assert differences["A question"]["others"]["c/d"]["text"] == {"value": 0.06, "low": -0.029, "high": 0.092}
    assert differences["A question"]["others"]["c/d"]["all"]["low"] == -1


def test_the_searchable_page_holds_every_row_and_difference(tool: Any) -> None:
    pages = tool("pages")
    data = json.loads(re.search(r"const DATA =\n(.*?);\nconst", pages.searchable(), re.S)[1])
    assert len(data["rows"]) == sum(map(len, pages.tables().values()))
    pairs = json.loads((ROOT / "docs" / "research" / "differences.json").read_text())
    assert len(data["pairs"]) == sum(len(one["others"]) for page in pairs.values() for one in page.values())


def test_what_readme_says_of_longer_training_holds(tool: Any) -> None:
    long = tool("pages").tables()["long"]["text-constant:v/text+zeromean"]
    properties = ("background", "centring", "cropping", "fill", "light", "pose", "class")
    assert all(long[name]["value"] >= 0.95 for name in properties)


def test_the_table_of_flow_models_is_what_exact_networks_give(tool: Any) -> None:
    flow = tool("flow")
    log = (ROOT / "docs" / "research" / "log.md").read_text()
    assert all(f"{row}\n" in log for row in flow.table()) and "python research/flow.py" in log
    for first in (0.8, 0.95, 1.0):  # at sigma 1 nothing of x_start is there, and both are one
        assert all(abs(flow.end(first, trained)[0] - 1) < 1e-9 for trained in (False, True))
    assert flow.end(1.0, True) == flow.end(1.0, False)
