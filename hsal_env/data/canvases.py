"""Canvases: digits of several sizes and places, with clutter, on a black square (paper section 5; decisions D1 to D3).

A canvas is a pure function of (glyphs, config, seed, index). Its random numbers are a block of a counter-based generator
(Philox), so that canvas ``i`` is the same alone, in a batch, and in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np

from hsal_env.data.draws import Draws, IndexedRandom, source_of
from hsal_env.data.glyphs import NUM_CLASSES, Glyphs
from hsal_env.data.resize import bilinear_resize
from hsal_env.errors import ConfigError, DataError
from hsal_env.fields import check_at_most, check_fields
from hsal_env.rules import MOST_OBJECTS, Rules

if TYPE_CHECKING:
    from hsal_env.data.augmentation import Variation

Task = Literal["single", "set", "multiset"]
MOST_CANVAS_PX = 4_096
_DRAWS_PER_OBJECT = 6  # label, glyph, size, patch, row offset, column offset
_DRAWS_PER_CROP = 4  # glyph, row, column, cell
_FORMS = 400  # a third key beside seed and stream, so that the digits' forms have random numbers of their own


@dataclass(frozen=True)
class CanvasLook:
    """How an image is composed. Defaults are the paper's (section 5); D3 is our reading.

    Attributes:
        task: what an image holds (D3): ``"single"`` one object, ``"set"`` no label twice, ``"multiset"`` labels drawn
            independently.
        min_objects: fewest objects in an image, at least 1. The number is uniform between it and max_objects.
        min_size_px: smallest side of a digit.
        max_size_px: largest side of a digit. Sides are uniform between the two.
        canvas_px: side of the image.
        clutter: number of clutter crops, which are pieces of digits.
        clutter_px: side of a clutter crop, and of the grid that crops are laid on.
    """

    task: Task = "multiset"
    min_objects: int = 1
    min_size_px: int = 20
    max_size_px: int = 50
    canvas_px: int = 100
    clutter: int = 8
    clutter_px: int = 5


@dataclass(frozen=True)
class CanvasConfig(CanvasLook):
    """All that decides how a canvas of digits looks.

    Attributes:
        max_objects: most objects in an image.

    Raises:
        ConfigError: a value outside its range, or more objects than fit.
    """

    max_objects: int = Rules.max_objects

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_most(self, max_objects=MOST_OBJECTS, canvas_px=MOST_CANVAS_PX)
        if self.task == "single" and (self.min_objects, self.max_objects) != (1, 1):
            raise ConfigError(
                f"task='single' needs min_objects = max_objects = 1; got {self.min_objects} and {self.max_objects}."
            )
        if not 1 <= self.min_objects <= self.max_objects:
            raise ConfigError(
                f"Expected 1 <= min_objects <= max_objects; got {self.min_objects} and {self.max_objects}."
            )
        if self.task == "set" and self.max_objects > NUM_CLASSES:
            raise ConfigError(f"A set has at most {NUM_CLASSES} different labels; got max_objects={self.max_objects}.")
        if not 1 <= self.min_size_px <= self.max_size_px <= self.canvas_px:
            raise ConfigError(
                "Expected 1 <= min_size_px <= max_size_px <= canvas_px; got "
                f"{self.min_size_px}, {self.max_size_px}, {self.canvas_px}."
            )
        fit = (self.canvas_px // self.max_size_px) ** 2
        if self.max_objects > fit:
            raise ConfigError(
                f"{self.max_objects} objects of up to {self.max_size_px} px do not fit a canvas of {self.canvas_px} px, "
                f"which holds {fit}. Lower max_objects or max_size_px, or raise canvas_px."
            )
        if self.clutter < 0 or not 1 <= self.clutter_px <= 28:
            raise ConfigError(f"Expected clutter >= 0 and clutter_px in 1..28; got {self.clutter}, {self.clutter_px}.")
        if self.clutter > (self.canvas_px // self.clutter_px) ** 2:
            raise ConfigError(
                f"{self.clutter} crops of {self.clutter_px} px do not fit a canvas of {self.canvas_px} px; lower clutter."
            )


class CanvasBatch(NamedTuple):
    """Composed canvases.

    Attributes:
        images: uint8 ``[B, h_px, w_px]`` (grey) or ``[B, h_px, w_px, 3]`` (RGB).
        labels: int64 ``[B, max_objects]`` in no meaningful order, padded with -1.
        boxes: int64 ``[B, max_objects, 4]`` as (row, col, height, width) in px, padded with -1; all -1 where unknown.
    """

    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray


class CanvasSource(Protocol):
    """Where canvases come from: :class:`Canvases` or another class of :mod:`hsal_env.data`."""

    @property
    def source(self) -> str:
        """What the pixels are: a name of :data:`hsal_env.data.sources.SOURCES`."""
        ...

    @property
    def content(self) -> tuple[str | np.ndarray, ...]:
        """Texts and arrays that decide a canvas, together with its index. Stored features are found by them."""
        ...

    def compose(self, indices: Sequence[int] | np.ndarray) -> CanvasBatch:
        """The canvases of the given indices."""
        ...


class Canvases:
    """An endless, random-access supply of canvases.

    Args:
        glyphs: the digits to draw from.
        config: the look of a canvas.
        seed: with ``stream``, picks the sequence of canvases.
        stream: a second key, so that splits of one seed differ.
        variation: how far the form of each digit is varied; None: not at all.
    """

    def __init__(
        self,
        glyphs: Glyphs,
        config: CanvasConfig | None = None,
        seed: int = 0,
        stream: int = 0,
        variation: Variation | None = None,
    ) -> None:
        self.config = config or CanvasConfig()
        self.glyphs, self.variation = glyphs, variation
        self._form_key = np.random.SeedSequence([seed, stream, _FORMS]).generate_state(2, np.uint64)
        present = np.bincount(glyphs.labels, minlength=NUM_CLASSES)
        if len(present) != NUM_CLASSES or not present.all():
            raise DataError(f"Expected glyphs of every label in 0..9; got counts {present.tolist()}.")
        self._class_size = present  # [10]
        self._class_start = np.concatenate([[0], np.cumsum(present)[:-1]])
        self._by_class = np.argsort(glyphs.labels, kind="stable")
        draws = 1 + _DRAWS_PER_OBJECT * self.config.max_objects + _DRAWS_PER_CROP * self.config.clutter
        self._random = IndexedRandom(seed, stream, draws)

    @property
    def source(self) -> str:
        """The source of the glyphs."""
        return self.glyphs.source

    @property
    def content(self) -> tuple[str | np.ndarray, ...]:
        """The configuration, the key, the glyphs, and the code that draws."""
        code = source_of(Canvases, Draws, bilinear_resize)
        if self.variation is not None:
            from hsal_env.data.variation import bent  # torch: not before --help

            code += [repr(self.variation), *source_of(bent)]
        return repr(self.config), self._random.key, self.glyphs.images, self.glyphs.labels, *code

    def compose(self, indices: Sequence[int] | np.ndarray) -> CanvasBatch:
        """Compose the canvases of the given non-negative indices.

        Raises:
            DataError: an index is negative.
        """
        indices = np.asarray(indices, dtype=np.int64)
        draw = self._random.draws(indices)
        labels, glyph, sizes, boxes = self._layout(draw)
        images = np.zeros((len(indices), self.config.canvas_px, self.config.canvas_px), np.uint8)
        self._paste_clutter(images, draw)
        self._paste_objects(images, indices, glyph, sizes, boxes)
        return CanvasBatch(images, labels, boxes)

    def _layout(self, draw: Draws) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Labels, glyph indices, sizes and boxes of the objects, each padded with -1."""
        c, lanes = self.config, draw.lanes
        count = c.min_objects + draw.below(c.max_objects - c.min_objects + 1)  # [B]
        absent = np.arange(c.max_objects) >= count[:, None]  # [B, N]
        if c.task == "set":
            labels = draw.distinct_below(np.full(lanes, NUM_CLASSES), NUM_CLASSES, c.max_objects)
        else:
            labels = draw.below(NUM_CLASSES, c.max_objects)
        glyph = self._by_class[self._class_start[labels] + draw.below(self._class_size[labels], c.max_objects)]
        sizes = c.min_size_px + draw.below(c.max_size_px - c.min_size_px + 1, c.max_objects)
        sizes[absent] = 0
        largest = sizes.max(1)  # the patches of an image are as wide as its largest digit
        side = c.canvas_px // largest
        patch = draw.distinct_below(side**2, int(side.max(initial=1)) ** 2, c.max_objects)
        room = (largest[:, None] - sizes) + 1
        top = (patch // side[:, None]) * largest[:, None] + draw.below(room, c.max_objects)
        left = (patch % side[:, None]) * largest[:, None] + draw.below(room, c.max_objects)
        boxes = np.stack([top, left, sizes, sizes], axis=2)
        for padded in (labels, glyph, boxes):
            padded[absent] = -1
        return labels, glyph, sizes, boxes

    def _paste_clutter(self, images: np.ndarray, draw: Draws) -> None:
        c, px = self.config, self.config.clutter_px
        if not c.clutter:
            return
        per_side = c.canvas_px // px
        glyph = draw.below(len(self.glyphs.labels), c.clutter)  # [B, clutter]
        top, left = draw.below(29 - px, c.clutter), draw.below(29 - px, c.clutter)
        cell = draw.distinct_below(np.full(draw.lanes, per_side**2), per_side**2, c.clutter)
        span = np.arange(px)
        crops = self.glyphs.images[
            glyph[..., None, None], (top[..., None] + span)[..., :, None], (left[..., None] + span)[..., None, :]
        ]
        rows = (cell // per_side * px)[..., None] + span
        columns = (cell % per_side * px)[..., None] + span
        lanes = np.arange(draw.lanes)[:, None, None, None]
        images[lanes, rows[..., :, None], columns[..., None, :]] = crops

    def _paste_objects(
        self, images: np.ndarray, indices: np.ndarray, glyph: np.ndarray, sizes: np.ndarray, boxes: np.ndarray
    ) -> None:
        lane, slot = np.nonzero(sizes)
        order = np.argsort(sizes[lane, slot], kind="stable")
        lane, slot = lane[order], slot[order]
        size, glyphs = sizes[lane, slot], self._formed(indices, glyph, lane, slot)
        for size_px in np.unique(size):  # one resize per size; digits never overlap, so their order is free
            first, last = np.searchsorted(size, [size_px, size_px + 1])
            digits = bilinear_resize(glyphs[first:last], int(size_px))
            corners = boxes[lane[first:last], slot[first:last], :2].tolist()
            for digit, i, (top, left) in zip(digits, lane[first:last].tolist(), corners, strict=True):
                window = images[i, top : top + size_px, left : left + size_px]
                np.copyto(window, digit, where=digit > 0)

    def _formed(self, indices: np.ndarray, glyph: np.ndarray, lane: np.ndarray, slot: np.ndarray) -> np.ndarray:
        """The digits of the objects at ``[lane, slot]``, ``[n, 28, 28]``."""
        glyphs = self.glyphs.images[glyph[lane, slot]]
        if self.variation is None or not len(glyphs):
            return glyphs
        from hsal_env.data.variation import FormDraw, bent

        drawn = [
            FormDraw.of(self.config.max_objects, np.random.Generator(np.random.Philox(key=self._form_key, counter=at)))
            for at in ([0, index, 0, 0] for index in indices.tolist())
        ]
        uniform, normal = (np.stack(part)[lane, slot] for part in zip(*drawn, strict=True))
        return bent(glyphs, self.variation, FormDraw(uniform, normal))
