"""Synthetic house numbers in colour. They stand in for SVHN where it cannot be had. None is a photograph.

A number has up to five digits side by side, in one of twenty type faces, on a textured wall, sometimes on a plate. It is cropped
as SVHN's numbers are (decision D4): the common box of the digits grows by 30 % and is stretched to a square, so that digits are
narrower the more there are. Slant, weight, slope of the line, colours, contrast, light, blur and noise vary.

The type faces are those that come with matplotlib (DejaVu, STIX, Computer Modern). A canvas is a pure function of (split, policy,
arguments, seed, index). Pillow's FreeType draws the faces, and its versions may differ in a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np

from hsal_env.data.canvases import CanvasBatch, Task
from hsal_env.data.draws import Draws, IndexedRandom, source_of
from hsal_env.data.glyphs import NUM_CLASSES, SPLITS, GlyphPolicy, Split
from hsal_env.data.resize import bilinear_resize
from hsal_env.errors import ConfigError

MOST_DIGITS = 5
MOST_PX = 512  # the stock of noise is too small for larger images
FACES = {
    "train": (
        "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSansMono", "DejaVuSansMono-BoldOblique", "DejaVuSerif",
        "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBolIta", "cmr10", "cmb10",
    ),
    "val": ("DejaVuSansMono-Bold", "DejaVuSerif-BoldItalic", "STIXGeneralBol"),
    "test": ("DejaVuSans-Oblique", "DejaVuSansMono-Oblique", "STIXGeneralItalic", "cmss10", "cmtt10"),
}  # fmt: skip
"""The faces of each split under the policy ``"disjoint"``. Under ``"paper"`` every split has all of them."""

_GROW = 1.3  # size of the image over that of the common box
_ROWS = 64  # of a digit's ink
_COLUMNS = (48, 24, 12)  # the ink is kept at three widths, so that a narrow digit does not skip columns of a wide one
_WEIGHTS = (0, 1, 2)  # px added around a stroke at _DRAWN_PX
_DRAWN_PX = 64
_TEXTURES, _TEXTURE_PX = 160, 256
_NOISE = 1 << 20
_DRAWS = 40 + 6 * MOST_DIGITS
_CHUNK = 16  # canvases composed together: so many stay in the processor's cache


class HouseNumbers:
    """An endless, random-access supply of house numbers.

    Args:
        split: each split has its own walls.
        glyphs: ``"disjoint"``: each split has its own faces. ``"paper"``: all splits share them.
        task: ``"multiset"``: digits are drawn independently. ``"set"``: none occurs twice. ``"single"``: one digit.
        min_objects: fewest digits.
        max_objects: most digits, up to 5. The number is uniform between the two.
        image_px: side of the image.
        seed: picks the sequence.

    Raises:
        ConfigError: see :meth:`check`.
    """

    source = "house-numbers"

    def __init__(
        self,
        split: Split = "train",
        glyphs: GlyphPolicy = "disjoint",
        task: Task = "multiset",
        min_objects: int = 1,
        max_objects: int = MOST_DIGITS,
        image_px: int = 100,
        seed: int = 0,
    ) -> None:
        self.check(task, min_objects, max_objects, image_px)
        self.task, self.min_objects, self.max_objects, self.image_px = task, min_objects, max_objects, image_px
        shown = FACES[split] if glyphs == "disjoint" else tuple(face for faces in FACES.values() for face in faces)
        self._ink = _ink(shown)
        self._walls = _walls(SPLITS.index(split))
        self._random = IndexedRandom(seed, 100 + SPLITS.index(split), _DRAWS)

    @staticmethod
    def check(task: Task, min_objects: int, max_objects: int, image_px: int) -> None:
        """Refuse arguments of images that cannot be drawn.

        Raises:
            ConfigError: an unknown task, more than five digits, or an image of less than 32 or more than :data:`MOST_PX` px.
        """
        if task not in get_args(Task):
            raise ConfigError(f"Expected task to be one of {', '.join(get_args(Task))}; got {task!r}.")
        if task == "single" and (min_objects, max_objects) != (1, 1):
            raise ConfigError(
                f"task='single' needs min_objects = max_objects = 1; got {min_objects} and {max_objects}."
            )
        if not 1 <= min_objects <= max_objects <= MOST_DIGITS:
            raise ConfigError(
                f"Expected 1 <= min_objects <= max_objects <= {MOST_DIGITS} with house numbers; got {min_objects} and "
                f"{max_objects}."
            )
        if not 32 <= image_px <= MOST_PX:
            raise ConfigError(
                f"Expected canvas_px of at least 32 and at most {MOST_PX} with house numbers; got {image_px}."
            )

    @property
    def content(self) -> tuple[str | np.ndarray, ...]:
        """The arguments, the key, ink, walls, and the code that draws."""
        arguments = repr((self.task, self.min_objects, self.max_objects, self.image_px))
        return (
            arguments,
            self._random.key,
            self._ink.pixels,
            self._walls,
            *source_of(HouseNumbers, Draws, bilinear_resize),
        )

    def compose(self, indices: Sequence[int] | np.ndarray) -> CanvasBatch:
        """The images, labels and boxes of the given non-negative indices.

        Raises:
            DataError: an index is negative.
        """
        indices = np.asarray(indices, dtype=np.int64)
        parts = [self._compose(indices[i : i + _CHUNK]) for i in range(0, max(len(indices), 1), _CHUNK)]
        return CanvasBatch(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def _compose(self, indices: np.ndarray) -> CanvasBatch:
        draw = self._random.draws(indices)
        labels, layout = self._layout(draw)
        alpha = self._alpha(layout)
        images = self._painted(alpha, draw)
        return CanvasBatch(images, labels, layout.boxes(self.image_px))

    def _layout(self, draw: Draws) -> tuple[np.ndarray, _Layout]:
        """The labels, padded with -1, and where each digit stands."""
        most, px = self.max_objects, self.image_px
        count = self.min_objects + draw.below(most - self.min_objects + 1)  # [B]
        absent = np.arange(most) >= count[:, None]  # [B, N]
        if self.task == "set":
            labels = draw.distinct_below(np.full(draw.lanes, NUM_CLASSES), NUM_CLASSES, most)
        else:
            labels = draw.below(NUM_CLASSES, most)
        look = draw.below(self._ink.looks)  # [B], a face in a weight
        glyph = look[:, None] * NUM_CLASSES + labels  # [B, N]
        aspect = np.where(absent, 0, self._ink.aspect[glyph]) * _between(draw, 0.92, 1.08, most)
        gap = _between(draw, 0.06, 0.22)[:, None]
        ends = np.cumsum(np.where(absent, 0, aspect + gap), axis=1)
        total = ends[:, -1:] - gap
        box_px = px / _GROW * _between(draw, 0.9, 1.0)[:, None]  # the width of the common box
        start = (px - box_px) / 2 + px * _between(draw, -0.04, 0.04)[:, None]
        left = np.floor(start + (ends - aspect - gap) / total * box_px).astype(np.int64)
        right = np.floor(start + (ends - gap) / total * box_px).astype(np.int64)
        slope, stagger = _between(draw, -0.05, 0.05)[:, None], _between(draw, -0.02, 0.02, most)
        high = px / _GROW * _between(draw, 0.8, 1.0)[:, None] * _between(draw, 0.94, 1.0, most)
        along = np.arange(most) - (count[:, None] - 1) / 2
        middle = px * (
            0.5 + _between(draw, -0.03, 0.03)[:, None] + slope * along / np.maximum(count[:, None], 2) * 2 + stagger
        )
        shear = _between(draw, -0.16, 0.16)
        width = np.maximum(right - left, 3)
        layout = _Layout(
            glyph,
            ~absent,
            left,
            width,
            np.floor(middle - high / 2).astype(np.int64),
            np.maximum(high, 8).astype(np.int64),
            shear,
        )
        labels[absent] = -1
        return labels, layout

    def _alpha(self, layout: _Layout) -> np.ndarray:
        """How much of each pixel is ink: int32 ``[B, px, px]`` in 0..255."""
        px, lanes = self.image_px, len(layout.shear)
        pad = px // 6 + 1  # a slanted row is shifted by up to 0.16 * px / 2
        wide = px + 2 * pad
        # for each column of an upright number: which column of which digit's ink it shows, and in which rows
        ink = np.full((lanes, wide), -1, np.int32)
        top, scale = np.zeros((lanes, wide), np.int32), np.zeros((lanes, wide), np.int32)
        column = np.arange(wide) - pad
        for slot in range(layout.glyph.shape[1]):
            left, width, high = layout.left[:, slot, None], layout.width[:, slot, None], layout.high[:, slot, None]
            inside = (column >= left) & (column < left + width) & layout.present[:, slot, None]
            level = np.minimum(np.searchsorted([-columns for columns in _COLUMNS], -width.ravel() * 1.4), 2)[:, None]
            columns = np.array(_COLUMNS)[level]
            place = np.array(self._ink.offset)[level] + _ROWS * (
                layout.glyph[:, slot, None] * columns + (column - left) * columns // width
            )
            ink = np.where(inside, place, ink)
            top = np.where(inside, layout.top[:, slot, None], top)
            scale = np.where(inside, _row_scale(high), scale)
        shift = np.rint(layout.shear[:, None] * (np.arange(px) - px / 2)).astype(np.int32)  # [B, px]
        at = (np.arange(px, dtype=np.int32) + pad + shift[..., None]) + (np.arange(lanes, dtype=np.int32) * wide)[
            :, None, None
        ]
        row = (np.arange(px, dtype=np.int32)[None, :, None] - top.ravel()[at]) * scale.ravel()[at] >> 16
        ink = ink.ravel().astype(np.int32)[at]
        seen = (row >= 0) & (row < _ROWS) & (ink >= 0)
        return np.where(seen, self._ink.pixels[np.where(seen, ink + row, 0)], 0).astype(np.int32)

    def _painted(self, alpha: np.ndarray, draw: Draws) -> np.ndarray:
        """Wall, plate, ink, light and noise: uint8 ``[B, px, px, 3]``."""
        px, lanes = self.image_px, draw.lanes
        for blurs in (draw.below(3), draw.below(2)):  # 0 to 3 passes
            for _ in range(int(blurs.max(initial=0))):
                alpha = np.where(blurs[:, None, None] > 0, _blurred(alpha), alpha)
                blurs = blurs - 1
        which, row, col = draw.below(_TEXTURES), draw.below(_TEXTURE_PX), draw.below(_TEXTURE_PX)
        span = np.arange(px)
        wall = self._walls[
            which[:, None, None],
            (row[:, None, None] + span[:, None]) % _TEXTURE_PX,
            (col[:, None, None] + span) % _TEXTURE_PX,
        ].astype(np.float32)  # around 0, up to 127
        rough = _between(draw, 0.05, 0.75)
        brightness = _between(draw, 25, 230)
        colour = brightness[:, None] + _between(draw, -35, 35, 3)  # [B, 3]
        # in some images the number is on a plate, or a stucco field of another brightness
        edge = draw.below(px // 8, 4)
        on_plate = (
            (span[:, None] >= edge[:, 0, None, None]) & (span[:, None] < px - edge[:, 1, None, None])
            & (span >= edge[:, 2, None, None]) & (span < px - edge[:, 3, None, None])
        )  # fmt: skip
        plate = np.where(draw.below(3) == 0, _between(draw, -60, 60), np.float32(0))
        ground = wall * rough[:, None, None] + np.where(on_plate, 0, plate[:, None, None])
        contrast = _between(draw, 45, 190)
        darker = draw.below(2) == 1
        darker = np.where(brightness > 165, True, np.where(brightness < 90, False, darker))  # only one side has room
        ink = np.clip(brightness + np.where(darker, -contrast, contrast), 0, 255)[:, None] + _between(draw, -40, 40, 3)
        light = (
            1
            + _between(draw, -0.25, 0.25)[:, None, None] * ((span[:, None] - px / 2) / px).astype(np.float32)
            + _between(draw, -0.25, 0.25)[:, None, None] * ((span - px / 2) / px).astype(np.float32)
        )
        grain, first = _between(draw, 0.0, 12.0), draw.below(_NOISE - 3 * px * px)
        noise = _noise()
        share = alpha.astype(np.float32) / np.float32(255)
        images = np.empty((lanes, px, px, 3), np.uint8)
        under = ground * (1 - share) + np.float32(0.2) * (wall * rough[:, None, None]) * share
        for channel in range(3):
            base, own = colour[:, channel, None, None], ink[:, channel, None, None]
            value = (base + (own - base) * share + under) * light
            for lane in range(lanes):
                start = int(first[lane]) + channel * px * px
                value[lane] += grain[lane] * noise[start : start + px * px].reshape(px, px)
            images[..., channel] = np.clip(value, 0, 255).astype(np.uint8)
        return images


class _Layout(NamedTuple):
    """Where N digits stand, ``[B, N]`` each; ``shear`` ``[B]`` is how many columns a row moves against the next."""

    glyph: np.ndarray
    present: np.ndarray
    left: np.ndarray
    width: np.ndarray
    top: np.ndarray
    high: np.ndarray
    shear: np.ndarray

    def boxes(self, px: int) -> np.ndarray:
        """The boxes (row, col, height, width) ``[B, N, 4]`` of the slanted digits, cut off at the image's edge."""
        scale = _row_scale(self.high)
        below = self.top - (-(_ROWS << 16) // scale)  # first row that shows no ink
        ends = np.stack([self.top, below - 1])  # [2, B, N]
        shifts = np.rint(-self.shear[:, None] * (ends - px / 2)).astype(np.int64)
        left = np.clip(self.left + shifts.min(axis=0), 0, px - 1)
        right = np.clip(self.left + self.width + shifts.max(axis=0), 1, px)
        top, bottom = np.clip(self.top, 0, px - 1), np.clip(below, 1, px)
        boxes = np.stack([top, left, bottom - top, right - left], axis=2)
        boxes[~self.present] = -1
        return boxes


class _Ink(NamedTuple):
    """The ten digits in several looks. A look is a type face in a weight.

    Attributes:
        pixels: how much of each pixel is ink, uint8. It is flat: for each width of ``_COLUMNS`` an array
            ``[looks * 10, columns, _ROWS]``.
        offset: where the array of each width begins.
        aspect: width over height ``[looks * 10]``.
        looks: the number of looks.
    """

    pixels: np.ndarray
    offset: tuple[int, ...]
    aspect: np.ndarray
    looks: int


def _between(draw: Draws, low: float, high: float, count: int | None = None) -> np.ndarray:
    """Uniform float32 in [low, high), ``[B]`` or ``[B, count]``."""
    unit = draw.below(1 << 24, count).astype(np.float32) / np.float32(1 << 24)
    return np.float32(low) + np.float32(high - low) * unit


def _row_scale(high: np.ndarray) -> np.ndarray:
    """Rows of ink per px, in 1/65536."""
    return (_ROWS << 16) // high


def _blurred(maps: np.ndarray) -> np.ndarray:
    """int32 ``[B, h, w]`` filtered by (1, 2, 1) / 4 in both directions. The edge is repeated beyond the image."""
    for axis in (1, 2):
        ends = [(1, 1) if axis == a else (0, 0) for a in range(3)]
        wide = np.pad(maps, ends, mode="edge")
        size = maps.shape[axis]
        before, here, after = (np.take(wide, range(i, i + size), axis=axis) for i in range(3))
        maps = before + 2 * here + after >> 2
    return maps


@cache
def _ink(faces: tuple[str, ...]) -> _Ink:
    import matplotlib  # only to find its type faces
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    drawn: list[np.ndarray] = []
    aspect = []
    for face in faces:
        font = ImageFont.truetype(str(folder / f"{face}.ttf"), _DRAWN_PX, layout_engine=ImageFont.Layout.BASIC)
        for weight in _WEIGHTS:
            for label in range(NUM_CLASSES):
                sheet = Image.new("L", (3 * _DRAWN_PX, 3 * _DRAWN_PX))
                ImageDraw.Draw(sheet).text((_DRAWN_PX, _DRAWN_PX), str(label), 255, font, stroke_width=weight)
                ink = np.asarray(sheet.crop(sheet.getbbox()))
                drawn.append(ink)
                aspect.append(ink.shape[1] / ink.shape[0])
    levels = [
        np.stack([_fitted(ink, columns).T for ink in drawn]) for columns in _COLUMNS
    ]  # [looks * 10, columns, _ROWS] each
    offset = np.cumsum([0, *(level.size for level in levels[:-1])])
    pixels = np.concatenate([level.ravel() for level in levels])
    pixels.flags.writeable = False
    return _Ink(pixels, tuple(offset.tolist()), np.array(aspect, np.float32), len(faces) * len(_WEIGHTS))


def _fitted(ink: np.ndarray, columns: int) -> np.ndarray:
    """uint8 ``[h, w]`` to ``[_ROWS, columns]``."""
    return _stretched(_stretched(ink, _ROWS).T, columns).T


def _stretched(ink: np.ndarray, rows: int) -> np.ndarray:
    """uint8 ``[h, w]`` to ``[rows, w]``: the resize, which makes squares, is applied to a strip of each column."""
    strips = np.repeat(ink.T[:, :, None], 2, axis=2)  # [w, h, 2]
    return bilinear_resize(strips, rows)[:, :, 0].T


@cache
def _walls(stream: int) -> np.ndarray:
    """Textures of one split, int8 ``[_TEXTURES, _TEXTURE_PX, _TEXTURE_PX]`` around 0: rough, boarded, bricked or plain."""
    random = np.random.Generator(np.random.Philox(key=np.array([20171, stream], np.uint64)))
    size = _TEXTURE_PX
    walls = np.zeros((_TEXTURES, size, size), np.int8)
    for kind, wall in enumerate(walls):
        total = np.zeros((size, size), np.int64)
        for cells in (4, 8, 16, 32, 64, 128):
            coarse = random.integers(0, 256, (1, cells, cells), np.uint8)
            total += (bilinear_resize(coarse, size)[0].astype(np.int64) - 128) * int(random.integers(0, 5))
        total //= 6
        along = np.arange(size)
        if kind % 4 == 1:  # boards
            step = int(random.integers(12, 48))
            shade = random.integers(-60, 61, size // step + 1)[along // step] - 70 * (along % step < 2)
            total += shade[:, None] if kind % 8 == 1 else shade
        elif kind % 4 == 2:  # bricks
            high, wide = int(random.integers(14, 30)), int(random.integers(30, 70))
            course = along // high
            brick = (along + (course % 2)[:, None] * (wide // 2)) // wide
            shades = random.integers(-40, 41, (size // high + 1, size // wide + 3))
            joint = ((along % high < 2)[:, None]) | ((along + (course % 2)[:, None] * (wide // 2)) % wide < 2)
            total += shades[course[:, None], brick] + np.where(joint, int(random.integers(-80, 81)), 0)
        elif kind % 4 == 3:
            total //= 3
        wall[...] = np.clip(total, -127, 127)
    walls.flags.writeable = False
    return walls


@cache
def _noise() -> np.ndarray:
    """Sums of four uniform numbers, float32 ``[_NOISE]``, mean 0, standard deviation about 1."""
    random = np.random.Generator(np.random.Philox(key=np.array([20171, 99], np.uint64)))
    total = random.integers(0, 256, (4, _NOISE), np.uint8).astype(np.int32).sum(axis=0) - 510
    noise = total.astype(np.float32) / np.float32(148)
    noise.flags.writeable = False
    return noise
