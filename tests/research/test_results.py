"""Figures in README and docs/results*.md are those of docs/results*.json."""

import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(tool, tmp_path, monkeypatch):
    """README and docs/results* in a folder of their own, which research/results.py takes for the project's."""
    (tmp_path / "docs").mkdir()
    for file in (ROOT / "docs").glob("results*.json"):
        shutil.copy2(file, tmp_path / "docs")
    shutil.copy2(ROOT / "README.md", tmp_path)
    results = tool("results")
    monkeypatch.setattr(results, "DOCS", tmp_path / "docs")
    return tmp_path, results


def test_readme_is_as_the_script_writes_it(copy):
    folder, results = copy
    results.readme()
    assert (folder / "README.md").read_text() == (ROOT / "README.md").read_text()


def test_readme_follows_the_figures(copy):
    folder, results = copy
    file = folder / "docs" / "results-photos.json"
    told = json.loads(file.read_text())
    told["plain/noise"]["text"]["value"] = 0.777
    file.write_text(json.dumps(told))
    results.readme()
    assert ".777 by the usual one" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    "name",
    ["results", *(f"results-{part}" for part in ("all", "long", "look", "look-photos", "lora", "photos", "try-on"))],
)
def test_words_of_a_page_are_filled_with_its_figures(tool, name):
    words = (ROOT / "research" / f"{name.replace('-', '_')}_words.md").read_text().rstrip()
    table = json.loads((ROOT / "docs" / f"{name}.json").read_text())
    variants = json.loads((ROOT / "docs" / "results-look-variants.json").read_text())
    table |= {f"variants/{way}": scores for way, scores in variants.items()}
    assert (ROOT / "docs" / f"{name}.md").read_text().startswith(tool("results_page").filled(words, table) + "\n")
