"""Pictures of recorded episodes, in the manner of the paper's figures 2 and 12.

They are drawn with matplotlib's classes in its default style, and never with pyplot. So a picture depends on its arguments only,
and no window, global figure or setting changes. Cells lie where :class:`hsal_env.perception.grid.Grid` says. A panel shows the
image, and a margin where the outermost cells reach beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from hsal_env.errors import DataError
from hsal_env.rendering.placing import Placement, cells_extent, check_drawable, chosen_until
from hsal_env.rendering.words import BLUE, CROSS, GREEN, ORANGE, TICK, VERMILLION, braces, multiset, runs
from hsal_env.storage.files import replacing
from hsal_env.trace import Trace

_DPI = 128  # a power of two, so that px / dpi * dpi is exact
_MAPS = "viridis"
_CONTOURS = (0.25, 0.5, 0.75)  # as shares of the mask's maximum
_FINER = 8  # points per cell and side from which contours are computed

# px
_LEFT, _TOP, _PANEL, _PITCH = 92, 60, 140, 148
_RIGHT, _FOOT, _LEAST_WIDTH = 34, 52, 440


@style.context("default")
def draw_trace(
    trace: Trace, until: int | None = None, columns: int | None = None, *, boxes: bool = False, labelled: bool = True
) -> np.ndarray:
    """Draw an episode, one column per meta-step: S with contours of M, P, the image with glimpses, and the label that was named.

    The colours of S and P have the fixed scale [0, 1]. The contours are at 1/4, 1/2 and 3/4 of the mask's maximum. A glimpse is
    drawn as the square of its cell with its receptive field dashed; glimpses are numbered in the order of looking. A label is
    green with a tick if it was among the remaining ones (stop: if none remained), and vermillion with a cross otherwise. Its
    probability stands under it where it is known.

    Args:
        trace: the trace of an episode, or of its beginning.
        until: how many decisions are shown, from the first on; None: all. The size of the picture does not depend on it.
        columns: how many meta-steps there is room for; None: as many as the trace has.
        boxes: whether the objects' boxes are drawn on the image where they are known.
        labelled: whether the true labels are known. Without them, no label is right or wrong: all are black.

    Returns:
        RGB uint8 ``[h, w, 3]``; h is constant, and w grows with the number of columns.

    Raises:
        DataError: the parts of the trace do not fit each other, or ``until`` or ``columns`` is outside its range.
    """
    return sheet_of(trace, until, columns, boxes=boxes, labelled=labelled).pixels()


def sheet_of(
    trace: Trace, until: int | None = None, columns: int | None = None, *, boxes: bool = False, labelled: bool = True
) -> Sheet:
    """The page of :func:`draw_trace`."""
    check_drawable(trace)
    decisions, until = len(trace.phase), chosen_until(trace, until)
    columns = max(trace.meta_steps, 1) if columns is None else columns
    if columns < trace.meta_steps:
        raise DataError(f"Expected at least {trace.meta_steps} columns, one per meta-step; got {columns}.")
    foot, right = _TOP + 3 * _PITCH, _LEFT + columns * _PITCH
    sheet = Sheet(foot + _FOOT, max(right + _RIGHT, _LEAST_WIDTH))
    _draw_title(sheet, trace, until, labelled)
    tops = [_TOP + row * _PITCH for row in range(3)]
    for top, words in zip(tops, ("saliency S,\nmask M\n(contours)", "priority P", "image and\nglimpses"), strict=True):
        sheet.text(8, top + _PANEL // 2, words, size=8, va="center")
    for top in tops[:2]:
        sheet.colour_bar(right, top, _PANEL)
    for words, top, size in (("meta-step", _TOP - 21, 8), ("label", foot + 1, 8), ("probability", foot + 26, 7.5)):
        sheet.text(8, top, words, size=size)
    for column in range(columns):
        sheet.text(_LEFT + column * _PITCH + _PANEL // 2, _TOP - 21, str(column + 1), size=8, ha="center")

    for column in range(columns):
        begun = np.flatnonzero(trace.meta_step[:until] == column)
        panels = [Panel.of(trace, _LEFT + column * _PITCH, top, _PANEL) for top in tops]
        for panel in panels:
            panel.frame(sheet.axes, "#999999" if len(begun) else "#dddddd")
        if len(begun):
            _draw_meta_step(sheet, trace, begun, panels, boxes, labelled)
        elif _is_next(trace, until, column):
            panels[0].map(sheet.axes, trace.saliency[until] if until < decisions else trace.saliency_left)
            panels[2].image(sheet.axes, trace.image)
    return sheet


def draw_traces(traces: Sequence[Trace]) -> np.ndarray:
    """Draw several episodes below one another.

    Returns:
        RGB uint8 ``[h, w, 3]``, as wide as the widest picture; the others have white at their right.

    Raises:
        DataError: there are no traces, or :func:`draw_trace` refuses one of them.
    """
    if not traces:
        raise DataError("Expected at least one trace to draw; got none.")
    pictures = [draw_trace(trace) for trace in traces]
    width = max(picture.shape[1] for picture in pictures)
    padded = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures]
    return np.concatenate(padded, axis=0)


def save_picture(picture: np.ndarray, path: Path) -> None:
    """Write ``picture``, RGB uint8 ``[h, w, 3]``, as a PNG file, completely or not at all.

    Raises:
        DataError: the picture has another dtype or shape; nothing is written.
        OSError: the file cannot be written; a file that was at ``path`` is still there.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise DataError(f"Expected a picture uint8 [h, w, 3]; got {picture.dtype} {list(picture.shape)}.")
    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")


@style.context("default")
def save_pdf(traces: Sequence[Trace], path: Path) -> None:
    """Write the pictures of :func:`draw_trace` as a PDF of vector graphics, one page each, completely or not at all.

    Raises:
        DataError: there are no traces, or :func:`draw_trace` refuses one of them; nothing is written.
        OSError: the file cannot be written; a file that was at ``path`` is still there.
    """
    if not traces:
        raise DataError("Expected at least one trace to draw; got none.")
    sheets = [sheet_of(trace) for trace in traces]
    undated = {"CreationDate": None}  # without a date, the same traces give the same bytes
    with replacing(path) as temporary, PdfPages(temporary, metadata=undated) as pages:
        for sheet in sheets:
            pages.savefig(sheet.finished())


def _draw_title(sheet: Sheet, trace: Trace, until: int, labelled: bool) -> None:
    predicted = [trace.label_name(label) for label in trace._replace(label=trace.label[:until]).named.tolist()]
    if not labelled:
        sheet.text(8, 8, f"named {braces(predicted)}", sheet.width - 16, size=10, weight="bold")
        return
    true = multiset(np.bincount(trace.labels, minlength=trace.num_classes), trace.label_name)
    ended = until == len(trace.phase) and (trace.terminated or trace.truncated)
    verdict = [f"   {TICK if trace.exact_match else CROSS}"] if ended else []
    title = "".join([f"true {true}   predicted {braces(predicted)}", *verdict])
    looks: dict[str, Any] = {"color": GREEN if trace.exact_match else VERMILLION} if ended else {}
    sheet.text(8, 8, title, sheet.width - 16, size=10, weight="bold", **looks)


def _draw_meta_step(
    sheet: Sheet, trace: Trace, begun: np.ndarray, panels: Sequence[Panel], boxes: bool, labelled: bool
) -> None:
    first, last = int(begun[0]), int(begun[-1])
    saliency, priority, glimpses = panels
    saliency.map(sheet.axes, trace.saliency[first])
    saliency.contours(sheet.axes, trace.mask[first])
    priority.map(sheet.axes, trace.priority[first])
    glimpses.image(sheet.axes, trace.image)
    if boxes:
        glimpses.boxes(sheet.axes)
    glimpses.glimpses(sheet.axes, begun[trace.location[begun] >= 0])
    label = int(trace.label[last])
    if label < 0:
        return
    right = bool(trace.right[last])
    middle, foot = panels[0].left + _PANEL // 2, _TOP + 3 * _PITCH
    words = trace.label_name(label)
    looks: dict[str, Any] = {"ha": "center"}
    if labelled:
        words, looks["color"] = f"{words} {TICK if right else CROSS}", GREEN if right else VERMILLION
    sheet.text(middle, foot - 4, words, _PANEL, size=11, weight="bold", **looks)
    if np.isfinite(trace.log_prob[last]):
        sheet.text(middle, foot + 26, f"{np.exp(trace.log_prob[last]):.2f}", size=7.5, **looks)


def _is_next(trace: Trace, until: int, column: int) -> bool:
    """Whether the next decision, after ``until`` decisions, begins the meta-step ``column``."""
    finished = int(trace.meta_step[until - 1]) + (trace.label[until - 1] >= 0) if until else 0
    over = until == len(trace.phase) and (trace.terminated or trace.truncated)
    return bool(finished == column and not over)


class Panel(Placement):
    """A placement that draws on the axes of a sheet."""

    def frame(self, axes: Axes, colour: str) -> None:
        """A line around the panel."""
        axes.add_patch(
            Rectangle((self.left, self.top), self.side, self.side, facecolor="none", edgecolor=colour, linewidth=0.8)
        )

    def _show(self, axes: Axes, pixels: np.ndarray, extent: Any, **looks: Any) -> None:
        (top, bottom), (left, right) = extent
        (x0, y0), (x1, y1) = self.at(top, left), self.at(bottom, right)
        axes.imshow(pixels, extent=(x0, x1, y1, y0), aspect="auto", interpolation="nearest", **looks)

    def image(self, axes: Axes, pixels: np.ndarray) -> None:
        """``pixels``, uint8 ``[h_px, w_px]`` or ``[h_px, w_px, 3]``, where the image lies."""
        self._show(axes, pixels, ((0, pixels.shape[0]), (0, pixels.shape[1])), cmap="gray", vmin=0, vmax=255)

    def map(self, axes: Axes, values: np.ndarray) -> None:
        """``values`` ``[H, W]`` in [0, 1], a colour per cell."""
        self._show(axes, values, cells_extent(self.trace), cmap=_MAPS, vmin=0, vmax=1)

    def contours(self, axes: Axes, mask: np.ndarray) -> None:
        """Lines at 1/4, 1/2 and 3/4 of the maximum of ``mask`` ``[H, W]``."""
        levels = [part * mask.max() for part in _CONTOURS if mask.min() < part * mask.max()]
        if not levels:
            return
        rows, cols = mask.shape
        fine = Image.fromarray(mask.astype(np.float32)).resize((cols * _FINER, rows * _FINER), Image.Resampling.BICUBIC)
        (top, bottom), (left, right) = cells_extent(self.trace)
        y = top + (np.arange(rows * _FINER) + 0.5) * (bottom - top) / (rows * _FINER)
        x = left + (np.arange(cols * _FINER) + 0.5) * (right - left) / (cols * _FINER)
        lines = axes.contour(*self.at(y, x), np.asarray(fine), levels, colors="white", linewidths=1.0)
        lines.set_path_effects([withStroke(linewidth=2.2, foreground="black")])

    def boxes(self, axes: Axes) -> None:
        """Draw the known boxes of the objects, as far as they lie in the panel."""
        for row, col, height, width in self.trace.boxes[self.trace.boxes[:, 2] >= 0].tolist():
            x0, y0, x1, y1 = self.square(np.array([row + height / 2, col + width / 2]), (height, width))
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, facecolor="none", edgecolor=BLUE, linewidth=0.9))

    def glimpses(self, axes: Axes, decisions: np.ndarray) -> None:
        """Draw the glimpses of some decisions, numbered in the order of looking. A cell looked at twice has both numbers."""
        grid, locations = self.trace.grid, self.trace.location[decisions].tolist()
        for place, cell in enumerate(dict.fromkeys(locations)):
            centre = self.trace.location_px[decisions[locations.index(cell)]]
            self._square(axes, centre, grid.field_px, linewidth=0.9, linestyle=(0, (4, 3)))
            self._square(axes, centre, grid.stride_px, linewidth=1.6)
            numbers = runs([i for i, location in enumerate(locations, start=1) if location == cell])
            x, y = self.at(*centre)
            away = grid.stride_px[0] * self.scale / 2 + 9  # outside of the cell, so that its content stays visible
            above = y - away > self.top + 8 and (place % 2 == 0 or y + away > self.top + self.side - 8)
            text = axes.text(
                min(max(x, self.left + 5 + 4 * len(numbers)), self.left + self.side - 5 - 4 * len(numbers)),
                min(y - away if above else y + away, self.top + self.side - 8),
                numbers, size=7.5, weight="bold", color=ORANGE, ha="center", va="center_baseline",
            )  # fmt: skip
            text.set_path_effects([withStroke(linewidth=2.0, foreground="black")])

    def _square(self, axes: Axes, centre: np.ndarray, sides: tuple[float, float], **looks: Any) -> None:
        """Draw a square of a cell, as far as it lies in the panel."""
        x0, y0, x1, y1 = self.square(centre, sides)
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, facecolor="none", edgecolor=ORANGE, **looks))


class Sheet:
    """A white page with axes that cover it. Places are in px from its top left corner.

    Args:
        height, width: size of the page, in px.
        zoom: pixels of the finished picture per px of the page.
    """

    def __init__(self, height: int, width: int, zoom: int = 1) -> None:
        self.height, self.width, self._zoom = height, width, zoom
        self._figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI * zoom, facecolor="white")
        self._canvas: Any = FigureCanvasAgg(self._figure)  # matplotlib leaves its methods untyped
        self.axes = self._figure.add_axes((0.0, 0.0, 1.0, 1.0))
        self.axes.axis("off")

    def text(self, left: int, top: int, words: str, room: int | None = None, **looks: Any) -> None:
        """Write ``words`` below ``top``; make them smaller until they are no wider than ``room`` px."""
        at = (left / self.width, 1 - top / self.height)
        text = self._figure.text(*at, words, **{"va": "top", **looks})
        size = float(text.get_fontsize())
        while room is not None and text.get_window_extent().width > room * self._zoom and size > 1:
            size *= 0.95  # in steps: hinted letters do not shrink in proportion
            text.set_fontsize(size)

    def colour_bar(self, left: int, top: int, height: int, most: str = "1") -> None:
        """Draw the colours of the values from 0 to ``most``."""
        values = np.linspace(1, 0, 256)[:, None]
        self.axes.imshow(values, cmap=_MAPS, vmin=0, vmax=1, extent=(left, left + 9, top + height, top), aspect="auto")
        self.text(left + 13, top - 2, most, size=7)
        self.text(left + 13, top + height + 2, "0", size=7, va="bottom")

    def finished(self) -> Figure:
        """The figure. Its limits are set to px again, which drawing may have changed."""
        self.axes.set(xlim=(0, self.width), ylim=(self.height, 0))
        return self._figure

    def pixels(self) -> np.ndarray:
        """RGB uint8 ``[zoom height, zoom width, 3]``."""
        self.finished()
        self._canvas.draw()
        return np.array(self._canvas.buffer_rgba())[..., :3].copy()
