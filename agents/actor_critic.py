"""The paper's agent: a meta-controller and a controller, joined by the differentiable interface.

``examples/paper_agent.py`` is the same agent without the switches, in one file, and is shorter to read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from agents.config import AgentConfig
from agents.controller import Controller
from agents.meta_controller import MetaController
from agents.protocol import Decision, World
from agents.sampling import sample
from agents.trajectory import Evaluation, Trajectory
from hsal_env import dynamics
from hsal_env import functional as F
from hsal_env.perception.precision import has_matrix_unit
from hsal_env.policies import winner_take_all
from hsal_env.spaces import attention_action


class AgentState(NamedTuple):
    """The recurrent states of both levels: ``[B, meta_hidden]`` and ``[B, controller_hidden]``."""

    meta_state: Tensor
    controller_state: Tensor


class ActorCritic(nn.Module):
    """The two-level recurrent actor-critic of Welleck et al.

    The meta-controller's attention is deterministic and has no reward of its own. It learns by back-propagation from the
    label's loss, through P and g_0 (paper, section 4.2: "a path of deterministic nodes").

    Args:
        world: what the agent must know of its environment.
        config: sizes and switches.
    """

    def __init__(self, world: World, config: AgentConfig) -> None:
        super().__init__()
        self.world, self.config = world, config
        self._folded: tuple[Tensor, Tensor] | None = None
        cells, labels = world.map_size[0] * world.map_size[1], world.num_classes + 1
        self.meta_controller = MetaController(
            cells, labels, world.rules.components, config.meta_hidden, grid=config.attention_init == "grid"
        )
        self.controller = Controller(
            cells,
            labels,
            world.channels,
            config.controller_hidden,
            config.location_hidden,
            config.detach_location_head,
            config.location_prior,
            config.location_policy,
        )

    @contextmanager
    def weights_fixed(self) -> Iterator[None]:
        """A block of calls of :meth:`act` in which the weights do not change.

        Within it, what depends on the weights alone is computed once.
        """
        self._folded = self.controller.folded()
        try:
            yield
        finally:
            self._folded = None

    def initial(self, lanes: int) -> AgentState:
        """The states at the start of an episode: zeros."""
        weight = self.controller.label.weight
        return AgentState(
            weight.new_zeros(lanes, self.config.meta_hidden), weight.new_zeros(lanes, self.config.controller_hidden)
        )

    def act(
        self,
        observation: dict[str, Tensor],
        state: AgentState,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
    ) -> Decision:
        """Make one decision per lane. Lanes may be in different phases: those of one phase are decided in one batch.

        Args:
            observation: batched native observation: parts of :class:`hsal_env.dynamics.State` under the same names.
            state: from :meth:`initial` or the previous decision.
            deterministic: take the most probable action. Uniform locations are drawn even then.
            generator: draws the samples.
        """
        phases = observation["phase"].unique().tolist()
        if len(phases) == 1:
            return self._act(observation, state, phases[0], deterministic, generator)
        log_prob = value = torch.zeros_like(state.meta_state[:, 0])
        action = {
            "attention": log_prob.new_zeros(len(log_prob), 4 * self.world.rules.components),
            "location": torch.zeros_like(observation["last_location"]),
            "label": torch.zeros_like(observation["last_label"]),
        }
        for phase in phases:
            group = (observation["phase"] == phase).nonzero().squeeze(1).to(log_prob.device)
            decision = self._act(
                {name: part[group] for name, part in observation.items() if name != "phase"},
                AgentState(state.meta_state[group], state.controller_state[group]),
                phase,
                deterministic,
                generator,
            )
            action |= {name: action[name].index_copy(0, group, chosen) for name, chosen in decision.action.items()}
            log_prob, value = (
                log_prob.index_copy(0, group, decision.log_prob),
                value.index_copy(0, group, decision.value),
            )
            state = AgentState(
                state.meta_state.index_copy(0, group, decision.state.meta_state),
                state.controller_state.index_copy(0, group, decision.state.controller_state),
            )
        return Decision(action, log_prob, value, state)

    def _act(
        self,
        observation: dict[str, Tensor],
        state: AgentState,
        phase: int,
        deterministic: bool,
        generator: torch.Generator | None,
    ) -> Decision:
        """One decision of lanes that are all at ``phase``."""
        if phase == 0:
            raw, state = self.attend(observation["saliency"], observation["last_label"], state)
            zero = raw.new_zeros(len(raw))
            return Decision({"attention": attention_action(raw)}, zero, zero, state)
        begins = phase == 1 and self.config.controller_state == "reset"
        controller_state = self.read(observation, None if begins else state.controller_state, self._folded)
        state = state._replace(controller_state=controller_state)
        if phase <= self.world.rules.glimpses:
            name, log_probs = "location", self.controller.location_log_probs(controller_state, observation["priority"])
        else:
            name, log_probs = "label", self.controller.label_log_probs(controller_state)
        greedy = deterministic and not (name == "location" and self.config.location_policy == "uniform")
        chosen = log_probs.argmax(1) if greedy else sample(log_probs.exp(), generator)
        log_prob = log_probs.gather(1, chosen[:, None]).squeeze(1)
        return Decision({name: chosen}, log_prob, self.controller.values(controller_state), state, log_probs)

    def attend(self, saliency: Tensor, last_label: Tensor, state: AgentState) -> tuple[Tensor, AgentState]:
        """The meta-controller's step.

        Returns:
            Raw attention ``[B, 4K]``, and the states after it. The controller's state is zero (C1), unless it is carried.
        """
        rules = self.world.rules
        if self.config.attention_policy == "winner-take-all":
            attention, meta_state = winner_take_all(saliency, rules), state.meta_state
        else:
            with self._precision():
                attention, meta_state = self.meta_controller(saliency, last_label, state.meta_state)
        carry = self.config.controller_state == "carry"
        controller_state = state.controller_state if carry else torch.zeros_like(state.controller_state)
        return attention, AgentState(meta_state, controller_state)

    def read(
        self,
        seen: dict[str, Tensor],
        controller_state: Tensor | None,
        folded: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The controller's step over priority, last_label, last_location and glimpse: its new state ``[B, hidden]``."""
        with self._precision():
            return self.controller(
                seen["priority"], seen["last_label"], seen["last_location"], seen["glimpse"], controller_state, folded
            )

    def evaluate(self, trajectory: Trajectory) -> Evaluation:
        """Run the decision process again with gradient, taking the stored locations and labels.

        Attention is computed anew, so that the gradient of the label's loss reaches the meta-controller through P and g_0.
        A lane whose episode has ended is left out: its scores are 0.
        """
        rules = self.world.rules
        # longest episodes first, so that the live lanes are the first ones at every meta-step
        order = trajectory.live.sum(dim=0).argsort(descending=True, stable=True)
        stored = trajectory.lanes(order)
        world_state, state = dynamics.initial(stored.example, rules), self.initial(len(order))
        folded = self.controller.folded()
        location_log_probs, label_log_probs, values, location_rewards, label_rewards = [], [], [], [], []
        for step, live in enumerate(stored.live.sum(dim=1).tolist()):
            if not live:
                break
            world_state, state = dynamics.first_lanes(world_state, live), dynamics.first_lanes(state, live)
            attention, state = self.attend(world_state.saliency, world_state.last_label, state)
            world_state = dynamics.attend(world_state, attention, rules)
            hidden = None if self.config.controller_state == "reset" else state.controller_state
            for location in stored.locations[step, :, :live]:
                hidden = self.read(world_state._asdict(), hidden, folded)
                location_log_probs.append(self.controller.location_log_probs(hidden, world_state.priority))
                location_rewards.append(F.location_rewards(world_state.priority))
                values.append(self.controller.values(hidden))
                world_state = dynamics.look(world_state, location, rules).state
            hidden = self.read(world_state._asdict(), hidden, folded)
            label_log_probs.append(self.controller.label_log_probs(hidden))
            label_rewards.append(dynamics.label_rewards(world_state, rules))
            values.append(self.controller.values(hidden))
            state = state._replace(controller_state=hidden)
            world_state = dynamics.name_object(world_state, stored.labels[step, :live], rules).state
        (steps, glimpses, lanes), back = trajectory.locations.shape, order.argsort()
        cells, labels = world_state.saliency[0].numel(), self.world.num_classes + 1
        return Evaluation(
            location_log_probs=_assembled(location_log_probs, (steps, glimpses, lanes, cells), back),
            label_log_probs=_assembled(label_log_probs, (steps, lanes, labels), back),
            values=_assembled(values, (steps, glimpses + 1, lanes), back),
            location_rewards=_assembled(location_rewards, (steps, glimpses, lanes, cells), back),
            label_rewards=_assembled(label_rewards, (steps, lanes, labels), back),
        )

    def _precision(self) -> torch.autocast:
        device = self.controller.label.weight.device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.config.bfloat16 and has_matrix_unit(device))


def _assembled(parts: list[Tensor], shape: tuple[int, ...], back: Tensor) -> Tensor:
    """Join the ``[live, ...]`` of each decision into ``shape`` ``[M, ..., B, ...]``.

    Lanes that are not live get 0. ``back`` restores the order of the lanes.
    """
    padded = [torch.cat([part, part.new_zeros(len(back) - len(part), *part.shape[1:])]) for part in parts]
    rows = torch.stack(padded)[:, back].flatten() if parts else back.new_zeros(0, dtype=torch.float32)
    return torch.cat([rows, rows.new_zeros(math.prod(shape) - len(rows))]).view(shape)
