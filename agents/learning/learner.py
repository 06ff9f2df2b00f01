"""One update of an agent from one batch of images: a roll-out, its scores, and gradient steps."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from agents.config import LearnerConfig
from agents.learning import losses
from agents.learning.distributed import ALONE, Processes
from agents.learning.returns import advantages, standardised
from agents.protocol import Agent
from agents.rollout import Rollout, collect
from agents.sampling import SharedGenerator
from agents.trajectory import Evaluation, Trajectory
from hsal_env.errors import ActionError, ConfigError, DivergenceError
from hsal_env.vector_env import HSALVectorEnv


class UpperCredit(NamedTuple):
    """Credit for the draws of the upper level.

    Attributes:
        advantage: ``[M, B]``, standardised over the whole batch.
        returns: what its value regresses to ``[M, B]``: advantage plus value, before it is standardised.
    """

    advantage: Tensor
    returns: Tensor


class Part(NamedTuple):
    """The decisions that one gradient step learns from.

    Attributes:
        trajectory: the decisions in lanes of this process.
        advantage: ``[M, k + 1, B]``: their advantages. Only REINFORCE and PPO read them.
        share: number of these lanes, divided by the mean number of lanes per process. Every loss is a mean over this process's
            lanes; weighted by ``share``, the mean over processes is the mean over all lanes.
        upper: credit for the upper level's draws; None: it does not draw.
    """

    trajectory: Trajectory
    advantage: Tensor
    share: float
    upper: UpperCredit | None = None


def weights_cast_once(device: torch.device) -> torch.autocast:
    """A block in which autocast keeps its bfloat16 copies of weights. It drops them where its outermost block ends."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=False)


class Objective(nn.Module):
    """The loss of an agent on a part of a roll-out. It is a module, so that processes can average its gradients.

    Args:
        agent: the agent that learns.
        config: settings of its learning.
    """

    def __init__(self, agent: Agent, config: LearnerConfig) -> None:
        super().__init__()
        self.agent, self.config = agent, config

    def forward(self, part: Part, progress: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its terms before weighting, without gradient.

        Args:
            part: the decisions to learn from.
            progress: from 0 at the first update to 1 at the last one.
        """
        with weights_cast_once(part.advantage.device):
            evaluation = self.agent.evaluate(part.trajectory)
        terms = self._terms(part.trajectory, evaluation, part.advantage)
        if part.upper:
            if evaluation.attention is None:
                raise ConfigError(
                    "The agent drew its attention; expected the scores of the draws as attention in the Evaluation that its "
                    "evaluate returns, got None."
                )
            clip_coef = self.config.clip_coef if self.config.algorithm == "ppo" else None
            terms |= losses.upper_level(part.trajectory, evaluation.attention, *part.upper, clip_coef)
        terms = {name: part.share * term for name, term in terms.items()}
        loss = torch.stack([self._weight(name, progress) * term for name, term in terms.items()]).sum()
        return loss, {name: term.detach() for name, term in terms.items()}

    def _terms(self, trajectory: Trajectory, evaluation: Evaluation, advantage: Tensor) -> dict[str, Tensor]:
        config = self.config
        if config.algorithm == "cross-entropy":
            return losses.cross_entropy(trajectory, evaluation)
        if config.algorithm == "ppo":
            return losses.ppo(trajectory, evaluation, advantage, config.clip_coef)
        if config.algorithm == "multiset-loss":
            return losses.multiset_loss(trajectory, evaluation)
        if config.estimator == "exact":
            return losses.expected_reward(trajectory, evaluation)
        if config.estimator == "log":
            return losses.expected_success(trajectory, evaluation)
        if config.estimator == "assigned":
            return losses.assigned_success(trajectory, evaluation)
        return losses.reinforce(trajectory, evaluation, advantage)

    def _weight(self, term: str, progress: float = 0.0) -> float:
        config = self.config
        first = config.ent_coef if config.location_ent_coef is None else config.location_ent_coef
        last = first if config.last_location_ent_coef is None else config.last_location_ent_coef
        return {
            "label": 1.0,
            "location": config.location_coef,
            "stop": config.stop_coef,
            "value": config.vf_coef,
            "entropy": config.ent_coef,
            "location_entropy": first + (last - first) * progress,
            "upper": config.upper_coef,
            "upper_value": config.upper_vf_coef,
            "upper_entropy": config.upper_ent_coef,
        }[term]


def all_finite(agent: Agent) -> bool:
    """Whether every weight of the agent is a finite number."""
    return all(bool(tensor.isfinite().all()) for tensor in agent.state_dict().values())


def parameter_groups(agent: Agent, config: LearnerConfig) -> list[dict[str, Any]]:
    """The agent's weights in groups, each with a share of the learning rate: meta-controller, location head, all others.

    The gradient of a meta-controller whose attention is learned, and not drawn, comes through the mask alone. At first it is a
    hundredth of the controller's, and mostly noise; but Adam divides it by its own size, and takes steps as long as the
    controller's. Then masks wander to the edges of the map before the labels can teach them anything.

    The location head's gradient comes from its own reward alone. With a share of 1 it is among the others.
    """
    shares = {"meta_controller.": config.meta_lr_scale, "controller.location.": config.location_lr_scale, "": 1.0}
    if config.location_lr_scale == 1:
        del shares["controller.location."]  # so that checkpoints without such a share can be resumed
    groups: dict[str, dict[str, Any]] = {part: {"params": [], "lr_scale": share} for part, share in shares.items()}
    for name, weight in agent.named_parameters():
        part = next(part for part in groups if name.startswith(part))
        groups[part]["params"].append(weight)
    return list(groups.values())


class Learner:
    """Updates an agent, and holds its optimiser.

    Every random number depends on the seed and the step alone, so a resumed run equals an uninterrupted one. Several processes
    draw the samples that one process would draw, and average their gradients. So they all have the same weights, which are
    those of one process up to rounding.

    Args:
        agent: the agent that learns.
        config: settings of its learning.
        num_updates: length of the schedules of the learning rate and the entropy bonus of locations.
        seed: seed of samples and shuffles.
        processes: the processes that share the batch.

    Raises:
        ConfigError: the processes cannot share the batch equally.
    """

    def __init__(
        self, agent: Agent, config: LearnerConfig, num_updates: int, seed: int = 0, processes: Processes = ALONE
    ) -> None:
        self.agent, self.config, self.num_updates, self.seed = agent, config, num_updates, seed
        self.processes = processes
        self.lanes = self.processes.lanes(config.batch_size)
        self.objective = self.processes.parallel(Objective(agent, config))
        self.optimiser = torch.optim.Adam(parameter_groups(agent, config), lr=config.learning_rate)
        self.step = 0

    def restore(self, optimiser: dict[str, Any], step: int) -> None:
        """Go on from the state of an optimiser, after ``step`` updates.

        Raises:
            ValueError: they do not fit this agent or the number of updates; other exceptions where they are of other types.
        """
        if type(step) is not int or not 0 <= step <= self.num_updates:
            raise ValueError(f"expected step in 0..{self.num_updates}, got {step!r:.60}")
        self.optimiser.load_state_dict(optimiser)
        for weight, state in self.optimiser.state.items():
            if any(moment.dim() and moment.shape != weight.shape for moment in state.values()):
                raise ValueError("the optimiser's state is of other weights")
        self.step = step

    def update(self, env: HSALVectorEnv, indices: np.ndarray) -> dict[str, Tensor]:
        """Roll out on the canvases ``indices`` and learn from it.

        Args:
            env: with as many lanes as this process has of the batch.
            indices: ``[B]``, of the whole batch.

        Returns:
            The numbers to log, which docs/learning/runs.md explains: float64 scalars on the environment's device. Pass them to
            :meth:`numbers`.

        Raises:
            DivergenceError: actions could not be drawn, since weights are not finite.
        """
        config = self.config
        device = env.simulation.device
        own = indices[self.lanes]
        sampling, shuffling = self._generators(device)
        forced = None
        if config.algorithm == "cross-entropy":
            env.reset(options={"index": own})
            counts = self._of_all(env.state.example.counts)
            forced = losses.shuffled_labels(counts, env.simulation.rules.max_meta_steps, shuffling)[:, self.lanes]
        try:
            with weights_cast_once(device):
                rollout = collect(env, self.agent, own, generator=sampling, forced_labels=forced)
        except ActionError as error:
            if all_finite(self.agent):
                raise
            raise self._divergence("the weights", self.step) from error
        learning_rate = config.learning_rate * self._schedule()
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate * group["lr_scale"]
        terms: dict[str, Tensor] = {}
        grad_norm = torch.zeros((), device=device)
        for part in self._minibatches(rollout, shuffling):
            loss, terms = self.objective(part, self.step / max(1, self.num_updates - 1))
            self.optimiser.zero_grad()
            loss.backward()
            grad_norm = torch.nn.utils.clip_grad_norm_(self.agent.parameters(), config.max_grad_norm)
            self.optimiser.step()
        self.step += 1
        return self._log(rollout, terms, grad_norm, learning_rate)

    def numbers(self, logged: list[dict[str, Tensor]]) -> list[dict[str, float]]:
        """What the last updates logged, as numbers. An accelerator is waited for here, and not in every update.

        Raises:
            DivergenceError: a loss or the norm of the gradient is not finite. Then the weights are worth nothing.
        """
        table = torch.stack([torch.stack(list(row.values())) for row in logged]).tolist()
        rows = [dict(zip(row, numbers, strict=True)) for row, numbers in zip(logged, table, strict=True)]
        for update, row in enumerate(rows, start=self.step - len(rows) + 1):
            if wrong := [name for name, value in row.items() if not math.isfinite(value)]:
                raise self._divergence(", ".join(wrong), update)
        return rows

    def _divergence(self, what: str, update: int) -> DivergenceError:
        return DivergenceError(
            f"Training diverged: {what} not finite in update {update} of {self.num_updates}. The last checkpoint is as it "
            f"was. Start again with a lower learning rate than {self.config.learning_rate:g} (--learning-rate)."
        )

    def _generators(self, device: torch.device) -> tuple[torch.Generator, torch.Generator]:
        """Two generators: for actions, and for shuffles."""
        entropy = self.seed * 1_000_003 + self.step
        sampling = torch.Generator(device).manual_seed(entropy)
        shuffling = torch.Generator().manual_seed(entropy + (1 << 62))  # a seed that no step uses for actions
        if self.processes.count > 1:
            own = entropy + (self.processes.rank + 1 << 53)
            sampling = SharedGenerator.seeded(device, sampling, own, self.lanes, self.config.batch_size)
        return sampling, shuffling

    def _of_all(self, own: Tensor) -> Tensor:
        """Collect ``[B / N, ...]`` of each process's lanes into ``[B, ...]`` of all lanes."""
        everyone = own.new_zeros(len(own) * self.processes.count, *own.shape[1:])
        everyone[self.processes.lanes(len(everyone))] = own
        return self.processes.total(everyone)

    def _minibatches(self, rollout: Rollout, generator: torch.Generator) -> list[Part]:
        """This process's part of every gradient step.

        All processes take the same number of steps. How many lanes of a minibatch are a process's own is random.
        """
        config, trajectory = self.config, rollout.trajectory
        advantage = advantages(trajectory.rewards, trajectory.values, trajectory.live, config.gamma, config.gae_lambda)
        upper = self._upper_credit(trajectory)
        if config.algorithm != "ppo":
            return [Part(trajectory, advantage, 1.0, upper)]
        lanes, processes = trajectory.labels.shape[1], self.processes
        first = processes.rank * lanes
        parts = []
        for _ in range(config.update_epochs):
            order = torch.randperm(lanes * processes.count, generator=generator)
            for minibatch in order.chunk(config.num_minibatches):
                chosen = minibatch[(first <= minibatch) & (minibatch < first + lanes)] - first
                share = len(chosen) * processes.count / len(minibatch)
                if not share:
                    chosen = torch.zeros(1, dtype=torch.int64)  # any lane: the loss is multiplied by a share of 0
                chosen = chosen.to(advantage.device)
                own = upper and UpperCredit(*(part[:, chosen] for part in upper))
                parts.append(Part(trajectory.lanes(chosen), advantage[..., chosen], share, own))
        return parts

    def _upper_credit(self, trajectory: Trajectory) -> UpperCredit | None:
        """Credit for the upper level's draws, with a discount and a lambda of their own, from one meta-step to the next."""
        config, attention = self.config, trajectory.attention
        if attention is None:
            return None
        rewards, values = attention.rewards[:, None], attention.values[:, None]
        advantage = advantages(rewards, values, trajectory.live, config.upper_gamma, config.upper_gae_lambda).squeeze(1)
        return UpperCredit(standardised(advantage, trajectory.live, self.processes.total), advantage + attention.values)

    def _schedule(self) -> float:
        done = self.step / self.num_updates
        if done < self.config.warmup:
            return (self.step + 1) / (self.config.warmup * self.num_updates + 1)
        return 0.5 * (1 + math.cos(math.pi * (done - self.config.warmup) / (1 - self.config.warmup + 1e-12)))

    def _log(
        self, rollout: Rollout, terms: dict[str, Tensor], grad_norm: Tensor, learning_rate: float
    ) -> dict[str, Tensor]:
        trajectory = rollout.trajectory
        named = trajectory.live & ~trajectory.final
        looked = trajectory.live[:, None].expand_as(trajectory.rewards[:, :-1])
        of_labels = torch.where(named, trajectory.rewards[:, -1], 0.0)
        of_locations = torch.where(looked, trajectory.rewards[:, :-1], 0.0)
        upper = trajectory.attention
        of_attention = torch.where(trajectory.live, upper.rewards, 0.0) if upper else torch.zeros_like(of_labels)
        counts = [named.sum(), looked.sum(), trajectory.live.sum(), rollout.glimpses.sum()]
        earned = [of_labels.sum(), of_locations.sum(), of_attention.sum()]
        sums = [*terms.values(), *earned, *rollout.looks.sum(dim=0), *counts]
        *means, label, location, attention, at, uniform, labels, looks, attended, glimpses = self.processes.total(
            torch.stack([number.double() for number in sums])
        )
        return {
            **{f"loss/{name}": mean / self.processes.count for name, mean in zip(terms, means, strict=True)},
            "reward/label": label / labels.clamp(min=1),
            "reward/location": location / looks.clamp(min=1),
            **({"reward/upper": attention / attended.clamp(min=1)} if upper else {}),
            "attention/saliency": at / glimpses.clamp(min=1),
            "attention/saliency_ratio": torch.where(uniform > 0, at / uniform, 0.0),
            "optimiser/grad_norm": grad_norm.double(),
            "optimiser/learning_rate": label.new_tensor(learning_rate),
        }
