"""Roll-outs: one episode on each of many canvases at once, recorded as a trajectory."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents.learning.returns import upper_rewards
from agents.protocol import Actor, Decision, FixesWeights
from agents.trajectory import AttentionDraws, Trajectory, each
from hsal_env import dynamics
from hsal_env.dynamics import State
from hsal_env.errors import ConfigError

if TYPE_CHECKING:
    from hsal_env.vector_env import HSALVectorEnv


class Rollout(NamedTuple):
    """A trajectory and how its episodes ended.

    Attributes:
        trajectory: the decisions.
        predicted: int64 ``[B, C]``: how often each label was named in each lane.
        looks: ``[B, 2]``: sums over the episode of the raw saliency at its glimpses, and at uniformly drawn ones.
        glimpses: ``[B]``: number of glimpses in these sums.
        masks: the mask of each meta-step ``[M, B, H, W]``; None unless asked for.
    """

    trajectory: Trajectory
    predicted: Tensor
    looks: Tensor
    glimpses: Tensor
    masks: Tensor | None = None


@torch.no_grad()
def collect(
    env: HSALVectorEnv,
    agent: Actor,
    indices: np.ndarray,
    deterministic: bool = False,
    generator: torch.Generator | None = None,
    forced_labels: Tensor | None = None,
    masks: bool = False,
) -> Rollout:
    """Run one episode per lane, on the canvases ``indices`` ``[B]``.

    Args:
        env: in the native view, with ``output="torch"`` and auto-reset disabled.
        agent: the agent that plays, on the environment's device.
        indices: numbers of the canvases.
        deterministic: take the most probable actions.
        generator: draws the samples.
        forced_labels: int64 ``[M, B]``: labels to take in place of the agent's.
        masks: whether the masks are kept.

    Raises:
        ConfigError: an agent that draws its attention does not tell the log-probabilities of its labels.
    """
    observation, _ = env.reset(options={"index": indices})
    agent_state = agent.initial(env.num_envs)
    ended = torch.zeros(env.num_envs, dtype=torch.bool, device=env.simulation.device)
    final_state: State | None = None
    rows: dict[str, list[Tensor]] = {
        name: [] for name in ("locations", "labels", "rewards", "log_probs", "values", "live")
    }
    placed: list[Tensor] = []
    upper: list[AttentionDraws] = []
    option_length = env.simulation.rules.option_length
    with agent.weights_fixed() if isinstance(agent, FixesWeights) else nullcontext():
        for _ in range(env.simulation.rules.max_meta_steps):
            if ended.is_cpu and bool(ended.all()):  # an accelerator would have to be waited for
                break
            actions: list[dict[str, Tensor]] = []
            scores: dict[str, list[Tensor]] = {"rewards": [], "log_probs": [], "values": []}
            rows["live"].append(~ended)
            for phase in range(option_length):
                decision = agent.act(observation, agent_state, deterministic, generator)
                action, log_prob, value, agent_state, *_ = decision
                if phase == 0 and decision.draws is not None:
                    upper.append(AttentionDraws(decision.draws, torch.zeros_like(value), log_prob, value))
                if phase == option_length - 1 and upper:
                    upper[-1] = upper[-1]._replace(rewards=_upper_rewards(decision, env))
                if forced_labels is not None and phase == option_length - 1:
                    action = {**action, "label": forced_labels[len(rows["labels"])]}
                observation, reward, terminated, truncated, _ = env.step(action)
                actions.append(action)
                if masks and phase == 0:
                    placed.append(env.state.mask)
                for name, part in (("rewards", reward), ("log_probs", log_prob), ("values", value)):
                    scores[name].append(part)
            final_state = env.state if final_state is None else _keep(ended, final_state, env.state)
            ended = terminated | truncated
            none = ended.new_zeros(0, env.num_envs, dtype=torch.int64)
            looked = [action["location"] for action in actions[1:-1]]
            rows["locations"].append(torch.stack(looked) if looked else none)
            rows["labels"].append(actions[-1]["label"])
            for name, parts in scores.items():
                rows[name].append(torch.stack(parts[1:]))  # attention earns nothing
    assert final_state is not None
    trajectory = Trajectory(
        env.state.example,
        **{name: torch.stack(row) for name, row in rows.items()},
        attention=each(lambda *parts: torch.stack(parts), *upper) if upper else None,
    )
    glimpses = trajectory.live.sum(dim=0) * env.simulation.rules.glimpses
    return Rollout(
        trajectory, final_state.predicted, final_state.looks, glimpses, torch.stack(placed) if masks else None
    )


def _upper_rewards(decision: Decision, env: HSALVectorEnv) -> Tensor:
    """The upper level's rewards ``[B]`` of the meta-step that this ``decision`` of a label ends."""
    if decision.log_probs is None:
        raise ConfigError(
            "An agent that draws its attention is rewarded by the probability of right labels; expected log_probs in its "
            "Decision of a label, got None."
        )
    state, rules = env.state, env.simulation.rules
    final = dynamics.is_final(state) if rules.protocol == "teacher" else None
    return upper_rewards(decision.log_probs, dynamics.label_rewards(state, rules), final)


def _keep(ended: Tensor, old: State, new: State) -> State:
    """``new``, but with the counts and sums of ``old`` in lanes that have ended."""
    return new._replace(
        predicted=torch.where(ended[:, None], old.predicted, new.predicted),
        looks=torch.where(ended[:, None], old.looks, new.looks),
    )
