"""The environments: Gymnasium's contract, two routes to the same episode, what each number means, and every refusal."""

import ast
import copy
import pickle
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import reference
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from matplotlib import pyplot
from playing import (
    ATTENTION,
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
    with_policy,
)
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from hsal_env import ENVIRONMENTS, VIEW_ENVIRONMENTS, registration
from hsal_env.env import HSALEnv
from hsal_env.errors import ActionError, ConfigError, DataError
from hsal_env.rendering import draw_trace
from hsal_env.spaces import ATTENTION_SCALE
from hsal_env.vector_env import HSALVectorEnv

ROOT = Path(__file__).parents[1]
START = {"source", "index", "label_counts", "remaining_counts", "predicted_counts"}
END = {
    "exact_match",
    "precision",
    "recall",
    "return_location",
    "return_label",
    "attn_saliency",
    "attn_saliency_uniform",
}

# --- the contract -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small(env_id: str, request: pytest.FixtureRequest) -> dict:
    """Arguments that make a small environment of any id."""
    if env_id == "HSAL-Custom-v0":
        return {"images": str(request.getfixturevalue("custom_folder"))}
    if env_id.startswith("HSAL-SVHN"):
        return {"data_root": request.getfixturevalue("svhn_folder"), "activation": "playing:Colours"}
    return SMALL


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_every_id_passes_the_checkers(env_id, small, mode):
    labels = 6 if env_id == "HSAL-Custom-v0" else STOP + 1
    env = gym.make(env_id, **small, **with_policy({"action_mode": mode}, labels)).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if mode == "packed":  # indices among numbers in [-1, 1]: both checkers would rather have all of them there
            warnings.filterwarnings("ignore", message=".*symmetric and normalized.*")
        check_env(env, skip_render_check=True)
        if mode != "native":  # SB3 has no Dict actions
            sb3_check_env(env)


@pytest.mark.parametrize("env_id", VIEW_ENVIRONMENTS)
def test_every_id_of_a_view_passes_the_checkers(env_id):
    """With the policy that stands in the table."""
    env = gym.make(env_id, **SMALL).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True)
        sb3_check_env(env)


@pytest.mark.parametrize("env_id", [*ENVIRONMENTS, *VIEW_ENVIRONMENTS])
def test_every_id_makes_single_and_vector_environments(env_id, small):
    env, lanes = gym.make(env_id, **small), gym.make_vec(env_id, num_envs=2, **small)
    assert isinstance(env.unwrapped, HSALEnv)
    assert isinstance(lanes.unwrapped, HSALVectorEnv)
    assert lanes.single_observation_space == env.observation_space
    assert lanes.single_action_space == env.action_space
    counts = env.reset(seed=0)[1]["label_counts"]
    assert {**ENVIRONMENTS, **VIEW_ENVIRONMENTS}[env_id].get("min_objects", 1) <= counts.sum() <= 10


@pytest.mark.parametrize("env_id", [*ENVIRONMENTS, *VIEW_ENVIRONMENTS])
def test_a_spec_survives_json(env_id, small):
    spec = gym.make(env_id, **small, seed=21).spec
    again = gym.make(EnvSpec.from_json(spec.to_json()))
    assert again.spec == spec
    assert again.unwrapped.simulation.config.seed == 21


def test_the_ids_tasks():
    assert set(ENVIRONMENTS) == {
        *(f"HSAL-{source}{task}-v0" for source in ("MNIST", "Digits") for task in ("Single", "Set", "Multiset")),
        *(f"HSAL-{source}{task}-v0" for source in ("HouseNumbers", "SVHN") for task in ("Single", "Multiset")),
        "HSAL-MNISTMultiset10-v0",
        "HSAL-Custom-v0",
    }
    assert {env_id: kwargs["action_mode"] for env_id, kwargs in VIEW_ENVIRONMENTS.items()} == {
        f"HSAL-MNISTMultiset{mode.title()}-v0": mode for mode in ("flat", "option", "controller", "macro")
    }
    single_object, ten = (gym.make(f"HSAL-MNIST{name}-v0", **SMALL) for name in ("Single", "Multiset10"))
    for seed in range(5):
        assert single_object.reset(seed=seed)[1]["label_counts"].sum() == 1
        assert ten.reset(seed=seed)[1]["label_counts"].sum() == 10


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "config", [{}, {"include_image": True, "include_volume": True}, {"glimpses": 0, "components": 1}]
)
def test_observations_are_in_their_space(mode, config):
    env = single(action_mode=mode, **config)
    env.action_space.seed(0)
    observation = env.reset(seed=0)[0]
    assert env.observation_space.contains(observation)
    assert ("image" in observation) == config.get("include_image", mode == "native")
    assert ("volume" in observation) == config.get("include_volume", mode in ("packed", "macro"))
    for _ in range(6):
        observation, *_, terminated, truncated, _ = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation)
        if terminated or truncated:
            env.reset()


def test_registering_twice_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registration.register_all()


@pytest.mark.parametrize("package", ["hsal_env", "agents"])
def test_importing_a_package_imports_neither_torch_nor_data(package):
    code = f"import sys, {package}; sys.exit(any(m.split('.')[0] in ('torch', 'sklearn', 'torchvision') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# --- two routes to the same episode -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_seed_fixes_the_episode(mode):
    first, again = (play(single(action_mode=mode), seed=3) for _ in range(2))
    assert len(first) == len(again) > 1
    for one, other in zip(first, again, strict=True):
        assert_equal(one, other)


def test_other_seeds_draw_other_canvases():
    env = single(num_examples=1000)
    assert len({int(env.reset(seed=seed)[1]["index"]) for seed in range(10)}) > 5


def without_final(info: dict) -> dict:
    return {name: value for name, value in info.items() if "final" not in name}


def assert_final(actual: dict, expected: dict) -> None:
    """The observation and info that ended an episode, of the lanes that have one."""
    ended = expected.get("_final_obs", np.zeros(0, bool))
    np.testing.assert_array_equal(actual.get("_final_obs", np.zeros(0, bool)), ended)
    np.testing.assert_array_equal(actual.get("_final_info", np.zeros(0, bool)), ended)
    for lane in np.flatnonzero(ended):
        assert_equal(actual["final_obs"][lane], expected["final_obs"][lane])
        of_lane = lane_of(actual["final_info"], lane)
        for name, value in lane_of(expected["final_info"], lane).items():
            assert_equal(of_lane[name], value)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("autoreset", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("config", [{"max_objects": 2}, {"protocol": "teacher", "glimpses": 1}])
def test_the_vector_environment_is_its_single_ones_to_the_bit(mode, autoreset, config):
    config = {"action_mode": mode, **config}
    lanes = vector(autoreset_mode=autoreset, **config)
    singles = SyncVectorEnv([partial(single, **config)] * 4, autoreset_mode=autoreset)
    rng, ended = np.random.default_rng(0), 0
    (observations, info), (expected, expected_info) = lanes.reset(seed=7), singles.reset(seed=7)
    assert_equal(observations, expected)
    assert_equal(info, expected_info)
    for _ in range(60):
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
            assert_equal(observations, expected)
            for name in START:
                assert_equal(info[name][ended], expected_info[name][ended])
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


# --- what the numbers mean --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["free", "teacher"])
@pytest.mark.parametrize("glimpses", [0, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_an_episode_equals_the_oracle(protocol, glimpses, seed):
    rules = {"protocol": protocol, "glimpses": glimpses}
    env = single(include_volume=True, **rules)
    observation, info = env.reset(seed=seed)
    labels = [label for label in range(10) for _ in range(info["label_counts"][label])]
    volume = observation["volume"].astype(float)
    oracle = reference.Episode(volume, reference.raw_saliency(volume), labels, reference.Rules(**rules))
    rng, ended, close = np.random.default_rng(seed), False, {"rtol": 1e-4, "atol": 1e-5}
    while not ended:
        for name in ("saliency", "priority", "glimpse"):
            np.testing.assert_allclose(observation[name], getattr(oracle, name), **close)
        assert observation["phase"] == oracle.phase
        assert observation["last_location"] == (oracle.locations or [CELLS])[-1]
        assert observation["last_label"] == (STOP + 1 if oracle.last_label is None else oracle.last_label)
        action = random_action(rng, env.action_space, observation, stop_share=0.1)
        if rng.random() < 0.5 and oracle.available:
            action["label"] = oracle.available[0]
        expected = oracle.decide(action["attention"] * 8.0, action["location"], action["label"])
        observation, reward, terminated, truncated, info = env.step(action)
        assert (reward, terminated, truncated) == (pytest.approx(expected[0], rel=1e-4, abs=1e-5), *expected[1:])
        assert info["remaining_counts"].tolist() == reference.counts(oracle.available).tolist()
        assert info["label_counts"].tolist() == reference.counts(labels).tolist()
        ended = terminated or truncated
        assert set(info) == START | (END if ended else set())
    for name, value in oracle.metrics().items():
        assert info[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def name_labels(env, labels: list[int]) -> tuple:
    """Meta-steps, each from phase 0, that end with ``labels``; the last answer and the rewards of the labels."""
    rewards = []
    for label in labels:
        for _ in range(4):
            answer = env.step({"attention": np.zeros(20, np.float32), "location": 0, "label": label})
        rewards.append(answer[1])
    return answer, rewards


def test_naming_every_object_and_stop_is_an_exact_match():
    env = single()
    _, info = env.reset(seed=1)
    labels = [label for label in range(10) for _ in range(info["label_counts"][label])]
    (_, _, terminated, truncated, info), rewards = name_labels(env, [*reversed(labels), STOP])
    assert rewards == [1.0] * (len(labels) + 1)
    assert (terminated, truncated) == (True, False)
    assert (info["exact_match"], info["precision"], info["recall"]) == (1, 1, 1)
    assert info["return_label"] == len(labels) + 1
    assert not info["remaining_counts"].any()


def test_stopping_at_once_costs_one_and_finds_nothing():
    env = single()
    env.reset(seed=1)
    (_, _, terminated, _, info), rewards = name_labels(env, [STOP])
    assert (rewards, terminated) == ([-1.0], True)
    assert (info["exact_match"], info["precision"], info["recall"], info["return_label"]) == (0, 1, 0, -1)


@pytest.mark.parametrize("max_objects", [1, 2, 4])
def test_truncation_after_one_label_more_than_objects(max_objects):
    env = single(max_objects=max_objects)
    env.reset(seed=0)
    for _ in range(max_objects):
        (_, _, terminated, truncated, _), _ = name_labels(env, [0])
        assert (terminated, truncated) == (False, False)
    (_, _, terminated, truncated, _), _ = name_labels(env, [0])
    assert (terminated, truncated) == (False, True)


def test_attention_to_a_uniform_map_of_glimpses_is_their_mean():
    """A glimpse in every cell, of which none is suppressed before the label: both numbers of S3 agree."""
    env = single(glimpses=CELLS, update="none", protocol="teacher", task="single")
    env.reset(seed=0)
    for meta_step in range(2):
        env.step({"attention": np.zeros(20, np.float32)})
        for cell in range(CELLS):
            env.step({"location": cell})
        *_, terminated, _, info = env.step({"label": STOP})
        assert terminated == (meta_step == 1)
    assert info["attn_saliency"] == pytest.approx(info["attn_saliency_uniform"], rel=1e-5)
    assert info["attn_saliency"] > 0


def test_an_index_picks_the_canvas():
    env, lanes = single(), vector(3)
    observation, info = env.reset(options={"index": 11})
    expected = env.simulation.examples.compose(np.array([11]))
    assert info["index"] == 11
    np.testing.assert_array_equal(observation["image"][..., 0], expected.images[0])
    assert info["label_counts"].tolist() == reference.counts(expected.labels[expected.labels >= 0]).tolist()
    observations, infos = lanes.reset(options={"index": np.array([4, 11, 4])})
    assert infos["index"].tolist() == [4, 11, 4]
    assert_equal(lane_of(observations, 1), observation)
    assert_equal(lane_of(observations, 0), lane_of(observations, 2))


@pytest.mark.parametrize(("split", "size"), [("train", 60_000), ("val", 5_000), ("test", 10_000)])
def test_the_papers_numbers_of_canvases(split, size):
    env = single(split=split, num_examples=None)
    assert env.reset(options={"index": size - 1})[1]["index"] == size - 1
    with pytest.raises(DataError, match=rf"in 0\.\.{size - 1}; got {size}"):
        env.reset(options={"index": size})


def test_splits_and_seeds_lay_out_other_canvases_and_policies_other_glyphs():
    def first_canvases(**change):
        return single(**change).simulation.examples.compose(np.arange(3))

    layouts = [first_canvases(**c).boxes for c in ({}, {"split": "val"}, {"split": "test"}, {"seed": 1})]
    assert len({boxes.tobytes() for boxes in layouts}) == 4
    disjoint, paper = (first_canvases(split="test", glyphs=policy) for policy in ("disjoint", "paper"))
    np.testing.assert_array_equal(disjoint.boxes, paper.boxes)
    assert (disjoint.images != paper.images).any()


def test_the_source_says_what_the_pixels_are(mnist_root):
    assert single().reset(seed=0)[1]["source"] == "digits"
    real = gym.make("HSAL-MNISTMultiset-v0", data_root=mnist_root, num_examples=4)
    assert real.reset(seed=0)[1]["source"] == "mnist"


def test_stored_features_make_the_same_episode_up_to_rounding():
    lazy, stored = play(single(), seed=2), play(single(features="store"), seed=2)
    for (a, *one), (b, *other) in zip(lazy, stored, strict=True):
        assert_equal(a["image"], b["image"])
        np.testing.assert_allclose(a["saliency"], b["saliency"], atol=0.05)
        assert one[1:3] == other[1:3] or len(one) == 1


def test_a_state_that_was_handed_out_stays_as_it_was():
    lanes = vector(autoreset_mode="SameStep", num_examples=200)
    lanes.reset(seed=0)
    handed = lanes.state
    kept = copy.deepcopy(handed)
    rng, ended = np.random.default_rng(0), 0
    for _ in range(30):
        seen = {"phase": lanes.state.phase.numpy()}
        actions = batch([random_action(rng, lanes.single_action_space, seen) for _ in range(4)])
        _, _, terminated, truncated, _ = lanes.step(actions)
        ended += int((terminated | truncated).sum())
    assert ended
    for one, other in zip([*handed.example, *handed[1:-1]], [*kept.example, *kept[1:-1]], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_saliency_model_may_hand_out_one_map_for_all():
    def prior(images, volume):
        return torch.linspace(0, 1, 49).view(1, 7, 7).expand(len(volume), 7, 7)

    prior.needs_images = False
    lanes = vector(autoreset_mode="SameStep", action_mode="flat", saliency=prior)
    observations, _ = lanes.reset(seed=0)
    rng, ended = np.random.default_rng(0), 0
    for _ in range(40):
        actions = batch([random_action(rng, lanes.single_action_space, lane_of(observations, i)) for i in range(4)])
        observations, _, terminated, truncated, _ = lanes.step(actions)
        ended += int((terminated | truncated).sum())
    assert ended


# --- the flat view ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("glimpses", [0, 2])
def test_the_mask_allows_cells_and_then_labels(glimpses):
    env = single(action_mode="flat", glimpses=glimpses)
    observation, _ = env.reset(seed=0)
    for phase in [*range(glimpses + 2)] * 2:
        assert observation["phase"] == phase
        expected = [phase <= glimpses] * CELLS + [phase > glimpses] * (STOP + 1)
        assert observation["action_mask"].tolist() == expected
        assert env.action_masks().tolist() == expected
        assert env.action_masks().dtype == bool
        observation, *_ = env.step(int(np.flatnonzero(expected)[0]))


def test_the_vector_environments_masks_are_its_observations():
    lanes = vector(action_mode="flat")
    observations, _ = lanes.reset(seed=0)
    np.testing.assert_array_equal(lanes.action_masks(), observations["action_mask"].astype(bool))
    assert lanes.action_masks().shape == (4, CELLS + STOP + 1)


@pytest.mark.parametrize("phase", range(4))
def test_a_forbidden_action_costs_one_and_changes_nothing(phase):
    env, obedient = single(action_mode="flat"), single(action_mode="flat")
    for one in (env, obedient):
        one.reset(seed=0)
        for _ in range(phase):
            before, *_ = one.step(20)
    forbidden = 20 if phase == 3 else CELLS
    observation, reward, terminated, truncated, _ = env.step(forbidden)
    assert (reward, terminated, truncated) == (-1.0, False, False)
    if phase:
        assert_equal(observation, before)
    allowed = CELLS + STOP if phase == 3 else 7
    one, other = env.step(allowed), obedient.step(allowed)
    assert_equal(one[:4], other[:4])
    if phase == 3:
        assert one[4]["return_label"] == other[4]["return_label"] - 1


def test_only_forbidden_actions_end_in_truncation():
    env = single(action_mode="flat", max_objects=2)
    env.reset(seed=0)
    for count in range(1, 13):
        _, reward, terminated, truncated, info = env.step(CELLS)
        assert (reward, terminated, truncated) == (-1.0, False, count == 12)  # 3 meta-steps of 4 decisions
    assert info["return_label"] == -12


@pytest.mark.parametrize("coordinates", ["paper", "centred"])
@pytest.mark.parametrize("cell", [0, 6, 24, 42, 48])
def test_the_flat_view_is_the_native_one_with_a_spotlight(coordinates, cell):
    """The attention that centres all Gaussians on a cell, worked out by logit, gives the same episode."""

    def raw(line: int) -> float:
        share = (line + 1 - (0.5 if coordinates == "centred" else 0.0)) / 7
        return 8.0 if share >= 1 else np.log(share / (1 - share))

    flat, native = (single(action_mode=mode, coordinates=coordinates) for mode in ("flat", "native"))
    flat.reset(seed=0), native.reset(seed=0)
    attention = np.repeat([0, 0, raw(cell // 7), raw(cell % 7)], 5) / ATTENTION_SCALE
    actions = {"attention": attention.astype(np.float32), "location": 30, "label": 4}
    for chosen in (cell, 30, 30, CELLS + 4):
        (a, *one), (b, *other) = flat.step(chosen), native.step(actions)
        for name in ("saliency", "priority"):
            np.testing.assert_allclose(a[name].reshape(7, 7), b[name], atol=1e-4)
        np.testing.assert_allclose(a["glimpse"], b["glimpse"], rtol=1e-3, atol=1e-4)
        assert one[:3] == [pytest.approx(other[0], abs=1e-4), *other[1:3]]


def test_a_spotlight_lights_its_cell():
    env = single(action_mode="flat")
    for cell in (0, 17, 48):
        env.reset(seed=0)
        env.step(cell)
        assert int(env._state.mask.flatten().argmax()) == cell


# --- refusals ---------------------------------------------------------------------------------------------------------

NATIVE_REFUSALS = {
    "no dict": (0, 3),
    "text": (0, "attention"),
    "none": (0, None),
    "no attention": (0, {"location": 3, "label": 3}),
    "short attention": (0, {"attention": ATTENTION[:-1]}),
    "attention of rank 2": (0, {"attention": ATTENTION[None]}),
    "attention above 1": (0, {"attention": ATTENTION + 1.001}),
    "attention below -1": (0, {"attention": ATTENTION - 1.001}),
    "attention with NaN": (0, {"attention": np.where(np.arange(20) == 7, np.nan, 0)}),
    "infinite attention": (0, {"attention": ATTENTION + np.inf}),
    "ragged attention": (0, {"attention": [[1], [2, 3]]}),
    "attention as text": (0, {"attention": "up"}),
    "attention as none": (0, {"attention": None}),
    "no location": (1, {"attention": ATTENTION, "label": 3}),
    "location too large": (1, {"location": CELLS}),
    "negative location": (2, {"location": -1}),
    "location as float": (1, {"location": 3.0}),
    "location as text": (1, {"location": "3"}),
    "location of rank 1": (2, {"location": np.array([3])}),
    "no label": (3, {"attention": ATTENTION, "location": 3}),
    "label too large": (3, {"label": STOP + 1}),
    "negative label": (3, {"label": -1}),
    "label as float": (3, {"label": np.nan}),
}


@pytest.mark.parametrize(("phase", "action"), NATIVE_REFUSALS.values(), ids=NATIVE_REFUSALS)
def test_an_action_outside_the_native_space_is_refused_and_changes_nothing(phase, action):
    env, undisturbed = single(), single()
    whole = {"attention": ATTENTION, "location": 3, "label": 3}
    for one in (env, undisturbed):
        one.reset(seed=0)
        for _ in range(phase):
            one.step(whole)
    with pytest.raises(ActionError):
        env.step(action)
    assert_equal(env.step(whole), undisturbed.step(whole))


@pytest.mark.parametrize(
    "action", [-1, 60, 1.0, np.nan, "3", None, {"action": 3}, [3, 4], np.array([3]), [[1], [2, 3]]], ids=str
)
def test_an_action_outside_the_flat_space_is_refused(action):
    env = single(action_mode="flat")
    env.reset(seed=0)
    with pytest.raises(ActionError):
        env.step(action)


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


def test_parts_that_the_phase_does_not_read_are_not_looked_at():
    env = single()
    env.reset(seed=0)
    env.step({"attention": ATTENTION, "location": 1000, "label": "none"})
    env.step({"attention": None, "location": 48})
    env.step({"location": 0, "label": -5})
    env.step({"label": STOP})


@pytest.mark.parametrize("make", [single, partial(vector, 2)], ids=["single", "vector"])
def test_a_step_before_reset_is_refused(make):
    env = make()
    with pytest.raises(ResetNeeded, match="reset"):
        env.step(env.action_space.sample())


def test_a_step_after_the_end_is_refused():
    env = single()
    env.reset(seed=0)
    name_labels(env, [STOP])
    with pytest.raises(ResetNeeded, match="reset"):
        env.step({"attention": ATTENTION})
    env.reset()
    env.step({"attention": ATTENTION})


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_shows_the_episode_so_far_in_every_view(mode):
    """All decisions, in the right lane: as if a recorder had watched the native environment."""
    env, lanes = single(render_mode="rgb_array", action_mode=mode), vector(2, render_mode="rgb_array", action_mode=mode)
    rng = np.random.default_rng(0)
    with pytest.raises(ResetNeeded, match="reset"):
        env.render()
    with pytest.raises(ResetNeeded, match="reset"):
        lanes.render()
    (seen, _), (both, _) = env.reset(seed=1), lanes.reset(seed=0)  # lane 1 begins as the single one
    pictures = [env.render()]
    while True:
        action = random_action(rng, env.action_space, seen, stop_share=0.1, forbidden_share=0.2)
        other = random_action(rng, env.action_space, lane_of(both, 0), stop_share=0.5)
        seen, _, terminated, truncated, _ = env.step(action)
        both, *_ = lanes.step(batch([other, action]))
        pictures.append(env.render())
        np.testing.assert_array_equal(pictures[-1], lanes.render()[1])
        if terminated or truncated:
            break
    assert {(p.shape, p.dtype.name) for p in pictures} == {(pictures[0].shape, "uint8")}
    assert len({p.tobytes() for p in pictures}) > len(pictures) / 2  # a forbidden decision changes nothing
    (trace,) = env.simulation.traces(env._recorder, env._state.example.canvas_index.numpy())
    phases = np.arange(len(trace.phase)) % 4
    np.testing.assert_array_equal(trace.phase, phases)
    assert trace.phase[-1] == 3 or truncated
    assert (trace.terminated, trace.truncated) == (terminated, truncated)
    assert (trace.location >= 0).tolist() == ((phases == 1) | (phases == 2)).tolist()
    assert np.isnan(trace.alpha).all()
    np.testing.assert_array_equal(pictures[-1], draw_trace(trace, columns=5))


@pytest.mark.parametrize("autoreset", ["NextStep", "SameStep", "Disabled"])
def test_a_lane_that_begins_anew_begins_a_new_picture(autoreset):
    lanes = vector(2, render_mode="rgb_array", action_mode="macro", autoreset_mode=autoreset)
    lanes.reset(options={"index": np.array([3, 5])})
    go_on, stop = [0, 1, 2, 7], [0, 1, 2, STOP]
    lanes.step(np.array([go_on, go_on]))
    lanes.step(np.array([go_on, stop]))  # lane 1 ends
    expected = {"NextStep": [2, 2], "SameStep": [2, 0], "Disabled": [2, 2]}[autoreset]
    after = {"NextStep": [3, 0], "SameStep": [3, 1], "Disabled": [3, 2]}[autoreset]

    def meta_steps() -> list[int]:
        traces = lanes.simulation.traces(lanes._recorder, lanes._current.example.canvas_index.numpy())
        assert all(
            draw_trace(t, columns=5).tobytes() == p.tobytes() for t, p in zip(traces, lanes.render(), strict=True)
        )
        assert traces[1].terminated == (autoreset != "SameStep" and traces[1].meta_steps == 2)
        return [trace.meta_steps for trace in traces]

    assert meta_steps() == expected
    lanes.step(np.array([go_on, go_on]))
    assert meta_steps() == after


def test_without_a_render_mode_nothing_is_recorded():
    for env in (single(), vector(1)):
        env.reset(seed=0)
        assert env.render() is None
        assert env._recorder is None


def test_a_window_is_redrawn_by_itself_until_it_is_closed(monkeypatch):
    monkeypatch.setitem(HSALEnv.metadata, "render_fps", 1_000)
    human, array = single(render_mode="human"), single(render_mode="rgb_array")
    with pytest.raises(ResetNeeded, match="reset"):
        human.render()
    for env in (human, array):
        env.reset(seed=0)
        env.step({"attention": ATTENTION})
    assert human.render() is None
    shown = human._window._image.get_array()
    np.testing.assert_array_equal(shown, array.render())
    human.close()
    human.step({"location": 3})  # opens again
    assert (human._window._image.get_array() != shown).any()
    human.close(), human.close(), array.close()
    assert pyplot.get_fignums() == []


def test_without_a_display_there_is_no_window(monkeypatch):
    monkeypatch.delenv("MPLBACKEND")
    with pytest.raises(
        ConfigError, match=r"render_mode='human' opens a window.*no display.*Use render_mode='rgb_array'"
    ):
        single(render_mode="human")
    with pytest.raises(ConfigError, match=r"'rgb_array'; got 'human'\. A window shows a single environment"):
        vector(2, render_mode="human")


def test_masks_are_of_the_flat_view():
    for env in (single(), vector(2)):
        env.reset(seed=0)
        with pytest.raises(ConfigError, match="action_mode='flat'"):
            env.action_masks()


@pytest.mark.parametrize("index", [-1, 16, [1, 2], "one", 1.5])
def test_an_index_outside_the_split_is_refused(index):
    with pytest.raises((DataError, ConfigError)):
        single().reset(options={"index": index})


@pytest.mark.parametrize("index", [[0, 16], [-1, 0], [0, 1, 2], 3, ["a", "b"], [0.5, 1]])
def test_vector_indices_outside_the_split_are_refused(index):
    with pytest.raises((DataError, ConfigError)):
        vector(2).reset(options={"index": index})


def test_unknown_reset_options_are_refused():
    with pytest.raises(ConfigError, match=r"got also .*'indices'"):
        single().reset(options={"indices": 3})
    with pytest.raises(ConfigError, match=r"got also .*'indices'"):
        vector(2).reset(options={"indices": 3})


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


BAD_VALUES = [
    ("task", "list"), ("source", "cifar"), ("split", "validation"), ("glyphs", "leaky"), ("features", "eager"),
    ("coordinates", "polar"), ("beta", "free"), ("mask_scale", "sum"), ("update", "double"), ("protocol", "student"),
    ("action_mode", "continuous"), ("forbidden", "ignore"),
    ("activation", "resnet1000"), ("saliency", "itti"), ("render_mode", "ansi"),
    ("glimpses", -1), ("components", 0), ("seed", -1), ("num_examples", 0), ("min_objects", 0), ("max_objects", 0),
    ("max_objects", 5), ("min_size_px", 0), ("max_size_px", 101), ("canvas_px", 40), ("clutter", -1), ("clutter_px", 29),
    ("glimpses", 1.5), ("glimpses", "2"), ("components", None), ("num_examples", 2.5), ("max_objects", "4"),
    ("canvas_px", 100.0), ("clutter", 8.0), ("seed", 1.5), ("activation", 3),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
@pytest.mark.parametrize("make", [single, partial(vector, 1)], ids=["single", "vector"])
def test_a_value_outside_its_range_is_refused(make, name, value):
    with pytest.raises(ConfigError, match=name):
        make(**{name: value})


def test_an_unknown_argument_is_refused_and_the_known_ones_named():
    with pytest.raises(ConfigError, match=r"Unknown environment arguments glimpse\. Known ones: .*glimpses"):
        gym.make("HSAL-DigitsMultiset-v0", glimpse=2)


@pytest.mark.parametrize(
    "wrong",
    [{"num_envs": 0}, {"output": "list"}, {"device": "cuda"}, {"device": "abacus"}, {"autoreset_mode": "never"}],
    ids=str,
)
def test_a_vector_argument_outside_its_range_is_refused(wrong):
    with pytest.raises(ConfigError):
        HSALVectorEnv(**{**SMALL, **wrong})


# --- architecture -----------------------------------------------------------------------------------------------------


def imports_of(path: Path) -> set[str]:
    """The packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or ".").split(".")[0] if not node.level else ".")
    return found


@pytest.mark.parametrize(("package", "never"), [("hsal_env", {"agents", "train"}), ("agents", {"train"})])
def test_arrows_point_one_way(package, never):
    files = list((ROOT / package).rglob("*.py"))
    assert len(files) > 10
    assert {path.name: imports_of(path) & never for path in files if imports_of(path) & never} == {}


@pytest.mark.parametrize(
    ("libraries", "door"),
    [({"ray"}, "agents/rllib.py"), ({"stable_baselines3", "sb3_contrib"}, "agents/sb3.py")],
    ids=["ray", "sb3"],
)
def test_other_libraries_come_in_by_one_door(libraries, door):
    files = [path for folder in ("hsal_env", "agents", "train") for path in (ROOT / folder).rglob("*.py")]
    assert {path.relative_to(ROOT).as_posix() for path in files if imports_of(path) & libraries} == {door}


def test_the_equations_import_torch_only():
    assert imports_of(ROOT / "hsal_env" / "functional.py") == {"__future__", "typing", "torch"}
