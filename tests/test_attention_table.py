"""The command behind the page on where attention is needed, with made-up runs."""

import json
import os
from pathlib import Path

import pytest
import tyro
from commands import ROOT, Command, script

from hsal_env.errors import CheckpointError, ConfigError

TABLE = "attention_table.py"
module = script(TABLE)
SOURCE = "mnist"
TEST = {"exact_match": 0.5, "macro_f1": 0.75, "pointing": 0.9, "focus": 0.7, "several": 0.01, "other": 1}


def parsed_by_its_script(cell, folder: str = ""):
    """The flags of its command, with seed 3."""
    path, *flags = module.command(cell, 3, Path("runs/attention"))
    if "--output-dir" in flags:
        flags[flags.index("--output-dir") + 1] = f"runs/attention/{folder}"
    of = script(Path(path).name)
    return of.parse(flags) if hasattr(of, "parse") else tyro.cli(of.Args, args=flags)


@pytest.mark.parametrize("cell", module.cells(), ids=lambda cell: cell.name)
def test_a_command_parses(cell):
    args = parsed_by_its_script(cell, module.folder_name(cell, 3))
    if cell.trains:
        assert args.seed == 3
        assert args.output_dir == Path("runs/attention", module.folder_name(cell, 3))
        assert (args.env if hasattr(args, "env") else args).num_examples == 20_000
    else:
        assert args.agent == str(
            Path("runs/attention", cell.agent.replace(", ", "-").replace(" ", "-"), "sum-of-squares/seed-3")
        )
        assert args.min_objects == args.max_objects


def test_no_two_runs_have_one_name_or_folder():
    cells = module.cells()
    assert len({cell.name for cell in cells}) == len({module.folder_name(cell, 0) for cell in cells}) == len(cells)
    trained = [repr(parsed_by_its_script(cell)) for cell in cells if cell.trains]
    assert len(set(trained)) == len(trained)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The commands that are run; each writes the metrics of a run at once."""
    seen: list[list[str]] = []

    def run(command: list[str]) -> None:
        seen.append(command)
        if "pretrain_perception.py" in command[0]:
            return
        place = (
            command[command.index("--json") + 1] if "--json" in command else command[command.index("--output-dir") + 1]
        )
        file = Path(place) if "--json" in command else Path(place, "metrics.json")
        (ROOT / file).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / file).write_text(json.dumps({"source": SOURCE, "test": TEST}))

    monkeypatch.setattr(module, "run", run)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    return seen


def go(tmp_path: Path, only: str, *seeds: int) -> None:
    module.main(module.Args(seeds or (0,), only, False, tmp_path / "runs", tmp_path / "attention.json"))


def test_what_is_missing_is_run_and_what_is_there_is_not(started: list, tmp_path: Path):
    go(tmp_path, "policy/boxes")
    assert [command[0] for command in started] == ["train/ppo_or_reinforce.py"]
    assert "boxes" in started[0]
    go(tmp_path, "policy/boxes", 0, 1)
    assert [command[command.index("--seed") + 1] for command in started] == ["0", "1"]
    found = module.read(tmp_path / "attention.json")
    assert list(found) == ["policy/boxes/0", "policy/boxes/1"]
    assert found["policy/boxes/0"] == {name: TEST[name] for name in module._MEASURES}


def test_a_run_that_was_tested_is_not_begun_again(started: list, tmp_path: Path):
    go(tmp_path, "policy/boxes")
    (tmp_path / "attention.json").unlink()
    go(tmp_path, "policy/boxes")
    assert len(started) == 1
    assert len(module.read(tmp_path / "attention.json")) == 1


def test_an_agent_is_tested_on_more_objects_than_it_learned_on(started: list, tmp_path: Path):
    go(tmp_path, "RAM/5 objects")
    (command,) = started
    assert command[0] == "train/evaluate_agent.py"
    assert (ROOT / command[1]).resolve() == (tmp_path / "runs/RAM/sum-of-squares/seed-0").resolve()
    assert "hsal_ram" in os.environ["PYTHONPATH"]


def test_broad_features_are_trained_first(started: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_ROOT", tmp_path)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    go(tmp_path, "policy/broad features")
    assert [command[0] for command in started] == ["train/pretrain_perception.py", "train/ppo_or_reinforce.py"]
    pretrain = script("pretrain_perception.py")
    args = (
        pretrain.parse(started[0][1:]) if hasattr(pretrain, "parse") else tyro.cli(pretrain.Args, args=started[0][1:])
    )
    assert (
        str(args.train.output if hasattr(args, "train") else args.output)
        == started[1][started[1].index("--activation") + 1]
    )


def test_broad_features_that_were_interrupted_are_gone_on_with(
    started: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_ROOT", tmp_path)
    model = tmp_path / module._BROAD
    model.parent.mkdir(parents=True)
    model.touch()  # of a pass that was not the last
    model.with_suffix(".resume.pt").touch()
    module._train_broad_features()
    assert started[0][-1] == "--resume"
    model.with_suffix(".json").touch()
    module._train_broad_features()
    assert len(started) == 1


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("{", CheckpointError, "is damaged"),
        ("{}", CheckpointError, "is damaged"),
        (json.dumps({"source": "digits", "test": TEST}), ConfigError, "Expected .* to be a run on mnist; got digits"),
    ],
)
def test_a_run_that_cannot_count_is_an_error(started: list, tmp_path: Path, text: str, error: type, said: str):
    cell = next(cell for cell in module.cells() if cell.name == "policy/boxes")
    file = tmp_path / "runs" / module.folder_name(cell, 0) / "metrics.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(error, match=said):
        go(tmp_path, "policy/boxes")
    assert not (tmp_path / "attention.json").exists()


def test_runs_are_listed(command: Command, capsys: pytest.CaptureFixture):
    command(
        TABLE,
        ["--list", "--only", "as printed/return", "--results", "nowhere.json", "--runs-dir", ROOT / "runs/attention"],
    )
    assert capsys.readouterr().out == (
        "as printed/return: python train/ppo_or_reinforce.py --num-examples 20000 --preset faithful --gamma 1 --seed 0 "
        "--output-dir runs/attention/as-printed/return/seed-0\n"
    )


def test_a_name_that_no_run_has_is_an_error(command: Command):
    command.fails(TABLE, "--only nobody", "No run is named like 'nobody'. --list names them.")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"policy/boxes/0": {"exact_match": 1}}',
        '{"policy/boxes/0": 3}',
        json.dumps({"a/b/0": TEST | {"focus": "x"}}),
    ],
)
def test_damaged_results_are_an_error(tmp_path: Path, text: str):
    (tmp_path / "attention.json").write_text(text)
    with pytest.raises(CheckpointError, match="is damaged"):
        module.read(tmp_path / "attention.json")


def test_the_tables_hold_the_means():
    def row(exact: float, focus: float | None = 0.5) -> dict:
        return {"exact_match": exact, "macro_f1": 0.9, "pointing": 0.9, "focus": focus, "several": 0.02}

    found = {
        "policy/boxes/0": row(0.9), "policy/boxes/1": row(0.94, 0.7), "policy/5 objects/0": row(0.8),
        "policy/sum-of-squares/0": row(0.98), "policy/printed update/0": row(0.7), "count network/set/0": row(0.6, None),
        "RAM/set/0": row(0.6, None),
    }  # fmt: skip
    pages = module.pages(found)
    assert all(set(columns) == set(row) for rows, columns in pages.values() for row in rows)
    scores = {row["agent"]: row for row in pages["scores"][0]}
    assert scores["policy"]["boxes"] == "0.920 ± 0.028"
    assert scores["policy"]["uniform"] == ""
    assert scores["count network"]["set"] == "0.600"
    assert pages["departures"][0][1]["focus / several"] == ""
    places = {row["agent"]: row for row in pages["places"][0]}
    assert places["policy"]["boxes"] == "0.60 / 0.02 / 0.90"
    assert places["RAM"]["set"] == "? / 0.02 / 0.90"
    assert "count network" not in places
    assert pages["objects"][0][0]["5 objects"] == "0.800"
    departures = {(row["agent"], row["departure"]): row for row in pages["departures"][0]}
    assert departures["policy", ""] == {
        "agent": "policy", "departure": "", "0-1": "0.980", "focus / several": "0.50 / 0.02",
    }  # fmt: skip
    assert departures["policy", "printed update"]["0-1"] == "0.700"


def test_every_departure_changes_its_agent():
    """A switch that is the agent's already would be no departure."""
    train = script("ppo_or_reinforce.py")
    for agent, switches in module.DEPARTURES.items():
        whole = train.parse(module.AGENTS[agent].split())
        seen = [repr(train.parse(f"{module.AGENTS[agent]} {flags}".split())) for flags in switches.values()]
        assert repr(whole) not in seen
        assert len(set(seen)) == len(seen)
