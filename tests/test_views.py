"""The views that make several decisions in one step, or leave some to a given policy: each is the native process."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from playing import ATTENTION, CELLS, SMALL, STOP, Wanderer, assert_equal, play, single, vector

import agents
from hsal_env.env import HSALEnv
from hsal_env.errors import ActionError, ConfigError
from hsal_env.policies import Choice, WinnerTakeAll
from hsal_env.spaces import raw_attention


class Native:
    """The native environment, and what a given policy would do in it."""

    def __init__(self, policy, **config) -> None:
        self.env, self.policy = single(**config), policy
        self.rewards: list[float] = []

    def reset(self, index: int) -> None:
        self.observation, self.info = self.env.reset(options={"index": index})
        self.memory = self.policy.initial(1)

    def ask(self) -> dict:
        batch = {name: torch.as_tensor(value)[None] for name, value in self.observation.items() if name != "image"}
        choice = self.policy.act(batch, self.memory, deterministic=True)
        self.memory = choice.state
        return {name: value[0].numpy() for name, value in choice.action.items()}

    def step(self, action: dict) -> bool:
        self.observation, reward, terminated, truncated, self.info = self.env.step(action)
        self.rewards.append(reward)
        return terminated or truncated


@pytest.mark.parametrize("glimpses", [0, 2])
@pytest.mark.parametrize("index", range(4))
def test_the_option_view_is_the_native_one_with_a_given_controller(glimpses, index):
    policy = Wanderer()
    view = single(action_mode="option", policy=policy, glimpses=glimpses)
    native = Native(policy, glimpses=glimpses)
    observation, _ = view.reset(options={"index": index})
    native.reset(index)
    rng, ended = np.random.default_rng(index), False
    while not ended:
        np.testing.assert_array_equal(observation["saliency"], native.observation["saliency"].ravel())
        assert observation["last_label"] == native.observation["last_label"]
        attention = rng.uniform(-1, 1, 20).astype(np.float32)
        native.ask()
        native.rewards = []
        native.step({"attention": attention})
        for _ in range(glimpses + 1):
            ended = native.step(native.ask())
        observation, reward, terminated, truncated, info = view.step(attention)
        assert reward == pytest.approx(sum(native.rewards), abs=1e-6)
        assert (terminated or truncated) == ended
    assert_equal(info, native.info)


@pytest.mark.parametrize("glimpses", [0, 2])
@pytest.mark.parametrize("index", range(4))
def test_the_controller_view_is_the_native_one_with_a_given_meta_controller(glimpses, index):
    policy = Wanderer()
    view = single(action_mode="controller", policy=policy, glimpses=glimpses)
    native = Native(policy, glimpses=glimpses)
    observation, _ = view.reset(options={"index": index})
    native.reset(index)
    rng, ended = np.random.default_rng(index), False
    while not ended:
        native.step({"attention": native.ask()["attention"]})
        for phase in range(1, glimpses + 2):
            assert observation["phase"] == phase
            for name in ("saliency", "priority", "glimpse", "last_location", "last_label"):
                np.testing.assert_array_equal(
                    observation[name], np.ravel(native.observation[name]).reshape(np.shape(observation[name]))
                )
            location, label = int(rng.integers(CELLS)), int(rng.integers(STOP + 1))
            ended = native.step({"location": location, "label": label})
            action = CELLS + label if phase == glimpses + 1 else location
            observation, reward, terminated, truncated, info = view.step(action)
            assert reward == pytest.approx(native.rewards[-1], abs=1e-6)
            assert (terminated or truncated) == ended
    assert_equal(info.pop("action_mask"), observation["action_mask"])
    assert_equal(info, native.info)


@pytest.mark.parametrize("glimpses", [0, 1, 3])
def test_the_macro_view_is_the_flat_one_several_decisions_at_once(glimpses):
    macro, flat = (single(action_mode=mode, glimpses=glimpses, include_volume=True) for mode in ("macro", "flat"))
    seen, _ = macro.reset(seed=3)
    one_by_one, _ = flat.reset(seed=3)
    rng, ended = np.random.default_rng(0), False
    while not ended:
        for name in ("saliency", "last_label", "volume"):
            np.testing.assert_array_equal(seen[name], one_by_one[name])
        action = np.append(rng.integers(CELLS, size=glimpses + 1), rng.integers(STOP + 1))
        rewards = 0.0
        for cell in action[:-1]:
            one_by_one, reward, *_ = flat.step(int(cell))
            rewards += reward
        one_by_one, reward, *flags, info = flat.step(CELLS + int(action[-1]))
        seen, whole, *macro_flags, macro_info = macro.step(action)
        assert whole == pytest.approx(rewards + reward, abs=1e-6)
        assert macro_flags == flags
        ended = any(flags)
    del info["action_mask"]
    assert_equal(macro_info, info)


def test_the_packed_view_is_the_native_one_in_a_box():
    packed, native = single(action_mode="packed"), single(include_volume=True)
    seen, _ = packed.reset(seed=3)
    expected, _ = native.reset(seed=3)
    rng, ended = np.random.default_rng(0), False
    while not ended:
        assert seen.keys() == expected.keys() - {"image"}
        for name, value in seen.items():
            np.testing.assert_array_equal(value, np.ravel(expected[name]).reshape(np.shape(value)))
        attention = rng.uniform(-1, 1, 20).astype(np.float32)
        location, label = int(rng.integers(CELLS)), int(rng.integers(STOP + 1))
        seen, *outcome, info = packed.step(np.append(attention, [location, label]).astype(np.float32))
        expected, *native_outcome, native_info = native.step(
            {"attention": attention, "location": location, "label": label}
        )
        assert outcome == native_outcome
        ended = any(outcome[1:])
    assert_equal(info, native_info)


def test_winner_take_all_lights_the_most_salient_cell_and_looks_at_the_peak():
    env = single()
    observation, _ = env.reset(seed=0)
    policy = WinnerTakeAll(env.simulation.rules)
    winner = int(observation["saliency"].argmax())
    attention = policy.act({name: torch.as_tensor(part)[None] for name, part in observation.items()}, ()).action[
        "attention"
    ]
    assert attention.shape == (1, 20)
    observation, *_ = env.step({"attention": attention[0].numpy()})
    assert int(observation["priority"].argmax()) == winner
    choice = policy.act({name: torch.as_tensor(part)[None] for name, part in observation.items()}, ())
    assert choice.action["location"].tolist() == [winner]

    view = single(action_mode="controller", policy="winner-take-all")
    of_view, _ = view.reset(seed=0)
    np.testing.assert_array_equal(of_view["priority"], observation["priority"].ravel())


def test_a_bundled_agent_names_what_its_own_masks_show_it():
    """The given controller and the given meta-controller are the two halves of one agent."""
    trained = agents.load("mnist-multiset").agent.requires_grad_(False)
    config = {"components": 25, "update": "peak", "policy": trained, "num_examples": 16}
    option, controller = (single(action_mode=mode, **config) for mode in ("option", "controller"))
    right = 0
    for index in range(8):
        native = Native(trained, components=25, update="peak")
        native.reset(index)
        option.reset(options={"index": index})
        controller.reset(options={"index": index})
        ended = False
        while not ended:
            attention = native.ask()["attention"]
            native.step({"attention": attention})
            for phase in range(1, 4):
                choice = native.ask()
                ended = native.step(choice)
                action = CELLS + int(choice["label"]) if phase == 3 else int(choice["location"])
                *_, controller_info = controller.step(action)
            *_, option_info = option.step(attention)
        assert option_info["predicted_counts"].tolist() == controller_info["predicted_counts"].tolist()
        assert option_info["predicted_counts"].tolist() == native.info["predicted_counts"].tolist()
        right += int(native.info["exact_match"])
    assert right >= 4  # MNIST's agent on scikit-learn's digits


def test_a_policy_may_be_named():
    env = gym.make("HSAL-MNISTMultisetOption-v0", **SMALL)
    named = gym.make(
        "HSAL-MNISTMultiset-v0", **SMALL, action_mode="option", policy="agents.policies:greedy_mnist_multiset"
    )
    for one in (env, named):
        one.reset(seed=0)
        assert one.action_space.contains(ATTENTION)
        one.step(ATTENTION)


def test_a_view_keeps_spec_seeding_and_pictures():
    env = gym.make("HSAL-MNISTMultisetController-v0", **SMALL, render_mode="rgb_array")
    assert env.spec.id == "HSAL-MNISTMultisetController-v0"
    assert env.metadata == HSALEnv.metadata
    first, again = env.reset(seed=5), env.reset(seed=5)
    assert_equal(first, again)
    native = gym.make("HSAL-MNISTMultiset-v0", **SMALL)
    assert native.reset(seed=5)[1]["index"] == first[1]["index"]
    assert env.render().ndim == 3


@pytest.mark.parametrize("mode", ["option", "controller", "macro", "packed"])
def test_copies_go_their_own_way(mode):
    env = single(action_mode=mode)
    env.reset(seed=0)
    for other in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        assert_equal(tuple(play(other, seed=1)), tuple(play(single(action_mode=mode), seed=1)))


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["option", "controller"])
@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (None, r"policy=agents\.load"),
        ("mnist", "'winner-take-all' or 'package.module:Name'; got 'mnist'"),
        ("no_such_package:Policy", "cannot be imported"),
        (object(), "object lacks initial, act"),
        ("builtins:object", "object lacks initial, act"),
        (Wanderer, "Wanderer is a class: pass an instance"),
        (agents.load("mnist-multiset"), r"Loaded lacks initial, act\. Pass its \.agent\."),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else type(value).__name__,
)
def test_a_policy_that_is_none_is_refused(mode, policy, said):
    with pytest.raises(ConfigError, match=said):
        HSALEnv(**SMALL, action_mode=mode, policy=policy)


@pytest.mark.parametrize("mode", ["native", "flat", "packed", "macro"])
def test_a_policy_that_nobody_asks_is_refused(mode):
    with pytest.raises(ConfigError, match=f"action_mode='{mode}' leaves no level"):
        single(action_mode=mode, policy=Wanderer())
    with pytest.raises(ConfigError, match="leaves no level"):
        vector(action_mode=mode, policy=Wanderer())


def test_a_policy_with_masks_of_another_size_is_refused():
    env = single(action_mode="controller", policy=Wanderer(components=3))
    with pytest.raises(ConfigError, match=r"Wanderer .*components=5 Gaussians: .*\(1, 20\); got \(1, 12\)"):
        env.reset(seed=0)


class Mute(Wanderer):
    """Names nothing."""

    def act(self, *given, **named) -> Choice:
        choice = super().act(*given, **named)
        return choice._replace(action={name: part for name, part in choice.action.items() if name != "label"})


def test_a_policy_that_names_nothing_is_refused_where_it_should():
    with pytest.raises(ConfigError, match="'winner-take-all' only attends"):
        single(action_mode="option", policy="winner-take-all")
    env = single(action_mode="option", policy=Mute())
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"Mute .*hold 'label'"):
        env.step(ATTENTION)


@pytest.mark.parametrize("config", [{"glimpses": 3}, {"canvas_px": 140}], ids=str)
@pytest.mark.parametrize("mode", ["option", "controller"])
def test_an_agent_of_another_world_is_refused(mode, config):
    policy = agents.load("mnist-multiset").agent
    with pytest.raises(ConfigError, match=r"another environment: .*\(2, \(7, 7\), 128, 10\), here"):
        single(action_mode=mode, policy=policy, components=25, update="peak", **config)


REFUSALS = {
    "option": [ATTENTION[:-1], ATTENTION + 1.1, ATTENTION * np.nan, "up", None, {"attention": ATTENTION}],
    "packed": [
        ATTENTION, np.append(ATTENTION + 2, [0, 0]), np.append(ATTENTION, [0, np.nan]), np.append(ATTENTION, [0, 11]),
        np.append(ATTENTION, [-1, 0]), "left", None,
    ],
    "macro": [[1, 2, 3], [1, 2, 3, 11], [1, 49, 3, 4], [-1, 2, 3, 4], [0.5, 1, 2, 3], "all", None],
    "controller": [60, -1, 0.5, "stop", None, [3, 4]],
}  # fmt: skip


@pytest.mark.parametrize(("mode", "action"), [(mode, action) for mode in REFUSALS for action in REFUSALS[mode]])
def test_an_action_outside_a_views_space_is_refused_and_changes_nothing(mode, action):
    """In the packed view, at the phase that reads what is wrong."""
    env, undisturbed = single(action_mode=mode), single(action_mode=mode)
    good = {
        "option": ATTENTION,
        "packed": np.append(ATTENTION, [3, 3]).astype(np.float32),
        "macro": np.array([1, 2, 3, 4]),
        "controller": 7,
    }[mode]
    at = 0
    if (
        mode == "packed"
        and isinstance(action, np.ndarray)
        and np.nanmax(np.abs(action[:20])) <= 1
        and action.size == 22
    ):
        at = 1 if action[20] < 0 else 3
    for one in (env, undisturbed):
        one.reset(seed=0)
        for _ in range(at):
            one.step(good)
    with pytest.raises(ActionError):
        env.step(action)
    assert_equal(env.step(good), undisturbed.step(good))


@pytest.mark.parametrize(("mode", "phase"), [("flat", 0), ("controller", 1)])
@pytest.mark.parametrize("lanes", [0, 1])
def test_an_ignored_mask_is_an_error_where_it_should_be(mode, phase, lanes):
    config = {"action_mode": mode, "forbidden": "raise"}
    env = vector(lanes, **config) if lanes else single(**config)
    env.reset(seed=0)
    with pytest.raises(ActionError, match=f"got 53 at phase {phase}.*MaskablePPO.*forbidden='penalise'"):
        env.step(np.full(env.action_space.shape, CELLS + 4))
    assert env.step(np.full(env.action_space.shape, 7))[0]["phase"] == phase + 1


def test_spotlights_are_attention_that_an_action_can_say():
    for coordinates in ("paper", "centred"):
        env = single(coordinates=coordinates)
        raw = WinnerTakeAll(env.simulation.rules).act(
            {"saliency": torch.eye(49).view(49, 7, 7), "priority": torch.eye(49).view(49, 7, 7)}, ()
        )
        assert raw.action["attention"].abs().max() <= 1
        assert raw_attention(raw.action["attention"]).abs().max() <= 8
