"""The environments: Gymnasium's contract, what each number means, the flat view, and every refusal."""

import copy
import warnings
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import reference
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from playing import (
    ATTENTION,
    CELLS,
    MODES,
    SMALL,
    START,
    STOP,
    assert_equal,
    batch,
    lane_of,
    name_labels,
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
from hsal_env.vector_env import HSALVectorEnv

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
    attention = np.repeat([0, 0, raw(cell // 7), raw(cell % 7)], 5) / 8.0
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


def test_masks_are_of_the_flat_view():
    for env in (single(), vector(2)):
        env.reset(seed=0)
        with pytest.raises(ConfigError, match="action_mode='flat'"):
            env.action_masks()


@pytest.mark.parametrize("index", [-1, 16, [1, 2], "one", 1.5])
def test_an_index_outside_the_split_is_refused(index):
    with pytest.raises((DataError, ConfigError)):
        single().reset(options={"index": index})


def test_unknown_reset_options_are_refused():
    with pytest.raises(ConfigError, match=r"got also .*'indices'"):
        single().reset(options={"indices": 3})
    with pytest.raises(ConfigError, match=r"got also .*'indices'"):
        vector(2).reset(options={"indices": 3})


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
    """TorchRL and others look for Python's own words in a TypeError."""
    said = r"got an unexpected keyword argument 'glimpse'\. Known ones: .*glimpses"
    for make in (gym.make, gym.make_vec, HSALEnv, HSALVectorEnv):
        for kind in (ConfigError, TypeError):
            with pytest.raises(kind, match=said):
                make("HSAL-DigitsMultiset-v0", glimpse=2) if make in (gym.make, gym.make_vec) else make(glimpse=2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'frameskip'"):
        gym.make("HSAL-DigitsMultiset-v0", frameskip=2, glimpse=2)
