"""A picture of images and their saliency maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from hsal_env.perception.finding import cells_held, local_maxima
from hsal_env.perception.grid import Grid

_IN, _BESIDE = "#ffffff", "#D55E00"


@style.context("default")
def draw_maps(images: np.ndarray, boxes: np.ndarray, maps: dict[str, np.ndarray], grid: Grid) -> np.ndarray:
    """Draw one row per image: the image, then the map of each model, coloured from its lowest to its highest value.

    The boxes are drawn where they are known. The dots are the local maxima: white inside a box, orange outside.

    Args:
        images: uint8 ``[B, h_px, w_px]`` or ``[B, h_px, w_px, 3]``.
        boxes: ``[B, N, 4]`` as (row, col, height, width) in px, padded with -1.
        maps: the maps ``[B, H, W]`` of each model, by its name.
        grid: where the cells lie on the image.

    Returns:
        RGB uint8 ``[h, w, 3]``.
    """
    count, rows, columns = next(iter(maps.values())).shape
    height, width = images.shape[1:3]
    figure = Figure(figsize=(1.5 * (1 + len(maps)), 1.5 * count * height / width + 0.35), dpi=100, facecolor="white")
    canvas: Any = FigureCanvasAgg(figure)  # matplotlib leaves its methods untyped
    panels = figure.subplots(count, 1 + len(maps), squeeze=False)
    figure.subplots_adjust(
        left=0.005, right=0.995, bottom=0.01, top=1 - 0.3 / figure.get_figheight(), wspace=0.05, hspace=0.05
    )
    (top, left), (step, across) = np.array(grid.first_px) - np.array(grid.stride_px) / 2, grid.stride_px
    extent = (left, left + columns * across, top + rows * step, top)
    for row, line in enumerate(panels):
        held = cells_held(boxes[row : row + 1], grid, (rows, columns))[0].any(axis=0)
        for panel, name in zip(line, ("image", *maps), strict=True):
            if name == "image":
                panel.imshow(images[row], cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
            else:
                values = maps[name][row]
                panel.imshow(
                    values,
                    cmap="viridis",
                    vmin=values.min(),
                    vmax=max(values.max(), values.min() + 1e-12),
                    extent=extent,
                )
                peaks = np.argwhere(local_maxima(values[None])[0])
                centres = grid.centres(peaks @ [columns, 1], columns)
                colours = [_IN if held[tuple(peak)] else _BESIDE for peak in peaks]
                panel.scatter(centres[:, 1], centres[:, 0], s=14, c=colours, edgecolors="black", linewidths=0.6)
            for box in boxes[row][boxes[row][:, 2] > 0]:
                corner, (tall, wide) = box[1::-1], box[2:]
                panel.add_patch(Rectangle(corner, wide, tall, facecolor="none", edgecolor="#E69F00", linewidth=1.0))
            panel.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
            if row == 0:
                panel.set_title(name, fontsize=8)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3].copy()
