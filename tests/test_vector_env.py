"""The vector environment is its single ones to the bit; seeds, resets and copies."""

import copy
import pickle
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from playing import (
    CELLS,
    MODES,
    SMALL,
    STOP,
    assert_equal,
    batch,
    lane_of,
    play,
    random_action,
    single,
    vector,
)

from hsal_env.errors import ActionError, ConfigError, DataError
from hsal_env.vector_env import HSALVectorEnv


@pytest.mark.parametrize("mode", MODES)
def test_a_seed_fixes_the_episode(mode):
    first, again = (play(single(action_mode=mode), seed=3) for _ in range(2))
    assert len(first) == len(again) > 1
    for one, other in zip(first, again, strict=True):
        assert_equal(one, other)


def test_other_seeds_draw_other_canvases():
    env = single(num_examples=1000)
    assert len({int(env.reset(seed=seed)[1]["index"]) for seed in range(10)}) > 5


def limited(max_episode_steps: int | None = None, **config):
    """As ``gymnasium.make`` makes it."""
    env = single(**config)
    return env if max_episode_steps is None else TimeLimit(env, max_episode_steps)


def without_final(info: dict) -> dict:
    return {name: value for name, value in info.items() if "final" not in name}


def assert_final(actual: dict, expected: dict) -> None:
    """The observation and info that ended an episode, of the lanes that have one."""
    ended = expected.get("_final_obs", np.zeros(0, bool))
    np.testing.assert_array_equal(actual.get("_final_obs", np.zeros(0, bool)), ended)
    np.testing.assert_array_equal(actual.get("_final_info", np.zeros(0, bool)), ended)
    for lane in np.flatnonzero(ended):
        assert_equal(actual["final_obs"][lane], expected["final_obs"][lane])
    assert_equal(actual.get("final_info", {}), expected.get("final_info", {}))  # with the masks of every key


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("autoreset", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize(
    "config", [{"max_objects": 2}, {"protocol": "teacher", "glimpses": 1}, {"max_objects": 2, "max_episode_steps": 2}]
)
def test_the_vector_environment_is_its_single_ones_to_the_bit(mode, autoreset, config):
    config = {"action_mode": mode, **config}
    lanes = vector(autoreset_mode=autoreset, **config)
    singles = SyncVectorEnv([partial(limited, **config)] * 4, autoreset_mode=autoreset)
    rng, ended = np.random.default_rng(0), 0
    (observations, info), (expected, expected_info) = lanes.reset(seed=7), singles.reset(seed=7)
    assert_equal(observations, expected)
    assert_equal(info, expected_info)
    for _ in range(40):
        actions = batch(
            [random_action(rng, lanes.single_action_space, lane_of(expected, i), forbidden_share=0.1) for i in range(4)]
        )
        observations, *outcome, info = lanes.step(actions)
        expected, *expected_outcome, expected_info = singles.step(actions)
        assert_equal(observations, expected)
        assert_equal(tuple(outcome), tuple(expected_outcome))
        assert_equal(without_final(info), without_final(expected_info))
        assert_final(info, expected_info)
        ended += int((outcome[1] | outcome[2]).sum())
    assert ended > 8


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ({"components": 8}, 0.0),
        ({"components": 49}, 1e-5),
        ({"components": 25, "action_mode": "controller", "policy": "agents.policies:mnist_multiset"}, 1e-5),
    ],
    ids=["8 Gaussians", "49 Gaussians", "a network"],
)
def test_lanes_equal_single_environments_as_exactly_as_the_site_says(config, most):
    """docs/environments/programs.md: below K H W = 400 to the bit, beyond that up to rounding."""
    lanes, singles = vector(5, **config), [single(**config) for _ in range(5)]
    seen, _ = lanes.reset(seed=0)
    alone = [env.reset(seed=lane)[0] for lane, env in enumerate(singles)]
    lanes.action_space.seed(0)
    for _ in range(4):
        actions = lanes.action_space.sample()
        if "action_mask" in seen:
            actions = seen["action_mask"].argmax(axis=1)
        seen, *_ = lanes.step(actions)
        for lane, env in enumerate(singles):
            alone[lane], *_ = env.step(lane_of(actions, lane) if isinstance(actions, dict) else actions[lane])
            for name, part in alone[lane].items():
                np.testing.assert_allclose(seen[name][lane], part, rtol=most, atol=most)


def test_lanes_that_are_out_of_step_go_on():
    """Autoreset costs the next step, so lanes whose episodes differ in length are soon at different phases."""
    lanes = vector(2)
    phases = {tuple(lanes.reset(seed=0)[0]["phase"].tolist())}
    for step in range(24):
        label = [STOP, 0] if step < 4 else [0, 0]
        actions = {"attention": np.zeros((2, 20), np.float32), "location": np.zeros(2, int), "label": np.array(label)}
        phases.add(tuple(lanes.step(actions)[0]["phase"].tolist()))
    assert {(3, 0), (0, 1)} <= phases


@pytest.mark.parametrize("mode", MODES)
def test_lanes_are_restarted_by_hand_where_autoreset_is_disabled(mode):
    disabled = AutoresetMode.DISABLED
    lanes = vector(autoreset_mode=disabled, action_mode=mode)
    singles = SyncVectorEnv([partial(single, action_mode=mode)] * 4, autoreset_mode=disabled)
    rng, restarts = np.random.default_rng(0), 0
    lanes.reset(seed=7)
    expected, _ = singles.reset(seed=7)
    for _ in range(40):
        actions = batch([random_action(rng, lanes.single_action_space, lane_of(expected, i)) for i in range(4)])
        observations, *outcome, info = lanes.step(actions)
        expected, *expected_outcome, expected_info = singles.step(actions)
        assert_equal((observations, *outcome, info), (expected, *expected_outcome, expected_info))
        ended = outcome[1] | outcome[2]
        if ended.any():
            restarts += 1
            observations, info = lanes.reset(options={"reset_mask": ended})
            expected, expected_info = singles.reset(options={"reset_mask": ended})
            assert_equal((observations, info), (expected, expected_info))
    assert restarts > 2


def test_lanes_that_ended_hold_their_flags_and_earn_nothing():
    lanes = vector(2, autoreset_mode="Disabled")
    lanes.reset(seed=0)
    stop_first = {
        "attention": np.zeros((2, 20), np.float32),
        "location": np.zeros(2, int),
        "label": np.array([STOP, 0]),
    }
    for _ in range(4):
        *_, reward, terminated, _, info = lanes.step(stop_first)
    assert terminated.tolist() == info["_exact_match"].tolist() == [True, False]
    for _ in range(8):
        *_, reward, terminated, truncated, info = lanes.step(stop_first)
        assert reward[0] == 0
        assert (terminated[0], truncated[0]) == (True, False)
        assert "exact_match" not in info
    lanes.reset(options={"reset_mask": np.array([True, False])})
    *_, terminated, _, _ = lanes.step(stop_first)
    assert terminated.tolist() == [False, False]


def test_a_partial_reset_picks_index_and_leaves_the_other_lanes():
    lanes = vector(3, autoreset_mode="Disabled")
    before, _ = lanes.reset(seed=0)
    before, *_ = lanes.step(lanes.action_space.sample())
    options = {"reset_mask": np.array([False, True, False]), "index": np.array([1, 5, 2])}
    after, info = lanes.reset(options=options)
    assert info["index"][1] == 5
    assert after["phase"].tolist() == [1, 0, 1]
    for lane in (0, 2):
        assert_equal(lane_of(after, lane), lane_of(before, lane))
    assert_equal(lane_of(after, 1), single().reset(options={"index": 5})[0])


@pytest.mark.parametrize("autoreset", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_a_partial_reset_is_that_of_the_single_environments(autoreset):
    """The lane that stopped is reset by hand and begins at once; a seed is for the lanes that are reset."""
    config = {"num_examples": 1000}
    both = (
        vector(2, autoreset_mode=autoreset, **config),
        SyncVectorEnv([partial(single, **config)] * 2, autoreset_mode=autoreset),
    )
    stop_first = {
        "attention": np.zeros((2, 20), np.float32),
        "location": np.zeros(2, int),
        "label": np.array([STOP, 0]),
    }
    answers = []
    for lanes in both:
        lanes.reset(seed=0)
        for _ in range(4):
            lanes.step(stop_first)
        lanes.reset(seed=50, options={"reset_mask": np.array([True, False])})
        answers.append((lanes.step(stop_first), lanes.reset()))
    assert answers[0][0][0]["phase"].tolist() == [1, 1]
    assert_equal(*answers)


def as_both(num_envs: int = 3, **config):
    """Ours, and Gymnasium's of single environments."""
    return vector(num_envs, **config), SyncVectorEnv([partial(single, **config)] * num_envs)


@pytest.mark.parametrize("seed", [4, [1, 2, 3], (1, 2, 3), np.array([1, 2, 3]), (1, None, 3), np.int64(4)], ids=str)
def test_seeds_are_given_as_to_gymnasiums(seed):
    ours, theirs = as_both(num_examples=1000)
    plain = seed.tolist() if isinstance(seed, np.ndarray | np.integer) else seed  # which it takes
    info, expected = ours.reset(seed=seed)[1], theirs.reset(seed=plain)[1]
    fixed = [0, 2] if isinstance(seed, tuple) and None in seed else [0, 1, 2]
    assert_equal(info["index"][fixed], expected["index"][fixed])
    assert [ours.np_random_seed[lane] for lane in fixed] == [theirs.np_random_seed[lane] for lane in fixed]


def test_the_generators_of_the_lanes_are_those_of_the_single_environments():
    """Where they were read, whatever was drawn before, and whoever draws from them after."""
    ours, theirs = as_both(num_examples=1000)
    assert all(seed >= 0 for seed in ours.np_random_seed)  # before the first reset, too
    for lanes in (ours, theirs):
        lanes.reset(seed=5)
    for _ in range(2):
        for rng, other in zip(ours.np_random, theirs.np_random, strict=True):
            assert rng.random() == other.random()
        for _ in range(3):
            assert_equal(ours.reset()[1], theirs.reset()[1])
    for lanes in (ours, theirs):
        lanes.set_attr("np_random", [np.random.default_rng(lane) for lane in range(3)])
    assert_equal(ours.reset()[1], theirs.reset()[1])
    assert ours.np_random_seed == theirs.np_random_seed == (-1, -1, -1)


def test_attributes_and_methods_answer_for_each_lane():
    ours, theirs = as_both(action_mode="flat", render_mode="rgb_array")
    for lanes in (ours, theirs):
        lanes.reset(seed=0)
    for name in ("action_space", "observation_space", "render_mode", "np_random_seed"):
        assert ours.get_attr(name) == ours.call(name) == theirs.get_attr(name)
    for name in ("action_masks", "render"):
        for one, other in zip(ours.call(name), theirs.call(name), strict=True):
            assert_equal(one, other)
    for lanes in (ours, theirs):
        lanes.set_attr("render_mode", None)
        lanes.set_attr("note", ["a", "a", "a"])
        assert lanes.get_attr("render_mode") == lanes.call("render") == (None, None, None)
        assert lanes.get_attr("note") == ("a", "a", "a")
        with pytest.raises(AttributeError):
            lanes.get_attr("nothing_of_this_name")
        with pytest.raises(ValueError, match="2"):
            lanes.set_attr("note", ["a", "a"])


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda lanes: lanes.set_attr("note", ["a", "b", "c"]), "different values"),
        (lambda lanes: lanes.call("reset"), r"call reset\(\) of it"),
        (lambda lanes: lanes.reset(seed="123"), "whole number as seed"),
        (lambda lanes: lanes.reset(seed=(1, 2.5, 3)), "whole number as seed"),
        (lambda lanes: lanes.reset(options={"reset_mask": np.array([0, 1, 2])}), "of bool"),
    ],
)
def test_what_the_lanes_cannot_do_apart_is_refused(use, said):
    with pytest.raises(ConfigError, match=said):
        use(vector(3))


@pytest.mark.parametrize("limit", [3, None, -1])
def test_a_limit_of_steps_is_that_of_make(limit):
    """``gymnasium.make`` wraps a single environment; make_vec hands the limit to ours."""
    ours = gym.make_vec("HSAL-DigitsMultiset-v0", num_envs=2, max_episode_steps=limit, **SMALL)
    theirs = gym.make_vec(
        "HSAL-DigitsMultiset-v0", num_envs=2, vectorization_mode="sync", max_episode_steps=limit, **SMALL
    )
    assert isinstance(ours, HSALVectorEnv)
    for lanes in (ours, theirs):
        lanes.reset(seed=0)
        lanes.action_space.seed(0)
    for _ in range(12):
        actions = ours.action_space.sample()
        assert_equal(ours.step(actions), theirs.step(actions))


def test_lanes_that_reached_the_limit_wait_where_autoreset_is_disabled():
    lanes = vector(2, autoreset_mode="Disabled", max_episode_steps=2)
    lanes.reset(seed=0)
    cut = [lanes.step(lanes.action_space.sample())[3].tolist() for _ in range(3)]
    assert cut == [[False, False], [True, True], [True, True]]
    lanes.reset(options={"reset_mask": np.array([True, False])})
    assert lanes.step(lanes.action_space.sample())[3].tolist() == [False, True]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("autoreset", list(AutoresetMode))
def test_torch_output_is_the_numpy_output(mode, autoreset):
    both = [vector(output=output, autoreset_mode=autoreset, action_mode=mode) for output in ("numpy", "torch")]
    both[0].action_space.seed(0)
    answers = [lanes.reset(seed=0) for lanes in both]
    for _ in range(20):
        assert_same_numbers(*answers)
        actions = both[0].action_space.sample()
        as_tensors = {k: torch.from_numpy(v) for k, v in actions.items()} if mode == "native" else torch.tensor(actions)
        answers = [both[0].step(actions), both[1].step(as_tensors)]
        assert all(isinstance(part, torch.Tensor) for part in [*answers[1][0].values(), *answers[1][1:4]])


def assert_same_numbers(arrays, tensors) -> None:
    if isinstance(arrays, dict):
        assert set(arrays) == set(tensors)
        for name in arrays:
            if name != "final_obs":
                assert_same_numbers(arrays[name], tensors[name])
    elif isinstance(arrays, tuple):
        for one, other in zip(arrays, tensors, strict=True):
            assert_same_numbers(one, other)
    else:
        np.testing.assert_array_equal(arrays, np.asarray(tensors))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["copy", "pickle"])
@pytest.mark.parametrize("config", [{}, {"action_mode": "flat"}, {"features": "store"}], ids=str)
@pytest.mark.parametrize("make", [single, vector])
def test_a_copy_of_a_running_environment_goes_on_identically(copied, config, make):
    env = make(**config)
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(3):
        env.step(env.action_space.sample())
    twin = copied(env)
    for _ in range(30):
        action = env.action_space.sample()
        answer = env.step(action)
        assert_equal(twin.step(action), answer)
        if make is single and (answer[2] or answer[3]):
            assert_equal(twin.reset(), env.reset())


def test_stepping_a_copy_leaves_the_original():
    env = single()
    first, _ = env.reset(seed=0)
    copy.deepcopy(env).step({"attention": np.ones(20, np.float32)})
    assert env._observe()["phase"] == first["phase"] == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [single, vector])
def test_writing_to_an_observation_does_not_change_the_environment(mode, make):
    env, untouched = (make(action_mode=mode, include_image=True, include_volume=True) for _ in range(2))
    env.action_space.seed(0)
    (observation, info), (expected, _) = env.reset(seed=0), untouched.reset(seed=0)
    for _ in range(10):
        for value in [*observation.values(), *info.values()]:
            if isinstance(value, np.ndarray) and value.ndim:
                value[...] = 0
        action = env.action_space.sample()
        (observation, *outcome, info), (expected, *expected_outcome, expected_info) = (
            env.step(action),
            untouched.step(action),
        )
        assert_equal((observation, *outcome, info), (expected, *expected_outcome, expected_info))
        if make is single and (outcome[1] or outcome[2]):
            break


def test_the_vector_environments_masks_are_its_observations():
    lanes = vector(action_mode="flat")
    observations, _ = lanes.reset(seed=0)
    np.testing.assert_array_equal(lanes.action_masks(), observations["action_mask"].astype(bool))
    assert lanes.action_masks().shape == (4, CELLS + STOP + 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": np.zeros((3, 20))}, "shape"),
        ({"attention": np.full((2, 20), 1.5)}, "attention in"),
        ({"attention": "up"}, "attention"),
    ],
)
def test_a_vector_action_outside_its_space_is_refused(change, message):
    lanes = vector(2)
    lanes.reset(seed=0)
    with pytest.raises(ActionError, match=message):
        lanes.step({"attention": np.zeros((2, 20), np.float32), **change})


@pytest.mark.parametrize("index", [[0, 16], [-1, 0], [0, 1, 2], 3, ["a", "b"], [0.5, 1]])
def test_vector_indices_outside_the_split_are_refused(index):
    with pytest.raises((DataError, ConfigError)):
        vector(2).reset(options={"index": index})


def test_a_reset_mask_that_fits_nothing_is_refused():
    lanes = vector(2, autoreset_mode="Disabled")
    with pytest.raises(ConfigError, match="first reset"):
        lanes.reset(options={"reset_mask": np.array([True, False])})
    lanes.reset(seed=0)
    for mask in (np.array([True]), np.array([False, False])):
        with pytest.raises(ConfigError, match="reset_mask"):
            lanes.reset(options={"reset_mask": mask})


def test_seeds_of_another_number_are_refused():
    with pytest.raises(ConfigError, match="Expected 2 seeds; got 3"):
        vector(2).reset(seed=[1, 2, 3])


def test_a_seed_starts_over_and_none_goes_on():
    lanes, singles = vector(3, num_examples=1000), SyncVectorEnv([partial(single, num_examples=1000)] * 3)
    drawn = []
    for seed in (4, None, 4, [None, 4, 9], None):
        (observations, info), (expected, _) = lanes.reset(seed=seed), singles.reset(seed=seed)
        assert_equal(observations, expected)
        drawn.append(info["index"].tolist())
    assert drawn[0] == drawn[2] != drawn[1]
    assert drawn[3][1:] == [drawn[0][0], int(single(num_examples=1000).reset(seed=9)[1]["index"])]


def test_a_list_of_seeds_seeds_each_lane():
    observations, _ = vector(3).reset(seed=[5, None, 9])
    for lane, seed in ((0, 5), (2, 9)):
        assert_equal(lane_of(observations, lane), single().reset(seed=seed)[0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_envs": 0},
        {"output": "list"},
        {"device": "cuda"},
        {"device": "abacus"},
        {"autoreset_mode": "never"},
        {"max_episode_steps": 0},
        {"max_episode_steps": 2.5},
    ],
    ids=str,
)
def test_a_vector_argument_outside_its_range_is_refused(wrong):
    with pytest.raises(ConfigError):
        HSALVectorEnv(**{**SMALL, **wrong})
