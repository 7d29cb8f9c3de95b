"""docs/reference/cli.md is what the options say."""

from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"


def test_the_page_is_as_the_script_writes_it(tool: Any) -> None:
    assert PAGE.read_text() == tool("reference").page(), "run python research/reference.py"
    assert "means/&lt;class>.png" in PAGE.read_text()  # Markdown makes a tag of \<


def test_every_option_has_a_meaning(tool: Any) -> None:
    reference = tool("reference")
    rows = [row for verb in reference.VERBS for row in reference.options(verb.options)]
    assert len(rows) > 100 and all(words for _, _, words in rows)
