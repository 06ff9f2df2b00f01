"""Learning curves: the quantities of the paper's figures 5 and 6, with one line for each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

FIGURE_5 = (
    ("attention/saliency", "raw saliency at glimpses (attn_saliency)"),
    ("attention/saliency_ratio", "saliency ratio: glimpses / uniform glimpses"),
)
"""The panels of the paper's figure 5: (column of progress.csv, title)."""
FIGURE_6 = (("val/macro_f1", "macro-F1, validation"), ("val/exact_match", "0-1, validation"))
"""The panels of the paper's figure 6."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which colour-blind people can tell apart. The palest come last."""


class Curve(NamedTuple):
    """The curve of one run.

    Attributes:
        x: the position of each row of progress.csv, ``[n]``.
        columns: the numbers of each column ``[n]``; None where a row has no number.
        colour: the colour of the line.
        label: its text in the legend; None: an earlier run's text stands for it.
    """

    x: Sequence[float]
    columns: Mapping[str, Sequence[float | None]]
    colour: str
    label: str | None


def draw(
    panels: Sequence[tuple[str, str]], curves: Sequence[Curve], xlabel: str = "training images, thousands"
) -> Figure:
    """Draw one panel for each (column, title). A panel leaves out the runs that lack its column."""
    figure = Figure(figsize=(4.5 * len(panels), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (column, title) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for curve in curves:
            values = curve.columns.get(column, [None] * len(curve.x))
            points = [(x, y) for x, y in zip(curve.x, values, strict=True) if y is not None]
            if points:
                axes.plot(*zip(*points, strict=True), color=curve.colour, lw=1.2, label=curve.label,
                          marker="o" if column.startswith("val/") else "", ms=3)  # fmt: skip
        if column == "attention/saliency_ratio":
            axes.axhline(1, color="grey", lw=0.8, ls=":")
        axes.set(xlabel=xlabel, title=title)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    return figure
