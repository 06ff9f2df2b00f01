"""Given policies: they decide on the level that a view does not leave to the learner."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

from torch import Tensor

from hsal_env import functional as F
from hsal_env.errors import ConfigError
from hsal_env.plugins import import_object
from hsal_env.rules import Rules
from hsal_env.spaces import attention_action


class Policy(Protocol):
    """What a view asks of a given policy. Every agent of ours is one (:class:`agents.protocol.Agent`).

    A policy sees the native observation of B lanes, without the image. It is asked at phase 0, and at later phases if it
    decides there.
    """

    def initial(self, lanes: int) -> Any:
        """The recurrent state at the start of an episode: any nested tuple of ``[B, ...]`` tensors."""
        ...

    def act(self, observation: dict[str, Tensor], state: Any, deterministic: bool = False) -> Decided:
        """One decision per lane."""
        ...


class Decided(Protocol):
    """What ``act`` returns: a :class:`Choice`, or another object with its attributes."""

    @property
    def action(self) -> dict[str, Tensor]:
        """A batched native action."""
        ...

    @property
    def state(self) -> Any:
        """The recurrent state to pass to the next call."""
        ...


class World(Protocol):
    """The environment that a policy was built for, as :class:`agents.protocol.World` says it."""

    @property
    def rules(self) -> Rules:
        """The rules of the decision process."""
        ...

    @property
    def map_size(self) -> tuple[int, int]:
        """(H, W) in cells."""
        ...

    @property
    def channels(self) -> int:
        """D."""
        ...

    @property
    def num_classes(self) -> int:
        """C."""
        ...


@runtime_checkable
class BuiltPolicy(Protocol):
    """A policy that says which environment it was built for, as agents of ours do. It is refused in others."""

    @property
    def world(self) -> World:
        """That environment."""
        ...


class Choice(NamedTuple):
    """What ``act`` may return.

    Attributes:
        action: batched native action; parts that the phase does not read may be left out.
        state: the recurrent state to pass to the next call.
    """

    action: dict[str, Tensor]
    state: Any


class WinnerTakeAll:
    """Attention as in Itti and Koch's model: one spotlight on the most salient cell. Glimpses go to the peak of P. No labels.

    Args:
        rules: the rules of the environment.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules

    def initial(self, lanes: int) -> tuple[()]:
        """It remembers nothing."""
        return ()

    def act(self, observation: dict[str, Tensor], state: Any, deterministic: bool = False) -> Choice:
        """See :class:`Policy`."""
        raw = winner_take_all(observation["saliency"], self.rules)
        location = observation["priority"].flatten(1).argmax(dim=1)
        return Choice({"attention": attention_action(raw), "location": location}, ())


def winner_take_all(saliency: Tensor, rules: Rules) -> Tensor:
    """Raw attention ``[B, 4K]``: a spotlight on the most salient cell of ``[B, H, W]``.

    Example:
        >>> import torch
        >>> raw = winner_take_all(torch.tensor([[[0.0, 1.0], [0.0, 0.0]]]), Rules(components=1))
        >>> place = F.mixture(raw, map_size=(2, 2))
        >>> round(place.row.item(), 2), round(place.col.item(), 2)  # the second column, as near as the sigmoid gets
        (1.0, 2.0)
    """
    rows, columns = saliency.shape[1:]
    return F.spotlight(saliency.flatten(1).argmax(dim=1), (rows, columns), rules.components, rules.coordinates)


def given_policy(policy: Policy | str | None, rules: Rules) -> Policy:
    """The policy that ``policy`` means.

    Args:
        policy: ``"winner-take-all"``; ``"package.module:Name"``, which is called without arguments; or the policy itself.
        rules: the rules of the environment.

    Raises:
        ConfigError: None, an unknown name, one that cannot be imported, a class, or an object without ``initial`` or ``act``.
    """
    if policy is None:
        raise ConfigError(
            "Expected a policy for the level that this view leaves to one; got none. Pass "
            "policy=agents.load('mnist-multiset').agent, "
            "'agents.policies:mnist_multiset', or an object of your own with initial and act; 'winner-take-all' only attends."
        )
    if isinstance(policy, str):
        if policy == "winner-take-all":
            return WinnerTakeAll(rules)
        if ":" not in policy:
            raise ConfigError(
                f"Expected policy to be 'winner-take-all' or 'package.module:Name'; got {policy!r}. A trained agent is "
                "policy=agents.load(NAME).agent."
            )
        policy = cast(Policy, import_object(policy, "policy")())
    missing = [name for name in ("initial", "act") if not callable(getattr(policy, name, None))]
    if missing or isinstance(policy, type):
        raise ConfigError(
            f"Expected a policy object with initial and act; {getattr(policy, '__name__', type(policy).__name__)} "
            + (f"lacks {', '.join(missing)}." if missing else "is a class: pass an instance.")
            + (" Pass its .agent." if hasattr(policy, "agent") else "")
        )
    return policy
