"""Inputs of the experiments: another brand's photos, off-brand requests, timesteps drawn where modes are decided."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onbrand.comparison.methods import read_methods
from onbrand.core import Gaussian, Prior, Provenance
from onbrand.datasets.garments import garments
from onbrand.options.compare import CompareSettings


def test_another_brands_photos_are_grey_and_whole_and_stand_low_on_the_left(tool: Any) -> None:
    second = tool("results_second")
    for picture in garments("test", count=6)[0]:
        photo = second.photo(picture).astype(int)
        far = np.abs(photo - second.GREY).max(2)
        assert (far[0] == 0).all() and (far[:, 0] == 0).all() and (far[:, -1] == 0).all()  # on the background, uncut
        _, columns = np.nonzero(far[: second.FLOOR - 8] > 40)  # above the shadow
        assert abs((columns.min() + columns.max()) / 2 - second.MIDDLE) <= 4
        assert np.nonzero(far > 5)[0].max() > second.FLOOR
        shadow = photo[second.FLOOR - 2 : second.FLOOR + 3].sum(2)
        assert shadow.min() < sum(second.GREY) - 20


def test_off_brand_requests_ask_for_what_the_classifier_reads(tool: Any) -> None:
    requests = tool("results_catalogue").off_brand(24)
    assert len(requests) == 24 and len({row["seed"] for row in requests}) == 24
    for row in requests:
        assert row["class"].split()[1] == {"garment": "garment", "figure": "person"}[row["attributes"]["view"]]
        assert row["attributes"].get("gender", row["class"].split()[0]) == row["class"].split()[0]
        assert "ground" not in row["attributes"]


@pytest.mark.parametrize("variances", [[1.0], [400.0, 4.0]])
def test_timesteps_are_drawn_as_often_as_modes_are_decided_there(tool: Any, variances: list[float]) -> None:
    spectrum, total = tool("results_spectrum"), 100
    abars = torch.linspace(0.999, 0.005, total, dtype=torch.float64)
    components = torch.eye(16)[: len(variances)]
    gaussian = Gaussian(torch.zeros(4, 2, 2), components, torch.tensor(variances), sum(variances), 100)
    prior = Prior({"a": gaussian}, Provenance("v", 1.0, 0.0, (16, 16), "", False, (255, 255, 255)))
    shares = spectrum.share(prior, abars)
    counts = torch.zeros(total)
    for variance in variances:
        for t in range(total):
            counts[t] += 0.1 <= variance * float(abars[t] / (1 - abars[t])) <= 10
    torch.testing.assert_close(shares, (counts / counts.sum()).double())
    drawn = spectrum.drawn_from(shares)(3, range(6000), total)
    seen = torch.bincount(drawn, minlength=total)
    assert drawn.dtype == torch.int64 and not seen[shares == 0].any()
    # as many places as there are timesteps are moved: the two distributions differ by one place's share, and chance
    assert float((seen.cumsum(0) / 6000 - shares.cumsum(0)).abs().max()) < 1 / total + 0.02


def test_of_two_that_begin_at_once_one_prepares(tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue, fits = tool("results_catalogue"), []

    def fit(photos: Path, model: str, out: Path, split: str | None) -> None:
        fits.append(out)
        time.sleep(0.3)
        out.mkdir()
        (out / "prior.safetensors").touch()

    monkeypatch.setattr(catalogue.api, "fit", fit)
    monkeypatch.setattr(catalogue, "inputs", lambda out: {"out": str(out)})
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(catalogue.prepared, [tmp_path] * 2)) == [{"out": str(tmp_path)}] * 2
    assert fits == [tmp_path / "brand"]


@pytest.mark.parametrize("name", ["lora8-300", "full-1000", "seeds", "layers", "forgotten"])
def test_rivals_take_the_published_rates_and_ask_for_methods_that_exist(
    tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rivals = tool("results_rivals")
    monkeypatch.setattr(rivals, "DOCS", tmp_path)
    (tmp_path / rivals.DATA).mkdir()
    for learns, rates in rivals.RATES.items():
        scores = {
            rivals.row(training, learns, rate, 300, f"{starts[0]}@validation"): {
                "all": {"value": 0.1}, "text": {"value": 0.2 + (rate == rates[1])}
            }
            for training, starts in rivals.STARTS.items() for rate in rates
        }  # fmt: skip
        file = f"results-rates-{learns.strip(':') or 'full'}.json"
        (tmp_path / rivals.DATA / file).write_text(json.dumps(scores))
    for rows in rivals.PARTS[name](tmp_path).values():
        methods = read_methods(rows, CompareSettings())
        assert len({method.name for method in methods}) == len(rows)
        assert {method.training.config.learning_rate for method in methods if method.training.config} <= {0.003, 0.0006}
