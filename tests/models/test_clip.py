"""CLIP similarity against transformers' own way from an image and a caption to embeddings."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from onbrand.datasets.garments import garments
from onbrand.evaluation.text import open_judge
from onbrand.models import clip
from worlds import raises, tiny_tokenizer

PROMPTS = ["a red bag", "a blue coat, white background", "a very long caption " * 9]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A CLIPModel of random weights, of the real class, with its tokenizer; images of 24 x 24."""
    tokenizer, folder = tiny_tokenizer(), tmp_path_factory.mktemp("clip") / "tiny-clip"
    both = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = both | ids | {"vocab_size": len(tokenizer), "max_position_embeddings": 32}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config=both | {"image_size": 24, "patch_size": 8}, projection_dim=12)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images() -> Any:
    return torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(0))


CUT = pytest.mark.filterwarnings("ignore:1 of 3 prompts are longer than the 32 tokens")


@CUT
def test_similarity_is_the_cosine_of_transformers_embeddings(folder: Any, images: Any) -> None:
    scorer = clip.load(folder)
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), tiny_tokenizer()
    words = tokenizer(PROMPTS, padding="max_length", max_length=32, truncation=True, return_tensors="pt")
    eight_bit = (images * 255).round() / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    with torch.no_grad():
        out = model(**words, pixel_values=(eight_bit - mean) / std)
    expected = torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds)
    assert torch.allclose(scorer(images, PROMPTS), expected, atol=1e-5)
    assert torch.allclose(scorer(images, PROMPTS, batch=2), expected, atol=1e-5)
    assert expected.std() > 1e-3  # the images differ, so a mix-up would show
    with pytest.warns(UserWarning, match="1 of 3 prompts are longer than the 32 tokens that tiny-clip reads.*image 2"):
        scorer(images, PROMPTS)


@CUT
def test_preparation_is_read_from_the_folder_where_it_is_said(folder: Any, images: Any, tmp_path: Path) -> None:
    model, tokenizer = CLIPModel.from_pretrained(folder), tiny_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    plain = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    settings = plain | {"image_mean": [0, 0, 0], "image_std": [1, 1, 1], "image_processor_type": "CLIPImageProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    words = tokenizer(PROMPTS, padding="max_length", max_length=32, truncation=True, return_tensors="pt")
    with torch.no_grad():
        out = model.eval()(**words, pixel_values=(images * 255).round() / 255)
    expected = torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds)
    assert torch.allclose(clip.load(tmp_path)(images, PROMPTS), expected, atol=1e-5)


def test_images_of_other_sizes_are_prepared_as_pil_does(folder: Any) -> None:
    large = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    small = np.asarray(Image.fromarray(large).resize((24, 24), Image.Resampling.BICUBIC))
    scorer = clip.load(folder)
    as_tensor = [torch.from_numpy(part.copy()).permute(2, 0, 1)[None] / 255 for part in (large, small)]
    assert torch.allclose(scorer(as_tensor[0], PROMPTS[:1]), scorer(as_tensor[1], PROMPTS[:1]), atol=1e-5)


def test_the_name_is_the_folders(folder: Any) -> None:
    assert clip.load(folder).name.startswith("tiny-clip")


def test_what_is_no_clip_or_does_not_fit_is_refused(folder: Any, images: Any, tmp_path: Path) -> None:
    with raises("classifier", tmp_path, "model_type"):
        clip.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip_text_model"}')
    assert not clip.is_clip(tmp_path) and clip.is_clip(folder)
    with raises("classifier", "got 2 for 3 images"):
        clip.load(folder)(images, PROMPTS[:2])


def test_the_shipped_clip_finds_an_image_by_its_caption_as_its_score_says() -> None:
    """R@1 among 100 held-out images of the catalogue, both ways, drawn here."""
    scorer = open_judge("garments-clip")
    report = json.loads((resources.files("onbrand") / "assets/garment-clip/score.json").read_text())["test"]
    images, rows = garments("test")
    by_caption = {row["text"]: i for i, row in enumerate(rows)}
    indices = list(by_caption.values())
    vectors, texts = scorer.embed(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, [r["text"] for r in rows])
    generator, scores = torch.Generator().manual_seed(0), []
    for _ in range(30):
        some = torch.tensor(indices)[torch.randperm(len(indices), generator=generator)[:100]]
        table = texts[some] @ vectors[some].T
        scores.append([float((table.argmax(d) == torch.arange(100)).float().mean()) for d in (1, 0)])
    assert np.mean(scores, 0) == pytest.approx([report["text to picture"], report["picture to text"]], abs=0.03)
    assert scorer.name.startswith("garment-clip"), "scores are labelled with it"
