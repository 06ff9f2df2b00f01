"""What decides the task: one frozen dataclass, whose fields are the keyword arguments of ``gymnasium.make``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from hsal_env.data.canvases import CanvasConfig
from hsal_env.data.glyphs import GLYPH_POLICIES, NUM_CLASSES, SOURCES, SPLITS
from hsal_env.errors import ConfigError

DEFAULT_NUM_EXAMPLES = {"train": 60_000, "val": 5_000, "test": 10_000}
"""Canvases in a split: the paper's 60,000 and 10,000, and a validation set from the training side."""

_CHOICES = {
    "source": SOURCES,
    "split": SPLITS,
    "glyphs": GLYPH_POLICIES,
    "features": ("lazy", "store"),
    "coordinates": ("paper", "centred"),
    "beta": ("bounded", "exp"),
    "mask_scale": ("paper", "peak"),
    "update": ("paper", "peak", "none"),
    "protocol": ("free", "teacher"),
    "forbidden": ("penalise", "raise"),
    "action_mode": ("native", "flat", "packed", "option", "controller", "macro"),
}


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


@dataclass(frozen=True)
class EnvConfig:
    """Every keyword argument of the environments. Defaults are the paper's; D, S and L name our readings.

    Attributes:
        task: ``"single"``, ``"set"`` (no label twice) or ``"multiset"`` (labels independent) (D3).
        source: ``"mnist"``, ``"digits"`` (scikit-learn's, no network) or ``"auto"``: MNIST where it can be had.
        split: ``"train"``, ``"val"`` or ``"test"``.
        glyphs: ``"disjoint"``: no digit in two splits; ``"paper"``: all splits draw from the training digits (D1).
        seed: picks the canvases; with ``split`` and an index it fixes a canvas.
        num_examples: canvases in the split; None: 60,000, 5,000 or 10,000.
        data_root: folder of MNIST; None: ``$HSAL_DATA``, else the cache folder.
        min_objects: fewest objects in an image.
        max_objects: most objects in an image; None: 1 for ``"single"``, else 4.
        min_size_px: smallest digit.
        max_size_px: largest digit.
        canvas_px: side of the image.
        clutter: number of clutter crops.
        clutter_px: their side.
        activation: activation model: a name, or ``"package.module:Name"``.
        saliency: saliency model: a name, or ``"package.module:Name"``.
        features: ``"lazy"``: V is computed at each reset; ``"store"``: once for the whole split, kept in the cache
            folder. With ``"lazy"`` the image is read alone, so results do not depend on the number of lanes.
        glimpses: k, locations per meta-step.
        components: K, Gaussians in the attention mask.
        coordinates: ``"paper"`` or ``"centred"`` (S4).
        beta: ``"bounded"`` or ``"exp"`` (S5).
        mask_scale: ``"paper"``, or ``"peak"``: M divided by its maximum.
        update: ``"paper"``, ``"peak"`` (subtract M / max M), or ``"none"`` (S8).
        renormalise_saliency: normalise S again after every update (S2 says no).
        protocol: ``"free"``: stop ends the episode and is rewarded; ``"teacher"``: the training roll-out (L4, L5).
        action_mode: the view: ``"native"``, the two-level Dict; ``"flat"``, one Discrete with a mask; ``"packed"``, the
            two-level one in a Box; ``"option"``, ``"controller"`` and ``"macro"``: see :mod:`hsal_env.views`.
        forbidden: what an action that its phase does not allow does in the flat and the controller view: ``"penalise"``,
            earn -1 and change nothing; ``"raise"``, an error, to find an agent that ignores its mask.
        include_image: whether the observation holds the image; None: in the native mode only.
        include_volume: whether the observation holds the activation volume; None: in the packed and the macro view only.
    """

    task: str = "multiset"
    source: str = "auto"
    split: str = "train"
    glyphs: str = "disjoint"
    seed: int = 0
    num_examples: int | None = None
    data_root: str | None = None
    min_objects: int = 1
    max_objects: int | None = None
    min_size_px: int = 20
    max_size_px: int = 50
    canvas_px: int = 100
    clutter: int = 8
    clutter_px: int = 5
    activation: str = "compact"
    saliency: str = "sum-of-squares"
    features: str = "lazy"
    glimpses: int = 2
    components: int = 5
    coordinates: str = "paper"
    beta: str = "bounded"
    mask_scale: str = "paper"
    update: str = "paper"
    renormalise_saliency: bool = False
    protocol: str = "free"
    action_mode: str = "native"
    forbidden: str = "penalise"
    include_image: bool | None = None
    include_volume: bool | None = None

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"Expected {name} to be one of {', '.join(known)}; got {getattr(self, name)!r}.")
        for field in fields(self):  # annotations are texts here
            value = getattr(self, field.name)
            if field.type in ("int", "int | None") and not (
                isinstance(value, int) or (value is None and "None" in field.type)
            ):
                raise ConfigError(f"Expected {field.name} as a whole number; got {value!r}.")
            if field.type in ("bool", "bool | None") and not (
                isinstance(value, bool) or (value is None and "None" in field.type)
            ):
                raise ConfigError(f"Expected {field.name} as True or False; got {value!r}.")
            if field.type in ("str", "str | None") and not (
                isinstance(value, str) or (value is None and "None" in field.type)
            ):
                raise ConfigError(f"Expected {field.name} as text; got {value!r}.")
        for name, least in (("glimpses", 0), ("components", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"Expected {name} of at least {least}; got {getattr(self, name)}.")
        if self.num_examples is not None and self.num_examples < 1:
            raise ConfigError(f"Expected num_examples of at least 1; got {self.num_examples}.")
        _ = self.canvas  # validates the canvas fields

    @classmethod
    def from_kwargs(cls, kwargs: dict[str, Any]) -> EnvConfig:
        """Build from keyword arguments.

        Raises:
            ConfigError: an unknown name, or a value outside its range.
        """
        unknown = sorted(set(kwargs) - {field.name for field in fields(cls)})
        if unknown:
            known = ", ".join(field.name for field in fields(cls))
            raise ConfigError(f"Unknown environment arguments {', '.join(unknown)}. Known ones: {known}.")
        return cls(**kwargs)

    @property
    def objects_limit(self) -> int:
        """``max_objects`` with its default filled in."""
        return self.max_objects if self.max_objects is not None else (1 if self.task == "single" else 4)

    @property
    def canvas(self) -> CanvasConfig:
        """The look of a canvas."""
        same = {field.name: getattr(self, field.name) for field in fields(CanvasConfig)}
        return CanvasConfig(**{**same, "max_objects": self.objects_limit})

    @property
    def rules(self) -> Rules:
        """The part that the dynamics read."""
        same = {field.name: getattr(self, field.name) for field in fields(Rules)}
        return Rules(**{**same, "max_objects": self.objects_limit})

    @property
    def size(self) -> int:
        """Canvases in the split."""
        return self.num_examples or DEFAULT_NUM_EXAMPLES[self.split]

    @property
    def num_classes(self) -> int:
        """C, the number of labels, "stop" not counted."""
        return NUM_CLASSES

    @property
    def shows_image(self) -> bool:
        """Whether the observation holds the image."""
        return self.action_mode == "native" if self.include_image is None else self.include_image

    @property
    def shows_volume(self) -> bool:
        """Whether the observation holds the activation volume."""
        return self.action_mode in ("packed", "macro") if self.include_volume is None else self.include_volume
