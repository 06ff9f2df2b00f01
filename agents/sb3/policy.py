"""The paper's agent as a policy of sb3-contrib's ``RecurrentPPO``."""

from __future__ import annotations

from inspect import signature
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn

from agents.actor_critic import ActorCritic, AgentState
from agents.config import AgentConfig
from agents.drawn_attention import mode, of_cells
from agents.protocol import World
from hsal_env import dynamics
from hsal_env.errors import ConfigError
from hsal_env.isolation import own_defaults, own_torch
from hsal_env.rules import Rules
from hsal_env.spaces import attention_action


class _StateSize(nn.Module):
    """Takes the place of the LSTM that ``RecurrentPPO`` asks for the size of the state."""

    num_layers = 1

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size


class _Placed(NamedTuple):
    """What the masks of the current meta-steps give, with gradient.

    Attributes:
        priority: ``[N, H, W]``.
        glimpse: g_0 ``[N, D]``.
        known: bool ``[N]``: whether this update has computed the lane's mask.
    """

    priority: Tensor
    glimpse: Tensor
    known: Tensor


class _Choice(NamedTuple):
    """A location or label of each lane, its log-probability, and the entropy of the distribution; ``[N]`` each."""

    chosen: Tensor
    log_prob: Tensor
    entropy: Tensor


class _Attended(NamedTuple):
    """The upper level's step of N lanes.

    Attributes:
        raw: raw attention ``[N, 4K]``.
        state: the states after it.
        cell: the cell that it was drawn about; its log-probability and entropy are 0 for deterministic attention.
        value: ``[N]``.
    """

    raw: Tensor
    state: AgentState
    cell: _Choice
    value: Tensor


class _Step(NamedTuple):
    """What a step of N lanes gives.

    Attributes:
        action: packed ``[N, 4K + 2]``.
        value: ``[N]``.
        log_prob: ``[N]``; of the cell for drawn attention, 0 for deterministic attention.
        entropy: ``[N]``, likewise.
        hidden: both states after it ``[N, meta + controller]``.
        placed: the masks after it; None in a roll-out.
    """

    action: Tensor
    value: Tensor
    log_prob: Tensor
    entropy: Tensor
    hidden: Tensor
    placed: _Placed | None


class HSALPolicy(RecurrentActorCriticPolicy):
    """The paper's agent as a policy of sb3-contrib's ``RecurrentPPO``, on the packed view.

    SB3 keeps the states of both GRUs where it would keep those of an LSTM. By default attention is deterministic, and its
    log-probability is 0. It learns through P and g_0: an update computes them anew from the stored saliency and volume, as
    :meth:`agents.actor_critic.ActorCritic.evaluate` does. PPO wants a value at phase 0, too, where our agent has none: there it
    is linear in the meta-controller's state. A new policy draws its weights, and an action that is not ``deterministic``, from
    torch's global generator, which SB3 seeds. ``policy.agent`` is an :class:`ActorCritic`, which our own commands can test and
    save.

    With ``AgentConfig(attention_policy="drawn")`` the upper level is a policy, too: PPO gives its cell a log-probability, an
    entropy and the agent's own value. The cell stands in the packed action in the place of the location, which phase 0 does not
    read. There is no place for the extent and the shift. They are not drawn but take their means, which learn through P and g_0.

    Args:
        observation_space: of the packed view, with ``volume``.
        action_space: of the packed view.
        lr_schedule: SB3's schedule of the learning rate.
        config: sizes and switches of the agent. Default: those of the preset ``deterministic`` in float32, without its grid if
            K is not a square number.
        rules: the rules of the environment, ``HSALVecEnv(...).world.rules``. Default: the default rules with its k and K.
        map_size: (H, W). Default: a square map.
        optimizer_class, optimizer_kwargs: the optimiser, as in every policy of SB3; the learning rate is ``lr_schedule``'s.
        others: the other ``policy_kwargs`` of SB3, such as ``net_arch``, ``activation_fn`` or ``features_extractor_class``. They
            describe networks that this policy does not have, so only their defaults are taken. ``config`` has its sizes.

    Raises:
        ConfigError: an argument that is not taken; or the spaces are of another view; or (at the first update) the rules are not
            the environment's.
    """

    @own_defaults()
    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Any,
        use_sde: bool = False,
        config: AgentConfig | None = None,
        rules: Rules | None = None,
        map_size: tuple[int, int] | None = None,
        optimizer_class: Any = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        **others: Any,
    ) -> None:
        _refuse(others)
        keys = {"glimpse", "last_label", "last_location", "phase", "priority", "saliency", "volume"}
        part: Any = getattr(observation_space, "spaces", {})
        seen = set(part)
        if not keys <= seen or not isinstance(action_space, spaces.Box) or use_sde:
            raise ConfigError(
                "HSALPolicy acts on the packed view: make the environment with action_mode='packed', and leave use_sde out; "
                f"got {action_space} over {sorted(seen)}."
            )
        if not isinstance(part["phase"], spaces.Discrete):
            raise ConfigError("HSALPolicy reads Discrete parts; got Boxes. Make the environment with boxes=False.")
        BasePolicy.__init__(
            self,
            observation_space,
            action_space,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs or {},
            normalize_images=False,
        )
        cells = part["saliency"].shape[0]
        side = round(cells**0.5)
        self.map_size = map_size or (side, side)
        components = (action_space.shape[0] - 2) // 4
        self.rules = rules or Rules(glimpses=int(part["phase"].n) - 2, components=components)
        square = round(components**0.5) ** 2 == components
        self.config = config or AgentConfig(location_prior=30.0, attention_init="grid" if square else "default")
        if self.map_size[0] * self.map_size[1] != cells or self.rules.components != components:
            raise ConfigError(
                f"Expected map_size and rules of the environment: {cells} cells, {components} Gaussians; got "
                f"{self.map_size} and {self.rules.components}."
            )
        if self.config.stop != "greedy":
            raise ConfigError(f"HSALPolicy stops greedily; expected stop='greedy', got {self.config.stop!r}.")
        world = World(self.rules, self.map_size, part["glimpse"].shape[0], int(part["last_label"].n) - 2)
        self.agent = ActorCritic(world, self.config)
        self.draws = self.config.attention_policy == "drawn"
        self.meta_value = None if self.draws else nn.Linear(self.config.meta_hidden, 1)
        self._sizes = [self.agent.meta_controller.state_size, self.config.controller_hidden]
        size = sum(self._sizes)
        self.lstm_actor = _StateSize(size)  # type: ignore[assignment]
        self.lstm_hidden_state_shape = (1, 1, size)
        make_optimiser: Any = self.optimizer_class
        self.optimizer = make_optimiser(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)
        self._checked = False

    def forward(  # type: ignore[override]
        self, obs: Any, lstm_states: RNNStates, episode_starts: Tensor, deterministic: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, RNNStates]:
        """Make one decision per lane.

        Returns:
            Packed actions ``[N, 4K + 2]``, values, log-probabilities, and the states after them.
        """
        step = self._step(obs, lstm_states.pi[0][0], episode_starts, deterministic)
        states = (step.hidden[None], torch.zeros_like(step.hidden)[None])
        return step.action, step.value, step.log_prob, RNNStates(states, states)

    def evaluate_actions(  # type: ignore[override]
        self, obs: Any, actions: Tensor, lstm_states: RNNStates, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Score stored decisions of sequences of equal length, with gradient.

        Returns:
            Values, log-probabilities and entropies, flat over sequences and steps.
        """
        hidden = lstm_states.pi[0][0]
        sequences = len(hidden)

        def by_step(part: Tensor) -> Tensor:
            return part.reshape(sequences, -1, *part.shape[1:]).transpose(0, 1)  # [T, N, ...]

        seen = {name: by_step(part) for name, part in obs.items()}
        steps: list[_Step] = []
        placed: _Placed | None = None
        for number, (action, begins) in enumerate(zip(by_step(actions), by_step(episode_starts), strict=True)):
            now = {name: part[number] for name, part in seen.items()}
            step = self._step(now, hidden, begins, taken=action, placed=placed)
            hidden, placed = step.hidden, step.placed
            steps.append(step)
        self._checked = True
        value, log_prob, entropy = (
            torch.stack(parts, dim=1).flatten()
            for parts in zip(*((step.value, step.log_prob, step.entropy) for step in steps), strict=True)
        )
        return value, log_prob, entropy

    def predict_values(  # type: ignore[override]
        self, obs: Any, lstm_states: tuple[Tensor, ...], episode_starts: Tensor
    ) -> Tensor:
        """Values ``[N]``."""
        return self._step(obs, lstm_states[0][0], episode_starts, deterministic=True).value

    def _predict(  # type: ignore[override]
        self, observation: Any, lstm_states: tuple[Tensor, ...], episode_starts: Tensor, deterministic: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        both = RNNStates(lstm_states, lstm_states)
        action, _, _, after = self.forward(observation, both, episode_starts, deterministic)
        return action, after.pi

    def _step(
        self,
        obs: dict[str, Tensor],
        hidden: Tensor,
        episode_starts: Tensor,
        deterministic: bool = False,
        taken: Tensor | None = None,
        placed: _Placed | None = None,
    ) -> _Step:
        """One step of N lanes, which may be in different phases.

        Args:
            obs: observation of the packed view.
            hidden: both states ``[N, meta + controller]``.
            episode_starts: ``[N]``, 1 where an episode begins.
            deterministic: take the most probable actions.
            taken: in an update, the stored actions ``[N, 4K + 2]``. None in a roll-out.
            placed: in an update, the masks of the current meta-steps; None at its first step. A roll-out reads the observed P
                and glimpse instead.
        """
        hidden = hidden.to(obs["glimpse"].dtype)  # sb3-contrib makes the first one in torch's default dtype
        phase = obs["phase"].reshape(len(hidden), -1)[:, 0].long()
        attends, names = phase == 0, phase == self.rules.glimpses + 1
        seen = {name: obs[name].reshape(len(hidden), -1)[:, 0].long() for name in ("last_label", "last_location")}
        seen |= {name: obs[name].unflatten(1, self.map_size) for name in ("saliency", "priority")}
        seen["glimpse"] = obs["glimpse"]
        meta_state, controller_state = (hidden * (1 - episode_starts)[:, None]).split(self._sizes, dim=1)
        before = AgentState(meta_state, controller_state, hidden.new_zeros(len(hidden), 1))

        stored_location, stored_label = (None, None) if taken is None else (taken[:, -2], taken[:, -1])
        place = self._attend(seen["saliency"], seen["last_label"], before, stored_location, deterministic)
        raw, begun = place.raw, place.state
        if taken is not None:  # what the observation shows of the mask is computed anew
            fresh = self._place(raw, obs, seen["saliency"], attends)
            if placed is not None:
                seen = self._with_gradient(seen, placed, phase)
                fresh = dynamics.select(attends, fresh, placed)
            placed = fresh
        read = self.agent.read(seen, before.controller_state)
        log_probs = self.agent.controller.location_log_probs(read, seen["priority"])
        location = _choose(log_probs, stored_location, deterministic)
        label = _choose(self.agent.controller.label_log_probs(read), stored_label, deterministic)

        def by_phase(at_attention: Tensor, at_location: Tensor, at_label: Tensor) -> Tensor:
            return torch.where(attends, at_attention, torch.where(names, at_label, at_location))

        cell = torch.where(attends, place.cell.chosen, location.chosen) if self.draws else location.chosen
        return _Step(
            action=torch.cat([attention_action(raw), cell[:, None].float(), label.chosen[:, None].float()], dim=1),
            value=torch.where(attends, place.value, self.agent.controller.values(read)),
            log_prob=by_phase(place.cell.log_prob, location.log_prob, label.log_prob),
            entropy=by_phase(place.cell.entropy, location.entropy, label.entropy),
            hidden=torch.where(
                attends[:, None], torch.cat(begun[:2], dim=1), torch.cat([before.meta_state, read], dim=1)
            ),
            placed=placed,
        )

    def _attend(
        self,
        saliency: Tensor,
        last_label: Tensor,
        before: AgentState,
        stored_cell: Tensor | None,
        deterministic: bool,
    ) -> _Attended:
        """The upper level's step of N lanes. ``stored_cell`` is what an update takes, where a cell is drawn."""
        if self.meta_value is not None:
            raw, begun = self.agent.attend(saliency, last_label, before)
            zero = torch.zeros_like(raw[:, 0])
            value = self.meta_value(begun.meta_state.detach()).squeeze(1)
            return _Attended(raw, begun, _Choice(zero.long(), zero, zero), value)
        choices, value, begun = self.agent.score_cells(saliency, last_label, before)
        fixed = mode(choices) if deterministic and stored_cell is None else stored_cell
        cell = _choose(of_cells(choices), fixed, deterministic)
        meta = self.agent.drawn_attention()
        return _Attended(meta.attention(meta.most_probable(saliency, cell.chosen)), begun, cell, value)

    def _place(self, raw: Tensor, obs: dict[str, Tensor], saliency: Tensor, attends: Tensor) -> _Placed:
        """What :func:`hsal_env.dynamics.attend` computes from a mask, here from a stored observation."""
        volume = obs["volume"].unflatten(1, (-1, *self.map_size))
        _, priority, glimpse = dynamics.interface(raw, saliency, volume, self.rules)
        return _Placed(priority, glimpse, attends)

    def _with_gradient(self, seen: dict[str, Tensor], placed: _Placed, phase: Tensor) -> dict[str, Tensor]:
        """``seen``, but with P and, at phase 1, g_0 of the masks that this update has computed."""
        known = placed.known & (phase > 0)
        if not self._checked:
            apart = ((placed.priority - seen["priority"]).detach().abs().amax(dim=(1, 2)) * known).amax().item()
            if apart > 0.1:
                raise ConfigError(
                    f"The environment's priority maps differ by {apart:.2f} from those of the policy's rules. Pass "
                    "policy_kwargs={'rules': env.world.rules, 'map_size': env.world.map_size}."
                )
        first = known & (phase == 1)
        return {
            **seen,
            "priority": torch.where(known[:, None, None], placed.priority, seen["priority"]),
            "glimpse": torch.where(first[:, None], placed.glimpse, seen["glimpse"]),
        }

    def get_distribution(self, *_: Any) -> Any:
        """Not available: cells, locations and labels have a distribution each.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "HSALPolicy has no single distribution; evaluate_actions gives log-probabilities and entropies."
        )

    @classmethod
    @own_torch()
    def load(cls, path: str, device: torch.device | str = "auto") -> Any:
        """Load the policy that ``save`` wrote. The caller's random generators stay as they are."""
        return super().load(path, device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": _any_rate,
            "config": self.config,
            "rules": self.rules,
            "map_size": self.map_size,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
        }


def _choose(log_probs: Tensor, stored: Tensor | None, deterministic: bool) -> _Choice:
    """The stored choices, or else the most probable or sampled ones. ``log_probs`` is ``[N, n]``."""
    if stored is not None:
        index = stored.long().clamp(0, log_probs.shape[1] - 1)
    elif deterministic:
        index = log_probs.argmax(dim=1)
    else:
        index = log_probs.exp().multinomial(1).squeeze(1)
    log_prob = log_probs.gather(1, index[:, None]).squeeze(1)
    return _Choice(index, log_prob, -(log_probs.exp() * log_probs).sum(dim=1))


def _refuse(others: dict[str, Any]) -> None:
    """Refuse arguments of SB3's policies that would do nothing here, unless they have their defaults."""
    defaults = {name: part.default for name, part in signature(RecurrentActorCriticPolicy.__init__).parameters.items()}
    unused = [name for name, value in others.items() if name not in defaults or value != defaults[name]]
    if unused:
        raise ConfigError(
            "HSALPolicy takes the policy_kwargs config, rules, map_size, optimizer_class and optimizer_kwargs; got "
            f"{', '.join(unused)}, which would do nothing: its networks are the paper's. Their sizes and switches are in "
            "policy_kwargs={'config': agents.config.AgentConfig(...)}."
        )


def _any_rate(progress: float) -> float:
    """The learning rate of a loaded policy, until SB3 sets it."""
    return 0.0
