"""The commands, run as people run them, and the flags that the README shows."""

import dataclasses
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

import numpy as np
import pytest
import torch
import tyro

import agents
from agents import checkpoint, pretraining
from agents.config import AgentConfig
from agents.count_network import CountNetwork
from agents.learner import Learner
from agents.protocol import World, build_agent
from hsal_env import functional as F
from hsal_env.config import EnvConfig
from hsal_env.errors import CheckpointError, ConfigError
from hsal_env.perception.examples import Examples
from hsal_env.perception.model_file import load_model
from hsal_env.perception.registry import ARCHITECTURES, WEIGHTS_FOLDER
from hsal_env.trace import Trace

ROOT = Path(__file__).parents[1]
TRAIN, EVALUATE, ANALYSE, BUNDLE = "ppo_or_reinforce.py", "evaluate_agent.py", "analyse_errors.py", "bundle_agent.py"
COUNT, DEMO, PRETRAIN, REPRODUCE = "count_network.py", "demo.py", "pretrain_perception.py", "reproduce.py"
LEARNERS = "sb3_agents.py"
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
        ("env", {"update": "none"}, (0, 49)),
        ("env", {"glimpses": 0}, None),
    ],
)
def test_the_controls_run(command: "Command", tmp_path: Path, part: str, changed: dict, ratio: tuple | None):
    flags = [text for name, value in changed.items() for text in (f"--{name.replace('_', '-')}", value)]
    command(TRAIN, [*SMALL, *flags, "--output-dir", "x"])
    metrics = metrics_of(tmp_path / "x")
    assert metrics["config"][part].items() >= changed.items()
    found = metrics["test"]["attn_saliency_ratio"]
    assert found is None if ratio is None else ratio[0] < found < ratio[1]


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
    assert {name: results[name] for name in ("source", "agent", "trained_on", "split", "seed")} == {
        "source": "digits", "agent": None, "trained_on": "digits", "split": "test", "seed": 0,
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


@pytest.mark.parametrize(
    ("changed", "counts"),
    [({"min_objects": 6, "max_objects": 6, "max_size_px": 33}, "6"), ({"min_objects": 3}, "34")],
)
def test_an_agent_is_tested_on_other_numbers_of_objects(
    command: "Command", trained: Path, tmp_path: Path, changed: dict, counts: str
):
    flags = [text for name, value in changed.items() for text in (f"--{name.replace('_', '-')}", value)]
    command(EVALUATE, [trained / "checkpoint.pt", "--episodes", 40, "--json", "t.json", *flags])
    results = json.loads((tmp_path / "t.json").read_text())
    assert sorted(results["test"]["by_count"]) == list(counts)
    assert {name: value for name, value in results.items() if "objects" in name or "size" in name} == changed
    cells = script("make_results.py").cells("mnist-multiset-on-6", [results])  # it may stand in the results
    assert cells["macro-F1"] == f"{results['test']['macro_f1']:.3f}"


def test_an_agent_is_tested_by_its_name(
    command: "Command", bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(agents, "BUNDLED_FOLDER", bundle)
    for which in ("small", bundle / "small.pt"):
        command(EVALUATE, [which, "--episodes", 40, "--json", f"{Path(which).suffix}t.json"])
    named, by_path = (json.loads((tmp_path / name).read_text()) for name in ("t.json", ".ptt.json"))
    assert (named.pop("agent"), by_path.pop("agent")) == ("small", None)
    assert named == by_path
    said = "error: No agent 'nobody': expected the path of a checkpoint, or a bundled agent's name (small)."
    for script_name in (EVALUATE, ANALYSE):
        command.fails(script_name, "nobody", said)
        command.fails(script_name, [tmp_path], "error: No agent")


@pytest.fixture
def trained_on_mnist(trained: Path, tmp_path: Path) -> Path:
    """A checkpoint that says so."""
    checkpoint.save(tmp_path / "m.pt", checkpoint.read(trained / "checkpoint.pt") | {"source": "mnist"})
    return tmp_path / "m.pt"


def test_an_agent_is_tested_on_what_it_was_trained_on(
    command: "Command", trained_on_mnist: Path, mnist_root: str, tmp_path: Path
):
    for name, flags in (("mnist", []), ("digits", ["--source", "digits"])):
        flags = [trained_on_mnist, "--episodes", 20, "--data-root", mnist_root, "--json", "t.json", *flags]
        command(EVALUATE, flags)
        results = json.loads((tmp_path / "t.json").read_text())
        assert (results["source"], results["trained_on"]) == (name, "mnist")


def test_an_agent_of_synthetic_house_numbers_says_so(tmp_path: Path):
    flags = [
        *SMALL[:2],
        *shlex.split("--env-id HSAL-HouseNumbersMultiset-v0 --num-examples 32 --batch-size 32 --passes 1"),
    ]
    few = shlex.split("--controller-hidden 16 --val-episodes 4 --test-episodes 8 --output-dir run")
    said = succeeded(run(TRAIN, *flags, *few, cwd=tmp_path))
    assert "test canvases of synthetic house-numbers, 8 episodes" in said.stdout + said.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["source"] == "house-numbers"
    module = script(ANALYSE)
    module.main(module.Args(str(tmp_path / "run" / "checkpoint.pt"), episodes=8, output_dir=tmp_path / "errors"))
    assert "8 val canvases of synthetic house-numbers" in (tmp_path / "errors" / "errors.md").read_text()


def test_errors_are_broken_down_of_no_more_images_than_there_are(tmp_path: Path, svhn_folder: str):
    env = EnvConfig(source="svhn", activation="compact-house-numbers", data_root=svhn_folder)
    examples = Examples(env)
    world, config = World.of(examples), AgentConfig(meta_hidden=8, controller_hidden=8, location_hidden=8)
    content = checkpoint.describe("hsal", build_agent("hsal", world, config), config, env, "svhn", world)
    checkpoint.save(tmp_path / "c.pt", content)
    module = script(ANALYSE)
    module.main(module.Args(str(tmp_path / "c.pt"), "test", 50, data_root=svhn_folder, output_dir=tmp_path / "errors"))
    assert json.loads((tmp_path / "errors" / "errors.json").read_text())["episodes"] == 12


@pytest.mark.usefixtures("no_mnist")
def test_where_mnist_is_absent_an_agent_is_tested_on_digits(command: "Command", trained_on_mnist: Path, tmp_path: Path):
    with pytest.warns(UserWarning, match="scores are not MNIST scores"):
        command(EVALUATE, [trained_on_mnist, "--episodes", 20, "--json", "t.json"])
    results = json.loads((tmp_path / "t.json").read_text())
    assert (results["source"], results["trained_on"]) == ("digits", "mnist")
    command.fails(EVALUATE, [trained_on_mnist, "--source", "mnist"], "error: MNIST was not found under")


# --- help and errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "train").glob("*.py")))
def test_help_is_given(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # imports are listed on stderr
    done = succeeded(run(name, "--help", cwd=tmp_path))
    assert "usage" in done.stdout.lower()
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "hsal_env" in imported
    assert not imported & {"torch", "matplotlib", "sklearn"}  # slow
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
        (
            TRAIN,
            "--source digits --components 5",
            "error: attention_init='grid' needs a square number of components; got 5.",
        ),
        (TRAIN, "--preset huge", "error: Unknown preset 'huge'. Expected one of best, faithful, tiny.\n"),
        (TRAIN, "--output-dir runs --resume", "error: Nothing to resume: no runs/checkpoint.pt."),
        (
            EVALUATE,
            "nothing.pt",
            "error: No agent 'nothing.pt': expected the path of a checkpoint, or a bundled agent's name (",
        ),
        (REPRODUCE, "nothing", "error: Unknown row 'nothing'. Expected one of mnist-multiset, mnist-set,"),
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
        (
            "--source imagenet",
            ["Expected source to be one of auto, mnist, digits, house-numbers, svhn, custom; got 'imagenet'"],
        ),
        (
            "--algorithm dqn",
            ["Expected algorithm to be one of reinforce, ppo, cross-entropy, multiset-loss; got 'dqn'"],
        ),
        ("--algorithm ppo --estimator exact", ["use estimator='sampled'"]),
        ("--algorithm multiset-loss --estimator log", ["use estimator='sampled'"]),
        ("--location-policy north", ["Expected location_policy to be one of learned, greedy, uniform; got 'north'"]),
        ("--attention-policy none", ["Expected attention_policy to be one of learned, winner-take-all; got 'none'"]),
        ("--location-prior -1", ["Expected location_prior of at least 0; got -1.0"]),
        ("--glimpses -1", ["Expected glimpses of at least 0; got -1"]),
        ("--components 5", ["error: attention_init='grid' needs a square number of components; got 5"]),
        ("--gamma 0.9", ["immediate credit", "use estimator='sampled'"]),
        ("--gamma 2", ["Expected gamma in [0, 1]; got 2.0"]),
        ("--passes many", ["--passes", "many"]),
        ("--no-such-flag", ["--no-such-flag"]),
        ("--agent nobody", ["error: Unknown agent 'nobody'. Expected one of hsal"]),
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
        ("", ["required", "a bundled agent's name, or the path"]),
        ("{checkpoint} --max-objects 6", ["error: 6 objects of up to 50 px do not fit a canvas of 100 px"]),
        ("{checkpoint} --min-objects 5", ["error: Expected 1 <= min_objects <= max_objects; got 5 and 4"]),
        ("{checkpoint} --max-size-px 19", ["error: Expected 1 <= min_size_px <= max_size_px"]),
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
    assert args.agent == dataclasses.replace(default.agent, bfloat16=True)
    assert args.learner.estimator == "sampled"
    assert (args.env.update, args.agent.controller_hidden, args.agent.detach_location_head) == ("paper", 512, True)


@pytest.mark.parametrize("preset", ["best", "faithful", "tiny"])
def test_flags_outrank_presets_and_presets_outrank_ids(preset: str):
    args = parsed("--preset", preset, "--env-id", "HSAL-DigitsSet-v0", "--update", "none", "--passes", "3")
    assert (args.preset, args.env_id) == (preset, "HSAL-DigitsSet-v0")
    assert (args.env.task, args.env.source) == ("set", "digits")
    assert (args.env.update, args.learner.passes) == ("none", 3)
    assert args.env.num_examples == (512 if preset == "tiny" else None)


def test_training_is_under_the_teacher_protocol_on_the_training_split():
    env = parsed().env
    assert (env.split, env.protocol, env.features, env.action_mode) == ("train", "teacher", "store", "native")


def test_the_default_preset_is_best():
    assert parsed() == parsed("--preset", "best")
    tiny = parsed("--preset", "tiny")
    assert (tiny.agent, tiny.env.components) == (parsed().agent, parsed().env.components)  # the same, learning less


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


# --- the README's commands --------------------------------------------------------------------------------------------


def commands_of(markdown: str) -> list[str]:
    """Every ``python train/...`` in a fenced bash block, or ``torchrun``'s, by which it is started several times."""
    blocks = re.findall(r"^```bash\n(.*?)^```", markdown, flags=re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in re.split(r"&&|\|\||;", line)]
    parts = [re.sub(r"^torchrun (--\S+ \S+ )+", "python ", part) for part in parts]
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
        "python train/c.py \\\n    --d\necho python train/no.py\n"
        "torchrun --n 2 train/e.py --f\n```\n```python\npython train/no.py\n```\n"
    )
    commands = [" ".join(command.split()) for command in commands_of(text)]
    assert commands == ["python train/a.py --b 1 # why", "python train/c.py --d", "python train/e.py --f"]


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("python train/ppo_or_reinforce.py --no-such-flag", SystemExit),
        ("python train/ppo_or_reinforce.py --preset huge", ConfigError),
        ("python train/evaluate_agent.py", SystemExit),
        ("python train/evaluate_agent.py x.pt --no-such-flag 3", SystemExit),
        ("python train/make_results.py --no-such-flag", AssertionError),
        ("python train/no_such_script.py", FileNotFoundError),
    ],
)
def test_a_wrong_command_in_the_readme_would_be_found(command: str, error: type[BaseException]):
    with pytest.raises(error):
        check(command)


# --- pretraining ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objects", "flags", "map_px"),
    [
        ("multiset", {}, 7),
        ("crowded", {"init": "compact-ten", "output_stride": 8}, 14),
        ("single", {"objective": "classify"}, 7),
        ("house-numbers", {}, 7),
        ("single", {"architecture": "resnet18", "init": "scratch", "objective": "classify", "num_canvases": 16}, 7),
    ],
)
def test_perception_can_be_pretrained(mnist_root: str, tmp_path: Path, objects: str, flags: dict, map_px: int):
    module = script(PRETRAIN)
    output = tmp_path / "w.pt"
    few = {"passes": 1, "num_canvases": 64, "batch_size": 16, "val_canvases": 9, "test_canvases": 9}
    module.main(module.Args(output=output, objects=objects, data_root=mnist_root, **{**few, **flags}))

    results = json.loads(output.with_suffix(".json").read_text())
    assert set(results["test"]) == ({"house-numbers"} if objects == "house-numbers" else {"mnist", "digits"})
    for looks in results["test"].values():
        assert set(looks) == set(module.LOOKS[objects])
        assert all(
            set(part) == ({"label"} if flags.get("objective") else {"counts", "peaks"}) for part in looks.values()
        )
        assert all(0 <= share <= 1 for part in looks.values() for share in part.values())
    assert results["args"]["objects"] == objects
    assert results["images_per_second"] > 0
    assert mnist_root not in output.with_suffix(".json").read_text()
    model = load_model(output, ARCHITECTURES)
    volume = model(torch.rand(1, model.in_channels, 100, 100))
    assert F.sum_of_squares(volume).shape == (1, map_px, map_px)


def test_pretraining_twice_gives_the_same_weights(tmp_path: Path):
    module = script(PRETRAIN)
    few = {"passes": 1, "num_canvases": 32, "batch_size": 16, "val_canvases": 1, "test_canvases": 1}
    flags = {"objects": "house-numbers", **few}
    for name in ("one.pt", "two.pt"):
        module.main(module.Args(output=tmp_path / name, **flags))
    one, two = (torch.load(tmp_path / name, weights_only=True)["weights"] for name in ("one.pt", "two.pt"))
    assert all(torch.equal(weight, two[name]) for name, weight in one.items())


def test_pretraining_goes_on_from_weights(mnist_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With a learning rate of 0 they come out as they went in, but for the running means of batch norm."""
    module = script(PRETRAIN)
    monkeypatch.setattr(pretraining, "accuracy", lambda *_: {})
    start, output = WEIGHTS_FOLDER / "compact.pt", tmp_path / "w.pt"
    flags = {"passes": 1, "num_canvases": 32, "batch_size": 32, "data_root": mnist_root, "learning_rate": 1e-30}
    module.main(module.Args(output=output, objects="ten", init=str(start), **flags))
    before, after = (torch.load(path, weights_only=True)["weights"] for path in (start, output))
    for name in before:
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(after[name], before[name])
    assert json.loads(output.with_suffix(".json").read_text())["args"]["init"] == "compact.pt"
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"broken\.pt"):
        module.main(module.Args(output=output, objects="ten", init=str(tmp_path / "broken.pt"), **flags))


def test_the_counting_loss_by_hand():
    saliency = torch.tensor([[[1.0, 0.5], [0.0, 2.0]]])
    log_probs = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75], [0.25, 0.75]]).log().reshape(1, 2, 2, 2)
    assert pretraining.expected_counts(saliency, log_probs).tolist() == [[1.5, 2.0]]
    counts = torch.tensor([[3.0, 1.0]])
    poisson = (1.5 - 3 * np.log(1.501) + 2 - np.log(2.001)) / 2
    between = 0.5 * 0.5 + 2 * 1
    assert pretraining.counting_loss(saliency, log_probs, counts, 0.0).item() == pytest.approx(poisson, rel=1e-5)
    assert pretraining.counting_loss(saliency, log_probs, counts, 0.2).item() == pytest.approx(poisson + 0.2 * between)


def test_warping_bends_an_image_a_little():
    images = F.normalise(torch.rand(4, 20, 20))[:, None]
    assert torch.allclose(pretraining.warped(images, 0.0), images, atol=1e-4)
    bent = pretraining.warped(images, 3.0)
    assert bent.shape == images.shape
    assert (bent - images).abs().amax(dim=(1, 2, 3)).min() > 0.01


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--passes 0", "error: Expected passes, val_canvases and test_canvases of at least 1"),
        ("--batch-size 0", "error: Expected passes, val_canvases and test_canvases of at least 1"),
        ("--batch-size 64 --num-canvases 32", "error: Expected passes, val_canvases and test_canvases of at least 1"),
        ("--test-canvases 0", "error: Expected passes, val_canvases and test_canvases of at least 1"),
        ("--objects pair", "--objects"),
        ("--architecture vgg --passes 1", "error: Expected architecture to be one of compact"),
        ("--init nowhere.pt --passes 1", "error: No activation model at nowhere.pt"),
        ("--device tpu --passes 1", "error: Expected a device that is there"),
        ("--output mine.pth", "error: Expected --output as FILE.pt, by which --activation knows a file; got mine.pth"),
        ("--mnist-share 1.5", "error: Expected --mnist-share between 0 and 1; got 1.5"),
        ("--seed -1", "error: Expected a seed of at least 0"),
        ("--learning-rate 0", "error: Expected a seed of at least 0, a learning_rate above 0"),
        ("--weight-decay -1", "a weight_decay of at least 0; got 0, 0.004, -1.0"),
        ("--output /dev/null/deep/x.pt", "error: Cannot write /dev/null/deep"),
    ],
)
def test_a_wrong_pretraining_is_refused(command: Command, flags: str, said: str):
    command.fails(PRETRAIN, flags, said)


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_the_errors_are_those_of_the_evaluation(
    command: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    drawn: list = []
    monkeypatch.setattr(
        "hsal_env.rendering.draw_traces", lambda part: drawn.extend(part) or np.zeros((8, 8, 3), np.uint8)
    )
    command(ANALYSE, [trained / "checkpoint.pt", "--episodes", 60, "--output-dir", "new/errors"])
    command(EVALUATE, [trained / "checkpoint.pt", "--episodes", 60, "--split", "val", "--json", "t.json"])
    folder = tmp_path / "new" / "errors"
    found, test = (
        json.loads((folder / "errors.json").read_text()),
        json.loads((tmp_path / "t.json").read_text())["test"],
    )
    kinds = {kind: row["cases"] for kind, row in found["by kind"].items()}
    assert found["episodes"] == sum(kinds.values()) == 60
    assert kinds.get("right", 0) / 60 == pytest.approx(test["exact_match"])
    assert found["by number of objects"] == {
        count: {"cases": part["episodes"], "right": pytest.approx(part["exact_match"])}
        for count, part in test["by_count"].items()
    }
    labels = found["by label"].values()
    hits = sum(part["cases"] * part["recall"] for part in labels) / sum(part["cases"] for part in labels)
    assert hits == pytest.approx(test["overall_recall"])
    text = (folder / "errors.md").read_text()
    assert text.startswith("# An agent: 60 val canvases of digits, greedy\n")  # no place of this machine
    assert f"| {len(test['by_count'])} | {found['by number of objects']['4']['cases']} |" in text
    assert (folder / "errors.png").read_bytes().startswith(b"\x89PNG")

    def distance(trace: Trace) -> int:
        true, named = (np.bincount(part, minlength=10) for part in (trace.labels, trace.named))
        return int(np.abs(true - named).sum())

    distances = [distance(trace) for trace in drawn]
    assert 1 <= len(distances) <= 20
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] > 0


def test_the_errors_do_not_depend_on_the_batches(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = script(ANALYSE)
    tables = []
    for batch in (50, 16):
        monkeypatch.setattr(module, "_BATCH", batch)
        monkeypatch.setattr(module, "_PICTURED", 1)
        module.main(module.Args(str(trained / "checkpoint.pt"), "test", 50, output_dir=tmp_path / str(batch)))
        text = (tmp_path / str(batch) / "errors.json").read_text()
        tables.append(json.loads(text, parse_float=lambda digits: round(float(digits), 5)))
        assert (tmp_path / str(batch) / "errors.png").read_bytes().startswith(b"\x89PNG")
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("", ["required", "a bundled agent's name, or the path"]),
        ("{checkpoint} --episodes 0", ["error: Expected --episodes of at least 1; got 0"]),
        ("{checkpoint} --split holdout", ["error: Expected split to be one of train, val, test; got 'holdout'"]),
        ("{checkpoint} --source imagenet", ["error: Expected source to be one of auto, mnist, digits"]),
        ("{metrics}", ["error:", "metrics.json is cut off, damaged, or not a checkpoint"]),
        ("{checkpoint} --episodes 5 --output-dir {metrics}/errors", ["error: Cannot write", "errors"]),
    ],
)
def test_a_wrong_analysis_is_a_clear_error(command: Command, flags: str, said: list[str], trained: Path):
    places = {"checkpoint": trained / "checkpoint.pt", "metrics": trained / "metrics.json"}
    command.fails(ANALYSE, flags.format(**places), *said)


# --- agents that come with the package --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained agent in a folder of its own, as ``small``."""
    folder, module = tmp_path_factory.mktemp("bundled") / "new", script(BUNDLE)
    module.main(module.Args(trained, "small", folder, episodes=40))
    assert {path.name for path in folder.iterdir()} == {"small.pt", "small.md"}
    return folder


def test_a_bundled_agent_is_the_trained_one_in_half_precision(trained: Path, bundle: Path):
    stored, whole = checkpoint.read(bundle / "small.pt"), checkpoint.read(trained / "checkpoint.pt")
    assert {part.dtype for part in stored["model"].values()} == {torch.float16}
    assert set(whole) - set(stored) == {"optimiser", "rows"}
    assert (bundle / "small.pt").stat().st_size < (trained / "checkpoint.pt").stat().st_size / 4
    loaded, exact = checkpoint.load(bundle / "small.pt"), checkpoint.load(trained / "checkpoint.pt")
    assert (loaded.env, loaded.source) == (exact.env, exact.source)
    for name, part in loaded.agent.state_dict().items():
        assert part.dtype == torch.float32
        assert torch.equal(part, exact.agent.state_dict()[name].half().float())


def test_a_model_card_says_what_was_done(command: Command, capsys: pytest.CaptureFixture, bundle: Path, trained: Path):
    card, metrics = (bundle / "small.md").read_text(), metrics_of(trained)
    assert card.startswith("# small\n")
    for part in (
        'agents.load("small")',
        f"`{shlex.join(metrics['command'])}`, reinforce, seed 0,\n  {metrics['train_seconds'] / 60:.1f} minutes on 1 ",
        "the task\n`multiset` with 1 to 4 digits of 20 to 50 px",
        "activation model `compact`",
        "E. Alpaydin and C. Kaynak (CC BY 4.0)",
        "No training canvas holds a digit of the test canvases.\n",
    ):
        assert part in card
    assert "MNIST" not in card
    capsys.readouterr()
    command(EVALUATE, [bundle / "small.pt", "--episodes", 40])
    assert f"```\n{capsys.readouterr().out.strip()}\n```" in card  # of the half-precision agent


def test_a_model_card_names_its_own_data_and_task(bundle: Path, trained: Path):
    content = checkpoint.read(bundle / "small.pt")
    content["env"] |= {"task": "single", "glyphs": "paper"}
    card = script(BUNDLE).card("other", content | {"source": "mnist"}, metrics_of(trained), "the table")
    for part in ("`single` with 1 to 1 digits", "Yann LeCun", "CC BY-SA 3.0", "made from the same digits", "the table"):
        assert part in card
    environment = dataclasses.asdict(EnvConfig(source="house-numbers", activation="compact-house-numbers"))
    content["env"] = {name: environment[name] for name in content["env"] if name in environment} | {
        "source": "house-numbers"
    }
    card = script(BUNDLE).card("numbers", content | {"source": "house-numbers"}, metrics_of(trained), "the table")
    for part in (
        "with 1 to 5 digits.",
        "synthetic images, no photographs",
        "holds a type face of",
        "printed digits side by",
    ):
        assert part in card
    assert "px" not in card
    assert "white digits" not in card


@pytest.mark.parametrize("metrics", [None, "{"])
def test_an_unfinished_run_is_not_bundled(command: Command, trained: Path, tmp_path: Path, metrics: str | None):
    (tmp_path / "run").mkdir()
    command.fails(BUNDLE, "run --name x --output-dir out", "error: No checkpoint at run/checkpoint.pt")
    (tmp_path / "run" / "checkpoint.pt").write_bytes((trained / "checkpoint.pt").read_bytes())
    if metrics:
        (tmp_path / "run" / "metrics.json").write_text(metrics)
    command.fails(BUNDLE, "run --name x --output-dir out", "error: run holds no finished run")
    assert not (tmp_path / "out").exists()


def test_a_wrong_bundling_is_a_clear_error(command: Command, trained: Path, tmp_path: Path):
    command.fails(BUNDLE, [trained], "required", "--name")
    command.fails(BUNDLE, [trained, "--name", "x", "--output-dir", trained / "metrics.json"], "error: Cannot write")
    command.fails(BUNDLE, [trained, "--name", "x", "--episodes", 0, "--output-dir", "out"], "of at least 1; got 0")
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("activation", ["runs/own.pt", "resnet34", "package.module:Name"])
def test_an_agent_that_sees_by_what_is_not_bundled_is_not_bundled(
    command: Command, trained: Path, tmp_path: Path, activation: str
):
    content = checkpoint.read(trained / "checkpoint.pt")
    content["env"]["activation"] = activation
    checkpoint.save(tmp_path / "run" / "checkpoint.pt", content)
    command.fails(BUNDLE, "run --name x --output-dir out", "error: Bundled agents see by", f"this one by {activation}")
    assert not (tmp_path / "out").exists()


# --- the rival that counts --------------------------------------------------------------------------------------------

FEW = shlex.split("--env-id HSAL-DigitsMultiset-v0 --num-examples 512 --batch-size 64 --hidden 64 --test-episodes 100")


@pytest.mark.parametrize("head", ["volume", "columns"])
def test_a_count_network_learns_to_count(command: Command, trained: Path, tmp_path: Path, head: str):
    command(COUNT, [*FEW, "--head", head, "--passes", 16, "--learning-rate", "4e-3", "--output-dir", "new/x"])
    metrics = metrics_of(tmp_path / "new" / "x")
    assert metrics["source"] == "digits"
    assert metrics["config"]["head"] == head
    assert metrics["test"]["macro_f1"] > metrics["blind_guess"]["macro_f1"] + 0.3
    assert set(metrics["test"]) == set(metrics_of(trained)["test"])
    assert metrics["test"]["attn_saliency"] is metrics["test"]["attn_saliency_ratio"] is None
    assert sum(part["episodes"] for part in metrics["test"]["by_count"].values()) == 100
    assert str(tmp_path) not in json.dumps(metrics)
    cells = script("make_results.py").cells("rival-count-network", [metrics])
    assert cells["0-1"] == f"{metrics['test']['exact_match']:.3f}"


def test_a_count_network_reads_the_environments_features(command: Command, tmp_path: Path, svhn_folder: str):
    few = "--passes 1 --hidden 16 --test-episodes 4"
    command(COUNT, f"--env-id HSAL-HouseNumbersMultiset-v0 --num-examples 8 --batch-size 8 {few} --output-dir out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["source"] == "house-numbers"
    assert metrics["config"]["activation"] == "compact-house-numbers"
    svhn = ["--env-id", "HSAL-SVHNMultiset-v0", "--data-root", svhn_folder, "--batch-size", 64, *few.split()]
    command.fails(COUNT, svhn, "error: Expected at least batch_size=64 images; got 36")


def test_a_count_networks_seed_decides(tmp_path: Path):
    module = script(COUNT)
    few = {"env_id": "HSAL-DigitsMultiset-v0", "num_examples": 512, "batch_size": 64, "hidden": 64, "passes": 1}
    tests = []
    for seed in (0, 0, 1):
        module.main(module.Args(**few, test_episodes=100, seed=seed, output_dir=tmp_path))
        tests.append(metrics_of(tmp_path)["test"])
    assert tests[0] == tests[1]
    assert tests[0] != tests[2]


def count_network(head: str):
    torch.manual_seed(0)
    return CountNetwork(head, (5, 2, 3), 4, most=3, hidden=8), torch.rand(6, 5, 2, 3)


def test_the_columns_heads_counts_are_sums_over_cells():
    net, volume = count_network("columns")
    by_cell = [net(volume[:, :, r : r + 1, c : c + 1]) for r in range(2) for c in range(3)]
    assert torch.allclose(net(volume), torch.stack(by_cell).sum(dim=0))
    assert torch.allclose(net(volume), net(volume.flip(2, 3)))
    assert min(part.min() for part in by_cell) > 0
    assert net.predict(volume).tolist() == [[round(value) for value in row] for row in net(volume).tolist()]
    told = net.layers(volume[1, :, 0, 2])  # one cell of one image by the formula
    assert torch.allclose(by_cell[2][1], (1 + told.exp()).log(), atol=1e-6)


def test_the_volume_heads_counts_are_the_most_probable():
    net, volume = count_network("volume")
    logits = net(volume)
    assert logits.shape == (6, 4, 4)
    assert not torch.allclose(logits, net(volume.flip(2, 3)))
    assert torch.allclose(logits[2].flatten(), net.layers(volume[2].flatten()), atol=1e-6)
    rows = logits.tolist()
    assert net.predict(volume).tolist() == [[label.index(max(label)) for label in row] for row in rows]


def test_the_count_networks_losses_by_hand():
    counts = torch.tensor([[0, 1, 2, 0]] * 3 + [[1, 0, 0, 3]] * 3)
    net, volume = count_network("volume")
    log_probs = net(volume).log_softmax(dim=2)
    each = [-sum(log_probs[b, c, n].item() for c, n in enumerate(row)) for b, row in enumerate(counts.tolist())]
    assert net.loss(volume, counts).item() == pytest.approx(np.mean(each), rel=1e-5)
    net, volume = count_network("columns")
    told = net(volume).tolist()
    each = [
        sum(expected - n * np.log(expected + 1e-3) for expected, n in zip(*pair, strict=True))
        for pair in zip(told, counts.tolist(), strict=True)
    ]
    assert net.loss(volume, counts).item() == pytest.approx(np.mean(each), rel=1e-5)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--env-id CartPole-v1", ["error: Unknown env id 'CartPole-v1'", "HSAL-DigitsSet-v0"]),
        ("--head cells", ["--head", "cells"]),
        (
            "--activation nobody",
            [
                "error: Unknown activation model 'nobody'. Expected one of compact, ",
                "compact-single, compact-ten",
            ],
        ),
        ("--passes 0", ["error: Expected passes, batch_size"]),
        ("--hidden 0", ["error: Expected passes, batch_size"]),
        ("--test-episodes 0", ["error: Expected passes, batch_size"]),
        ("--batch-size 0", ["error: Expected passes, batch_size"]),
        ("--batch-size 513", ["num_examples of at least batch_size"]),
        ("--seed -1", ["error:", "seed"]),
        ("--learning-rate -1", ["error:", "learning_rate"]),
        ("--passes 1 --output-dir file/x", ["error: Cannot write file/x"]),
    ],
)
def test_a_wrong_count_network_is_a_clear_error(command: Command, tmp_path: Path, flags: str, said: list[str]):
    (tmp_path / "file").touch()
    command.fails(COUNT, [*FEW, *shlex.split(flags)], *said)
    assert not list(tmp_path.rglob("metrics.json"))


# --- rows of the results table ----------------------------------------------------------------------------------------

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
    default = parsed().env
    assert arguments("mnist-multiset", 0).env == default
    assert arguments("mnist-multiset", 0).agent == arguments("control-no-glimpses", 0).agent == parsed().agent
    assert arguments("control-no-glimpses", 0).env == dataclasses.replace(default, glimpses=0)
    assert arguments("mnist-multiset-leaky", 0).env == dataclasses.replace(default, glyphs="paper")


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

    def start(command: list[str], cwd: Path, check: bool) -> subprocess.CompletedProcess:
        assert (command[0], Path(cwd), check) == (sys.executable, ROOT, False)
        commands.append(command[1:])
        if "13" in command:
            return subprocess.CompletedProcess(command, 1)
        if "--output" in command:
            model = ROOT / command[command.index("--output") + 1]
            model.parent.mkdir(parents=True, exist_ok=True)
            model.with_suffix(".json").write_text("{}")
            return subprocess.CompletedProcess(command, 0)
        place = Path(command[command.index("--json" if "--json" in command else "--output-dir") + 1])
        assert place.is_absolute()
        folder = place.parent if "--json" in command else place
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.json", "progress.csv", "episodes.png"):
            (folder / name).write_text(
                fake("new", name, "svhn" if any("SVHN" in part for part in command) else "mnist")
            )
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", start)
    return commands


def fake(age: str, name: str, source: str = "mnist") -> str:
    return json.dumps({"source": source, "age": age, "name": name})


def test_a_run_on_other_data_stays_out_of_the_results(command: Command, started: list, tmp_path: Path):
    folder = tmp_path / "runs" / "mnist-set" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(fake("old", "metrics.json", "digits"))
    command.fails(REPRODUCE, "mnist-set --seeds 0", "was run on digits, which is not the row's data")
    for damaged in ("{", "[]", "{}"):
        (folder / "metrics.json").write_text(damaged)
        command.fails(REPRODUCE, "mnist-set --seeds 0", "metrics.json is damaged", "delete it and run this again")
    assert not (tmp_path / "results").exists()


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_all_seeds_of_a_row_are_run(command: Command, started: list, tmp_path: Path):
    command(REPRODUCE, "mnist-multiset")
    assert started == [
        [
            "train/ppo_or_reinforce.py",
            "--seed",
            str(seed),
            "--output-dir",
            f"{tmp_path}/runs/mnist-multiset/seed-{seed}",
        ]
        for seed in (0, 1, 2)
    ]
    assert contents(tmp_path / "results") == {
        f"mnist-multiset/seed-{seed}/{name}": fake("new", name)
        for seed in (0, 1, 2)
        for name in ("metrics.json", "progress.csv")
    }


def test_a_row_that_evaluates_keeps_its_table(command: Command, started: list, tmp_path: Path):
    command(REPRODUCE, "mnist-multiset-on-6")
    flags = shlex.split(ROWS["mnist-multiset-on-6"].flags)
    table = f"{tmp_path}/runs/mnist-multiset-on-6/seed-0/metrics.json"
    assert started == [["train/evaluate_agent.py", *flags, "--json", table]]
    assert contents(tmp_path / "results")["mnist-multiset-on-6/seed-0/metrics.json"] == fake("new", "metrics.json")


def test_other_seeds_and_folders_may_be_named(command: Command, started: list, tmp_path: Path):
    command(REPRODUCE, "rival-count-columns --seeds 3 4 --runs-dir a/b --results-dir c/d")
    assert [line[line.index("--seed") + 1] for line in started] == ["3", "4"]
    assert all(line[:3] == ["train/count_network.py", "--head", "columns"] for line in started)
    assert (tmp_path / "a/b/rival-count-columns/seed-4/metrics.json").exists()
    assert set(contents(tmp_path / "c" / "d")) >= {f"rival-count-columns/seed-{seed}/metrics.json" for seed in (3, 4)}
    assert not (tmp_path / "results").exists()


def test_a_finished_run_is_left_and_an_interrupted_one_resumed(command: Command, started: list, tmp_path: Path):
    runs = tmp_path / "runs" / "mnist-multiset"
    for seed, files in ((0, ("checkpoint.pt", "metrics.json", "progress.csv")), (1, ("checkpoint.pt", "progress.csv"))):
        (runs / f"seed-{seed}").mkdir(parents=True)
        for name in files:
            (runs / f"seed-{seed}" / name).write_text(fake("old", name))
    before = contents(runs / "seed-0")
    command(REPRODUCE, "mnist-multiset")
    assert [(line[line.index("--seed") + 1], "--resume" in line) for line in started] == [("1", True), ("2", False)]
    assert contents(runs / "seed-0") == before
    results = contents(tmp_path / "results" / "mnist-multiset")
    assert {name: text for name, text in results.items() if "metrics" in name} == {
        "seed-0/metrics.json": fake("old", "metrics.json"),
        "seed-1/metrics.json": fake("new", "metrics.json"),
        "seed-2/metrics.json": fake("new", "metrics.json"),
    }
    assert results["seed-0/progress.csv"] == fake("old", "progress.csv")


def test_a_failed_run_ends_the_row(command: Command, started: list, tmp_path: Path):
    said = "run this again to go on: python train/ppo_or_reinforce.py --seed 13 --output-dir"
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


# --- other learners ---------------------------------------------------------------------------------------------------

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
    monkeypatch.setitem(sys.modules, "agents.sb3", None)
    monkeypatch.delattr(agents, "sb3", raising=False)
    command.fails(LEARNERS, "ppo", "error: ", "pip install -c constraints.txt -e '.[sb3]'")


def test_a_folder_that_cannot_be_written_is_a_clear_error(command: Command, tmp_path: Path):
    (tmp_path / "file").write_text("")
    command.fails(
        LEARNERS, f"ppo {FEW_EPISODES} --timesteps 64 --num-envs 4 --output-dir file/x", "error: Cannot write file/x"
    )


# --- benchmarks -------------------------------------------------------------------------------------------------------


def test_sb3s_throughput_is_measured_side_by_side(tmp_path: Path):
    command = [sys.executable, str(ROOT / "benchmarks" / "sb3_throughput.py")]
    small = shlex.split("--num-envs 2 --steps 4 --turns 1 --learn 128 --json numbers.json")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *small], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["num_envs"] == 2
    for part in ("untrained", "trained"):
        assert min(numbers[part].values()) > 0
        assert set(numbers[part]) == {"HSALVecEnv", "DummyVecEnv", "ratio"}
    assert "frames/s" in done.stdout
