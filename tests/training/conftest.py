"""One folder of photos, model, latents and prior for all tests of training, and accelerate's state renewed for each."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from job import lay


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("home") / "job"
    lay(folder)
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[Any]:
    """The same sums in the same order on every machine, and no precision left over from the test before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    torch.set_num_threads(threads)
