"""Run by itself: the exported Forge script between the modules that it imports, as Forge has them; prints first states.

Arguments: the exported folder, where the tensors go.
"""

from __future__ import annotations

import importlib.util
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

VISIBLE = object()


def main(out: str, tensors: str) -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abars = torch.cumprod(1 - betas, 0)
    sigmas, opts = ((1 - abars) / abars).sqrt().float(), SimpleNamespace(sgm_noise_multiplier=False)
    gradio: Any = ModuleType("gradio")
    gradio.Accordion = lambda *_, **__: nullcontext()
    gradio.Dropdown = lambda choices, **_: choices
    modules: Any = ModuleType("modules")
    modules.scripts = SimpleNamespace(Script=object, AlwaysVisible=VISIBLE)
    modules.shared = SimpleNamespace(opts=opts)
    sys.modules |= {"gradio": gradio, "modules": modules}
    (file,) = (Path(out) / "extensions" / "onbrand" / "scripts").iterdir()
    spec = importlib.util.spec_from_file_location("onbrand_start", file)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    one = script.Start()
    assert one.title() == "onbrand" and one.show(True) is False and one.show(False) is VISIBLE
    none, choice = "none", "acme: product photo"
    assert set(one.ui(False)[0]) == {none, choice, "acme: person: a/b"}

    def scaling(sigma: Any, noise: Any, latent: Any, max_denoise: bool = False) -> Any:
        return latent + noise * (torch.sqrt(1 + sigma**2) if max_denoise else sigma)

    predictor = SimpleNamespace(noise_scaling=scaling)
    k_diffusion = SimpleNamespace(
        get_sigmas=lambda p, steps: torch.tensor([float(sigmas[951]), 0.0]),
        model_wrap=SimpleNamespace(predictor=predictor),
    )
    ddim = SimpleNamespace(get_timesteps=lambda p, steps: torch.arange(0, 1000, 1000 // steps) + 1)
    shape = next(iter(script.MEANS.values())).shape
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    states = {"noise": noise}
    for name, sampler, at_most in (("k", k_diffusion, False), ("k, sgm", k_diffusion, True), ("ddim", ddim, False)):
        opts.sgm_noise_multiplier = at_most
        p = SimpleNamespace(
            sampler=sampler, steps=20, is_hr_pass=False, modified_noise=None, extra_generation_params={},
            sd_model=SimpleNamespace(alphas_cumprod=abars),
        )  # fmt: skip
        one.process_before_every_sampling(p, none, x=noise, noise=noise, c=None, uc=None)
        assert p.modified_noise is None
        one.process_before_every_sampling(p, choice, x=noise, noise=noise, c=None, uc=None)
        state = p.modified_noise
        if sampler is k_diffusion:  # as Forge's KDiffusionSampler.sample begins
            state = scaling(sigmas[951], state, torch.zeros_like(state), at_most) / (1 + sigmas[951] ** 2).sqrt()
        states[name] = state
        again = SimpleNamespace(is_hr_pass=True, modified_noise=None)
        one.process_before_every_sampling(again, choice, noise=noise)
        assert again.modified_noise is None
    try:
        one.process_before_every_sampling(p, choice, noise=noise[..., :4])
    except ValueError as error:
        print(error)
    save_file({key: value.contiguous() for key, value in states.items()}, tensors)


if __name__ == "__main__":
    main(*sys.argv[1:])
