"""Playing the environments in tests: small ones of every view, random actions for them, and whole episodes."""

import gymnasium as gym
import numpy as np
import torch

from hsal_env.env import HSALEnv
from hsal_env.policies import Choice
from hsal_env.vector_env import HSALVectorEnv

SMALL = {"source": "digits", "num_examples": 16}
CELLS, STOP = 49, 10
START = {"source", "index", "label_counts", "remaining_counts", "predicted_counts"}
ATTENTION = np.zeros(20, np.float32)
MODES = ["native", "flat", "packed", "option", "controller", "macro"]


class Colours(torch.nn.Module):
    """An activation model of colour images: the mean colour of each of 7x7 patches."""

    in_channels, channels = 3, 3

    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 7)


class Wanderer:
    """A given policy whose decisions depend on all that it has seen; its memory is a tuple in a tuple."""

    def __init__(self, components: int = 5, labels: int = STOP + 1) -> None:
        self.components, self.labels = components, labels

    def initial(self, lanes: int):
        return torch.zeros(lanes, dtype=torch.int64), (torch.zeros(lanes),)

    def act(self, observation: dict, state, deterministic: bool = False) -> Choice:
        count, (seen,) = state
        seen = seen + observation["saliency"].flatten(1)[:, 8] + observation["glimpse"][:, 0]
        attention = torch.sin((count + 3 * seen)[:, None] + torch.arange(4 * self.components))
        location = (5 * count + observation["priority"].flatten(1).argmax(dim=1)) % observation["priority"][0].numel()
        label = (count + observation["last_label"] + (3 * seen).long()) % self.labels
        return Choice({"attention": attention, "location": location, "label": label}, (count + 1, (seen,)))


def with_policy(config: dict, labels: int = STOP + 1) -> dict:
    """The views that need a policy get one."""
    asked = config.get("action_mode") in ("option", "controller")
    return {"policy": Wanderer(config.get("components", 5), labels), **config} if asked else config


def single(**config) -> HSALEnv:
    return HSALEnv(**{**SMALL, **with_policy(config)})


def vector(num_envs: int = 4, **config) -> HSALVectorEnv:
    return HSALVectorEnv(num_envs, **{**SMALL, **with_policy(config)})


def random_action(
    rng: np.random.Generator, space: gym.Space, seen: dict, stop_share: float = 0.3, forbidden_share: float = 0.0
):
    """For any view, as its space tells."""
    label = STOP if rng.random() < stop_share else int(rng.integers(10))
    location = int(rng.integers(CELLS))
    attention = rng.uniform(-1, 1, 20).astype(np.float32)
    if isinstance(space, gym.spaces.Dict):
        return {"attention": attention, "location": location, "label": label}
    if isinstance(space, gym.spaces.Discrete):
        names = bool(seen["action_mask"][-1]) != (rng.random() < forbidden_share)
        return CELLS + label if names else location
    if isinstance(space, gym.spaces.MultiDiscrete):
        return np.append(rng.integers(CELLS, size=len(space.nvec) - 1), label)
    return attention if space.shape == (20,) else np.append(attention, [location, label]).astype(np.float32)


def batch(actions: list):
    """Actions of N lanes, in the layout of the vector environment's action space."""
    if isinstance(actions[0], dict):
        return {name: np.stack([action[name] for action in actions]) for name in actions[0]}
    return np.array(actions)


def lane_of(observations: dict, lane: int) -> dict:
    return {name: value[lane] for name, value in observations.items()}


def assert_equal(actual, expected) -> None:
    """To the bit, in dtype too, through dicts and tuples."""
    if isinstance(expected, dict):
        assert set(actual) == set(expected)
        for name in expected:
            assert_equal(actual[name], expected[name])
    elif isinstance(expected, tuple):
        for one, other in zip(actual, expected, strict=True):
            assert_equal(one, other)
    else:
        assert np.asarray(actual).dtype == np.asarray(expected).dtype
        np.testing.assert_array_equal(actual, expected)


def play(env: HSALEnv, seed: int, **shares) -> list[tuple]:
    """One episode; every answer of the environment."""
    rng, answers = np.random.default_rng(seed), [env.reset(seed=seed)]
    while len(answers) == 1 or not (answers[-1][2] or answers[-1][3]):
        answers.append(env.step(random_action(rng, env.action_space, answers[-1][0], **shares)))
    return answers


def name_labels(env, labels: list[int]) -> tuple:
    """Meta-steps, each from phase 0, that end with ``labels``; the last answer and the rewards of the labels."""
    rewards = []
    for label in labels:
        for _ in range(4):
            answer = env.step({"attention": np.zeros(20, np.float32), "location": 0, "label": label})
        rewards.append(answer[1])
    return answer, rewards
