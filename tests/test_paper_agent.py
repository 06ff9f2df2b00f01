"""The paper's agent in one file: it is the library's, gradient by gradient and update by update; it runs, and it learns."""

import dataclasses
import functools
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import numpy as np
import pytest
import torch
import tyro
from gymnasium.envs.registration import EnvSpec

from agents.actor_critic import ActorCritic
from agents.config import AgentConfig
from agents.evaluation import evaluation_config, make_env, score_agent
from agents.learning.learner import Learner, Objective, Part
from agents.learning.returns import advantages
from agents.protocol import World
from agents.rollout import collect
from agents.sampling import sample
from agents.trajectory import Trajectory
from hsal_env import dynamics
from hsal_env.config import EnvConfig
from hsal_env.errors import ConfigError
from hsal_env.perception.examples import Examples
from train.ppo_or_reinforce import parse

ROOT = Path(__file__).parents[1]
FILE = ROOT / "examples" / "paper_agent.py"
PAGE = (ROOT / "examples" / "README.md").read_text()
FAITHFUL = parse(["--preset", "faithful", "--source", "digits", "--num-examples", "64", "--no-bfloat16"])
LANES = 16


@pytest.fixture(scope="module")
def paper() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("paper_agent", FILE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "paper_agent", module)  # where dataclasses look for the names in annotations
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def env(paper: ModuleType):
    """The training environment as the file makes it, on images of one to four digits."""
    env = paper.make_env(paper.Args(source="digits"), LANES, num_examples=64, protocol="teacher")
    counts = env.simulation.examples.load(np.arange(LANES))[0].counts
    assert counts.sum(dim=1).unique().tolist() == [1, 2, 3, 4]
    return env


@pytest.fixture
def twins(paper: ModuleType, env):
    """The file's agent and the library's with the same weights, far from uniform, so that what they read decides.

    One raw attention number is out of its range.
    """
    torch.manual_seed(0)
    agent, library = paper.Agent(env, 1.0), ActorCritic(World.of(env.simulation.examples), FAITHFUL.agent)
    with torch.no_grad():
        for head in (agent.meta_controller.attention, agent.controller.location[2], agent.controller.label):
            head.weight.mul_(4)
        agent.meta_controller.attention.bias[-1] = 9.0
    library.load_state_dict(agent.state_dict())
    return agent, library


def in_the_files_words(paper: ModuleType, found: Trajectory, rules):
    actions = torch.cat([found.locations, found.labels[:, None]], dim=1)
    start, final = dynamics.initial(found.example, rules), found.final & found.live
    return paper.Trajectory(start, actions, found.rewards, found.live, final)


# --- the library's agent, loss and training -----------------------------------------------------------------------------


def test_the_settings_are_the_faithful_presets(paper: ModuleType, env):
    args, learner = dataclasses.asdict(paper.Args()), dataclasses.asdict(FAITHFUL.learner)
    shared = args.keys() & learner.keys()
    assert shared == {
        "batch_size", "passes", "learning_rate", "location_lr_scale", "vf_coef", "ent_coef", "location_ent_coef",
        "last_location_ent_coef", "max_grad_norm",
    }  # fmt: skip
    assert {name: args[name] for name in shared} == {name: learner[name] for name in shared}
    assert FAITHFUL.agent == AgentConfig(priority_gain=args["priority_gain"])
    assert env.simulation.rules == FAITHFUL.env.rules


def test_a_seed_gives_the_librarys_first_weights(paper: ModuleType, env):
    torch.manual_seed(3)
    weights = paper.Agent(env, FAITHFUL.agent.priority_gain).state_dict()
    torch.manual_seed(3)
    expected = ActorCritic(World.of(env.simulation.examples), FAITHFUL.agent).state_dict()
    assert list(weights) == list(expected)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize("coefficients", [(0.5, 0.03, 0.03), (0.0, 2.0, 0.5), (3.0, 0.0, 1.0), (3.0, 1.0, 0.0)])
def test_loss_and_gradients_are_the_librarys(paper: ModuleType, env, twins, coefficients: tuple[float, float, float]):
    agent, library = twins
    names = ("vf_coef", "ent_coef", "location_ent_coef")
    learner = dataclasses.replace(FAITHFUL.learner, **dict(zip(names, coefficients, strict=True)))
    found = collect(env, library, np.arange(LANES), generator=torch.Generator().manual_seed(1)).trajectory
    advantage = advantages(found.rewards, found.values, found.live, learner.gamma, learner.gae_lambda)
    expected, _ = Objective(library, learner)(Part(found, advantage, 1.0))
    expected.backward()

    trajectory = in_the_files_words(paper, found, env.simulation.rules)
    loss = paper.reinforce(trajectory, paper.evaluate(agent, trajectory), *coefficients)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    gradients = {name: part.grad for name, part in library.named_parameters()}
    for name, part in agent.named_parameters():
        scale = float(gradients[name].abs().max())
        assert scale > 0 or (name.startswith("controller.value") and not learner.vf_coef), name
        torch.testing.assert_close(part.grad, gradients[name], rtol=1e-4, atol=1e-5 * scale, msg=name)


def test_the_test_is_the_librarys(paper: ModuleType, twins, monkeypatch: pytest.MonkeyPatch):
    agent, library = twins
    played, act = [], paper.act
    monkeypatch.setattr(paper, "act", lambda *args, **kwargs: played.append(act(*args, **kwargs)) or played[0])
    scores = paper.test(agent, paper.Args(source="digits", test_episodes=40))
    assert len(played[0].live.sum(dim=0).unique()) > 2  # some say stop early, some not at all
    table = score_agent(library, evaluation_config(FAITHFUL.env, "test", 40), progress=False)
    assert scores == {name: table[name] for name in scores}


@pytest.fixture
def draws_of_the_library(paper: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the file's n-th roll-out, actions are drawn as in the library's n-th update with seed 0."""
    generator, count, act = torch.Generator(), iter(range(1000)), paper.act

    def seeded(*args: object, **kwargs: object):
        generator.manual_seed(next(count))
        return act(*args, **kwargs)

    monkeypatch.setattr(paper, "act", seeded)
    monkeypatch.setattr(paper.Categorical, "sample", lambda self: sample(self.probs, generator))


def test_a_roll_out_is_the_librarys(paper: ModuleType, env, twins, draws_of_the_library: None):
    agent, library = twins
    found = collect(env, library, np.arange(LANES), generator=torch.Generator().manual_seed(0)).trajectory
    expected = in_the_files_words(paper, found, env.simulation.rules)
    trajectory = paper.act(agent, env, np.arange(LANES))
    torch.testing.assert_close(trajectory.start._asdict(), expected.start._asdict())
    torch.testing.assert_close(trajectory[1:], expected[1:], check_dtype=False)


def test_training_is_the_librarys(paper: ModuleType, monkeypatch: pytest.MonkeyPatch, draws_of_the_library: None):
    # Adam divides a gradient by its size: so that the rounding of one near 0 does not become a whole step
    monkeypatch.setattr(torch.optim, "Adam", functools.partial(torch.optim.Adam, eps=1e-6))
    made = []
    build = paper.Agent
    monkeypatch.setattr(paper, "Agent", lambda *given: made.append(build(*given)) or made[0])
    args = paper.Args(source="digits", num_examples=64, test_episodes=1, batch_size=LANES, passes=2)
    paper.main(args)

    env = make_env(FAITHFUL.env, LANES)
    torch.manual_seed(0)
    library = ActorCritic(World.of(env.simulation.examples), FAITHFUL.agent)
    learner = Learner(library, dataclasses.replace(FAITHFUL.learner, batch_size=LANES, passes=2), num_updates=8)
    for epoch in range(2):
        for indices in np.random.default_rng([0, epoch]).permutation(64).reshape(-1, LANES):
            learner.update(env, indices)
    weights = dict(library.named_parameters())
    for name, part in made[0].named_parameters():
        torch.testing.assert_close(part, weights[name], rtol=0, atol=1e-5, msg=name)


# --- it runs, and it learns ---------------------------------------------------------------------------------------------


def run(flags: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, FILE, *shlex.split(flags)], env=environment, capture_output=True, text=True, timeout=300
    )


def test_the_file_runs():
    done = run("--env-id HSAL-DigitsSingle-v0 --num-examples 32 --batch-size 8 --passes 1 --test-episodes 20")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"test: exact match \d\.\d{3}, macro-F1 \d\.\d{3}\n", done.stdout)
    assert re.search(r" 4/4 .*update.*label_reward=.*loss=", done.stderr)


def test_what_the_environment_refuses_is_one_line():
    done = run("--source imagenet")
    assert done.returncode == 1
    assert done.stderr.startswith("error: Expected source to be one of auto, mnist, digits, ")
    assert done.stderr.count("\n") == 1


def test_fewer_images_than_a_batch_are_refused(paper: ModuleType):
    with pytest.raises(ConfigError, match="Expected at least batch_size=512 training images; got 64"):
        paper.main(paper.Args(source="digits", num_examples=64))


@pytest.mark.slow
def test_two_digits_are_learnt_in_seconds(paper: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """Images of a 0 or a 1, and a controller of 64 units. Blind, one can be right about half of them."""
    source = Examples(EnvConfig(source="digits", task="single", num_examples=2400))
    drawn = source.compose(np.arange(2400))
    chosen = [i for i, (label,) in enumerate(drawn.labels) if label < 2]
    images = {"images": drawn.images[chosen], "labels": [[int(drawn.labels[i][0])] for i in chosen]}
    monkeypatch.setitem(
        gym.registry,
        "Two-v0",
        EnvSpec(
            "Two-v0",
            vector_entry_point="hsal_env.vector_env:HSALVectorEnv",
            kwargs={"source": "custom", "split": "train", **images},
        ),
    )
    monkeypatch.setattr(paper, "Controller", functools.partial(paper.Controller, hidden=64))
    args = paper.Args("Two-v0", num_examples=384, batch_size=32, passes=12, learning_rate=1e-2, ent_coef=0.3)
    scores = paper.main(dataclasses.replace(args, test_episodes=32))
    assert scores["exact_match"] > 0.8


def test_it_is_short_and_imports_what_it_says():
    text = FILE.read_text()
    assert len(text.splitlines()) <= 325
    imported = set(re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE)) - set(sys.stdlib_module_names)
    assert imported == {"gymnasium", "hsal_env", "numpy", "torch", "tqdm", "tyro"}


def test_the_commands_on_its_pages_parse(paper: ModuleType):
    commands = re.findall(r"python examples/paper_agent.py(.*?)(?:#|`|$)", paper.__doc__ + PAGE, re.MULTILINE)
    assert len(commands) == 3
    for flags in commands:
        tyro.cli(paper.Args, args=flags.split())
