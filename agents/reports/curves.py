"""Learning curves: the paper's figures 5 and 6 over runs, every run a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

FIGURE_5 = (
    ("attention/saliency", "attn_saliency: raw saliency at glimpses"),
    ("attention/saliency_ratio", "times that of uniform glimpses"),
)
"""The paper's figure 5: (column of progress.csv, title) of each panel."""
FIGURE_6 = (("val/macro_f1", "macro-F1, validation"), ("val/exact_match", "0-1, validation"))
"""The paper's figure 6, likewise."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which the colour-blind can tell apart; the palest last."""


class Curve(NamedTuple):
    """One run.

    Attributes:
        x: where each row stands, ``[n]``.
        columns: the numbers of each column ``[n]``; None where a row says nothing.
        colour: of its line.
        label: in the legend; None: it shares that of an earlier run.
    """

    x: Sequence[float]
    columns: Mapping[str, Sequence[float | None]]
    colour: str
    label: str | None


def draw(
    panels: Sequence[tuple[str, str]], curves: Sequence[Curve], xlabel: str = "training images, thousands"
) -> Figure:
    """One panel for each (column, title); a run without a column is left out of its panel."""
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
