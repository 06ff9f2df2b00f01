"""Make the tables and figures of README.md, results/README.md, docs/attention.md, docs/perception.md and results/table.csv.

python train/make_results.py          # write them
python train/make_results.py --check  # fail if a table is out of date (figures are not compared)
"""

from __future__ import annotations

import csv
import io
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hsal_env.command_line import require_agents, run_command
from hsal_env.errors import ConfigError
from hsal_env.storage.files import replacing, write_text

sys.path.insert(0, str(Path(__file__).parent))  # the rows stand in a script beside this one
require_agents()

import attention_table
from reproduce import LEARNERS, OWN_IMAGES, ROWS

from agents.reports import runs
from agents.reports.paper import TABLE_1
from agents.reports.statistics import spread
from agents.reports.tables import source_in_words

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- results: made by python train/make_results.py -->\n", "<!-- /results -->"
LEARNERS_START, LEARNERS_END = "<!-- learners: made by python train/make_results.py -->\n", "<!-- /learners -->"
OWN_START, OWN_END = "<!-- photographs: made by python train/make_results.py -->\n", "<!-- /photographs -->"
FINER_START, FINER_END = "<!-- finer: made by python train/make_results.py -->\n", "<!-- /finer -->"
SALIENCY_START, SALIENCY_END = "<!-- saliency: made by python train/make_results.py -->\n", "<!-- /saliency -->"
FINER = {
    "crowded-7x7": "compact-crowded",
    "crowded-lower-level": "compact-crowded-lower-level",
    "crowded-14x14": "compact-crowded-14x14",
    "crowded-28x28": "compact-crowded-28x28",
}
"""Rows of maps of several finenesses, and their activation models; their table is in docs/perception.md alone."""
SALIENCY = "saliency-"
"""How the rows of saliency models begin; likewise."""
PAPER = {
    "mnist-multiset": TABLE_1["multiset", "reinforce"],
    "mnist-set": TABLE_1["set", "reinforce"],
    "mnist-multiset-deterministic": TABLE_1["multiset", "reinforce"],
    "mnist-set-deterministic": TABLE_1["set", "reinforce"],
    "mnist-multiset-cross-entropy": TABLE_1["multiset", "cross-entropy"],
    "mnist-set-cross-entropy": TABLE_1["set", "cross-entropy"],
    "mnist-multiset-faithful": TABLE_1["multiset", "reinforce"],
    "mnist-set-faithful": TABLE_1["set", "reinforce"],
    "mnist-multiset-faithful-cross-entropy": TABLE_1["multiset", "cross-entropy"],
    "mnist-multiset-resnet34": TABLE_1["multiset", "reinforce"],
    "svhn": TABLE_1["svhn", "reinforce"],
    "svhn-cross-entropy": TABLE_1["svhn", "cross-entropy"],
    "svhn-multiset": TABLE_1["svhn", "reinforce"],
    "svhn-multiset-cross-entropy": TABLE_1["svhn", "cross-entropy"],
    "svhn-multiset-faithful": TABLE_1["svhn", "reinforce"],
}
COLUMNS = (
    "row", "what", "images", "seeds", "0-1", "macro-F1", "paper 0-1", "paper F1", "0-1 by objects", "pointing", "focus",
    "several", "glimpses / uniform",
    "train min", "features min", "CPU min", "memory GiB", "command",
)  # fmt: skip
FINER_COLUMNS = (
    "row", "map", "0-1", "macro-F1", "pretraining min", "kB per image", "features min", "train min", "memory GiB",
)  # fmt: skip
SALIENCY_AGENTS = {  # column: the row on sum-of-squares, and how those on other maps end
    "drawn": ("mnist-multiset", ""),
    "deterministic": ("mnist-multiset-deterministic", "-deterministic"),
    "winner-take-all": ("control-winner-take-all", "-winner-take-all"),
}
SALIENCY_COLUMNS = ("saliency", *SALIENCY_AGENTS, "found", "found, high", "spurious, high", "AUC")
IN_README = ("row", "what", "seeds", "0-1", "macro-F1", "paper 0-1", "paper F1", "focus", "several", "train min")
README_ROWS = (
    "mnist-multiset", "mnist-set", "mnist-multiset-deterministic", "mnist-multiset-faithful", "mnist-multiset-cross-entropy",
    "house-numbers", "svhn", "dice", "sb3-hsal",
)  # fmt: skip
LEARNER_COLUMNS = (
    "row", "what", "images", "seeds", "steps", "mean return", "random", "stop at once", "0-1", "macro-F1", "train min", "command",
)  # fmt: skip
OWN_COLUMNS = (
    "row", "what", "tested on", "seeds", "0-1", "macro-F1", "count error", "guessed", "pointing", "focus", "mask in box",
    "a guess", "without attention", "train min", "command",
)  # fmt: skip
_LEARNER_CURVES = {  # row: (label, colour, decisions of the native process in a step of the view)
    "mnist-multiset": ("our trainer, expected success (log)", "#0072B2", 1.0),
    "sb3-hsal": ("RecurrentPPO, the paper's agent", "#009E73", 1.0),
    "sb3-maskable-ppo": ("MaskablePPO, flat", "#D55E00", 1.0),
    "sb3-ppo": ("PPO, flat", "#E69F00", 1.0),
    "sb3-dqn": ("DQN, flat", "#CC79A7", 1.0),
    "sb3-ppo-option": ("PPO, option", "#56B4E9", 4.0),
    "sb3-sac": ("SAC, option", "#000000", 4.0),
}
_CURVES = {  # row: (label, colour of Okabe and Ito)
    "mnist-multiset": ("drawn attention, expected success (log)", "#0072B2"),
    "mnist-multiset-faithful": ("REINFORCE (sampled) as printed", "#009E73"),
    "mnist-multiset-cross-entropy": ("cross-entropy", "#D55E00"),
}


def read(root: Path) -> dict[str, list[dict[str, Any]]]:
    """metrics.json of every seed of every row that has been run, in the order of :data:`ROWS`."""
    found = {}
    for name in ROWS:
        files = sorted((root / "results" / name).glob("seed-*/metrics.json"))
        if files:
            found[name] = [json.loads(file.read_text()) for file in files]
    return found


def cells(name: str, runs: list[dict[str, Any]]) -> dict[str, str]:
    """One row of the table."""
    row, tests = ROWS[name], [run["test"] for run in runs]
    f1, exact = (f"{value:.3f}" for value in PAPER[name]) if name in PAPER else ("", "")
    ratios = [test["attn_saliency_ratio"] for test in tests if test["attn_saliency_ratio"] is not None]
    sizes = list(tests[0]["by_count"])
    return {
        "row": name,
        "what": row.what,
        "images": source_in_words(runs[0]["source"]),
        "seeds": str(len(runs)),
        "0-1": spread([test["exact_match"] for test in tests]),
        "macro-F1": spread([test["macro_f1"] for test in tests]),
        "paper 0-1": exact,
        "paper F1": f1,
        "0-1 by objects": " / ".join(f"{np.mean([t['by_count'][n]['exact_match'] for t in tests]):.3f}" for n in sizes),
        **{name: of_tests(tests, name) for name in ("pointing", "focus", "several")},
        "glimpses / uniform": f"{np.mean(ratios):.1f}" if ratios else "",
        "train min": mean(runs, "train_seconds", 60),
        "features min": mean(runs, "feature_seconds", 60),
        "CPU min": mean(runs, "cpu_seconds", 60),
        "memory GiB": mean(runs, "max_memory_mib", 1024),
        "command": f"`python {shlex.join(row.command(row.seeds[0]))}`",
    }


def of_tests(tests: list[dict[str, Any]], key: str) -> str:
    """A measure of where the agent looked, which older runs lack."""
    values = [test[key] for test in tests if test.get(key) is not None]
    return spread(values) if values else ""


def mean(runs: list[dict[str, Any]], key: str, unit: float) -> str:
    """Mean of a number that some runs may lack."""
    values = [run[key] for run in runs if run.get(key) is not None]
    return f"{np.mean(values) / unit:.1f}" if values else ""


def learner_cells(name: str, runs: list[dict[str, Any]]) -> dict[str, str]:
    """One row of the table of other learners."""

    def of(player: str, score: str, digits: int) -> str:
        return spread([run[player][score] for run in runs], digits)

    return {
        "row": name,
        "what": ROWS[name].what,
        "images": source_in_words(runs[0]["source"]),
        "seeds": str(len(runs)),
        "steps": f"{runs[0]['steps']:,}",
        "mean return": of("test", "mean_return", 2),
        "random": of("random", "mean_return", 2),
        "stop at once": of("stop_at_once", "mean_return", 2),
        "0-1": of("test", "exact_match", 3),
        "macro-F1": of("test", "macro_f1", 3),
        "train min": mean(runs, "train_seconds", 60),
        "command": f"`python {shlex.join(ROWS[name].command(ROWS[name].seeds[0]))}`",
    }


def own_cells(name: str, runs: list[dict[str, Any]]) -> dict[str, str]:
    """One row of the table of photographs of one's own."""

    def of(player: str, score: str) -> str:
        values = [run[player][score] for run in runs]
        return spread([value["mean"] if isinstance(value, dict) else value for value in values])

    def seconds(run: dict[str, Any]) -> tuple[float, ...]:
        return run["features"]["seconds"], run["feature_seconds"], run["train_seconds"]

    images = sum(of_count["episodes"] for of_count in runs[0]["test"]["by_count"].values())
    return {
        "row": name,
        "what": ROWS[name].what,
        "tested on": str(images),
        "seeds": str(len(runs)),
        "0-1": of("test", "exact_match"),
        "macro-F1": of("test", "macro_f1"),
        "count error": of("test", "count_error"),
        "guessed": spread([run["blind_guess"]["mean_counts"]["count_error"]["mean"] for run in runs]),
        "pointing": of("test", "pointing"),
        "focus": of("test", "focus"),
        "mask in box": of("test", "mask_in_box"),
        "a guess": of("blind_guess", "exact_match"),
        "without attention": of("count_network", "exact_match"),
        "train min": mean([{"all": sum(seconds(run))} for run in runs], "all", 60),
        "command": f"`python {shlex.join(ROWS[name].command(ROWS[name].seeds[0]))}`",
    }


def finer_cells(name: str, runs: list[dict[str, Any]]) -> dict[str, str]:
    """One row of the table of finer maps: what it brings and costs."""
    from hsal_env.perception.registry import WEIGHTS_FOLDER, activation_model

    model = activation_model(FINER[name])
    assert model.stride_px
    image_px = -(-runs[0]["config"]["env"]["canvas_px"] // 16) * 16  # continued to a multiple of 16 px
    side = image_px // int(model.stride_px)
    file = WEIGHTS_FOLDER / f"{FINER[name].removesuffix('-lower-level')}.json"
    return cells(name, runs) | {
        "map": f"{side}x{side}, {model.channels} channels",
        "pretraining min": f"{json.loads(file.read_text())['seconds'] / 60:.0f}",
        "kB per image": f"{2 * model.channels * side**2 / 1000:.0f}",
    }


def saliency_cells(root: Path, found: dict[str, list[dict[str, Any]]]) -> list[dict[str, str]]:
    """How well each saliency model finds objects, and how well an agent does with it."""
    path = root / "results" / "saliency" / "saliency.json"
    if not path.exists():
        return []
    rows = []
    for name, shares in json.loads(path.read_text())["models"].items():
        exact = {
            column: [
                run["test"]["exact_match"]
                for run in found.get(first if name == "sum-of-squares" else SALIENCY + name + ending, [])
            ]
            for column, (first, ending) in SALIENCY_AGENTS.items()
        }
        rows.append(
            {
                "saliency": f"`{name}`",
                **{column: spread(values) if values else "" for column, values in exact.items()},
                "found": f"{shares['found']:.3f}",
                "found, high": f"{shares['found_high']:.3f}",
                "spurious, high": f"{shares['spurious_high']:.3f}",
                "AUC": f"{shares['auc']:.3f}",
            }
        )
    return rows


def markdown(rows: list[dict[str, str]], columns: tuple[str, ...]) -> str:
    """A table."""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return "\n".join(lines + [f"| {' | '.join(row[column] for column in columns)} |" for row in rows]) + "\n"


def comma_separated(rows: list[dict[str, str]]) -> str:
    """The same for programs."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "command": row["command"].strip("`")} for row in rows)
    return text.getvalue()


def texts(root: Path = ROOT) -> dict[Path, str]:
    """What each made file should hold."""
    found = read(root)
    rows = [cells(name, runs) for name, runs in found.items() if ROWS[name].script not in (LEARNERS, OWN_IMAGES)]
    own = [own_cells(name, runs) for name, runs in found.items() if ROWS[name].script == OWN_IMAGES]
    learners = [learner_cells(name, runs) for name, runs in found.items() if ROWS[name].script == LEARNERS]
    made = {root / "results" / "table.csv": comma_separated(rows)}
    finer = [finer_cells(name, runs) for name, runs in found.items() if name in FINER]
    headline = [dict.fromkeys(IN_README, "") | row for row in (*rows, *own, *learners) if row["row"] in README_ROWS]
    places: dict[Path, list[tuple[str, str, list[dict[str, str]], tuple[str, ...]]]] = {
        root / "README.md": [(START, END, headline, IN_README)],
        root / "results" / "README.md": [
            (START, END, rows, COLUMNS),
            (OWN_START, OWN_END, own, OWN_COLUMNS),
            (LEARNERS_START, LEARNERS_END, learners, LEARNER_COLUMNS),
        ],
        root / "docs" / "perception.md": [
            (FINER_START, FINER_END, finer, FINER_COLUMNS),
            (SALIENCY_START, SALIENCY_END, saliency_cells(root, found), SALIENCY_COLUMNS),
        ],
    }
    page = root / "docs" / "attention.md"
    if page.exists() and (attention := attention_table.read(root / "results" / "attention" / "attention.json")):
        places[page] = [
            (f"<!-- {name}: made by python train/make_results.py -->\n", f"<!-- /{name} -->", *made_rows)
            for name, made_rows in attention_table.pages(attention).items()
        ]
    for path, tables in places.items():
        at = {root: "results/", root / "results": ""}.get(path.parent, "../results/")
        text = path.read_text()
        for start, end, table, shown in tables:
            linked = [{**row, "row": f"[{row['row']}]({at}{row['row']})"} if "row" in row else row for row in table]
            before, rest = text.split(start)
            text = before + start + markdown(linked, shown) + end + rest.split(end)[1]
        made[path] = text
    return made


def draw_figures(root: Path = ROOT) -> None:
    """The paper's figures 5 and 6 over our runs: results/figure5.png and results/figure6.png."""
    from agents.reports import curves  # matplotlib: not before --help

    lines = []
    for name, (label, colour) in _CURVES.items():
        for number, path in enumerate(sorted((root / "results" / name).glob("seed-*/metrics.json"))):
            run = runs.read(path.parent)
            lines.append(curves.Curve(run.curve[1], run.progress, colour, None if number else label))
    for file, panels in (("figure5.png", curves.FIGURE_5), ("figure6.png", curves.FIGURE_6)):
        with replacing(root / "results" / file) as path:
            curves.draw(panels, lines).savefig(path, dpi=128)


def draw_learners(root: Path = ROOT) -> None:
    """0-1 on validation canvases against decisions of the native process, other learners beside ours: results/learners.png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, (label, colour, decisions) in _LEARNER_CURVES.items():
        for number, path in enumerate(sorted((root / "results" / name).glob("seed-*/progress.csv"))):
            config = json.loads(path.with_name("metrics.json").read_text())["config"]
            if "steps" not in path.read_text().split("\n")[0]:  # ours: whole teacher episodes, one per image
                env = config["env"]
                objects = (env["min_objects"] + (env["max_objects"] or 4)) / 2
                decisions = config["learner"]["batch_size"] * (objects + 1) * (env["glimpses"] + 2)
            with path.open() as lines:
                points = [
                    (float(line.get("steps") or line["update"]) * decisions, float(line["val/exact_match"]))
                    for line in csv.DictReader(lines)
                    if line["val/exact_match"]
                ]
            axes.plot(*zip(*points, strict=True), color=colour, lw=1.2, label=label if number == 0 else None,
                      marker="o", ms=3)  # fmt: skip
    axes.set(xscale="log", xlabel="decisions", ylabel="0-1, validation", ylim=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    with replacing(root / "results" / "learners.png") as path:
        figure.savefig(path, dpi=128)


@dataclass(frozen=True)
class Args:
    """Make the results' tables and figures."""

    check: bool = False
    """write nothing; fail if a table is out of date"""


def main(args: Args) -> None:
    """Write, or check.

    Raises:
        ConfigError: a table is out of date.
        CheckpointError: a file cannot be written.
    """
    made = texts()
    if args.check:
        stale = [path.relative_to(ROOT) for path, text in made.items() if not path.exists() or path.read_text() != text]
        if stale:
            raise ConfigError(f"Out of date: {', '.join(map(str, stale))}; run python train/make_results.py")
        return
    for path, text in made.items():
        write_text(path, text)
    draw_figures()
    draw_learners()


def cli() -> None:
    run_command(main, Args)


if __name__ == "__main__":
    cli()
