"""Where images come from: one table of all sources. Whoever asks what a source is or has, asks here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, Protocol, cast

from hsal_env.data.augmentation import DIGITS, NUMBERS, NUMBERS_BESIDE, VARIATIONS, Augment, Variation
from hsal_env.data.canvases import CanvasConfig, Canvases, CanvasLook, CanvasSource, Task
from hsal_env.data.custom import CustomCanvases, CustomSplit, LabelledImages
from hsal_env.data.fitting import FitMode
from hsal_env.data.glyphs import SPLITS, GlyphPolicy, GlyphSource, Split, load_glyphs
from hsal_env.data.house_numbers import MOST_DIGITS, HouseNumbers
from hsal_env.data.svhn import SVHN
from hsal_env.errors import ConfigError

SourceName = Literal[GlyphSource, "house-numbers", "svhn", "custom"]


class _ImageConfig(Protocol):
    """The part of a :class:`hsal_env.config.EnvConfig` that sources read."""

    @property
    def source(self) -> str: ...
    @property
    def split(self) -> CustomSplit: ...
    @property
    def seed(self) -> int: ...
    @property
    def glyphs(self) -> GlyphPolicy: ...
    @property
    def task(self) -> Task: ...
    @property
    def min_objects(self) -> int: ...
    @property
    def max_objects(self) -> int | None: ...
    @property
    def objects_limit(self) -> int: ...
    @property
    def canvas_px(self) -> int: ...
    @property
    def canvas(self) -> CanvasConfig: ...
    @property
    def data_root(self) -> str | None: ...
    @property
    def extra(self) -> bool: ...
    @property
    def variation(self) -> Variation | None: ...
    @property
    def data(self) -> LabelledImages: ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source of images.

    Attributes:
        check: refuses values of a configuration that do not suit the source (ConfigError).
        open: makes the canvases of a configuration.
        arguments: the arguments about images that it takes. Those that only other sources take are refused.
        most_objects: the default of ``max_objects``, where the task is not ``"single"``. None: the data decide.
        licence: what the images are, and on which terms they may be used.
        limits: what an agent trained on them can and cannot be expected to read. None: such agents are not bundled.
        colour: whether the images are RGB. Your own images decide it themselves, and are not counted here.
        finite: whether there is a fixed number of images. Otherwise each index gives another one, without end.
        boxes: whether the boxes of the objects are known. None: the data decide.
        synthetic: whether the images stand in for photographs.
        fit: how an image of another shape is brought to the square that its agents read. Your own images decide it themselves.
        variations: what the argument ``augment`` may name beside ``"none"``, see :mod:`hsal_env.data.augmentation`.
    """

    check: Callable[[_ImageConfig], object]
    open: Callable[[_ImageConfig], CanvasSource]
    arguments: tuple[str, ...]
    most_objects: int | None
    licence: str
    limits: str | None = None
    colour: bool = False
    finite: bool = False
    boxes: bool | None = True
    synthetic: bool = False
    fit: FitMode = "stretch"
    variations: Mapping[Augment, Variation] = field(default_factory=dict)


def _split(config: _ImageConfig) -> Split:
    return cast(Split, config.split)  # EnvConfig refuses "all" of all sources but your own images


def _digits(licence: str, limits: str | None) -> Source:
    """Canvases composed of digits."""
    return Source(
        check=lambda config: config.canvas,
        open=lambda config: Canvases(
            load_glyphs(cast(GlyphSource, config.source), _split(config), config.data_root, config.glyphs),
            config.canvas,
            config.seed,
            stream=SPLITS.index(_split(config)),
            variation=config.variation,
        ),
        arguments=("glyphs", "augment", *(field.name for field in fields(CanvasLook))),
        most_objects=CanvasConfig.max_objects,
        licence=licence,
        limits=limits,
        fit="letterbox",
        variations={"upright": DIGITS},
    )


def _check_custom(config: _ImageConfig) -> None:
    if config.max_objects is not None and config.max_objects < 0:
        raise ConfigError(f"Expected max_objects of at least 0; got {config.max_objects}.")


_WHITE_DIGITS = (
    "white digits on black, in the look of the training canvases. It has not seen other fonts, colours, overlapping digits, "
    "sizes outside its range or more objects than it was trained on; photographs are out of its reach."
)

SOURCES: dict[str, Source] = {
    "auto": _digits("MNIST's images where they can be had, else scikit-learn's digits", None),
    "mnist": _digits("MNIST, by Yann LeCun, Corinna Cortes and Christopher Burges (CC BY-SA 3.0)", _WHITE_DIGITS),
    "digits": _digits(
        "the handwritten digits of the UCI repository, by E. Alpaydin and C. Kaynak (CC BY 4.0), as in scikit-learn",
        _WHITE_DIGITS,
    ),
    "house-numbers": Source(
        check=lambda config: HouseNumbers.check(
            config.task, config.min_objects, config.objects_limit, config.canvas_px
        ),
        open=lambda config: HouseNumbers(
            _split(config),
            config.glyphs,
            config.task,
            config.min_objects,
            config.objects_limit,
            config.canvas_px,
            config.seed,
        ),
        arguments=("glyphs", "task", "min_objects", "canvas_px"),
        most_objects=MOST_DIGITS,
        licence="type faces that come with matplotlib: synthetic images, no photographs",
        limits=(
            "printed digits side by side in one line, in a crop around them, on made-up walls. It has not seen handwriting, "
            "two lines, other things in the picture or more digits than it was trained on; on photographs it fails often."
        ),
        colour=True,
        synthetic=True,
    ),
    "svhn": Source(
        check=lambda config: SVHN.check(config.task, config.objects_limit, config.canvas_px),
        open=lambda config: SVHN(
            _split(config), config.task, config.canvas_px, config.seed, config.data_root, config.extra
        ),
        arguments=("task", "canvas_px", "extra", "augment"),
        most_objects=SVHN.most_digits,
        licence="SVHN, by Yuval Netzer and others: photographs, for non-commercial use only",
        limits=(
            "the digits of one house number, in a crop around them stretched to a square: SVHN's boxes with a margin of 15 "
            "percent. It finds no number in a street, and has not seen letters, handwriting or more than six digits."
        ),
        colour=True,
        finite=True,
        variations={"upright": NUMBERS, "beside": NUMBERS_BESIDE},
    ),
    "custom": Source(
        check=_check_custom,
        open=lambda config: CustomCanvases(config.data, config.split, config.seed),
        arguments=(
            "images",
            "labels",
            "labels_are",
            "class_names",
            "num_classes",
            "images_format",
            "image_px",
            "fit",
            "augment",
            "overlaid",
        ),
        most_objects=None,
        licence="your own images",
        finite=True,
        boxes=None,
        variations=VARIATIONS,
    ),
}
"""By the name that the argument ``source`` has, see :data:`SourceName`."""

ARGUMENTS = frozenset(name for source in SOURCES.values() for name in source.arguments)
"""The arguments that some sources take and others do not."""


def takers(argument: str) -> list[str]:
    """The sources that take an argument."""
    return [name for name, source in SOURCES.items() if argument in source.arguments]
