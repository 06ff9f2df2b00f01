"""The action mask in ``info``, and ``boxes=True``: observations of Box parts alone, which every library takes."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from playing import (
    CELLS,
    MODES,
    STOP,
    Wanderer,
    assert_equal,
    batch,
    lane_of,
    play,
    random_action,
    single,
    vector,
    with_policy,
)
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

import agents
from agents.sb3 import HSALPolicy, HSALVecEnv, SB3Agent
from hsal_env.errors import ConfigError

MASKED = ["flat", "controller"]


def one_hot(value: np.ndarray, space: gym.Space) -> np.ndarray:
    """What a part becomes, written down anew."""
    if not isinstance(space, spaces.Discrete):
        return value
    return np.eye(int(space.n), dtype=np.float32)[value]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("config", [{}, {"include_image": True, "include_volume": True}, {"glimpses": 0}])
def test_boxes_are_the_plain_view_with_its_discrete_parts_one_hot(mode, config):
    plain, boxes = (single(action_mode=mode, boxes=wanted, **config) for wanted in (False, True))
    assert boxes.action_space == plain.action_space
    assert set(boxes.observation_space) == set(plain.observation_space)
    assert all(isinstance(part, spaces.Box) for part in boxes.observation_space.values())
    if mode in MASKED:
        assert boxes.observation_space["action_mask"] == spaces.Box(0, 1, (CELLS + STOP + 1,), np.int8)
    for expected, actual in zip(play(plain, seed=3), play(boxes, seed=3), strict=True):
        seen = {name: one_hot(part, plain.observation_space[name]) for name, part in expected[0].items()}
        assert_equal(actual[0], seen)
        assert boxes.observation_space.contains(actual[0])
        assert_equal(actual[1:], expected[1:])


@pytest.mark.parametrize("mode", MODES)
def test_boxes_pass_the_checkers(mode):
    env = single(action_mode=mode, boxes=True)
    check_env(env, skip_render_check=True)
    if mode != "native":  # SB3 has no Dict actions
        sb3_check_env(env, warn=False)


@pytest.mark.parametrize("boxes", [False, True])
@pytest.mark.parametrize("mode", ["native", *MASKED])
@pytest.mark.parametrize("autoreset", list(AutoresetMode))
def test_lanes_see_and_are_told_what_single_environments_are(mode, autoreset, boxes):
    config = {"action_mode": mode, "boxes": boxes, "max_objects": 2}
    lanes = vector(autoreset_mode=autoreset, **config)
    singles = SyncVectorEnv([partial(single, **config)] * 4, autoreset_mode=autoreset)
    tensors = vector(autoreset_mode=autoreset, output="torch", **config)
    rng, ended = np.random.default_rng(0), np.zeros(4, bool)
    answers, expected, of_tensors = (env.reset(seed=7) for env in (lanes, singles, tensors))
    for _ in range(24):
        for actual in (answers, of_tensors):
            seen, info = actual[0], actual[-1]
            assert_equal({name: np.asarray(part) for name, part in seen.items()}, expected[0])
            assert ("action_mask" in info) == (mode in MASKED)
            if mode in MASKED:
                mask = np.asarray(info["action_mask"])
                assert (mask.shape, mask.dtype) == ((4, CELLS + STOP + 1), np.int8)
                told = np.asarray(info["_action_mask"])  # after a partial reset, only the lanes that were started
                np.testing.assert_array_equal(told, expected[-1]["_action_mask"])
                np.testing.assert_array_equal(mask, expected[-1]["action_mask"])
                np.testing.assert_array_equal(mask[told], np.asarray(seen["action_mask"])[told])
        actions = batch([random_action(rng, singles.single_action_space, lane_of(expected[0], i)) for i in range(4)])
        answers, expected, of_tensors = (env.step(actions) for env in (lanes, singles, tensors))
        for lane in np.flatnonzero(answers[-1].get("_final_info", [])) if mode in MASKED else ():
            final = answers[-1]["final_info"]["action_mask"][lane]
            np.testing.assert_array_equal(final, expected[-1]["final_info"]["action_mask"][lane])
        ended = answers[2] | answers[3]
        if autoreset is AutoresetMode.DISABLED and ended.any():
            answers, expected, of_tensors = (
                env.reset(options={"reset_mask": ended}) for env in (lanes, singles, tensors)
            )


@pytest.mark.parametrize("mode", MASKED)
def test_the_mask_in_info_is_what_gymnasium_samples_by(mode):
    env = single(action_mode=mode, forbidden="raise")
    env.action_space.seed(0)
    _, info = env.reset(seed=0)
    for _ in range(30):
        assert isinstance(info["action_mask"], np.ndarray)
        *_, terminated, truncated, info = env.step(env.action_space.sample(info["action_mask"]))
        if terminated or truncated:
            _, info = env.reset()


@pytest.mark.parametrize("mode", sorted(set(MODES) - set(MASKED)))
def test_other_actions_have_no_mask(mode):
    assert all("action_mask" not in answer[-1] for answer in play(single(action_mode=mode), seed=0))


def test_a_mask_is_the_callers_own():
    env, lanes = single(action_mode="flat"), vector(action_mode="flat")
    for made in (env, lanes):
        seen, info = made.reset(seed=0)
        info["action_mask"][:] = 9
        assert seen["action_mask"].max() == 1
        assert made.action_masks().max() == 1


@pytest.mark.parametrize("mode", sorted(set(MODES) - {"native"}))
def test_what_refuses_other_parts_takes_boxes(mode):
    """Flattening, SB3's normalising and SB3's stacking of frames."""
    config = with_policy({"action_mode": mode, "num_examples": 16})
    flat = gym.wrappers.FlattenObservation(single(action_mode=mode, boxes=True))
    assert isinstance(flat.observation_space, spaces.Box)
    assert flat.reset(seed=0)[0].shape == flat.observation_space.shape
    many = gym.wrappers.vector.FlattenObservation(vector(action_mode=mode, boxes=True))
    assert many.reset(seed=0)[0].shape == (4, *flat.observation_space.shape)
    env = VecNormalize(VecFrameStack(HSALVecEnv("HSAL-DigitsMultiset-v0", 2, boxes=True, **config), 3))
    seen = env.reset()
    assert seen["saliency"].shape == (2, 3 * CELLS)
    seen, *_ = env.step(np.stack([env.action_space.sample()] * 2))
    assert all(np.isfinite(part).all() for part in seen.values())
    with pytest.raises(Exception, match=r"Box|spaces"):
        VecNormalize(VecFrameStack(HSALVecEnv("HSAL-DigitsMultiset-v0", 2, **config), 3)).reset()


def test_a_given_policy_sees_the_native_view():
    """It was written for whole numbers, whatever the learner sees."""
    for mode in ("option", "controller"):
        assert len(play(single(action_mode=mode, boxes=True, policy=Wanderer()), seed=0)) > 1


def test_our_agents_say_that_they_read_whole_numbers():
    env = HSALVecEnv("HSAL-DigitsMultiset-v0", 2, action_mode="packed", boxes=True, num_examples=16)
    with pytest.raises(ConfigError, match="boxes=False"):
        HSALPolicy(env.observation_space, env.action_space, lambda _: 1e-3)
    agent = agents.load("mnist-multiset").agent
    seen, _ = single(action_mode="packed", boxes=True, components=25).reset(seed=0)
    with pytest.raises(ConfigError, match="boxes=False"):
        SB3Agent(agent).predict(seen)


def test_boxes_may_be_tensors_on_the_device_of_the_state():
    seen, info = vector(action_mode="flat", boxes=True, output="torch").reset(seed=0)
    assert torch.cat([part.float() for part in seen.values()], dim=1).shape[0] == 4
    assert info["action_mask"].dtype == torch.int8
