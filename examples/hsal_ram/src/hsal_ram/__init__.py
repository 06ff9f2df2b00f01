"""RAM as an agent for HSAL: one recurrent network for a whole episode, in a package to copy from.

After "Recurrent Models of Visual Attention" (Mnih, Heess, Graves, Kavukcuoglu, NIPS 2014), brought to HSAL's decision
process. Once installed, ``python train/ppo_or_reinforce.py --agent ram`` trains it. The contract that it fulfils is
``docs/agents.md`` of HSAL.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from agents.config import AgentConfig
from agents.encoding import one_hot_or_zeros
from agents.protocol import Decision, World
from agents.sampling import sample
from agents.trajectory import Evaluation, Trajectory
from hsal_env import dynamics
from hsal_env import functional as F
from hsal_env.errors import ConfigError
from hsal_env.spaces import attention_action

__all__ = ["RAM"]


class RAM(nn.Module):
    """A recurrent glimpse agent without a meta-controller.

    One core reads every glimpse of an episode, ``h_n = GRU(relu(W x_n), h_{n-1})``, with
    ``x_n = [g, P, last location, last label]``; it is never reset within the episode. Three linear heads read it: location
    (a softmax over cells, in place of RAM's Gaussian over coordinates), label, and baseline.

    RAM's sensor sees the surroundings of a location at several scales, the coarsest of them most of the image. HSAL's
    glimpse g is one column of V, so the priority map P takes the part of the coarse scales: the core reads it, and the
    location scores are ``W h + w P`` with a learned w. The saliency map S is read by the rule in :meth:`attend` alone.

    Location and baseline heads read the detached core, which learns from the labels alone.

    Args:
        world: the environment it is for.
        config: settings of HSAL's own agent. RAM reads ``controller_hidden``, the size of the core, and
            ``location_prior``, where w starts, and ignores the others.

    Raises:
        ConfigError: an environment without glimpses.
    """

    def __init__(self, world: World, config: AgentConfig) -> None:
        super().__init__()
        if world.rules.glimpses < 1:
            raise ConfigError(f"RAM needs glimpses: expected glimpses of at least 1; got {world.rules.glimpses}.")
        self.world = world
        self.cells, self.labels = world.map_size[0] * world.map_size[1], world.num_classes + 1
        hidden = config.controller_hidden
        self.glimpse = nn.Linear(world.channels + self.cells + self.cells + self.labels, hidden)
        self.core = nn.GRUCell(hidden, hidden)
        self.location = nn.Linear(hidden, self.cells)
        self.location_prior = nn.Parameter(torch.tensor(float(config.location_prior)))
        self.label = nn.Linear(hidden, self.labels)
        self.baseline = nn.Linear(hidden, 1)

    def initial(self, lanes: int) -> Tensor:
        """The core before the first glimpse: zeros ``[B, hidden]``."""
        return self.label.weight.new_zeros(lanes, self.core.hidden_size)

    def act(
        self,
        observation: dict[str, Tensor],
        state: Tensor,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
    ) -> Decision:
        """One decision per lane. All three parts are decided for every lane; its phase says which one counts."""
        phase = observation["phase"].to(state.device)  # it comes on the CPU
        attends, names = phase == 0, phase == self.world.rules.glimpses + 1
        state = torch.where(attends[:, None], state, self.read(observation, state))  # phase 0 brings no glimpse

        def choose(log_probs: Tensor) -> tuple[Tensor, Tensor]:
            sampled = sample(log_probs.exp(), generator)
            chosen = log_probs.argmax(dim=1) if deterministic else sampled
            return chosen, log_probs.gather(1, chosen[:, None]).squeeze(1)

        location, location_log_prob = choose(self.location_log_probs(state, observation["priority"]))
        label, label_log_prob = choose(self.label_log_probs(state))
        attention = attention_action(self.attend(observation["saliency"]))
        return Decision(
            action={"attention": attention, "location": location, "label": label},
            log_prob=torch.where(names, label_log_prob, location_log_prob) * ~attends,
            value=self.values(state) * ~attends,
            state=state,
        )

    def evaluate(self, trajectory: Trajectory) -> Evaluation:
        """Run the decision process again with gradient, taking the stored locations and labels."""
        rules, state = self.world.rules, self.initial(trajectory.labels.shape[1])
        seen = dynamics.initial(trajectory.example, rules)
        location_log_probs, label_log_probs, values, location_rewards, label_rewards = [], [], [], [], []
        for locations, label in zip(trajectory.locations, trajectory.labels, strict=True):
            seen = dynamics.attend(seen, self.attend(seen.saliency), rules)
            for location in locations:
                state = self.read(seen._asdict(), state)
                location_log_probs.append(self.location_log_probs(state, seen.priority))
                location_rewards.append(F.location_rewards(seen.priority))
                values.append(self.values(state))
                seen = dynamics.look(seen, location, rules).state
            state = self.read(seen._asdict(), state)
            label_log_probs.append(self.label_log_probs(state))
            label_rewards.append(dynamics.label_rewards(seen, rules))
            values.append(self.values(state))
            seen = dynamics.name_object(seen, label, rules).state
        steps, glimpses = trajectory.locations.shape[:2]
        return Evaluation(
            location_log_probs=torch.stack(location_log_probs).unflatten(0, (steps, glimpses)),
            label_log_probs=torch.stack(label_log_probs),
            values=torch.stack(values).unflatten(0, (steps, glimpses + 1)),
            location_rewards=torch.stack(location_rewards).unflatten(0, (steps, glimpses)),
            label_rewards=torch.stack(label_rewards),
        )

    def attend(self, saliency: Tensor) -> Tensor:
        """The fixed rule in place of a meta-controller: a spotlight on the most salient cell, raw numbers ``[B, 4K]``."""
        rules = self.world.rules
        winner = saliency.flatten(1).argmax(dim=1)
        attention = F.spotlight(winner, self.world.map_size, rules.components, rules.coordinates)
        return attention.clamp(-F.RAW_LIMIT, F.RAW_LIMIT)

    def read(self, seen: dict[str, Tensor], state: Tensor) -> Tensor:
        """Read one glimpse: the next state ``[B, hidden]``."""
        x = [
            seen["glimpse"],
            seen["priority"].flatten(1),
            one_hot_or_zeros(seen["last_location"], self.cells),
            one_hot_or_zeros(seen["last_label"], self.labels),
        ]
        return self.core(self.glimpse(torch.cat(x, dim=1)).relu(), state)

    def location_log_probs(self, state: Tensor, priority: Tensor) -> Tensor:
        """``log softmax`` over cells ``[B, H W]``."""
        return (self.location(state.detach()) + self.location_prior * priority.flatten(1)).log_softmax(dim=1)

    def label_log_probs(self, state: Tensor) -> Tensor:
        """``log softmax`` over labels and stop ``[B, C + 1]``."""
        return self.label(state).log_softmax(dim=1)

    def values(self, state: Tensor) -> Tensor:
        """The baseline ``[B]``."""
        return self.baseline(state.detach()).squeeze(-1)
