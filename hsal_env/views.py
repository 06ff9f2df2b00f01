"""Views that make several decisions in one step, or leave those of one level to a given policy; and the table of all views.

No equation and no rule is written here: each decision is one of :mod:`hsal_env.dynamics`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from hsal_env import dynamics
from hsal_env.config import ActionMode, EnvConfig
from hsal_env.dynamics import Action, Outcome, State
from hsal_env.errors import ActionError, ConfigError
from hsal_env.policies import BuiltPolicy, Policy, WinnerTakeAll, given_policy
from hsal_env.rules import Rules
from hsal_env.spaces import BoxesView, FlatView, NativeView, PackedView, View, read_discrete, read_part


def _meta_step(state: State, action: Action, decide: Callable[[State], tuple[Action, State]], rules: Rules) -> Outcome:
    """The attention of ``action``, then k locations and a label from ``decide``. The reward is their sum."""
    outcome = dynamics.transition(state, action, rules)
    for _ in range(rules.glimpses + 1):
        chosen, before = decide(outcome.state)
        following = dynamics.transition(before, chosen, rules)
        outcome = following._replace(
            reward=outcome.reward + following.reward, between=(*outcome.between, outcome.state)
        )
    return outcome


class _Given:
    """A given policy, and the observations that it sees."""

    def __init__(
        self, policy: Policy | str | None, config: EnvConfig, channels: int, map_size: tuple[int, int]
    ) -> None:
        self.policy = given_policy(policy, config.rules)
        if isinstance(self.policy, BuiltPolicy):
            world = self.policy.world
            made = (world.rules.glimpses, world.map_size, world.channels, world.num_classes)
            here = (config.glimpses, map_size, channels, config.classes)
            if made != here:
                raise ConfigError(
                    "The given policy was built for another environment: glimpses, map size, channels and classes of "
                    f"{made}, here {here}. Pass another policy, or make the environment that it was built for."
                )
        self._draws = "generator" in inspect.signature(self.policy.act).parameters
        self._generator: torch.Generator | None = None
        self._seen = NativeView(
            dataclasses.replace(config, action_mode="native", include_image=False), channels, map_size
        )

    def begin(self, state: State) -> State:
        """Begin with the recurrent state that the policy begins with."""
        return state._replace(memory=self.policy.initial(len(state.phase)))

    def ask(self, state: State) -> tuple[dict[str, Any], State]:
        """The action of the policy, and the state with its next recurrent state."""
        drawn: dict[str, Any] = {}
        if self._draws:  # some agents of ours draw even when greedy; not from the caller's generator
            self._generator = self._generator or torch.Generator(state.saliency.device)
            drawn = {"generator": self._generator}
        with torch.inference_mode(False), torch.no_grad():  # a policy may keep tensors, and be trained later
            choice = self.policy.act(self._seen.observe(state, None), state.memory, deterministic=True, **drawn)
        return choice.action, state._replace(memory=choice.state)

    def decide(self, state: State) -> tuple[Action, State]:
        """The same, with the action as a decision.

        Raises:
            ConfigError: the environment does not take the action.
        """
        action, following = self.ask(state)
        try:
            return self._seen.decode(action, state), following
        except ActionError as error:
            raise ConfigError(
                f"The given policy {type(self.policy).__name__} does not fit this environment, whose masks have "
                f"components={self._seen.rules.components} Gaussians: {error} Pass another policy, or other components."
            ) from error


class OptionView(NativeView):
    """One step is one meta-step: the learner attends, and a given controller glimpses and names. Actions are continuous.

    | | |
    |---|---|
    | action | ``Box(-1, 1, (4K,))``: attention, as in the native view |
    | observation | ``saliency`` ``[H W]``, ``last_label``; ``image`` and ``volume`` by configuration |
    | reward | the sum over the meta-step: P at each of its k locations, plus the reward of the label |
    | episode | at most max_objects + 1 steps; the controller ends it by stop |
    | arguments | ``policy``, the controller: see :func:`hsal_env.policies.given_policy` |

    The controller takes the most probable locations and labels, so that the environment is deterministic.
    """

    keys = ("saliency", "last_label")
    vectors = True

    def __init__(
        self, config: EnvConfig, channels: int, map_size: tuple[int, int], policy: Policy | str | None
    ) -> None:
        super().__init__(config, channels, map_size)
        self._given = _Given(policy, config, channels, map_size)
        if isinstance(self._given.policy, WinnerTakeAll):
            raise ConfigError("The option view needs a policy that names labels; 'winner-take-all' only attends.")

    def _action_space(self) -> spaces.Space[Any]:
        return self._attention_space()

    def begin(self, state: State) -> State:
        """See :class:`hsal_env.spaces.View`."""
        return self._given.begin(state)

    def step(self, state: State, action: Any) -> Outcome:
        """See :class:`hsal_env.spaces.View`."""
        attention = self.decode({"attention": action}, state)
        _, state = self._given.ask(state)  # its mask is not used, but it may remember what it sees here
        return _meta_step(state, attention, self._given.decide, self.rules)


class ControllerView(FlatView):
    """A given meta-controller attends; the learner glimpses and names.

    | | |
    |---|---|
    | action | ``Discrete(H W + C + 1)``: cells, then labels, then stop, as in the flat view |
    | observation | as in the flat view, at phases 1..k + 1, with ``action_mask`` |
    | reward | P at a location, and the reward of a label; a forbidden action earns -1 and changes nothing |
    | episode | at most (max_objects + 1)(k + 1) steps, where forbidden ones do not count |
    | arguments | ``policy``, the meta-controller: see :func:`hsal_env.policies.given_policy` |
    """

    def __init__(
        self, config: EnvConfig, channels: int, map_size: tuple[int, int], policy: Policy | str | None
    ) -> None:
        super().__init__(config, channels, map_size)
        self._given = _Given(policy, config, channels, map_size)

    def begin(self, state: State) -> State:
        """See :class:`hsal_env.spaces.View`."""
        return self._attend(self._given.begin(state))

    def step(self, state: State, action: Any) -> Outcome:
        """See :class:`hsal_env.spaces.View`."""
        outcome = super().step(state, action)
        return outcome._replace(state=self._attend(outcome.state), between=(outcome.state,))

    def _attend(self, state: State) -> State:
        """Place the mask in the lanes where a meta-step begins."""
        begins = state.phase == 0
        if not bool(begins.any()):
            return state
        action, following = self._given.decide(state._replace(phase=torch.zeros_like(state.phase)))
        return dynamics.select(begins, dynamics.attend(following, action.attention, self.rules), state)


class MacroView(NativeView):
    """One step is one meta-step, and all its decisions are one action. For agents that read the volume or the image.

    | | |
    |---|---|
    | action | ``MultiDiscrete([H W] * (k + 1) + [C + 1])``: the cell of one spotlight, k locations, a label or stop |
    | observation | ``saliency`` ``[H W]``, ``last_label``, ``volume`` ``[D H W]``; ``image`` by configuration |
    | reward | the sum over the meta-step: P at each of the k locations, plus the reward of the label |
    | episode | at most max_objects + 1 steps; stop ends it |
    """

    keys = ("saliency", "last_label")
    vectors = True

    def _action_space(self) -> spaces.Space[Any]:
        return spaces.MultiDiscrete(np.array([self.cells] * (self.glimpses + 1) + [self.stop + 1]))

    def step(self, state: State, action: Any) -> Outcome:
        """See :class:`hsal_env.spaces.View`."""
        given = read_part({"action": action}, "action", state.saliency.device)
        if given.shape != (len(state.phase), self.glimpses + 2):
            raise ActionError(
                f"Expected actions of shape {(len(state.phase), self.glimpses + 2)}; got {tuple(given.shape)}."
            )
        attended, *locations = (
            read_discrete({"cell": part}, "cell", self.cells, state.meta_step) for part in given[:, :-1].unbind(dim=1)
        )
        label = read_discrete({"label": given[:, -1]}, "label", self.stop + 1, state.meta_step)
        first = Action(self._spotlight(attended), attended, label)
        following = iter([first._replace(location=location) for location in locations] + [first])
        return _meta_step(state, first, lambda before: (next(following), before), self.rules)


VIEWS: dict[ActionMode, type[NativeView]] = {
    "native": NativeView,
    "flat": FlatView,
    "packed": PackedView,
    "option": OptionView,
    "controller": ControllerView,
    "macro": MacroView,
}
"""The class of each ``action_mode``."""


def make_view(config: EnvConfig, channels: int, map_size: tuple[int, int], policy: Policy | str | None = None) -> View:
    """The view that ``config.action_mode`` names, in Box parts alone if ``config.boxes``.

    Raises:
        ConfigError: a policy for a view that leaves no level to it; or see :func:`hsal_env.policies.given_policy`.
    """
    made = VIEWS[config.action_mode]
    given = made in (OptionView, ControllerView)
    if policy is not None and not given:
        raise ConfigError(
            f"action_mode={config.action_mode!r} leaves no level to a given policy; leave out policy=, which is for 'option' and "
            "'controller'."
        )
    view = made(config, channels, map_size, policy) if given else made(config, channels, map_size)  # type: ignore[call-arg]
    return BoxesView(view) if config.boxes else view
