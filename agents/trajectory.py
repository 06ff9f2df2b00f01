"""Trajectories: the decisions of a roll-out, stored for an update.

All lanes begin together, so decisions are stored by meta-step: M meta-steps, k glimpses, B lanes. The activation volume is
stored once per lane.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents.protocol import Actor, FixesWeights
from hsal_env.dynamics import Example, State

if TYPE_CHECKING:
    from hsal_env.vector_env import HSALVectorEnv


class Trajectory(NamedTuple):
    """The decisions of B lanes.

    Attributes:
        example: volume, raw saliency, counts and index of each lane.
        locations: int64 ``[M, k, B]``.
        labels: int64 ``[M, B]``.
        rewards: ``[M, k + 1, B]``: what the environment paid for the k locations and the label.
        log_probs: ``[M, k + 1, B]``: their log-probabilities under the policy that took them.
        values: ``[M, k + 1, B]``: the state values that this policy estimated.
        live: bool ``[M, B]``: the lane's episode had not ended before this meta-step.
    """

    example: Example
    locations: Tensor
    labels: Tensor
    rewards: Tensor
    log_probs: Tensor
    values: Tensor
    live: Tensor

    @property
    def final(self) -> Tensor:
        """bool ``[M, B]``: whether this is meta-step m + 1 of a lane of m objects, at which the agent should stop."""
        return torch.arange(len(self.labels), device=self.labels.device)[:, None] == self.example.counts.sum(dim=1)

    def lanes(self, chosen: Tensor) -> Trajectory:
        """The trajectory of the lanes with the indices ``chosen``."""
        example = Example(*(part[chosen] for part in self.example))
        return Trajectory(example, *(part[..., chosen] for part in self[1:]))


class Evaluation(NamedTuple):
    """What ``agent.evaluate(trajectory)`` returns, with gradient. Where a lane is not live, any finite numbers will do.

    Attributes:
        location_log_probs: ``[M, k, B, H W]``.
        label_log_probs: ``[M, B, C + 1]``.
        values: ``[M, k + 1, B]``.
        location_rewards: ``[M, k, B, H W]``: what each location would earn, without gradient.
        label_rewards: ``[M, B, C + 1]``: what each label would earn.
    """

    location_log_probs: Tensor
    label_log_probs: Tensor
    values: Tensor
    location_rewards: Tensor
    label_rewards: Tensor


class Rollout(NamedTuple):
    """A trajectory and how its episodes ended.

    Attributes:
        trajectory: the decisions.
        predicted: int64 ``[B, C]``: how often each label was named in each lane.
        looks: ``[B, 2]``: sums over the episode of the raw saliency at its glimpses, and at uniformly drawn ones.
        glimpses: ``[B]``: number of glimpses in these sums.
    """

    trajectory: Trajectory
    predicted: Tensor
    looks: Tensor
    glimpses: Tensor


@torch.no_grad()
def collect(
    env: HSALVectorEnv,
    agent: Actor,
    indices: np.ndarray,
    deterministic: bool = False,
    generator: torch.Generator | None = None,
    forced_labels: Tensor | None = None,
) -> Rollout:
    """Run one episode per lane, on the canvases ``indices`` ``[B]``.

    Args:
        env: in the native view, with ``output="torch"`` and auto-reset disabled.
        agent: the agent that plays, on the environment's device.
        indices: numbers of the canvases.
        deterministic: take the most probable actions.
        generator: draws the samples.
        forced_labels: int64 ``[M, B]``: labels to take in place of the agent's.
    """
    observation, _ = env.reset(options={"index": indices})
    agent_state = agent.initial(env.num_envs)
    ended = torch.zeros(env.num_envs, dtype=torch.bool, device=env.simulation.device)
    final_state: State | None = None
    rows: dict[str, list[Tensor]] = {
        name: [] for name in ("locations", "labels", "rewards", "log_probs", "values", "live")
    }
    option_length = env.simulation.rules.option_length
    with agent.weights_fixed() if isinstance(agent, FixesWeights) else nullcontext():
        for _ in range(env.simulation.rules.max_meta_steps):
            if ended.is_cpu and bool(ended.all()):  # an accelerator would have to be waited for
                break
            actions: list[dict[str, Tensor]] = []
            scores: dict[str, list[Tensor]] = {"rewards": [], "log_probs": [], "values": []}
            rows["live"].append(~ended)
            for phase in range(option_length):
                action, log_prob, value, agent_state, *_ = agent.act(observation, agent_state, deterministic, generator)
                if forced_labels is not None and phase == option_length - 1:
                    action = {**action, "label": forced_labels[len(rows["labels"])]}
                observation, reward, terminated, truncated, _ = env.step(action)
                actions.append(action)
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
    trajectory = Trajectory(env.state.example, **{name: torch.stack(row) for name, row in rows.items()})
    glimpses = trajectory.live.sum(dim=0) * env.simulation.rules.glimpses
    return Rollout(trajectory, final_state.predicted, final_state.looks, glimpses)


def _keep(ended: Tensor, old: State, new: State) -> State:
    """``new``, but with the counts and sums of ``old`` in lanes that have ended."""
    return new._replace(
        predicted=torch.where(ended[:, None], old.predicted, new.predicted),
        looks=torch.where(ended[:, None], old.looks, new.looks),
    )


def taken(trajectory: Trajectory, evaluation: Evaluation) -> Tensor:
    """Log-probabilities of the decisions taken, ``[M, k + 1, B]``."""
    location = evaluation.location_log_probs.gather(-1, trajectory.locations[..., None]).squeeze(-1)
    label = evaluation.label_log_probs.gather(-1, trajectory.labels[..., None]).squeeze(-1)
    return torch.cat([location, label[:, None]], dim=1)
