"""The page, without a browser: every event gives as much as it fills, for a brand that is there and for none."""

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_steps import Kept, fitted
from test_views import brand  # noqa: F401  (a fixture)

from onbrand.ui.jobs import Jobs
from onbrand.ui.studio import Studio
from worlds import write_blocks

gradio = pytest.importorskip("gradio")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def loops() -> Iterator[None]:
    """gradio's event loops, which it does not close, go here and not in somebody else's test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def events(studio: Studio, jobs: Jobs) -> dict[str, Any]:
    """Name of a function -> it, and what it fills."""
    from onbrand.ui.app import build

    return {one.name: one for one in build(studio, jobs).fns.values()}


def test_a_brand_is_shown(brand: Any) -> None:  # noqa: F811
    studio = Studio(brand.path.parents[1])
    page = events(studio, Kept(studio.root))
    name, sets = brand.name, brand.image_sets
    shown = page["show"].fn(name, None, None, None)
    assert len(shown) == len(page["show"].outputs) and shown[-1] == (sets, [])
    kept = page["show"].fn(name, sets[-1], None, (sets, []))
    assert kept[-3].value == sets[-1] and shown[-3].value == sets[0], "what was chosen stays, until there is a new one"
    words, rows = page["show_check"].fn(name, "001-mean")
    assert "of 2 images" in words and len(rows) == 2
    assert page["show_run"].fn(name, None)[0] == ""
    assert page["tick"].fn(name, None)[1] == brand.stamp()
    assert page["begin"].fn()[0].value == name and page["remembered"].fn(name)[0].value == "photos"
    event = type("Event", (), {"row_value": [rows["file"][0]]})()
    assert page["show_overlay"].fn(name, "001-mean", event).value is not None


def test_without_a_brand_nothing_is_shown(tmp_path: Path) -> None:
    page = events(Studio(tmp_path), Kept(tmp_path))
    for name in (None, "", "none"):
        assert len(page["show"].fn(name, None, None, None)) == len(page["show"].outputs)
        assert page["tick"].fn(name, None)[1:] == ("", "")
        assert page["show_check"].fn(name, None)[0] == "Not checked yet." and page["show_run"].fn(name, "001")[0] == ""
    assert page["begin"].fn()[0].value is None


def test_what_a_step_refuses_is_said_on_the_page(tmp_path: Path) -> None:
    from onbrand.ui.app import in_words

    with pytest.raises(gradio.Error, match="lies outside of"), in_words():
        Studio(tmp_path).path_of("../..")


def test_a_step_adds_its_job(tmp_path: Path) -> None:
    from onbrand.ui.app import build

    write_blocks(tmp_path / "photos", 3)
    studio, jobs = Studio(tmp_path), Kept(tmp_path)
    asked = [one for one in build(studio, jobs).fns.values() if one.name == "asked"]
    assert len(asked) == 8, "one a step, and the embedded catalogue"
    fitted(type("Steps", (), {"studio": studio})())
    asked[2].fn("Acme", "photos", "tiny")
    assert jobs.list[0].title == "fit"
