"""The paper's agent: meta-controller and controller, joined by the differentiable interface."""

from __future__ import annotations

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
from hsal_env.perception.examples import native_bfloat16
from hsal_env.policies import winner_take_all
from hsal_env.spaces import ATTENTION_SCALE


class AgentState(NamedTuple):
    """Recurrent states of both levels: ``meta_state`` ``[B, 128]``, ``controller_state`` ``[B, 512]``."""

    meta_state: Tensor
    controller_state: Tensor


class ActorCritic(nn.Module):
    """The two-level recurrent actor-critic of Welleck et al.

    The meta-controller's attention is deterministic and has no reward of its own: it learns by back-propagation from
    the label's loss, through P and g_0 (paper, section 4.2: "a path of deterministic nodes").

    Args:
        world: the environment it is for.
        config: sizes and switches.
    """

    def __init__(self, world: World, config: AgentConfig) -> None:
        super().__init__()
        self.world, self.config = world, config
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

    def initial(self, lanes: int) -> AgentState:
        """Zeros."""
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
        """One decision per lane. Lanes may be in different phases; each group is decided in a batch.

        Args:
            observation: batched native observation.
            state: from :meth:`initial` or the previous decision.
            deterministic: take the most probable action (uniform locations are drawn all the same).
            generator: where samples come from.
        """
        phases = observation["phase"].unique().tolist()
        if len(phases) == 1:
            return self._act(observation, state, phases[0], deterministic, generator)
        log_prob = value = torch.zeros_like(state.meta_state[:, 0])
        action = {
            "attention": log_prob.new_zeros(len(log_prob), 4 * self.world.rules.components),
            "location": torch.zeros_like(observation["phase"]),
            "label": torch.zeros_like(observation["phase"]),
        }
        for phase in phases:
            group = (observation["phase"] == phase).nonzero().squeeze(1)
            decision = self._act(
                {name: part[group] for name, part in observation.items()},
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
        if phase == 0:
            attention, state = self.attend(observation["saliency"], observation["last_label"], state)
            zero = torch.zeros(len(attention), device=attention.device)
            return Decision({"attention": attention / ATTENTION_SCALE}, zero, zero, state)
        controller_state = self.read(observation, state.controller_state)
        state = state._replace(controller_state=controller_state)
        if phase <= self.world.rules.glimpses:
            name, log_probs = "location", self.controller.location_log_probs(controller_state, observation["priority"])
        else:
            name, log_probs = "label", self.controller.label_log_probs(controller_state)
        greedy = deterministic and not (name == "location" and self.config.location_policy == "uniform")
        chosen = log_probs.argmax(1) if greedy else sample(log_probs.exp(), generator)
        log_prob = log_probs.gather(1, chosen[:, None]).squeeze(1)
        return Decision({name: chosen}, log_prob, self.controller.values(controller_state), state)

    def attend(self, saliency: Tensor, last_label: Tensor, state: AgentState) -> tuple[Tensor, AgentState]:
        """The meta-controller's step: raw attention ``[B, 4K]``; a reset controller state (C1) unless it is carried."""
        rules = self.world.rules
        if self.config.attention_policy == "winner-take-all":
            attention, meta_state = winner_take_all(saliency, rules), state.meta_state
        else:
            with self._precision():
                attention, meta_state = self.meta_controller(saliency, last_label, state.meta_state)
        carry = self.config.controller_state == "carry"
        controller_state = state.controller_state if carry else torch.zeros_like(state.controller_state)
        return attention, AgentState(meta_state, controller_state)

    def read(self, seen: dict[str, Tensor], controller_state: Tensor) -> Tensor:
        """The controller's step over ``seen``: priority, last_label, last_location, glimpse. ``[B, hidden]``."""
        with self._precision():
            return self.controller(
                seen["priority"], seen["last_label"], seen["last_location"], seen["glimpse"], controller_state
            )

    def evaluate(self, trajectory: Trajectory) -> Evaluation:
        """Run the decision process again with gradient, taking the stored locations and labels.

        Attention is computed anew, so that what the label's loss says of P and g_0 reaches the meta-controller.
        """
        rules = self.world.rules
        world_state = dynamics.initial(trajectory.example, rules)
        state = self.initial(len(trajectory.live[0]))
        location_log_probs, label_log_probs, values, location_rewards, label_rewards = [], [], [], [], []
        for locations, label in zip(trajectory.locations, trajectory.labels, strict=True):
            attention, state = self.attend(world_state.saliency, world_state.last_label, state)
            world_state = dynamics.attend(world_state, attention, rules)
            for location in locations:
                hidden = self.read(world_state._asdict(), state.controller_state)
                state = state._replace(controller_state=hidden)
                location_log_probs.append(self.controller.location_log_probs(hidden, world_state.priority))
                location_rewards.append(F.location_rewards(world_state.priority))
                values.append(self.controller.values(hidden))
                world_state = dynamics.look(world_state, location, rules).state
            hidden = self.read(world_state._asdict(), state.controller_state)
            state = state._replace(controller_state=hidden)
            label_log_probs.append(self.controller.label_log_probs(hidden))
            label_rewards.append(dynamics.label_rewards(world_state, rules))
            values.append(self.controller.values(hidden))
            world_state = dynamics.name(world_state, label, rules).state
        steps, glimpses = trajectory.locations.shape[:2]

        def by_glimpse(parts: list[Tensor]) -> Tensor:
            if not parts:  # k = 0
                return trajectory.rewards.new_zeros(steps, 0, len(label), world_state.saliency[0].numel())
            return torch.stack(parts).unflatten(0, (steps, glimpses))

        return Evaluation(
            location_log_probs=by_glimpse(location_log_probs),
            label_log_probs=torch.stack(label_log_probs),
            values=torch.stack(values).unflatten(0, (steps, glimpses + 1)),
            location_rewards=by_glimpse(location_rewards),
            label_rewards=torch.stack(label_rewards),
        )

    def _precision(self) -> torch.autocast:
        device = self.controller.label.weight.device.type
        native = device != "cpu" or native_bfloat16()
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.config.bfloat16 and native)
