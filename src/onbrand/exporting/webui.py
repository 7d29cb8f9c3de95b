"""A1111 and Forge: class means as images for img2img, and a script that starts Forge's txt2img from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from onbrand.exporting.comfyui import HEADER
from onbrand.io import write_text
from onbrand.models.fitting import draw_means

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from onbrand.core.prior import Prior

PARTS = ("images", "extensions")
"""What `write` leaves."""


def write(folder: Path, name: str, prior: Prior, pipe: DiffusionPipeline) -> None:
    """Write images/, for img2img at denoising strength 1, and extensions/onbrand/, to be copied into Forge's folder.

    Args:
        folder: empty.
        name: of the brand.
        prior: its prior; the means are those of its main size.
        pipe: the model that the prior belongs to, whose VAE draws the images.
    """
    draw_means(pipe, prior, folder / "images")
    extension = folder / "extensions" / "onbrand"
    script = Path(__file__).with_name("forge.py").read_text(encoding="utf-8")
    write_text(extension / "scripts" / "onbrand_start.py", HEADER + script)
    (extension / "priors").mkdir()
    save_file(
        {own: prior.mean(own)[0].contiguous() for own in prior.classes}, extension / "priors" / f"{name}.safetensors"
    )
