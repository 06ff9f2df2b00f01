"""The paper's agent: a meta-controller and a controller, joined by the differentiable interface.

``examples/paper_agent.py`` is the same agent without the switches, in one file, and is shorter to read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from agents.config import AgentConfig
from agents.controller import Controller
from agents.drawn_attention import AttentionDraw, DrawnAttention, of_cells
from agents.meta_controller import MetaController
from agents.protocol import Decision, World
from agents.sampling import sample
from agents.trajectory import AttentionScores, Evaluation, Trajectory, each
from hsal_env import dynamics
from hsal_env import functional as F
from hsal_env.errors import ConfigError
from hsal_env.perception.precision import has_matrix_unit
from hsal_env.policies import winner_take_all
from hsal_env.spaces import attention_action


class AgentState(NamedTuple):
    """What an agent keeps from one decision to the next.

    Attributes:
        meta_state: recurrent state of the meta-controller, ``[B, state_size]``.
        controller_state: recurrent state of the controller, ``[B, controller_hidden]``.
        stopped: probability of having said stop by now, ``1 - prod_t (1 - p_t(stop))`` over the labels so far, ``[B, 1]``.
    """

    meta_state: Tensor
    controller_state: Tensor
    stopped: Tensor


class Attended(NamedTuple):
    """A step of a meta-controller that draws.

    Attributes:
        attention: raw ``[B, 4K]``.
        state: the states after it.
        drawn: what was drawn.
        scores: of the draw, with gradient.
        log_probs: of all cells ``[B, H W]``.
    """

    attention: Tensor
    state: AgentState
    drawn: AttentionDraw
    scores: AttentionScores
    log_probs: Tensor


class ActorCritic(nn.Module):
    """The two-level recurrent actor-critic of Welleck et al.

    The meta-controller's attention is deterministic and has no reward of its own. It learns by back-propagation from the
    label's loss, through P and g_0 (paper, section 4.2: "a path of deterministic nodes"). With ``attention_policy="drawn"`` the
    meta-controller is a policy instead (:mod:`agents.drawn_attention`): it learns by the score function from rewards of its own.

    Args:
        world: what the agent must know of its environment.
        config: sizes and switches.
    """

    def __init__(self, world: World, config: AgentConfig) -> None:
        super().__init__()
        self.world, self.config = world, config
        self._folded: tuple[Tensor, Tensor] | None = None
        cells, labels = world.map_size[0] * world.map_size[1], world.num_classes + 1
        self.meta_controller: MetaController | DrawnAttention
        if config.attention_policy == "drawn":
            self.meta_controller = DrawnAttention(
                world.map_size, labels, world.rules, config.meta_hidden, config.location_hidden, config.saliency_prior
            )
        else:
            self.meta_controller = MetaController(
                cells, labels, world.rules.components, config.meta_hidden, grid=config.attention_init == "grid"
            )
        self.controller = Controller(
            cells,
            labels,
            world.channels,
            config.controller_hidden,
            config.location_hidden,
            config.priority_gain,
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
            weight.new_zeros(lanes, self.meta_controller.state_size),
            weight.new_zeros(lanes, self.config.controller_hidden),
            weight.new_zeros(lanes, 1),
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
            deterministic: take the most probable action; when that is to stop, :attr:`AgentConfig.stop` says. Uniform locations
                are drawn even then.
            generator: draws the samples.
        """
        phases = observation["phase"].unique().tolist()
        if len(phases) == 1:
            return self._act(observation, state, phases[0], deterministic, generator)
        log_prob = value = torch.zeros_like(state.meta_state[:, 0])
        draws, entropy = None, None
        action = {
            "attention": log_prob.new_zeros(len(log_prob), 4 * self.world.rules.components),
            "location": torch.zeros_like(observation["last_location"]),
            "label": torch.zeros_like(observation["last_label"]),
        }
        for phase in phases:
            group = (observation["phase"] == phase).nonzero().squeeze(1).to(log_prob.device)
            decision = self._act(
                {name: part[group] for name, part in observation.items() if name != "phase"},
                AgentState(*(part[group] for part in state)),
                phase,
                deterministic,
                generator,
            )
            action |= {name: action[name].index_copy(0, group, chosen) for name, chosen in decision.action.items()}
            log_prob, value = (
                log_prob.index_copy(0, group, decision.log_prob),
                value.index_copy(0, group, decision.value),
            )
            if decision.entropy is not None:
                among = partial(_spread, group=group, lanes=len(observation["phase"]))
                draws, entropy = each(among, decision.draws), among(decision.entropy)
            pairs = zip(state, decision.state, strict=True)
            state = AgentState(*(before.index_copy(0, group, after) for before, after in pairs))
        return Decision(action, log_prob, value, state, draws=draws, entropy=entropy)

    def _act(
        self,
        observation: dict[str, Tensor],
        state: AgentState,
        phase: int,
        deterministic: bool,
        generator: torch.Generator | None,
    ) -> Decision:
        """One decision of lanes that are all at ``phase``."""
        if phase == 0 and isinstance(self.meta_controller, DrawnAttention):
            attended = self.draw(observation["saliency"], observation["last_label"], state, deterministic, generator)
            log_prob, value, entropy = attended.scores
            action = {"attention": attention_action(attended.attention)}
            return Decision(action, log_prob, value, attended.state, attended.log_probs, attended.drawn, entropy)
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
        if name == "label":
            state = state._replace(stopped=1 - (1 - state.stopped) * (1 - log_probs[:, -1:].exp()))
        if not deterministic or (name == "location" and self.config.location_policy == "uniform"):
            chosen = sample(log_probs.exp(), generator)
        elif name == "label" and self.config.stop == "median":
            chosen = torch.where(state.stopped[:, 0] < 0.5, log_probs[:, :-1].argmax(1), self.world.num_classes)
        else:
            chosen = log_probs.argmax(1)
        log_prob = log_probs.gather(1, chosen[:, None]).squeeze(1)
        return Decision({name: chosen}, log_prob, self.controller.values(controller_state), state, log_probs)

    def attend(self, saliency: Tensor, last_label: Tensor, state: AgentState) -> tuple[Tensor, AgentState]:
        """The meta-controller's step. Attention that is drawn takes its mode.

        Returns:
            Raw attention ``[B, 4K]``, and the states after it. The controller's state is zero (C1), unless it is carried.
        """
        rules = self.world.rules
        if isinstance(self.meta_controller, DrawnAttention):
            attended = self.draw(saliency, last_label, state, deterministic=True)
            return attended.attention, attended.state
        if self.config.attention_policy == "winner-take-all":
            attention, meta_state = winner_take_all(saliency, rules), state.meta_state
        else:
            with self._precision():
                attention, meta_state = self.meta_controller(saliency, last_label, state.meta_state)
        return attention, self._begun(meta_state, state)

    def draw(
        self,
        saliency: Tensor,
        last_label: Tensor,
        state: AgentState,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
        drawn: AttentionDraw | None = None,
    ) -> Attended:
        """The meta-controller's step where its attention is drawn.

        Args:
            saliency: S_t ``[B, H, W]``.
            last_label: ``[B]``.
            state: the states before it.
            deterministic: take the mode.
            generator: draws.
            drawn: an earlier draw, which is scored. None: a new one is made.

        Raises:
            ConfigError: this agent's attention is deterministic.
        """
        meta = self.drawn_attention()
        choices, value, after = self.score_cells(saliency, last_label, state)
        if drawn is None:
            drawn = meta.draw(choices, saliency, deterministic, generator)
        scores = meta.scores(drawn, choices, saliency, value)
        return Attended(meta.attention(drawn), after, drawn, scores, of_cells(choices))

    def score_cells(self, saliency: Tensor, last_label: Tensor, state: AgentState) -> tuple[Tensor, Tensor, AgentState]:
        """The first half of :meth:`draw`: log-probabilities of choices ``[B, 2, H W]``, the value ``[B]``, the states after it.

        Raises:
            ConfigError: this agent's attention is deterministic.
        """
        meta = self.drawn_attention()
        with self._precision():
            choices, value, meta_state = meta(saliency, last_label, state.meta_state)
        return choices, value, self._begun(meta_state, state)

    def drawn_attention(self) -> DrawnAttention:
        """The meta-controller of an agent that draws its attention.

        Raises:
            ConfigError: this agent's attention is deterministic.
        """
        meta = self.meta_controller
        if not isinstance(meta, DrawnAttention):
            raise ConfigError(
                f"Expected an agent with attention_policy='drawn'; got {self.config.attention_policy!r}, which draws nothing."
            )
        return meta

    def _begun(self, meta_state: Tensor, before: AgentState) -> AgentState:
        """The states with which a meta-step begins."""
        carry = self.config.controller_state == "carry"
        controller_state = before.controller_state if carry else torch.zeros_like(before.controller_state)
        return before._replace(meta_state=meta_state, controller_state=controller_state)

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
        Attention that was drawn is taken as stored, and scored.
        A lane whose episode has ended is left out: its scores are 0.
        """
        rules = self.world.rules
        # longest episodes first, so that the live lanes are the first ones at every meta-step
        order = trajectory.live.sum(dim=0).argsort(descending=True, stable=True)
        stored = trajectory.lanes(order)
        world_state, state = dynamics.initial(stored.example, rules), self.initial(len(order))
        folded = self.controller.folded()
        location_log_probs, label_log_probs, values, location_rewards, label_rewards = [], [], [], [], []
        drawn, scores = self._stored_draws(stored), []
        for step, live in enumerate(stored.live.sum(dim=1).tolist()):
            if not live:
                break
            world_state, state = dynamics.first_lanes(world_state, live), dynamics.first_lanes(state, live)
            if drawn is None:
                attention, state = self.attend(world_state.saliency, world_state.last_label, state)
            else:
                now = AttentionDraw(*(part[step, :live] for part in drawn))
                attended = self.draw(world_state.saliency, world_state.last_label, state, drawn=now)
                attention, state = attended.attention, attended.state
                scores.append(attended.scores)
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
            attention=None
            if drawn is None
            else AttentionScores(*(_assembled(list(part), (steps, lanes), back) for part in zip(*scores, strict=True))),
        )

    def _stored_draws(self, trajectory: Trajectory) -> AttentionDraw | None:
        """What was drawn ``[M, B, ...]``; None if attention is deterministic.

        Raises:
            ConfigError: the trajectory was not played by an agent with this ``attention_policy``.
        """
        draws = isinstance(self.meta_controller, DrawnAttention)
        if draws != (trajectory.attention is not None):
            raise ConfigError(
                f"Expected a trajectory {'with' if draws else 'without'} draws of attention, as "
                f"attention_policy={self.config.attention_policy!r} makes it; got one {'without' if draws else 'with'} them."
            )
        return trajectory.attention and trajectory.attention.draws

    def _precision(self) -> torch.autocast:
        device = self.controller.label.weight.device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.config.bfloat16 and has_matrix_unit(device))


def _spread(part: Tensor, group: Tensor, lanes: int) -> Tensor:
    """``part`` of the lanes ``group``, among zeros of all ``lanes``."""
    return part.new_zeros(lanes, *part.shape[1:]).index_copy(0, group, part)


def _assembled(parts: list[Tensor], shape: tuple[int, ...], back: Tensor) -> Tensor:
    """Join the ``[live, ...]`` of each decision into ``shape`` ``[M, ..., B, ...]``.

    Lanes that are not live get 0. ``back`` restores the order of the lanes.
    """
    padded = [torch.cat([part, part.new_zeros(len(back) - len(part), *part.shape[1:])]) for part in parts]
    rows = torch.stack(padded)[:, back].flatten() if parts else back.new_zeros(0, dtype=torch.float32)
    return torch.cat([rows, rows.new_zeros(math.prod(shape) - len(rows))]).view(shape)
