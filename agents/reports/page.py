"""The report on runs: one HTML page that holds everything it shows. What it says is computed elsewhere.

Whatever comes from files passes through :func:`html.escape`; the page loads nothing and runs no script.
"""

from __future__ import annotations

import base64
import html
import io
import shlex
from collections.abc import Iterable, Mapping, Sequence
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from agents.reports import curves, gallery
from agents.reports.mistakes import breakdown
from agents.reports.runs import Run, methods
from agents.reports.statistics import FEWEST_RUNS, bootstrap_interval, interquartile_mean, spread
from agents.reports.tables import source_in_words
from hsal_env.multiset import SCORES
from hsal_env.rendering import draw_trace
from hsal_env.trace import Trace
from hsal_env.trace.scan_path import MEASURES, measures

_PAPER = "https://arxiv.org/abs/1711.05165"
_RELIABLE = "https://arxiv.org/abs/2108.13264"
_HEADS = dict(zip(SCORES, ("0-1", "macro-F1", "micro-F1", "OP", "OR", "example-F1"), strict=True))
_SECTIONS = {
    "results": "Results",
    "aggregate": "Over runs and tasks",
    "curves": "Learning curves",
    "breakdown": "What goes wrong",
    "scan-path": "Scan paths",
    "gallery": "Episodes",
    "configuration": "Configuration",
}
_ROWS_ABREAST = 5


class Html(str):
    """Text that is markup already; all other text is escaped."""

    __slots__ = ()


class Row(NamedTuple):
    """Runs that differ by their seed alone.

    Attributes:
        name: for people.
        runs: at least one.
        traces: episodes of the first run that has an agent; none: () or [].
        split: that they are of.
    """

    name: str
    runs: Sequence[Run]
    traces: Sequence[Trace] = ()
    split: str = "val"


def page(rows: Sequence[Row], version: str) -> str:
    """The page. The same rows give the same text.

    Args:
        rows: at least one.
        version: of HSAL.
    """
    makers = (_results, _aggregate, _curves, _breakdown, _scan_path, _gallery, _configuration)
    sections = {name: make(rows) for name, make in zip(_SECTIONS, makers, strict=True)}
    title = f"HSAL: {', '.join(row.name for row in rows[:4])}{', …' if len(rows) > 4 else ''}"
    links = "".join(f'<a href="#{name}">{_SECTIONS[name]}</a>' for name in sections)
    body = "".join(
        f'<section id="{name}"><h2>{_SECTIONS[name]}</h2>\n{"".join(parts)}</section>\n'
        for name, parts in sections.items()
    )
    runs = sum(len(row.runs) for row in rows)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style></head>\n<body>\n"
        f"<header><h1>{_text(title)}</h1>\n<p>{_count(runs, 'run')} in {_count(len(rows), 'row')}: the runs of a row differ by "
        f"their seed alone.</p>\n<nav>{links}</nav></header>\n<main>\n{body}</main>\n"
        f'<footer>Made by HSAL {_text(version)}, hsal-report. The paper: <a href="{_PAPER}">Saliency-based Sequential '
        "Image Attention with Multiset Prediction</a>, Welleck et al., NIPS 2017.</footer>\n</body></html>\n"
    )


# --- sections ---------------------------------------------------------------------------------------------------------


def _results(rows: Sequence[Row]) -> list[str]:
    parts: list[str] = []
    table: list[list[Any]] = []
    for row in rows:
        tests = [run.metrics["test"] for run in row.runs]
        guess, paper = row.runs[0].metrics.get("blind_guess", {}), row.runs[0].paper
        beside = dict(zip(("macro_f1", "exact_match"), paper or (), strict=False))
        cells: list[Any] = [row.name, source_in_words(row.runs[0].metrics["source"]), len(row.runs)]
        for score in SCORES:
            small = [f"paper {beside[score]:.3f}"] if score in beside else []
            small += [f"blind guess {guess[score]:.3f}"] if score in guess else []
            cells.append(_over(spread([test[score] for test in tests]), small))
        ratios = [test["attn_saliency_ratio"] for test in tests if test.get("attn_saliency_ratio") is not None]
        cells += [spread(ratios, 1) if ratios else "", _minutes(row.runs)]
        table.append(cells)
    heads = ["row", "images", "seeds", *_HEADS.values(), "saliency at glimpses / uniform", "train min"]
    if len(rows) <= _ROWS_ABREAST:  # scores below one another: fits a phone
        heads, *table = map(list, zip(heads, *table, strict=True))
    parts.append(_table(heads, table))
    parts.append(
        _paragraph(
            "Greedy, on test canvases; mean ± sample standard deviation over seeds. 0-1: the share of images whose whole "
            "multiset is right. OP and OR: overall precision and recall. Blind guess: always naming the multiset that is most "
            "frequent in training. The paper's numbers are for a ResNet-34 and, of MNIST, test canvases that share digits "
            "with training ones."
        )
    )
    few = [row for row in rows if row.runs[0].metrics.get("episodes")]
    for row in few:
        parts.append(_paragraph(f"{row.name}: on {row.runs[0].metrics['episodes']:,} test canvases, by this report."))
    if sum(len(row.runs) for row in rows) > len(rows):
        each = [
            [run.name, "" if run.seed is None else run.seed, *(f"{run.metrics['test'][s]:.4f}" for s in SCORES)]
            for row in rows
            for run in row.runs
        ]
        parts.append(_heading("Every run") + _table(["run", "seed", *_HEADS.values()], each))
    return parts


def _aggregate(rows: Sequence[Row]) -> list[str]:
    if sum(len(row.runs) for row in rows) < 2:
        return [_paragraph("One run: nothing to aggregate. Give several, of other seeds or tasks.")]
    pooled = [[rows[number] for number in part] for part in methods([row.runs for row in rows])]
    labels = [", ".join(row.name for row in method) for method in pooled]
    table: list[list[Any]] = [
        [name, len(part), sum(len(row.runs) for row in part)] for name, part in zip(labels, pooled, strict=True)
    ]
    drawn = []
    for score in ("exact_match", "macro_f1"):
        found = []
        for cells, method in zip(table, pooled, strict=True):
            tasks = [[float(run.metrics["test"][score]) for run in row.runs] for row in method]
            found.append((float(interquartile_mean(np.concatenate(tasks))), *bootstrap_interval(tasks)))
            several = sum(map(len, tasks)) > 1  # one run has no interval
            cells.append(("{:.4f} [{:.4f}, {:.4f}]" if several else "{:.4f}").format(*found[-1]))
        title = f"IQM of {_HEADS[score]}"
        drawn.append(_picture(_svg(_interval_figure(title, labels, found)), f"{title} with its intervals"))
    parts: list[str] = [
        _table(["rows of one method", "tasks", "runs", "IQM of 0-1 [95 %]", "IQM of macro-F1 [95 %]"], table)
    ]
    parts.append(f'<div class="columns">{"".join(drawn)}</div>\n')
    words = (
        "IQM: interquartile mean, the mean of the middle half of the scores of all runs on all tasks; in brackets a 95 % "
        "interval by a bootstrap that draws runs within each task, "
    )
    parts.append(f'<p>{words}after <a href="{_RELIABLE}">Agarwal et al., 2021</a>.</p>\n')
    if min(len(row.runs) for row in rows) < FEWEST_RUNS:
        parts.append(_note(f"With fewer than {FEWEST_RUNS} runs of a task, an interval means little."))
    return parts


def _curves(rows: Sequence[Row]) -> list[str]:
    by_unit: dict[str, list[curves.Curve]] = {}
    for number, row in enumerate(rows):
        colour, label = curves.COLOURS[number % len(curves.COLOURS)], fill(row.name, 40)
        for run in (run for run in row.runs if run.progress):
            unit, x = run.curve
            by_unit.setdefault(unit, []).append(curves.Curve(x, run.progress, colour, label or None))
            label = ""
    parts = []
    for unit, lines in by_unit.items():
        for panels, words in ((curves.FIGURE_6, "the paper's figure 6"), (curves.FIGURE_5, "the paper's figure 5")):
            shown = [panel for panel in panels if any(_any(line.columns.get(panel[0])) for line in lines)]
            drawn = [_picture(_svg(curves.draw([panel], lines, unit)), panel[1]) for panel in shown]
            if drawn:
                parts.append(f'<div class="columns">{"".join(drawn)}</div>{_paragraph(f"Every run a line; {words}.")}')
    without = [row.name for row in rows if not any(run.progress for run in row.runs)]
    if without:
        parts.append(_note(f"No progress.csv: {', '.join(without)}."))
    return parts


def _breakdown(rows: Sequence[Row]) -> list[str]:
    counts = {
        row.name: {
            n: [run.metrics["test"]["by_count"][n]["exact_match"] for run in row.runs]
            for n in row.runs[0].metrics["test"].get("by_count", {})
        }
        for row in rows
    }
    numbers = sorted({n for part in counts.values() for n in part}, key=int)
    parts = []
    if numbers:
        table = [
            [name, *(_bar(float(np.mean(part[n])), spread(part[n])) if n in part else "" for n in numbers)]
            for name, part in counts.items()
        ]
        parts += [
            _heading("0-1 by number of objects, test canvases"),
            _table(["row", *(_count(int(n), "object") for n in numbers)], table),
        ]
    if any(row.traces for row in rows):
        parts.append(
            _paragraph("What follows is of episodes that this report has played, on the canvases that a heading names.")
        )
    for row in rows:
        if not row.traces:
            continue
        parts.append(_heading(f"{row.name}: {_episodes(row)}"))
        blocks, lines = [], []
        for name, part in breakdown(row.traces).items():
            if isinstance(part, Mapping) and part and isinstance(next(iter(part.values())), Mapping):
                columns = list(next(iter(part.values())))
                table = [[key, *(_share(cells[c]) for c in columns)] for key, cells in part.items()]
                blocks.append(f"<div>{_table([name, *columns], table)}</div>")
            else:
                lines.append([name, _number(part)])
        parts.append(f'<div class="columns">{"".join(blocks)}<div>{_table(["in all", ""], lines)}</div></div>\n')
    return [*parts, *_agentless(rows)]


def _scan_path(rows: Sequence[Row]) -> list[str]:
    parts = []
    for row in rows:
        if not row.traces:
            continue
        parts.append(_heading(f"{row.name}: {_episodes(row)}"))
        found = measures(row.traces, np.random.default_rng(0))
        columns = list(dict.fromkeys(name for part in found.values() for name in part))
        table = [
            [_over(name, [MEASURES[name]]), *(_number(part[column]) for column in columns)]
            for name, part in found.items()
        ]
        parts.append(_table(["measure", *columns], table))
    if parts:
        parts.append(
            _paragraph(
                "Fixations are the glimpses taken while an object remained to be named. Two controls fixate as often on the same "
                "canvases: uniform, cells drawn uniformly; centre, cells drawn from the agent's fixations on all other canvases, "
                "which know nothing of this one."
            )
        )
    return [*parts, *_agentless(rows)]


def _gallery(rows: Sequence[Row]) -> list[str]:
    parts = []
    for row in rows:
        if not row.traces:
            continue
        parts.append(_heading(f"{row.name}: of {_episodes(row)}"))
        for kind, traces in gallery.choose(row.traces).items():
            parts.append(f"<h4>{kind.capitalize()}</h4>\n{_paragraph(gallery.KINDS[kind])}")
            shown = "".join(map(_episode, traces)) or "None."
            parts.append(f'<div class="columns">{shown}</div>\n')
    return [*parts, *_agentless(rows)]


def _configuration(rows: Sequence[Row]) -> list[str]:
    settings = [row.runs[0].config for row in rows]
    names = list(dict.fromkeys(name for part in settings for name in part))
    differing = [name for name in names if len({str(part.get(name, Html())) for part in settings}) > 1]
    parts = []
    if differing:
        table = [
            [name, *("not recorded" if name not in part else str(part[name]) for part in settings)]
            for name in differing
        ]
        parts += [_heading("What differs"), _table(["setting", *(row.name for row in rows)], table)]
    same = "".join(f"<dt>{_text(n)}</dt><dd>{_text(settings[0][n])}</dd>" for n in names if n not in differing)
    if same:
        parts += [_heading("The same in all" if len(rows) > 1 else "Settings"), f'<dl class="settings">{same}</dl>\n']
    commands = [(run.name, shlex.join(map(str, run.metrics.get("command", ())))) for row in rows for run in row.runs]
    if any(command for _, command in commands):
        parts.append(_heading("Commands"))
        table = [[name, Html(f"<code>{_text(command)}</code>")] for name, command in commands if command]
        parts.append(_table(["run", "command"], table))
    versions: dict[str, dict[str, None]] = {}
    for run in (run for row in rows for run in row.runs):
        for package, version in run.metrics.get("versions", {}).items():
            versions.setdefault(package, {})[str(version)] = None
    if versions:
        listed = "".join(f"<dt>{_text(p)}</dt><dd>{_text(', '.join(found))}</dd>" for p, found in versions.items())
        parts += [_heading("Versions"), f'<dl class="settings">{listed}</dl>\n']
    return parts


# --- parts ------------------------------------------------------------------------------------------------------------


def _episode(trace: Trace) -> str:
    named = " ".join(map(str, trace.named)) or "nothing"
    sure = gallery.least_probability(trace)
    words = (
        f"Canvas {trace.canvas_index}: {{{' '.join(map(str, sorted(trace.labels.tolist())))}}}, named {named}; "
        f"least probability {sure:.4f}."
    )
    content = io.BytesIO()
    picture = draw_trace(trace)
    Image.fromarray(picture).save(content, format="PNG", optimize=True)
    return _picture(("image/png", content.getvalue()), words, words, width_px=picture.shape[1] * 3 // 4)


def _interval_figure(title: str, names: Sequence[str], found: Sequence[tuple[float, ...]]) -> Figure:
    """(middle, low, high) of each name: a tick on a bar."""
    figure = Figure(figsize=(5.4, 0.9 + 0.32 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, (middle, low, high) in enumerate(found):
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


def _svg(figure: Figure) -> tuple[str, bytes]:
    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "hsal", "svg.fonttype": "path"}):  # the same figure, the same bytes
        figure.savefig(content, format="svg", metadata={"Date": None})
    return "image/svg+xml", content.getvalue()


def _picture(content: tuple[str, bytes], alternative: str, caption: str = "", width_px: int = 528) -> str:
    kind, data = content
    source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    below = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
    return f'<figure style="width:{width_px}px"><img src="{source}" alt="{_text(alternative)}">{below}</figure>\n'


def _table(heads: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Html:
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in heads)
    lines = []
    for first, *others in rows:
        cells = "".join(f"<td>{_text(cell)}</td>" for cell in others)
        lines.append(f'<tr><th scope="row">{_text(first)}</th>{cells}</tr>')
    body = "\n".join(lines)
    return Html(
        f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'
    )


def _text(value: Any) -> str:
    return value if isinstance(value, Html) else html.escape(str(value))


def _over(value: str, small: Sequence[str]) -> Html:
    return Html(_text(value) + "".join(f"<small>{_text(line)}</small>" for line in small))


def _bar(share: float, words: str) -> Html:
    """A number with a bar behind it, 0 to 1."""
    return Html(f'<span class="bar" style="--share:{100 * min(max(share, 0), 1):.1f}%">{_text(words)}</span>')


def _share(value: Any) -> Any:
    return _bar(value, f"{value:.3f}") if isinstance(value, float) and 0 <= value <= 1 else _number(value)


def _number(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "unknown"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _heading(words: str) -> str:
    return f"<h3>{_text(words)}</h3>\n"


def _paragraph(words: str) -> str:
    return f"<p>{_text(words)}</p>\n"


def _note(words: str) -> str:
    return f'<p class="note">{_text(words)}</p>\n'


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _minutes(runs: Sequence[Run]) -> str:
    known = [run.metrics["train_seconds"] / 60 for run in runs if run.metrics.get("train_seconds") is not None]
    return f"{np.mean(known):.1f}" if known else ""


def _any(values: Sequence[float | None] | None) -> bool:
    return any(value is not None for value in values or ())


def _episodes(row: Row) -> str:
    player = next(run.name for run in row.runs if run.checkpoint)
    of_seed = f", of {player}" if len(row.runs) > 1 else ""
    split = {"val": "validation", "train": "training"}.get(row.split, row.split)
    return f"{len(row.traces):,} {split} canvases of {source_in_words(row.traces[0].source)}, greedy{of_seed}"


def _agentless(rows: Sequence[Row]) -> list[str]:
    """Why rows have no episodes."""
    absent = [row for row in rows if not row.traces]
    parts = []
    for which, why in (
        (False, "No checkpoint.pt, so what needs the agent is left out"),
        (True, "No episodes recorded"),
    ):
        found = [row.name for row in absent if any(run.checkpoint for run in row.runs) == which]
        if found:
            parts.append(_note(f"{why}: {', '.join(found)}."))
    return parts


_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#5b6570;--paper:#fff;--card:#f5f7f9;--line:#d9dee3;--blue:#0072b2;
--bar:#cfe5f2;--note:#fff4dc}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#a2adb8;--paper:#14181c;--card:#1d2328;--line:#353d45;
--blue:#6cbcec;--bar:#1f4a63;--note:#3a3018}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:72rem;padding:1.5rem 1.25rem 3rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .5rem;overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:2.6rem 0 .8rem;padding-bottom:.3rem;border-bottom:1px solid var(--line)}
h3{font-size:1.03rem;margin:1.6rem 0 .5rem}h4{margin:1.2rem 0 0}
p{margin:.5rem 0;max-width:52rem}h4+p{color:var(--soft);font-size:.9rem;margin-top:0}a{color:var(--blue)}
nav{display:flex;flex-wrap:wrap;gap:.25rem 1.1rem;margin-top:.9rem}
.wide{overflow-x:auto;margin:.6rem 0}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.38rem .8rem;text-align:left;vertical-align:top;border-bottom:1px solid var(--line);white-space:nowrap}
thead th{color:var(--soft);font-weight:600;vertical-align:bottom}
tbody th{font-weight:600;max-width:34rem;min-width:7rem;white-space:normal;overflow-wrap:break-word;
position:sticky;left:0;background:var(--paper)}
thead th{white-space:normal}
small{display:block;font-weight:400;max-width:34rem;color:var(--soft);font-size:.78rem}
.bar{display:inline-block;min-width:7rem;padding:0 .35rem;border-radius:3px;
background:linear-gradient(to right,var(--bar) var(--share),var(--card) var(--share))}
.note{background:var(--note);padding:.5rem .8rem;border-radius:6px}
.columns{display:flex;flex-wrap:wrap;gap:.5rem 2.2rem}.columns>*{min-width:0;max-width:100%}
figure{margin:.5rem 0;max-width:100%}img{width:100%;height:auto;background:#fff;border-radius:8px;border:1px solid var(--line)}
figcaption{color:var(--soft);font-size:.86rem}
.settings{columns:15rem;column-gap:2rem;font-size:.86rem;margin:.6rem 0}
.settings dt{color:var(--soft);float:left;clear:left;margin-right:.6rem}
.settings dd{margin:0;text-align:right;overflow-wrap:anywhere;break-before:avoid}
code{font:.86rem/1.4 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:normal;overflow-wrap:anywhere}
footer{margin-top:3rem;color:var(--soft);font-size:.86rem}
@media (max-width:40rem){body{padding:1rem .8rem 2rem}th,td{padding:.32rem .5rem}h1{font-size:1.35rem}}
@media print{body{max-width:none;font-size:10pt;padding:0}nav{display:none}.wide{overflow:visible}
th,td{white-space:normal;padding:.2rem .35rem}table{font-size:8pt}figure,tr{break-inside:avoid}h2,h3,h4{break-after:avoid}
.bar{print-color-adjust:exact;-webkit-print-color-adjust:exact;min-width:4rem}}
"""
