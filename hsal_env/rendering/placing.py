"""Where the image and the cells of its maps lie in a square panel of a picture."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from hsal_env.errors import DataError
from hsal_env.trace import Trace


class Placement(NamedTuple):
    """A square of a picture that shows the image, or a map of it.

    Attributes:
        left, top: its top left corner, in px.
        side: side of the square, in px.
        scale: px of the picture per px of the image.
        origin: the point (row, col) of the image in that corner, in px.
        trace: its image and cells are shown.
    """

    left: int
    top: int
    side: int
    scale: float
    origin: tuple[float, float]
    trace: Trace

    @classmethod
    def of(cls, trace: Trace, left: int, top: int, side: int) -> Any:
        """The square that shows the whole image and all cells, centred."""
        (low_row, high_row), (low_col, high_col) = (
            (min(0.0, low), max(float(pixels), high))
            for (low, high), pixels in zip(cells_extent(trace), trace.image.shape, strict=False)
        )
        scale = side / max(high_row - low_row, high_col - low_col)
        spare_row, spare_col = (
            (side / scale - (high - low)) / 2 for low, high in ((low_row, high_row), (low_col, high_col))
        )
        return cls(left, top, side, scale, (low_row - spare_row, low_col - spare_col), trace)

    def at(self, row: Any, col: Any) -> tuple[Any, Any]:
        """The place (x, y) in the picture of the point (row, col) of the image."""
        return self.left + (col - self.origin[1]) * self.scale, self.top + (row - self.origin[0]) * self.scale

    def square(self, centre: np.ndarray, sides: tuple[float, float]) -> tuple[float, float, float, float]:
        """Corners (x0, y0, x1, y1) of a rectangle of the image, in the picture, as far as it lies in the panel."""
        corners = [self.at(*(centre + sign * np.array(sides) / 2)) for sign in (-1, 1)]
        (x0, y0), (x1, y1) = (
            (min(max(x, self.left), self.left + self.side), min(max(y, self.top), self.top + self.side))
            for x, y in corners
        )
        return x0, y0, x1, y1


def cells_extent(trace: Trace) -> tuple[tuple[float, float], tuple[float, float]]:
    """The rectangle that the cells cover, in px of the image: (top, bottom), (left, right)."""
    (low_row, high_row), (low_col, high_col) = (
        (first - step / 2, first + (cells - 0.5) * step)
        for first, step, cells in zip(trace.grid.first_px, trace.grid.stride_px, trace.map_size, strict=True)
    )
    return (low_row, high_row), (low_col, high_col)


def check_drawable(trace: Trace) -> None:
    """Hold the parts of a trace against each other.

    Raises:
        DataError: an image or map of another dtype or shape, or a number outside its range.
    """
    image, count = trace.image, len(trace.phase)
    if image.dtype != np.uint8 or not (image.ndim == 2 or image.shape[2:] == (3,)) or not image.size:
        raise DataError(f"Expected an image uint8 [h, w] or [h, w, 3]; got {image.dtype} {list(image.shape)}.")
    size = trace.saliency_left.shape
    shapes = {name: getattr(trace, name).shape for name in ("saliency", "mask", "priority")}
    if len(size) != 2 or 0 in size or any(shape != (count, *size) for shape in shapes.values()):
        raise DataError(f"Expected maps [N, H, W] of {count} decisions and one of [H, W]; got {shapes} and {size}.")
    looks = trace.location >= 0
    if trace.location_px.shape != (count, 2) or not np.isfinite(trace.location_px[looks]).all():
        raise DataError(f"Expected finite location_px [{count}, 2] of each location; got {trace.location_px.shape}.")
    for name, low, high in (
        ("location", -1, size[0] * size[1]), ("label", -1, trace.num_classes + 1), ("labels", 0, trace.num_classes),
    ):  # fmt: skip
        values = getattr(trace, name)
        outside = values[(values < low) | (values >= high)]
        if len(outside):
            raise DataError(f"Expected {name} in {low}..{high - 1}; got {outside[0]}.")
    if trace.class_names and len(trace.class_names) != trace.num_classes:
        raise DataError(f"Expected {trace.num_classes} class names, or none; got {len(trace.class_names)}.")


def chosen_until(trace: Trace, until: int | None) -> int:
    """How many decisions are shown; None: all.

    Raises:
        DataError: fewer than none, or more than there are.
    """
    decisions = len(trace.phase)
    until = decisions if until is None else until
    if not 0 <= until <= decisions:
        raise DataError(f"Expected until in 0..{decisions}, the number of decisions; got {until}.")
    return until
