"""Pictures of a state and, in the manner of the paper's figure 2, of whole episodes.

Drawn through matplotlib's objects and in its default style, never through pyplot: a picture depends on its arguments
alone, and no window, global figure or setting is touched. Maps are drawn over the whole canvas: of H x W cells, cell
(r, c) covers a band of height / H by width / W px, and its centre is ((r + 1/2) height / H, (c + 1/2) width / W).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image
from torch import Tensor

from hsal_env.data.glyphs import NUM_CLASSES
from hsal_env.dynamics import State
from hsal_env.errors import DataError
from hsal_env.files import replacing

_DPI = 128  # a power of two, so that px / dpi * dpi is exact
_MAPS = "viridis"
_ORANGE, _GREEN, _VERMILLION = "#E69F00", "#009E73", "#D55E00"  # Okabe and Ito's colours
_LONGEST_MULTISET = 12  # labels that are written out
_CONTOURS = (0.25, 0.5, 0.75)  # of the mask's maximum

# px of draw_state
_STATE_WIDTH, _STATE_HEIGHT = 1200, 330
_STATE_LEFT, _STATE_TOP, _STATE_PANEL, _STATE_PITCH = 16, 82, 236, 296

# px of draw_episode
_EPISODE_LEFT, _EPISODE_TOP, _EPISODE_PANEL, _EPISODE_PITCH = 118, 54, 116, 124
_EPISODE_RIGHT, _EPISODE_FOOT, _EPISODE_LEAST_WIDTH = 36, 52, 440


class MetaStep(NamedTuple):
    """One finished meta-step, as :func:`draw_episode` shows it.

    Attributes:
        saliency: S_t ``[H, W]`` in [0, 1], as it was before the meta-step's update.
        mask: M_t ``[H, W]``, non-negative.
        priority: P_t ``[H, W]`` in [0, 1].
        locations: the glimpsed flat cells in order, each in 0..H W - 1.
        label: 0..C - 1, or C = stop.
        probability: of ``label`` under the policy, in [0, 1].
        reward: of ``label``.
    """

    saliency: np.ndarray
    mask: np.ndarray
    priority: np.ndarray
    locations: Sequence[int]
    label: int
    probability: float
    reward: float


@style.context("default")
def draw_state(canvas: np.ndarray, state: State, lane: int = 0) -> np.ndarray:
    """Draw one lane: the image with this meta-step's numbered glimpses, S_t, M_t and P_t, and what is named and left.

    S and P are coloured on the fixed scale [0, 1], M up to its own maximum. The title says which decision comes next;
    a state does not know that its episode has ended, so after the last label that is "attend", or that stop was named.

    Args:
        canvas: the lane's image, uint8 ``[h_px, w_px]`` or ``[h_px, w_px, 3]``.
        state: of any number of lanes.
        lane: which of them.

    Returns:
        RGB uint8 ``[330, 1200, 3]``, whatever the state.

    Raises:
        DataError: a canvas of another dtype or shape, or maps of differing shapes.
    """
    maps = [_array(part, lane) for part in (state.saliency, state.mask, state.priority)]
    map_size = _check(canvas, maps)
    locations = _array(state.locations, lane).tolist()
    phase, finished = int(state.phase[lane]), int(state.meta_step[lane])
    named, remaining = _array(state.predicted, lane), _array(state.remaining, lane)
    last = _label_in_words(int(state.last_label[lane]), classes=state.remaining.shape[1])

    sheet = _Sheet(_STATE_HEIGHT, _STATE_WIDTH)
    room = _STATE_WIDTH - 2 * _STATE_LEFT
    title = f"meta-step {finished + 1}, next: {_phase_in_words(phase, glimpses=len(locations))}"
    if phase == 0 and last == "stop":
        title = f"meta-step {finished} ended with stop"
    caption = f"named {_multiset(named)}     last label: {last}     remaining {_multiset(remaining)}"
    sheet.text(_STATE_LEFT, 8, title, room, size=9, weight="bold")
    sheet.text(_STATE_LEFT, 33, caption, room, size=8.5)

    left = [_STATE_LEFT + panel * _STATE_PITCH for panel in range(4)]
    image, *map_axes = (sheet.axes(x, _STATE_TOP, _STATE_PANEL, _STATE_PANEL) for x in left)
    peak = float(maps[1].max())
    names = ("image and glimpses", "saliency S", "mask M" if peak > 0 else "mask M: not placed yet", "priority P")
    for x, panel_name in zip(left, names, strict=True):
        sheet.text(x, _STATE_TOP - 22, panel_name, _STATE_PITCH, size=8)
    _draw_image(image, canvas)
    _draw_glimpses(image, canvas, map_size, locations, size=8.0)
    for x, axes, values, top in zip(left[1:], map_axes, maps, (1.0, peak or 1.0, 1.0), strict=True):
        _draw_map(axes, canvas, values, top)
        sheet.colour_bar(x + _STATE_PANEL + 7, _STATE_TOP, _STATE_PANEL, top)
    return sheet.pixels()


@style.context("default")
def draw_episode(
    canvas: np.ndarray, steps: Sequence[MetaStep], true_labels: Sequence[int], num_classes: int = NUM_CLASSES
) -> np.ndarray:
    """Draw an episode, one column per meta-step: S with M's contours, P, the glimpses, and the label that was named.

    S and P are coloured on the fixed scale [0, 1]; the contours are at 1/4, 1/2 and 3/4 of the mask's maximum. The
    label stands over its probability and reward, bluish green if the reward is positive, else vermillion.

    Args:
        canvas: the image, uint8 ``[h_px, w_px]`` or ``[h_px, w_px, 3]``.
        steps: at least one meta-step, in order.
        true_labels: the image's labels in 0..C - 1, in any order.
        num_classes: C.

    Returns:
        RGB uint8 ``[h, w, 3]``; h is constant, w grows with the number of meta-steps.

    Raises:
        DataError: a canvas of another dtype or shape, no steps, maps of differing shapes, or a location or label
            outside its range.
    """
    map_size = _check(canvas, [values for step in steps for values in (step.saliency, step.mask, step.priority)])
    _check_range("locations", [a for step in steps for a in step.locations], map_size[0] * map_size[1])
    _check_range("labels", [step.label for step in steps], num_classes + 1)
    _check_range("true labels", true_labels, num_classes)

    foot = _EPISODE_TOP + 3 * _EPISODE_PITCH
    right = _EPISODE_LEFT + len(steps) * _EPISODE_PITCH
    sheet = _Sheet(foot + _EPISODE_FOOT, max(right + _EPISODE_RIGHT, _EPISODE_LEAST_WIDTH))
    predicted = [step.label for step in steps if step.label != num_classes]
    title = f"true {_multiset(np.bincount(true_labels))}   predicted {_braces(predicted)}"
    sheet.text(10, 8, title, sheet.width - 20, size=9, weight="bold")
    rows = [_EPISODE_TOP + row * _EPISODE_PITCH for row in range(3)]
    shown = ("saliency S,\ncontours of\nthe mask M", "priority P", "image and\nglimpses")
    for y, words in zip(rows, shown, strict=True):
        sheet.text(10, y + _EPISODE_PANEL // 2, words, size=7.5, va="center")
    for y in rows[:2]:
        sheet.colour_bar(right, y, _EPISODE_PANEL, 1.0)
    for words, y in (("meta-step", _EPISODE_TOP - 18), ("label", foot), ("probability,\nreward", foot + 18)):
        sheet.text(10, y, words, size=7.5 if y < foot else 7)

    for column, step in enumerate(steps):
        x = _EPISODE_LEFT + column * _EPISODE_PITCH
        middle = x + _EPISODE_PANEL // 2
        saliency, priority, image = (sheet.axes(x, y, _EPISODE_PANEL, _EPISODE_PANEL) for y in rows)
        _draw_map(saliency, canvas, step.saliency)
        _draw_contours(saliency, canvas, step.mask)
        _draw_map(priority, canvas, step.priority)
        _draw_image(image, canvas)
        _draw_glimpses(image, canvas, map_size, step.locations, size=6.5)
        colour = _GREEN if step.reward > 0 else _VERMILLION
        sheet.text(middle, _EPISODE_TOP - 18, str(column + 1), size=7.5, ha="center")
        named = _label_in_words(step.label, num_classes)
        sheet.text(middle, foot - 3, named, size=10, weight="bold", color=colour, ha="center")
        measured = f"{step.probability:.2f},  {step.reward:+.3g}"
        sheet.text(middle, foot + 20, measured, _EPISODE_PANEL, size=7.5, color=colour, ha="center")
    return sheet.pixels()


def draw_episodes(
    episodes: Sequence[tuple[np.ndarray, Sequence[MetaStep], Sequence[int]]], num_classes: int = NUM_CLASSES
) -> np.ndarray:
    """Stack the pictures of several episodes, each (canvas, steps, true_labels) of :func:`draw_episode`.

    Returns:
        RGB uint8 ``[h, w, 3]``, as wide as the widest; the others are filled up with white at their right.

    Raises:
        DataError: no episodes, or one that :func:`draw_episode` refuses.
    """
    if not episodes:
        raise DataError("Expected at least one episode to draw; got none.")
    pictures = [draw_episode(*episode, num_classes) for episode in episodes]
    width = max(picture.shape[1] for picture in pictures)
    padded = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures]
    return np.concatenate(padded, axis=0)


def save_picture(picture: np.ndarray, path: Path) -> None:
    """Write ``picture``, RGB uint8 ``[h, w, 3]``, as a PNG file; ``path`` never holds half of one.

    Raises:
        DataError: a picture of another dtype or shape; nothing is written.
        OSError: the file cannot be written; what was at ``path`` is still there.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise DataError(f"Expected a picture uint8 [h, w, 3]; got {picture.dtype} {list(picture.shape)}.")
    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")


class _Sheet:
    """A white page measured in px from its top left corner."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self._figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
        self._canvas: Any = FigureCanvasAgg(self._figure)  # whose methods matplotlib leaves untyped

    def axes(self, left: int, top: int, width: int, height: int) -> Axes:
        """A panel without ticks."""
        w, h = self.width, self.height
        axes = self._figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))
        axes.set(xticks=[], yticks=[])
        return axes

    def text(self, left: int, top: int, words: str, room: int | None = None, **looks: Any) -> None:
        """Write ``words`` below ``top``, smaller where they are wider than ``room`` px."""
        at = (left / self.width, 1 - top / self.height)
        text = self._figure.text(*at, words, **{"va": "top", **looks})
        size = float(text.get_fontsize())
        while room is not None and text.get_window_extent().width > room and size > 1:
            size *= 0.95  # in steps: hinted letters do not shrink in proportion
            text.set_fontsize(size)

    def colour_bar(self, left: int, top: int, height: int, highest: float) -> None:
        """The colours of values from 0 to ``highest``."""
        bar = self.axes(left, top, 9, height)
        bar.imshow(np.linspace(1, 0, 256)[:, None], cmap=_MAPS, vmin=0, vmax=1, aspect="auto")
        self.text(left + 12, top - 2, f"{highest:.2g}", size=6.5)
        self.text(left + 12, top + height + 2, "0", size=6.5, va="bottom")

    def pixels(self) -> np.ndarray:
        """RGB uint8 ``[height, width, 3]``."""
        self._canvas.draw()
        return np.array(self._canvas.buffer_rgba())[..., :3].copy()


def _draw_image(axes: Axes, canvas: np.ndarray) -> None:
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=255, extent=_extent(canvas), interpolation="nearest")


def _draw_map(axes: Axes, canvas: np.ndarray, values: np.ndarray, highest: float = 1.0) -> None:
    axes.imshow(values, cmap=_MAPS, vmin=0, vmax=highest, extent=_extent(canvas), interpolation="nearest")


def _draw_contours(axes: Axes, canvas: np.ndarray, mask: np.ndarray) -> None:
    levels = [part * mask.max() for part in _CONTOURS if mask.min() < part * mask.max()]
    if not levels:
        return
    padded = np.pad(mask, 1, mode="edge")  # the outermost centres lie half a cell inside the canvas
    y, x = ((np.arange(n) - 0.5) * px / (n - 2) for n, px in zip(padded.shape, canvas.shape, strict=False))
    lines = axes.contour(x, y, padded, levels, colors="white", linewidths=1.0)
    lines.set_path_effects([withStroke(linewidth=2.2, foreground="black")])
    axes.set(xlim=(0, canvas.shape[1]), ylim=(canvas.shape[0], 0))


def _draw_glimpses(
    axes: Axes, canvas: np.ndarray, map_size: tuple[int, int], locations: Sequence[int], size: float
) -> None:
    """Number the cells in the order of looking; a cell looked at twice carries both numbers."""
    rows, columns = map_size
    for cell in sorted(set(locations) - {rows * columns}):
        y, x = (cell // columns + 0.5) * canvas.shape[0] / rows, (cell % columns + 0.5) * canvas.shape[1] / columns
        numbers = _runs([i for i, location in enumerate(locations, start=1) if location == cell])
        box = {"boxstyle": "round,pad=0.2", "facecolor": _ORANGE, "edgecolor": "white", "linewidth": 0.6}
        axes.text(x, y, numbers, size=size, weight="bold", ha="center", va="center_baseline", bbox=box)


def _runs(numbers: Sequence[int]) -> str:
    """Increasing numbers in little room: ``[1, 2, 3, 4, 6, 7]`` as ``"1-4,6,7"``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 2 else ",".join(map(str, part)) for part in parts)


def _extent(canvas: np.ndarray) -> tuple[float, float, float, float]:
    return 0.0, float(canvas.shape[1]), float(canvas.shape[0]), 0.0


def _array(part: Tensor, lane: int) -> np.ndarray:
    return part[lane].detach().cpu().numpy()


def _multiset(counts: np.ndarray) -> str:
    """Counts ``[C]`` as ``"{2 2 7}"``, or where that is too long to read as ``"{2x15 7x1}"``."""
    if counts.sum() > _LONGEST_MULTISET:
        return _braces([f"{label}x{count}" for label, count in enumerate(counts) if count])
    return _braces(np.repeat(np.arange(len(counts)), counts).tolist())


def _braces(labels: Sequence[Any]) -> str:
    return "{" + " ".join(map(str, labels)) + "}"


def _label_in_words(label: int, classes: int) -> str:
    return {classes: "stop", classes + 1: "none"}.get(label, str(label))


def _phase_in_words(phase: int, glimpses: int) -> str:
    if phase == 0:
        return "attend"
    return "name" if phase > glimpses else f"glimpse {phase} of {glimpses}"


def _check(canvas: np.ndarray, maps: Sequence[np.ndarray]) -> tuple[int, int]:
    """The (H, W) that all maps share."""
    if canvas.dtype != np.uint8 or not (canvas.ndim == 2 or canvas.shape[2:] == (3,)) or not canvas.size:
        raise DataError(f"Expected a canvas uint8 [h, w] or [h, w, 3]; got {canvas.dtype} {list(canvas.shape)}.")
    if not maps:
        raise DataError("Expected at least one meta-step to draw; got none.")
    shapes = sorted({values.shape for values in maps})
    if len(shapes) > 1 or len(shapes[0]) != 2 or 0 in shapes[0]:
        raise DataError(f"Expected saliency, mask and priority maps of one shape [H, W]; got {shapes}.")
    return shapes[0]


def _check_range(what: str, values: Sequence[int], bound: int) -> None:
    outside = [value for value in values if not 0 <= value < bound]
    if outside:
        raise DataError(f"Expected {what} in 0..{bound - 1}; got {outside[0]}.")
