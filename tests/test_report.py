"""The report on runs: what it reads, what it says, and that the page needs nothing but itself."""

import base64
import errno
import io
import json
import re
import runpy
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image
from traces import MetaStep, trace_of

import agents
import hsal_env
from agents.config import AgentConfig, LearnerConfig
from agents.evaluation import evaluation_config, score_agent
from agents.learning.run import Run, RunConfig
from agents.reports import curves, gallery
from agents.reports.mistakes import breakdown
from agents.reports.page import ReportRow, page
from agents.reports.runs import FinishedRun, gather, group, methods, names
from agents.reports.statistics import bootstrap_interval
from agents.tracing import record
from hsal_env.config import EnvConfig
from hsal_env.errors import CheckpointError, ConfigError, DataError
from hsal_env.multiset import SCORES
from hsal_env.rendering import draw_trace
from hsal_env.trace import Trace
from hsal_env.trace.scan_path import MEASURES, measures

ROOT = Path(__file__).parents[1]
SECTIONS = ["results", "aggregate", "curves", "breakdown", "scan-path", "gallery", "configuration"]
ENV = {
    "task": "multiset", "source": "auto", "split": "train", "glyphs": "disjoint", "seed": 0, "min_objects": 1,
    "max_objects": None, "min_size_px": 20, "max_size_px": 50, "canvas_px": 100, "glimpses": 2, "components": 49,
}  # fmt: skip
PROGRESS = "update,seconds,loss/label,attention/saliency,attention/saliency_ratio,val/exact_match,val/macro_f1\n"
PROGRESS += "20,1.5,0.5,80.5,20.25,,\n40,3.0,0.25,81.5,21.25,0.9,0.95\n"


def metrics(exact: float = 0.9, seed: int = 0, **changes: object) -> dict:
    """What a training run writes. ``changes``: of its parts, or of settings named like ``env__task``."""
    scores = {name: exact + i / 100 for i, name in enumerate(SCORES)}
    by_count = {str(n): {"episodes": 5, "exact_match": exact - n / 100, "macro_f1": exact} for n in (1, 2, 10)}
    found = {
        "source": "mnist",
        "test": {**scores, "attn_saliency": 80.0, "attn_saliency_ratio": 24.25 + seed, "by_count": by_count},
        "blind_guess": {name: 0.0125 for name in SCORES},
        "train_seconds": 90.0 + seed,
        "config": {
            "env": dict(ENV),
            "agent_name": "hsal",
            "agent": {"meta_hidden": 128},
            "learner": {"algorithm": "reinforce", "batch_size": 50},
            "seed": seed,
        },
        "versions": {"python": "3.12.1", "torch": "2.13.0"},
        "command": ["python", "train/ppo_or_reinforce.py", "--seed", str(seed)],
    }
    for name, value in changes.items():
        part, _, field = name.partition("__")
        if field:
            found["config"][part][field] = value
        else:
            found[name] = value
    return found


def write_run(folder: Path, content: object, progress: str | None = PROGRESS) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(content if isinstance(content, str) else json.dumps(content))
    if progress is not None:
        (folder / "progress.csv").write_text(progress)
    return folder


def rows_of(*given: Path | str) -> list[ReportRow]:
    groups = group(gather([str(path) for path in given]))
    return [ReportRow(name, runs) for name, runs in zip(names(groups), groups, strict=True)]


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A results folder with three seeds."""
    for seed, exact in enumerate((0.90, 0.93, 0.93)):
        write_run(tmp_path / "results" / "mine" / f"seed-{seed}", metrics(exact, seed))
    return tmp_path / "results" / "mine"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real run, a small one."""
    folder = tmp_path_factory.mktemp("runs") / "little"
    env = EnvConfig(source="digits", num_examples=64, protocol="teacher", features="store", include_image=False)
    agent = AgentConfig(meta_hidden=8, controller_hidden=16, location_hidden=8)
    learner = LearnerConfig(batch_size=16, passes=2, learning_rate=3e-3)
    run = Run(RunConfig(folder, env, "hsal", agent, learner, device="cpu", val_episodes=8, log_every=2))
    run.train()
    run.test(12)
    return folder


command = SimpleNamespace(**runpy.run_path(str(ROOT / "train" / "report.py")))


def made(output: Path, *runs: object, **flags: object) -> str:
    """The page that the command writes."""
    command.main(command.Args(runs=tuple(map(str, runs)), output=output, **flags))
    return output.read_text()


@pytest.fixture(scope="module")
def whole(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with everything on it."""
    return made(tmp_path_factory.mktemp("page") / "deep" / "r.html", trained, episodes=30)


class Page(HTMLParser):
    """What a browser would see of a page.

    Attributes:
        cells: of every table: its lines of texts.
        sections: the text of each, by id.
        addresses: what it refers to, less its own pictures.
        images: the pictures' (kind, content, alternative text).
    """

    EMPTY = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[list[list[str]]] = []
        self.sections: dict[str, str] = {}
        self.addresses: list[str] = []
        self.images: list[tuple[str, bytes, str]] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        found = dict(attributes)
        self.tags.append(tag)
        if tag not in self.EMPTY:
            self.open.append(tag)
        if tag == "section":
            self.sections[found["id"]] = ""
        if tag == "table":
            self.cells.append([])
        if tag == "tr":
            self.cells[-1].append([])
        if tag in ("td", "th"):
            self.cells[-1][-1].append("")
        if tag == "img":
            kind, content = re.fullmatch(r"data:(image/[a-z+]+);base64,(.*)", found["src"]).groups()
            self.images.append((kind, base64.b64decode(content, validate=True), found["alt"]))
        else:
            self.addresses += [found[name] for name in ("href", "src", "srcset", "action", "data") if name in found]
        assert not [name for name in found if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag  # well-formed

    def handle_data(self, text: str) -> None:
        if "section" in self.open:
            self.sections[list(self.sections)[-1]] += text
        if self.open and {"td", "th"} & set(self.open):
            if self.open[-1] == "small":
                text = f"|{text}"
            self.cells[-1][-1][-1] += text

    def table(self, *heads: str) -> list[list[str]]:
        """The lines of the first table whose heads begin so."""
        return next(lines[1:] for lines in self.cells if tuple(lines[0][: len(heads)]) == heads)


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_results_folder_is_its_seeds_in_order_of_their_numbers(tmp_path: Path):
    for seed in (10, 2, 0):
        write_run(tmp_path / "mine" / f"seed-{seed}", metrics(seed=seed))
    (tmp_path / "mine" / "errors").mkdir()
    runs = gather([str(tmp_path / "mine")])
    assert [run.name for run in runs] == ["mine/seed-0", "mine/seed-2", "mine/seed-10"]
    assert [run.seed for run in runs] == [0, 2, 10]
    assert {run.row for run in runs} == {"mine"}
    assert {run.checkpoint for run in runs} == {None}


def test_a_runs_folder_is_a_run_with_its_agent(trained: Path, monkeypatch: pytest.MonkeyPatch):
    (run,) = gather([str(trained)])
    assert (run.row, run.name, run.seed) == ("little", "little", 0)
    assert run.checkpoint == trained / "checkpoint.pt"
    monkeypatch.chdir(trained)
    assert gather(["."])[0].name == "little"


def test_progress_is_read_by_column(tmp_path: Path):
    run = gather([str(write_run(tmp_path / "x", metrics()))])[0]
    assert run.progress["attention/saliency"] == [80.5, 81.5]
    assert run.progress["val/macro_f1"] == [None, 0.95]
    assert run.curve == ("training images, thousands", [1.0, 2.0])  # 20 and 40 updates of 50
    other = write_run(tmp_path / "y", metrics(), "steps,val/exact_match\n1000,0.25\n2500,nan\n")
    run = gather([str(other)])[0]
    assert run.curve == ("steps of its view, thousands", [1.0, 2.5])
    assert run.progress["val/exact_match"] == [0.25, None]


def test_settings_are_flat_and_without_the_seed_and_places(tmp_path: Path):
    content = metrics(seed=3, env__data_root="/home/me", env__list=[1, 2])
    config = gather([str(write_run(tmp_path / "x", content))])[0].config
    assert config["env/list"] == "[1, 2]"
    assert (config["agent_name"], config["learner/batch_size"]) == ("hsal", 50)
    assert not {"seed", "env/data_root"} & set(config)
    assert config["env/seed"] == 0  # which canvases


def test_runs_of_one_configuration_share_a_row(tmp_path: Path, three: Path):
    others = {
        "a": metrics(0.5, 3),  # another seed of the three
        "b": metrics(0.5, 0, learner__algorithm="ppo"),
        "c": metrics(0.5, 0, env__task="set"),
        "d": metrics(0.5, 0, source="digits"),
        "e": metrics(0.5, 0, env__glimpses=1),
    }
    folders = [write_run(tmp_path / name, content) for name, content in others.items()]
    groups = group(gather([str(path) for path in (three, *folders)]))
    assert [[run.name for run in row] for row in groups] == [
        ["mine/seed-0", "mine/seed-1", "mine/seed-2", "a"], ["b"], ["c"], ["d"], ["e"],
    ]  # fmt: skip
    assert names(groups) == ["mine, a", "b", "c", "d", "e"]
    assert methods(groups) == [[0, 2, 3], [1], [4]]  # other tasks and images; other learning; other rules


def test_a_folder_with_two_configurations_names_its_runs(tmp_path: Path):
    for seed, algorithm in ((0, "ppo"), (1, "ppo"), (2, "reinforce")):
        content = metrics(seed=seed, learner__algorithm=algorithm)
        write_run(tmp_path / "mixed" / f"seed-{seed}", content)
    assert [row.name for row in rows_of(tmp_path / "mixed")] == ["mixed/seed-0, mixed/seed-1", "mixed/seed-2"]


def test_equal_tasks_are_not_pooled(tmp_path: Path):
    runs = gather([str(write_run(tmp_path / name, metrics(exact))) for name, exact in (("x", 0.5), ("y", 0.6))])
    assert methods([[runs[0]], [runs[1]]]) == [[0], [1]]


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [
        ({}, (0.978, 0.935)),
        ({"learner__algorithm": "ppo"}, (0.978, 0.935)),
        ({"learner__algorithm": "cross-entropy"}, (0.726, 0.477)),
        ({"env__task": "set"}, (0.990, 0.960)),
        ({"env__task": "set", "env__max_objects": 4, "learner__algorithm": "cross-entropy"}, (0.735, 0.478)),
        ({"env__task": "single", "env__max_objects": 1}, None),
        ({"env__max_objects": 5}, None),
        ({"env__min_objects": 4}, None),
        ({"env__max_size_px": 33}, None),
        ({"learner__algorithm": "multiset-loss"}, None),
        ({"source": "digits"}, None),
    ],
)
def test_the_papers_numbers_stand_beside_its_tasks(tmp_path: Path, changes: dict, numbers: tuple | None):
    (run,) = gather([str(write_run(tmp_path / "x", metrics(**changes)))])
    assert run.paper == numbers


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_no_such_run_is_a_clear_error(tmp_path: Path):
    with pytest.raises(
        DataError, match=r"No run 'nowhere': expected .* a bundled agent's name \(house-numbers, mnist-multiset,"
    ):
        gather(["nowhere"])
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="No run"):
        gather([str(tmp_path / "file")])


def test_an_unfinished_run_is_a_clear_error(tmp_path: Path, trained: Path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(DataError, match=r"x holds no finished run: metrics.json is missing. Finish it with .*--resume"):
        gather([str(trained), str(tmp_path / "x")])
    (tmp_path / "y" / "seed-0").mkdir(parents=True)
    with pytest.raises(DataError, match="seed-0 holds no finished run"):
        gather([str(tmp_path / "y")])


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"source": ',
        "[1]",
        "{}",
        json.dumps(metrics() | {"test": {"exact_match": 0.5}}),
        json.dumps(metrics() | {"test": None}),
        json.dumps(metrics() | {"config": [1]}),
        json.dumps(metrics()).replace("0.9,", '"much",'),
        json.dumps({name: part for name, part in metrics().items() if name != "source"}),
        json.dumps(metrics()).replace('"by_count": {', '"by_count": {"3": 5, '),
        json.dumps(metrics()).replace('"by_count": {', '"pointing": "much", "by_count": {'),
        json.dumps(metrics()).replace('"by_count": {', '"count_error": 1, "by_count": {'),
        json.dumps(metrics()).replace('"by_count": {', '"count_error": {"mean": 1}, "by_count": {'),
        json.dumps(metrics()).replace(
            '"by_count": {', '"count_error": {"mean": 1, "by_class": {"a": "b"}}, "by_count": {'
        ),
        json.dumps(metrics() | {"blind_guess": {"mean_counts": [1]}}),
    ],
    ids=[
        "empty",
        "cut off",
        "list",
        "table without scores",
        "one score",
        "no test",
        "config",
        "text",
        "source",
        "count",
        "pointing",
        "count error",
        "no classes",
        "a class",
        "mean counts",
    ],
)
def test_a_damaged_metrics_file_is_a_clear_error(tmp_path: Path, content: str):
    with pytest.raises(DataError, match=r"metrics.json is damaged, or no command of HSAL wrote it: .* leave it out"):
        gather([str(write_run(tmp_path / "x", content))])


def test_a_metrics_file_that_is_no_text_is_a_clear_error(tmp_path: Path):
    (write_run(tmp_path / "x", metrics()) / "metrics.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"metrics\.json is damaged"):
        gather([str(tmp_path / "x")])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "it has neither a column update nor a column steps"),
        ("a,b\n1,2\n", "it has neither a column update nor a column steps"),
        ("update,b\n1,two\n", "could not convert string to float: 'two'"),
        ("update,b\n1,2\n2\n", "another length"),
        ("update,b\n1,2\n2,3,4\n", "another length"),
        ('update,b\n1,"2\n', "unexpected end of data"),
    ],
)
def test_a_damaged_progress_file_is_a_clear_error(tmp_path: Path, content: str, said: str):
    with pytest.raises(DataError, match=rf"progress.csv is damaged: .*{said}.* Delete it to get"):
        gather([str(write_run(tmp_path / "x", metrics(), content))])


def test_a_run_named_twice_is_a_clear_error(tmp_path: Path, three: Path):
    with pytest.raises(DataError, match="Expected every run once; got mine/seed-1 twice"):
        gather([str(three / "seed-1"), str(three)])
    with pytest.raises(DataError, match=r"got mnist-set \(bundled\) twice"):
        gather(["mnist-set", "mnist-set"])


def test_a_damaged_checkpoint_is_a_clear_error(tmp_path: Path):
    (write_run(tmp_path / "x", metrics()) / "checkpoint.pt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(CheckpointError, match=r"checkpoint.pt is cut off, damaged"):
        made(tmp_path / "r.html", tmp_path / "x")
    assert not (tmp_path / "r.html").exists()
    assert "No episodes were recorded of these rows: x." in made(tmp_path / "r.html", tmp_path / "x", episodes=0)


@pytest.mark.parametrize(
    ("runs", "flags", "said"),
    [
        ((), {}, "Expected at least one run; got none. Name folders or bundled agents, see --help."),
        (("mnist-set",), {"episodes": -1}, "Expected --episodes of at least 0; got -1."),
        (("mnist-set",), {"episodes": 0}, r"mnist-set \(bundled\): expected --episodes above 0; got 0"),
        (("mnist-set",), {"episodes": 5, "split": "most"}, "most"),
    ],
)
def test_a_wrong_flag_is_a_clear_error(tmp_path: Path, runs: tuple, flags: dict, said: str):
    with pytest.raises(ConfigError, match=said):
        made(tmp_path / "r.html", *runs, **flags)


@pytest.mark.parametrize("what", ["in the way", "disk full"])
def test_a_page_that_cannot_be_written_is_a_clear_error(
    three: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
):
    place = tmp_path / "file" / "r.html"
    if what == "in the way":
        (tmp_path / "file").write_text("")
    else:

        def full(path: Path, text: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(CheckpointError, match=r"Cannot write .*r.html: .* Free space or name another place"):
        made(place, three)
    assert not place.exists()


def test_an_error_is_one_line_and_a_status(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["train/report.py", "nowhere"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "train" / "report.py"), run_name="__main__")
    assert str(caught.value.code).startswith("error: No run 'nowhere'")
    assert "\n" not in str(caught.value.code)


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_is_self_contained_and_every_section_is_there(whole: str, trained: Path):
    seen = Page(whole)
    assert list(seen.sections) == SECTIONS
    assert all(text.strip() for text in seen.sections.values())
    assert seen.addresses[: len(SECTIONS)] == [f"#{name}" for name in SECTIONS]
    assert {address for address in seen.addresses if not address.startswith("#")} <= {
        "https://arxiv.org/abs/1711.05165",
        "https://arxiv.org/abs/2108.13264",
    }
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(seen.tags)
    assert "url(" not in whole
    assert "@import" not in whole
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", whole)
    assert "file:" not in text
    assert str(trained.parent) not in text
    assert str(ROOT) not in text
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert 'name="viewport"' in text
    for kind, content, alternative in seen.images:
        assert alternative
        if kind == "image/png":
            Image.open(io.BytesIO(content)).verify()
        else:
            assert kind == "image/svg+xml"
            assert b"</svg>" in content
            assert b"<image" not in content


def test_the_same_runs_give_the_same_page(whole: str, trained: Path, tmp_path: Path):
    assert made(tmp_path / "again.html", trained, episodes=30) == whole


def test_the_numbers_of_one_run_are_those_of_its_files(whole: str, trained: Path):
    content = json.loads((trained / "metrics.json").read_text())
    lines = dict(Page(whole).table("row", "little"))
    test, guess = content["test"], content["blind_guess"]
    for name, score in zip(("0-1", "macro-F1", "micro-F1", "OP", "OR", "example-F1"), SCORES, strict=True):
        assert lines[name] == f"{test[score]:.3f}|blind guess {guess[score]:.3f}"
    assert lines["count error of a class"] == (
        f"{test['count_error']['mean']:.3f}|blind guess {guess['count_error']['mean']:.3f}|"
        f"mean counts {guess['mean_counts']['count_error']['mean']:.3f}"
    )
    by_class = [[label, f"{value:.3f}"] for label, value in test["count_error"]["by_class"].items()]
    assert Page(whole).table("label", "little") == by_class
    assert (lines["images"], lines["seeds"]) == ("digits", "1")
    assert lines["saliency ratio"] == f"{test['attn_saliency_ratio']:.1f}"
    assert lines["training, minutes"] == f"{content['train_seconds'] / 60:.1f}"
    assert "There is one run, so there is nothing to aggregate." in Page(whole).sections["aggregate"]


def test_where_the_agents_looked_and_what_they_counted_are_in_the_table(tmp_path: Path):
    def count_error(cup: float, plate: float) -> dict:
        return {"mean": (cup + plate) / 2, "by_class": {"cup": cup, "plate": plate}}

    for seed, cup in enumerate((0.25, 0.75)):
        told = metrics(seed=seed)
        told["test"] |= {
            "pointing": 0.5 + seed / 4,
            "focus": None,
            "count_error": count_error(cup, 0),
            "total_error": 1.5,
        }
        told["blind_guess"] |= {"count_error": count_error(2, 1), "mean_counts": {"count_error": count_error(1, 1)}}
        write_run(tmp_path / "mine" / f"seed-{seed}", told)
    seen = Page(made(tmp_path / "r.html", tmp_path / "mine"))
    lines = dict(seen.table("row", "mine"))
    assert lines["glimpses in the object"] == "0.625 ± 0.177"
    assert lines["count error of a class"] == "0.250 ± 0.177|blind guess 1.500|mean counts 1.000"
    assert lines["error of the number"] == "1.500 ± 0.000"
    assert not {"mask in the object", "mask in one object"} & set(lines)
    assert seen.table("label", "mine") == [["cup", "0.500 ± 0.354"], ["plate", "0.000 ± 0.000"]]


def test_several_seeds_are_a_mean_with_its_spread_and_an_interval(three: Path, tmp_path: Path):
    seen = Page(made(tmp_path / "r.html", three))
    lines = dict(seen.table("row", "mine"))
    assert lines["0-1"] == "0.920 ± 0.017|paper 0.935|blind guess 0.013"  # 0.03 / sqrt(3)
    assert lines["macro-F1"] == "0.930 ± 0.017|paper 0.978|blind guess 0.013"
    assert lines["OP"] == "0.950 ± 0.017|blind guess 0.013"
    assert lines["saliency ratio"] == "25.2 ± 1.0"
    assert lines["seeds"] == "3"
    assert [line[:3] for line in seen.table("run", "seed")] == [
        ["mine/seed-0", "0", "0.9000"], ["mine/seed-1", "1", "0.9300"], ["mine/seed-2", "2", "0.9300"],
    ]  # fmt: skip
    low, high = bootstrap_interval([[0.90, 0.93, 0.93]])
    (line,) = seen.table("rows of one method")
    assert line[:4] == ["mine", "1", "3", f"0.9200 [{low:.4f}, {high:.4f}]"]
    assert "an interval means little" not in seen.sections["aggregate"]
    (counts,) = seen.table("row", "1 object", "2 objects", "10 objects")
    assert counts == ["mine", "0.910 ± 0.017", "0.900 ± 0.017", "0.820 ± 0.017"]


def test_the_aggregate_pools_runs_over_tasks(three: Path, tmp_path: Path):
    other = write_run(tmp_path / "set", metrics(0.5, 0, env__task="set"))
    seen = Page(made(tmp_path / "r.html", three, other))
    (line,) = seen.table("rows of one method")
    low, high = bootstrap_interval([[0.90, 0.93, 0.93], [0.5]])
    assert line[:4] == ["mine, set", "2", "4", f"0.9150 [{low:.4f}, {high:.4f}]"]  # the middle two of four
    assert "With fewer than 3 runs of a task, an interval means little." in seen.sections["aggregate"]


def test_many_rows_stand_below_one_another(tmp_path: Path):
    runs = [write_run(tmp_path / f"r{i}", metrics(0.5 + i / 10, 0, env__glimpses=i)) for i in range(5)]
    assert Page(made(tmp_path / "5.html", *runs)).table("row")[0] == ["images", *["mnist"] * 5]
    runs.append(write_run(tmp_path / "r5", metrics(0.25, 0, source="digits")))
    lines = Page(made(tmp_path / "6.html", *runs)).table("row", "images", "seeds", "0-1")
    assert [line[:3] for line in lines] == [*([f"r{i}", "mnist", "1"] for i in range(5)), ["r5", "digits", "1"]]


def test_what_needs_the_agent_is_left_out_and_the_page_says_so(three: Path, tmp_path: Path):
    seen = Page(made(tmp_path / "r.html", three))
    for name in ("breakdown", "scan-path", "gallery"):
        assert "These rows have no checkpoint.pt, so this section leaves them out: mine." in seen.sections[name]
    assert not [kind for kind, _, _ in seen.images if kind == "image/png"]


def test_runs_of_other_commands_are_reported_as_far_as_they_go(tmp_path: Path):
    table = {k: metrics()[k] for k in ("source", "test", "versions")} | {"agent": "mnist-set", "max_objects": 6}
    evaluated = write_run(tmp_path / "evaluated", table, None)
    learner = {**metrics(), "config": {"algorithm": "dqn", "seed": 0}, "blind_guess": {}}
    learner["test"] = {name: 0.75 for name in SCORES}
    stock = write_run(tmp_path / "dqn", learner, "steps,val/exact_match,val/macro_f1\n1000,0.25,0.5\n")
    seen = Page(made(tmp_path / "r.html", evaluated, stock))
    lines = {name: others for name, *others in seen.table("row", "evaluated", "dqn")}
    assert lines["0-1"] == ["0.900", "0.750"]
    assert lines["saliency ratio"] == ["24.2", ""]
    assert "These rows have no progress.csv, so they have no curves: evaluated." in seen.sections["curves"]
    settings = {name: others for name, *others in seen.table("setting", "evaluated", "dqn")}
    unknown = "not recorded"
    assert settings == {"agent": ["mnist-set", unknown], "max_objects": ["6", unknown], "algorithm": [unknown, "dqn"]}


def test_what_comes_from_files_is_escaped(tmp_path: Path):
    nasty = "<script>alert('x')</script>&\""
    content = metrics(seed=0, source=nasty, command=["python", nasty], versions={nasty: nasty})
    content["config"]["agent"] = {nasty: nasty}
    one = write_run(tmp_path / "<b>&" / "seed-0", content, PROGRESS)
    two = write_run(tmp_path / "other", metrics(0.5, 1))
    text = made(tmp_path / "r.html", one, two)
    seen = Page(text)
    assert not {"script", "b"} & set(seen.tags)
    assert "<script" not in text
    assert text.count(escape(nasty)) >= 5
    assert seen.table("row", "<b>&", "other")[0] == ["images", nasty, "mnist"]
    assert seen.table("setting", "<b>&", "other")[-2:] == [
        [f"agent/{nasty}", nasty, "not recorded"],
        ["agent/meta_hidden", "not recorded", "128"],
    ]


def test_settings_that_differ_stand_apart(three: Path, tmp_path: Path):
    other = write_run(tmp_path / "other", metrics(0.5, 0, env__glimpses=0, learner__algorithm="ppo"))
    seen = Page(made(tmp_path / "r.html", three, other))
    assert seen.table("setting") == [["env/glimpses", "2", "0"], ["learner/algorithm", "reinforce", "ppo"]]
    assert "agent/meta_hidden128" in seen.sections["configuration"]
    assert ["mine/seed-1", "python train/ppo_or_reinforce.py --seed 1"] in seen.table("run", "command")
    assert "torch2.13.0" in seen.sections["configuration"]


def test_the_curves_are_those_of_progress_csv(three: Path):
    runs = gather([str(three)])
    lines = [
        curves.Curve(run.curve[1], run.progress, "#0072B2", "mine" if i == 0 else None) for i, run in enumerate(runs)
    ]
    figure = curves.draw(curves.FIGURE_5 + curves.FIGURE_6, lines)
    saliency, ratio, f1, exact = figure.axes
    for axes, x, y in (
        (saliency, [1.0, 2.0], [80.5, 81.5]), (ratio, [1.0, 2.0], [20.25, 21.25]), (f1, [2.0], [0.95]), (exact, [2.0], [0.9]),
    ):  # fmt: skip
        drawn = [line for line in axes.lines if line.get_linestyle() == "-"]
        assert [(list(line.get_xdata()), list(line.get_ydata())) for line in drawn] == [(x, y)] * 3
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["mine"]


def test_episodes_are_broken_down_measured_and_shown(whole: str, trained: Path):
    (run,) = gather([str(trained)])
    loaded = agents.load(run.checkpoint)
    config = evaluation_config(loaded.env_on("val"), "val", 30)
    traces = record(loaded.agent, config, np.arange(30))
    seen = Page(whole)
    found = breakdown(traces)
    for name, part in found.items():
        if isinstance(part, dict):
            texts = [
                [key, *(f"{v:.3f}" if isinstance(v, float) else str(v) for v in cells.values())]
                for key, cells in part.items()
            ]
            assert seen.table(name) == texts
    assert ["episodes", "30"] in seen.table("in all")
    for (name, told), line in zip(
        measures(traces, np.random.default_rng(0)).items(), seen.table("measure"), strict=True
    ):
        numbers = ["unknown" if np.isnan(value) else f"{value:.3f}" for value in told.values()]
        assert line == [f"{name}|{MEASURES[name]}", *numbers]
    chosen = [trace for part in gallery.choose(traces).values() for trace in part]
    pictures = [content for kind, content, _ in seen.images if kind == "image/png"]
    assert len(pictures) == len(chosen) > 3
    for content, trace in zip(pictures, chosen, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), draw_trace(trace, boxes=True))
    assert "30 validation canvases of digits, greedy" in seen.sections["gallery"]


def test_a_bundled_agent_is_tested_on_so_many_test_canvases(mnist_root: str, tmp_path: Path):
    seen = Page(made(tmp_path / "r.html", "mnist-multiset", episodes=20, data_root=mnist_root))
    loaded = agents.load("mnist-multiset")
    scores = score_agent(loaded.agent, evaluation_config(loaded.env_on("test", None, mnist_root), "test", 20))
    lines = dict(seen.table("row", "mnist-multiset (bundled)"))
    assert lines["0-1"].startswith(f"{scores['exact_match']:.3f}|paper 0.935|blind guess 0.")
    assert lines["example-F1"].startswith(f"{scores['example_f1']:.3f}|blind guess")
    assert "This report tested mnist-multiset (bundled) on 20 test canvases." in seen.sections["results"]
    assert (
        "These rows have no progress.csv, so they have no curves: mnist-multiset (bundled)." in seen.sections["curves"]
    )
    assert "env/components25" in seen.sections["configuration"]


# --- gallery ----------------------------------------------------------------------------------------------------------


def episode(canvas: int, named: list[tuple[int, float]], labels: list[int]) -> Trace:
    """Names labels, with their probabilities, and then stop, with 0.99."""
    steps = [MetaStep((0,), label, probability) for label, probability in [*named, (10, 0.99)]]
    return trace_of(steps, labels)._replace(canvas_index=canvas)


def test_the_gallery_by_hand():
    traces = [
        episode(0, [(1, 0.5), (2, 0.9)], [1, 2]),  # right, least probability 0.5
        episode(1, [(1, 0.95)], [1]),  # right, 0.95
        episode(2, [(1, 0.8), (2, 0.85)], [2, 1]),  # right, 0.8: the median of the five
        episode(3, [(3, 0.6)], [4]),  # two labels off, sure with 0.6 of the wrong one (stop is wrong, too: 0.99)
        episode(4, [(3, 0.9), (5, 0.97)], [4, 6]),  # four labels off
    ]
    chosen = {kind: [trace.canvas_index for trace in part] for kind, part in gallery.choose(traces, 2).items()}
    assert chosen == {"best": [1, 2], "typical": [2, 1], "worst": [4, 3]}
    assert gallery.least_probability(traces[0]) == pytest.approx(0.5)
    assert set(gallery.KINDS) == set(chosen)


def test_of_equally_wrong_episodes_the_surest_comes_first_and_then_the_earlier_canvas():
    traces = [episode(i, [(3, probability), (4, 0.9)], [4, 5]) for i, probability in ((7, 0.3), (5, 0.6), (3, 0.3))]
    # stop, with 0.99, comes while 5 remains: as sure in all three, so the canvas decides
    assert [trace.canvas_index for trace in gallery.choose(traces)["worst"]] == [3, 5, 7]
    surer = [
        trace_of([MetaStep((0,), 3, p), MetaStep((0,), 10, 0.2)], [4])._replace(canvas_index=i)
        for i, p in ((0, 0.3), (1, 0.6))
    ]
    assert [trace.canvas_index for trace in gallery.choose(surer)["worst"]] == [1, 0]


def test_a_gallery_without_errors_has_no_worst():
    assert gallery.choose([episode(0, [(1, 0.9)], [1])])["worst"] == []
    run = FinishedRun("x", "x", metrics(), {}, Path("checkpoint.pt"))
    seen = Page(page([ReportRow("x", [run], [episode(0, [(1, 0.9)], [1])])], hsal_env.__version__))
    assert "None." in seen.sections["gallery"]
    assert "true {1}, named 1. The least probability of a label is 0.9000." in seen.sections["gallery"]
