"""Run by itself: an exported node pack, beside torch and safetensors alone; prints what its nodes give, as safetensors.

Arguments: the pack, where the tensors go, then as JSON what each node is given.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file

FORBIDDEN = ("onbrand", "diffusers", "transformers", "accelerate", "peft", "PIL", "pydantic", "yaml", "tyro", "comfy")


class Closed:
    """Finds nothing of these packages."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        if name.partition(".")[0] in FORBIDDEN:
            raise ImportError(f"{name} is not here")


class Sampling:
    """Stable Diffusion's sigmas, and how ComfyUI's k-diffusion samplers begin."""

    def __init__(self, weight: float = 1.0) -> None:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        abars = torch.cumprod(1 - betas, 0)
        self.sigmas, self.weight = ((1 - abars) / abars).sqrt().float(), weight
        self.sigma_max = self.sigmas[-1]

    def noise_scaling(self, sigma: Any, noise: Any, latent: Any, max_denoise: bool = False) -> Any:
        return self.weight * latent + noise * (torch.sqrt(1 + sigma**2) if max_denoise else sigma)


class Model:
    """What a MODEL is asked for."""

    def __init__(self, scale: float, weight: float = 1.0) -> None:
        self.objects = {"model_sampling": Sampling(weight), "process_latent_in": lambda latent: latent * scale}

    def get_model_object(self, name: str) -> Any:
        return self.objects[name]


def load(folder: Path) -> Any:
    """A custom node's folder as ComfyUI loads it: under a name with slashes in it, none of a package."""
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def call(nodes: Any, kind: str, **inputs: Any) -> Any:
    """A node's first output; its inputs are those that it asks for."""
    node = nodes[kind]
    asks = node.INPUT_TYPES()
    assert set(inputs) <= set(asks["required"]) | set(asks.get("optional", {}))
    return getattr(node(), node.FUNCTION)(**inputs)[0]


def main(pack: str, out: str, given: str) -> None:
    sys.meta_path.insert(0, Closed())
    nodes, settings = load(Path(pack)).NODE_CLASS_MAPPINGS, json.loads(given)
    (name,) = nodes["OnbrandLoadPrior"].INPUT_TYPES()["required"]["prior"][0]
    assert nodes["OnbrandLoadPrior"].IS_CHANGED(name) > 0
    prior = call(nodes, "OnbrandLoadPrior", prior=name)
    model, sampling = Model(prior.provenance.scaling_factor), Sampling()
    pooled = [[torch.zeros(1), {"pooled_output": torch.tensor([settings["pooled"]])}]]
    where = {"class_name": "", "prompt": settings["prompt"], "batch_size": 2}
    mean = call(nodes, "OnbrandStart", prior=prior, **where)
    tensors = {
        "mean": mean["samples"],
        "text": call(nodes, "OnbrandStart", prior=prior, conditioning=pooled, **where)["samples"],
        "pca": call(nodes, "OnbrandDraw", prior=prior, k=2, seed=7, **where)["samples"],
    }
    for timestep in settings["timesteps"]:
        sigmas = torch.tensor([float(sampling.sigmas[timestep]), 0.0])
        noise = call(nodes, "OnbrandNoise", model=model, sigmas=sigmas, start=mean, noise_seed=7, zero_mean=True)
        for latent, x0 in (("empty", torch.zeros_like(mean["samples"])), ("start", mean["samples"]),
                           ("other", tensors["pca"])):  # fmt: skip
            eps = noise.generate_noise({"samples": x0})
            state = sampling.noise_scaling(sigmas[0], eps, x0 * prior.provenance.scaling_factor, timestep == 999)
            tensors[f"{latent} {timestep}"] = state / (1 + sigmas[0] ** 2).sqrt()
    errors = []
    calls: list[tuple[str, dict[str, Any]]] = [
        ("OnbrandStart", {"prior": prior, "class_name": "nothing"}),
        ("OnbrandStart", {"prior": prior, "prompt": settings["prompt"], "width": 8, "height": 8}),
        ("OnbrandStart", {"prior": prior, "prompt": settings["prompt"], "width": 8}),
        ("OnbrandStart", {"prior": prior, "prompt": settings["prompt"], "conditioning": [[torch.zeros(1), {}]]}),
        ("OnbrandDraw", {"prior": prior, "prompt": settings["prompt"], "k": 99}),
        ("OnbrandNoise", {"model": model, "sigmas": torch.tensor([]), "start": mean}),
        ("OnbrandCheck", {"images": torch.zeros(1, 8, 8, 3), "photos": "photos"}),
    ]
    for kind, inputs in calls:
        try:
            call(nodes, kind, **inputs)
        except ValueError as error:
            errors.append(str(error))
    for other, latent in ((model, {"samples": mean["samples"][:, :, :4]}), (Model(1.0, 0.5), mean)):
        noise = call(nodes, "OnbrandNoise", model=other, sigmas=torch.tensor([1.0]), start=mean)
        try:
            noise.generate_noise(latent)
        except ValueError as error:
            errors.append(str(error))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, out)
    print(json.dumps(errors))


if __name__ == "__main__":
    main(*sys.argv[1:])
