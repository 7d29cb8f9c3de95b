"""What the page shows is what the verbs left, escaped, and nothing where there is nothing."""

from pathlib import Path

import pytest

from onbrand import api
from onbrand.ui import views
from onbrand.ui.jobs import Jobs
from onbrand.ui.look import look
from onbrand.ui.studio import Brand, Studio
from worlds import tiny_pipeline, write_blocks


@pytest.fixture(scope="module")
def brand(tmp_path_factory: pytest.TempPathFactory) -> Brand:
    """A world with a fitted, diagnosed brand, two sets of images, one checked."""
    root = tmp_path_factory.mktemp("studio")
    write_blocks(root / "photos", 120)
    tiny_pipeline().save_pretrained(root / "model")
    brand = Studio(root).brand("Acme & Co")
    api.fit(root / "photos", root / "model", brand.prior, k=4)
    api.diagnose(brand.prior)
    requests = brand.write_requests("001", ["block, red <b>", "block, blue"], "block", 3)
    for start in ("noise", "mean"):
        out = brand.images(f"001-{start}")
        api.generate(
            requests, model=root / "model", output_dir=out, prior=brand.prior, start=start, num_inference_steps=2
        )
    api.check(brand.images("001-mean"), root / "photos", prior=brand.prior)
    brand.choose(photos="photos")
    return brand


def test_a_new_brand_shows_nothing(tmp_path: Path) -> None:
    brand = Studio(tmp_path).brand("new")
    for view in (views.seen, views.fitted, views.diagnosis, views.link):
        assert view(brand) == ""
    for rows in (views.refused, views.means, views.downloads):
        assert rows(brand) == []
    assert views.pair(brand) == ("", [], [])
    assert views.content_of(brand, "001-mean") == {} and views.verdict({}) == "Not checked yet."


def test_shows_what_was_fitted_and_found(brand: Brand) -> None:
    assert "120 photos fitted, 0 refused" in views.fitted(brand)
    assert [name for _, name in views.means(brand)] == ["block", "tall block"]
    shown = views.diagnosis(brand)
    assert all(one["code"] in shown and one["level"] in shown for one in brand.leak["findings"])
    assert "<svg" in shown


def test_shows_the_newest_images_side_by_side(brand: Brand) -> None:
    words, before, after = views.pair(brand)
    assert "001-noise" in words and "001-mean" in words
    assert [Path(file).parent.name for file, _ in before + after] == ["001-noise"] * 2 + ["001-mean"] * 2
    assert [prompt for _, prompt in after] == ["block, red <b>", "block, blue"]


def test_shows_the_verdict_as_check_wrote_it(brand: Brand) -> None:
    content = views.content_of(brand, "001-mean")
    assert f"{content['all']['rate']:.0%} of 2 images" in views.verdict(content)
    headers, rows = views.failures(content)
    assert headers[:2] == ["file", "fails"] and "margin" in headers
    assert [row[1] for row in rows] == [", ".join(one["failed"]) for one in content["images"]]
    assert [row[headers.index("fill")] for row in rows] == [one["values"].get("fill") for one in content["images"]]
    image = views.overlay(brand, "001-mean", rows[0][0])
    assert image is not None and max(image.size) == 640


def test_downloads_are_what_is_worth_taking(brand: Brand) -> None:
    names = [str(Path(file).relative_to(brand.path)) for file in views.downloads(brand)]
    assert names == ["brand/prior.safetensors", "images/001-mean/check.json"]


def test_what_is_refused_is_listed(tmp_path: Path, brand: Brand) -> None:
    root = brand.path.parents[1]
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes((root / "photos" / f"00{i}.png").read_bytes())
    (tmp_path / "broken.png").write_bytes(b"no image")
    found = look(str(tmp_path), str(root / "model"))
    assert found["photos"]["classes"] == {"default": 3}
    assert [one["file"] for one in found["photos"]["refused"]] == ["broken.png"]
    assert "Stable Diffusion" in found["model"]["lines"][0]
    wrong = look(str(tmp_path / "none"), str(tmp_path))
    assert "none" in wrong["photos"]["error"] and "model_index.json" in wrong["model"]["error"]


def test_names_are_escaped(brand: Brand) -> None:
    api.report(brand.path)
    assert 'href="/report/Acme%20_%20Co"' in views.link(brand)
    jobs = Jobs(brand.path)
    jobs.add("<script>", brand.name, [["json.tool", "none"]], brand.log("x"))
    assert "<script>" not in views.status(jobs, brand.name)
