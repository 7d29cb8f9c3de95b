"""What may be chosen lies in the folders that were opened; a brand's folder is what `report` reads."""

import os
from pathlib import Path

import pytest

from onbrand.ui.studio import BRANDS, Studio
from worlds import raises, write_blocks


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    write_blocks(tmp_path / "opened" / "shop" / "photos", 3)
    write_blocks(tmp_path / "secret", 3)
    return Studio(tmp_path / "opened")


def test_offers_what_lies_in_the_opened_folder(studio: Studio) -> None:
    (studio.root / ".hidden").mkdir()
    (studio.root / ".hidden" / "a.png").touch()
    studio.brand("Acme").choose(photos="shop/photos")
    (studio.root / BRANDS / "Acme" / "a.png").touch()
    (studio.root / "models" / "mine" / "unet").mkdir(parents=True)
    (studio.root / "models" / "mine" / "model_index.json").touch()
    (studio.root / "models" / "mine" / "unet" / "a.png").touch()
    assert studio.photos() == ["shop/photos"]
    assert studio.models() == ["tiny", "tiny-xl", "models/mine"]
    assert studio.brands() == ["Acme"]


@pytest.mark.parametrize("name", ["../secret", "shop/../../secret", "/etc", "link", "shop/photos/../../link"])
def test_nothing_outside_is_opened(studio: Studio, name: str) -> None:
    os.symlink(studio.root.parent / "secret", studio.root / "link")
    with raises("folder", name, studio.root):
        studio.path_of(name)
    with raises("folder", name):
        studio.model_of(name)


def test_a_second_folder_of_models_is_opened_too(studio: Studio, tmp_path: Path) -> None:
    other = Studio(studio.root, tmp_path / "secret")
    assert other.path_of(str(tmp_path / "secret" / "a.safetensors"))
    with raises("folder", "elsewhere"):
        other.path_of(str(tmp_path / "elsewhere"))


def test_models_that_ship_and_hub_ids_are_no_paths(studio: Studio) -> None:
    assert studio.model_of("tiny") == "tiny"
    assert studio.model_of("stabilityai/sdxl-turbo") == "stabilityai/sdxl-turbo"
    assert studio.model_of("shop/photos") == str(studio.root / "shop/photos")


@pytest.mark.parametrize("name", ["", "  ", None])
def test_what_is_not_chosen_is_asked_for(studio: Studio, name: str | None) -> None:
    for ask in (studio.path_of, studio.model_of, studio.brand):
        with raises("option"):
            ask(name)


@pytest.mark.parametrize("name", ["..", "../../x", "a/b", "CON", "/etc", "ä / ö", "x" * 300])
def test_a_brand_of_any_name_has_a_folder_of_its_own(studio: Studio, name: str) -> None:
    brand = studio.brand(name)
    assert brand.path.parent == studio.root / BRANDS
    assert brand.path.is_dir() and brand.path.name not in (".", "..")


def test_a_brand_that_is_not_there_is_not_known(studio: Studio) -> None:
    studio.brand("Acme").choose(model="tiny")
    assert studio.known("Acme") == studio.brand("Acme")
    assert [studio.known(name) for name in ("other", "..", "", None)] == [None] * 4


def test_remembers_and_counts(studio: Studio) -> None:
    brand = studio.brand("Acme")
    brand.choose(photos="shop/photos", model="tiny")
    brand.choose(model="tiny-xl")
    assert brand.settings["photos"] == "shop/photos" and brand.settings["model"] == "tiny-xl"
    assert brand.next_name("images") == "001"
    (brand.path / "images" / "007-mean").mkdir(parents=True)
    assert brand.next_name("images") == "008"
    with raises("folder", "../../x"):
        brand.images("../../x")


def test_the_stamp_changes_with_what_is_shown(studio: Studio) -> None:
    brand = studio.brand("Acme")
    before = brand.stamp()
    brand.prior.mkdir()
    (brand.prior / "fit.json").write_text("{}")
    assert brand.stamp() != before
