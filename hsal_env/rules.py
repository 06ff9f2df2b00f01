"""The rules of the decision process: the arguments that its dynamics read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hsal_env.fields import check_fields

Coordinates = Literal["paper", "centred"]
Beta = Literal["bounded", "exp"]
MaskScale = Literal["paper", "peak"]
UpdateRule = Literal["paper", "peak", "none"]
RewardProtocol = Literal["free", "teacher"]


@dataclass(frozen=True)
class Rules:
    """The part of the configuration that the dynamics read. Fields as in :class:`EnvConfig`."""

    glimpses: int = 2
    components: int = 5
    max_objects: int = 4
    coordinates: Coordinates = "paper"
    beta: Beta = "bounded"
    mask_scale: MaskScale = "paper"
    update: UpdateRule = "paper"
    renormalise_saliency: bool = False
    protocol: RewardProtocol = "free"

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def option_length(self) -> int:
        """Decisions in a meta-step: one attention, k locations, one label."""
        return self.glimpses + 2

    @property
    def max_meta_steps(self) -> int:
        """Most meta-steps in an episode: one per object and one to stop."""
        return self.max_objects + 1
