"""Run by itself: the exported workflows in ComfyUI's own code, of a folder outside this repository.

Arguments: ComfyUI's folder, what was exported, a text encoder with its family in one file, where tensors go. Its models
are of full size, so the model is ComfyUI's own of that family with a network that always answers 0; of the nodes, those
that load, read prompts and draw images are stood in for. Exits with 77 if ComfyUI cannot be imported.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def model_of(family: str) -> Any:
    """ComfyUI's MODEL of a family, without its network."""
    from comfy import model_patcher, supported_models

    kind = supported_models.SDXL if family == "sdxl" else supported_models.SD15
    config = kind({**kind.unet_config, "in_channels": 4, "disable_unet_model_creation": True})
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device="cpu")
    model.diffusion_model = torch.nn.Module()
    model.diffusion_model.dtype = torch.float32
    cpu = torch.device("cpu")
    return model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def pooled_of(file: str, config: dict[str, Any], family: str) -> Any:
    """What ComfyUI's text encoder of a family gives of token ids as pooled text."""
    from comfy import clip_model, ops, sd1_clip, sdxl_clip

    weights = load_file(file)
    ids, embedding = weights.pop("ids"), "text_model.embeddings.token_embedding.weight"
    rows = 49408  # of which the file has the first
    weights[embedding] = torch.nn.functional.pad(weights[embedding], (0, 0, 0, rows - len(weights[embedding])))
    model = clip_model.CLIPTextModel(config, torch.float32, "cpu", ops.manual_cast)
    if "text_projection.weight" in weights:  # which is square in models of full size
        width, inner = weights["text_projection.weight"].shape
        model.text_projection = ops.manual_cast.Linear(inner, width, bias=False)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"text_projection.weight"}
    kind = sdxl_clip.SDXLClipG if family == "sdxl" else sd1_clip.SD1CheckpointClipModel
    projected = kind(device="meta", dtype=torch.float32).return_projected_pooled
    return model(ids, dtype=torch.float32)[2 if projected else 3]


class Workflow:
    """A workflow's nodes by ComfyUI's mappings, each run once."""

    def __init__(self, graph: dict[str, Any], classes: dict[str, Any], outputs: dict[str, Any]) -> None:
        self.graph, self.classes, self.outputs = graph, classes, outputs
        self.results: dict[str, Any] = {}

    def run(self, node: str) -> Any:
        """The outputs of a node."""
        if node not in self.results:
            kind, inputs = self.graph[node]["class_type"], self.graph[node]["inputs"]
            if kind in self.outputs:
                return self.outputs[kind]
            known = self.classes[kind].INPUT_TYPES()
            required, optional = known["required"], known.get("optional", {})
            assert set(required) <= set(inputs) <= set(required) | set(optional), (kind, inputs)
            for name, value in inputs.items():
                choices = (required | optional)[name][0]
                assert not isinstance(choices, list | tuple) or value in choices, (kind, name, value, choices)
            values = {key: self.run(one[0])[one[1]] if isinstance(one, list) else one for key, one in inputs.items()}
            self.results[node] = getattr(self.classes[kind](), self.classes[kind].FUNCTION)(**values)
        return self.results[node]


def main(comfyui: str, out: Path, text: str, tensors: str) -> None:
    with safe_open(text, "pt") as file:
        config = json.loads(file.metadata()["config"])
    family = config.pop("family")
    sys.path.insert(0, comfyui)
    sys.argv = [sys.argv[0], "--cpu"]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.sample
        import comfy_extras.nodes_custom_sampler as custom
        import folder_paths
        import nodes
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(77)
    folder_paths.set_input_directory(str(out / "input"))
    assert asyncio.run(nodes.load_custom_node(str(out / "custom_nodes" / "onbrand")))
    classes = {**nodes.NODE_CLASS_MAPPINGS, **custom.NODE_CLASS_MAPPINGS}
    (latent,) = nodes.LoadLatent().load(sorted(os.listdir(out / "input"))[1])
    states = {
        "noise": comfy.sample.prepare_noise(latent["samples"], 0), "pooled": pooled_of(text, config, family)
    }  # fmt: skip
    for workflow in sorted((out / "workflows").iterdir()):
        title = workflow.stem.split(" ", 1)[1]
        for scheduler in ("ddim_uniform", "simple", "normal", "karras"):
            graph = json.loads(workflow.read_text())
            model = model_of(family)
            first: list[Any] = []

            def watch(apply: Any, call: dict[str, Any], first: list[Any] = first) -> Any:
                first.append((call["input"].clone(), call["timestep"].clone()))
                return torch.zeros_like(call["input"])

            model.set_model_unet_function_wrapper(watch)
            conditioning = [[torch.zeros(1, 77, 768), {"pooled_output": torch.zeros(1, 1280)}]]
            outputs = {"CheckpointLoaderSimple": (model, None, None), "CLIPTextEncode": (conditioning,)}
            ids = {entry["_meta"]["title"]: node for node, entry in graph.items()}
            graph[ids["timesteps"]]["inputs"]["scheduler"] = scheduler
            result = Workflow(graph, classes, outputs).run(ids["sampling"])[0]["samples"]
            assert result.shape == latent["samples"].shape and bool(result.isfinite().all())
            x, sigma = first[0][0][:1], first[0][1].flatten()[0]
            states[f"{title} {scheduler} state"] = (x / (1 + sigma**2).sqrt()).contiguous()
            states[f"{title} {scheduler} abar"] = 1 / (1 + sigma**2)
    save_file({key: value.detach().cpu().contiguous() for key, value in states.items()}, tensors)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
