"""Run by itself: scripts of diffusers' examples, of a folder outside this repository, as they stand and patched.

Arguments: a JSON file of the scripts' arguments, where the record goes (safetensors), the scripts. What each step drew
and computed is written down as SCRIPT.STEP.NAME. torchvision is stood in for by the few transforms that they call: the
operators of its wheel are built for a torch with CUDA, and it cannot be imported beside one without.
"""

from __future__ import annotations

import json
import random
import runpy
import sys
from enum import Enum
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image, ImageOps
from safetensors.torch import save_file

assert StableDiffusionPipeline and StableDiffusionXLPipeline  # which look for torchvision, before it is stood in for
STEPS: dict[str, torch.Tensor] = {}
NOW: dict[str, torch.Tensor] = {}


class RandomCrop:
    def __init__(self, size: int) -> None:
        self.size = size

    def get_params(self, image: Image.Image, size: tuple[int, int]) -> tuple[int, int, int, int]:
        return random.randint(0, image.height - size[0]), random.randint(0, image.width - size[1]), *size

    def __call__(self, image: Image.Image) -> Image.Image:
        return crop(image, *self.get_params(image, (self.size, self.size)))


def crop(image: Image.Image, top: int, left: int, height: int, width: int) -> Image.Image:
    return image.crop((left, top, left + width, top + height))


def compose(steps: list[Any]) -> Any:
    def run(image: Any) -> Any:
        for step in steps:
            image = step(image)
        return image

    return run


def stand_in() -> None:
    """torchvision.transforms, for images whose shorter side becomes the resolution."""
    transforms: Any = ModuleType("torchvision.transforms")
    transforms.InterpolationMode = Enum("InterpolationMode", {"BILINEAR": "bilinear", "LANCZOS": "lanczos"})
    transforms.Resize = lambda size, interpolation=None: lambda image: ImageOps.fit(image, (size, size))
    transforms.CenterCrop = lambda size: lambda image: ImageOps.fit(image, (size, size))
    transforms.RandomCrop, transforms.Compose = RandomCrop, compose
    transforms.RandomHorizontalFlip = lambda p=0.5: (
        lambda image: ImageOps.mirror(image) if random.random() < p else image
    )
    transforms.Lambda = lambda function: function
    transforms.ToTensor = lambda: lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    transforms.Normalize = lambda mean, std: lambda pixels: (pixels - mean[0]) / std[0]
    functional: Any = ModuleType("torchvision.transforms.functional")
    functional.crop = crop
    parent: Any = ModuleType("torchvision")
    parent.transforms, parent.__spec__ = transforms, ModuleSpec("torchvision", None)
    sys.modules |= {module.__name__: module for module in (parent, transforms, functional)}


def record(name: str) -> None:
    """Write down what a script's steps draw and compute, until the next one's."""
    draw, forward, backward = torch.randn_like, UNet2DConditionModel.forward, Accelerator.backward
    seen = SimpleNamespace(steps=0)

    def randn_like(like: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        noise = draw(like, *args, **kwargs)
        if like.ndim == 4 and like.shape[1] == 4:
            NOW.update(noise=noise.clone(), latents=like.clone())
        return noise

    def predict(self: Any, x_t: torch.Tensor, t: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, x_t, t, *args, **kwargs)
        NOW.update(x_t=x_t.clone(), timesteps=t.clone(), output=output[0].detach().clone())
        return output

    def learn(self: Any, loss: torch.Tensor, **kwargs: Any) -> None:
        tensors = {**NOW, "loss": loss.detach().clone()}
        STEPS.update({f"{name}.{seen.steps}.{key}": tensor.contiguous() for key, tensor in tensors.items()})
        seen.steps += 1
        backward(self, loss, **kwargs)

    torch.randn_like, UNet2DConditionModel.forward, Accelerator.backward = randn_like, predict, learn
    try:
        runpy.run_path(name, run_name="__main__")
    finally:
        torch.randn_like, UNet2DConditionModel.forward, Accelerator.backward = draw, forward, backward


def main(arguments: str, out: str, *scripts: str) -> None:
    stand_in()
    with open(arguments, encoding="utf-8") as file:
        words = json.load(file)
    for script in scripts:
        sys.argv = [script, *words]
        record(script)
    save_file(STEPS, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
