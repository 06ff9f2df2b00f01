"""The training command: what it writes, its presets, and every refusal."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
from commands import (
    ANALYSE,
    SMALL,
    TRAIN,
    Command,
    metrics_of,
    parsed,
    script,
)

from agents.learning.learner import Learner


def test_the_tiny_preset_trains_tests_and_writes_its_files(trained: Path):
    files = {"checkpoint.pt", "metrics.json", "progress.csv", "episodes.png", "tensorboard"}
    assert {path.name for path in trained.iterdir()} == files
    metrics = metrics_of(trained)
    assert metrics["source"] == "digits"
    assert metrics["config"]["learner"]["algorithm"] == "reinforce"
    assert sum(part["episodes"] for part in metrics["test"]["by_count"].values()) == 200
    assert min(metrics[name] for name in ("train_seconds", "feature_seconds", "cpu_seconds", "max_memory_mib")) > 0
    assert metrics["threads"] == 1
    assert metrics["command"][0] == "python"
    assert metrics["command"][2:] == ["--preset", "tiny", "--source", "digits"]  # not where it lay on the machine


@pytest.mark.parametrize("algorithm", ["ppo", "cross-entropy", "multiset-loss"])
def test_the_other_algorithms_run(command: "Command", tmp_path: Path, algorithm: str):
    command(TRAIN, [*SMALL, "--algorithm", algorithm, "--output-dir", "x"])
    metrics = metrics_of(tmp_path / "x")
    assert metrics["config"]["learner"]["algorithm"] == algorithm
    assert sum(part["episodes"] for part in metrics["test"]["by_count"].values()) == 40


@pytest.mark.parametrize(
    ("part", "changed", "ratio"),
    [
        ("agent", {"location_policy": "uniform"}, (0.3, 3)),
        ("agent", {"attention_policy": "winner-take-all", "location_policy": "greedy"}, (4, 49)),
        ("agent", {"attention_policy": "learned"}, (0, 49)),
        ("agent", {"saliency_prior": 7.0}, (4, 49)),
        ("env", {"update": "none"}, (0, 49)),
        ("env", {"glimpses": 0}, None),
    ],
)
def test_the_controls_run(command: "Command", tmp_path: Path, part: str, changed: dict, ratio: tuple | None):
    flags = [text for name, value in changed.items() for text in (f"--{name.replace('_', '-')}", value)]
    command(TRAIN, [*SMALL, *flags, "--output-dir", "x"])
    metrics = metrics_of(tmp_path / "x")
    assert metrics["config"][part].items() >= changed.items()
    assert metrics["config"]["env"]["components"] == 25
    found = metrics["test"]["attn_saliency_ratio"]
    assert found is None if ratio is None else ratio[0] < found < ratio[1]


def test_the_default_folder_is_named_after_the_run(command: "Command", tmp_path: Path):
    command(TRAIN, [*SMALL, "--seed", 3])
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"HSAL-MNISTMultiset-v0-reinforce-3-\d{8}-\d{6}", folder.name)


def test_an_agent_of_synthetic_house_numbers_says_so(command: "Command", capsys: pytest.CaptureFixture, tmp_path: Path):
    flags = [
        *SMALL[:2],
        *shlex.split("--env-id HSAL-HouseNumbersMultiset-v0 --num-examples 32 --batch-size 32 --passes 1"),
    ]
    few = shlex.split("--controller-hidden 16 --val-episodes 4 --test-episodes 8 --output-dir run")
    command(TRAIN, [*flags, *few])
    assert "test canvases of synthetic house-numbers, 8 episodes" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["source"] == "house-numbers"
    module = script(ANALYSE)
    module.main(module.Args(str(tmp_path / "run" / "checkpoint.pt"), episodes=8, output_dir=tmp_path / "errors"))
    assert "8 val canvases of synthetic house-numbers" in (tmp_path / "errors" / "errors.md").read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--preset", ["preset"]),
        ("--env-id CartPole-v1", ["Unknown env id 'CartPole-v1'", "HSAL-DigitsSet-v0"]),
        (
            "--source imagenet",
            ["'imagenet'", "'auto', 'mnist', 'digits', 'house-numbers', 'svhn', 'custom'"],
        ),
        (
            "--algorithm dqn",
            ["Expected algorithm to be one of reinforce, ppo, cross-entropy, multiset-loss; got 'dqn'"],
        ),
        ("--algorithm ppo --estimator exact", ["use estimator='sampled'"]),
        ("--algorithm multiset-loss --estimator log", ["use estimator='sampled'"]),
        ("--location-policy north", ["--location-policy", "'north'", "learned", "greedy", "uniform"]),
        ("--attention-policy none", ["--attention-policy", "'none'", "learned", "winner-take-all"]),
        ("--priority-gain -1", ["Expected priority_gain of at least 0; got -1.0"]),
        ("--location-prior -1", ["Expected location_prior of at least 0; got -1.0"]),
        ("--glimpses -1", ["Expected glimpses of at least 0 and components of at least 1; got -1 and"]),
        ("--components 5", ["error: attention_policy='drawn' needs a square number of components; got 5"]),
        (
            "--preset deterministic --components 5",
            ["error: attention_init='grid' needs a square number of components; got 5"],
        ),
        ("--gamma 0.9", ["immediate credit", "use estimator='sampled'"]),
        ("--gamma 2", ["Expected gamma in [0, 1]; got 2.0"]),
        ("--passes many", ["--passes", "many"]),
        ("--algorithm agent", ["error: Expected algorithm to be one of reinforce, ppo,", "'agent'"]),
        ("--no-such-flag", ["--no-such-flag"]),
        ("--agent nobody", ["error: Unknown agent 'nobody'. Expected one of hsal"]),
        ("--agent no_such_package.x:Agent", ["error: ", "No module named 'no_such_package'"]),
        ("--batch-size 4096", ["error: Expected at least batch_size=4096 training images; got 128"]),
        ("--device abacus", ["error: Expected a device that is there", "'abacus'"]),
    ],
)
def test_a_wrong_flag_is_a_clear_error(command: Command, flags: str, said: list[str], tmp_path: Path):
    command.fails(TRAIN, [*SMALL, "--output-dir", "x", *shlex.split(flags)], *said)
    assert {path.name for path in tmp_path.glob("x/*")} <= {".lock"}  # which goes with the process


@pytest.mark.parametrize(
    "flags",
    [
        "--learning-rate -1",
        "--location-lr-scale 0",
        "--last-location-ent-coef -1",
        "--seed -1",
        "--log-every 0",
        "--val-episodes 0",
        "--test-episodes 0",
    ],
)
def test_a_number_out_of_range_is_an_error_before_any_learning(
    command: Command, monkeypatch: pytest.MonkeyPatch, flags: str
):
    monkeypatch.setattr(Learner, "update", lambda *_: pytest.fail("it began to learn"))
    command.fails(TRAIN, [*SMALL, "--output-dir", "x", *shlex.split(flags)], flags.split()[1])


def test_a_run_is_not_overwritten(command: Command, trained: Path):
    before = (trained / "checkpoint.pt").read_bytes()
    flags = ["--preset", "tiny", "--source", "digits", "--output-dir", trained]
    command.fails(TRAIN, flags, "error:", "Continue it with --resume")
    command.fails(TRAIN, [*flags, "--resume", "--learning-rate", "0.5"], "of another run:", "learner differ")
    assert (trained / "checkpoint.pt").read_bytes() == before


def test_the_faithful_preset_is_the_papers_settings():
    args = parsed("--preset", "faithful")
    default = script(TRAIN).Args()
    assert args.env == default.env
    assert args.agent == dataclasses.replace(default.agent, priority_gain=24.0, bfloat16=True)
    assert args.learner.estimator == "sampled"
    assert (args.env.update, args.agent.controller_hidden, args.agent.detach_location_head) == ("paper", 512, True)


@pytest.mark.parametrize("preset", ["best", "deterministic", "faithful", "tiny"])
def test_flags_outrank_presets_and_presets_outrank_ids(preset: str):
    args = parsed("--preset", preset, "--env-id", "HSAL-DigitsSet-v0", "--update", "none", "--passes", "3")
    assert (args.preset, args.env_id) == (preset, "HSAL-DigitsSet-v0")
    assert (args.env.task, args.env.source) == ("set", "digits")
    assert (args.env.update, args.learner.passes) == ("none", 3)
    assert args.env.num_examples == (512 if preset == "tiny" else None)


def test_an_env_id_may_name_its_module():
    args = parsed("--env-id=hsal_env:HSAL-DigitsSet-v0")
    assert args == parsed("--env-id", "HSAL-DigitsSet-v0")
    assert args.env_id == "HSAL-DigitsSet-v0"


def test_training_is_under_the_teacher_protocol_on_the_training_split():
    env = parsed().env
    assert (env.split, env.protocol, env.features, env.action_mode) == ("train", "teacher", "store", "native")


def test_the_default_preset_is_best():
    assert parsed() == parsed("--preset", "best")
    assert (parsed().agent.attention_policy, parsed().env.update) == ("drawn", "peak")
    tiny = parsed("--preset", "tiny")
    assert (tiny.agent, tiny.env.components) == (parsed().agent, parsed().env.components)  # the same, learning less


def test_the_deterministic_preset_differs_from_the_best_in_attention_alone():
    best, deterministic = parsed(), parsed("--preset", "deterministic")
    assert (deterministic.agent.attention_policy, deterministic.env.update) == ("learned", "paper")
    assert deterministic.learner == dataclasses.replace(best.learner, meta_lr_scale=0.3)
    assert dataclasses.replace(deterministic.agent, attention_policy="drawn", attention_init="default") == best.agent
    assert dataclasses.replace(deterministic.env, components=25, update="peak") == best.env


def test_the_deterministic_presets_own_rate_is_that_of_reinforce_alone():
    rates = {
        (preset, name): parsed("--preset", preset, "--algorithm", name).learner.meta_lr_scale
        for preset in ("best", "deterministic", "faithful")
        for name in ("reinforce", "ppo", "cross-entropy")
    }
    assert {setting for setting, rate in rates.items() if rate != 1} == {("deterministic", "reinforce")}


def test_the_best_presets_estimator_gives_way_to_other_algorithms():
    assert parsed().learner.estimator != "sampled"
    assert parsed("--algorithm", "ppo").learner.estimator == "sampled"
    assert parsed("--algorithm=cross-entropy").learner.estimator == "sampled"
    assert parsed("--algorithm", "multiset-loss").learner.estimator == "sampled"


def test_the_faithful_preset_is_the_same_for_every_algorithm():
    learners = {
        name: parsed("--preset", "faithful", "--algorithm", name).learner
        for name in ("reinforce", "ppo", "multiset-loss")
    }
    assert {dataclasses.replace(learner, algorithm="reinforce") for learner in learners.values()} == {
        learners["reinforce"]
    }
    assert [learner.algorithm for learner in learners.values()] == list(learners)


def test_the_two_seeds_are_two_flags():
    args = parsed("--seed", "3", "--data-seed", "5")
    assert (args.seed, args.env.seed) == (3, 5)
