"""The steps say what the verbs understand, and refuse before a job is added what cannot be done."""

import json
from pathlib import Path
from typing import Any

import pytest

from onbrand.cli import VERBS, parse
from onbrand.ui.jobs import Jobs
from onbrand.ui.steps import AS_SAID, NEW, STOCK, Steps
from onbrand.ui.studio import Studio
from worlds import raises, write_blocks


class Kept(Jobs):
    """A queue that nothing works through."""

    def _work(self) -> None:
        return


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    write_blocks(tmp_path / "photos", 3)
    return Steps(Studio(tmp_path), Kept(tmp_path))


def fitted(steps: Steps) -> None:
    brand = steps.studio.brand("Acme")
    brand.prior.mkdir()
    fit = {"model": "tiny", "resolution": [16, 16], "flip": False, "k": 4, "used": 3, "classes": {}, "refused": []}
    (brand.prior / "fit.json").write_text(json.dumps(fit))


def options(steps: Steps) -> list[Any]:
    """What the verbs read in the commands of the last job."""
    verbs = {verb.__name__: verb for verb in VERBS}
    commands = [command[1:] for command in steps.jobs.list[-1].commands]
    return [parse(verbs[name], words) for name, *words in commands]


def test_every_step_is_a_command(steps: Steps) -> None:
    root = steps.studio.root
    steps.sample("Acme")
    assert options(steps)[0].output_dir == str(root / "garments")
    steps.fit("Acme", "photos", "tiny")
    fit = options(steps)[0]
    assert (fit.images, fit.model, fit.output_dir) == (str(root / "photos"), "tiny", str(root / "onbrand/Acme/brand"))
    fitted(steps)
    steps.diagnose("Acme", "tiny")
    assert options(steps)[0].brand == fit.output_dir
    steps.generate("Acme", "tiny", "a red shoe\n\n a hat \n", "shoe", "mean", STOCK, 7, 1.5)
    noise, mean = options(steps)
    assert (noise.start, mean.start) == ("noise", "mean")
    assert (noise.prompts, noise.guidance_scale, noise.prior) == (mean.prompts, 1.5, fit.output_dir)
    rows = [json.loads(line) for line in Path(noise.prompts).read_text().splitlines()]
    assert rows == [
        {"prompt": "a red shoe", "seed": 7, "class": "shoe"},
        {"prompt": "a hat", "seed": 8, "class": "shoe"},
    ]
    steps.train("Acme", "photos", "tiny", NEW, "lora", 30, 0.001, 4, 10)
    train = options(steps)[0]
    assert (train.method, train.max_train_steps, train.learning_rate, train.validation_steps) == ("lora", 30, 0.001, 10)
    (Path(train.output_dir) / "model").mkdir(parents=True)
    steps.generate("Acme", "tiny", "a hat", AS_SAID, "noise", "001", 0, 7.5)
    assert [one.model for one in options(steps)] == [train.output_dir]
    assert Path(options(steps)[0].output_dir).name == "002-noise"
    steps.train("Acme", "photos", "tiny", NEW, "lora", 30, 0.001, 4, 10)
    assert Path(options(steps)[0].output_dir).name == "002"
    assert "class" not in json.loads((root / "onbrand/Acme/images/002.jsonl").read_text())
    Path(noise.output_dir).mkdir()
    (Path(noise.output_dir) / "manifest.jsonl").touch()
    steps.check("Acme", "001-noise", "photos")
    assert (options(steps)[0].images, options(steps)[0].against) == (noise.output_dir, str(root / "photos"))
    steps.report("Acme")
    assert options(steps)[0].folder == str(root / "onbrand/Acme")


def test_what_was_chosen_is_remembered(steps: Steps) -> None:
    steps.fit("Acme", "photos", "tiny")
    settings = steps.studio.brand("Acme").settings
    assert (settings["photos"], settings["model"]) == ("photos", "tiny")


@pytest.mark.parametrize(
    "ask, code, value",
    [
        (lambda s: s.fit("", "photos", "tiny"), "option", "name"),
        (lambda s: s.fit("Acme", None, "tiny"), "option", "photos"),
        (lambda s: s.fit("Acme", "photos", ""), "option", "model"),
        (lambda s: s.fit("Acme", "../x", "tiny"), "folder", "../x"),
        (lambda s: s.look("Acme", "photos", "/etc"), "folder", "/etc"),
        (lambda s: s.diagnose("Acme", "tiny"), "option", "step 2"),
        (lambda s: s.report("Acme"), "option", "step 2"),
    ],
)
def test_refuses_before_a_job_is_added(steps: Steps, ask: Any, code: str, value: str) -> None:
    with raises(code, value):
        ask(steps)
    assert steps.jobs.list == []


def test_refuses_what_a_fitted_brand_has_not(steps: Steps) -> None:
    fitted(steps)
    with raises("option", "one description a line"):
        steps.generate("Acme", "tiny", " \n ", AS_SAID, "mean", STOCK, 0, 7.5)
    with raises("option", "step 4"):
        steps.check("Acme", "001-mean", "photos")
    with raises("folder", "../../x"):
        steps.generate("Acme", "tiny", "a hat", AS_SAID, "mean", "../../x", 0, 7.5)
    assert steps.jobs.list == []
