"""Where the cells of a map lie on the image."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from hsal_env.perception.activation import ActivationModel


class Grid(NamedTuple):
    """The centres and receptive fields of the cells, in px of the image.

    Cell (r, c) is centred at ``first_px + (r, c) * stride_px`` and sees a rectangle of ``field_px`` around its centre.

    Attributes:
        first_px: centre of cell (0, 0), as (row, col).
        stride_px: distance from one centre to the next, along rows and columns.
        field_px: height and width of a cell's receptive field.
    """

    first_px: tuple[float, float]
    stride_px: tuple[float, float]
    field_px: tuple[float, float]

    @classmethod
    def of(cls, model: ActivationModel | None, image_px: tuple[int, int], map_size: tuple[int, int]) -> Grid:
        """The grid of a model, by its attributes ``first_px``, ``stride_px``, ``receptive_field_px`` and ``resized_px``.

        The first three are in px of the image. A model that resizes images to a square names the side of that square in
        ``resized_px``; the first three are then in px of the square. ``first_px`` may be one number for both axes, or (row, col).
        An attribute that is None has a default:

        - ``stride_px``: the cells divide the image into H x W equal parts;
        - ``first_px``: the cells lie symmetrically about the middle of the image;
        - ``receptive_field_px``: one stride.

        Args:
            model: the activation model; None: all attributes have their defaults.
            image_px: (h, w) of the image.
            map_size: (H, W) in cells.
        """
        resized = stride = first = field = None
        if model is not None:
            resized, stride, first, field = model.resized_px, model.stride_px, model.first_px, model.receptive_field_px
        row_scale, col_scale = (1.0 if resized is None else pixels / resized for pixels in image_px)

        def scaled(number: float | tuple[float, float]) -> tuple[float, float]:
            row, col = number if isinstance(number, tuple) else (number, number)
            return float(row * row_scale), float(col * col_scale)

        strides = scaled(stride) if stride is not None else (image_px[0] / map_size[0], image_px[1] / map_size[1])
        middle = [(px - (cells - 1) * step) / 2 for px, cells, step in zip(image_px, map_size, strides, strict=True)]
        return cls(
            scaled(first) if first is not None else (middle[0], middle[1]),
            strides,
            scaled(field) if field is not None else strides,
        )

    def centres(self, cells: np.ndarray, columns: int) -> np.ndarray:
        """The centres (row, col) in px ``[..., 2]`` of row-major cell indices ``[...]``, in a map of ``columns`` columns.

        Where an index is below 0, there is no cell, and the centre is NaN.

        Example:
            >>> Grid(first_px=(8, 8), stride_px=(16, 16), field_px=(16, 16)).centres(np.array([0, 9]), columns=7)
            array([[ 8.,  8.],
                   [24., 40.]])
        """
        centres = np.array(self.first_px) + np.stack(np.divmod(cells, columns), axis=-1) * np.array(self.stride_px)
        return np.where(cells[..., None] >= 0, centres, np.nan)

    def areas(self, image_px: tuple[int, int], map_size: tuple[int, int], pixels: tuple[int, int]) -> list[np.ndarray]:
        """The matrices R and C that average a map of the whole image over the areas of cells: ``R @ map @ C.T``.

        The area of a cell is the rectangle of ``stride_px`` about its centre, as far as it lies on the image.

        Args:
            image_px: (h, w) of the image.
            map_size: (H, W) in cells.
            pixels: (h', w') of the map of the whole image, which may have another resolution than the image.

        Returns:
            R ``[H, h']`` and C ``[W, w']``, float64: the share that each row (column) of pixels has in each row (column) of
            cells. A row of R or C sums to 1, or to 0 where the cells lie beside the image.
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
