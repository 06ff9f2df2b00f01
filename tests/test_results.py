"""The tables and figures that train/make_results.py makes, on made-up runs in a folder of their own."""

import csv
import io
import json
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
make = SimpleNamespace(**runpy.run_path(str(ROOT / "train" / "make_results.py")))
MARKED = f"# Title\n\nbefore\n\n{make.START}an old table\n{make.END}\n\nafter\n"
OF_OWN = f"{make.OWN_START}a third\n{make.OWN_END}\n"
OF_LEARNERS = f"{make.LEARNERS_START}another\n{make.LEARNERS_END}\n\nafter\n"


def metrics(exact: float, f1: float, ratio: float | None = 12.34, where: dict | None = None, **more: object) -> dict:
    """What the tables read of a metrics.json; ``where`` it looked is not in all of them."""
    by_count = {str(n): {"episodes": 5, "exact_match": exact - n / 100, "macro_f1": f1} for n in (1, 2)}
    others = dict.fromkeys(("micro_f1", "overall_precision", "overall_recall", "example_f1"), f1)
    test = {**others, "exact_match": exact, "macro_f1": f1, "attn_saliency_ratio": ratio, "by_count": by_count} | (
        where or {}
    )
    config = {"learner": {"batch_size": 50}, "env": {"min_objects": 1, "max_objects": None, "glimpses": 2}}
    return {"source": "mnist", "test": test, "train_seconds": 90.0, "config": config} | more


def learner(exact: float, mean_return: float) -> dict:
    """The same of one that sb3_agents.py writes."""
    players = {
        name: {"mean_return": value, "exact_match": exact, "macro_f1": exact / 2}
        for name, value in (("test", mean_return), ("random", -2.0), ("stop_at_once", -1.0))
    }
    return {"source": "mnist", "steps": 303_104, "train_seconds": 120.0, "config": {"seed": 0}, **players}


def progress(rows: int) -> str:
    """Validation in every other row alone, as in a run."""
    lines = ["update,attention/saliency,attention/saliency_ratio,val/macro_f1,val/exact_match"]
    for row in range(1, rows + 1):
        lines.append(f"{20 * row},{row}.5,{row}.25,{row / 10 if row % 2 else ''},{row / 20 if row % 2 else ''}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with five runs of four rows, and one of a row that is not in the list."""
    runs = {
        "rival-count-network/seed-0": metrics(0.7, 0.8, ratio=None),
        "mnist-multiset/seed-1": metrics(
            0.94, 0.98, 14.0, {"pointing": 0.96, "focus": 0.7}, train_seconds=150.0, cpu_seconds=60.0
        ),
        "mnist-multiset/seed-0": metrics(
            0.90, 0.96, 12.0, {"pointing": 0.94}, feature_seconds=30.0, cpu_seconds=120.0, max_memory_mib=2048
        ),
        "mnist-set/seed-7": metrics(0.5, 0.6),
        "mnist-multiset-faithful/seed-0": metrics(0.4, 0.55),
        "forgotten/seed-0": metrics(0.1, 0.1),
        "sb3-ppo/seed-0": learner(0.8, 7.0),
        "sb3-ppo/seed-1": learner(0.9, 8.0),
        "sb3-sac/seed-0": learner(0.5, 5.0),
    }
    for name, content in runs.items():
        (tmp_path / "results" / name).mkdir(parents=True)
        (tmp_path / "results" / name / "metrics.json").write_text(json.dumps(content))
    for name, rows in (
        ("mnist-multiset/seed-0", 4),
        ("mnist-multiset/seed-1", 3),
        ("mnist-multiset-faithful/seed-0", 2),
    ):
        (tmp_path / "results" / name / "progress.csv").write_text(progress(rows))
    for name in ("sb3-ppo/seed-0", "sb3-ppo/seed-1", "sb3-sac/seed-0"):
        text = (
            "steps,seconds,val/mean_return,val/exact_match,val/macro_f1\n1000,1.0,0.5,0.25,0.3\n2000,2.0,0.6,0.5,0.6\n"
        )
        (tmp_path / "results" / name / "progress.csv").write_text(text)
    (tmp_path / "train").mkdir()
    for name in ("make_results.py", "reproduce.py", "attention_table.py"):
        shutil.copy(ROOT / "train" / name, tmp_path / "train")
    (tmp_path / "README.md").write_text(MARKED)
    (tmp_path / "results" / "README.md").write_text(MARKED + OF_OWN + OF_LEARNERS)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "perception.md").write_text(
        f"# Perception\n\n{make.FINER_START}{make.FINER_END}\n\n{make.SALIENCY_START}{make.SALIENCY_END}\n"
    )
    return tmp_path


def command(monkeypatch: pytest.MonkeyPatch, root: Path, *flags: str) -> None:
    path = root / "train" / "make_results.py"
    monkeypatch.setattr(sys, "argv", [str(path), *flags])
    monkeypatch.setattr(sys, "path", list(sys.path))  # the script puts its folder there
    runpy.run_path(str(path), run_name="__main__")


def table(root: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(make.texts(root)[root / "results" / "table.csv"])))


def test_the_page_on_attention_is_made_where_there_are_results(root: Path):
    page = root / "docs" / "attention.md"
    assert page not in make.texts(root)
    names = ("scores", "places", "objects", "departures")
    page.write_text(
        "# Attention\n"
        + "".join(f"\n<!-- {n}: made by python train/make_results.py -->\nold\n<!-- /{n} -->\n" for n in names)
    )
    row = {"exact_match": 0.9, "macro_f1": 0.95, "pointing": 0.99, "focus": 0.7, "several": 0.0}
    (root / "results" / "attention").mkdir()
    (root / "results" / "attention" / "attention.json").write_text(json.dumps({"policy/boxes/0": row}))
    text = make.texts(root)[page]
    assert "| policy |  | 0.900 |" in text
    assert "| policy |  | 0.70 / 0.00 / 0.99 |" in text
    assert "old" not in text
    assert all(f"<!-- /{name} -->" in text for name in names)


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([0.12345], "0.123"),
        ([0.90, 0.94], "0.920 ± 0.028"),  # 0.04 / sqrt(2)
        ([0.1, 0.2, 0.3], "0.200 ± 0.100"),  # the sample's deviation: the population's is 0.082
        ([0.5, 0.5], "0.500 ± 0.000"),
    ],
)
def test_a_mean_is_given_with_the_sample_deviation(values: list[float], text: str):
    assert make.spread(values) == text


def test_a_row_of_several_seeds_by_hand(root: Path):
    assert table(root)[0] == {
        "row": "mnist-multiset",
        "what": "drawn attention, expected success (log)",
        "images": "mnist",
        "seeds": "2",
        "0-1": "0.920 ± 0.028",
        "macro-F1": "0.970 ± 0.014",
        "paper 0-1": "0.935",
        "paper F1": "0.978",
        "0-1 by objects": "0.910 / 0.900",
        "pointing": "0.950 ± 0.014",
        "focus": "0.700",  # of the seed that says so
        "several": "",
        "glimpses / uniform": "13.0",
        "train min": "2.0",
        "features min": "0.5",  # of the seed that says so
        "CPU min": "1.5",
        "memory GiB": "2.0",
        "command": "python train/ppo_or_reinforce.py --seed 0",
    }


def test_what_a_run_does_not_say_is_left_empty(root: Path):
    rival = table(root)[-1]
    assert {name for name, text in rival.items() if not text} == {
        "paper 0-1", "paper F1", "pointing", "focus", "several", "glimpses / uniform", "features min", "CPU min", "memory GiB",
    }  # fmt: skip
    assert (rival["0-1"], rival["train min"]) == ("0.700", "1.5")
    assert rival["command"] == "python train/count_network.py --seed 0"


def test_rows_of_finer_maps_and_of_saliency_models_have_tables_of_their_own(root: Path):
    shares = {"found": 0.9, "spurious": 0.5, "found_high": 0.8, "spurious_high": 0.25, "auc": 0.7}
    models = dict.fromkeys(("sum-of-squares", "itti-koch", "boxes"), shares)
    for name, content in {
        "crowded-28x28/seed-0/metrics": metrics(0.7, 0.9, feature_seconds=60.0, config={"env": {"canvas_px": 100}}),
        "crowded-lower-level/seed-0/metrics": metrics(0.6, 0.8, config={"env": {"canvas_px": 100}}),
        "saliency-itti-koch/seed-0/metrics": metrics(0.5, 0.7),
        "saliency-itti-koch-winner-take-all/seed-0/metrics": metrics(0.3, 0.5),
        "saliency/saliency": {"models": models},
    }.items():
        path = root / "results" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    made = make.texts(root)
    perception = made[root / "docs" / "perception.md"]
    assert "[crowded-28x28](../results/crowded-28x28) | 28x28, 128 channels | 0.700 | 0.900 |" in perception
    assert "[crowded-lower-level](../results/crowded-lower-level) | 7x7, 512 channels |" in perception
    assert "| 201 | 1.0 | 1.5 |" in perception  # kB: 2 bytes x 128 x 784
    assert "| `sum-of-squares` | 0.920 ± 0.028 |  |  | 0.900 | 0.800 | 0.250 | 0.700 |" in perception
    assert "| `itti-koch` | 0.500 |  | 0.300 | 0.900 |" in perception  # drawn, deterministic, winner-take-all
    assert "| `boxes` |  |  |  | 0.900 |" in perception  # no agent has been trained on it
    for name in ("crowded-28x28", "saliency-itti-koch"):
        assert name not in made[root / "README.md"]
        assert name in made[root / "results" / "README.md"]


def test_the_papers_numbers_are_those_of_its_table_1():
    rows = {
        name: make.cells(name, [metrics(0.5, 0.5)]) for name, row in make.ROWS.items() if row.script != make.LEARNERS
    }
    assert {name: (row["paper F1"], row["paper 0-1"]) for name, row in rows.items() if row["paper F1"]} == {
        "mnist-multiset": ("0.978", "0.935"),
        "mnist-set": ("0.990", "0.960"),
        "mnist-multiset-deterministic": ("0.978", "0.935"),
        "mnist-set-deterministic": ("0.990", "0.960"),
        "mnist-multiset-cross-entropy": ("0.726", "0.477"),
        "mnist-multiset-resnet34": ("0.978", "0.935"),
        "svhn": ("0.973", "0.947"),
        "svhn-cross-entropy": ("0.589", "0.307"),
        "svhn-multiset": ("0.973", "0.947"),
        "svhn-multiset-cross-entropy": ("0.589", "0.307"),
        "svhn-multiset-faithful": ("0.973", "0.947"),
        "mnist-set-cross-entropy": ("0.735", "0.478"),
        "mnist-multiset-faithful": ("0.978", "0.935"),
        "mnist-set-faithful": ("0.990", "0.960"),
        "mnist-multiset-faithful-cross-entropy": ("0.726", "0.477"),
    }


def test_rows_stand_in_the_order_of_the_list_and_only_if_they_were_run(root: Path):
    names = [row["row"] for row in table(root)]
    assert names == ["mnist-multiset", "mnist-set", "mnist-multiset-faithful", "rival-count-network"]


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_tables_are_written_between_the_marks(root: Path, monkeypatch: pytest.MonkeyPatch):
    command(monkeypatch, root)
    for folder, columns, number in ((root, make.IN_README, 3), (root / "results", make.COLUMNS, 4)):
        before, rest = (folder / "README.md").read_text().split(make.START)
        made, after = rest.split(make.END)
        assert before.endswith("\n\nbefore\n\n")
        assert after.startswith("\n\nafter\n")
        head, rule, *rows = made.splitlines()
        assert head == f"| {' | '.join(columns)} |"
        assert {line.count("|") for line in (head, rule, *rows)} == {len(columns) + 1}
        assert len(rows) == number
        cells = [cell.strip() for cell in rows[0].strip("|").split("|")]
        first = dict(zip(columns, cells, strict=True))
        assert (first["0-1"], first["paper 0-1"]) == ("0.920 ± 0.028", "0.935")
    assert "[mnist-multiset](results/mnist-multiset)" in (root / "README.md").read_text()
    assert "`python train/ppo_or_reinforce.py --seed 0`" in (root / "results" / "README.md").read_text()
    stored = list(csv.DictReader((root / "results" / "table.csv").open()))
    assert stored == table(root)
    assert list(stored[0]) == list(make.COLUMNS)


def test_other_learners_have_a_table_of_their_own(root: Path, monkeypatch: pytest.MonkeyPatch):
    command(monkeypatch, root)
    page = (root / "results" / "README.md").read_text()
    head, _, *rows = page.split(make.LEARNERS_START)[1].split(make.LEARNERS_END)[0].splitlines()
    assert head == f"| {' | '.join(make.LEARNER_COLUMNS)} |"
    assert len(rows) == 2
    first = dict(zip(make.LEARNER_COLUMNS, (cell.strip() for cell in rows[0].strip("|").split("|")), strict=True))
    by_hand = {"what": "PPO, flat view", "seeds": "2", "steps": "303,104", "mean return": "7.50 ± 0.71"}
    by_hand |= {"random": "-2.00 ± 0.00", "0-1": "0.850 ± 0.071", "train min": "2.0"}
    assert {name: first[name] for name in by_hand} == by_hand
    assert "`python train/sb3_agents.py ppo --seed 0`" in page
    assert "sb3-ppo" not in (root / "results" / "table.csv").read_text()


def test_photographs_have_a_table_of_their_own(root: Path):
    for seed, exact in enumerate((0.9, 0.94)):
        run = metrics(exact, 0.95, feature_seconds=30.0, features={"seconds": 480.0})
        run["test"] |= {
            "count_error": {"mean": 0.05, "by_class": {}},
            "pointing": 0.97,
            "focus": 0.5,
            "several": 0.1,
            "mask_in_box": 0.4,
        }
        guessed = {"exact_match": 0.125, "mean_counts": {"count_error": {"mean": 0.4, "by_class": {}}}}
        run |= {"blind_guess": guessed, "count_network": {"exact_match": 0.75}}
        path = root / "results" / "dice" / f"seed-{seed}" / "metrics.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(run))
    made = make.texts(root)
    head, _, *rows = made[root / "results" / "README.md"].split(make.OWN_START)[1].split(make.OWN_END)[0].splitlines()
    assert head == f"| {' | '.join(make.OWN_COLUMNS)} |"
    (row,) = (
        dict(zip(make.OWN_COLUMNS, (cell.strip() for cell in line.strip("|").split("|")), strict=True)) for line in rows
    )
    by_hand = {
        "tested on": "10",
        "seeds": "2",
        "0-1": "0.920 ± 0.028",
        "count error": "0.050 ± 0.000",
        "guessed": "0.400 ± 0.000",
    }
    by_hand |= {
        "pointing": "0.970 ± 0.000",
        "focus": "0.500 ± 0.000",
        "mask in box": "0.400 ± 0.000",
        "a guess": "0.125 ± 0.000",
    }
    by_hand |= {"without attention": "0.750 ± 0.000", "train min": "10.0"}  # 8 for features, 0.5 to encode, 1.5
    assert {name: row[name] for name in by_hand} == by_hand
    assert row["command"] == "`python train/own_images.py DATA/photographs/dice --seed 0`"
    assert "dice" not in made[root / "results" / "table.csv"]
    assert "[dice](results/dice)" in made[root / "README.md"]


def test_the_readme_shows_its_few_rows_of_both_tables(root: Path):
    (root / "results" / "sb3-ppo").rename(root / "results" / "sb3-hsal")
    _, _, *rows = make.texts(root)[root / "README.md"].split(make.START)[1].split(make.END)[0].splitlines()
    assert [row.split("]")[0] for row in rows] == [
        "| [mnist-multiset", "| [mnist-set", "| [mnist-multiset-faithful", "| [sb3-hsal",
    ]  # fmt: skip
    assert rows[-1].endswith("| 2 | 0.850 ± 0.071 | 0.425 ± 0.035 |  |  |  |  | 2.0 |")
    assert set(make.README_ROWS) <= set(make.ROWS)


def test_a_check_finds_what_is_out_of_date(root: Path, monkeypatch: pytest.MonkeyPatch):
    paths = ["README.md", "results/README.md", "results/table.csv"]

    def stale() -> str:
        with pytest.raises(SystemExit) as caught:
            command(monkeypatch, root, "--check")
        return str(caught.value.code)

    assert all(path in stale() for path in paths)
    assert not (root / "results" / "table.csv").exists()  # a check writes nothing
    command(monkeypatch, root)
    command(monkeypatch, root, "--check")
    (root / "results" / "table.csv").unlink()
    assert stale() == "error: Out of date: results/table.csv; run python train/make_results.py"
    command(monkeypatch, root)
    (root / "results" / "mnist-set" / "seed-7" / "metrics.json").write_text(json.dumps(metrics(0.51, 0.6)))
    assert all(path in stale() for path in paths)
    command(monkeypatch, root)
    command(monkeypatch, root, "--check")


def test_the_figures_show_every_seed(root: Path, monkeypatch: pytest.MonkeyPatch):
    drawn: list[Figure] = []
    save = Figure.savefig

    def savefig(figure: Figure, path: Path, **how: object) -> None:
        save(figure, path, **how)
        drawn.append(figure)

    monkeypatch.setattr(Figure, "savefig", savefig)
    command(monkeypatch, root)
    for name in ("figure5.png", "figure6.png", "learners.png"):
        assert (root / "results" / name).read_bytes().startswith(b"\x89PNG")
    columns = ["attention/saliency", "attention/saliency_ratio", "val/macro_f1", "val/exact_match"]
    *panels, learners = [axes for figure in drawn for axes in figure.axes]
    for column, axes in zip(columns, panels, strict=True):
        curves = [line for line in axes.lines if line.get_linestyle() == "-"]
        assert len(curves) == 3  # two seeds, and one as printed
        assert curves[0].get_color() == curves[1].get_color() != curves[2].get_color()
        assert [text.get_text() for text in axes.get_legend().get_texts()] == [
            "drawn attention, expected success (log)", "REINFORCE (sampled) as printed",
        ]  # fmt: skip
        rows = [row for row in (1, 2, 3, 4) if row % 2 or "val/" not in column]
        assert list(curves[0].get_xdata()) == [20 * row * 50 / 1000 for row in rows]
        height = {
            "attention/saliency": lambda row: row + 0.5,
            "attention/saliency_ratio": lambda row: row + 0.25,
            "val/macro_f1": lambda row: row / 10,
            "val/exact_match": lambda row: row / 20,
        }[column]
        assert list(curves[0].get_ydata()) == pytest.approx(list(map(height, rows)))
    assert [text.get_text() for text in learners.get_legend().get_texts()] == [
        "our trainer, expected success (log)", "PPO, flat", "SAC, option",
    ]  # fmt: skip
    ours, _, flat, _, option = learners.lines
    assert list(ours.get_xdata()) == [20 * row * 50 * 3.5 * 4 for row in (1, 3)]  # images, meta-steps, decisions
    assert list(flat.get_xdata()) == [1000, 2000]
    assert list(option.get_xdata()) == [4000, 8000]
    assert list(option.get_ydata()) == [0.25, 0.5]
