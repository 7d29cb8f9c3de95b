"""What the verbs can be told that put their result on the Hub: names as in diffusers' scripts. No torch."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from onbrand.options._base import First, Need, Word, check_options


@dataclass(frozen=True, kw_only=True)
class HubSettings:
    """Of a verb whose result may be put on the Hub.

    Attributes:
        push_to_hub: `push` the result in the end; whether the token (`hf auth login`, HF_TOKEN) may is found first
        hub_model_id: the repository, owner/name; a new one is made
        private: make it a private one
    """

    push_to_hub: bool = False
    hub_model_id: Word | None = None
    private: bool = False


HUB_NEEDS = (
    Need(("push_to_hub",), "hub_model_id", "hub_model_id", lambda name: name is not None),
    Need(("hub_model_id", "private"), "push_to_hub", "push_to_hub", bool),
)
"""What a setting needs to have an effect."""


@dataclass(frozen=True)
class PushOptions:
    """What `push` can be told.

    Attributes:
        source: a brand's folder, a run, or a model that `merge` or `export` wrote; images/ in it is shown on the card
        hub_model_id: the repository, owner/name; a new one is made
        private: make it a private one
    """

    source: First
    _: KW_ONLY
    hub_model_id: Word
    private: bool = False

    def __post_init__(self) -> None:
        check_options(self)
