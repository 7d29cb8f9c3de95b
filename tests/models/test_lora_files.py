"""A LoRA's file in every naming in use: each pair takes with the strength it should, and what does not is said."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ldm import unet_name
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file
from torch import Tensor, nn

from onbrand import api
from onbrand.models import pipeline
from onbrand.models.checkpoint import LORA, PEFT_LORA, lora_metadata
from onbrand.models.lora import fuse
from onbrand.models.lora_names import layers_of, ldm_name
from worlds import raises, tiny_pipeline

RANK = 2
State = dict[str, Tensor]
Change = dict[str, Tensor]


def words_name(name: str) -> str:
    """A text encoder's layer as most files call it, whatever transformers does."""
    return f"text_model.{name.removeprefix('text_model.')}"


def pairs_of(network: nn.Module, ends: tuple[str, ...] = ("",)) -> dict[str, tuple[Tensor, Tensor]]:
    """A pair of matrices for each layer of a network that is linear or a convolution and is named so."""
    draw = torch.Generator().manual_seed(1)
    pairs = {}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and name.endswith(ends):
            outputs, inputs, *kernel = layer.weight.shape
            down = 0.1 * torch.randn(RANK, inputs, *kernel, generator=draw)
            pairs[name] = down, 0.1 * torch.randn(outputs, RANK, *(1 for _ in kernel), generator=draw)
    return pairs


def change_of(pair: tuple[Tensor, Tensor], scale: float = 1.0) -> Tensor:
    """What a pair adds to its layer's weight: by the definition, one convolution after the other."""
    down, up = pair
    return scale * (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])


def written(folder: Path, state: State, **metadata: str) -> Path:
    file = folder / "one.safetensors"
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, file, metadata=metadata or None)
    return file


def fused(file: Path, capsys: pytest.CaptureFixture[str], scale: float = 1.0) -> tuple[Any, Change, str]:
    """A fresh pipeline with the LoRA, what changed of its UNet, and what was said."""
    pipe, before = tiny_pipeline(), tiny_pipeline().unet.state_dict()
    fuse(pipe, file, scale)
    after = pipe.unet.state_dict()
    assert after.keys() == before.keys()
    return pipe, {name: after[name] - before[name] for name in after}, capsys.readouterr().out


def old_name(name: str) -> str:
    """As diffusers' attention processors named their layers."""
    stem, _, word = name.rpartition(".to_")
    return f"{stem}.processor.to_{word.removesuffix('.0')}_lora" if stem else f"{name}.lora"


def kohya(stem: str, down: Tensor, up: Tensor) -> State:
    return {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(1.0)}


def peft(stem: str, down: Tensor, up: Tensor, adapter: str = "") -> State:
    return {f"{stem}.lora_A{adapter}.weight": down, f"{stem}.lora_B{adapter}.weight": up}


def original(name: str) -> str:
    """By the tests' own table of Stable Diffusion's original names; of `tiny_pipeline`'s UNet, whose second block up
    attends."""
    return unet_name(f"{name}.weight", 1, [False, True]).removesuffix(".weight")


UNET: dict[str, Callable[[str, Tensor, Tensor], State]] = {
    "kohya": lambda n, d, u: kohya("lora_unet_" + n.replace(".", "_"), d, u),
    "kohya, original names": lambda n, d, u: kohya("lora_unet_" + original(n).replace(".", "_"), d, u),
    "LyCORIS": lambda n, d, u: kohya("lycoris_" + n.replace(".", "_"), d, u),
    "ComfyUI": lambda n, d, u: kohya("diffusion_model." + original(n), d, u),
    "ComfyUI, peft": lambda n, d, u: peft("diffusion_model." + original(n), d, u),
    "diffusers": lambda n, d, u: peft(f"unet.{n}", d, u),
    "diffusers, to_out": lambda n, d, u: peft(f"unet.{n.replace('to_out.0', 'to_out')}", d, u),
    "diffusers, linear layer": lambda n, d, u: {
        f"unet.{n}.lora_linear_layer.{way}.weight": half for way, half in (("down", d), ("up", u))
    },
    "processors": lambda n, d, u: {
        f"unet.{old_name(n)}.{way}.weight": half for way, half in (("down", d), ("up", u))
    },
    "processors, no prefix": lambda n, d, u: {
        f"{old_name(n)}.{way}.weight": half for way, half in (("down", d), ("up", u))
    },
    "peft": lambda n, d, u: peft(f"base_model.model.{n}", d, u),
    "peft, unet": lambda n, d, u: peft(f"base_model.model.unet.{n}", d, u),
    "peft, no prefix": lambda n, d, u: peft(n, d, u),
    "peft, default": lambda n, d, u: peft(f"base_model.model.{n}", d, u, ".default"),
    "peft, default_0": lambda n, d, u: peft(f"unet.{n}", d, u, ".default_0"),
    "compiled": lambda n, d, u: peft(f"_orig_mod.{n}", d, u),
    "flat": lambda n, d, u: peft(f"unet.{n}", d.flatten(1), u.flatten(1)),
    "as convolutions": lambda n, d, u: peft(f"unet.{n}", *(x[..., None, None] if x.ndim == 2 else x for x in (d, u))),
}  # fmt: skip


@pytest.mark.parametrize("style", UNET)
def test_every_naming_of_the_unets_layers_takes(style: str, tmp_path: Path, capsys: Any) -> None:
    pairs = pairs_of(tiny_pipeline().unet)
    state: State = {}
    for name, (down, up) in pairs.items():
        state |= UNET[style](name, down, up)
    scale = 1 / RANK if any(name.endswith(".alpha") for name in state) else 1
    _, change, out = fused(written(tmp_path, state), capsys)
    for name, pair in pairs.items():
        torch.testing.assert_close(change[f"{name}.weight"], change_of(pair, scale), atol=1e-6, rtol=1e-5)
    assert sum(bool(part.any()) for part in change.values()) == len(pairs)
    assert f"{len(pairs)} of {len(pairs)} pairs of one.safetensors took in {len(pairs)} layers" in out


@pytest.mark.parametrize(
    "naming",
    [
        lambda n, d, u: kohya("lora_te_" + words_name(n).replace(".", "_"), d, u),
        lambda n, d, u: kohya("lora_te1_" + words_name(n).replace(".", "_"), d, u),
        lambda n, d, u: peft(f"text_encoder.{words_name(n)}", d, u),
        lambda n, d, u: peft(f"text_encoder.{n.removeprefix('text_model.')}", d, u),
        lambda n, d, u: peft(f"base_model.model.{words_name(n)}", d, u),
        lambda n, d, u: peft(f"text_encoders.clip_l.transformer.{words_name(n)}", d, u),
        lambda n, d, u: {
            f"text_encoder.{words_name(n).replace('_proj', '').replace('attn.', 'attn.to_')}_lora.{way}.weight": half
            for way, half in (("down", d), ("up", u))
        },
    ],
    ids=["kohya", "kohya, te1", "diffusers", "diffusers, newer", "peft", "ComfyUI", "processors"],
)  # fmt: skip
@pytest.mark.parametrize("beside", [True, False], ids=["with the UNet", "alone"])
def test_every_naming_of_the_text_encoders_layers_takes(naming: Any, beside: bool, tmp_path: Path, capsys: Any) -> None:
    """Even one projection of each layer alone, from which diffusers cannot tell what it is."""
    base = tiny_pipeline()
    pairs, state = pairs_of(base.text_encoder, ("q_proj", "out_proj")), {}
    for name, (down, up) in pairs.items():
        state |= naming(name, down, up)
    scale = 1 / RANK if any(name.endswith(".alpha") for name in state) else 1
    for name, (down, up) in pairs_of(base.unet, ("to_q",)).items() if beside else ():
        state |= peft(f"unet.{name}", down, up)
    pipe, change, out = fused(written(tmp_path, state), capsys)
    assert any(bool(part.any()) for part in change.values()) == beside
    assert f"{len(pairs)} of the text encoder" in out and ("of the UNet" in out) == beside
    for name, pair in pairs.items():
        base.text_encoder.get_submodule(name).weight.data += change_of(pair, scale)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        torch.testing.assert_close(pipe.text_encoder(ids)[0], base.text_encoder(ids)[0], atol=1e-5, rtol=1e-4)


def test_names_of_the_original_checkpoints_are_those_of_their_own_table() -> None:
    unet = tiny_pipeline().unet
    layers = [name for name, layer in unet.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert len(layers) > 50 and [ldm_name(name, unet) for name in layers] == [original(name) for name in layers]
    names = layers_of(tiny_pipeline())
    assert {place for part, place in names.values() if part == "unet"} == set(layers), "no name stands for two"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_files_in_any_precision(dtype: torch.dtype, tmp_path: Path, capsys: Any) -> None:
    pairs = {n: (d.to(dtype), u.to(dtype)) for n, (d, u) in pairs_of(tiny_pipeline().unet, ("to_q", "to_k")).items()}
    state: State = {}
    for name, (down, up) in pairs.items():
        state |= kohya("lora_unet_" + name.replace(".", "_"), down, up)
    _, change, _ = fused(written(tmp_path, state), capsys)
    for name, (down, up) in pairs.items():
        wanted = change_of((down.float(), up.float()), 1 / RANK)
        torch.testing.assert_close(change[f"{name}.weight"], wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"r": RANK, "lora_alpha": 6}, 3.0),
        ({"r": RANK, "lora_alpha": 6, "use_rslora": True}, 6 / RANK**0.5),
        ({"r": RANK, "lora_alpha": 6, "alpha_pattern": {"to_q": 1}}, 0.5),
        ({"r": 16, "lora_alpha": 6, "rank_pattern": {"to_q": RANK}}, 3.0),
        ({}, 1.0),
    ],
)
@pytest.mark.parametrize("where", ["adapter_config.json", "lora_adapter_metadata"])
def test_a_strength_that_stands_beside_the_weights_counts(
    config: dict[str, Any], scale: float, where: str, tmp_path: Path, capsys: Any
) -> None:
    """peft's in a file of its own, diffusers' in the metadata: without it the LoRA would be another, in silence."""
    pairs, state = pairs_of(tiny_pipeline().unet, ("to_q",)), {}
    for name, (down, up) in pairs.items():
        state |= peft(f"{'base_model.model' if where.endswith('json') else 'unet'}.{name}", down, up)
    if where.endswith("json"):
        save_file(state, tmp_path / PEFT_LORA)
        (tmp_path / where).write_text(json.dumps(config))
        file = lora_metadata(tmp_path)[0]
    else:
        file = written(tmp_path, state, **{where: json.dumps({f"unet.{key}": value for key, value in config.items()})})
    _, change, _ = fused(file, capsys)
    for name, pair in pairs.items():
        torch.testing.assert_close(change[f"{name}.weight"], change_of(pair, scale), atol=1e-6, rtol=1e-5)


def test_a_convolution_in_three_parts(tmp_path: Path, capsys: Any) -> None:
    """LoCon's: 1 x 1, then of the kernel's size, then 1 x 1; against those three convolutions themselves."""
    draw, name = torch.Generator().manual_seed(2), "down_blocks.0.resnets.0.conv1"
    layer = tiny_pipeline().unet.get_submodule(name)
    outputs, inputs = layer.weight.shape[:2]
    down, mid, up = (
        torch.randn(*shape, generator=draw) for shape in ((3, inputs, 1, 1), (3, 3, 3, 3), (outputs, 3, 1, 1))
    )
    stem = "lora_unet_" + name.replace(".", "_")
    state = kohya(stem, down, up) | {f"{stem}.lora_mid.weight": mid, f"{stem}.alpha": torch.tensor(3.0)}
    _, change, _ = fused(written(tmp_path, state), capsys)
    image = torch.randn(1, inputs, 6, 6, generator=draw)
    conv = nn.functional.conv2d
    wanted = conv(conv(conv(image, down), mid, padding=1), up)
    torch.testing.assert_close(conv(image, change[f"{name}.weight"], padding=1), wanted, atol=1e-3, rtol=1e-3)


def by_peft(config: Any, scale: float = 1.0) -> tuple[State, Change]:
    """What peft saves of an adapter of random weights on the tiny UNet, and what it merges into it."""
    pipe = tiny_pipeline()
    before = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    torch.manual_seed(3)
    inject_adapter_in_model(config, pipe.unet, "default")
    with torch.no_grad():
        for name, weight in pipe.unet.named_parameters():
            if ".default" in name and "magnitude" not in name:
                weight.normal_(0, 0.2)
            elif ".default" in name:
                weight.mul_(1.3)
    saved = get_peft_model_state_dict(pipe.unet, adapter_name="default")
    state = {f"base_model.model.{name}": weight.detach() for name, weight in saved.items()}
    for layer in pipe.unet.modules():
        if hasattr(layer, "merge"):
            layer.merge()
    after = {name.replace(".base_layer.", "."): weight for name, weight in pipe.unet.state_dict().items()}
    return state, {name: scale * (after[name] - before[name]) for name in before}


TARGETS = ["to_q", "to_v", "conv1", "conv_shortcut"]
OTHERS = {
    "DoRA": LoraConfig(r=2, lora_alpha=3, target_modules=TARGETS, use_dora=True),
    "LoHa": LoHaConfig(r=2, alpha=3, target_modules=TARGETS),
    "LoHa, Tucker": LoHaConfig(r=2, alpha=3, target_modules=TARGETS, use_effective_conv2d=True),
    "LoKr": LoKrConfig(r=2, alpha=3, target_modules=TARGETS),
    "LoKr, both of low rank": LoKrConfig(r=2, alpha=3, target_modules=TARGETS, decompose_both=True, decompose_factor=8),
    "LoKr, Tucker": LoKrConfig(r=2, alpha=3, target_modules=TARGETS, use_effective_conv2d=True, decompose_factor=2),
    "LoKr, whole": LoKrConfig(r=64, alpha=3, target_modules=TARGETS),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_do_what_peft_makes_of_them(kind: str, tmp_path: Path, capsys: Any) -> None:
    state, wanted = by_peft(OTHERS[kind])
    save_file({name: weight.contiguous() for name, weight in state.items()}, tmp_path / PEFT_LORA)
    OTHERS[kind].save_pretrained(str(tmp_path))
    _, change, out = fused(tmp_path / PEFT_LORA, capsys)
    assert sum(bool(part.any()) for part in wanted.values()) > 10
    for name, part in wanted.items():
        torch.testing.assert_close(change[name], part, atol=2e-6, rtol=1e-4)
    count = sum(bool(part.any()) for part in wanted.values())
    assert f"{count} of {count} pairs" in out


@pytest.mark.parametrize("axis", [0, 1], ids=["of outputs", "of inputs"])
def test_a_dora_as_kohya_and_lycoris_write_it(axis: int, tmp_path: Path, capsys: Any) -> None:
    """W' = m (W + B A) / |W + B A|: by hand; between nothing and all of it, the strength goes straight."""
    unet = tiny_pipeline().unet
    pairs, state, wanted = pairs_of(unet, ("to_k", "conv2")), {}, {}
    for name, pair in pairs.items():
        weight = unet.get_submodule(name).weight.detach()
        others = [dim for dim in range(weight.ndim) if dim != axis]
        size = 1.5 * torch.linalg.vector_norm(weight, dim=others, keepdim=True)
        stem = "lora_unet_" + name.replace(".", "_")
        state |= kohya(stem, *pair) | {f"{stem}.dora_scale": size}
        moved = weight + change_of(pair, 1 / RANK)
        wanted[f"{name}.weight"] = size * moved / torch.linalg.vector_norm(moved, dim=others, keepdim=True) - weight
    file = written(tmp_path, state)
    for scale in (1.0, 0.5):
        _, change, _ = fused(file, capsys, scale)
        for name, part in wanted.items():
            torch.testing.assert_close(change[name], scale * part, atol=1e-6, rtol=1e-4)
    with raises("lora", "DoRA", -1.0):
        fused(file, capsys, -1.0)


def test_a_strength_that_leaves_nothing_or_no_number_is_said(tmp_path: Path, capsys: Any) -> None:
    file = written(tmp_path, by_peft(OTHERS["LoHa"])[0])
    with pytest.warns(UserWarning, match=r"changes nothing: lora_scale is 0"):
        fused(file, capsys, 0.0)
    with raises("lora", "NaN or infinite", "lora_scale nearer to 1 than 1e+308"):
        fused(file, capsys, 1e308)


def test_what_is_taken_out_again_leaves_the_base(tmp_path: Path, capsys: Any) -> None:
    state = by_peft(OTHERS["LoHa"])[0]
    file = written(tmp_path, state)
    pipe = tiny_pipeline()
    for scale in (1.0, -1.0):
        fuse(pipe, file, scale)
    for name, weight in tiny_pipeline().unet.state_dict().items():
        torch.testing.assert_close(pipe.unet.state_dict()[name], weight, atol=1e-5, rtol=1e-5)


NOWHERE = "lora_unet_down_blocks_9_attentions_0_transformer_blocks_0_attn1_to_q"
PAIR = torch.ones(2, 8), torch.ones(8, 2)


@pytest.mark.parametrize(
    ("more", "less", "values"),
    [
        (kohya(NOWHERE, *PAIR), "", (NOWHERE, "no such layer")),
        (peft("unet.down_blocks.9.attentions.0.to_q", *PAIR), "", ("down_blocks.9", "no such layer")),
        ({}, ".lora_up.weight", ("lora_up", "attn1_to_q")),
        ({"lora_unet_down_blocks_0_resnets_0_norm1.w_norm": torch.ones(16)}, "", ("w_norm", "not read")),
        ({"unet.conv_in.lora_B.bias": torch.ones(16)}, "", ("lora_B.bias", "not read")),
        ({"lora_unet_conv_in.diff": torch.ones(1)}, "", ("conv_in.diff", "LyCORIS full")),
        ({"lora_unet_conv_in.hada_w1_a": torch.ones(1)}, "", ("conv_in", "hada_w1_b")),
        ({"lora_unet_conv_in.alpha": torch.ones(1)}, "", ("conv_in", "lora_down")),
    ],
)
def test_a_file_that_takes_in_part_says_what_did_not(
    more: State, less: str, values: tuple[str, ...], tmp_path: Path, capsys: Any
) -> None:
    pairs, state = pairs_of(tiny_pipeline().unet, ("attn1.to_q",)), {}
    for name, pair in pairs.items():
        state |= kohya("lora_unet_" + name.replace(".", "_"), *pair)
    if less:
        del state[next(name for name in state if name.endswith(less))]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, change, out = fused(written(tmp_path, state | more), capsys)
    (words,) = (str(one.message) for one in caught if "took" in str(one.message))
    assert all(value in words for value in values), words
    changed = sum(bool(part.any()) for part in change.values())
    assert changed == len(pairs) - bool(less) and f"{changed} of " in out


def query(of: Callable[[int, int], State]) -> State:
    """A file of one layer, made of its name and its width."""
    name, layer = next((n, m) for n, m in tiny_pipeline().unet.named_modules() if n.endswith("attn1.to_q"))
    stem = "lora_unet_" + name.replace(".", "_")
    return {f"{stem}.{part}": tensor for part, tensor in of(*layer.weight.shape).items()}


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


def halves(down: Tensor, up: Tensor, **more: Tensor) -> State:
    return {"lora_down.weight": down, "lora_up.weight": up, **more}


CONV = ones(2, 4, 3, 3), ones(16, 2, 1, 1)
"""A pair for conv_in."""
APART, UNFIT = ("do not go together",), ("does not fit",)

NO_LORA: dict[str, tuple[State, tuple[object, ...]]] = {
    "empty": ({}, ("holds no LoRA", "nothing")),
    "no LoRA": ({"a.weight": ones(2, 2)}, ("holds no LoRA", "a.weight")),
    "embedding": ({"emb_params": ones(2, 16)}, ("textual inversion",)),
    "whole model": ({"model.diffusion_model.out.0.weight": ones(2)}, ("a whole model",)),
    "OFT": (query(lambda o, i: {"oft_blocks": ones(2, 4, 4)}), ("OFT",)),
    "(IA)3": (query(lambda o, i: {"on_input": ones(1), "weight": ones(o)}), ("(IA)3",)),
    "cloneofsimo's": ({"unet:0:up": ones(8, 2), "unet:0:down": ones(2, 8)}, ("unet:0:down",)),
    "nothing takes": (kohya(NOWHERE, *PAIR), ("none of the 1 pairs", NOWHERE)),
    "of a ControlNet": (peft("controlnet.down_blocks.0.attentions.0.proj_in", *PAIR), ("none of the 1", "controlnet")),
    "SDXL by kohya": (kohya("lora_te2_text_model_encoder_layers_0_mlp_fc1", *PAIR), ("Stable Diffusion XL",)),
    "SDXL by diffusers": (peft("text_encoder_2.text_model.encoder.layers.0.mlp.fc1", *PAIR), ("Stable Diffusion XL",)),
    "Flux": (peft("transformer.single_transformer_blocks.0.attn.to_q", *PAIR), ("Flux",)),
    "Flux, kohya": (kohya("lora_unet_double_blocks_0_img_attn_proj", *PAIR), ("Flux",)),
    "wider": (query(lambda o, i: halves(ones(2, 1024), ones(o, 2))), ("1024 against",)),
    "wider output": (query(lambda o, i: halves(ones(2, i), ones(640, 2))), ("640 against",)),
    "transposed": (query(lambda o, i: halves(ones(i, 2), ones(2, o))), ("2 against",)),
    "ranks unlike": (query(lambda o, i: halves(ones(2, i), ones(o, 3))), APART),
    "rank 0": (query(lambda o, i: halves(ones(0, i), ones(o, 0))), APART),
    "single numbers": (query(lambda o, i: halves(ones(), ones())), APART),
    "LoHa of another layer": (query(lambda o, i: {f"hada_w{n}_{x}": ones(3, 3) for n in "12" for x in "ab"}), UNFIT),
    "LoKr of another layer": (query(lambda o, i: {"lokr_w1": ones(3, 3), "lokr_w2": ones(3, 3)}), UNFIT),
    "half a LoKr": (query(lambda o, i: {"lokr_w1": ones(3, 3)}), ("does not fit", "lokr_w2")),
    "DoRA of another layer": (query(lambda o, i: halves(ones(2, i), ones(o, 2), dora_scale=ones(3, 1))), UNFIT),
    "two alphas": (query(lambda o, i: halves(ones(2, i), ones(o, 2), alpha=ones(2))), ("alpha",)),
    "whole numbers": (query(lambda o, i: halves(ones(2, i).int(), ones(o, 2).int())), ("int32",)),
    "not a number": (query(lambda o, i: halves(ones(2, i), ones(o, 2) * float("nan"))), ("NaN", "lora_up")),
    "infinite": (query(lambda o, i: halves(ones(2, i) / 0, ones(o, 2))), ("infinite", "lora_down")),
    "overflow": (query(lambda o, i: halves(ones(2, i) * 1e30, ones(o, 2) * 1e30)), ("infinite", "to_q")),
    "two adapters": (peft("conv_in", *CONV, ".a") | peft("conv_in", *CONV, ".b"), ("2 LoRAs", "a, b")),
    "one layer twice": (
        peft("unet.conv_in", *CONV) | kohya("lora_unet_conv_in", *CONV),
        ("twice", "unet.conv_in", "lora_unet_conv_in"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_LORA)
def test_what_cannot_take_is_refused_by_name(case: str, tmp_path: Path) -> None:
    state, values = NO_LORA[case]
    file = written(tmp_path, state)
    with raises("lora", file, *values):
        fuse(tiny_pipeline(family="sd" if "Stable Diffusion XL" in values else None), file)


@pytest.mark.parametrize(
    ("metadata", "values"),
    [
        ({"ss_base_model_version": "sdxl_base_v1-0"}, ("Stable Diffusion XL",)),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, ("Stable Diffusion XL",)),
        ({"modelspec.architecture": "flux-1-dev/lora"}, ("Flux",)),
        ({"lora_adapter_metadata": "{"}, ("lora_adapter_metadata", "'{'")),
        ({"lora_adapter_metadata": "[1]"}, ("lora_adapter_metadata", "[1]")),
        ({"lora_adapter_metadata": '{"unet.lora_alpha": "many"}'}, ("lora_alpha", "'many'")),
        ({"lora_adapter_metadata": '{"unet.lora_alpha": NaN}'}, ("lora_alpha", "nan")),
        ({"lora_adapter_metadata": '{"unet.alpha_pattern": [1]}'}, ("alpha_pattern", "[1]")),
    ],
)
def test_metadata_that_says_another_model_or_nothing_that_can_be_read(
    metadata: dict[str, str], values: tuple[str, ...], tmp_path: Path
) -> None:
    state = query(lambda o, i: halves(ones(2, i), ones(o, 2)))
    file = written(tmp_path, state, **metadata)
    with raises("lora", file, *values):
        fuse(tiny_pipeline(family="sd" if "Stable Diffusion XL" in values else None), file)


def test_a_lora_of_zeros_says_that_it_changes_nothing(tmp_path: Path, capsys: Any) -> None:
    for state in (
        query(lambda o, i: halves(ones(2, i), ones(o, 2), alpha=torch.tensor(0.0))),
        query(lambda o, i: halves(ones(2, i), 0 * ones(o, 2))),
    ):
        with pytest.warns(UserWarning, match="changes nothing"):
            fused(written(tmp_path, state), capsys)


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b'{"error": "Repository not found"}', "Repository not found"),
        (b"Entry not found", "Entry not found"),
        (b"", "empty"),
        (b"PK\x03\x04 archive", "pickled"),
        (b"\x80\x02}q\x00.", "pickled"),
        (b"\x01\x02", "damaged"),
        (b"\x00" * 100, "damaged"),
        (bytes(range(256)), "damaged"),
    ],
)
@pytest.mark.parametrize("verb", ["load", "merge"])
def test_a_file_that_only_has_the_name_of_one(content: bytes, value: str, verb: str, tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    file.write_bytes(content)
    with raises("lora", file, value):
        pipeline.load("tiny", lora=file) if verb == "load" else api.merge(file, tmp_path / "out", model="tiny")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cut", [1, 100, 1000])
def test_a_file_cut_short(cut: int, tmp_path: Path) -> None:
    file = written(tmp_path, kohya("lora_unet_conv_in", ones(8, 4, 3, 3), ones(16, 8, 1, 1)))
    file.write_bytes(file.read_bytes()[:-cut])
    with raises("lora", file, "cut short"):
        pipeline.load("tiny", lora=file)


@pytest.mark.parametrize(
    "text",
    ["{", "[1]", "5", '{"base": 5}', '{"base": "tiny", "trained_start": 5}', "[" * 100_000,
     '{"trained_start": {"gain": "window", "start": "mean", "start_timestep": 950, "k": "x"}}'],
)  # fmt: skip
def test_onbrands_own_metadata_damaged(text: str, tmp_path: Path) -> None:
    file = written(tmp_path, kohya("lora_unet_conv_in", ones(8, 4, 3, 3), ones(16, 8, 1, 1)), onbrand=text)
    with raises("checkpoint", file):
        pipeline.load("tiny", lora=file)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), float("-inf")])
def test_a_strength_that_is_no_number(scale: float, tmp_path: Path) -> None:
    file = written(tmp_path, kohya("lora_unet_conv_in", ones(8, 4, 3, 3), ones(16, 8, 1, 1)))
    with raises("model", "lora_scale", scale):
        pipeline.load("tiny", lora=file, lora_scale=scale)


def test_a_folder_of_peft_is_a_lora_too(tmp_path: Path) -> None:
    save_file(peft("base_model.model.conv_in", *CONV), tmp_path / PEFT_LORA)
    assert lora_metadata(tmp_path) == (tmp_path / PEFT_LORA, {})
    with raises("checkpoint", LORA, PEFT_LORA, tmp_path / "nothing"):
        lora_metadata(tmp_path / "nothing")


def test_merge_says_what_took_and_leaves_a_whole_folder_or_none(
    tmp_path: Path, world: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in its midst, the same command goes on; an output that is a file is no folder."""
    file = written(tmp_path, kohya("lora_unet_conv_in", *CONV))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            "diffusers.AutoencoderKL.save_pretrained", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        api.merge(file, tmp_path / "out", model=world / "model")
    assert not (tmp_path / "out").exists()
    api.merge(file, tmp_path / "out", model=world / "model")
    assert "1 of 1 pairs of one.safetensors took in 1 layers (1 of the UNet)" in capsys.readouterr().out
    assert pipeline.load(tmp_path / "out").unet.conv_in.weight.isfinite().all()
    with raises("folder", file, "a file"):
        api.merge(file, file, model=world / "model")
