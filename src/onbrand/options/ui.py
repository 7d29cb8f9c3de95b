"""What `ui` can be told. No torch."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated

from onbrand.options._base import File, First, Range, Word, check_options

Port = Annotated[int, Range(1, 65535)]


@dataclass(frozen=True)
class UiOptions:
    """What `ui` can be told.

    Attributes:
        folder: what the app may read and write: folders of photos lie in it, and results go into it
        models: one more folder that it may read models and LoRAs from
        host: address to listen on. 0.0.0.0 lets every machine of the network in, and nobody is asked for a password
        port: of that address
    """

    folder: First
    _: KW_ONLY
    models: File | None = None
    host: Word = "127.0.0.1"
    port: Port = 7860

    def __post_init__(self) -> None:
        check_options(self)
