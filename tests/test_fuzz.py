"""Random episodes of every id in every view: what an environment promises, whatever is done to it.

Single environments play some episodes and are given wrong actions and options on the way. Lanes of a vector environment play them
again, to the bit, beside lanes that play others, and are given other wrong actions.
"""

import math
from typing import Any, NamedTuple, get_args

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from playing import SMALL, START, Wanderer, batch, lane_of, single, vector

from hsal_env import ENVIRONMENTS, VIEW_ENVIRONMENTS, rules
from hsal_env.config import EnvConfig, Features, Forbidden
from hsal_env.env import HSALEnv
from hsal_env.errors import ActionError, HSALError
from hsal_env.vector_env import HSALVectorEnv
from hsal_env.views import VIEWS

CONFIGS, LANES = 3, 34  # of each id and view at least 100 episodes
REPLAYED, EPISODES = 4, 2  # lanes whose episodes are those of single environments, and how many in a row

ID_VIEWS = [(env_id, mode) for env_id in ENVIRONMENTS for mode in VIEWS]
ID_VIEWS += [(env_id, kwargs["action_mode"]) for env_id, kwargs in VIEW_ENVIRONMENTS.items()]
CHOICES = {
    "glimpses": range(4),
    "components": (1, 2, 5),
    "update": get_args(rules.UpdateRule),
    "protocol": get_args(rules.RewardProtocol),
    "coordinates": get_args(rules.Coordinates),
    "beta": get_args(rules.Beta),
    "mask_scale": get_args(rules.MaskScale),
    "renormalise_saliency": (False, True),
    "forbidden": get_args(Forbidden),
    "features": get_args(Features),
    "include_image": (False, True),
    "include_volume": (None, False, True),
    "boxes": (False, True),
}

NO_NUMBER = [None, "3", b"3", object(), {}, {3}, [[1], [2, 3]], np.nan, np.inf, 1j, 10**30, np.array([], int), slice(3)]
NO_ACTION = [*NO_NUMBER, {"action": 3}, {3: 1, "place": 2}, lambda: 3]
NO_OPTIONS = [{"index": wrong} for wrong in (-1, 10**6, "one", [1, 2], 1.5, np.nan, object(), {})]
NO_OPTIONS += [{"seed": 3}, {"index": 0, "indices": 1}, {3: 1, "a": 2}, "index", 5, [1]]


class Entry(NamedTuple):
    """An answer of a single environment, and the action that it answers: None is a reset."""

    action: Any
    observation: dict
    reward: float
    terminated: bool
    truncated: bool
    info: dict

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated


def one_of(rng: np.random.Generator, choices) -> Any:
    return choices[rng.integers(len(choices))]


# --- actions ----------------------------------------------------------------------------------------------------------


class Actions:
    """Random actions of an environment: right ones, and wrong ones of many kinds."""

    def __init__(self, env: HSALEnv | HSALVectorEnv, space: gym.Space, rng: np.random.Generator) -> None:
        self.config: EnvConfig = env.simulation.config
        self.space, self.rng, self.stop = space, rng, self.config.classes
        self.cells, self.width = math.prod(env.simulation.examples.map_size), 4 * self.config.components

    def right(self, seen: dict, wished=()) -> Any:
        """For lanes that see ``seen``, what they are allowed. Half of the labels are of ``wished``."""
        rng, lanes = self.rng, len(seen["last_label"])
        label = rng.integers(self.stop + 1, size=lanes)
        if len(wished) and rng.random() < 0.5:
            label[:] = one_of(rng, wished)
        location = rng.integers(self.cells, size=(lanes, self.config.glimpses + 1))
        attention = rng.uniform(-1, 1, (lanes, self.width)).astype(np.float32)
        if isinstance(self.space, gym.spaces.Dict):
            return {"attention": attention, "location": location[:, 0], "label": label}
        if isinstance(self.space, gym.spaces.Discrete):
            return np.where(seen["action_mask"][:, -1] == 1, self.cells + label, location[:, 0])
        if isinstance(self.space, gym.spaces.MultiDiscrete):
            return np.column_stack([location, label])
        if self.space.shape == (self.width,):
            return attention
        return np.column_stack([attention, location[:, 0], label]).astype(np.float32)

    def in_another_form(self, action: Any) -> Any:
        """The same numbers, as people pass them."""
        if isinstance(action, dict):
            return {name: self.in_another_form(value) for name, value in action.items()}
        smaller = np.int16 if np.issubdtype(action.dtype, np.integer) else np.float64
        return one_of(self.rng, [np.asarray, lambda a: np.asarray(a).tolist(), torch.as_tensor, smaller])(action)

    def wrong(self, phase: int, action: Any) -> Any:
        """``action`` of one lane, with what ``phase`` reads spoilt."""
        rng, last = self.rng, self.config.glimpses + 1
        if rng.random() < 0.2:
            return one_of(rng, NO_ACTION)
        if isinstance(action, dict):
            part = "attention" if phase == 0 else "label" if phase == last else "location"
            if rng.random() < 0.2:
                return {name: value for name, value in action.items() if name != part}
            bound = self.stop + 1 if phase == last else self.cells
            return {**action, part: self._wrong_number(bound) if phase else self._wrong_vector(action[part], -1, 1)}
        if action.ndim == 0:
            return self._wrong_number(self.cells + self.stop + 1)
        if len(action) == self.width and action.dtype == np.float32:
            return self._wrong_vector(action, -1, 1)
        if action.dtype == np.float32 and phase == 0:
            return self._wrong_vector(action, -1, 1, int(rng.integers(self.width)))
        at = self.width + (phase == last) if action.dtype == np.float32 else int(rng.integers(len(action)))
        return self._wrong_vector(action, 0, self.stop if at == len(action) - 1 else self.cells - 1, at)

    def _wrong_number(self, bound: int) -> Any:
        return one_of(self.rng, [-1, bound, bound + 2**40, 1.5, [1], np.array([[0]]), *NO_NUMBER])

    def _wrong_vector(self, values: np.ndarray, low: int, high: int, at: int | None = None) -> Any:
        """``values`` with one outside ``low`` to ``high``, at ``at`` or anywhere; or no such vector."""
        wrong = np.array(one_of(self.rng, [low - 1, high + 1, high + 2**40, np.nan, np.inf, -np.inf, 1j]))
        spoilt = values.astype(np.result_type(values, wrong))
        spoilt[self.rng.integers(len(values)) if at is None else at] = wrong
        shapes = [values[:-1], values[None], np.append(values, 0)]
        return one_of(self.rng, [spoilt, *shapes, *NO_NUMBER] if self.rng.random() < 0.5 else [spoilt])


def refuses(env: HSALEnv | HSALVectorEnv, action: Any) -> None:
    """The error says what was expected, and nothing has changed."""
    before = env._state
    with pytest.raises(ActionError, match=r"Expected|cannot be read"):
        env.step(action)
    assert env._state is before


def refuses_options(env: HSALEnv | HSALVectorEnv, options: Any) -> None:
    before = env._state
    with pytest.raises(HSALError, match=r"[Ee]xpected|index"):
        env.reset(options=options)
    assert env._state is before


def same(one: dict, other: dict) -> bool:
    """To the bit, in dtype too."""
    return one.keys() == other.keys() and all(
        np.asarray(one[name]).dtype == np.asarray(other[name]).dtype and np.array_equal(one[name], other[name])
        for name in one
    )


# --- a single environment ---------------------------------------------------------------------------------------------


def play(env: HSALEnv, actions: Actions, rng: np.random.Generator, **start) -> list[Entry]:
    """An episode. Every answer keeps the promises, and wrong actions and options on the way are refused."""
    config, bounds = env.simulation.config, env.simulation.rules
    limit = bounds.option_length * bounds.max_meta_steps
    highest = 1 + config.glimpses if config.action_mode in ("option", "macro") else 1
    observation, info = env.reset(**start)
    entries, first = [Entry(None, observation, 0.0, False, False, info)], info
    objects = int(first["label_counts"].sum())
    while not entries[-1].ended:
        assert observation in env.observation_space
        before = {name: value[None] for name, value in observation.items()}
        right = actions.right(before, np.flatnonzero(info["remaining_counts"]))
        action = lane_of(right, 0) if isinstance(right, dict) else right[0]
        if rng.random() < 0.3:
            refuses(env, actions.wrong(int(env._state.phase), action))
        if rng.random() < 0.03:
            refuses_options(env, one_of(rng, NO_OPTIONS))
        forbidden = "action_mask" in before and rng.random() < 0.1
        if forbidden:
            action = np.int64(one_of(rng, np.flatnonzero(observation["action_mask"] == 0)))
            if config.forbidden == "raise":
                refuses(env, action)
                continue
        observation, reward, terminated, truncated, info = env.step(actions.in_another_form(action))
        if forbidden:
            assert reward == -1
            assert same(observation, entries[-1].observation)
        entries.append(Entry(action, observation, reward, terminated, truncated, info))
        assert isinstance(reward, float)
        assert -1 <= reward <= highest
        state = env._state
        teacher, finished = config.protocol == "teacher", int(state.meta_step)
        assert terminated is (finished == objects + 1 if teacher else int(state.last_label) == actions.stop)
        too_many = (not teacher and finished >= bounds.max_meta_steps) or int(state.forbidden) >= limit
        assert truncated is (too_many and not terminated)
        assert len(entries) <= 2 * limit
        assert ("exact_match" in info) == entries[-1].ended
        assert info.keys() >= first.keys() >= START
        assert all(np.array_equal(info[name], first[name]) for name in ("source", "index", "label_counts"))
        assert (info["remaining_counts"] >= 0).all()
        assert (info["remaining_counts"] <= info["label_counts"]).all()
    assert observation in env.observation_space
    assert all(0 <= info[name] <= 1 for name in ("exact_match", "precision", "recall"))
    assert all(np.isfinite(info[name]) for name in info.keys() - first.keys())
    rewards = sum(entry.reward for entry in entries)
    assert info["return_location"] + info["return_label"] == pytest.approx(rewards, abs=1e-4)
    for after in (action, None):
        with pytest.raises(ResetNeeded, match="reset"):
            env.step(after)
    return entries


# --- a vector environment ---------------------------------------------------------------------------------------------


def layout(action: Any) -> Any:
    """What must be alike in all lanes for a batch."""
    if isinstance(action, dict):
        return {name: layout(value) for name, value in action.items()}
    return action.shape if isinstance(action, np.ndarray | np.generic) else None


def shows(info: dict, lane: int, expected: dict) -> bool:
    """Whether the lane's part of ``info`` is the single environment's."""
    names = {name for name in info if name[0] != "_" and "final" not in name and info[f"_{name}"][lane]}
    return names == expected.keys() and all(np.array_equal(info[name][lane], expected[name]) for name in names)


def replay(lanes: HSALVectorEnv, actions: Actions, scripts: list[list[Entry]], **start) -> None:
    """The first lanes answer the actions of ``scripts`` as it is written there; the others play an episode or more at random."""
    rng, num, highest = actions.rng, lanes.num_envs, 1 + actions.config.glimpses
    same_step, disabled = (lanes.autoreset_mode is mode for mode in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED))
    scripts = [*scripts, *[[]] * (num - len(scripts))]
    observations, info = lanes.reset(**start)
    ended, at = np.zeros(num, bool), [0] * num

    def following(lane: int) -> Entry | None:
        return scripts[lane][at[lane]] if at[lane] < len(scripts[lane]) else None

    def shown(lane: int) -> None:
        """The next entry of the lane's script is what it shows now."""
        if entry := following(lane):
            assert same(lane_of(observations, lane), entry.observation)
            assert shows(info, lane, entry.info)
            at[lane] += 1

    for lane in range(num):
        shown(lane)
    while not ended.all() or any(map(following, range(num))):
        chosen = actions.right(observations)
        rows = [lane_of(chosen, i) if isinstance(chosen, dict) else chosen[i] for i in range(num)]
        expected = [following(lane) for lane in range(num)]
        rows = [
            entry.action if entry and entry.action is not None else row
            for entry, row in zip(expected, rows, strict=True)
        ]
        if rng.random() < 0.2:
            lane = int(rng.integers(num))
            wrong = actions.wrong(int(lanes._state.phase[lane]), rows[lane])
            fits = layout(wrong) == layout(rows[lane])
            refuses(lanes, batch([*rows[:lane], wrong, *rows[lane + 1 :]]) if fits else one_of(rng, NO_ACTION))
            refuses_options(lanes, one_of(rng, [{"index": [0] * (num + 1)}, {"index": [-1] * num}, {"a": 1, 3: 1}, 5]))
        observations, rewards, terminated, truncated, info = lanes.step(batch(rows))
        assert observations in lanes.observation_space
        assert (rewards.dtype, terminated.dtype, truncated.dtype) == (np.float64, bool, bool)
        assert ((rewards >= -1) & (rewards <= highest)).all()
        assert not (terminated & truncated).any()
        for lane, entry in enumerate(expected):
            if entry is None:
                continue
            assert (rewards[lane], terminated[lane], truncated[lane]) == entry[2:5]
            if same_step and entry.ended:
                assert same(info["final_obs"][lane], entry.observation)
                assert shows(info["final_info"], lane, entry.info)
                at[lane] += 1
            shown(lane)
        ended |= terminated | truncated
        if disabled and (over := terminated | truncated).any():
            observations, info = lanes.reset(options={"reset_mask": over})
            for lane in np.flatnonzero(over):
                shown(lane)


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [single, vector])
def test_what_fuzzing_found(make):
    env = make()
    env.reset(seed=0)
    attention = np.zeros((4, 20) if make is vector else 20)
    for action in ({"attention": attention + 1j}, {3: 1, "place": 2}):
        refuses(env, action)
    for options in ({3: 1, "a": 2}, "index", 5):
        refuses_options(env, options)


@pytest.mark.slow
@pytest.mark.parametrize(("env_id", "mode"), ID_VIEWS)
def test_random_episodes(env_id, mode, request):
    if env_id == "HSAL-Custom-v0":
        small = {"images": str(request.getfixturevalue("custom_folder"))}
    elif env_id.startswith("HSAL-SVHN"):
        small = {"data_root": request.getfixturevalue("svhn_folder"), "activation": "playing:Colours", "canvas_px": 40}
    else:
        small = SMALL
    built = "policy" in VIEW_ENVIRONMENTS.get(env_id, {})  # a network, for some rules; it rounds differently in a batch
    num, replayed, in_a_row = (1, 1, LANES) if built else (LANES, REPLAYED, EPISODES)
    for part in range(CONFIGS):
        rng = np.random.default_rng([ID_VIEWS.index((env_id, mode)), part])
        config = {name: one_of(rng, values) for name, values in CHOICES.items()} | {"action_mode": mode} | small
        if built:
            del config["glimpses"], config["components"]
        elif mode in ("option", "controller"):
            config["policy"] = Wanderer(config["components"], 6 if env_id == "HSAL-Custom-v0" else 11)
        env = gym.make(env_id, **config).unwrapped
        lanes = gym.make_vec(env_id, num, autoreset_mode=list(AutoresetMode)[part % 3], **config)
        actions = Actions(env, env.action_space, rng)
        for unbegun in (env, lanes):
            with pytest.raises(ResetNeeded, match="reset"):
                unbegun.step(None)
        seeds, scripts = rng.integers(2**31, size=num).tolist(), []
        indices = rng.integers(len(env.simulation.examples), size=num) if part == CONFIGS - 1 else None
        for lane in range(replayed):
            options = None if indices is None else {"index": indices[lane]}
            script = play(env, actions, rng, seed=seeds[lane], options=options)
            for _ in range(in_a_row - 1):
                script += play(env, actions, rng)
            scripts.append(script)
        replay(lanes, actions, scripts, seed=seeds, options=None if indices is None else {"index": indices})
