"""The report on runs: one HTML page that holds everything it shows.

This module computes the tables and pictures. The template ``page.html`` beside it holds the words and the look. Jinja2 escapes
every text that comes from files. The page loads nothing and runs no script.
"""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from agents.reports import curves, gallery
from agents.reports.mistakes import breakdown
from agents.reports.runs import FinishedRun, methods
from agents.reports.statistics import FEWEST_RUNS, bootstrap_interval, interquartile_mean, spread
from agents.reports.tables import OTHER_MEASURES, measure, source_in_words
from hsal_env.multiset import SCORES
from hsal_env.rendering import draw_trace
from hsal_env.trace import Trace
from hsal_env.trace.scan_path import MEASURES, measures

_HEADS = dict(zip(SCORES, ("0-1", "macro-F1", "micro-F1", "OP", "OR", "example-F1"), strict=True))
_SPLITS = {"val": "validation", "train": "training"}
_MOST_COLUMNS = 5  # of rows beside one another
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


class ReportRow(NamedTuple):
    """A row of the report: runs that differ only by their seed.

    Attributes:
        name: what the page calls it.
        runs: at least one.
        traces: episodes of the first run that has an agent; empty where none were recorded.
        split: the split that the episodes are of.
    """

    name: str
    runs: Sequence[FinishedRun]
    traces: Sequence[Trace] = ()
    split: str = "val"

    @property
    def played(self) -> str:
        """What the episodes are, in words. There is at least one."""
        player = next(run.name for run in self.runs if run.checkpoint)
        of_seed = f", of {player}" if len(self.runs) > 1 else ""
        split = _SPLITS.get(self.split, self.split)
        return f"{len(self.traces):,} {split} canvases of {source_in_words(self.traces[0].source)}, greedy{of_seed}"


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        text: the text.
        small: lines below the text, in small type.
        share: the length of a bar behind the text, in [0, 1]; None: there is no bar.
    """

    text: str
    small: Sequence[str] = ()
    share: float | None = None


Value: TypeAlias = str | int | Cell


class Table(NamedTuple):
    """A table. The first cell of each row is the row's head."""

    heads: Sequence[Value]
    rows: Sequence[Sequence[Value]]


class Picture(NamedTuple):
    """A picture that the page holds.

    Attributes:
        kind: its media type.
        content: its bytes.
        alternative: what it shows, for those who do not see it.
        caption: text below it.
        width_px: width on the page.
    """

    kind: Literal["image/png", "image/svg+xml"]
    content: bytes
    alternative: str
    caption: str = ""
    width_px: int = 528

    @property
    def address(self) -> str:
        """The picture as an address that holds its content."""
        return f"data:{self.kind};base64,{base64.b64encode(self.content).decode()}"


def page(rows: Sequence[ReportRow], version: str) -> str:
    """The page. The same rows give the same text.

    Args:
        rows: at least one.
        version: of HSAL.
    """
    played = [row for row in rows if row.traces]
    absent = [row for row in rows if not row.traces]
    return _TEMPLATES.get_template("page.html").render(
        title=f"HSAL: {', '.join(row.name for row in rows[:4])}{', …' if len(rows) > 4 else ''}",
        version=version,
        rows=rows,
        number_of_runs=sum(len(row.runs) for row in rows),
        without_agent=[row.name for row in absent if not any(run.checkpoint for run in row.runs)],
        without_episodes=[row.name for row in absent if any(run.checkpoint for run in row.runs)],
        results=_results(rows),
        aggregate=_aggregate(rows),
        fewest_runs=FEWEST_RUNS,
        curves=_curves(rows),
        breakdown={
            "by_count": _by_count(rows),
            "count_errors": _count_errors(rows),
            "played": [(row, _breakdown(row.traces)) for row in played],
        },
        scan_paths=[(row, _scan_path(row.traces)) for row in played],
        galleries=[(row, _gallery(row.traces)) for row in played],
        configuration=_configuration(rows),
    )


# --- sections ---------------------------------------------------------------------------------------------------------


def _results(rows: Sequence[ReportRow]) -> dict[str, object]:
    told = [
        name
        for name in OTHER_MEASURES
        if any(measure(run.metrics["test"], name) is not None for r in rows for run in r.runs)
    ]
    heads: list[Value] = ["row", "images", "seeds", *_HEADS.values(), *(OTHER_MEASURES[name] for name in told)]
    heads += ["saliency ratio", "training, minutes"]
    scores = [_scores(row, told) for row in rows]
    if len(rows) <= _MOST_COLUMNS:  # rows beside one another: the table fits a phone
        heads, *scores = map(list, zip(heads, *scores, strict=True))
    runs = [run for row in rows for run in row.runs]
    each: list[list[Value]] = [
        [run.name, "" if run.seed is None else run.seed, *(f"{run.metrics['test'][score]:.4f}" for score in SCORES)]
        for run in runs
    ]
    tested_here = {row.name: row.runs[0].metrics.get("episodes") for row in rows}
    return {
        "scores": Table(heads, scores),
        "tested_here": {name: episodes for name, episodes in tested_here.items() if episodes},
        "every_run": Table(["run", "seed", *_HEADS.values()], each) if len(runs) > len(rows) else None,
    }


def _scores(row: ReportRow, told: Sequence[str]) -> list[Value]:
    """A line of the table of results; ``told``: the measures that it has."""
    tests = [run.metrics["test"] for run in row.runs]
    guess, paper = row.runs[0].metrics.get("blind_guess", {}), row.runs[0].paper
    in_paper = dict(zip(("macro_f1", "exact_match"), paper or (), strict=False))
    cells: list[Value] = [row.name, source_in_words(row.runs[0].metrics["source"]), len(row.runs)]
    for score in SCORES:
        small = [f"paper {in_paper[score]:.3f}"] if score in in_paper else []
        small += [f"blind guess {guess[score]:.3f}"] if score in guess else []
        cells.append(Cell(spread([test[score] for test in tests]), small))
    for name in told:
        known = [value for test in tests if (value := measure(test, name)) is not None]
        blind = {words: measure(part, name) for words, part in _guesses(guess).items()}
        small = [f"{words} {value:.3f}" for words, value in blind.items() if value is not None]
        cells.append(Cell(spread(known), small) if known else "unknown")
    ratios = [test["attn_saliency_ratio"] for test in tests if test.get("attn_saliency_ratio") is not None]
    seconds = [run.metrics["train_seconds"] for run in row.runs if run.metrics.get("train_seconds") is not None]
    return [*cells, spread(ratios, 1) if ratios else "", f"{np.mean(seconds) / 60:.1f}" if seconds else ""]


def _guesses(guess: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The blind guesses by their names."""
    return {"blind guess": guess, "mean counts": guess.get("mean_counts", {})}


def _aggregate(rows: Sequence[ReportRow]) -> dict[str, object]:
    if sum(len(row.runs) for row in rows) < 2:
        return {}
    pooled = [[rows[number] for number in part] for part in methods([row.runs for row in rows])]
    labels = [", ".join(row.name for row in method) for method in pooled]
    table: list[list[Value]] = [
        [label, len(method), sum(len(row.runs) for row in method)] for label, method in zip(labels, pooled, strict=True)
    ]
    pictures = []
    for score in ("exact_match", "macro_f1"):
        means = []
        for cells, method in zip(table, pooled, strict=True):
            tasks = [[float(run.metrics["test"][score]) for run in row.runs] for row in method]
            means.append((float(interquartile_mean(np.concatenate(tasks))), *bootstrap_interval(tasks)))
            several = sum(map(len, tasks)) > 1  # one run has no interval
            cells.append(("{:.4f} [{:.4f}, {:.4f}]" if several else "{:.4f}").format(*means[-1]))
        title = f"IQM of {_HEADS[score]}"
        pictures.append(_svg(_interval_figure(title, labels, means), f"{title} with its intervals"))
    heads = ["rows of one method", "tasks", "runs", "IQM of 0-1 [95 %]", "IQM of macro-F1 [95 %]"]
    return {"means": Table(heads, table), "pictures": pictures, "fewest": min(len(row.runs) for row in rows)}


def _curves(rows: Sequence[ReportRow]) -> dict[str, object]:
    by_unit: dict[str, list[curves.Curve]] = {}
    for number, row in enumerate(rows):
        colour = curves.COLOURS[number % len(curves.COLOURS)]
        label: str | None = fill(row.name, 40)
        for run in (run for run in row.runs if run.progress):
            unit, x = run.curve
            by_unit.setdefault(unit, []).append(curves.Curve(x, run.progress, colour, label))
            label = None  # the legend names a row once
    figures = []
    for unit, lines in by_unit.items():
        columns = {name for line in lines for name, values in line.columns.items() if values.count(None) < len(values)}
        for number, panels in ((6, curves.FIGURE_6), (5, curves.FIGURE_5)):
            drawn = [
                _svg(curves.draw([(column, title)], lines, unit), title)
                for column, title in panels
                if column in columns
            ]
            if drawn:
                figures.append((number, drawn))
    return {"figures": figures, "without": [row.name for row in rows if not any(run.progress for run in row.runs)]}


def _count_errors(rows: Sequence[ReportRow]) -> Table | None:
    """The mean error of each class's count, by row."""
    errors = [[run.metrics["test"].get("count_error", {}).get("by_class", {}) for run in row.runs] for row in rows]
    labels = list(dict.fromkeys(label for row in errors for part in row for label in part))
    if not labels:
        return None
    table: list[list[Value]] = [
        [label, *(spread(known) if (known := [part[label] for part in row if label in part]) else "" for row in errors)]
        for label in labels
    ]
    return Table(["label", *(row.name for row in rows)], table)


def _by_count(rows: Sequence[ReportRow]) -> Table | None:
    counts: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        part = counts.setdefault(row.name, {})
        for run in row.runs:
            for count, scores in (run.metrics["test"].get("by_count") or {}).items():
                part.setdefault(count, []).append(scores["exact_match"])
    numbers = sorted({number for part in counts.values() for number in part}, key=int)
    if not numbers:
        return None
    table: list[list[Value]] = [
        [name, *(_bar(float(np.mean(part[n])), spread(part[n])) if n in part else "" for n in numbers)]
        for name, part in counts.items()
    ]
    return Table(["row", *(f"{n} object" if n == "1" else f"{n} objects" for n in numbers)], table)


def _breakdown(traces: Sequence[Trace]) -> list[Table]:
    """The tables of mistakes; the last one holds what is told of all episodes together."""
    tables: list[Table] = []
    in_all: list[list[Value]] = []
    for name, part in breakdown(traces).items():
        if not isinstance(part, Mapping):
            in_all.append([name, _number(part)])
        elif part:
            columns = list(next(iter(part.values())))
            lines: list[list[Value]] = [[key, *(_share(cells[c]) for c in columns)] for key, cells in part.items()]
            tables.append(Table([name, *columns], lines))
    return [*tables, Table(["in all", ""], in_all)]


def _scan_path(traces: Sequence[Trace]) -> Table:
    found = measures(traces, np.random.default_rng(0))
    columns = list(dict.fromkeys(name for part in found.values() for name in part))
    table: list[list[Value]] = [
        [Cell(name, [MEASURES[name]]), *(_number(part[column]) for column in columns)] for name, part in found.items()
    ]
    return Table(["measure", *columns], table)


def _gallery(traces: Sequence[Trace]) -> dict[str, tuple[str, list[Picture]]]:
    """What each kind of choice means, and its episodes."""
    return {kind: (gallery.KINDS[kind], list(map(_episode, part))) for kind, part in gallery.choose(traces).items()}


def _configuration(rows: Sequence[ReportRow]) -> dict[str, object]:
    settings = [row.runs[0].config for row in rows]
    names = list(dict.fromkeys(name for part in settings for name in part))
    in_words = {name: [str(part[name]) if name in part else "not recorded" for part in settings] for name in names}
    differing: list[list[Value]] = [[name, *words] for name, words in in_words.items() if len(set(words)) > 1]
    commands: list[list[Value]] = [
        [run.name, shlex.join(map(str, run.metrics["command"]))]
        for row in rows
        for run in row.runs
        if run.metrics.get("command")
    ]
    versions: dict[str, list[str]] = {}
    for run in (run for row in rows for run in row.runs):
        for package, version in run.metrics.get("versions", {}).items():
            versions.setdefault(package, []).append(str(version))
    return {
        "differing": Table(["setting", *(row.name for row in rows)], differing) if differing else None,
        "same": {name: words[0] for name, words in in_words.items() if len(set(words)) == 1},
        "commands": Table(["run", "command"], commands) if commands else None,
        "versions": {package: ", ".join(dict.fromkeys(several)) for package, several in versions.items()},
    }


# --- parts ------------------------------------------------------------------------------------------------------------


def _episode(trace: Trace) -> Picture:
    separator = ", " if trace.class_names else " "
    named = separator.join(map(trace.label_name, trace.named.tolist())) or "nothing"
    true = separator.join(map(trace.label_name, sorted(trace.labels.tolist())))
    words = (
        f"Canvas {trace.canvas_index}: true {{{true}}}, named {named}. "
        f"The least probability of a label is {gallery.least_probability(trace):.4f}."
    )
    content = io.BytesIO()
    picture = draw_trace(trace, boxes=True)
    Image.fromarray(picture).save(content, format="PNG", optimize=True)
    return Picture("image/png", content.getvalue(), words, words, width_px=picture.shape[1] * 3 // 4)


def _interval_figure(title: str, names: Sequence[str], intervals: Sequence[tuple[float, ...]]) -> Figure:
    """A tick on a bar for each name. ``intervals``: (middle, low, high) of each."""
    figure = Figure(figsize=(5.4, 0.9 + 0.32 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, (middle, low, high) in enumerate(intervals):
        colour = curves.COLOURS[number % len(curves.COLOURS)]
        axes.plot([low, high], [number, number], color=colour, lw=6, alpha=0.35, solid_capstyle="butt")
        axes.plot([middle], [number], color=colour, marker="|", ms=13, mew=2.5)
    shown = [fill(name, 28, max_lines=2, placeholder=" …") for name in names]
    axes.set(title=title, ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)), yticklabels=shown)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.25)
    return figure


def _svg(figure: Figure, alternative: str) -> Picture:
    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "hsal", "svg.fonttype": "path"}):  # the same figure, the same bytes
        figure.savefig(content, format="svg", metadata={"Date": None})
    return Picture("image/svg+xml", content.getvalue(), alternative)


def _bar(share: float, words: str) -> Cell:
    return Cell(words, share=min(max(share, 0), 1))


def _share(value: float) -> Cell | str:
    return _bar(value, f"{value:.3f}") if isinstance(value, float) and 0 <= value <= 1 else _number(value)


def _number(value: float | None) -> str:
    if value is None or np.isnan(value):
        return "unknown"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
