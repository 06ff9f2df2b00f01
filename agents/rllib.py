"""Ray's RLlib: registered environments, the two levels as two agents, and configurations of PPO for both.

    register_envs()
    PPOConfig().environment("HSAL-MNISTMultiset-v0", env_config={"action_mode": "flat"})    # also on remote workers
    PPOConfig().environment(HSALMultiAgentEnv, env_config={"env_id": "HSAL-MNISTMultiset-v0"})
    ppo_config("HSAL-MNISTMultiset-v0", "multi-agent").build_algo().train()                  # with all settings that it needs

No other module of HSAL imports ray. HSAL must be installed on every machine of a cluster, and each finds or downloads the data
itself.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.connectors.env_to_module import FlattenObservations
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module import MultiRLModuleSpec, RLModuleSpec
from ray.rllib.env.multi_agent_env import MultiAgentEnv, make_multi_agent
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    EPISODE_LEN_MEAN,
    EPISODE_RETURN_MEAN,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
)
from ray.rllib.utils.numpy import flatten_inputs_to_1d_tensor
from ray.rllib.utils.spaces.space_utils import unsquash_action
from ray.tune.registry import register_env

from agents.config import grid_side
from agents.drawn_attention import FIRST_EXTENT, AttentionDraw, mask_about
from agents.evaluation import scores_by_count
from hsal_env import ENVIRONMENTS, VIEW_ENVIRONMENTS, multiset
from hsal_env.dynamics import Outcome, State
from hsal_env.errors import ActionError, ConfigError
from hsal_env.registration import plain_id
from hsal_env.spaces import BoxesView, FlatView, NativeView, attention_action, read_discrete

META_CONTROLLER, CONTROLLER = "meta_controller", "controller"
MULTI_AGENT = "multi-agent"
"""Name of the view of :class:`HSALMultiAgentEnv`. The other views are the values of ``action_mode``."""

_OBSERVED = {
    META_CONTROLLER: ("saliency", "last_label", "image", "volume"),
    CONTROLLER: ("priority", "glimpse", "last_location", "last_label", "phase", "action_mask", "image", "volume"),
}
_MASKED_LOGIT = -1e9  # the probability is 0, and the entropy finite


class _TwoLevelView(FlatView):
    """The flat view, which also takes a Dict with ``attention`` as the native view does, or with the ``cell`` of a small mask."""

    def attention_space(self, attention: str) -> spaces.Space[Any]:
        """The action space of the meta-controller."""
        return spaces.Discrete(self.cells) if attention == "cell" else self._attention_space()

    def step(self, state: State, action: Any) -> Outcome:
        """See :class:`hsal_env.spaces.View`."""
        if not isinstance(action, dict):
            return super().step(state, action)
        if "cell" in action:
            cell = read_discrete(action, "cell", self.cells, state.meta_step)
            extent = state.saliency.new_full((len(cell),), FIRST_EXTENT)
            drawn = AttentionDraw(cell, extent, extent.new_zeros(len(cell), 2))
            action = {"attention": attention_action(mask_about(drawn, self.map_size, self.rules))}
        return NativeView.step(self, state, action)


class HSALMultiAgentEnv(MultiAgentEnv):
    """An RLlib ``MultiAgentEnv`` in which the two levels of the single environment are two agents that take turns.

    ## Description
    In every meta-step the agent ``"meta_controller"`` acts once, then ``"controller"`` k + 1 times: k locations and a label.
    Only the agent whose turn it is gets an observation. The decision process is that of :class:`hsal_env.env.HSALEnv`.

    ## Action space
    | agent | space | meaning |
    |---|---|---|
    | ``meta_controller`` | ``Box(-1, 1, (4K,))`` | ``attention`` of the native view |
    | the same with ``attention="cell"`` | ``Discrete(H W)`` | the cell of a small mask, see below |
    | ``controller`` | ``Discrete(H W + C + 1)`` | cells, then labels, then stop, as in the flat view |

    With ``attention="cell"`` the upper level draws the cell of its mask, as :mod:`agents.drawn_attention` does. Extent and shift
    are the first ones there: a lattice of K Gaussians that reaches 0.54 cells of a 7x7 map.

    ## Observation space
    Each agent has a ``Dict``. The keys are those of the flat view, in which maps are vectors.

    | agent | keys |
    |---|---|
    | ``meta_controller`` | ``saliency``, ``last_label`` |
    | ``controller`` | ``priority``, ``glimpse``, ``last_location``, ``last_label``, ``phase``, ``action_mask`` |

    With ``include_image=True`` or ``include_volume=True`` both agents also get ``image`` or ``volume``.

    ## Rewards
    The controller earns what the single environment pays for its decision: P_t at a location, the label's reward, or -1 for a
    forbidden action, which changes nothing. The sum of its rewards is the single environment's return. The meta-controller
    earns, at the end of each meta-step, the sum of all that the meta-step paid. The paper differs here: it pays the
    meta-controller nothing and lets it learn through the label's loss. So the return of an episode, summed over both agents, is
    twice that of the single environment.

    ## Starting state
    As in the single environment; ``reset(options={"index": i})`` picks a canvas. The meta-controller begins.

    ## Episode end
    As in the single environment, and for both agents at once. Both then get a last observation. The meta-controller earns what
    the last meta-step paid, even if that was cut off.

    ## Information
    That of the single environment, for every agent that gets an observation; the controller's also has ``action_mask``.

    ## Arguments
    One dict, as RLlib passes it: ``env_id`` (default ``"HSAL-MNISTMultiset-v0"``), ``attention`` (default ``"raw"``: the
    meta-controller says all 4K numbers; or ``"cell"``), ``render_mode``, and every field of
    :class:`hsal_env.config.EnvConfig` except ``action_mode``.

    Raises:
        ConfigError: an id or argument is unknown, a value is outside its range, ``action_mode`` is given, or ``attention="cell"``
            without a square number of components.
        DataError: the data are missing or damaged.
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        kwargs = dict(config or {})
        env_id = kwargs.pop("env_id", "HSAL-MNISTMultiset-v0")
        env_id = plain_id(env_id)
        if env_id not in ENVIRONMENTS:
            raise ConfigError(f"Expected env_id to be one of {', '.join(ENVIRONMENTS)}; got {env_id!r}.")
        if "action_mode" in kwargs:
            raise ConfigError(
                f"The two agents have views of their own; leave out action_mode={kwargs['action_mode']!r}, or make "
                f"{env_id!r} itself, which register_envs() registers."
            )
        attention = kwargs.pop("attention", "raw")
        if attention not in ("raw", "cell"):
            raise ConfigError(f"Expected attention to be one of raw, cell; got {attention!r}.")
        made: Any = gym.make(env_id, disable_env_checker=True, **kwargs, action_mode="flat")
        self.env = made.unwrapped
        simulation = self.env.simulation
        self._attention = "cell" if attention == "cell" else "attention"
        if attention == "cell":
            grid_side(simulation.rules.components, "attention='cell'", "attention='raw'")
        view = _TwoLevelView(simulation.config, simulation.examples.channels, simulation.examples.map_size)
        simulation.view = BoxesView(view) if simulation.config.boxes else view
        seen = simulation.view.observation_space
        self.observation_spaces = {
            agent: spaces.Dict({key: seen[key] for key in keys if key in seen.spaces})
            for agent, keys in _OBSERVED.items()
        }
        self.action_spaces = {META_CONTROLLER: view.attention_space(attention), CONTROLLER: view.action_space}
        self.possible_agents = [META_CONTROLLER, CONTROLLER]
        self.agents = [META_CONTROLLER, CONTROLLER]
        self.metadata = dict(self.env.metadata)  # RLlib writes into it
        self.render_mode = self.env.render_mode
        self._turn: str | None = None
        self._meta_reward = 0.0
        super().__init__()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode. The meta-controller gets the observation.

        Raises:
            ConfigError, DataError: see :meth:`hsal_env.env.HSALEnv.reset`.
        """
        seen, info = self.env.reset(seed=seed, options=options)
        self._turn, self._meta_reward = META_CONTROLLER, 0.0
        return {META_CONTROLLER: self._part(META_CONTROLLER, seen)}, {META_CONTROLLER: _info(META_CONTROLLER, info)}

    def step(
        self, action_dict: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, Any]]:
        """Make one decision, that of the agent whose turn it is.

        Raises:
            ResetNeeded: no episode has begun, or the last one has ended.
            ActionError: the action is of another agent, or outside the action space.
        """
        if self._turn is None:
            raise ResetNeeded("The episode has ended or not begun; call reset() before step().")
        if set(action_dict) != {self._turn}:
            raise ActionError(
                f"Expected an action of {self._turn!r} alone, whose turn it is; got those of {sorted(action_dict)}."
            )
        action = action_dict[self._turn]
        acted = self._turn
        seen, reward, terminated, truncated, info = self.env.step(
            {self._attention: action} if acted == META_CONTROLLER else action
        )
        over = terminated or truncated
        self._meta_reward += reward
        rewards = {CONTROLLER: reward} if acted == CONTROLLER else {}
        begins = seen["phase"][0] == 1 if self.env.simulation.config.boxes else seen["phase"] == 0
        self._turn = META_CONTROLLER if begins else CONTROLLER
        if over or self._turn == META_CONTROLLER:
            rewards[META_CONTROLLER], self._meta_reward = self._meta_reward, 0.0
        observing = self.agents if over else [self._turn]
        if over:
            self._turn = None
        every = (*self.agents, "__all__")
        return (
            {agent: self._part(agent, seen) for agent in observing},
            rewards,
            dict.fromkeys(every, terminated),
            dict.fromkeys(every, truncated),
            {agent: _info(agent, info) for agent in observing},
        )

    def render(self) -> np.ndarray | None:
        """See :meth:`hsal_env.env.HSALEnv.render`."""
        return self.env.render()

    def close(self) -> None:
        """Release the environment."""
        self.env.close()

    def _part(self, agent: str, seen: dict[str, Any]) -> dict[str, Any]:
        return {key: seen[key] for key in self.observation_spaces[agent]}


def _info(agent: str, info: dict[str, Any]) -> dict[str, Any]:
    """What concerns the agent: the mask is the controller's, whose actions are Discrete."""
    return {name: part for name, part in info.items() if agent == CONTROLLER or name != "action_mask"}


def register_envs() -> None:
    """Register our ids with RLlib. It can then make the environments on any worker, also as vector environments.

    ``env_config`` holds the keyword arguments of ``gymnasium.make``. RLlib has no Dict actions, so ``env_config`` must name an
    ``action_mode`` other than ``"native"``, unless the id has one.
    """
    for env_id in (*ENVIRONMENTS, *VIEW_ENVIRONMENTS):
        register_env(env_id, partial(_make_env, env_id))


def _make_env(env_id: str, config: dict[str, Any]) -> Any:
    """Make an environment. A worker unpickles this function by name, so it imports this module and knows the ids."""
    return (gym.make_vec if "num_envs" in config else gym.make)(env_id, **config)


class MaskedPPOModule(DefaultPPOTorchRLModule):
    """RLlib's networks for PPO. Discrete actions that ``action_mask`` forbids get no probability.

    It expects observations that RLlib's ``FlattenObservations`` has flattened. They begin with ``action_mask``, the first key in
    alphabetical order.
    """

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._mask(batch, super()._forward(batch, **kwargs))

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._mask(batch, super()._forward_train(batch, **kwargs))

    def _mask(self, batch: dict[str, Any], output: dict[str, Any]) -> dict[str, Any]:
        if isinstance(self.action_space, spaces.Discrete):
            allowed = batch[Columns.OBS][..., : int(self.action_space.n)] > 0
            logits = output[Columns.ACTION_DIST_INPUTS]
            output[Columns.ACTION_DIST_INPUTS] = torch.where(allowed, logits, _MASKED_LOGIT)
        return output


def ppo_config(
    env_id: str,
    view: str = "flat",
    env_config: dict[str, Any] | None = None,
    num_env_runners: int = 0,
    num_envs: int = 16,
    seed: int | None = 0,
    **training: Any,
) -> PPOConfig:
    """A configuration of PPO on RLlib's new API stack, with flattened observations and action masks.

    In the multi-agent view each level has a policy of its own.

    Args:
        env_id: a registered id.
        view: ``"multi-agent"``, or an ``action_mode`` other than ``"native"``.
        env_config: further arguments of the environment.
        num_env_runners: number of processes that play. 0: this process plays.
        num_envs: number of environments that each of them plays at once.
        seed: seed of weights, samples and lanes, or None.
        training: arguments of ``PPOConfig.training``, which replace the defaults here.

    Raises:
        ConfigError: the id is unknown, or the view is the native one.
    """
    if view == "native":
        raise ConfigError("RLlib has no Dict actions; expected a view other than native, such as flat or multi-agent.")
    multi_agent = view == MULTI_AGENT
    known = ENVIRONMENTS if multi_agent else {**ENVIRONMENTS, **VIEW_ENVIRONMENTS}
    env_id = plain_id(env_id)
    if env_id not in known:
        raise ConfigError(f"Expected env_id to be one of {', '.join(known)}; got {env_id!r}.")
    register_envs()
    config = PPOConfig().debugging(seed=seed, log_level="ERROR")
    config.training(
        **{
            "gamma": 0.9,
            "lr": 1e-3,
            "entropy_coeff": 0.01,
            "train_batch_size_per_learner": 4_096,
            "minibatch_size": 512,
            "num_epochs": 4,
            **training,
        }
    )
    config.env_runners(
        num_env_runners=num_env_runners,
        num_envs_per_env_runner=num_envs,
        gym_env_vectorize_mode="sync" if multi_agent else "vector_entry_point",  # the latter is ours, in one batch
        env_to_module_connector=partial(_flatten, multi_agent),
    )
    networks = {"fcnet_hiddens": [256, 256]}
    part = RLModuleSpec(module_class=MaskedPPOModule, model_config=networks)
    if not multi_agent:
        config.environment(env_id, env_config={**(env_config or {}), "action_mode": view})
        return config.rl_module(rl_module_spec=part)
    attends = RLModuleSpec(module_class=DefaultPPOTorchRLModule, model_config=networks)
    levels = {META_CONTROLLER: attends, CONTROLLER: part}
    config.environment(HSALMultiAgentEnv, env_config={**(env_config or {}), "env_id": env_id})
    config.multi_agent(policies=set(levels), policy_mapping_fn=_own_policy)
    return config.rl_module(rl_module_spec=MultiRLModuleSpec(rl_module_specs=levels))


def _flatten(multi_agent: bool, *_: Any) -> FlattenObservations:
    return FlattenObservations(multi_agent=multi_agent)


def _own_policy(agent: str, episode: Any = None, **_: Any) -> str:
    return agent


@contextmanager
def session(address: str | None = None, num_cpus: int = 2) -> Iterator[None]:
    """A block with a connection to Ray, which is shut down at the end.

    Args:
        address: of a running cluster, as ``ray start --head`` prints it. ``"auto"``: that of this machine's cluster. None: a
            small cluster is started here.
        num_cpus: number of processes that a cluster started here may run at once.

    Raises:
        ConfigError: no cluster answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    host, given, port = (address or "").removeprefix("ray://").rpartition(":")
    alone = {"num_cpus": num_cpus, "include_dashboard": False, "object_store_memory": 200 * 2**20}
    try:
        if given:
            socket.create_connection((host, int(port)), timeout=10).close()  # ray itself tries for minutes
        ray.init(address or "local", **({} if address else alone), log_to_driver=False, logging_level="ERROR")
    except (OSError, OverflowError, ValueError) as error:
        raise ConfigError(
            f"No Ray cluster answers at {address!r} ({error}). Start one with 'ray start --head' and pass the address that it "
            "prints, or leave out the address."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def train_once(algorithm: Any) -> dict[str, float]:
    """Run one iteration of sampling and learning.

    Returns:
        ``steps``, the steps of the environment so far; ``mean_return`` (of the single environment) and ``mean_length`` of the
        last 100 episodes. The means are NaN before the first episode has ended.
    """
    played = algorithm.train()[ENV_RUNNER_RESULTS]
    by_agent = played.get("agent_episode_returns_mean", {})  # of several agents
    return {
        "steps": int(played[NUM_ENV_STEPS_SAMPLED_LIFETIME]),
        "mean_return": float(by_agent.get(CONTROLLER, played.get(EPISODE_RETURN_MEAN, math.nan))),
        "mean_length": float(played.get(EPISODE_LEN_MEAN, math.nan)),
    }


Choose = Callable[[Any, dict[str, Any]], Any]
"""A function of an agent's name and its observation that returns its action."""


def make_env(env_id: str, view: str, env_config: dict[str, Any]) -> MultiAgentEnv:
    """The environment as :func:`score` plays it. In a view of a single agent, the agent's name is 0."""
    if view == MULTI_AGENT:
        return HSALMultiAgentEnv({**env_config, "env_id": env_id})
    alone = make_multi_agent(lambda _: gym.make(env_id, **{**env_config, "action_mode": view}))
    return alone({"num_agents": 1})


def at_random(env: MultiAgentEnv, seed: int) -> Choose:
    """Play uniformly drawn actions. If the view has an action mask, only actions that it allows."""
    for agent in env.possible_agents:
        env.get_action_space(agent).seed(seed)
    return lambda agent, seen: env.get_action_space(agent).sample(seen.get("action_mask"))


def stopping(env: MultiAgentEnv) -> Choose:
    """In the flat view, look at the first cell until a label may be named, and then say stop."""
    stop = int(env.get_action_space(0).n) - 1
    return lambda _, seen: stop if seen["action_mask"][stop] else 0


def greedy(algorithm: Any, env: MultiAgentEnv) -> Choose:
    """Play the most probable actions of a trained algorithm."""

    def choose(agent: Any, seen: dict[str, Any]) -> Any:
        module = algorithm.get_module(agent if isinstance(agent, str) else DEFAULT_MODULE_ID)
        flat = flatten_inputs_to_1d_tensor(seen, env.get_observation_space(agent).spaces, batch_axis=False)
        with torch.no_grad():
            output = module.forward_inference({Columns.OBS: torch.from_numpy(flat)[None]})
        scores = output[Columns.ACTION_DIST_INPUTS]
        action = module.get_inference_action_dist_cls().from_logits(scores).to_deterministic().sample()[0].numpy()
        return unsquash_action(action, env.get_action_space(agent))

    return choose


def score(env: MultiAgentEnv, choose: Choose, episodes: int) -> dict[str, Any]:
    """Play canvases 0 to ``episodes - 1``, once each.

    Returns:
        ``mean_return`` (of the single environment, which is the controller's); ``mean_length`` in decisions; the scores of
        :func:`hsal_env.multiset.scores`; and ``by_count``, see :func:`agents.evaluation.scores_by_count`.
    """
    earning = env.possible_agents[-1]
    total, steps = 0.0, 0
    named, true = [], []
    for index in range(episodes):
        seen, infos = env.reset(options={"index": index})
        over = False
        while not over:
            actions = {agent: choose(agent, part) for agent, part in seen.items()}
            seen, rewards, terminated, truncated, infos = env.step(actions)
            total, steps = total + rewards.get(earning, 0.0), steps + 1
            over = terminated["__all__"] or truncated["__all__"]
        named.append(infos[earning]["predicted_counts"])
        true.append(infos[earning]["label_counts"])
    told, counts = np.stack(named), np.stack(true)
    return {
        "mean_return": total / episodes,
        "mean_length": steps / episodes,
        **multiset.scores(told, counts),
        "by_count": scores_by_count(told, counts),
    }
