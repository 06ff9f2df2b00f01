"""Stable-Baselines3: the batched environment as its VecEnv, the paper's agent as its policy, any agent as its model.

    env = HSALVecEnv("HSAL-MNISTMultiset-v0", num_envs=64, features="store")
    MaskablePPO("MultiInputPolicy", env).learn(100_000)                   # any algorithm of SB3, on the flat view

    env = HSALVecEnv("HSAL-MNISTMultiset-v0", num_envs=64, features="store", action_mode="packed", components=49)
    RecurrentPPO(HSALPolicy, env, gamma=0.0).learn(1_000_000)             # the paper's agent, trained by SB3's own loop
    evaluate_policy(SB3Agent(agents.load("mnist-multiset").agent), env)   # a trained agent under SB3's tools

The only module that imports SB3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import sb3_contrib
import stable_baselines3
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from torch import Tensor, nn

from agents.actor_critic import ActorCritic, AgentState
from agents.config import AgentConfig
from agents.evaluation import scores_by_count
from agents.protocol import World
from hsal_env import ENVIRONMENTS, VIEW_ENVIRONMENTS, dynamics, multiset
from hsal_env import functional as F
from hsal_env.config import Rules
from hsal_env.errors import ConfigError
from hsal_env.vector_env import HSALVectorEnv


class HSALVecEnv(VecEnv):
    """The native vector environment as a Stable-Baselines3 ``VecEnv``: N lanes in one batch, so SB3 runs at batched speed.

    Lanes begin anew in the step in which they end; that step's info holds ``terminal_observation``,
    ``TimeLimit.truncated``, and ``is_success`` (the exact match). ``set_options({"index": i})`` picks a canvas for the next
    ``reset``.

    Args:
        env_id: a registered id.
        num_envs: N.
        kwargs: arguments of the environment; ``action_mode`` is ``"flat"`` where neither they nor the id name another.

    Raises:
        ConfigError: no registered id; the native view, whose Dict actions SB3 does not have; or ``output``, ``device`` or
            ``autoreset_mode``.
    """

    def __init__(self, env_id: str, num_envs: int = 1, **kwargs: Any) -> None:
        known = {**ENVIRONMENTS, **VIEW_ENVIRONMENTS}
        if not isinstance(env_id, str) or env_id not in known:
            raise ConfigError(
                f"Expected one of the ids {', '.join(known)}; got {env_id!r}. HSALVecEnv makes the vector environment itself."
            )
        if given := sorted({"output", "device", "autoreset_mode"} & set(kwargs)):
            raise ConfigError(f"HSALVecEnv decides {', '.join(given)} itself: SB3 reads numpy; leave it out.")
        kwargs = {"action_mode": "flat", **known[env_id], **kwargs}
        if kwargs["action_mode"] == "native":
            raise ConfigError(
                "Stable-Baselines3 has no Dict actions; expected action_mode flat, packed, option, controller or macro, "
                "got native. HSALPolicy acts on 'packed'."
            )
        env: Any = gym.make_vec(env_id, num_envs=num_envs, autoreset_mode=AutoresetMode.SAME_STEP, **kwargs)
        self.env: HSALVectorEnv = env.unwrapped
        self._actions: Any = None
        super().__init__(num_envs, self.env.single_observation_space, self.env.single_action_space)

    @property
    def world(self) -> World:
        """What an agent must know to be built for this environment."""
        return World.of(self.env.simulation.examples)

    def reset(self) -> dict[str, np.ndarray]:
        """Start an episode in every lane, with the seeds and options that were set."""
        chosen = [options.get("index") for options in self._options]
        if any(set(options) - {"index"} for options in self._options) or (None in chosen and set(chosen) != {None}):
            raise ConfigError(f"Expected the option index for every lane, or no option; got {self._options}.")
        options = None if None in chosen else {"index": np.array(chosen)}
        seeds = None if set(self._seeds) == {None} else list(self._seeds)
        observations, info = self.env.reset(seed=seeds, options=options)
        self.reset_infos = self._infos(info)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions."""
        self._actions = actions

    def step_wait(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Take one step in every lane."""
        observations, rewards, terminated, truncated, info = self.env.step(self._actions)
        infos = self._infos(info)
        dones = terminated | truncated
        for lane in np.flatnonzero(dones).tolist():
            ended = self._infos(info["final_info"], [lane])[0]
            infos[lane] = {
                **ended,
                "terminal_observation": info["final_obs"][lane],
                "TimeLimit.truncated": bool(truncated[lane] & ~terminated[lane]),
                "is_success": bool(ended["exact_match"]),
            }
        return observations, rewards.astype(np.float32), dones, infos

    def _infos(self, info: dict[str, Any], lanes: Iterable[int] | None = None) -> list[dict[str, Any]]:
        parts = {name: part for name, part in info.items() if f"_{name}" in info and not name.startswith("final_")}
        every = range(self.num_envs) if lanes is None else lanes
        return [{name: part[lane] for name, part in parts.items()} for lane in every]

    def close(self) -> None:
        """Release the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The vector environment's attribute, once per lane.

        Raises:
            AttributeError: it has none of that name; ``action_masks`` is there in views with a mask alone.
        """
        if attr_name == "action_masks" and "action_mask" not in self.env.single_observation_space.spaces:  # type: ignore[attr-defined]
            raise AttributeError("This view has no action mask.")
        return [getattr(self.env, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the vector environment.

        Raises:
            ConfigError: not for all lanes: they are one environment.
        """
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise ConfigError("The lanes of HSALVecEnv are one environment; set attributes for all of them.")
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Call a method of the vector environment that answers for every lane, such as ``action_masks`` or ``render``.

        Raises:
            ConfigError: its answer is not one per lane.
        """
        answer = getattr(self.env, method_name)(*args, **kwargs)
        if not isinstance(answer, np.ndarray | tuple | list) or len(answer) != self.num_envs:
            raise ConfigError(
                f"env_method is for methods that answer for every lane; {method_name} gave {type(answer).__name__}."
            )
        return [answer[lane] for lane in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Never: wrap with VecEnv wrappers, such as ``VecMonitor``."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> list[np.ndarray | None]:
        """A picture of every lane; None without a render mode."""
        return list(self.env.render() or [None] * self.num_envs)


class _StateSize(nn.Module):
    """Stands where ``RecurrentPPO`` looks for an LSTM, to learn the size of the state."""

    num_layers = 1

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size


class _Placed(NamedTuple):
    """The masks of the running meta-steps, with gradient: priority ``[N, H, W]``, g_0 ``[N, D]``; known ``[N]``."""

    priority: Tensor
    glimpse: Tensor
    known: Tensor


class HSALPolicy(RecurrentActorCriticPolicy):
    """The paper's agent as a policy of sb3-contrib's ``RecurrentPPO``; the view is ``packed``.

    Both GRU states travel where SB3 keeps its LSTM's. Attention is deterministic, with log-probability 0: it learns
    through P and g_0, which an update computes anew from the stored saliency and volume, as in
    :meth:`agents.actor_critic.ActorCritic.evaluate`. At phase 0, where our agent has no baseline, the value is linear in
    the meta-controller's state. ``policy.agent`` is an :class:`ActorCritic` that our own commands can evaluate and save.

    Args:
        observation_space: of the packed view, with ``volume``.
        action_space: of the packed view.
        lr_schedule: SB3's.
        config: sizes and switches of the agent; default: the best preset's prior, and its grid where K is a square.
        rules: of the environment, where they are not the defaults for its k and K: ``HSALVecEnv(...).world.rules``.
        map_size: (H, W), where the map is not square.

    Raises:
        ConfigError: spaces of another view, or (at the first update) rules other than the environment's.
    """

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
    ) -> None:
        keys = {"glimpse", "last_label", "last_location", "phase", "priority", "saliency", "volume"}
        part: Any = getattr(observation_space, "spaces", {})
        seen = set(part)
        if not keys <= seen or not isinstance(action_space, spaces.Box) or use_sde:
            raise ConfigError(
                "HSALPolicy acts on the packed view: make the environment with action_mode='packed', and leave use_sde out; "
                f"got {action_space} over {sorted(seen)}."
            )
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
        world = World(self.rules, self.map_size, part["glimpse"].shape[0], int(part["last_label"].n) - 2)
        self.agent = ActorCritic(world, self.config)
        self.meta_value = nn.Linear(self.config.meta_hidden, 1)
        size = self.config.meta_hidden + self.config.controller_hidden
        self.lstm_actor = _StateSize(size)  # type: ignore[assignment]
        self.lstm_hidden_state_shape = (1, 1, size)
        make_optimiser: Any = self.optimizer_class
        self.optimizer = make_optimiser(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)
        self._checked = False

    def forward(  # type: ignore[override]
        self, obs: Any, lstm_states: RNNStates, episode_starts: Tensor, deterministic: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, RNNStates]:
        """One decision of every lane: packed actions ``[N, 4K + 2]``, values, log-probabilities, and the states after it."""
        hidden = lstm_states.pi[0][0]
        action, value, log_prob, _, hidden, _ = self._decide(obs, hidden, episode_starts, None, None, deterministic)
        states = (hidden[None], torch.zeros_like(hidden)[None])
        return action, value, log_prob, RNNStates(states, states)

    def evaluate_actions(  # type: ignore[override]
        self, obs: Any, actions: Tensor, lstm_states: RNNStates, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Values, log-probabilities and entropies of stored decisions, flat over sequences of equal length, with gradient."""
        hidden = lstm_states.pi[0][0]
        sequences = len(hidden)

        def by_step(part: Tensor) -> Tensor:
            return part.reshape(sequences, -1, *part.shape[1:]).transpose(0, 1)  # [T, N, ...]

        seen = {name: by_step(part) for name, part in obs.items()}
        answers: list[tuple[Tensor, Tensor, Tensor]] = []
        placed: _Placed | None = None
        for step, (action, begins) in enumerate(zip(by_step(actions), by_step(episode_starts), strict=True)):
            now = {name: part[step] for name, part in seen.items()}
            _, value, log_prob, entropy, hidden, placed = self._decide(now, hidden, begins, placed, action, False)
            answers.append((value, log_prob, entropy))
        self._checked = True
        value, log_prob, entropy = (torch.stack(parts, dim=1).flatten() for parts in zip(*answers, strict=True))
        return value, log_prob, entropy

    def predict_values(  # type: ignore[override]
        self, obs: Any, lstm_states: tuple[Tensor, ...], episode_starts: Tensor
    ) -> Tensor:
        """Values ``[N]``."""
        return self._decide(obs, lstm_states[0][0], episode_starts, None, None, True)[1]

    def _predict(  # type: ignore[override]
        self, observation: Any, lstm_states: tuple[Tensor, ...], episode_starts: Tensor, deterministic: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        both = RNNStates(lstm_states, lstm_states)
        action, _, _, after = self.forward(observation, both, episode_starts, deterministic)
        return action, after.pi

    def _decide(
        self,
        obs: dict[str, Tensor],
        hidden: Tensor,
        episode_starts: Tensor,
        placed: _Placed | None,
        taken: Tensor | None,
        deterministic: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, _Placed | None]:
        """A step of N lanes, each in a phase of its own.

        Args:
            obs: of the packed view.
            hidden: both states ``[N, meta + controller]``.
            episode_starts: 1 where an episode begins ``[N]``.
            placed: the running meta-steps' masks in an update; None in a roll-out, where the observed P and glimpse do.
            taken: the stored actions in an update.
            deterministic: take the most probable.

        Returns:
            Packed action, value, log-probability and entropy ``[N]``, the states after it, the masks after it.
        """
        config, rules = self.config, self.rules
        phase = obs["phase"].reshape(len(hidden), -1)[:, 0].long()
        attends, names = phase == 0, phase == rules.glimpses + 1
        seen = {name: obs[name].reshape(len(hidden), -1)[:, 0].long() for name in ("last_label", "last_location")}
        maps = {name: obs[name].unflatten(1, self.map_size) for name in ("saliency", "priority")}
        seen |= {**maps, "glimpse": obs["glimpse"]}
        before = AgentState(
            *(hidden * (1 - episode_starts)[:, None]).split([config.meta_hidden, config.controller_hidden], dim=1)
        )

        raw, begun = self.agent.attend(seen["saliency"], seen["last_label"], before)
        if taken is not None:  # an update: what the observation shows of the mask, computed anew
            fresh = self._place(raw, obs, seen["saliency"], attends)
            if placed is not None:
                seen = self._with_gradient(seen, placed, phase)
                fresh = dynamics.select(attends, fresh, placed)
            placed = fresh
        read = self.agent.read(seen, before.controller_state)
        location = self.agent.controller.location_log_probs(read, seen["priority"])
        label = self.agent.controller.label_log_probs(read)

        def choose(log_probs: Tensor, stored: Tensor | None) -> Tensor:
            if stored is not None:
                return stored.long().clamp(0, log_probs.shape[1] - 1)
            return log_probs.argmax(dim=1) if deterministic else log_probs.exp().multinomial(1).squeeze(1)

        chosen = [choose(part, None if taken is None else taken[:, i - 2]) for i, part in enumerate((location, label))]
        scores = [
            part.gather(1, which[:, None]).squeeze(1) for part, which in zip((location, label), chosen, strict=True)
        ]
        entropies = [-(part.exp() * part).sum(dim=1) for part in (location, label)]

        def by_phase(at_location: Tensor, at_label: Tensor) -> Tensor:
            return torch.where(attends, 0.0, torch.where(names, at_label, at_location))

        meta_value = self.meta_value(begun.meta_state.detach()).squeeze(1)
        value = torch.where(attends, meta_value, self.agent.controller.values(read))
        after = torch.where(attends[:, None], torch.cat(begun, dim=1), torch.cat([before.meta_state, read], dim=1))
        action = torch.cat([raw / F.RAW_LIMIT, *(which[:, None].float() for which in chosen)], dim=1)
        return action, value, by_phase(*scores), by_phase(*entropies), after, placed

    def _place(self, raw: Tensor, obs: dict[str, Tensor], saliency: Tensor, attends: Tensor) -> _Placed:
        """The interface of :func:`hsal_env.dynamics.attend`, on stored observations."""
        volume = obs["volume"].unflatten(1, (-1, *self.map_size))
        _, priority, glimpse = dynamics.interface(raw, saliency, volume, self.rules)
        return _Placed(priority, glimpse, attends)

    def _with_gradient(self, seen: dict[str, Tensor], placed: _Placed, phase: Tensor) -> dict[str, Tensor]:
        """``seen`` with P and, at phase 1, g_0 of the masks that this update placed."""
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
        """Not there: attention is deterministic, and location and label have a distribution each.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "HSALPolicy has no single distribution; evaluate_actions gives log-probabilities and entropies."
        )

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


def _any_rate(progress: float) -> float:
    """A loaded policy's learning rate, until SB3 sets it."""
    return 0.0


class SB3Agent:
    """Any agent of ours with SB3's ``predict``, for ``evaluate_policy``, callbacks and recorders, on the packed view.

    Args:
        agent: see :class:`agents.protocol.Agent`, with the ``world`` it was built for, which is the environment's.

    Raises:
        ConfigError: it lacks a method, or ``world``.
    """

    def __init__(self, agent: Any) -> None:
        missing = [name for name in ("initial", "act", "world") if not hasattr(agent, name)]
        if missing:
            raise ConfigError(
                f"Expected an agent; {type(agent).__name__} lacks {', '.join(missing)}. A trained one is agents.load(NAME).agent."
            )
        self.agent, self.world = agent, agent.world

    @torch.no_grad()
    def predict(
        self,
        observation: dict[str, np.ndarray],
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """Packed actions ``[N, 4K + 2]`` (of a single observation: ``[4K + 2]``) and the state to pass to the next call.

        Raises:
            ConfigError: an observation of another view, or of another environment than the agent's.
        """
        if not {"phase", "saliency", "priority", "volume"} <= set(observation) or "action_mask" in observation:
            raise ConfigError(
                f"Expected an observation of the packed view; got {sorted(observation)}. Use action_mode='packed'."
            )
        cells = self.world.map_size[0] * self.world.map_size[1]
        sizes = np.shape(observation["saliency"])[-1], int(np.max(observation["phase"]))
        if sizes[0] != cells or sizes[1] > self.world.rules.glimpses + 1:
            raise ConfigError(
                f"Expected the packed view of an environment of {cells} cells and glimpses={self.world.rules.glimpses}, as the "
                f"agent was built for; got {np.shape(observation['saliency'])} and phase {sizes[1]}."
            )
        alone = np.ndim(observation["saliency"]) == 1
        seen = {name: torch.as_tensor(np.asarray(part)[None] if alone else part) for name, part in observation.items()}
        lanes = len(seen["saliency"])
        for name in ("phase", "last_label", "last_location"):
            seen[name] = seen[name].reshape(lanes).long()
        for name in ("saliency", "priority"):
            seen[name] = seen[name].unflatten(1, self.world.map_size)
        fresh = self.agent.initial(lanes)
        if state is None:
            state = fresh
        elif episode_start is not None:
            state = dynamics.select(torch.as_tensor(np.atleast_1d(episode_start)).bool(), fresh, state)
        decision = self.agent.act(seen, state, deterministic)
        zero = torch.zeros(lanes, 1)
        width = 4 * self.world.rules.components
        attention = decision.action.get("attention", torch.zeros(lanes, width))
        chosen = [
            decision.action[name][:, None].float() if name in decision.action else zero
            for name in ("location", "label")
        ]
        packed = torch.cat([attention, *chosen], dim=1).numpy()
        return packed[0] if alone else packed, decision.state


Predict = Callable[..., tuple[np.ndarray, Any]]
"""``predict(observation, state, episode_start)`` to actions and state, as SB3's models have it."""


def test(predict: Predict, env: HSALVecEnv, episodes: int) -> dict[str, Any]:
    """Play canvases 0 to ``episodes - 1``, once each.

    Returns:
        ``mean_return``, ``mean_length``, the scores of :func:`hsal_env.multiset.scores`, and ``by_count`` as in
        :func:`agents.evaluation.evaluate`.
    """
    returns, lengths = np.zeros(episodes), np.zeros(episodes)
    classes = env.env.simulation.config.classes
    named, true = np.zeros((episodes, classes), np.int64), np.zeros((episodes, classes), np.int64)
    for first in range(0, episodes, env.num_envs):
        lanes = np.minimum(np.arange(first, first + env.num_envs), episodes - 1)
        env.set_options([{"index": index} for index in lanes])
        observation, starts = env.reset(), np.ones(env.num_envs, bool)
        state: Any = None
        playing = np.append(True, lanes[1:] > lanes[:-1])  # the last canvas once, too
        while playing.any():
            actions, state = predict(observation, state, starts)
            env.step_async(actions)
            observation, rewards, starts, infos = env.step_wait()
            returns[lanes[playing]] += rewards[playing]
            lengths[lanes[playing]] += 1
            for lane in np.flatnonzero(playing & starts):
                named[lanes[lane]], true[lanes[lane]] = infos[lane]["predicted_counts"], infos[lane]["label_counts"]
            playing &= ~starts
    return {
        "mean_return": float(returns.mean()),
        "mean_length": float(lengths.mean()),
        **multiset.scores(named, true),
        "by_count": scores_by_count(named, true),
    }


def make_model(name: str, env: VecEnv, seed: int, kwargs: dict[str, Any], policy: Any = None) -> Any:
    """An algorithm of stable_baselines3 or sb3_contrib by its class name, with ``policy`` or the one for Dict observations."""
    home = stable_baselines3 if hasattr(stable_baselines3, name) else sb3_contrib
    policy = policy or ("MultiInputLstmPolicy" if name == "RecurrentPPO" else "MultiInputPolicy")
    return getattr(home, name)(policy, env, seed=seed, **deepcopy(kwargs))  # A2C writes into its policy_kwargs


def monitored(env_id: str, num_envs: int, **kwargs: Any) -> VecMonitor:
    """:class:`HSALVecEnv` that tells SB3's logger returns and lengths."""
    return VecMonitor(HSALVecEnv(env_id, num_envs, **kwargs))


def greedy(model: Any, env: HSALVecEnv) -> Predict:
    """A model's most probable actions, masked where it can be."""
    if isinstance(model, sb3_contrib.MaskablePPO):
        return lambda seen, state, starts: model.predict(
            seen, state, starts, deterministic=True, action_masks=np.stack(env.env_method("action_masks"))
        )
    return lambda seen, state, starts: model.predict(seen, state, starts, deterministic=True)


def at_random(env: HSALVecEnv, seed: int) -> Predict:
    """Uniform actions, of those that the mask allows where there is one."""
    rng = np.random.default_rng(seed)
    batch: spaces.Space[Any] = env.env.action_space
    batch.seed(seed)

    def predict(seen: dict[str, np.ndarray], state: Any, starts: np.ndarray) -> tuple[np.ndarray, Any]:
        if "action_mask" in seen:
            return (rng.random(seen["action_mask"].shape) * seen["action_mask"]).argmax(axis=1), None
        return batch.sample(), None

    return predict


def stopping(env: HSALVecEnv) -> Predict:
    """In the flat view: the first cell, until a label is asked for; then stop."""
    stop = int(env.action_space.n) - 1  # type: ignore[attr-defined]

    def predict(seen: dict[str, np.ndarray], state: Any, starts: np.ndarray) -> tuple[np.ndarray, Any]:
        return np.where(seen["action_mask"][:, stop] > 0, stop, 0), None

    return predict
