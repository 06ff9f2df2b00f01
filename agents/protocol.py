"""What an agent is: the contract that lets anyone's agent be trained, saved, loaded and tested by our commands.

An agent is an ``nn.Module`` with three methods. ``initial`` makes its recurrent state, an explicit value. ``act`` makes one
decision for B lanes of the native environment. ``evaluate`` scores the decisions of a stored trajectory with gradient.
Playing needs the first two alone (:class:`Actor`). ``docs/agents.md`` says all of it on one page, with a test for yours;
``examples/hsal_ram`` is an agent in a package of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from agents.config import AgentConfig
from hsal_env.errors import ConfigError
from hsal_env.plugins import Trust, check_name_in_file, find_object
from hsal_env.rules import Rules

if TYPE_CHECKING:
    from typing_extensions import Self

    from agents.trajectory import Evaluation, Trajectory
    from hsal_env.perception.examples import Examples

ENTRY_POINTS = "hsal.agents"
_OURS = {"hsal": "agents.actor_critic:ActorCritic"}

RecurrentState: TypeAlias = Any
"""A tensor ``[B, ...]`` or a nested tuple of them. Only the agent that made it looks inside."""


class World(NamedTuple):
    """What an agent must know about an environment to be built for it.

    Attributes:
        rules: the rules of the decision process.
        map_size: (H, W) in cells.
        channels: D.
        num_classes: C.
    """

    rules: Rules
    map_size: tuple[int, int]
    channels: int
    num_classes: int

    @classmethod
    def of(cls, examples: Examples) -> World:
        """The world of the environment that has these ``examples``."""
        config = examples.config
        return cls(config.rules, examples.map_size, examples.channels, config.classes)


class Decision(NamedTuple):
    """What ``act`` returns for B lanes.

    Attributes:
        action: batched native action. Parts that the phase does not read may be left out.
        log_prob: ``[B]``: log-probability of the location or label, or of attention that was drawn; 0 for deterministic
            attention.
        value: ``[B]``: estimate of the state's value; 0 for deterministic attention.
        state: the recurrent state to pass to the next call.
        log_probs: ``[B, n]``: log-probabilities of all locations or labels, if all lanes are in one phase. Traces show them, and
            the upper level of an agent that draws attention is rewarded by those of labels. None: the agent does not tell.
        draws: what an agent that draws its attention drew at phase 0: a tensor ``[B, ...]`` or a nested tuple of them. The
            trajectory keeps it for ``evaluate``. Of a named tuple, traces show the part ``cell``, int64 ``[B]``. None: attention
            is deterministic, or no lane is at phase 0.
        entropy: ``[B]``: entropy of the distribution of the draws, for traces. None: the agent does not tell.
    """

    action: dict[str, Tensor]
    log_prob: Tensor
    value: Tensor
    state: RecurrentState
    log_probs: Tensor | None = None
    draws: Any = None
    entropy: Tensor | None = None


class Actor(Protocol):
    """The part of the contract that playing needs."""

    def initial(self, lanes: int) -> RecurrentState:
        """The recurrent state at the start of an episode."""
        ...

    def act(
        self,
        observation: dict[str, Tensor],
        state: RecurrentState,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
    ) -> Decision:
        """One decision per lane from batched native observations.

        Actions are drawn from ``generator`` alone, best by :func:`agents.sampling.sample`.
        """
        ...


@runtime_checkable
class Agent(Actor, Protocol):
    """The contract: an ``nn.Module`` that can play and score. ``Agent(world, config)`` builds one.

    ``config`` is an :class:`agents.config.AgentConfig`, the settings of HSAL's own agent. Another agent reads those that it
    shares, or none. The members after ``evaluate`` are those of ``nn.Module`` that our commands use.
    """

    def evaluate(self, trajectory: Trajectory) -> Evaluation:
        """Scores of the stored decisions, with gradient."""
        ...

    training: bool

    def parameters(self) -> Iterator[nn.Parameter]: ...  # noqa: D102
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...  # noqa: D102
    def state_dict(self) -> dict[str, Any]: ...  # noqa: D102
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...  # noqa: D102
    def train(self, mode: bool = True) -> Self: ...  # noqa: D102
    def eval(self) -> Self: ...  # noqa: D102
    def to(self, device: str, /) -> Self: ...  # noqa: D102


@runtime_checkable
class FixesWeights(Protocol):
    """An addition to the contract that an agent may have."""

    def weights_fixed(self) -> AbstractContextManager[None]:
        """A block of calls of ``act`` in which the weights do not change."""
        ...


def find_agent(name: str) -> Callable[[World, AgentConfig], Agent]:
    """The agent class registered under ``name`` in the entry-point group ``hsal.agents``, or ``package.module:Name``.

    Raises:
        ConfigError: nothing of that name is installed, it cannot be imported, or it lacks a method.
    """
    found = find_object(name, "agent", _OURS, ENTRY_POINTS)
    missing = [method for method in ("initial", "act", "evaluate") if not callable(getattr(found, method, None))]
    if missing:
        raise ConfigError(f"Agent {name!r} lacks {', '.join(missing)}; see agents/protocol.py.")
    return found


def check_agent_in_file(name: str, trust: Trust = False) -> None:
    """Refuse an agent's name that stands in a file, see :func:`hsal_env.plugins.check_name_in_file`.

    Raises:
        ConfigError: it would run code that nobody here has chosen.
    """
    check_name_in_file(name, "agent", _OURS, ENTRY_POINTS, trust)


def build_agent(name: str, world: World, config: AgentConfig) -> Agent:
    """Build the agent ``find_agent(name)(world, config)``.

    Raises:
        ConfigError: see :func:`find_agent`; or the agent is not an ``nn.Module``.
    """
    agent = find_agent(name)(world, config)
    if not isinstance(agent, nn.Module):
        raise ConfigError(f"Agent {name!r}: expected an nn.Module; got {type(agent).__name__}.")
    return agent
