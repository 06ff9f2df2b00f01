"""The configuration of an environment: one frozen dataclass whose fields are the keyword arguments of ``gymnasium.make``."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, cast

from hsal_env.data.annotations import ImagesFormat
from hsal_env.data.augmentation import Augment, FiniteSource, Variation, Varied
from hsal_env.data.canvases import MOST_CANVAS_PX, CanvasConfig, CanvasLook, CanvasSource
from hsal_env.data.custom import CustomSplit, LabelledImages, given_images, load_images
from hsal_env.data.fitting import Fit, FitMode, checked_px
from hsal_env.data.glyphs import NUM_CLASSES, GlyphPolicy
from hsal_env.data.labels import MOST_CLASSES, LabelsAre, checked_names
from hsal_env.data.sources import ARGUMENTS, SOURCES, SourceName, takers
from hsal_env.errors import ConfigError, UnknownArgumentError
from hsal_env.fields import MOST_COUNTED, check_at_most
from hsal_env.rules import MOST_OBJECTS, MetaStepRules, Rules

Features = Literal["lazy", "store"]
Places = Literal["cells", "turned"]
ActionMode = Literal["native", "flat", "packed", "option", "controller", "macro"]
Forbidden = Literal["penalise", "raise"]

DEFAULT_NUM_EXAMPLES = {"train": 60_000, "val": 5_000, "test": 10_000}
"""Canvases in each split. 60,000 and 10,000 are the paper's; the validation set is made from training digits."""


@dataclass(frozen=True, kw_only=True)
class EnvConfig(MetaStepRules, CanvasLook):
    """Every keyword argument of the environments. Defaults are the paper's; D names our readings (docs/decisions.md).

    The arguments of :class:`hsal_env.rules.MetaStepRules` and :class:`hsal_env.data.canvases.CanvasLook` are among them.

    Attributes:
        source: where the images come from. ``"mnist"``: canvases of MNIST's digits. ``"digits"``: of scikit-learn's, which need
            no network. ``"auto"``: MNIST where it can be had, else digits. ``"house-numbers"``: synthetic numbers in colour
            (:mod:`hsal_env.data.house_numbers`). ``"svhn"``: photographs of house numbers (:mod:`hsal_env.data.svhn`).
            ``"custom"``: your own ``images``.
        split: which part of the source. Your own images also have ``"all"``, which keeps their order; their other splits are
            described at :meth:`hsal_env.data.custom.LabelledImages.part`.
        glyphs: ``"disjoint"``: no digit occurs in two splits. ``"paper"``: all splits draw from the training digits (D1).
        seed: picks the canvases. With ``split`` and an index it fixes a canvas. SVHN and your own images have fixed canvases,
            which it puts in an order.
        num_examples: number of canvases in the split. None: 60,000, 5,000 or 10,000, for train, val and test; of SVHN and of
            your own images, all.
        data_root: folder of MNIST or SVHN. None: ``$HSAL_DATA``, else the cache folder.
        extra: whether SVHN's part ``extra`` is added to its training split (D4).
        augment: of all but house numbers. ``"none"``: the images as they are. Otherwise the training split holds ever new
            variations, so that a few images teach as many would (:mod:`hsal_env.data.augmentation`). ``"upright"``: turned a
            little; of composed canvases each digit by itself. Of your own images only: ``"mirrored"``, also mirrored;
            ``"turned"``, by any angle, for things that may lie anyhow. Of SVHN only: ``"beside"``, a quarter of the numbers
            beside another one. The other splits are never varied.
        overlaid: share of your own training images that another one is laid over, so that classes stand together that no image
            holds together; ``augment`` has to vary them, too. See :class:`hsal_env.data.augmentation.Variation`.
        images: your own images: uint8 ``[N, h_px, w_px]`` or ``[N, h_px, w_px, 3]``, or a folder as :mod:`hsal_env.data.custom`
            describes it, or :class:`hsal_env.data.custom.LabelledImages`.
        labels: the labels of ``images`` that are an array: for each image a list of whole numbers from 0 on, or of class names.
            :mod:`hsal_env.data.labels` lists other forms.
        labels_are: what a row of ``labels`` is. ``"lists"``: labels. ``"counts"``: how often each class occurs, as in a multi-hot
            row. None: the form decides; an error where it does not.
        class_names: the names of the labels of your own images, the first for label 0. Pictures, traces and reports show them.
            Labels that are names become their places here. None: as the images come with them, or none.
        images_format: what says what a folder's images hold: ``"csv"`` (labels.csv), ``"coco"``, ``"voc"`` or ``"yolo"``.
            ``"auto"``: the one that is found.
        image_px: (rows, columns) of your own images, which are brought to that size; one number means a square. None: the size
            that all of them have, or, of a folder in which they have several, one that suits them
            (:func:`hsal_env.data.fitting.suited_px`).
        fit: how they are brought to it. ``"letterbox"``: whole, with the rest in the image's mean colour. ``"crop"``: filling,
            with the rest cut off. ``"stretch"``: without their proportions. See :class:`hsal_env.data.fitting.Fit`.
        num_classes: C, the number of labels of your own images. None: the number of their class names, or else their largest
            label plus 1.
        max_objects: most objects in an image. None: 1 for ``"single"``; else 4, or 5 of house numbers, or 6 of SVHN; of your own
            images, the most that one of them has. SVHN and your own images allow no fewer than they have.
        activation: activation model: a name, a model file ``"FILE.pt"``, ``"package.module:Name"``, or an ``nn.Module``, which
            is copied. See :class:`hsal_env.perception.activation.ActivationModel`.
        saliency: saliency model: a name, ``"package.module:Name"``, ``"file:PATH"`` for maps of your own, or a callable, which
            is copied if it is an ``nn.Module``. It is asked once for each stored canvas. See
            :class:`hsal_env.perception.saliency.SaliencyModel`.
        features: ``"lazy"``: the activation volume V is computed at each reset. The image is then encoded alone, so that results
            do not depend on the number of lanes. ``"store"``: V is computed once for the whole split, in batches, and kept in the
            cache folder. A thread computes it, and a reset waits for the canvases that it starts.
        places: where on the image a glimpse is said to look, in pictures, traces and the measures of :mod:`hsal_env.where`; no
            observation and no reward depends on it. ``"cells"``: at the centre of its cell. ``"turned"``: where the object of the
            cell is, which is measured by turning each image (:mod:`hsal_env.perception.places`). It costs eight more encodings
            an image, and suits photographs of things that are still themselves upside down.
        action_mode: the view. ``"native"``: the two-level Dict. ``"flat"``: one Discrete with a mask. ``"packed"``: the
            two-level one in a Box. ``"option"``, ``"controller"`` and ``"macro"``: see :mod:`hsal_env.views`.
        forbidden: what happens in the flat and the controller view on an action that the phase does not allow.
            ``"penalise"``: it earns -1 and changes nothing. ``"raise"``: an error, which finds agents that ignore their mask.
        include_image: whether the observation holds the image. None: only in the native view.
        include_volume: whether the observation holds the activation volume. None: only in the packed and the macro view.
        boxes: whether the observation, in any view, is a Dict of Box parts alone, for libraries that take no other:
            ``phase``, ``last_location`` and ``last_label`` one-hot, ``action_mask`` as a Box. See
            :class:`hsal_env.spaces.BoxesView`.

    Raises:
        ConfigError: a value outside its range, or an argument that the source does not take.
    """

    source: SourceName = "auto"
    split: CustomSplit = "train"
    glyphs: GlyphPolicy = "disjoint"
    seed: int = 0
    num_examples: int | None = None
    data_root: str | None = None
    extra: bool = False
    augment: Augment = "none"
    overlaid: float = 0.0
    images: Any = None
    labels: Any = None
    labels_are: LabelsAre | None = None
    class_names: Any = None
    images_format: ImagesFormat = "auto"
    image_px: int | tuple[int, int] | None = None
    fit: FitMode = "letterbox"
    num_classes: int | None = None
    max_objects: int | None = None
    activation: Any = "compact"
    saliency: Any = "sum-of-squares"
    features: Features = "lazy"
    places: Places = "cells"
    action_mode: ActionMode = "native"
    forbidden: Forbidden = "penalise"
    include_image: bool | None = None
    include_volume: bool | None = None
    boxes: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed < 0:
            raise ConfigError(f"Expected seed of at least 0; got {self.seed}.")
        for name in ("num_examples", "num_classes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"Expected {name} of at least 1; got {value}.")
        check_at_most(
            self,
            seed=(1 << 63) - 1,
            num_examples=MOST_COUNTED,
            num_classes=MOST_CLASSES,
            max_objects=MOST_OBJECTS,
            canvas_px=MOST_CANVAS_PX,
        )
        self._refuse_what_the_source_does_not_take()
        if self.class_names is not None:
            object.__setattr__(self, "class_names", checked_names(self.class_names))
        fit = None if self.image_px is None else Fit(checked_px(self.image_px), self.fit)
        if fit:
            object.__setattr__(self, "image_px", fit.image_px)
        images = given_images(self.images, self.labels, self.labels_are, self.class_names, fit)
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", None)
        object.__setattr__(self, "labels_are", None)
        if self.augment not in (known := ["none", *SOURCES[self.source].variations]):
            raise ConfigError(
                f"Expected augment to be one of {', '.join(known)} with source={self.source!r}; got {self.augment!r}."
            )
        if not 0 <= self.overlaid < 1:
            raise ConfigError(f"Expected overlaid in [0, 1); got {self.overlaid}.")
        if self.overlaid and self.augment == "none":
            raise ConfigError("Expected augment to vary the images that overlaid lays over one another; got 'none'.")
        SOURCES[self.source].check(self)

    @classmethod
    def from_kwargs(cls, kwargs: dict[str, Any]) -> EnvConfig:
        """Build from keyword arguments.

        Raises:
            UnknownArgumentError: an unknown name.
            ConfigError: a value outside its range.

        Example:
            >>> EnvConfig.from_kwargs({"task": "set", "glimpses": 3}).rules.option_length
            5
            >>> EnvConfig.from_kwargs({"glances": 3})  # doctest: +ELLIPSIS
            Traceback (most recent call last):
            ...
            hsal_env.errors.UnknownArgumentError: The environment got an unexpected keyword argument 'glances'. Known ones: ...
        """
        unknown = sorted(set(kwargs) - {field.name for field in fields(cls)})
        if unknown:
            known = ", ".join(field.name for field in fields(cls))
            named = " and ".join(f"got an unexpected keyword argument {name!r}" for name in unknown)
            raise UnknownArgumentError(f"The environment {named}. Known ones: {known}.")
        return cls(**kwargs)

    def on_source(self, source: str, **changes: Any) -> EnvConfig:
        """The same configuration on images of ``source``. Arguments that ``source`` does not take get their defaults.

        Raises:
            ConfigError: an unknown source, or a value that does not suit it.
        """
        if source not in SOURCES:
            raise ConfigError(f"Expected source to be one of {', '.join(SOURCES)}; got {source!r}.")
        dropped = ARGUMENTS.difference(SOURCES[source].arguments)
        return replace(self, **{name: getattr(EnvConfig, name) for name in dropped} | {"source": source} | changes)

    def _refuse_what_the_source_does_not_take(self) -> None:
        """Such arguments would do nothing."""
        if self.split == "all" and not self.is_custom:
            raise ConfigError(
                f"Expected split to be train, val or test with source={self.source!r}; got 'all', which only images of your "
                "own have. Choose one of the three, or source='custom'."
            )
        foreign = [
            f"{field.name} (for {', '.join(takers(field.name))})"
            for field in fields(self)
            if field.name in ARGUMENTS.difference(SOURCES[self.source].arguments)
            and (value := getattr(self, field.name)) is not None
            and (field.default is None or value != field.default)
        ]
        if foreign:
            raise ConfigError(
                f"Expected only arguments that source={self.source!r} takes; got {', '.join(foreign)}. Leave them out, or choose "
                "a source that takes them (source=..., on the command line --source)."
            )

    def plain(self) -> dict[str, Any]:
        """The fields as plain values, for a checkpoint. What your own images decide is filled in.

        Raises:
            ConfigError: images are an array, or a model is an object.
            DataError: see :func:`hsal_env.data.custom.load_folder`.
        """
        objects = [
            name for name in ("images", "activation", "saliency") if not isinstance(getattr(self, name), str | None)
        ]
        if objects:
            raise ConfigError(
                f"{', '.join(objects)}: a checkpoint cannot hold arrays or objects. Give images as a folder, and models as "
                "'package.module:Name'."
            )
        values = {name: value for name, value in asdict(self).items() if name not in ("labels", "labels_are")}
        if self.is_custom:
            return values | {
                "num_classes": self.classes,
                "max_objects": self.objects_limit,
                "class_names": [*self.label_names] or None,
                "image_px": [*self.image_fit.image_px],
            }
        foreign = {*SOURCES["custom"].arguments}.difference(SOURCES[self.source].arguments)
        return {name: value for name, value in values.items() if name not in foreign}

    @property
    def is_finite(self) -> bool:
        """Whether there is a fixed number of images."""
        return SOURCES[self.source].finite and self.variation is None

    @property
    def variation(self) -> Variation | None:
        """How the images of this split are varied; None: not at all."""
        if self.augment == "none" or self.split != "train":
            return None
        chosen = SOURCES[self.source].variations[self.augment]
        return replace(chosen, overlaid=self.overlaid) if self.overlaid else chosen

    @property
    def unvaried(self) -> EnvConfig:
        """The same configuration with the images as they are."""
        return replace(self, augment="none", overlaid=0.0)

    @property
    def is_custom(self) -> bool:
        """Whether the images are your own."""
        return self.source == "custom"

    @cached_property
    def data(self) -> LabelledImages:
        """Your own images, of all splits.

        Raises:
            ConfigError, DataError: see :func:`hsal_env.data.custom.load_images` and
                :meth:`hsal_env.data.custom.LabelledImages.renamed`.
        """
        wished = None if self.image_px is None else checked_px(self.image_px)
        return load_images(self.images, self.images_format, wished, self.fit).renamed(self.class_names)

    @cached_property
    def canvases(self) -> CanvasSource:
        """The images of the split.

        Raises:
            ConfigError, DataError: see :attr:`data`, :class:`hsal_env.data.custom.CustomCanvases`,
                :class:`hsal_env.data.svhn.SVHN` and :func:`hsal_env.data.glyphs.load_glyphs`.
        """
        source = SOURCES[self.source]
        images = source.open(self)
        if not source.finite or self.variation is None:
            return images
        return Varied(cast(FiniteSource, images), self.variation, self.seed)

    @property
    def objects_limit(self) -> int:
        """``max_objects`` with its default filled in."""
        most = SOURCES[self.source].most_objects
        if most is None:
            return self.data.max_objects(self.max_objects)
        if self.max_objects is not None:
            return self.max_objects
        return 1 if self.task == "single" else most

    @property
    def canvas(self) -> CanvasConfig:
        """The part that composed canvases read."""
        look = {field.name: getattr(self, field.name) for field in fields(CanvasLook)}
        return CanvasConfig(**look, max_objects=self.objects_limit)

    @property
    def rules(self) -> Rules:
        """The part that the dynamics read."""
        rules = {field.name: getattr(self, field.name) for field in fields(MetaStepRules)}
        return Rules(**rules, max_objects=self.objects_limit)

    @property
    def size(self) -> int:
        """Canvases in the split."""
        if self.is_finite:
            assert isinstance(self.canvases, Sized)
            return min(self.num_examples or len(self.canvases), len(self.canvases))
        return self.num_examples or DEFAULT_NUM_EXAMPLES[self.split]

    @property
    def classes(self) -> int:
        """C, the number of labels without "stop"."""
        return self.data.num_classes(self.num_classes) if self.is_custom else NUM_CLASSES

    @property
    def label_names(self) -> tuple[str, ...]:
        """The name of each class; () where a label is a number only."""
        return self.data.class_names if self.is_custom else ()

    @property
    def image_fit(self) -> Fit:
        """What brings an image of any size to the size of this environment's images.

        Of your own images it reads the folder where ``image_px`` is None. Other sources have square images: numbers are stretched
        to them, as in training; digits keep their proportions.

        Raises:
            ConfigError, DataError: see :attr:`data`.
        """
        if not self.is_custom:
            return Fit((self.canvas_px, self.canvas_px), SOURCES[self.source].fit)
        if self.image_px is not None:
            return Fit(checked_px(self.image_px), self.fit)
        return self.data.fit or Fit(self.data.image_shape[:2], self.fit)

    @property
    def has_boxes(self) -> bool:
        """Whether the boxes of the objects are known."""
        known = SOURCES[self.source].boxes
        return self.data.has_boxes if known is None else known

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h_px, w_px, 1 or 3) of an image."""
        if self.is_custom:
            return self.data.image_shape
        return self.canvas_px, self.canvas_px, 3 if SOURCES[self.source].colour else 1

    @property
    def shows_image(self) -> bool:
        """Whether the observation holds the image."""
        return self.action_mode == "native" if self.include_image is None else self.include_image

    @property
    def shows_volume(self) -> bool:
        """Whether the observation holds the activation volume."""
        return self.action_mode in ("packed", "macro") if self.include_volume is None else self.include_volume
