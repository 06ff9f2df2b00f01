"""The command of the other learners."""

import sys
from pathlib import Path

import pytest
from commands import LEARNERS, Command, metrics_of, script

from hsal_env.config import EnvConfig

FEW_EPISODES = "--env-id HSAL-DigitsMultiset-v0 --num-examples 64 --val-episodes 6 --test-episodes 9"


@pytest.mark.parametrize("algorithm", script(LEARNERS).SETUPS)
def test_every_algorithm_learns_on_its_view(command: Command, tmp_path: Path, algorithm: str):
    small = "--num-envs 4 --timesteps 300 --val-every 150 --output-dir deep/x"
    command(LEARNERS, f"{algorithm} {FEW_EPISODES} {small}")
    assert {path.name for path in (tmp_path / "deep" / "x").iterdir()} == {"metrics.json", "model.zip", "progress.csv"}
    metrics = metrics_of(tmp_path / "deep" / "x")
    assert metrics["source"] == "digits"
    assert metrics["steps"] >= 300
    assert metrics["command"][:3] == ["python", "train/sb3_agents.py", algorithm]
    assert "deep/x" not in str(metrics)
    assert metrics["stop_at_once"]["mean_length"] == 4
    for player in ("test", "random", "stop_at_once"):
        assert sum(part["episodes"] for part in metrics[player]["by_count"].values()) == 9
    lines = (tmp_path / "deep" / "x" / "progress.csv").read_text().splitlines()
    assert lines[0] == "steps,seconds,val/mean_return,val/exact_match,val/macro_f1"
    steps = [int(line.split(",")[0]) for line in lines[1:]]
    assert steps == sorted(steps)
    assert steps[0] >= 150
    assert len(steps) >= 2


def test_other_learners_are_tested_on_no_more_images_than_there_are(
    command: Command, tmp_path: Path, svhn_folder: Path
):
    flags = f"ppo --env-id HSAL-SVHNMultiset-v0 --data-root {svhn_folder} --num-envs 2 --timesteps 64"
    command(LEARNERS, f"{flags} --val-episodes 9999 --test-episodes 9999 --output-dir x")
    metrics = metrics_of(tmp_path / "x")
    there = EnvConfig(source="svhn", split="test", data_root=str(svhn_folder)).size
    for player in ("test", "random", "stop_at_once"):
        assert sum(part["episodes"] for part in metrics[player]["by_count"].values()) == there


def test_other_learners_are_repeatable(command: Command, tmp_path: Path):
    for folder in ("a", "b"):
        command(LEARNERS, f"hsal {FEW_EPISODES} --num-envs 8 --timesteps 320 --seed 3 --output-dir {folder}")
    one, other = metrics_of(tmp_path / "a"), metrics_of(tmp_path / "b")
    for player in ("test", "random", "stop_at_once"):
        assert one[player] == other[player]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("alphago", ["error: Unknown algorithm 'alphago'. Expected one of ppo,"]),
        ("ppo --env-id HSAL-ImageNet-v0", ["error: Unknown task", "'HSAL-ImageNet-v0'", "HSAL-MNISTSet-v0"]),
        ("ppo --timesteps 0", ["error: Expected --timesteps of at least 1 and below 2**32; got 0."]),
        ("ppo --test-episodes 0", ["error: Expected --test-episodes of at least 1 and below 2**32; got 0."]),
        ("ppo --env-id HSAL-Custom-v0", ["error: Unknown task", "'HSAL-Custom-v0'. Expected one of"]),
        ("ppo --num-envs 0", ["error: Expected --num-envs of at least 1; got 0."]),
        ("ppo --seed -1", ["error: Expected --seed of at least 0 and below 2**32; got -1."]),
        ("ppo --source paintings", ["error: Expected source to be one of"]),
        ("", ["Required options"]),
    ],
)
def test_a_wrong_learner_is_a_clear_error(command: Command, tmp_path: Path, flags: str, said: list[str]):
    command.fails(LEARNERS, flags, *said)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_learner_is_not_overwritten(command: Command, tmp_path: Path):
    (tmp_path / "metrics.json").write_text("{}")
    command.fails(
        LEARNERS, f"ppo {FEW_EPISODES} --output-dir {tmp_path}", "holds a finished run; choose another --output-dir."
    )
    assert (tmp_path / "metrics.json").read_text() == "{}"


def test_without_sb3_contrib_the_command_says_what_to_install(command: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    command.fails(LEARNERS, "maskable-ppo", "error: ", 'MaskablePPO needs sb3-contrib: pip install "hsal[sb3]"')


def test_a_folder_that_cannot_be_written_is_a_clear_error(command: Command, tmp_path: Path):
    (tmp_path / "file").write_text("")
    command.fails(
        LEARNERS, f"ppo {FEW_EPISODES} --timesteps 64 --num-envs 4 --output-dir file/x", "error: Cannot write file/x"
    )
