"""The examples, used as their readers use them: a plug-in agent is really installed, the PPO file is really run."""

import ast
import contextlib
import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import needs
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

import agents
from agents.config import AgentConfig
from agents.evaluation import make_env
from agents.protocol import Agent, World
from agents.rollout import collect
from agents.trajectory import taken
from hsal_env import functional as F
from hsal_env import plugins
from hsal_env.config import EnvConfig
from hsal_env.errors import CheckpointError, ConfigError
from hsal_env.rules import Rules
from hsal_env.spaces import raw_attention

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "examples" / "hsal_ram"
PAGE = (ROOT / "docs" / "agents.md").read_text()
# attention_init="grid" of the preset is the HSAL agent's own business, and would refuse five components
SMALL = shlex.split(
    "--agent ram --preset tiny --source digits --num-examples 128 --batch-size 32 --passes 1 --components 5"
    " --controller-hidden 32 --val-episodes 20 --test-episodes 40"
)


def python(*command: object, cwd: Path, path: tuple[Path, ...] = ()) -> subprocess.CompletedProcess:
    """``python command`` in a process of its own, with ``path`` to import from."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *path)))}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def succeeded(done: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    assert done.returncode == 0, done.stderr
    return done


def imports_of(path: Path) -> set[str]:
    """The packages that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[0] for name in plain | {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}}


# --- the plug-in, installed -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the package, from a copy, since building writes beside the sources."""
    needs.module("pip", "test", "pip installs the package")
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PACKAGE, folder / "copy", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--target", folder / "site"]  # no network
    succeeded(python("-m", "pip", "install", *options, folder / "copy", cwd=folder))
    return folder / "site"


def train(folder: Path, site: Path, *flags: str) -> Path:
    succeeded(
        python(ROOT / "train/ppo_or_reinforce.py", *SMALL, *flags, "--output-dir", folder, cwd=ROOT, path=(site,))
    )
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, site: Path) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "ram", site)


@pytest.mark.slow
def test_the_installed_agent_is_found_by_its_entry_point(site: Path, tmp_path: Path):
    code = "import inspect; from agents.protocol import find_agent; print(inspect.getfile(find_agent('ram')))"
    found = succeeded(python("-c", code, cwd=tmp_path, path=(site,))).stdout.strip()
    assert Path(found) == site / "hsal_ram" / "__init__.py"


@pytest.mark.slow
def test_the_installed_agent_is_trained_and_saved_under_its_name(trained: Path):
    content = torch.load(trained / "checkpoint.pt", weights_only=True)
    assert content["agent"] == "ram"
    assert content["model"]["core.weight_hh"].shape == (3 * 32, 32)
    assert {path.name for path in trained.iterdir()} >= {"metrics.json", "progress.csv", "episodes.png"}


@pytest.mark.slow
def test_its_checkpoint_is_evaluated_by_our_command(trained: Path, site: Path, tmp_path: Path):
    flags = ["--episodes", "40", "--json", "table.json"]
    succeeded(python(ROOT / "train/evaluate_agent.py", trained / "checkpoint.pt", *flags, cwd=tmp_path, path=(site,)))
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["test"] == json.loads((trained / "metrics.json").read_text())["test"]


@pytest.mark.slow
def test_a_seed_decides_its_training(trained: Path, site: Path, tmp_path: Path):
    def weights(folder: Path) -> torch.Tensor:
        model = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
        return torch.cat([part.flatten() for part in model.values()])

    assert torch.equal(weights(train(tmp_path / "again", site)), weights(trained))
    assert not torch.equal(weights(train(tmp_path / "other", site, "--seed", "1")), weights(trained))


@pytest.mark.slow
def test_where_the_package_is_not_installed_its_checkpoint_says_which_agent_it_lacks(
    trained: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(plugins, "entry_points", lambda group: [])
    with pytest.raises(
        CheckpointError, match=r"an agent that is not available here: Unknown agent 'ram'\. .* installed\?"
    ):
        agents.load(trained / "checkpoint.pt")


@pytest.mark.slow
def test_the_test_on_the_page_passes(site: Path, tmp_path: Path):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    succeeded(python("-c", block, cwd=tmp_path, path=(site,)))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["location_prior", "baseline.bias"])
def test_the_test_on_the_page_can_fail(site: Path, tmp_path: Path, part: str):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert "evaluation = agent" in block
    between = f"agent.{part}.data += 1.0\nevaluation = agent"
    done = python("-c", block.replace("evaluation = agent", between), cwd=tmp_path, path=(site,))
    assert done.returncode == 1
    assert "Tensor-likes are not close" in done.stderr


# --- the plug-in's agent ----------------------------------------------------------------------------------------------

CELLS, CHANNELS, CLASSES, HIDDEN = 6, 3, 10, 20
WORLD = World(Rules(components=2), (2, 3), CHANNELS, CLASSES)


@pytest.fixture(scope="module")
def hsal_ram() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PACKAGE / "src")
        yield importlib.import_module("hsal_ram")


@pytest.fixture
def ram(hsal_ram: ModuleType):
    """Builds one; far from uniform, so that what it reads decides, and no rounding does."""

    def build(world: World = WORLD, prior: float = 2.0):
        torch.manual_seed(0)
        agent = hsal_ram.RAM(world, AgentConfig(controller_hidden=HIDDEN, location_prior=prior))
        with torch.no_grad():
            for head in (agent.location, agent.label, agent.baseline):
                head.weight.mul_(10)
        return agent

    return build


def observation_at(phases: list[int]) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    lanes = len(phases)
    return {
        "saliency": torch.rand(lanes, 2, 3),
        "priority": torch.rand(lanes, 2, 3),
        "glimpse": torch.rand(lanes, CHANNELS),
        "last_location": torch.randint(CELLS + 1, (lanes,)),
        "last_label": torch.randint(CLASSES + 2, (lanes,)),
        "phase": torch.tensor(phases),
    }


def test_it_keeps_the_contract(ram):
    assert isinstance(ram(), Agent)


@pytest.mark.parametrize(
    "env_config",
    [
        {},
        {"glimpses": 1},
        {"glimpses": 3, "components": 1, "beta": "exp", "coordinates": "centred"},
        {"update": "peak", "mask_scale": "peak", "components": 4},
        {"protocol": "free", "renormalise_saliency": True},
    ],
    ids=str,
)
def test_stored_decisions_score_what_they_scored_when_taken(ram, env_config: dict):
    config = {"source": "digits", "num_examples": 32, "features": "store", "protocol": "teacher", **env_config}
    env = make_env(EnvConfig(**config), 8)
    agent = ram(World.of(env.simulation.examples))
    trajectory = collect(env, agent, np.arange(8), generator=torch.Generator().manual_seed(1)).trajectory
    evaluation = agent.evaluate(trajectory)
    torch.testing.assert_close(taken(trajectory, evaluation), trajectory.log_probs, rtol=0, atol=1e-5)
    torch.testing.assert_close(evaluation.values, trajectory.values, rtol=0, atol=1e-5)
    assert (trajectory.log_probs < 0).any()
    at_location = evaluation.location_rewards.gather(-1, trajectory.locations[..., None]).squeeze(-1)
    at_label = evaluation.label_rewards.gather(-1, trajectory.labels[..., None]).squeeze(-1)
    live = trajectory.live[:, None].expand_as(trajectory.rewards)
    rewards = torch.cat([at_location, at_label[:, None]], dim=1)
    torch.testing.assert_close(rewards[live], trajectory.rewards[live], rtol=0, atol=1e-6)


@torch.no_grad()
def test_lanes_in_mixed_phases_decide_as_they_would_alone(ram):
    agent, phases = ram(), [1, 0, 3, 2, 0, 3, 1]
    observation, state = observation_at(phases), torch.randn(len(phases), HIDDEN)
    together = agent.act(observation, state, deterministic=True)
    assert len({tuple(row) for row in together.state.tolist()}) == len(phases)
    for lane, phase in enumerate(phases):
        alone = agent.act({name: part[[lane]] for name, part in observation.items()}, state[[lane]], deterministic=True)
        read = {0: "attention", 3: "label"}.get(phase, "location")
        torch.testing.assert_close(together.action[read][lane], alone.action[read][0])
        for batched, single in zip(together[1:4], alone[1:4], strict=True):
            torch.testing.assert_close(batched[lane], single[0])


@torch.no_grad()
def test_the_core_is_carried_through_the_episode_and_waits_at_phase_0(ram):
    agent, state = ram(), torch.randn(2, HIDDEN)
    attends = agent.act(observation_at([0, 0]), state)
    assert torch.equal(attends.state, state)
    assert attends.log_prob.tolist() == attends.value.tolist() == [0, 0]
    looks = agent.act(observation_at([1, 1]), attends.state)
    assert torch.equal(looks.state, agent.read(observation_at([1, 1]), state))
    assert not torch.equal(looks.state, agent.read(observation_at([1, 1]), torch.zeros_like(state)))


@pytest.mark.parametrize("part", ["glimpse", "priority", "last_location", "last_label"])
@torch.no_grad()
def test_the_core_reads_each_part_and_not_the_saliency_map(ram, part: str):
    agent, state, seen = ram(), torch.zeros(1, HIDDEN), observation_at([1])
    before = agent.read(seen, state)
    changed = (seen[part] + 1) % 5 if part.startswith("last") else seen[part] + 1
    assert not torch.equal(agent.read({**seen, part: changed}, state), before)
    assert torch.equal(agent.read({**seen, "saliency": seen["saliency"] + 1}, state), before)


@torch.no_grad()
def test_none_is_read_as_zeros(ram):
    agent = ram()
    given: list[torch.Tensor] = []
    agent.glimpse.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    nothing = {"last_location": torch.tensor([CELLS]), "last_label": torch.tensor([CLASSES + 1])}
    agent.read({**observation_at([1]), **nothing}, torch.zeros(1, HIDDEN))
    assert given[0].shape == (1, CHANNELS + CELLS + CELLS + CLASSES + 1)
    assert not given[0][:, CHANNELS + CELLS :].any()


@pytest.mark.parametrize("coordinates", ["paper", "centred"])
@pytest.mark.parametrize("winner", range(CELLS))
@torch.no_grad()
def test_the_spotlight_falls_on_the_most_salient_cell(ram, winner: int, coordinates: str):
    agent = ram(WORLD._replace(rules=Rules(components=2, coordinates=coordinates)))
    seen = observation_at([0])
    seen["saliency"] = torch.full((1, 2, 3), 0.5).view(1, -1).index_fill(1, torch.tensor([winner]), 0.6).view(1, 2, 3)
    attention = agent.act(seen, agent.initial(1)).action["attention"]
    assert attention.shape == (1, 8)
    assert attention.abs().max() <= 1
    mask = F.attention_mask(F.mixture(raw_attention(attention), (2, 3), coordinates), (2, 3))
    assert mask.argmax() == winner
    assert mask.max() > 0.98


@torch.no_grad()
def test_location_scores_over_a_silent_head_are_a_multiple_of_priority_by_hand(ram):
    agent = ram(prior=2.0)
    torch.nn.init.zeros_(agent.location.weight)
    torch.nn.init.zeros_(agent.location.bias)
    priority = torch.tensor([0.0, 0.5, 1.0, 0.0, 0.0, 0.0]).view(1, 2, 3)
    total = 4 + np.exp(1) + np.exp(2)
    expected = torch.tensor([1, np.exp(1), np.exp(2), 1, 1, 1]).float().div(total).log()[None]
    torch.testing.assert_close(agent.location_log_probs(agent.initial(1), priority), expected)


@pytest.mark.parametrize(
    ("head", "taught"),
    [
        ("location", {"location", "location_prior"}),
        ("values", {"baseline"}),
        ("label", {"label", "core", "glimpse"}),
    ],
)
def test_only_labels_teach_the_core(ram, head: str, taught: set[str]):
    agent, seen = ram(), observation_at([1, 1])
    state = agent.read(seen, agent.read(seen, agent.initial(2)))
    scores = {
        "location": lambda: agent.location_log_probs(state, seen["priority"])[:, 0],
        "values": lambda: agent.values(state),
        "label": lambda: agent.label_log_probs(state)[:, 0],
    }[head]()
    scores.sum().backward()
    assert {name.split(".")[0] for name, part in agent.named_parameters() if part.grad is not None} == taught


@torch.no_grad()
def test_samples_follow_the_generator_and_greedy_decisions_do_not(ram):
    agent, seen, state = ram(prior=0.0), observation_at([1] * 50 + [3] * 50), torch.zeros(100, HIDDEN)

    def chosen(seed: int, deterministic: bool = False) -> list[int]:
        action = agent.act(seen, state, deterministic, torch.Generator().manual_seed(seed)).action
        return [*action["location"][:50].tolist(), *action["label"][50:].tolist()]

    assert chosen(0) == chosen(0) != chosen(1)
    assert chosen(0, deterministic=True) == chosen(1, deterministic=True)
    read = agent.read(seen, state)
    modes = agent.location_log_probs(read, seen["priority"]).argmax(1), agent.label_log_probs(read).argmax(1)
    assert chosen(0, deterministic=True) == [*modes[0][:50].tolist(), *modes[1][50:].tolist()]


def test_it_refuses_a_world_without_glimpses(hsal_ram: ModuleType):
    with pytest.raises(ConfigError, match="expected glimpses of at least 1; got 0"):
        hsal_ram.RAM(WORLD._replace(rules=Rules(glimpses=0)), AgentConfig())


# --- PPO in one file --------------------------------------------------------------------------------------------------

PPO = ROOT / "examples" / "ppo_flat.py"
TINY = shlex.split(
    "--env-id HSAL-DigitsSingle-v0 --num-examples 64 --test-episodes 20 --num-envs 8 --num-steps 16 --total-timesteps 256"
)


@pytest.fixture(scope="module")
def ppo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ppo_flat", PPO)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Command:
    """``python examples/ppo_flat.py flags``, in this process."""

    def __init__(self, ppo: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
        self.ppo, self.monkeypatch, self.capsys = ppo, monkeypatch, capsys

    def __call__(self, *flags: object) -> str:
        """What it prints, without the speed."""
        self.monkeypatch.setattr(sys, "argv", ["ppo_flat.py", *map(str, flags)])
        self.ppo.main()
        return re.sub(r" +\(.*steps/s\)", "", self.capsys.readouterr().out)


@pytest.fixture
def command(ppo: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    return Command(ppo, monkeypatch, capsys)


def scores(printed: str) -> dict[str, tuple[float, float]]:
    """Return and exact match of each policy in the table at the end."""
    rows = re.findall(r"^ *(.+?) +return +(-?[\d.]+) +exact match ([\d.]+)$", printed, re.MULTILINE)
    return {name: (float(mean_return), float(exact)) for name, mean_return, exact in rows if "steps" not in name}


@pytest.mark.slow
def test_the_file_runs_and_saves_what_it_learnt(tmp_path: Path):
    done = succeeded(python(PPO, *TINY, "--save", "policy.pt", cwd=tmp_path))
    assert done.stdout.startswith("HSAL-DigitsSingle-v0 on digits, seed 0\n")
    assert "      256 steps   return" in done.stdout
    assert list(scores(done.stdout)) == ["learned, greedy", "random", "stop at once"]
    saved = torch.load(tmp_path / "policy.pt", weights_only=True)
    assert saved["args"]["total_timesteps"] == 256
    assert saved["model"]["actor.4.bias"].shape == (49 + 10 + 1,)


def test_a_seed_decides_a_run(command: Command, tmp_path: Path):
    def run(seed: int) -> tuple[str, dict[str, torch.Tensor]]:
        printed = command(*TINY, "--seed", seed, "--save", tmp_path / "x.pt")
        return printed, torch.load(tmp_path / "x.pt", weights_only=True)["model"]

    (printed, weights), (again, same), (_, other) = run(0), run(0), run(1)
    assert printed == again
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert not torch.equal(weights["actor.0.weight"], other["actor.0.weight"])


@pytest.mark.slow
def test_one_digit_is_learnt_in_seconds(command: Command):
    flags = (
        "--env-id HSAL-DigitsSingle-v0 --num-examples 512 --test-episodes 200 --total-timesteps 50000 --num-steps 32"
        " --num-minibatches 4 --update-epochs 4 --learning-rate 4e-3 --gamma 0"
    )
    found = scores(command(*shlex.split(flags)))
    learned, exact = found["learned, greedy"]
    assert learned > found["random"][0] + 1
    assert exact > found["random"][1] + 0.1


def test_a_roll_out_may_be_shorter_than_an_episode(command: Command):
    printed = command(*TINY, "--num-steps", 2, "--num-minibatches", 1, "--total-timesteps", 16)
    assert "       16 steps   return    nan   exact match nan" in printed


def test_nothing_is_learnt_across_the_end_of_an_episode_by_hand(ppo: ModuleType):
    rewards, values = torch.tensor([[1.0], [0.0], [2.0]]), torch.tensor([[0.5], [0.25], [1.0]])
    done, following = torch.tensor([[False], [True], [False]]), torch.tensor([4.0])
    found = ppo.advantages(rewards, values, done, following, gamma=0.5, gae_lambda=0.5)
    # 2 + 4/2 - 1 = 3;  0 - 1/4;  1 + 1/8 - 1/2 - 1/16
    assert found.squeeze(1).tolist() == [0.5625, -0.25, 3.0]


def test_every_step_that_is_learnt_from_is_a_decision(command: Command, monkeypatch: pytest.MonkeyPatch):
    """A dead step, which starts an episode and ignores the action, would leave the phase as it is: at 0."""
    made, steps = [], []
    make_vec = gym.make_vec

    def spy(*args: object, **kwargs: object):
        envs = make_vec(*args, **kwargs)
        step = envs.step

        def watched(action: torch.Tensor):
            before = envs.state
            out = step(action)
            steps.append((before.phase, out[2] | out[3], envs.state.phase, before.forbidden))
            return out

        envs.step = watched
        made.append(envs)
        return envs

    monkeypatch.setattr(gym, "make_vec", spy)
    command(*TINY)
    assert [envs.autoreset_mode for envs in made] == [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]
    learning = steps[: 256 // 8]
    before, ended, after, forbidden = (torch.cat(parts) for parts in zip(*learning, strict=True))
    assert len(before) == 256
    assert ended.any()
    assert torch.equal(after, (before + 1) % 4)  # a lane that ended is at phase 0 of the next episode
    assert set(before[ended].tolist()) == {3}
    assert not forbidden.any()


@torch.no_grad()
def test_forbidden_actions_have_no_probability_and_spoil_no_gradient(ppo: ModuleType):
    options = {"num_examples": 8, "features": "store", "action_mode": "flat", "output": "torch"}
    envs = gym.make_vec("HSAL-DigitsSingle-v0", 4, **options)
    agent = ppo.Agent(envs)
    observation, _ = envs.reset(seed=0)
    for _ in range(4):
        mask = observation["action_mask"]
        with torch.enable_grad():
            policy = agent.policy(agent.encode(observation), mask)
            (policy.entropy().sum() + policy.log_prob(policy.sample()).sum()).backward()
        assert torch.equal(policy.probs > 0, mask == 1)
        assert all(part.grad.isfinite().all() for part in agent.actor.parameters())
        observation = envs.step(ppo.random_policy(observation))[0]
    assert not envs.state.forbidden.any()


def test_the_policy_reads_all_of_the_observation_but_the_mask(ppo: ModuleType):
    options = {"num_examples": 8, "features": "store", "action_mode": "flat", "output": "torch"}
    envs = gym.make_vec("HSAL-DigitsSingle-v0", 2, **options)
    observation, _ = envs.reset(seed=0)
    x = ppo.Agent(envs).encode(observation)
    channels = observation["glimpse"].shape[1]
    assert x.shape == (2, channels + 50 + 12 + 4 + 49 + 49)
    assert x[:, channels:].sum(dim=1).tolist() == pytest.approx((3 + observation["saliency"].sum(dim=1)).tolist())


def test_stopping_at_once_earns_two_peaks_of_priority_and_loses_the_stop(ppo: ModuleType):
    options = {"num_examples": 20, "features": "store", "action_mode": "flat", "output": "torch", "split": "test"}
    envs = gym.make_vec("HSAL-DigitsMultiset-v0", 20, autoreset_mode=AutoresetMode.DISABLED, **options)
    assert ppo.play(envs, ppo.stop_at_once) == (1.0, 0.0)
    assert envs.state.meta_step.eq(1).all()


def test_an_episode_is_counted_once_as_in_the_single_environment(ppo: ModuleType):
    """Lanes that name the truth end at different times, and go on through the motions until the last one has."""
    options = {"num_examples": 20, "features": "store", "action_mode": "flat", "split": "test"}
    envs = gym.make_vec("HSAL-DigitsMultiset-v0", 20, autoreset_mode=AutoresetMode.DISABLED, output="torch", **options)
    single = gym.make("HSAL-DigitsMultiset-v0", **options)

    def truthful(phase: torch.Tensor, remaining: torch.Tensor) -> torch.Tensor:
        label = torch.where(remaining.sum(1) == 0, 10, remaining.argmax(1))
        return torch.where(phase == 3, 49 + label, 24)

    mean_return, exact = ppo.play(envs, lambda observation: truthful(observation["phase"], envs.state.remaining))

    returns, lengths = [], set()
    for index in range(20):
        observation, info = single.reset(options={"index": index})
        rewards, ended = [], False
        while not ended:
            phase, remaining = torch.tensor([observation["phase"]]), torch.tensor(info["remaining_counts"])[None]
            observation, reward, terminated, truncated, info = single.step(int(truthful(phase, remaining)))
            rewards.append(reward)
            ended = terminated or truncated
        returns.append(sum(rewards))
        lengths.add(len(rewards))
    assert len(lengths) > 1
    assert exact == 1
    assert mean_return == pytest.approx(np.mean(returns), abs=1e-4)


def test_it_imports_no_more_than_it_says():
    assert imports_of(PPO) - set(sys.stdlib_module_names) == {"gymnasium", "torch", "hsal_env"}


def test_the_plug_in_imports_no_more_than_it_needs():
    assert imports_of(PACKAGE / "src/hsal_ram/__init__.py") == {"__future__", "torch", "agents", "hsal_env"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--total-timesteps 127 --num-envs 8 --num-steps 16", "must be at least one roll-out, 128"),
        ("--save no/such/folder/x.pt", "there is no folder no/such/folder"),
        ("--total-timesteps many", "invalid int value: 'many'"),
    ],
)
def test_a_wrong_flag_is_said_before_anything_is_learnt(
    command: Command, capsys: pytest.CaptureFixture, flags: str, said: str
):
    with pytest.raises(SystemExit) as caught:
        command(*shlex.split(flags))
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_what_the_environment_refuses_is_one_line(tmp_path: Path):
    done = python(PPO, *TINY, "--source", "imagenet", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Expected source to be one of auto, mnist, digits, ")
    assert "got 'imagenet'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_every_example_is_listed_with_a_command_that_parses(command: Command, capsys: pytest.CaptureFixture):
    page = (ROOT / "examples" / "README.md").read_text()
    there = {path.name for path in (ROOT / "examples").iterdir()} - {"README.md", "__pycache__"}
    assert [name for name in there if name not in page] == []
    assert "python examples/ppo_flat.py" in page
    with contextlib.suppress(SystemExit):
        command("--help")
    assert "--total-timesteps" in capsys.readouterr().out
