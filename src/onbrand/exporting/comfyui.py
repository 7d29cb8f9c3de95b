"""ComfyUI: class means that its LoadLatent reads, workflows, and the node pack; laid out as ComfyUI's own folder."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from onbrand import __version__
from onbrand.core.prior import Prior, name_of, save_all
from onbrand.exporting.nodes import latent_of
from onbrand.io import file_names, write_text

PARTS = ("input", "models", "custom_nodes", "workflows")
"""What `write` leaves."""
LATENT_FORMATS = {0.18215: 7.5, 0.13025: 5.0}
"""Scaling factors of the latents that ComfyUI knows (SD 1 and 2, SDXL) -> usual guidance."""
TIMESTEPS, STEPS = 1000, 20
"""Of training; of a workflow, if the weights ask for no other number."""
NODES = "exporting/nodes.py"
SOURCE = Path(__file__).parents[1]
IMPORT = re.compile(r"^from onbrand\.([\w.]+) import", re.MULTILINE)
"""An import of onbrand's when a module is imported; those inside functions are of onbrand where it is installed."""
HEADER = f"# From onbrand {__version__}, SPDX-License-Identifier: Apache-2.0; written by `onbrand export`.\n"
PACK = {
    "__init__.py": HEADER + '''"""onbrand's nodes for ComfyUI; torch and safetensors are enough."""

from .onbrand.exporting.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
''',
    "pyproject.toml": f'''[project]
name = "onbrand"
description = "Start where a brand's images start: class means, text, PCA draws, matched noise, the check."
version = "{__version__}"
license = {{ text = "Apache-2.0" }}
requires-python = ">=3.11"
dependencies = []  # torch and safetensors, which ComfyUI has

[tool.comfy]
PublisherId = ""  # yours, to publish it in the registry
DisplayName = "onbrand"
''',
}  # fmt: skip
"""Files of custom_nodes/onbrand beside the copies; the second is its registry's metadata."""


def write(
    folder: Path,
    name: str,
    prior: Prior,
    checkpoint: str,
    trained_start: Mapping[str, Any] | None = None,
    lora: Path | None = None,
) -> None:
    """Write the means, the prior, workflows and the nodes into `folder`, to be copied into ComfyUI's.

    Args:
        folder: empty.
        name: of the brand.
        prior: its prior; the means of all sizes are written.
        checkpoint: file in models/checkpoints that the workflows load.
        trained_start: the start that the weights were trained with (`checkpoint.KEYS`): the workflows begin at its
            timestep. None: noise.
        lora: the run's LoRA by kohya's names, copied into models/loras.

    Warns:
        UserWarning: ComfyUI has no latents of the prior's scale, or none of its schedulers begins where the weights
            were trained to.
    """
    scale = prior.provenance.scaling_factor
    if scale not in LATENT_FORMATS:
        warnings.warn(
            f"the prior's latents are scaled by {scale}, ComfyUI's by {' or '.join(map(str, LATENT_FORMATS))}: a "
            "checkpoint that it loads starts elsewhere",
            stacklevel=2,
        )
    means = {
        f"{name} {own}{'' if one.size == prior.size else f' {name_of(one.size)}'}": latent_of(one, one.mean(own))
        for one in prior.all
        for own in one.classes
    }
    files = {label: f"{file}.latent" for label, file in file_names(list(means)).items()}
    for label, file in files.items():
        write_latent(folder / "input" / file, means[label]["samples"])
    save_all(prior, folder / "models" / "onbrand" / name)
    if lora is not None:
        (folder / "models" / "loras").mkdir(parents=True)
        shutil.copyfile(lora, folder / "models" / "loras" / f"{name}.safetensors")
    begin = schedule_for(trained_start)
    loaders = _loaders(checkpoint, name if lora else None, prior.classes[0], LATENT_FORMATS.get(scale, 7.5))
    graphs = {
        "core nodes": _core(loaders, next(iter(files.values())), *begin),
        "onbrand nodes": _pack(loaders, name, *begin),
    }
    for title, graph in graphs.items():
        write_text(folder / "workflows" / f"{name} {title}.json", json.dumps(numbered(graph), indent=2) + "\n")
    pack = folder / "custom_nodes" / "onbrand"
    for file, text in {**PACK, **{f"onbrand/{file}": text for file, text in copies(NODES).items()}}.items():
        write_text(pack / file, text)


def write_latent(path: Path, samples: torch.Tensor) -> None:
    """Write latents `(B, C, h, w)`, unscaled, as SaveLatent does; by the empty tensor LoadLatent leaves them so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"latent_tensor": samples.float().contiguous(), "latent_format_version_0": torch.tensor([])}
    save_file(tensors, path)


def copies(file: str) -> dict[str, str]:
    """A module of onbrand's and those that it imports when it is imported, by their paths, as a package of their own.

    Their imports of each other are relative: the copies stand wherever they are put, beside any onbrand.
    """
    texts, waiting = {"__init__.py": HEADER}, [file]
    while waiting:
        one = waiting.pop()
        text = (SOURCE / one).read_text(encoding="utf-8")
        waiting += {f"{name.replace('.', '/')}.py" for name in IMPORT.findall(text)} - set(texts)
        texts[one] = HEADER + IMPORT.sub(rf"from {'.' * len(Path(one).parts)}\1 import", text)
        texts.setdefault(Path(one).with_name("__init__.py").as_posix(), HEADER)
    return texts


def schedule_for(trained_start: Mapping[str, Any] | None) -> tuple[str, int]:
    """ComfyUI's scheduler and number of steps that begin where the weights were trained to, near STEPS steps.

    Its ddim_uniform begins as diffusers' "leading" does, at 951 in 20 steps; its simple as "trailing", at 999.
    """
    begins = {("ddim_uniform", steps): first_timestep(steps) for steps in range(10, 101)}
    begins[("simple", STEPS)] = TIMESTEPS - 1
    if trained_start is None:
        return "ddim_uniform", STEPS
    least = trained_start["start_timestep"]
    most = TIMESTEPS if trained_start["gain"] == "window" else least

    def distance(choice: tuple[str, int]) -> tuple[float, int]:
        return max(least - begins[choice], begins[choice] - most, 0), abs(choice[1] - STEPS)

    best = min(begins, key=distance)
    if distance(best)[0]:
        warnings.warn(
            f"the weights were trained to start at timestep {least}; the workflows' nearest is {begins[best]} "
            f"({best[0]}, {best[1]} steps)",
            stacklevel=3,
        )
    return best


def first_timestep(steps: int) -> int:
    """Where ComfyUI's ddim_uniform begins: the last of 1, 1 + stride, ..."""
    stride = TIMESTEPS // steps
    return 1 + stride * ((TIMESTEPS - 2) // stride)


Graph = dict[str, tuple[str, dict[str, Any]]]
"""Node -> its class and inputs; a link is (node, output)."""


def numbered(graph: Graph) -> dict[str, Any]:
    """A graph as ComfyUI's API has it, which its page opens too."""
    ids = {node: str(number) for number, node in enumerate(graph, 1)}
    return {
        ids[node]: {
            "class_type": kind,
            "inputs": {key: [ids[one[0]], one[1]] if isinstance(one, tuple) else one for key, one in inputs.items()},
            "_meta": {"title": node},
        }
        for node, (kind, inputs) in graph.items()
    }


def _loaders(checkpoint: str, lora: str | None, class_name: str, guidance: float) -> Graph:
    """What both workflows begin with: model, prompts, sampler."""
    graph: Graph = {"model": ("CheckpointLoaderSimple", {"ckpt_name": checkpoint})}
    if lora is not None:
        files = {"lora_name": f"{lora}.safetensors", "strength_model": 1.0, "strength_clip": 1.0}
        graph["model with LoRA"] = ("LoraLoader", {"model": ("model", 0), "clip": ("model", 1), **files})
    last = list(graph)[-1]
    graph["guided"] = ("CFGGuider", {
        "model": (last, 0), "positive": ("prompt", 0), "negative": ("negative prompt", 0), "cfg": guidance,
    })  # fmt: skip
    graph["prompt"] = ("CLIPTextEncode", {"clip": (last, 1), "text": class_name})
    graph["negative prompt"] = ("CLIPTextEncode", {"clip": (last, 1), "text": ""})
    graph["sampler"] = ("KSamplerSelect", {"sampler_name": "euler"})
    return graph


def _core(graph: Graph, latent: str, scheduler: str, steps: int) -> Graph:
    """Core nodes alone: the class mean under the noise of the first sigma (Eq. 8), then sampled without more noise.

    KSampler itself adds sqrt(1 + sigma^2) noise, not sigma, if it begins at the model's largest sigma: .2 % too much.
    """
    model = graph["guided"][1]["model"]
    return {
        **graph,
        "timesteps": ("BasicScheduler", {"model": model, "scheduler": scheduler, "steps": steps, "denoise": 1.0}),
        "class mean": ("LoadLatent", {"latent": latent}),
        "noise": ("RandomNoise", {"noise_seed": 0}),
        "start": ("AddNoise", {
            "model": model, "noise": ("noise", 0), "sigmas": ("timesteps", 0), "latent_image": ("class mean", 0),
        }),
        "no more noise": ("DisableNoise", {}),
        **_sampled(("no more noise", 0), ("start", 0)),
    }  # fmt: skip


def _pack(graph: Graph, name: str, scheduler: str, steps: int) -> Graph:
    """The pack's nodes: the start by the prompt, under onbrand's own noise of the seed."""
    model, text = graph["guided"][1]["model"], graph["prompt"][1]["text"]
    where = {"class_name": "", "prompt": text, "width": 0, "height": 0, "batch_size": 1}
    return {
        **graph,
        "timesteps": ("BasicScheduler", {"model": model, "scheduler": scheduler, "steps": steps, "denoise": 1.0}),
        "prior": ("OnbrandLoadPrior", {"prior": name}),
        "start": ("OnbrandStart", {"prior": ("prior", 0), **where}),
        "noise": ("OnbrandNoise", {
            "model": model, "sigmas": ("timesteps", 0), "start": ("start", 0), "noise_seed": 0, "zero_mean": True,
        }),
        **_sampled(("noise", 0), ("start", 0)),
    }  # fmt: skip


def _sampled(noise: tuple[str, int], latent: tuple[str, int]) -> Graph:
    """What both end with: the sampling, and the image."""
    return {
        "sampling": ("SamplerCustomAdvanced", {
            "noise": noise, "guider": ("guided", 0), "sampler": ("sampler", 0), "sigmas": ("timesteps", 0),
            "latent_image": latent,
        }),
        "image": ("VAEDecode", {"samples": ("sampling", 0), "vae": ("model", 2)}),
        "save": ("SaveImage", {"images": ("image", 0), "filename_prefix": "onbrand"}),
    }  # fmt: skip
