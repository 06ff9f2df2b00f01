"""The rules of the decision process: the arguments that its dynamics read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rules:
    """The part of the configuration that the dynamics read. Fields as in :class:`EnvConfig`."""

    glimpses: int = 2
    components: int = 5
    max_objects: int = 4
    coordinates: str = "paper"
    beta: str = "bounded"
    mask_scale: str = "paper"
    update: str = "paper"
    renormalise_saliency: bool = False
    protocol: str = "free"

    @property
    def option_length(self) -> int:
        """Decisions in a meta-step: one attention, k locations, one label."""
        return self.glimpses + 2

    @property
    def max_meta_steps(self) -> int:
        """Most meta-steps in an episode: one per object and one to stop."""
        return self.max_objects + 1
