"""The embedded photos: white background, the brand's margin, the same bytes every time, readable by `datasets`."""

from pathlib import Path

import numpy as np

from datasets import load_dataset
from onbrand.datasets.fashion import COLOURS, KINDS, MARGIN, brand_image, caption, photos, place, write_folder
from worlds import raises


def test_embedded_photos_are_the_first_of_the_originals_with_all_kinds() -> None:
    for split, count in (("train", 3000), ("test", 1000)):
        grey, categories = photos(split)
        assert grey.shape == (count, 28, 28) and set(categories) == set(range(len(KINDS)))
        assert np.median(grey[:, 0, 0]) == 255  # the background is white, not Fashion-MNIST's black


def test_brand_image_has_a_white_frame_and_the_asked_tint() -> None:
    grey, _ = photos("test")
    for i, (colour, rgb) in enumerate(COLOURS.items()):
        image = brand_image(grey[i], colour)
        frame = np.ones((64, 64), bool)
        frame[MARGIN:-MARGIN, MARGIN:-MARGIN] = False
        assert (image[frame] == 255).all()
        product = image[(image < 250).any(-1)].astype(float)
        assert np.abs(np.median(product, 0) - rgb).max() < 40, colour


def test_a_box_over_the_frame_is_cut_by_it_and_not_moved() -> None:
    grey, _ = photos("test")
    whole = place(grey[0], "red", box=(10, 0, 40))
    cut = place(grey[0], "red", box=(-10, 0, 40))
    assert (cut[:, :30] == whole[:, 20:50]).all() and (cut[:, 30:] == 255).all()


def test_captions_read_as_english() -> None:
    assert caption(9, "red") == "a red ankle boot, white background"
    assert caption("bag", "orange") == "an orange bag, white background"
    assert caption("trousers", "teal") == "teal trousers, white background"


def test_folder_is_read_by_datasets_and_made_again_byte_for_byte(tmp_path: Path) -> None:
    first, second = (write_folder(tmp_path / name, "test", 12) for name in "ab")
    assert all(path.read_bytes() == (second / path.name).read_bytes() for path in first.iterdir())
    rows = load_dataset("imagefolder", data_dir=str(first), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 12 and rows[0]["image"].size == (64, 64) and rows[0]["class"] == "product photo"
    assert rows[3]["text"] == caption(rows[3]["kind"], rows[3]["colour"])


def test_more_photos_than_there_are_is_an_error(tmp_path: Path) -> None:
    with raises("dataset", "count", "1..1000", "'test'", 1001):
        write_folder(tmp_path, "test", 1001)
