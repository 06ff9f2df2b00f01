"""The state, a roll-out and learning live on the device, and no step waits for it.

Torch's ``meta`` device stands for an accelerator: its tensors have no values, so whatever would wait for one, or mix it with
the CPU, is an error.
"""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.config import AgentConfig
from agents.evaluation import make_env
from agents.learning import losses
from agents.learning.returns import advantages, standardised
from agents.protocol import World, build_agent
from agents.rollout import collect
from hsal_env.config import EnvConfig

LANES = 6


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # it does not know "meta"


@pytest.fixture(params=["learned", "drawn"])
def elsewhere(request: pytest.FixtureRequest):
    env = make_env(EnvConfig(source="digits", num_examples=LANES, protocol="teacher", components=4), LANES, "meta")
    config = AgentConfig(attention_policy=request.param)
    return env, build_agent("hsal", World.of(env.simulation.examples), config).to("meta")


def test_a_wait_for_the_device_would_be_noticed(elsewhere):
    env, _ = elsewhere
    observation, _ = env.reset(options={"index": np.arange(LANES)})
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        bool((observation["saliency"] > 0).any())
    with pytest.raises(RuntimeError, match="meta"):
        observation["saliency"] + torch.zeros(LANES, 7, 7)


def test_the_example_agent_follows_to_the_device(elsewhere, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples" / "hsal_ram" / "src"))
    env, _ = elsewhere
    agent = build_agent("hsal_ram:RAM", World.of(env.simulation.examples), AgentConfig()).to("meta")
    assert collect(env, agent, np.arange(LANES)).trajectory.labels.shape == (5, LANES)


def attention_parts(attention) -> list:
    return [*attention.draws, *attention[1:]] if attention else []


@pytest.mark.parametrize("deterministic", [False, True])
def test_no_step_of_a_roll_out_waits_for_the_device(elsewhere, deterministic: bool):
    env, agent = elsewhere
    rollout = collect(env, agent, np.arange(LANES), deterministic)
    assert rollout.trajectory.labels.shape == (5, LANES)
    *rows, attention = rollout.trajectory[1:]
    parts = [*rollout.trajectory.example, *rows, *rollout[1:], *attention_parts(attention)]
    assert {part.device.type for part in parts if part is not None} == {"meta"}
    assert env.state.phase.device.type == "cpu"


def test_learning_stays_on_the_device(elsewhere):
    """Once per update the number of live lanes is asked for; here it is known."""
    env, agent = elsewhere
    trajectory = collect(env, agent, np.arange(LANES)).trajectory
    live = torch.arange(5)[:, None] < torch.tensor([2, 3, 5, 4, 3, 2])
    evaluation = agent.evaluate(trajectory._replace(live=live))
    trajectory = trajectory._replace(live=live.to("meta"))
    advantage = advantages(trajectory.rewards, trajectory.values, trajectory.live, 0.0, 1.0)
    terms = losses.reinforce(trajectory, evaluation, advantage)
    *parts, scores = evaluation
    if scores:
        rewards = trajectory.attention.rewards
        terms |= losses.upper_level(trajectory, scores, standardised(rewards, trajectory.live), rewards)
    torch.stack(list(terms.values())).sum().backward()
    assert {part.device.type for part in [*parts, *(scores or ())]} == {"meta"}
    assert all(part.grad is not None for part in agent.parameters())
