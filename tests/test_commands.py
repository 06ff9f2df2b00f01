"""The commands, run as people run them, and the flags that the README shows."""

import importlib.util
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
import tyro

from agents.learner import Learner
from hsal_env import functional as F
from hsal_env.errors import ConfigError
from hsal_env.perception.activation import CompactResNet

ROOT = Path(__file__).parents[1]
TRAIN, EVALUATE = "ppo_or_reinforce.py", "evaluate_agent.py"
SMALL = shlex.split(
    "--preset tiny --source digits --num-examples 128 --batch-size 32 --passes 1 --controller-hidden 32"
    " --val-episodes 20 --test-episodes 40"
)


def run(script: str, *flags: object, cwd: Path) -> subprocess.CompletedProcess:
    """``python train/script flags`` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "train" / script), *map(str, flags)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=100)


def succeeded(done: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    assert done.returncode == 0, done.stderr
    return done


@cache
def script(name: str) -> ModuleType:
    """A training script as a module, without running it."""
    spec = importlib.util.spec_from_file_location(f"script_{Path(name).stem}", ROOT / "train" / name)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their annotations up there
    spec.loader.exec_module(module)
    return module


# --- training and evaluating ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the smallest training that the README promises."""
    folder = tmp_path_factory.mktemp("runs")
    done = succeeded(run(TRAIN, "--preset", "tiny", "--source", "digits", "--output-dir", "mine/deep", cwd=folder))
    assert "exact match" in done.stdout + done.stderr
    return folder / "mine" / "deep"


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_the_tiny_preset_trains_tests_and_writes_its_files(trained: Path):
    files = {"checkpoint.pt", "metrics.json", "progress.csv", "episodes.png", "tensorboard"}
    assert {path.name for path in trained.iterdir()} == files
    metrics = metrics_of(trained)
    assert metrics["source"] == "digits"
    assert metrics["config"]["learner"]["algorithm"] == "reinforce"
    assert sum(part["episodes"] for part in metrics["test"]["by_count"].values()) == 200
    assert metrics["command"][0] == "python"
    assert metrics["command"][2:] == ["--preset", "tiny", "--source", "digits"]  # not where it lay on the machine


@pytest.mark.parametrize("algorithm", ["ppo", "cross-entropy"])
def test_the_other_algorithms_run(tmp_path: Path, algorithm: str):
    succeeded(run(TRAIN, *SMALL, "--algorithm", algorithm, "--output-dir", "x", cwd=tmp_path))
    metrics = metrics_of(tmp_path / "x")
    assert metrics["config"]["learner"]["algorithm"] == algorithm
    assert sum(part["episodes"] for part in metrics["test"]["by_count"].values()) == 40


def test_the_default_folder_is_named_after_the_run(command: "Command", tmp_path: Path):
    command(TRAIN, [*SMALL, "--seed", 3])
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"HSAL-MNISTMultiset-v0-reinforce-3-\d{8}-\d{6}", folder.name)


def test_evaluating_a_checkpoint_repeats_the_test(trained: Path, tmp_path: Path):
    table = tmp_path / "tables" / "t.json"
    done = succeeded(run(EVALUATE, trained / "checkpoint.pt", "--episodes", 200, "--json", table, cwd=tmp_path))
    results, metrics = json.loads(table.read_text()), metrics_of(trained)
    assert results["test"] == metrics["test"]
    assert results["versions"] == metrics["versions"]
    assert {name: results[name] for name in ("source", "trained_on", "split", "seed")} == {
        "source": "digits", "trained_on": "digits", "split": "test", "seed": 0,
    }  # fmt: skip
    assert f"{metrics['test']['exact_match']:.4f}" in done.stdout


@pytest.mark.parametrize(("flag", "value"), [("seed", "1"), ("split", "val"), ("split", "train")])
def test_other_canvases_give_other_numbers(command: "Command", trained: Path, tmp_path: Path, flag: str, value: str):
    picture = tmp_path / "e.png"
    flags = ["--episodes", 100, "--json", "t.json", "--picture", picture, f"--{flag}", value]
    command(EVALUATE, [trained / "checkpoint.pt", *flags])
    results = json.loads((tmp_path / "t.json").read_text())
    assert set(results["test"]) == set(metrics_of(trained)["test"])
    assert sum(part["episodes"] for part in results["test"]["by_count"].values()) == 100
    assert str(results[flag]) == value
    assert results["test"]["attn_saliency"] != metrics_of(trained)["test"]["attn_saliency"]
    assert picture.read_bytes().startswith(b"\x89PNG")


# --- help and errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [TRAIN, EVALUATE, "pretrain_perception.py"])
def test_help_is_given(name: str, tmp_path: Path):
    done = succeeded(run(name, "--help", cwd=tmp_path))
    assert "usage" in done.stdout.lower()
    assert list(tmp_path.iterdir()) == []


class Command:
    """Runs a script's ``__main__`` in this process: what would be a traceback is raised here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, name: str, flags: str | list) -> None:
        given = shlex.split(flags) if isinstance(flags, str) else [str(flag) for flag in flags]
        self.monkeypatch.setattr(sys, "argv", [f"train/{name}", *given])
        runpy.run_path(str(ROOT / "train" / name), run_name="__main__")

    def fails(self, name: str, flags: str | list, *said: str) -> None:
        """The command ends in a non-zero status and says why."""
        with pytest.raises(SystemExit) as caught:
            self(name, flags)
        code = caught.value.code
        assert code not in (0, None)
        message = code if isinstance(code, str) else self.capsys.readouterr().err
        assert "Traceback" not in message
        text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", message).split())  # tyro draws boxes
        for part in said:
            assert part in text


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    return Command(monkeypatch, capsys)


@pytest.mark.parametrize(
    ("name", "flags", "said"),
    [
        (TRAIN, "--preset huge", "error: Unknown preset 'huge'. Expected one of quick, faithful, tiny.\n"),
        (TRAIN, "--output-dir runs --resume", "error: Nothing to resume: no runs/checkpoint.pt."),
        (EVALUATE, "nothing.pt", "error: No checkpoint at nothing.pt.\n"),
    ],
)
def test_an_error_is_one_line_and_a_status(name: str, flags: str, said: str, tmp_path: Path):
    done = run(name, *shlex.split(flags), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--preset", ["preset"]),
        ("--env-id CartPole-v1", ["Unknown env id 'CartPole-v1'", "HSAL-DigitsSet-v0"]),
        ("--source imagenet", ["Expected source to be one of auto, mnist, digits; got 'imagenet'"]),
        ("--algorithm dqn", ["Expected algorithm to be one of reinforce, ppo, cross-entropy; got 'dqn'"]),
        ("--algorithm ppo --estimator exact", ["use estimator='sampled'"]),
        ("--gamma 0.9", ["immediate credit", "use estimator='sampled'"]),
        ("--gamma 2", ["Expected gamma in [0, 1]; got 2.0"]),
        ("--passes many", ["--passes", "many"]),
        ("--no-such-flag", ["--no-such-flag"]),
        ("--agent nobody", ["error: Unknown agent 'nobody'. Expected hsal"]),
        ("--agent no_such_package.x:Agent", ["error: ", "No module named 'no_such_package'"]),
        ("--batch-size 4096", ["error: Expected at least batch_size=4096 training images; got 128"]),
        ("--device abacus", ["error: Expected a device that is there", "'abacus'"]),
    ],
)
def test_a_wrong_flag_is_a_clear_error(command: Command, flags: str, said: list[str], tmp_path: Path):
    command.fails(TRAIN, [*SMALL, "--output-dir", "x", *shlex.split(flags)], *said)
    assert not list(tmp_path.glob("x/*"))


@pytest.mark.parametrize(
    "flags", ["--learning-rate -1", "--seed -1", "--log-every 0", "--val-episodes 0", "--test-episodes 0"]
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


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("", ["required", "PATH"]),
        ("{checkpoint} --split holdout", ["Expected split to be one of train, val, test; got 'holdout'"]),
        ("{checkpoint} --source imagenet", ["Expected source to be one of auto, mnist, digits"]),
        ("{checkpoint} --episodes 0", ["error: Expected num_examples of at least 1; got 0"]),
        ("{checkpoint} --seed -1", ["error: Expected seed of at least 0; got -1"]),
        ("{metrics}", ["error:", "metrics.json is cut off, damaged, or not a checkpoint"]),
        ("{checkpoint} --episodes 5 --json {metrics}/t.json", ["error: Cannot write", "t.json"]),
        ("{checkpoint} --episodes 5 --picture {metrics}/t.png", ["error: Cannot write", "t.png"]),
    ],
)
def test_a_wrong_evaluation_is_a_clear_error(command: Command, flags: str, said: list[str], trained: Path):
    places = {"checkpoint": trained / "checkpoint.pt", "metrics": trained / "metrics.json"}
    command.fails(EVALUATE, flags.format(**places), *said)


# --- the command line over presets over ids ---------------------------------------------------------------------------


def parsed(*flags: str):
    return script(TRAIN).parse(list(flags))


def test_the_faithful_preset_is_the_papers_settings():
    args = parsed("--preset", "faithful")
    default = script(TRAIN).Args()
    assert args.env == default.env
    assert args.agent == default.agent
    assert args.learner.estimator == "sampled"
    assert (args.env.update, args.agent.controller_hidden, args.agent.detach_location_head) == ("paper", 512, True)


@pytest.mark.parametrize("preset", ["quick", "faithful", "tiny"])
def test_flags_outrank_presets_and_presets_outrank_ids(preset: str):
    args = parsed("--preset", preset, "--env-id", "HSAL-DigitsSet-v0", "--update", "none", "--passes", "3")
    assert (args.preset, args.env_id) == (preset, "HSAL-DigitsSet-v0")
    assert (args.env.task, args.env.source) == ("set", "digits")
    assert (args.env.update, args.learner.passes) == ("none", 3)
    assert args.env.num_examples == (512 if preset == "tiny" else None)


def test_training_is_under_the_teacher_protocol_on_the_training_split():
    env = parsed().env
    assert (env.split, env.protocol, env.features, env.action_mode) == ("train", "teacher", "store", "native")


def test_the_quick_presets_estimator_gives_way_to_other_algorithms():
    assert parsed().learner.estimator != "sampled"
    assert parsed("--algorithm", "ppo").learner.estimator == "sampled"
    assert parsed("--algorithm=cross-entropy").learner.estimator == "sampled"


def test_the_two_seeds_are_two_flags():
    args = parsed("--seed", "3", "--data-seed", "5")
    assert (args.seed, args.env.seed) == (3, 5)


# --- the README's commands --------------------------------------------------------------------------------------------


def commands_of(markdown: str) -> list[str]:
    """Every ``python train/...`` in a fenced bash block."""
    blocks = re.findall(r"^```bash\n(.*?)^```", markdown, flags=re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in re.split(r"&&|\|\||;", line)]
    return [part for part in parts if re.match(r"python3? train/", part)]


def check(command: str) -> None:
    """Fail unless the script is there and takes these flags."""
    _, path, *flags = shlex.split(command, comments=True)
    module = script(Path(path).name)
    if hasattr(module, "parse"):
        module.parse(flags)
    elif hasattr(module, "Args"):
        tyro.cli(module.Args, args=flags)
    else:
        for flag in flags:
            assert f'"{flag}"' in Path(module.__file__).read_text(), f"{path} does not know {flag}"


README = ROOT / "README.md"
COMMANDS = commands_of(README.read_text()) if README.exists() else []


@pytest.mark.skipif(not README.exists(), reason="there is no README.md yet")
def test_the_readme_shows_the_command():
    assert any(TRAIN in command for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readmes_commands_parse(command: str):
    check(command)


def test_commands_are_found_in_bash_blocks_alone():
    text = (
        "python train/not_in_a_block.py\n```bash\npip install x && python train/a.py --b 1  # why\n"
        "python train/c.py \\\n    --d\necho python train/no.py\n```\n```python\npython train/no.py\n```\n"
    )
    commands = [" ".join(command.split()) for command in commands_of(text)]
    assert commands == ["python train/a.py --b 1 # why", "python train/c.py --d"]


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("python train/ppo_or_reinforce.py --no-such-flag", SystemExit),
        ("python train/ppo_or_reinforce.py --preset huge", ConfigError),
        ("python train/evaluate_agent.py", SystemExit),
        ("python train/evaluate_agent.py x.pt --no-such-flag 3", SystemExit),
        ("python train/make_results_table.py --no-such-flag", AssertionError),
        ("python train/no_such_script.py", FileNotFoundError),
    ],
)
def test_a_wrong_command_in_the_readme_would_be_found(command: str, error: type[BaseException]):
    with pytest.raises(error):
        check(command)


# --- pretraining ------------------------------------------------------------------------------------------------------


def test_perception_can_be_pretrained(mnist_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = script("pretrain_perception.py")
    accuracy = module.accuracy
    monkeypatch.setattr(module, "accuracy", lambda net, canvases, count=0: accuracy(net, canvases, 500))
    output = tmp_path / "w.pt"
    module.main(module.Args(output=output, passes=1, num_canvases=64, batch_size=32, data_root=mnist_root))

    results = json.loads(output.with_suffix(".json").read_text())
    assert set(results["test"]) == {"mnist", "digits"}
    assert all(0 <= part["accuracy"] <= 1 for part in results["test"].values())
    assert mnist_root not in output.with_suffix(".json").read_text()
    weights = torch.load(output, weights_only=True)
    model = CompactResNet()  # not the one that environments share
    model.load_state_dict(weights)
    volume = model(torch.rand(1, model.in_channels, 100, 100))
    assert F.sum_of_squares(volume).shape == (1, 7, 7)


@pytest.mark.parametrize("flags", ["--passes 0", "--batch-size 0", "--batch-size 64 --num-canvases 32"])
def test_a_pretraining_of_nothing_is_refused(command: Command, flags: str):
    command.fails("pretrain_perception.py", shlex.split(flags), "error: Expected passes of at least 1")
