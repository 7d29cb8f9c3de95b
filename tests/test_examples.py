"""The examples run as they stand, on a few images of the catalogue and the shipped stock model."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

import onbrand
from onbrand.datasets.garments import write_garments
from onbrand.models.pipeline import shipped

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:real photos kept back pass less often"),
    pytest.mark.filterwarnings("ignore:.*its mean shows those images"),  # 30 of a class
]
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """photos/, and what own_folder.py makes of them in out/."""
    folder = tmp_path_factory.mktemp("examples")
    write_garments(folder / "photos", "train", 80)
    run("own_folder.py", folder / "photos", folder / "out", "--num_images_per_prompt", 2)
    return folder


def run(name: Any, *arguments: Any) -> None:
    """A script as `python examples/<name> <arguments>` runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_own_folder_ends_with_a_page(workplace: Any) -> None:
    assert (workplace / "out" / "report.html").read_text().count("The images, side by side") == 1
    assert {path.name for path in (workplace / "out" / "images").iterdir()} == {"noise", "mean", "text"}


def test_two_lines_in_a_foreign_pipeline_are_what_generate_makes(workplace: Any, tmp_path: Path) -> None:
    prior = workplace / "out" / "brand" / "prior.safetensors"
    given = ("--model", shipped("tiny"), "--num_inference_steps", 4, "--guidance_scale", 1)
    run("foreign_pipeline.py", prior, tmp_path / "foreign", *given)
    prompts = runpy.run_path(str(EXAMPLES / "foreign_pipeline.py"))["PROMPTS"]
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": p, "seed": i}) + "\n" for i, p in enumerate(prompts))
    )
    ours = onbrand.generate(
        tmp_path / "prompts.jsonl",
        model="tiny",
        prior=prior,
        output_dir=tmp_path / "ours",
        start="text",
        num_inference_steps=4,
        guidance_scale=1.0,
    )
    for path in ours:
        assert path.read_bytes() == (tmp_path / "foreign" / path.name).read_bytes()


def test_three_lines_in_a_foreign_loop_leave_a_model(
    workplace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    prior = workplace / "out" / "brand" / "prior.safetensors"
    given = ("--model", shipped("tiny"), "--max_train_steps", 2)
    run("foreign_loop.py", workplace / "photos", prior, tmp_path / "tuned", *given)
    made = onbrand.generate(
        model=tmp_path / "tuned",
        prior=prior,
        output_dir=tmp_path / "made",
        prompt="male garment, no person, white background, shorts",
    )
    assert made[0].is_file()


def test_a_report_is_read(workplace: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run("read_report.py", workplace / "out" / "images" / "mean")
    said = capsys.readouterr().out
    assert "of 2 images pass every check" in said and "background" in said


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / "quickstart.ipynb").read_text())["cells"]
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]).replace('"tiny", 600', '"tiny", 80'), names)
    assert "OB001" in {finding["code"] for finding in names["found"]["findings"]}
    assert names["sheet"].size == (768, 384) and set(names["shares"]) == {"noise", "mean", "text"}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_are_short(path: Any) -> None:
    assert len(path.read_text().splitlines()) < 60
