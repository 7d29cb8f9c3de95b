"""The examples run as they stand, on a few pictures of the catalogue and the shipped stock model."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from onbrand import api
from onbrand.datasets.garments import write_garments
from onbrand.models.pipeline import shipped
from onbrand.options.generate import GenerateConfig

pytestmark = pytest.mark.filterwarnings("ignore:real photos kept back pass less often")  # of 60 a kind
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """photos/, and what own_folder.py makes of them in out/."""
    folder = tmp_path_factory.mktemp("examples")
    write_garments(folder / "photos", "train", 240)
    run("own_folder.py", folder / "photos", folder / "out", "--count", 2)
    return folder


def run(name, *arguments):
    """A script as `python examples/<name> <arguments>` runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_own_folder_ends_with_a_page(workplace):
    assert (workplace / "out" / "report.html").read_text().count("Start against start") == 1
    assert {path.name for path in (workplace / "out" / "pictures").iterdir()} == {"noise", "mean", "text"}


def test_two_lines_in_a_foreign_pipeline_are_what_generate_makes(workplace, tmp_path):
    prior = workplace / "out" / "brand" / "prior.safetensors"
    given = ("--model", shipped("tiny"), "--steps", 4, "--guidance", 1)
    run("foreign_pipeline.py", prior, tmp_path / "foreign", *given)
    prompts = runpy.run_path(str(EXAMPLES / "foreign_pipeline.py"))["PROMPTS"]
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": p, "seed": i}) + "\n" for i, p in enumerate(prompts))
    )
    config = GenerateConfig(start="text", steps=4, guidance=1.0)
    ours = api.generate(tmp_path / "prompts.jsonl", model="tiny", prior=prior, out=tmp_path / "ours", config=config)
    for path in ours:
        assert path.read_bytes() == (tmp_path / "foreign" / path.name).read_bytes()


def test_three_lines_in_a_foreign_loop_leave_a_model(workplace, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    prior = workplace / "out" / "brand" / "prior.safetensors"
    given = ("--model", shipped("tiny"), "--steps", 2)
    run("foreign_loop.py", workplace / "photos", prior, tmp_path / "tuned", *given)
    made = api.generate(
        model=tmp_path / "tuned",
        prior=prior,
        out=tmp_path / "made",
        prompt="male garment, no person, white background, shorts",
    )
    assert made[0].is_file()


def test_a_report_is_read(workplace, capsys):
    run("read_report.py", workplace / "out" / "pictures" / "mean")
    said = capsys.readouterr().out
    assert "of 2 pictures pass every check" in said and "ground" in said


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / "quickstart.ipynb").read_text())["cells"]
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]).replace('"tiny", 600', '"tiny", 240'), names)
    assert "OB001" in {finding["code"] for finding in names["found"]["findings"]}
    assert names["sheet"].size == (768, 384) and set(names["shares"]) == {"noise", "mean", "text"}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_are_short(path):
    assert len(path.read_text().splitlines()) < 60
