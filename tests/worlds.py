"""What the tests share: a tiny pipeline of the real classes, a prior that belongs to it, photos, errors."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoPipelineForImage2Image,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image, ImageDraw
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from onbrand.errors import OnbrandError

if TYPE_CHECKING:
    from onbrand.core.prior import Prior

WIDTH = 16
"""Text embedding width E, and the UNet's cross-attention width."""
LENGTH = 32
"""Longest caption in tokens, with its begin and end."""
COUNT = 60
"""Photos of the world."""
MANIFEST_LINE = {
    "class": None, "seed": 0, "negative_prompt": "", "attributes": None, "image": None, "image_sha256": None, "k": 0,
    "batch": {"first": 0, "size": 1024, "position": 0}, "start": "mean", "scheduler": {}, "abar": 0.005, "threads": 1,
    "device": "cpu", "dtype": "float32", "versions": {}, "fingerprints": {},
}  # fmt: skip
"""What a line of manifest.jsonl says beside the image's index, file and prompt."""
CHECK = {
    "count": 1, "n_reference": 1, "all": {"rate": 1.0, "low": 1.0, "high": 1.0, "n": 1}, "properties": {},
    "measures": {}, "attributes": {}, "held_out": {}, "descriptive": {}, "background": [255, 255, 255], "images": [],
}  # fmt: skip
"""What check.json says at least."""
SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "clip_sample": False,
    "set_alpha_to_one": False,
}  # fmt: skip
"""Stable Diffusion's, of DDIM."""
COLOURS = {"red": (200, 30, 40), "blue": (30, 60, 190), "green": (40, 150, 60)}


@contextmanager
def raises(code: str, *values: object) -> Iterator[pytest.ExceptionInfo[OnbrandError]]:
    """An OnbrandError of this code, whose message holds every one of the values: what was wrong, what is its limit."""
    with pytest.raises(OnbrandError) as caught:
        yield caught
    message = str(caught.value)
    assert caught.value.code == code, f"{caught.value.code}: {message}"
    assert [value for value in map(str, values) if value not in message] == [], message


def write_world(folder: Path) -> Path:
    """photos/ of `write_blocks`, held_out/ with 12 others, and model/, a tiny pipeline: the folder."""
    write_blocks(folder / "photos", COUNT)
    write_blocks(folder / "held_out", 12, seed=1)
    tiny_pipeline().save_pretrained(folder / "model")
    return folder


def write_blocks(folder: Path, count: int, seed: int = 0) -> None:
    """Photos (20, 20) of coloured blocks on white, in two classes by turns, and their metadata.jsonl."""
    folder.mkdir(parents=True)
    rows, rng = [], np.random.default_rng(seed)
    for i in range(count):
        colour, class_name, name = list(COLOURS)[i % 3], ("block", "tall block")[i % 2], f"{i:03d}.png"
        image = Image.new("RGB", (20, 20), (255, 255, 255))
        left, top = rng.integers(3, 6, 2).tolist()
        box = (left, top, left + 9, top + (9 if class_name == "block" else 12))
        ImageDraw.Draw(image).rectangle(box, COLOURS[colour])
        image.save(folder / name)
        rows.append({"file_name": name, "text": f"{class_name}, {colour}", "class": class_name})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def tiny_pipeline(
    seed: int = 0, prediction_type: str | None = None, size: int = 16, family: str | None = None
) -> DiffusionPipeline:
    """Untrained weights drawn from `seed`; images `(B, 3, size, size)`, latents `(B, 4, size / 2, size / 2)`,
    captions spelled letter by letter, SD's schedule (scaled_linear .00085-.012, leading, steps_offset 1), DDIM.

    family: one of FAMILIES; None: the one that `pytest --family` names, sd without it. prediction_type: None: epsilon,
    of sd2 v_prediction.
    """
    family = family or os.environ.get("ONBRAND_FAMILY", "sd")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = FAMILIES[family](size)
    prediction_type = prediction_type or ("v_prediction" if family == "sd2" else "epsilon")
    parts["scheduler"] = DDIMScheduler(prediction_type=prediction_type, **SCHEDULE)
    if family == "sdxl":
        pipe = StableDiffusionXLPipeline(**parts, add_watermarker=False, force_zeros_for_empty_prompt=True)
    else:
        others = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipe = StableDiffusionPipeline(**parts, **others)
    for part in parts.values():
        if isinstance(part, nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd(size: int) -> dict[str, Any]:
    """The parts of a Stable Diffusion 1."""
    vae, unet = tiny_vae(size, 0.18215), tiny_unet(size, cross_attention_dim=WIDTH)
    tokenizer = tiny_tokenizer()
    encoder = CLIPTextModel(text_config(tokenizer, WIDTH))
    return {"vae": vae, "unet": unet, "tokenizer": tokenizer, "text_encoder": encoder}


def sd2(size: int) -> dict[str, Any]:
    """The parts of a Stable Diffusion 2: linear projections, heads of several widths."""
    vae = tiny_vae(size, 0.18215)
    unet = tiny_unet(size, cross_attention_dim=WIDTH, attention_head_dim=(2, 4), use_linear_projection=True)
    tokenizer = tiny_tokenizer()
    encoder = CLIPTextModel(text_config(tokenizer, WIDTH, hidden_act="gelu"))
    return {"vae": vae, "unet": unet, "tokenizer": tokenizer, "text_encoder": encoder}


def sdxl(size: int) -> dict[str, Any]:
    """The parts of a Stable Diffusion XL: two text encoders, a UNet that reads pooled text and time ids."""
    vae = tiny_vae(size, 0.13025)
    unet = tiny_unet(
        size, cross_attention_dim=WIDTH, transformer_layers_per_block=(1, 2), attention_head_dim=(2, 4),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH + 6 * 8,
    )  # fmt: skip
    # in a checkpoint of one file diffusers knows the second encoder by its width, and by ten layers or more
    one, two = tiny_tokenizer(), tiny_tokenizer(pad="!</w>")
    encoder = CLIPTextModel(text_config(one, WIDTH - 10))
    other = CLIPTextModelWithProjection(
        text_config(two, 10, projection_dim=WIDTH, hidden_act="gelu", num_hidden_layers=10)
    )
    texts = {"text_encoder": encoder, "text_encoder_2": other, "tokenizer": one, "tokenizer_2": two}
    return {"vae": vae, "unet": unet, **texts}


FAMILIES = {"sd": sd, "sd2": sd2, "sdxl": sdxl}
"""Families of models that `tiny_pipeline` makes."""


def predict(
    unet: UNet2DConditionModel, x_t: Tensor, t: Tensor | int, hidden: Tensor, pooled: Tensor | None = None
) -> Tensor:
    """A tiny UNet's output, called as diffusers' own training scripts call it: an SDXL's also with pooled text
    (B, WIDTH), drawn if there is none, and the images' size."""
    if unet.config.addition_embed_type is None:
        return unet(x_t, t, encoder_hidden_states=hidden).sample
    height, width = 2 * x_t.shape[-2], 2 * x_t.shape[-1]
    if pooled is None:
        pooled = torch.randn(len(x_t), WIDTH, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[height, width, 0, 0, height, width]] * len(x_t)).to(x_t)
    beside = {"text_embeds": pooled.to(x_t), "time_ids": ids}
    return unet(x_t, t, encoder_hidden_states=hidden, added_cond_kwargs=beside).sample


def img2img_of(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """diffusers' own image-to-image pipeline of its parts."""
    other = AutoPipelineForImage2Image.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    return other


def tiny_vae(size: int, scaling_factor: float) -> AutoencoderKL:
    """An autoencoder that halves each side."""
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=size,
        scaling_factor=scaling_factor,
    )


def tiny_unet(size: int, **config: Any) -> UNet2DConditionModel:
    """A UNet for images of `size` under `tiny_vae`."""
    return UNet2DConditionModel(
        sample_size=size // 2,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        **{"attention_head_dim": 8} | config,
    )


def text_config(tokenizer: CLIPTokenizer, width: int, **config: Any) -> CLIPTextConfig:
    """Of a text encoder."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{"projection_dim": width, "num_hidden_layers": 2} | config,
    )


def tiny_tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's tokenizer over the printable ASCII characters, with no merges: one token a character."""
    characters = [chr(code) for code in range(33, 127)]
    words = characters + [character + "</w>" for character in characters] + ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
        Path(folder, "merges.txt").write_text("#version: 0.2\n")
        config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "pad_token": pad}
        Path(folder, "tokenizer_config.json").write_text(json.dumps(config))
        return CLIPTokenizer.from_pretrained(folder)


def tiny_prior(
    pipe: StableDiffusionPipeline, classes: tuple[str, ...] = ("product photo",), k: int = 3, text: bool = True
) -> Prior:
    """A prior of the pipeline's latent shape with made-up classes: means of 0.5, spreads of 3, 2 and 1 sigma,
    and (with `text`) a made-up regression from the pooled text embedding."""
    from onbrand.core.gaussian import Gaussian
    from onbrand.core.prior import Prior, Provenance
    from onbrand.core.text import Conditional
    from onbrand.models.pipeline import fingerprint

    side = pipe.unet.config.sample_size
    shape = (pipe.vae.config.latent_channels, side, side)
    size = shape[0] * side * side
    generator = torch.Generator().manual_seed(len(classes))
    gaussians, conditionals = {}, {}
    for name in classes:
        components = torch.linalg.qr(torch.randn(size, k, generator=generator))[0].T.contiguous()
        variances = torch.arange(k, 0, -1, dtype=torch.float32).square()
        mean = 0.5 * torch.randn(shape, generator=generator)
        total = float(variances.sum()) + 0.01 * (size - k)
        gaussians[name] = Gaussian(mean=mean, components=components, variances=variances, total=total, count=100)
        conditionals[name] = Conditional(
            weight=torch.randn(WIDTH, k, generator=generator),
            text_mean=torch.zeros(WIDTH),
            intercept=torch.zeros(k),
            shrink=torch.full((k,), 0.9),
            residual=0.1 * torch.diag(variances),
            alpha=1.0,
            r2=torch.full((k,), 0.9),
        )
    image = side * 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    provenance = Provenance(
        vae=fingerprint(pipe.vae),
        scaling_factor=float(pipe.vae.config.scaling_factor),
        shift_factor=float(pipe.vae.config.shift_factor or 0.0),
        resolution=(image, image),
        model="tiny",
        flip=False,
        background=(255, 255, 255),
    )
    return Prior(gaussians, provenance, conditionals if text else {})
