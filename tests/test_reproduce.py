"""The command that runs the rows of the results table."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import tyro
from commands import (
    REPRODUCE,
    ROOT,
    Command,
    metrics_of,
    parsed,
    script,
)

ROWS = script(REPRODUCE).ROWS


def arguments(name: str, seed: int):
    """A row's command, parsed by its script."""
    path, *flags = ROWS[name].command(seed)
    module = script(Path(path).name)
    assert (ROOT / path).is_file()
    return module.parse(flags) if hasattr(module, "parse") else tyro.cli(module.Args, args=flags)


@pytest.mark.parametrize("name", ROWS)
def test_a_rows_flags_parse(name: str):
    assert [arguments(name, seed).seed for seed in ROWS[name].seeds] == list(ROWS[name].seeds)
    assert ROWS[name].seeds
    assert ROWS[name].what


def test_no_two_rows_are_the_same_run():
    assert len({repr(arguments(name, 0)) for name in ROWS}) == len(ROWS)


def test_a_control_differs_from_the_default_in_what_it_says_alone():
    default, compared = arguments("mnist-multiset", 0), arguments("mnist-multiset-deterministic", 0)
    assert (default.env, default.agent) == (parsed().env, parsed().agent)
    assert arguments("control-no-glimpses", 0).agent == compared.agent
    assert arguments("control-no-glimpses", 0).env == dataclasses.replace(compared.env, glimpses=0)
    assert arguments("mnist-multiset-leaky", 0).env == dataclasses.replace(compared.env, glyphs="paper")
    assert arguments("saliency-boxes", 0).env == dataclasses.replace(default.env, saliency="boxes")
    winner = dataclasses.replace(default.agent, attention_policy="winner-take-all", location_policy="greedy")
    assert (
        arguments("saliency-boxes-winner-take-all", 0).agent == arguments("control-winner-take-all", 0).agent == winner
    )


def test_the_rows_are_listed(command: Command, capsys: pytest.CaptureFixture, started: list):
    command(REPRODUCE, "--list")
    lines = iter(capsys.readouterr().out.splitlines())
    for name, row in ROWS.items():
        assert next(lines) == f"{name}: {row.what}"
        if row.model:
            assert shlex.split(next(lines))[1:] == script(REPRODUCE).model_command(row.model)
        assert shlex.split(next(lines))[1:] == row.command(row.seeds[0])
    assert next(lines, None) is None
    assert started == []


@pytest.mark.parametrize("name", script(REPRODUCE).MODELS)
def test_a_models_flags_parse(name: str):
    path, *flags = script(REPRODUCE).model_command(name)
    args = tyro.cli(script(Path(path).name).Args, args=flags)
    assert args.output == Path(f"runs/models/{name}.pt")
    assert any(row.model == name for row in ROWS.values())


def test_a_rows_model_is_trained_first_and_once(command: Command, started: list, tmp_path: Path):
    command(REPRODUCE, "svhn-multiset")
    model = os.path.relpath(tmp_path / "runs" / "models" / "svhn-resnet34.pt", ROOT)
    assert [line[0] for line in started] == ["train/pretrain_perception.py", *["train/ppo_or_reinforce.py"] * 3]
    assert started[0][-2:] == ["--output", model]
    assert all(line[line.index("--activation") + 1] == model for line in started[1:])
    started.clear()
    command(REPRODUCE, "svhn-multiset-cross-entropy --seeds 7")  # shares the model
    assert [line[0] for line in started] == ["train/ppo_or_reinforce.py"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that were started, less the interpreter. They do nothing but finish; seed 13 fails."""
    commands: list[list[str]] = []

    def start(command: list[str], cwd: Path) -> nullcontext:
        assert (command[0], Path(cwd)) == (sys.executable, ROOT)
        commands.append(command[1:])
        if "13" in command:
            return ended(1)
        if "--output" in command:
            model = ROOT / command[command.index("--output") + 1]
            model.parent.mkdir(parents=True, exist_ok=True)
            model.with_suffix(".json").write_text("{}")
            return ended(0)
        place = Path(command[command.index("--json" if "--json" in command else "--output-dir") + 1])
        assert place.is_absolute()
        folder = place.parent if "--json" in command else place
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.json", "progress.csv", "episodes.png"):
            (folder / name).write_text(fake("new", name, source_of(command)))
        return ended(0)

    def ended(status: int) -> nullcontext:
        return nullcontext(SimpleNamespace(wait=lambda: status))

    monkeypatch.setattr(subprocess, "Popen", start)
    return commands


def source_of(command: list[str]) -> str:
    if any(part.endswith("own_images.py") for part in command):
        return "custom"
    return "svhn" if any("SVHN" in part for part in command) else "mnist"


def fake(age: str, name: str, source: str = "mnist") -> str:
    return json.dumps({"source": source, "age": age, "name": name})


def test_a_run_on_other_data_stays_out_of_the_results(command: Command, started: list, tmp_path: Path):
    folder = tmp_path / "runs" / "mnist-set" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(fake("old", "metrics.json", "digits"))
    command.fails(REPRODUCE, "mnist-set --seeds 0", "to be a run on mnist; got digits. It is not copied to ")
    for damaged in ("{", "[]", "{}"):
        (folder / "metrics.json").write_text(damaged)
        command.fails(REPRODUCE, "mnist-set --seeds 0", "metrics.json is damaged", "Delete it and run this again")
    assert not (tmp_path / "results").exists()


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_all_seeds_of_a_row_are_run(command: Command, started: list, tmp_path: Path):
    command(REPRODUCE, "mnist-set")
    assert started == [
        [
            "train/ppo_or_reinforce.py",
            "--env-id",
            "HSAL-MNISTSet-v0",
            "--seed",
            str(seed),
            "--output-dir",
            f"{tmp_path}/runs/mnist-set/seed-{seed}",
        ]
        for seed in (0, 1, 2)
    ]
    assert contents(tmp_path / "results") == {
        f"mnist-set/seed-{seed}/{name}": fake("new", name)
        for seed in (0, 1, 2)
        for name in ("metrics.json", "progress.csv")
    }


def test_a_row_that_evaluates_keeps_its_table(command: Command, started: list, tmp_path: Path):
    command(REPRODUCE, "mnist-multiset-on-6")
    flags = shlex.split(ROWS["mnist-multiset-on-6"].flags)
    table = f"{tmp_path}/runs/mnist-multiset-on-6/seed-0/metrics.json"
    assert started == [["train/evaluate_agent.py", *flags, "--json", table]]
    assert contents(tmp_path / "results")["mnist-multiset-on-6/seed-0/metrics.json"] == fake("new", "metrics.json")


def test_photographs_are_looked_for_in_the_data_folder(
    command: Command, started: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HSAL_DATA", str(tmp_path / "data"))
    command.fails(
        REPRODUCE, "dice", "error: dice needs a folder photographs/dice of photographs in the folder that $HSAL_DATA"
    )
    assert started == []
    (tmp_path / "data" / "photographs" / "dice").mkdir(parents=True)
    seeds = [tmp_path / "runs" / "dice" / f"seed-{seed}" for seed in range(3)]
    for folder, names in zip(
        seeds, (["metrics.json", "report.html"], ["features.pt", "metrics.json"], []), strict=True
    ):
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_text(fake("old", name, "custom"))
    command(REPRODUCE, "dice")
    place = str(tmp_path / "data" / "photographs" / "dice")
    assert started == [
        ["train/own_images.py", place, "--seed", "1", "--output-dir", str(seeds[1]), "--resume"],
        ["train/own_images.py", place, "--seed", "2", "--output-dir", str(seeds[2])],
    ]
    results = contents(tmp_path / "results" / "dice")
    assert results["seed-0/metrics.json"] == fake("old", "metrics.json", "custom")
    assert results["seed-2/metrics.json"] == fake("new", "metrics.json", "custom")


def test_other_seeds_and_folders_may_be_named(command: Command, started: list, tmp_path: Path):
    command(REPRODUCE, "rival-count-columns --seeds 3 4 --runs-dir a/b --results-dir c/d")
    assert [line[line.index("--seed") + 1] for line in started] == ["3", "4"]
    assert all(line[:3] == ["train/count_network.py", "--head", "columns"] for line in started)
    assert (tmp_path / "a/b/rival-count-columns/seed-4/metrics.json").exists()
    assert set(contents(tmp_path / "c" / "d")) >= {f"rival-count-columns/seed-{seed}/metrics.json" for seed in (3, 4)}
    assert not (tmp_path / "results").exists()


def test_a_finished_run_is_left_and_an_interrupted_one_resumed(command: Command, started: list, tmp_path: Path):
    runs = tmp_path / "runs" / "mnist-set"
    for seed, files in ((0, ("checkpoint.pt", "metrics.json", "progress.csv")), (1, ("checkpoint.pt", "progress.csv"))):
        (runs / f"seed-{seed}").mkdir(parents=True)
        for name in files:
            (runs / f"seed-{seed}" / name).write_text(fake("old", name))
    before = contents(runs / "seed-0")
    command(REPRODUCE, "mnist-set")
    assert [(line[line.index("--seed") + 1], "--resume" in line) for line in started] == [("1", True), ("2", False)]
    assert contents(runs / "seed-0") == before
    results = contents(tmp_path / "results" / "mnist-set")
    assert {name: text for name, text in results.items() if "metrics" in name} == {
        "seed-0/metrics.json": fake("old", "metrics.json"),
        "seed-1/metrics.json": fake("new", "metrics.json"),
        "seed-2/metrics.json": fake("new", "metrics.json"),
    }
    assert results["seed-0/progress.csv"] == fake("old", "progress.csv")


def test_a_failed_run_ends_the_row(command: Command, started: list, tmp_path: Path):
    said = "Run this again to go on: python train/ppo_or_reinforce.py --seed 13 --output-dir"
    command.fails(REPRODUCE, "mnist-multiset --seeds 5 13 6", said)
    assert len(started) == 2
    assert set(contents(tmp_path / "results")) == {
        f"mnist-multiset/seed-5/{name}" for name in ("metrics.json", "progress.csv")
    }


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("", ["error: Unknown row None", "mnist-multiset"]),
        ("nothing", ["error: Unknown row 'nothing'", *ROWS]),
        ("mnist-set --seeds one", ["--seeds", "one"]),
    ],
)
def test_a_wrong_row_is_a_clear_error(command: Command, started: list, tmp_path: Path, flags: str, said: list[str]):
    command.fails(REPRODUCE, flags, *said)
    assert started == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_interrupted_run_is_really_resumed(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module, seed = script(REPRODUCE), tmp_path / "runs" / "small" / "seed-0"
    seed.mkdir(parents=True)
    (seed / "checkpoint.pt").write_bytes((trained / "checkpoint.pt").read_bytes())
    monkeypatch.setitem(module.ROWS, "small", module.Row("tiny", "--preset tiny --source digits", source="digits"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    module.main(module.Args("small", runs_dir=tmp_path / "runs", results_dir=tmp_path / "results"))
    copied = metrics_of(tmp_path / "results" / "small" / "seed-0")
    assert copied["test"] == metrics_of(trained)["test"]
    assert copied["train_seconds"] == metrics_of(trained)["train_seconds"]  # nothing was left to learn
