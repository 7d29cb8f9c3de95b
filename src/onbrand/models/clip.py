"""CLIP similarity: the cosine between an image's and its caption's embedding, by any CLIPModel folder."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from onbrand.errors import OnbrandError
from onbrand.models.tokens import losses, tokenized
from onbrand.models.weights import open_network, read_config, reading

IMAGES: Any = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
"""CLIP's own preparation of images, the variant that needs no torchvision."""


@dataclass(frozen=True, eq=False)
class Clip:
    """A CLIPModel with its tokenizer and preparation of images; `load` makes one."""

    name: str
    """What its scores are labelled with: the folder's name, and the checkpoint it says it comes from."""
    model: Any
    tokenizer: Any
    images: Any

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str], batch: int = 32) -> Tensor:
        """Cosine in [-1, 1], `(B,)`, of images `(B, 3, H, W)` in [0, 1] and one prompt each (Eq. in CLIPScore
        without its factor and clipping). OnbrandError unless there are as many prompts as images."""
        if len(images) != len(prompts):
            raise OnbrandError("classifier", f"one prompt an image: got {len(prompts)} for {len(images)} images")
        length = self.model.config.text_config.max_position_embeddings
        if lost := losses(self.tokenizer, prompts, length):
            index, words = next(iter(lost.items()))
            warnings.warn(
                f"{len(lost)} of {len(prompts)} prompts are longer than the {length} tokens that {self.name} reads and "
                f"are judged by their beginnings: that of image {index} loses {words!r}",
                stacklevel=2,
            )
        parts = [self.embed(images[i : i + batch], prompts[i : i + batch]) for i in range(0, len(prompts), batch)]
        return torch.cat([(image * text).sum(1) for image, text in parts]) if parts else torch.zeros(0)

    @torch.no_grad()
    def embed(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Unit vectors `(B, D)` of images `(B, 3, H, W)` in [0, 1] and `(P, D)` of prompts, on the CPU."""
        bytes_ = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        pixels = self.images(list(bytes_), input_data_format="channels_last", return_tensors="pt")["pixel_values"]
        words = tokenized(self.tokenizer, prompts, self.model.config.text_config.max_position_embeddings)
        device = self.model.device
        out = self.model(
            input_ids=words["input_ids"].to(device),
            attention_mask=words["attention_mask"].to(device),
            pixel_values=pixels.to(device, self.model.dtype),
        )
        normalize = torch.nn.functional.normalize
        return normalize(out.image_embeds.float(), dim=1).cpu(), normalize(out.text_embeds.float(), dim=1).cpu()


def is_clip(folder: str | Path) -> bool:
    """Whether `folder` holds a CLIPModel: a config.json of model_type "clip"."""
    file = Path(folder) / "config.json"
    return file.is_file() and read_config(file, "classifier").get("model_type") == "clip"


def load(folder: str | Path, device: str = "cpu") -> Clip:
    """The CLIPModel, tokenizer and preparation of images of a folder as transformers saves them; nothing is fetched.

    Without a preprocessor_config.json images are prepared as OpenAI's CLIP does, at the model's own size.
    OnbrandError if the folder holds no CLIPModel.
    """
    folder = Path(folder).expanduser()
    if not is_clip(folder):
        raise OnbrandError(
            "classifier", f"a CLIP folder has a config.json of model_type clip, weights, tokenizer: not {folder}"
        )
    model = open_network(transformers.CLIPModel, folder, torch.float32, "classifier").to(device)
    with reading(str(folder.absolute()), "classifier"):
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    side = model.config.vision_config.image_size
    if (folder / "preprocessor_config.json").is_file():
        with reading(str(folder.absolute()), "classifier"):
            images = IMAGES.from_pretrained(folder, local_files_only=True)
    else:
        images = IMAGES(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    origin = model.config._name_or_path
    source = f" ({origin})" if origin and Path(origin).name != folder.name else ""
    return Clip(folder.name + source, model, tokenizer, images)
