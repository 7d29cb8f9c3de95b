"""The codec against diffusers' own pipelines, and what it says when it cannot."""

from __future__ import annotations

import copy
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from onbrand.models import pipeline
from onbrand.models.families import encoders_of
from worlds import raises, tiny_pipeline


class TestImages:
    def test_encode_is_the_vaes_posterior(self, pipe: Any) -> None:
        images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
        mean, logvar = pipeline.encode(pipe, images)
        with torch.no_grad():
            posterior = pipe.vae.encode(images).latent_dist
        assert torch.equal(mean, posterior.mode()) and torch.equal(logvar, posterior.logvar)
        x0 = pipeline.to_x0(pipe, mean, logvar, torch.Generator().manual_seed(1))
        theirs = DiagonalGaussianDistribution(torch.cat([mean, logvar], 1)).sample(torch.Generator().manual_seed(1))
        torch.testing.assert_close(x0, theirs * pipe.vae.config.scaling_factor)
        assert torch.equal(pipeline.to_x0(pipe, mean), mean * pipe.vae.config.scaling_factor)

    def test_channels_last_changes_nothing_but_the_layout_and_is_taken_back(self, tmp_path: Path) -> None:
        pipe, images = tiny_pipeline(seed=4), torch.rand(2, 3, 64, 64) * 2 - 1
        plain, name, weight = (
            pipeline.encode(pipe, images)[0],
            pipeline.fingerprint(pipe.vae),
            pipe.vae.encoder.conv_in,
        )
        with pytest.raises(KeyError), pipeline.channels_last(pipe.vae):
            assert weight.weight.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(pipeline.encode(pipe, images)[0], plain, atol=1e-5, rtol=1e-5)
            assert pipeline.fingerprint(pipe.vae) == name
            raise KeyError("also after an error")
        assert weight.weight.is_contiguous(), "as safetensors takes them"
        pipeline.save(pipe, tmp_path)
        assert pipeline.fingerprint(pipeline.load(tmp_path).vae) == name

    def test_decode_is_the_pipelines(self, pipe: Any) -> None:
        latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
        theirs = pipe(["a"] * 2, latents=latents, num_inference_steps=2, output_type="pt").images
        x0 = pipe(["a"] * 2, latents=latents, num_inference_steps=2, output_type="latent").images
        torch.testing.assert_close(pipeline.decode(pipe, x0) / 2 + 0.5, theirs)

    def test_shift_factor(self, pipe: Any) -> None:
        """As in diffusers' pipelines whose VAE has one: (latents - shift) * scale, and back."""
        other = copy.copy(pipe)
        other.vae = copy.deepcopy(pipe.vae)
        other.vae.register_to_config(shift_factor=0.1)
        mean = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
        x0 = pipeline.to_x0(other, mean)
        scale = pipe.vae.config.scaling_factor
        torch.testing.assert_close(x0, (mean - 0.1) * scale)
        torch.testing.assert_close(pipeline.decode(other, x0), pipeline.decode(pipe, mean * scale))

    def test_other_images_are_refused(self, pipe: Any) -> None:
        with raises("model", "[-1, 1]", "0 to 255"):
            pipeline.encode(pipe, torch.tensor([0.0, 255.0]).repeat(1, 3, 16, 8))
        with raises("model", "(B, 3, H, W)", "by 2", (1, 3, 15, 16)):
            pipeline.encode(pipe, torch.zeros(1, 3, 15, 16))
        with raises("model", "(B, 3, H, W)", (3, 16, 16)):
            pipeline.encode(pipe, torch.zeros(3, 16, 16))

    def test_overflow_is_said(self, pipe: Any) -> None:
        hot = copy.copy(pipe)
        hot.vae = copy.deepcopy(pipe.vae)
        with torch.no_grad():
            hot.vae.encoder.conv_in.weight.fill_(float("nan"))
        with raises("model", "VAE", "float32", "another model"):
            pipeline.encode(hot, torch.zeros(1, 3, 16, 16))


class TestText:
    def test_embed_is_the_pipelines(self, pipe: Any) -> None:
        prompts = ["a red ankle boot", "b"]
        hidden, pooled = pipeline.embed(pipe, prompts)
        with torch.no_grad():
            theirs = pipe.encode_prompt(
                prompts, device="cpu", do_classifier_free_guidance=False, num_images_per_prompt=1
            )
        torch.testing.assert_close(hidden, theirs[0])
        ends = [len(ids) - 1 for ids in pipe.tokenizer(prompts).input_ids]
        last = torch.stack([hidden[i, end] for i, end in enumerate(ends)])
        torch.testing.assert_close(pooled, theirs[2] if len(encoders_of(pipe)) > 1 else last)

    def test_long_prompts_are_warned_of_and_cut(self, pipe: Any) -> None:
        fits, long = "a" * 30, "a" * 30 + "bcd"
        with pytest.warns(UserWarning, match="1 of 2 texts are longer than the tokenizer's 32 tokens.*loses 'bcd"):
            assert pipeline.warn_long(pipe, [fits, long]) == [1]
        assert pipeline.embed(pipe, [fits, long])[0].shape == (2, 32, 16)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert pipeline.warn_long(pipe, [fits]) == [] and pipeline.warn_long(pipe, []) == []

    def test_of_a_book_its_beginning_is_read_and_quoted(self, pipe: Any) -> None:
        book = "a word " * 10**6
        with pytest.warns(UserWarning, match="1 of 1 texts are longer") as caught:
            before = time.perf_counter()
            assert pipeline.warn_long(pipe, [book]) == [0]
        assert len(str(caught[0].message)) < 300 and time.perf_counter() - before < 5
