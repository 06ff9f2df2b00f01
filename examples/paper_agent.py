"""The paper's agent and how it learns, in one file, to be read from top to bottom.

    python examples/paper_agent.py                   # MNIST Multiset
    python examples/paper_agent.py --source digits   # needs no download

Welleck, Mao, Cho, Zhang, "Saliency-based Sequential Image Attention with Multiset Prediction", NIPS 2017. An image holds
several objects. The agent names them one by one, in any order, and then says "stop". Each meta-step t = 1, 2, ... has four parts:

    meta-controller   S_t -> Gaussian attention, a mask M_t over the saliency map S_t
    interface         M_t -> priority map P_t = M_t * S_t, first glimpse g_0 = sum_ij M_ij V_ij
    controller        P_t, g_0 -> k locations a_i, each of which shows a glimpse g_i = V[a_i], then a label a_{k+1}
    update            S_{t+1} = max(S_t - M_t, 0), and 0 at the locations

The environment does what is not learned. It makes the activation volume V and S_1 from the image, and computes interface,
glimpses, update and rewards (``hsal_env/functional.py``, ``hsal_env/dynamics.py``). What is learned is here: two networks, one
loss, a loop.

Agent and loss are those of ``train/ppo_or_reinforce.py --preset faithful``, as a test checks. C1 to C7 and L1 to L7 number our
readings of what the paper leaves open (``docs/decisions.md``).

Shapes: B images, M meta-steps, k glimpses, H x W cells of the maps, D channels of V, K Gaussians, C classes; label C is stop.
Tensors ``[M, k + 1, B]`` hold the paper's p_{t,i}, R_{t,i} and V(s_{t,i}), i = 1 .. k + 1.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn.functional import one_hot
from tqdm import tqdm

from hsal_env import dynamics, multiset
from hsal_env import functional as F
from hsal_env.errors import ConfigError, HSALError
from hsal_env.spaces import attention_action
from hsal_env.vector_env import HSALVectorEnv


@dataclass(frozen=True)
class Args:
    """Train the paper's agent by REINFORCE, then test it on images it has not seen."""

    env_id: str = "HSAL-MNISTMultiset-v0"
    """the environment"""
    source: str | None = None
    """mnist, digits or auto; default: the id's"""
    num_examples: int = 60_000
    """training images"""
    test_episodes: int = 2_000
    """test images"""
    seed: int = 0
    """of weights, order of images and samples"""
    batch_size: int = 512
    """images in a roll-out, one gradient step each"""
    passes: int = 8
    """passes over the training images"""
    learning_rate: float = 2e-3
    """Adam's, at its peak"""
    location_lr_scale: float = 3.0
    """the location head's learning rate is this many times as high (L7)"""
    priority_gain: float = 24.0
    """the encoder's weights of P start this many times as large (C7): beside g_0, P would hardly show in h"""
    vf_coef: float = 0.5
    """weight of the value loss"""
    ent_coef: float = 0.2
    """weight of the labels' entropy bonus, which the paper does not have (L7): it keeps the agent from always saying stop"""
    location_ent_coef: float = 0.05
    """weight of the locations' entropy bonus at the first update"""
    last_location_ent_coef: float = 0.01
    """the same at the last update, linear in between"""
    max_grad_norm: float = 1.0
    """clip the gradient to this norm"""


# --- the two networks (section 3) ---------------------------------------------------------------------------------------

Observation = dict[str, Tensor]  # the environment's, or a State of hsal_env.dynamics as a dict: they use the same names


def one_hot_or_zeros(index: Tensor, size: int) -> Tensor:
    """``[B]`` to float ``[B, size]``; the index ``size`` stands for "none yet" and gives zeros (C2)."""
    return one_hot(index, size + 1)[:, :-1].float()


class MetaController(nn.Module):
    """``x_t = [S_t, y_{t-1}]``, ``e_t = W_encode x_t``, ``h_t = GRU(e_t, h_{t-1})``, raw attention ``= W_attn h_t``."""

    def __init__(self, cells: int, labels: int, components: int, hidden: int = 128) -> None:
        super().__init__()
        self.labels = labels
        self.encode = nn.Linear(cells + labels, hidden)
        self.gru = nn.GRUCell(hidden, hidden)
        self.attention = nn.Linear(hidden, 4 * components)

    def forward(self, observation: Observation, h: Tensor | None) -> tuple[Tensor, Tensor]:
        """Raw alpha, beta, kappa_1, kappa_2 of the Gaussians ``[B, 4K]``, and h_t ``[B, 128]``; h None stands for zeros."""
        last_label = one_hot_or_zeros(observation["last_label"], self.labels)
        x = torch.cat([observation["saliency"].flatten(1), last_label], dim=1)
        h = self.gru(self.encode(x), h)
        return self.attention(h).clamp(-F.RAW_LIMIT, F.RAW_LIMIT), h


class Controller(nn.Module):
    """``x_i = [P_t, y_{t-1}, a_{i-1}, g_{i-1}]``, ``e_i = W_encode x_i``, ``h_i = GRU(e_i, h_{i-1})``, and three heads.

    ``p_i = softmax(MLP(h_i))`` over locations for i = 1 .. k, ``p_{k+1} = softmax(W_class h_{k+1})`` over labels, and the
    baseline ``V(s_i) = w h_i``. MLP and baseline read h_i detached (appendix A; C4). So the GRU and the encoder learn from
    the labels' part of the loss alone, and so does the meta-controller, which the gradient reaches through P_t and g_0.
    """

    def __init__(self, cells: int, labels: int, channels: int, glimpses: int, gain: float, hidden: int = 512) -> None:
        super().__init__()
        self.cells, self.labels, self.glimpses = cells, labels, glimpses
        self.encode = nn.Linear(cells + labels + cells + channels, hidden)
        with torch.no_grad():
            self.encode.weight[:, :cells] *= gain  # the columns that read P (C7)
        self.gru = nn.GRUCell(hidden, hidden)
        self.location = nn.Sequential(nn.Linear(hidden, 64), nn.ReLU(), nn.Linear(64, cells))
        self.label = nn.Linear(hidden, labels)
        self.value = nn.Linear(hidden, 1)

    def forward(self, observation: Observation, h: Tensor | None, i: int) -> tuple[Categorical, Tensor, Tensor]:
        """Step i: p_i over ``[B, H W]`` locations or ``[B, C + 1]`` labels, V(s_i) ``[B]``, and h_i ``[B, 512]``."""
        last_label = one_hot_or_zeros(observation["last_label"], self.labels)
        last_location = one_hot_or_zeros(observation["last_location"], self.cells)
        x = torch.cat([observation["priority"].flatten(1), last_label, last_location, observation["glimpse"]], dim=1)
        h = self.gru(self.encode(x), h)
        scores = self.location(h.detach()) if i <= self.glimpses else self.label(h)
        return Categorical(logits=scores), self.value(h.detach()).squeeze(-1), h


class Agent(nn.Module):
    """Both levels, in the sizes that an environment asks for."""

    def __init__(self, env: HSALVectorEnv, priority_gain: float) -> None:
        super().__init__()
        self.rules, examples = env.simulation.rules, env.simulation.examples
        cells, labels = math.prod(examples.map_size), env.simulation.config.classes + 1
        self.meta_controller = MetaController(cells, labels, self.rules.components)
        self.controller = Controller(cells, labels, examples.channels, self.rules.glimpses, priority_gain)


# --- act: an episode of B images, without gradient ----------------------------------------------------------------------


class Trajectory(NamedTuple):
    """The episodes of B images: what was decided, and what it earned."""

    start: dynamics.State  # where the episodes began: V, S_1, the true counts of labels
    actions: Tensor  # a_{t,i}, k locations and a label, int64 [M, k + 1, B]
    rewards: Tensor  # R_{t,i} [M, k + 1, B]
    live: Tensor  # the episode had not ended before meta-step t, bool [M, B]
    final: Tensor  # the episode ended with meta-step t; in training t = m + 1 for an image of m objects, bool [M, B]


@torch.no_grad()
def act(agent: Agent, env: HSALVectorEnv, indices: np.ndarray, greedy: bool = False) -> Trajectory:
    """Play the images ``indices`` ``[B]``: ``a_i ~ p_i``, or the most probable action.

    The meta-controller's state lasts for the episode, the controller's begins every meta-step at zero (C1).
    """
    observation, _ = env.reset(options={"index": indices})
    start, meta_state, ended = env.state, None, torch.zeros(len(indices), dtype=torch.bool)
    steps = []
    while not ended.all():  # an episode that has ended is played on, without effect, until the last one ends
        live, controller_state, actions, rewards = ~ended, None, [], []
        attention, meta_state = agent.meta_controller(observation, meta_state)
        observation, *_ = env.step({"attention": attention_action(attention)})
        for i in range(1, agent.rules.glimpses + 2):
            p, _, controller_state = agent.controller(observation, controller_state, i)
            action = p.mode if greedy else p.sample()
            name = "location" if i <= agent.rules.glimpses else "label"
            observation, reward, terminated, truncated, _ = env.step({name: action})
            actions.append(action)
            rewards.append(reward)
        ended = terminated | truncated
        steps.append((torch.stack(actions), torch.stack(rewards), live, live & ended))
    return Trajectory(start, *(torch.stack(rows) for rows in zip(*steps, strict=True)))


# --- evaluate: the same decisions, with gradient ------------------------------------------------------------------------


class Evaluation(NamedTuple):
    """The agent's scores of a trajectory's decisions, with gradient."""

    log_probs: Tensor  # log p_{t,i} of the actions [M, k + 1, B]
    entropies: Tensor  # H(p_{t,i}) [M, k + 1, B]
    values: Tensor  # V(s_{t,i}) [M, k + 1, B]
    stop_log_probs: Tensor  # log p_{t,k+1} of stop [M, B]


def evaluate(agent: Agent, trajectory: Trajectory) -> Evaluation:
    """Play the episodes again, with the stored locations and labels, through the functions that the environment is made of.

    The attention is not sampled and not stored: it is computed anew. It has no reward either. The meta-controller learns by
    back-propagation from the labels' loss to P_t, g_0 and S_{t+1}, and from them to M_t, a "path of deterministic nodes"
    (section 4.2).
    """
    state, meta_state, rules, steps = trajectory.start, None, agent.rules, []
    for actions in trajectory.actions:  # [k + 1, B]
        controller_state, scores = None, []
        attention, meta_state = agent.meta_controller(state._asdict(), meta_state)
        state = dynamics.attend(state, attention, rules)
        for i, action in enumerate(actions, start=1):
            p, value, controller_state = agent.controller(state._asdict(), controller_state, i)
            scores.append(torch.stack([p.log_prob(action), p.entropy(), value]))  # [3, B]
            decide = dynamics.look if i <= rules.glimpses else dynamics.name_object
            state = decide(state, action, rules).state
        steps.append((*torch.stack(scores, dim=1), p.logits[:, -1]))  # the last p is over labels; its logits are log p
    return Evaluation(*(torch.stack(rows) for rows in zip(*steps, strict=True)))


# --- learn: REINFORCE with a baseline (section 4.2) ---------------------------------------------------------------------


def reinforce(
    trajectory: Trajectory, evaluation: Evaluation, vf_coef: float, ent_coef: float, location_ent_coef: float
) -> Tensor:
    """The loss: a weighted sum of four terms, each a sum over an episode and the mean over images (the paper's 1/B sum_b).

    - policy ``sum_{t,i} log p_{t,i} (V(s_{t,i}) - R_{t,i})``, the paper's L (L1). Each action is credited with its own reward
      (L2): a location with P_t there (L3), a label with +1 if it is in the multiset of those that remain, else -1.
    - stop ``-log p_{m+1,k+1}(stop)``. At meta-step m + 1, when all m objects are named, it replaces the label's reward (L4).
    - value ``sum_{t,i} (V(s_{t,i}) - R_{t,i})**2``.
    - entropy ``sum_{t,i} H(p_{t,i})``, over the decisions of the policy term, labels and locations with a weight each. Its
      sign is minus: entropy is to be high.
    """
    live = trajectory.live[:, None].expand_as(trajectory.rewards)  # [M, k + 1, B]
    rewarded = live.clone()
    rewarded[:, -1] &= ~trajectory.final
    error = evaluation.values - trajectory.rewards
    policy = (evaluation.log_probs * error.detach())[rewarded].sum()
    stop = -evaluation.stop_log_probs[trajectory.final].sum()
    value = error[live].square().sum()
    of_locations, of_label = evaluation.entropies.where(rewarded, 0.0).split([live.shape[1] - 1, 1], dim=1)
    entropy = ent_coef * of_label.sum() + location_ent_coef * of_locations.sum()
    return (policy + stop + vf_coef * value - entropy) / live.shape[-1]


# --- train, then test ---------------------------------------------------------------------------------------------------


def make_env(args: Args, num_envs: int, **task: Any) -> HSALVectorEnv:
    """An environment of ``num_envs`` lanes that begin together. It computes V of every image once, here, and keeps it."""
    task |= {"source": args.source} if args.source else {}
    task |= {"output": "torch", "features": "store", "include_image": False}
    env = gymnasium.make_vec(args.env_id, num_envs, autoreset_mode=AutoresetMode.DISABLED, **task)
    assert isinstance(env, HSALVectorEnv)
    return env


def test(agent: Agent, args: Args) -> dict[str, float]:
    """Greedy until "stop", at most max_objects + 1 labels, on images of the test split."""
    env = make_env(args, args.test_episodes, split="test", num_examples=args.test_episodes, protocol="free")
    trajectory = act(agent, env, np.arange(args.test_episodes), greedy=True)
    true = trajectory.start.example.counts  # [B, C]
    named = one_hot(trajectory.actions[:, -1], true.shape[1] + 1)[..., :-1] * trajectory.live[..., None]  # [M, B, C]
    return multiset.scores(named.sum(dim=0).numpy(), true.numpy())


def main(args: Args) -> dict[str, float]:
    """Train an agent; print and return its test scores."""
    torch.manual_seed(args.seed)
    # "teacher": an early stop earns -1 and does not end the episode, so that every object has its meta-step (L4)
    env = make_env(args, args.batch_size, num_examples=args.num_examples, protocol="teacher")
    size = len(env.simulation.examples)
    if size < args.batch_size:
        raise ConfigError(f"Expected at least batch_size={args.batch_size} training images; got {size}.")
    passes = [np.random.default_rng([args.seed, n]).permutation(size) for n in range(args.passes)]
    whole = size // args.batch_size * args.batch_size
    batches = np.concatenate([order[:whole] for order in passes]).reshape(-1, args.batch_size)
    rise = 0.05 * len(batches)

    def learning_rate_factor(update: int) -> float:  # a line up to 1, then a cosine down to 0
        cosine = math.cos(math.pi * max(0.0, update - rise) / (len(batches) - rise))
        return min((update + 1) / (rise + 1), (1 + cosine) / 2)

    agent = Agent(env, args.priority_gain)
    head = list(agent.controller.location.parameters())
    others = [weight for weight in agent.parameters() if all(weight is not own for own in head)]
    groups: list[dict[str, Any]] = [
        {"params": others},
        {"params": head, "lr": args.learning_rate * args.location_lr_scale},
    ]
    optimiser = torch.optim.Adam(groups, lr=args.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, learning_rate_factor)
    bar = tqdm(batches, unit="update")
    falling = np.linspace(args.location_ent_coef, args.last_location_ent_coef, len(batches)).tolist()
    for indices, location_ent_coef in zip(bar, falling, strict=True):
        trajectory = act(agent, env, indices)
        evaluation = evaluate(agent, trajectory)
        loss = reinforce(trajectory, evaluation, args.vf_coef, args.ent_coef, location_ent_coef)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
        optimiser.step()
        schedule.step()
        label_rewards = trajectory.rewards[:, -1][trajectory.live & ~trajectory.final]
        bar.set_postfix(loss=f"{loss:.3f}", label_reward=f"{label_rewards.mean():.3f}")

    scores = test(agent, args)
    print("test: exact match {exact_match:.3f}, macro-F1 {macro_f1:.3f}".format(**scores))
    return scores


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except (HSALError, gymnasium.error.Error) as error:
        sys.exit(f"error: {error}")
