"""One meta-step of an episode, and the end of the episode, in nine pictures: image, V, S, M, P, glimpses, label, update, stop.

For readers who do not know the method yet: each picture has a title and a line or two of words, and is drawn to be shown 300 px
wide. :mod:`hsal_env.rendering.episodes` draws whole episodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.patches import Ellipse, Rectangle

from hsal_env.errors import DataError
from hsal_env.rendering.episodes import Panel, Sheet
from hsal_env.rendering.words import GREEN, VERMILLION
from hsal_env.trace import Trace

_WIDTH, _HEIGHT, _SIDE, _LEFT, _TOP = 300, 324, 240, 10, 34  # px
_OUTLINE, _FRAME = "#d0d0d0", "#999999"


@style.context("default")
def draw_steps(trace: Trace, volume: np.ndarray) -> dict[str, np.ndarray]:
    """Draw the first meta-step of ``trace``, and its end.

    Maps are coloured from 0 to 1, V and M from 0 to their maximum. Thin lines over a map are the outlines of what is bright in
    the image. A circle is a Gaussian's contour at half its height, the more opaque the greater its alpha.

    Args:
        trace: an episode of at least one whole meta-step.
        volume: V of its image ``[D, H, W]``.

    Returns:
        By name, in order: ``"1-image"``, ``"2-activation"``, ``"3-saliency"``, ``"4-mask"``, ``"5-priority"``, ``"6-glimpses"``,
        ``"7-label"``, ``"8-update"``, ``"9-stop"``; each RGB uint8 ``[648, 600, 3]``, to be shown at half that size.

    Raises:
        DataError: no whole meta-step, or a volume of another size than the maps.
    """
    if not (trace.label >= 0).any():
        raise DataError("Expected a trace of at least one whole meta-step; got none that names a label.")
    if volume.ndim != 3 or volume.shape[1:] != trace.map_size:
        raise DataError(f"Expected a volume [D, {trace.map_size[0]}, {trace.map_size[1]}]; got {list(volume.shape)}.")
    return {name: draw(trace, volume).sheet.pixels() for name, draw in _PICTURES.items()}


class _Page:
    """One of the pictures: a title, a panel with or without a colour bar, and a line or two of words."""

    def __init__(self, trace: Trace, title: str, words: str, most: str | None = None) -> None:
        self.trace = trace
        self.sheet = Sheet(_HEIGHT, _WIDTH, zoom=2)
        self.panel = Panel.of(trace, _LEFT, _TOP, _SIDE)
        self.sheet.text(_LEFT, 8, title, _WIDTH - 2 * _LEFT, size=9.5, weight="bold")
        self.sheet.text(_LEFT, _TOP + _SIDE + 8, words, _WIDTH - 2 * _LEFT, size=7.5, linespacing=1.35)
        if most is not None:
            self.sheet.colour_bar(_LEFT + _SIDE + 7, _TOP, _SIDE, most)

    def map(self, values: np.ndarray, panel: Panel | None = None) -> None:
        """A map, and over it the outlines of what the image shows."""
        panel = panel or self.panel
        panel.map(self.sheet.axes, values)
        self.outlines(panel)
        panel.frame(self.sheet.axes, _FRAME)

    def outlines(self, panel: Panel) -> None:
        """The edges of what is bright."""
        brightness = self.trace.image if self.trace.image.ndim == 2 else self.trace.image.mean(axis=2)
        middle = (float(brightness.min()) + float(brightness.max())) / 2
        if brightness.min() < middle:
            rows, cols = (np.arange(pixels) + 0.5 for pixels in brightness.shape)
            x, y = panel.at(rows, cols)[0], panel.at(rows, cols)[1]
            self.sheet.axes.contour(x, y, brightness, [middle], colors=_OUTLINE, linewidths=0.6)

    def gaussians(self, decision: int) -> None:
        """The mixture's components, each as its contour at half height, the more opaque the heavier."""
        trace, grid = self.trace, self.trace.grid
        frame = Rectangle((_LEFT, _TOP), _SIDE, _SIDE, facecolor="none", edgecolor="none")
        self.sheet.axes.add_patch(frame)
        if not np.isfinite(trace.alpha[decision]).all():  # unknown
            return
        weights = trace.alpha[decision] / trace.alpha[decision].max()
        for weight, beta, row, col in zip(
            weights, trace.beta[decision], trace.row[decision], trace.col[decision], strict=True
        ):
            middle = np.array(grid.first_px) + (np.array([row, col]) - 1) * grid.stride_px
            height, width = 2 * math.sqrt(math.log(2) / beta) * np.array(grid.stride_px) * self.panel.scale
            circle = Ellipse(
                self.panel.at(*middle), width, height,
                facecolor="none", edgecolor="white", linewidth=1.4, alpha=float(weight),
            )  # fmt: skip
            self.sheet.axes.add_patch(circle)
            circle.set_clip_path(frame)


def _image(trace: Trace, volume: np.ndarray) -> _Page:
    """What is given."""
    page = _Page(trace, "1   the image", f"To be named, in any order:\n{_in_words(trace, trace.labels)}")
    page.panel.image(page.sheet.axes, trace.image)
    page.panel.frame(page.sheet.axes, _FRAME)
    return page


def _activation(trace: Trace, volume: np.ndarray) -> _Page:
    """The channels of ``volume`` ``[D, H, W]`` with the greatest sums of squares, the greatest first."""
    channels, rows, cols = volume.shape
    across = min(4, math.isqrt(channels))
    chosen = np.argsort(-np.square(volume).sum(axis=(1, 2)), kind="stable")[: across**2]
    most = float(volume[chosen].max())
    page = _Page(
        trace, "2   the activation volume $V$",
        f"{channels} channels of {rows}x{cols} cells; here the {across**2}\nmost active. Bright: something is there.",
        f"{most:.1f}",
    )  # fmt: skip
    pitch = _SIDE // across
    for place, channel in enumerate(chosen):
        row, col = divmod(place, across)
        panel = Panel.of(trace, _LEFT + col * pitch, _TOP + row * pitch, pitch - 4)
        panel.map(page.sheet.axes, volume[channel].clip(min=0) / (most or 1.0))
        panel.frame(page.sheet.axes, _FRAME)
    return page


def _saliency(trace: Trace, volume: np.ndarray) -> _Page:
    """S at the start."""
    page = _Page(
        trace, "3   the saliency map $S_1$", "Where does something stand out?\nOne number per cell, from $V$.", "1"
    )
    page.map(trace.saliency[0])
    return page


def _mask(trace: Trace, volume: np.ndarray) -> _Page:
    """M of the first meta-step."""
    most, count = float(trace.mask[0].max()), trace.alpha.shape[1]
    words = f"Where to attend? A sum of {count} Gaussians.\nCircles: each one; opaque: it weighs much."
    page = _Page(trace, "4   the attention mask $M_1$", words, f"{most:.2f}")
    page.map(trace.mask[0] / (most or 1.0))
    page.gaussians(0)
    return page


def _priority(trace: Trace, volume: np.ndarray) -> _Page:
    """P of the first meta-step."""
    page = _Page(
        trace, "5   the priority map $P_1$", "What is salient and attended to:\n$M_1$ times $S_1$, scaled to 0..1.", "1"
    )
    page.map(trace.priority[0])
    return page


def _glimpses(trace: Trace, volume: np.ndarray) -> _Page:
    """Where the controller looks."""
    page = _Page(
        trace,
        "6   the glimpses",
        f"Look there, {trace.glimpses} times. Solid: the cell;\ndashed: what it sees of the image.",
    )
    page.panel.image(page.sheet.axes, trace.image)
    page.panel.frame(page.sheet.axes, _FRAME)
    page.panel.glimpses(page.sheet.axes, np.arange(1, 1 + trace.glimpses))
    return page


def _label(trace: Trace, volume: np.ndarray) -> _Page:
    """What the controller says it sees, and what that earns."""
    step = trace.glimpses + 1
    left = trace.remaining[step]
    multiset = _in_words(trace, np.repeat(np.arange(trace.num_classes), left)) or "nothing"
    page = _Page(trace, "7   the label", f"Bars: probability. Green: earns +1, since\nstill to be named: {multiset}.")
    rewarded = [*(left > 0), left.sum() == 0]
    pitch, start, room = _SIDE / (trace.num_classes + 1), _LEFT + 34, 178
    for number, right in enumerate(rewarded):
        probability, colour = float(trace.label_probs[step, number]), GREEN if right else VERMILLION
        top = _TOP + number * pitch
        weight = "bold" if number == trace.label[step] else "normal"
        looks: dict[str, Any] = {"color": colour, "size": 7.5, "weight": weight, "va": "center"}
        page.sheet.axes.add_patch(Rectangle((start, top + 2), room, pitch - 4, color=colour, alpha=0.12, linewidth=0))
        page.sheet.axes.add_patch(Rectangle((start, top + 2), room * probability, pitch - 4, color=colour, linewidth=0))
        page.sheet.text(start - 6, round(top + pitch / 2), trace.label_name(number), start - 12, ha="right", **looks)
        page.sheet.text(start + room + 6, round(top + pitch / 2), "+1" if right else "\u22121", **looks)
    return page


def _update(trace: Trace, volume: np.ndarray) -> _Page:
    """S of the second meta-step."""
    words = "The cell looked at is wiped, the mask lowers\nthe others. Then again from 4, with $S_2$."
    page = _Page(trace, "8   the saliency map $S_2$", words, "1")
    page.map(_saliencies(trace)[1])
    return page


def _stop(trace: Trace, volume: np.ndarray) -> _Page:
    """S before each label, the last of which is to be "stop"."""
    page = _Page(
        trace, "9   stop", "Every meta-step names one object,\nuntil nothing is left: then, \u201cstop\u201d.", "1"
    )
    names = trace.label[trace.label >= 0].tolist()
    across = math.ceil(math.sqrt(len(names)))
    pitch = _SIDE // across
    for place, (number, values) in enumerate(zip(names, _saliencies(trace), strict=False)):
        row, col = divmod(place, across)
        panel = Panel.of(trace, _LEFT + col * pitch, _TOP + row * pitch, pitch - 22)
        page.map(values, panel)
        right = trace.right[np.flatnonzero(trace.label >= 0)[place]]
        name = trace.label_name(number)
        page.sheet.text(
            panel.left + panel.side // 2, panel.top + panel.side + 1, f"$S_{{{place + 1}}}$: {name}",
            size=8, weight="bold", color=GREEN if right else VERMILLION, ha="center",
        )  # fmt: skip
    return page


_PICTURES: dict[str, Callable[[Trace, np.ndarray], _Page]] = {
    "1-image": _image, "2-activation": _activation, "3-saliency": _saliency, "4-mask": _mask, "5-priority": _priority,
    "6-glimpses": _glimpses, "7-label": _label, "8-update": _update, "9-stop": _stop,
}  # fmt: skip
"""By file name: what draws a trace and the activation volume ``[D, H, W]`` of its image."""


def _saliencies(trace: Trace) -> np.ndarray:
    """S at the start of each meta-step, and after the last: ``[M + 1, H, W]``."""
    return np.concatenate([trace.saliency[trace.phase == 0], trace.saliency_left[None]])


def _in_words(trace: Trace, labels: np.ndarray) -> str:
    return ", ".join(map(trace.label_name, sorted(labels.tolist())))
