"""From the verb `train` to the equation: a reader of the call stack passes at most eight functions of onbrand."""

import traceback
from pathlib import Path
from typing import Any

import pytest

import onbrand
from onbrand.training import objective

SOURCE = str(Path(onbrand.__file__).parent)
LONGEST = 8


def test_from_train_to_matched_noise_there_are_at_most_eight_functions(
    home: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chains, matched_noise = [], objective.matched_noise

    def recorder(*tensors: Any) -> Any:
        frames = [(frame.filename, frame.name) for frame in traceback.extract_stack()]
        chains.append([*dict.fromkeys(frame for frame in frames if frame[0].startswith(SOURCE)), "matched_noise"])
        return matched_noise(*tensors)

    monkeypatch.setattr(objective, "matched_noise", recorder)
    validation_data = tmp_path / "validation"
    validation_data.mkdir()
    (validation_data / "0.png").write_bytes((home / "photos" / "0.png").read_bytes() + b"\0")
    (validation_data / "metadata.jsonl").write_text('{"file_name": "0.png", "class": "product photo"}\n')
    settings = {"max_train_steps": 2, "train_batch_size": 2, "validation_loss_steps": 1, "device": "cpu"}
    prior = home / "prior.safetensors"
    onbrand.train(
        home / "photos", home / "model", tmp_path / "run", prior=prior, validation_data=validation_data, **settings
    )
    verb = (str(Path(SOURCE, "api", "_train.py")), "train")
    lengths = {len(chain) - chain.index(verb) for chain in chains}
    assert lengths and max(lengths) <= LONGEST, chains
