"""The rules of the decision process: the arguments that its dynamics read. No torch here, so that configurations load quickly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hsal_env.errors import ConfigError
from hsal_env.fields import check_at_most, check_fields

MOST_COMPONENTS, MOST_GLIMPSES, MOST_OBJECTS = 65_536, 10_000, 10_000

Coordinates = Literal["paper", "centred"]
Beta = Literal["bounded", "exp"]
WidthUnit = Literal["map", "cell"]
MaskScale = Literal["paper", "peak"]
UpdateRule = Literal["paper", "peak", "none"]
RewardProtocol = Literal["free", "teacher"]


@dataclass(frozen=True)
class MetaStepRules:
    """The rules of a meta-step. Defaults are the paper's. S4, L4 and the like number our readings of it (docs/decisions.md).

    Attributes:
        glimpses: k, the number of glimpse locations in a meta-step.
        components: K, the number of Gaussians in the attention mask.
        coordinates: where the centres of the Gaussians may lie: ``"paper"``, as printed, or ``"centred"``, symmetric about the
            map (S4).
        beta: range of the inverse width of the Gaussians: ``"bounded"`` as in Appendix A, or ``"exp"``, without bounds (S5).
        width_unit: what widths of masks are counted in (S5): ``"map"``, in sevenths of the map, so that a mask covers the same
            share of any map, or ``"cell"``, in cells. On maps of 7x7 cells, the paper's, they are the same. Objects of a cell or
            two on a finer map want ``"cell"``.
        mask_scale: ``"paper"``: the mask as printed. ``"peak"``: divided by its maximum.
        update: what a label subtracts from the saliency S (S8): ``"paper"`` the mask M, ``"peak"`` M / max M, ``"none"``
            nothing.
        renormalise_saliency: whether S is normalised again after every update. The paper does not (S2).
        protocol: ``"free"``: saying stop ends the episode and is rewarded. ``"teacher"``: the paper's roll-out in training,
            which ends after the last object (L4, L5).

    Raises:
        ConfigError: a value outside its range.
    """

    glimpses: int = 2
    components: int = 5
    coordinates: Coordinates = "paper"
    beta: Beta = "bounded"
    width_unit: WidthUnit = "map"
    mask_scale: MaskScale = "paper"
    update: UpdateRule = "paper"
    renormalise_saliency: bool = False
    protocol: RewardProtocol = "free"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.glimpses < 0 or self.components < 1:
            raise ConfigError(
                f"Expected glimpses of at least 0 and components of at least 1; got {self.glimpses} and {self.components}."
            )
        check_at_most(self, glimpses=MOST_GLIMPSES, components=MOST_COMPONENTS)


@dataclass(frozen=True)
class Rules(MetaStepRules):
    """The rules of an episode: all that the dynamics read.

    Attributes:
        max_objects: most objects in an image. An episode has at most one meta-step more.
    """

    max_objects: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_most(self, max_objects=MOST_OBJECTS)

    @property
    def option_length(self) -> int:
        """Decisions in a meta-step: one attention, k locations, one label."""
        return self.glimpses + 2

    @property
    def max_meta_steps(self) -> int:
        """Most meta-steps in an episode: one per object and one to stop."""
        return self.max_objects + 1
