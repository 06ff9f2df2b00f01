"""Images of any size brought to one size, with their boxes; and positions brought back to the image as it was."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from hsal_env.data.canvases import MOST_CANVAS_PX
from hsal_env.errors import ConfigError, DataError

FitMode = Literal["letterbox", "crop", "stretch"]

_AREA_PX = 35_840  # of an image by default: 140 cells of 16 px
_SIDE_PX = 16  # sides are multiples of it by default, since cells of most activation models are 8 or 16 px wide


@dataclass(frozen=True)
class Fit:
    """How images of any size become images of one size.

    ``"letterbox"`` shows the whole image, as large as it can be, in the middle; the rest has the image's mean colour.
    ``"crop"`` fills the target and cuts off what does not fit, as much on both sides. Both keep the proportions of the image, up
    to the rounding of its sides to whole px. ``"stretch"`` does not keep them.

    With the image of (h, w) px resized to (h', w') px, which begins at (top, left) of the target (negative where it is cut off),
    a position moves along as ``row' = row h'/h + top``, ``col' = col w'/w + left``.

    Args:
        image_px: (rows, columns) of the target; one number means a square.
        fit: see above.

    Raises:
        ConfigError: a side outside 1..4,096, or another ``fit``.

    Example:
        >>> Fit((100, 200)).boxes(np.array([[10, 10, 20, 30]]), size=(50, 50))  # twice as large, 50 px of padding on the left
        array([[20, 70, 40, 60]])
        >>> Fit((100, 200)).to_original(np.array([[20, 70]]), size=(50, 50))
        array([[10., 10.]])
    """

    image_px: tuple[int, int]
    fit: FitMode = "letterbox"

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_px", checked_px(self.image_px))
        if self.fit not in get_args(FitMode):
            raise ConfigError(f"Expected fit to be one of {', '.join(get_args(FitMode))}; got {self.fit!r}.")

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """An image uint8 ``[h, w]`` or ``[h, w, 3]`` in the target size. An image of that size is returned as it is.

        Resizing is bilinear, and antialiased where it makes the image smaller.

        Raises:
            DataError: an array of another dtype or shape.
        """
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or not image.size:
            raise DataError(
                f"Expected an image uint8 [h, w] or [h, w, 3] of at least 1 px; got {image.dtype} of shape {image.shape}."
            )
        size, (rows, columns) = (image.shape[0], image.shape[1]), self.image_px
        if size == self.image_px:
            return image
        inner, corner = (np.array(part) for part in self._placed(size))
        shown = np.minimum(inner, self.image_px)
        cut = np.maximum(0, -corner)
        start, stop = cut * size / inner, np.minimum((cut + shown) * size / inner, size)  # of the original
        window = (start[1], start[0], stop[1], stop[0])
        resized = np.array(Image.fromarray(image).resize((shown[1], shown[0]), Image.Resampling.BILINEAR, box=window))
        if resized.shape[:2] == self.image_px:
            return resized
        top, left = corner
        canvas = np.empty((rows, columns, *image.shape[2:]), np.uint8)
        canvas[:] = np.round(image.mean(axis=(0, 1)))
        canvas[top : top + shown[0], left : left + shown[1]] = resized
        return canvas

    def boxes(self, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Boxes int64 ``[n, 4]`` (row, col, height, width) in px of the target, rounded outwards and cut off at its edges.

        A box that was -1, which means unknown, or that lies in what was cropped away, is -1.

        Args:
            boxes: ``[n, 4]`` in whole px of the original.
            size: (h, w) of the original.
        """
        boxes = np.asarray(boxes, np.int64).reshape(-1, 4)
        inner, corner = (np.array(part) for part in self._placed(size))
        start = np.clip(boxes[:, :2] * inner // size + corner, 0, self.image_px)
        stop = np.clip(-(-(boxes[:, :2] + boxes[:, 2:]) * inner // size) + corner, 0, self.image_px)
        moved = np.concatenate([start, stop - start], axis=1)
        moved[(boxes[:, 2:] <= 0).any(axis=1) | (start >= stop).any(axis=1)] = -1
        return moved

    def to_original(self, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Positions (row, col) ``[..., 2]`` in px of the target, such as the centres of cells, in px of the original.

        A position in the padding lies outside the original.

        Args:
            points: ``[..., 2]``, from 0 at the upper or left edge to the side at the lower or right one.
            size: (h, w) of the original.
        """
        inner, corner = self._placed(size)
        return (np.asarray(points, np.float64) - corner) * np.array(size) / inner

    def _placed(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width of the resized image, and where in the target it begins: negative, where it is cut off."""
        (height, width), (rows, columns) = size, self.image_px
        if self.fit == "stretch":
            return self.image_px, (0, 0)
        if (rows * width < columns * height) == (self.fit == "letterbox"):  # the rows decide
            inner = rows, max(1, (2 * width * rows + height) // (2 * height))
        else:
            inner = max(1, (2 * height * columns + width) // (2 * width)), columns
        if self.fit == "crop":  # rounding must leave no gap
            inner = max(inner[0], rows), max(inner[1], columns)
        return inner, ((rows - inner[0]) // 2, (columns - inner[1]) // 2)


def checked_px(image_px: Any) -> tuple[int, int]:
    """(rows, columns) from two whole numbers, or from one, which means a square.

    Raises:
        ConfigError: anything else, or a side outside 1..4,096.
    """
    sides = tuple(image_px) if isinstance(image_px, tuple | list) else (image_px, image_px)
    whole = all(isinstance(side, int | np.integer) and not isinstance(side, bool) for side in sides)
    if len(sides) != 2 or not whole or not all(1 <= side <= MOST_CANVAS_PX for side in sides):
        raise ConfigError(
            f"Expected image_px as a whole number in 1..{MOST_CANVAS_PX}, or as two, for rows and columns; got "
            f"{image_px!r:.60}."
        )
    return int(sides[0]), int(sides[1])


def suited_px(sizes: np.ndarray, area_px: int = _AREA_PX) -> tuple[int, int]:
    """(rows, columns) that suit images of the sizes (h, w) ``[N, 2]``.

    They have the median of h/w, about ``area_px`` in all, or fewer if the median image has fewer, and are multiples of 16.

    Example:
        >>> suited_px(np.array([[480, 640]])), suited_px(np.array([[50, 170], [40, 170], [60, 180]]))
        ((160, 224), (64, 176))
    """
    heights, widths = np.asarray(sizes, np.float64).T
    median, ratio = float(np.median(heights * widths)), float(np.median(heights / widths))
    exact = [math.sqrt(min(median, area_px) * part) / _SIDE_PX for part in (ratio, 1 / ratio)]
    units = [round(side) if median > area_px else math.ceil(side - 1e-9) for side in exact]
    rows, columns = (min(max(1, unit) * _SIDE_PX, MOST_CANVAS_PX) for unit in units)
    return rows, columns
