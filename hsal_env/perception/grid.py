"""Where the cells of a map lie on the image."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from hsal_env.perception.activation import ActivationModel


class Grid(NamedTuple):
    """Cell (r, c) looks at ``first_px + (r, c) stride_px`` and sees a square of ``field_px`` around it; (row, col) each.

    Attributes:
        first_px: centre of cell (0, 0).
        stride_px: from one centre to the next.
        field_px: sides of a cell's receptive field.
    """

    first_px: tuple[float, float]
    stride_px: tuple[float, float]
    field_px: tuple[float, float]

    @classmethod
    def of(cls, model: ActivationModel | None, image_px: tuple[int, int], map_size: tuple[int, int]) -> Grid:
        """The grid of a model, from its attributes ``first_px``, ``stride_px``, ``receptive_field_px`` and ``resized_px``.

        The first three are in px of the image. If the model names ``resized_px``, it resizes images to a square of that side, and
        they are in px of that square. What is None has a default: the cells cut the image into H x W equal bands, lie about its
        middle, and see as much as one stride. Without a model, all of them have.
        """
        said = (
            [None] * 4
            if model is None
            else [model.resized_px, model.stride_px, model.first_px, model.receptive_field_px]
        )
        resized, stride, first, field = said
        row_scale, col_scale = (1.0 if resized is None else pixels / resized for pixels in image_px)

        def scaled(number: float) -> tuple[float, float]:
            return float(number * row_scale), float(number * col_scale)

        strides = scaled(stride) if stride is not None else (image_px[0] / map_size[0], image_px[1] / map_size[1])
        middle = [(px - (cells - 1) * step) / 2 for px, cells, step in zip(image_px, map_size, strides, strict=True)]
        return cls(
            scaled(first) if first is not None else (middle[0], middle[1]),
            strides,
            scaled(field) if field is not None else strides,
        )

    def centres(self, cells: np.ndarray, columns: int) -> np.ndarray:
        """Of flat cells ``[...]`` in a map of so many columns: (row, col) in px ``[..., 2]``.

        Example:
            >>> Grid(first_px=(8, 8), stride_px=(16, 16), field_px=(16, 16)).centres(np.array([0, 9]), columns=7)
            array([[ 8,  8],
                   [24, 40]])
        """
        return np.array(self.first_px) + np.stack(np.divmod(cells, columns), axis=-1) * np.array(self.stride_px)

    def areas(self, image_px: tuple[int, int], map_size: tuple[int, int], pixels: tuple[int, int]) -> list[np.ndarray]:
        """Of each row of cells and each column of cells: the share of every row and column of pixels in it.

        A cell's area is ``stride_px`` large about its centre, as far as it lies on the image; one that lies beside it has none.

        Args:
            image_px: (h, w) of the image.
            map_size: (H, W) in cells.
            pixels: (h', w') into which a map of the whole image is divided: those of the image, or others.

        Returns:
            float64 ``[H, h']`` and ``[W, w']``; each row sums to 1, or is 0.
        """
        shares = []
        for first, stride, length, cells, count in zip(
            self.first_px, self.stride_px, image_px, map_size, pixels, strict=True
        ):
            begin = (first + (np.arange(cells) - 0.5) * stride) * count / length
            end = begin + stride * count / length
            pixel = np.arange(count)
            overlap = np.minimum(end[:, None], pixel + 1) - np.maximum(begin[:, None], pixel)  # [cells, count]
            overlap = overlap.clip(min=0)
            total = overlap.sum(axis=1, keepdims=True)
            shares.append(overlap / np.where(total > 0, total, 1))
        return shares
