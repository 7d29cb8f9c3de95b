"""What `diagnose` can be told. No torch."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from onbrand.options._base import Count, File, First, NotNegative, Spacing, Word, check_options


@dataclass(frozen=True)
class DiagnoseOptions:
    """What `diagnose` can be told.

    Attributes:
        brand: folder that `fit` wrote
        model: model or run that will make the images. Default: the one that the brand was fitted with
        scheduler: diffusers scheduler class, such as DPMSolverMultistepScheduler. Default: the model's own
        num_inference_steps: of the sampler
        timestep_spacing: how its timesteps are spaced. Default: the scheduler's own
        rescale_betas_zero_snr: ask it of the model's noise schedule rescaled to zero terminal SNR (a model must be
            trained for it)
        trained_noise_offset: of the offset noise that the model was trained with, 0 for none. Default: what is known of
            the model, .0357 of Stable Diffusion XL base, else 0
        model_config: as for `fit`
    """

    brand: First
    _: KW_ONLY
    model: File | None = None
    scheduler: Word | None = None
    num_inference_steps: Count = 20
    timestep_spacing: Spacing | None = None
    rescale_betas_zero_snr: bool = False
    trained_noise_offset: NotNegative | None = None
    model_config: File | None = None

    def __post_init__(self) -> None:
        check_options(self)
