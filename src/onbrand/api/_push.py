"""push: a brand's prior, a run or a model, put on the Hub."""

from __future__ import annotations

from pathlib import Path

from onbrand.hub import open_repository
from onbrand.options._verb import verb
from onbrand.options.hub import PushOptions


@verb(PushOptions)
def push(options: PushOptions) -> str:
    """Put a brand's prior, a run's LoRA or model on the Hub, with a card that shows what it does.

    Weights, prior, class means and results are uploaded, and listed before; no photos, latents or states, and no name
    of a file or folder of this machine.

    Returns:
        The address of the repository.

    Raises:
        OnbrandError: no token, no right to write there, nothing to upload, or the Hub does not answer.
    """
    name = open_repository(options.hub_model_id, options.private)
    from onbrand.exporting.repository import upload  # which takes seconds to import

    return upload(Path(options.source), name)
