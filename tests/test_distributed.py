"""Two processes that share a batch learn what one learns from all of it; whoever dies is named, and the run goes on.

The file is also what torchrun runs: ``train_all``, in two processes.
"""

import csv
import dataclasses
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import tyro
from torch import Tensor

from agents import checkpoint
from agents.actor_critic import ActorCritic
from agents.config import AgentConfig, LearnerConfig
from agents.learning.distributed import ALONE, Processes, joined
from agents.learning.learner import Learner
from agents.learning.run import Run, RunConfig
from agents.sampling import SharedGenerator, sample
from agents.supervised.features import Pretraining
from hsal_env import command_line
from hsal_env.config import EnvConfig
from hsal_env.errors import ConfigError, ProcessError
from hsal_env.perception.model_file import load_model
from hsal_env.perception.registry import ARCHITECTURES
from hsal_env.storage.files import Terminated, replacing

ROOT = Path(__file__).parents[1]
TRAIN = ROOT / "train" / "ppo_or_reinforce.py"

ENV = EnvConfig(
    source="digits", num_examples=32, protocol="teacher", features="store", include_image=False, components=4
)
AGENT = AgentConfig(meta_hidden=8, controller_hidden=16, location_hidden=8, location_prior=1.0)
LEARNER = LearnerConfig(batch_size=8, passes=2, learning_rate=1e-3)
VARIANTS = {
    "sampled": ({}, {"gamma": 0.5, "gae_lambda": 0.9, "ent_coef": 0.1}),
    "log": ({}, {"estimator": "log"}),
    "assigned": ({}, {"estimator": "assigned"}),
    "cross-entropy": ({}, {"algorithm": "cross-entropy"}),
    "multiset-loss": ({}, {"algorithm": "multiset-loss"}),
    "ppo": ({}, {"algorithm": "ppo", "num_minibatches": 1}),
    "ppo-minibatches": ({}, {"algorithm": "ppo", "num_minibatches": 4}),  # of two lanes, at times both of one process
    "drawn": ({"attention_policy": "drawn"}, {"estimator": "log"}),
    "drawn-ppo": ({"attention_policy": "drawn"}, {"algorithm": "ppo", "num_minibatches": 4}),
    # leaves the meta-controller and the location head unused
    "controls": ({"attention_policy": "winner-take-all", "location_policy": "uniform"}, {}),
}
HALF_DONE = "half-done"  # what one process began and two finish


class Scatterbrain(ActorCritic):
    """Draws its actions without asking :func:`sample`."""

    def act(self, observation, state, deterministic=False, generator=None):
        plain = torch.Generator().manual_seed(int(torch.randint(1 << 40, (), generator=generator)))
        return super().act(observation, state, deterministic, plain)


class UndrawnRun(Run):
    """Its pictures nobody looks at: drawing them takes longer than learning."""

    def _picture(self, config: EnvConfig, episodes: int) -> np.ndarray:
        return np.zeros((8, 8, 3), np.uint8)


def prepare(folder: Path, name: str, processes: Processes = ALONE, agent: str = "hsal", resume: bool = False) -> Run:
    sizes, learner = VARIANTS.get(name, ({}, {}))
    config = RunConfig(
        folder / name,
        ENV,
        agent,
        dataclasses.replace(AGENT, **sizes),
        dataclasses.replace(LEARNER, **learner),
        seed=3,
        device="cpu",
        val_episodes=12,
        log_every=2,
    )
    return UndrawnRun(config, resume, processes)


def train_all(folder: Path, processes: Processes) -> None:
    """Every variant, one after the other; what each process ends with must be the same to the bit."""
    runs = [prepare(folder, name, processes) for name in VARIANTS]
    if processes.count > 1:
        runs.append(prepare(folder, HALF_DONE, processes, resume=True))
        runs.append(prepare(folder, "scatterbrain", processes, agent=f"{Path(__file__).stem}:Scatterbrain"))
    for run in runs:
        run.train()
        weights = run.agent.state_dict()
        leaders = processes.from_leader(lambda weights=weights: weights)
        assert all(torch.equal(part, leaders[name]) for name, part in weights.items()), run.folder


def launch(script: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """``torchrun --nproc-per-node 2 script arguments``."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), environment.pop("PYTHONPATH", "")])
    return subprocess.run(
        [*command, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def rows(folder: Path) -> list[dict[str, float]]:
    """progress.csv, less what clocks decide."""
    with (folder / "progress.csv").open() as file:
        return [
            {name: float(value) for name, value in row.items() if name != "seconds" and value}
            for row in csv.DictReader(file)
        ]


def assert_same_run(folder: Path, expected: Path) -> None:
    """Equal weights and rows within rounding."""
    found, sought = (checkpoint.read(path / "checkpoint.pt") for path in (folder, expected))
    assert found["step"] == sought["step"] > 0
    assert found["run"] == sought["run"]
    for name, part in sought["model"].items():
        torch.testing.assert_close(found["model"][name], part, rtol=1e-4, atol=2e-5, msg=lambda text, n=name: n + text)
    for row, other in zip(rows(folder), rows(expected), strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-5)


# --- the same run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The variants, trained by one process."""
    folder = tmp_path_factory.mktemp("one")
    train_all(folder, ALONE)
    prepare(folder, HALF_DONE).train()
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The variants, trained by two."""
    folder, update = tmp_path_factory.mktemp("two"), Learner.update

    def until_5(self: Learner, env, indices: np.ndarray) -> dict[str, float]:
        if self.step == 5:
            raise KeyboardInterrupt
        return update(self, env, indices)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "update", until_5)
        with pytest.raises(KeyboardInterrupt):
            prepare(folder, HALF_DONE).train(0.0)
    done = launch(Path(__file__), folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("variant", [*VARIANTS, HALF_DONE])
def test_two_processes_learn_what_one_learns(one: Path, two: Path, variant: str):
    assert_same_run(two / variant, one / variant)


@pytest.mark.slow
def test_an_agent_that_draws_by_itself_trains_all_the_same(two: Path):
    scores = rows(two / "scatterbrain")
    assert [row["update"] for row in scores] == [2, 4, 6, 8]
    assert scores[-1]["loss/stop"] < scores[0]["loss/stop"]


# --- the command ------------------------------------------------------------------------------------------------------

FLAGS = shlex.split(
    "--preset tiny --source digits --num-examples 128 --batch-size 32 --controller-hidden 32 --no-bfloat16"
    " --val-episodes 20 --test-episodes 40 --log-every 1 --checkpoint-minutes 0 --agent mortal:Mortal"
)
MORTAL = """
import os, signal
from agents.actor_critic import ActorCritic
from hsal_env.errors import DataError

class Mortal(ActorCritic):
    "Process 1 does not outlive its sixth update, if $END says so."
    updates = 0

    def evaluate(self, trajectory):
        self.updates += 1
        if self.updates == 6 and os.environ.get("RANK") == "1":
            if os.environ.get("END") == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if os.environ.get("END") == "raise":
                raise DataError("a canvas is damaged")
        return super().evaluate(trajectory)
"""


@pytest.fixture(scope="module")
def module() -> ModuleType:
    """The command, without running it."""
    spec = importlib.util.spec_from_file_location("ppo_or_reinforce", TRAIN)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module ``mortal``, which is on the path."""
    folder = tmp_path_factory.mktemp("mortal")
    (folder / "mortal.py").write_text(MORTAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, module: ModuleType, mortal: Path) -> Path:
    """What the command writes in one process."""
    folder = tmp_path_factory.mktemp("alone")
    module.main(module.parse([*FLAGS, "--output-dir", str(folder)]))
    return folder


@pytest.mark.slow
def test_torchrun_trains_the_same_agent_and_only_the_leader_speaks_and_writes(
    tmp_path: Path, alone: Path, mortal: Path
):
    done = launch(TRAIN, *FLAGS, "--output-dir", tmp_path / "x", PYTHONPATH=str(mortal))
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "x", alone)
    assert {path.name for path in (tmp_path / "x").iterdir()} == {path.name for path in alone.iterdir()}
    assert len(list((tmp_path / "x" / "tensorboard").iterdir())) == len(list((alone / "tensorboard").iterdir()))
    for said in (
        "expected success (log) on digits",
        "pass 1:",
        "pass 2:",
        "canvases of digits, 40 episodes",
        "Results are in",
    ):
        assert (done.stdout + done.stderr).count(said) == 1
    found, expected = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "x", alone))
    assert (found["processes"], expected["processes"]) == (2, 1)
    assert found["command"][:4] == ["torchrun", "--nproc-per-node", "2", "train/ppo_or_reinforce.py"]
    assert expected["command"][:2] == ["python", "train/ppo_or_reinforce.py"]
    assert found["test"]["exact_match"] == pytest.approx(expected["test"]["exact_match"])
    assert found["cpu_seconds"] > 0


@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_resumes_with_any_number(
    tmp_path: Path, alone: Path, mortal: Path, module: ModuleType
):
    folder = tmp_path / "x"
    done = launch(TRAIN, *FLAGS, "--output-dir", folder, PYTHONPATH=str(mortal), END="kill")
    assert done.returncode != 0
    summary = done.stderr[done.stderr.index("Root Cause") :]
    assert "rank      : 1" in summary
    assert "SIGKILL" in summary
    assert {path.name for path in folder.iterdir()} - {".lock"} == {"checkpoint.pt", "progress.csv", "tensorboard"}
    assert checkpoint.read(folder / "checkpoint.pt")["step"] == 5
    module.main(module.parse([*FLAGS, "--output-dir", str(folder), "--resume"]))
    assert_same_run(folder, alone)


@pytest.mark.slow
def test_an_error_in_one_process_is_said_with_its_number(tmp_path: Path, mortal: Path):
    done = launch(TRAIN, *FLAGS, "--output-dir", tmp_path / "x", PYTHONPATH=str(mortal), END="raise")
    assert done.returncode != 0
    assert "process 1: error: a canvas is damaged\n" in done.stderr
    assert "rank      : 1" in done.stderr[done.stderr.index("Root Cause") :]
    assert {path.name for path in (tmp_path / "x").iterdir()} - {".lock"} == {
        "checkpoint.pt",
        "progress.csv",
        "tensorboard",
    }


@pytest.mark.slow
def test_what_is_wrong_for_all_is_said_once(tmp_path: Path):
    done = launch(TRAIN, "--source", "digits", "--output-dir", tmp_path / "x", "--batch-size", "33")
    assert done.returncode != 0
    said = "error: Expected batch_size, which the processes share, to be a multiple of their number; got 33, 2."
    assert done.stderr.count(said) == done.stderr.count("error: ") == 1
    assert not (tmp_path / "x").exists()


def test_flags_are_refused_by_the_leader_alone(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    for rank, speaks in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as stop:
            module.parse(["--no-such-flag"])
        assert stop.value.code == 2
        output = capfd.readouterr()
        assert ("no-such-flag" in output.out + output.err) == speaks


@pytest.mark.parametrize(
    ("rank", "message", "said"), [(None, "oh", "oh"), ("0", "oh", "oh"), ("2", "oh", "\nprocess 2: oh"), ("2", 2, 2)]
)
def test_a_failure_names_its_process(
    monkeypatch: pytest.MonkeyPatch, rank: str | None, message: str | int, said: str | int
):
    monkeypatch.delenv("RANK", raising=False)
    if rank:
        monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as stop:
        command_line.fail(message, wait_seconds=0)
    assert stop.value.code == said


# --- features ---------------------------------------------------------------------------------------------------------

LEARN_FEATURES = shlex.split(
    "--objects house-numbers --passes 2 --num-canvases 32 --batch-size 8 --val-canvases 4 --test-canvases 4 --scale 1.2"
)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """A model file that two processes have trained, and what they said."""
    output = tmp_path_factory.mktemp("features") / "w.pt"
    done = launch(ROOT / "train" / "pretrain_perception.py", *LEARN_FEATURES, "--output", output)
    assert done.returncode == 0, done.stderr
    return output, done


@pytest.mark.slow
def test_two_processes_learn_features_of_which_the_leader_speaks_and_writes(
    features: tuple[Path, subprocess.CompletedProcess],
):
    output, done = features
    assert {path.name for path in output.parent.iterdir()} - {".w.pt.lock"} == {"w.pt", "w.json"}
    for said in ("pass 1:", "pass 2:", "test: "):
        assert (done.stdout + done.stderr).count(said) == 1
    assert json.loads(output.with_suffix(".json").read_text())["processes"] == 2
    model = load_model(output, ARCHITECTURES)
    assert model(torch.rand(1, 3, 100, 100)).isfinite().all()


@pytest.mark.slow
def test_features_learned_twice_by_two_processes_are_the_same(
    tmp_path: Path, features: tuple[Path, subprocess.CompletedProcess]
):
    done = launch(ROOT / "train" / "pretrain_perception.py", *LEARN_FEATURES, "--output", tmp_path / "w.pt")
    assert done.returncode == 0, done.stderr
    one, other = (load_model(path, ARCHITECTURES).state_dict() for path in (tmp_path / "w.pt", features[0]))
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.slow
def test_features_are_gone_on_with_in_as_many_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from train import pretrain_perception

    learned = Pretraining._save

    def once(self: Pretraining, random: list[torch.Tensor]) -> None:
        learned(self, random)
        raise KeyboardInterrupt

    monkeypatch.setattr(Pretraining, "_save", once)
    args = tyro.cli(pretrain_perception.Args, args=[*LEARN_FEATURES, "--output", str(tmp_path / "w.pt")])
    with pytest.raises(KeyboardInterrupt):
        pretrain_perception.main(args)
    script = ROOT / "train" / "pretrain_perception.py"
    done = launch(script, *LEARN_FEATURES, "--output", tmp_path / "w.pt", "--resume")
    assert done.returncode != 0
    assert "is of a training in 1 processes; go on with as many, not 2" in done.stderr


# --- the parts --------------------------------------------------------------------------------------------------------


def test_without_torchrun_a_process_is_alone_and_joins_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: pytest.fail("it joined"))
    with joined("cpu") as processes:
        assert processes == ALONE == Processes(rank=0, count=1, local_rank=0)
    assert processes.leads
    assert processes.device("cpu") == "cpu"


LOST = "[/a/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4. This is typically caused by"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            RuntimeError(LOST),
            ProcessError,
            r"lost one another \(Connection closed by peer \[127.0.0.1\]:4\). torchrun's",
        ),
        (torch.distributed.DistNetworkError("no route"), ProcessError, r"lost one another \(no route\)"),
        (RuntimeError("sizes differ"), RuntimeError, "^sizes differ$"),
        (ConfigError("wrong"), ConfigError, "^wrong$"),
    ],
)
def test_the_loss_of_another_process_is_told_from_errors_of_ones_own(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], message: str
):
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    with pytest.raises(kind, match=message), joined("cpu"):
        raise error


def test_torchrun_says_who_is_who(monkeypatch: pytest.MonkeyPatch):
    for name, value in (("RANK", "5"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    processes = Processes.of_environment()
    assert processes == Processes(rank=5, count=8, local_rank=1)
    assert not processes.leads
    assert processes.lanes(32) == slice(20, 24)
    monkeypatch.delenv("LOCAL_RANK")
    with pytest.raises(
        ConfigError, match=r"WORLD_SIZE is 8 and 'LOCAL_RANK' is not set. Start the processes with torchrun"
    ):
        Processes.of_environment()


def test_a_batch_is_shared_equally_or_not_at_all():
    shares = [Processes(rank, 4).lanes(12) for rank in range(4)]
    assert [lane for share in shares for lane in range(12)[share]] == list(range(12))
    with pytest.raises(ConfigError, match="to be a multiple of their number; got 10, 4"):
        Processes(0, 4).lanes(10)


def test_a_process_takes_the_accelerator_of_its_number():
    if torch.cuda.device_count() > 6:
        pytest.skip("this machine has seven accelerators")
    with pytest.raises(ConfigError, match="device that is there, such as cpu; got 'cuda:6'"):
        Processes(6, 8, local_rank=6).device("cuda")


def test_processes_of_different_runs_do_not_train_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    monkeypatch.setattr(Processes, "from_leader", lambda _, function: {**function(), "seed": 4, "source": "mnist"})
    with pytest.raises(ConfigError, match="one run in all processes; seed, source differ from process 0's"):
        prepare(tmp_path, "log", Processes(1, 2))
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_is_ended_leaves_no_temporary_file(tmp_path: Path):
    def write(processes: Processes) -> None:
        with processes.tidy(), replacing(tmp_path / "file") as path:
            path.write_text("half")
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated):
        write(Processes(0, 2))
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before


def shared(rank: int, count: int, lanes: int, seed: int = 0) -> SharedGenerator:
    return SharedGenerator.seeded(
        torch.device("cpu"), torch.Generator().manual_seed(seed), 100 + rank, Processes(rank, count).lanes(lanes), lanes
    )


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("classes", [2, 11, 49])
def test_processes_draw_together_what_one_draws(count: int, classes: int):
    probabilities = torch.rand(64, classes, generator=torch.Generator().manual_seed(9))
    probabilities[:, 0] = 0
    probabilities[0] = torch.nn.functional.one_hot(torch.tensor(1), classes)
    probabilities /= probabilities.sum(dim=1, keepdim=True)
    plain = torch.Generator().manual_seed(0)
    generators = [shared(rank, count, 64) for rank in range(count)]
    for _ in range(3):
        drawn = sample(probabilities, plain)
        parts = [sample(probabilities[generator.lanes], generator) for generator in generators]
        assert torch.equal(torch.cat(parts), drawn)


def test_draws_follow_the_probabilities():
    wished = torch.tensor([0.1, 0.2, 0.7])
    drawn = sample(wished.expand(20_000, 3), shared(1, 2, 40_000))
    found = drawn.bincount(minlength=3) / len(drawn)
    torch.testing.assert_close(found, wished, rtol=0, atol=0.015)  # four standard deviations


def test_draws_of_some_lanes_or_by_other_means_differ_between_processes():
    uniform = torch.full((7, 50), 0.02)
    some: list[Tensor] = [sample(uniform, shared(rank, 2, 16)) for rank in (0, 1)]
    assert not torch.equal(*some)
    own = [torch.rand(8, generator=shared(rank, 2, 16)) for rank in (0, 1)]
    assert not torch.equal(*own)


if __name__ == "__main__":
    with joined("cpu") as found:
        train_all(Path(sys.argv[1]), found)
