"""Stable-Baselines3: its VecEnv over ours, the paper's agent as its policy, its tools on our agents."""

import inspect
import subprocess
import sys
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit
from playing import CELLS, SMALL, STOP, Wanderer, assert_equal, lane_of, random_action
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecVideoRecorder

import agents
from agents.actor_critic import ActorCritic
from agents.config import AgentConfig
from agents.evaluation import evaluation_config, score_agent
from agents.sb3 import HSALPolicy, HSALVecEnv, SB3Agent, playing
from hsal_env.config import EnvConfig
from hsal_env.env import HSALEnv
from hsal_env.errors import ConfigError

ROOT = Path(__file__).parents[1]

ID = "HSAL-DigitsMultiset-v0"
MODES = ["flat", "packed", "option", "controller", "macro"]


def lanes_of(num_envs: int = 4, **config) -> HSALVecEnv:
    if config.get("action_mode") in ("option", "controller"):
        config = {"policy": Wanderer(), **config}
    return HSALVecEnv(ID, num_envs, **{"num_examples": 16, **config})


# --- the VecEnv -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_it_is_a_dummy_vec_env_of_single_ones_to_the_bit(mode):
    config = {**SMALL, "task": "multiset", "max_objects": 2, "action_mode": mode}
    if mode in ("option", "controller"):
        config["policy"] = Wanderer()
    ours, theirs = lanes_of(**config), DummyVecEnv([partial(HSALEnv, **config)] * 4)
    assert (ours.observation_space, ours.action_space) == (theirs.observation_space, theirs.action_space)
    for env in (ours, theirs):
        env.seed(3)
    observations, expected = ours.reset(), theirs.reset()
    rng, ended, cut_off = np.random.default_rng(0), 0, 0
    for lane in range(4):
        assert_equal(ours.reset_infos[lane], theirs.reset_infos[lane])
    for _ in range(60):
        assert_equal(dict(observations), dict(expected))
        actions = np.stack(
            [
                random_action(rng, ours.action_space, lane_of(expected, i), stop_share=0.15, forbidden_share=0.1)
                for i in range(4)
            ]
        )
        observations, rewards, dones, infos = ours.step(actions)
        expected, *outcome, expected_infos = theirs.step(actions)
        np.testing.assert_array_equal(rewards, outcome[0])
        np.testing.assert_array_equal(dones, outcome[1])
        assert rewards.dtype == outcome[0].dtype
        for info, expected_info, done in zip(infos, expected_infos, dones, strict=True):
            if done:
                assert info.pop("is_success") == (expected_info["exact_match"] == 1)
                assert_equal(info.pop("terminal_observation"), expected_info.pop("terminal_observation"))
                cut_off += info["TimeLimit.truncated"]
            else:
                expected_info.pop("TimeLimit.truncated")
            assert_equal(info, expected_info)
        ended += dones.sum()
    assert ended > 8
    assert 0 < cut_off < ended


def test_a_limit_of_steps_is_that_of_single_ones():
    config = {**SMALL, "task": "multiset", "action_mode": "flat"}
    ours = lanes_of(**config, max_episode_steps=3)
    theirs = DummyVecEnv([lambda: TimeLimit(HSALEnv(**config), 3)] * 4)
    for env in (ours, theirs):
        env.seed(3)
        env.reset()
    for _ in range(3):
        _, _, dones, infos = ours.step([0] * 4)
        *_, expected = theirs.step([0] * 4)
    assert dones.all()
    for info, other in zip(infos, expected, strict=True):
        assert info.pop("is_success") is False
        assert info["TimeLimit.truncated"]
        assert_equal(info, other)


def test_an_id_may_name_its_module():
    assert HSALVecEnv(f"hsal_env:{ID}", 2, num_examples=16).num_envs == 2


def test_seeds_and_options_count_for_one_reset():
    env = lanes_of(2)
    env.set_options([{"index": 3}, {"index": 5}])
    env.reset()
    assert [info["index"] for info in env.reset_infos] == [3, 5]
    env.seed(1)
    first, again = env.reset(), None
    assert env.seed(1) == [1, 2]
    again = env.reset()
    assert_equal(first, again)


@pytest.mark.parametrize("options", [[{"index": 3}, {}], [{"start": 1}, {"start": 2}]])
def test_options_that_are_none_are_refused(options):
    env = lanes_of(2)
    env.set_options(options)
    with pytest.raises(ConfigError, match="option index for every lane"):
        env.reset()


def test_attributes_and_methods_are_the_vector_environments():
    env = lanes_of(3)
    env.seed(0)
    observations = env.reset()
    assert env.get_attr("num_envs") == [3, 3, 3]
    assert env.get_attr("num_envs", indices=[1]) == [3]
    assert is_masking_supported(env)
    np.testing.assert_array_equal(get_action_masks(env), observations["action_mask"].astype(bool))
    assert len(env.env_method("action_masks", indices=[0, 2])) == 2
    assert env.env_is_wrapped(gym.Wrapper) == [False] * 3
    env.set_attr("note", "mine")
    assert env.get_attr("note") == ["mine"] * 3
    assert not env.has_attr("nobody")
    assert env.world.map_size == (7, 7)
    env.close()
    with pytest.raises(ConfigError, match="one environment"):
        env.set_attr("note", "yours", indices=0)
    with pytest.raises(ConfigError, match="answer for every lane; close gave NoneType"):
        env.env_method("close")
    with pytest.raises(AttributeError):
        env.env_method("nobody")


@pytest.mark.parametrize("mode", ["packed", "option", "macro"])
def test_masks_are_missing_where_there_are_none(mode):
    assert not is_masking_supported(lanes_of(action_mode=mode))


def test_pictures_are_of_every_lane():
    env = lanes_of(2, render_mode="rgb_array")
    env.reset()
    assert [image.ndim for image in env.get_images()] == [3, 3]
    assert env.render().ndim == 3
    assert lanes_of(2).get_images() == [None, None]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: HSALVecEnv("HSAL-ImageNet-v0"), "HSAL-MNISTMultiset-v0.*got 'HSAL-ImageNet-v0'"),
        (lambda: HSALVecEnv(gym.make_vec(ID, num_envs=2, **SMALL)), "makes the vector environment itself"),
        (lambda: lanes_of(action_mode="native"), "no Dict actions; .* got native"),
        (lambda: lanes_of(output="torch"), "decides output itself"),
    ],
)
def test_what_sb3_cannot_play_is_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_a_mask_may_be_used_or_ignored():
    env = VecMonitor(lanes_of(8, features="store"))
    for algorithm in (PPO, MaskablePPO):
        model = algorithm("MultiInputPolicy", env, n_steps=16, batch_size=64, seed=0).learn(256)
        assert model.num_timesteps == 256
        assert np.isfinite(model.ep_info_buffer[0]["r"])


def test_an_ignored_mask_stops_training_where_it_should():
    env = lanes_of(8, features="store", forbidden="raise")
    MaskablePPO("MultiInputPolicy", env, n_steps=16, batch_size=64, seed=0).learn(128)
    with pytest.raises(Exception, match="MaskablePPO"):
        PPO("MultiInputPolicy", env, n_steps=16, batch_size=64, seed=0).learn(128)


# --- the policy -------------------------------------------------------------------------------------------------------


def recurrent_ppo(
    num_envs: int = 6, n_steps: int = 22, batch_size: int = 50, policy_kwargs=None, **config
) -> RecurrentPPO:
    config = {"action_mode": "packed", "features": "store", "components": 4, **config}
    return RecurrentPPO(
        HSALPolicy, lanes_of(num_envs, **config), n_steps=n_steps, batch_size=batch_size, n_epochs=2, gamma=0.0, seed=0,
        policy_kwargs=policy_kwargs,
    )  # fmt: skip


def rolled_out(model: RecurrentPPO, rollouts: int = 2) -> RecurrentPPO:
    _, callback = model._setup_learn(1000)
    callback.on_training_start({}, {})
    for _ in range(rollouts):
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


def scored_again(model: RecurrentPPO, data) -> tuple[torch.Tensor, ...]:
    """Which steps are real, which of them attend, and the scores of all, which must be those of the roll-out."""
    values, log_prob, entropy = model.policy.evaluate_actions(
        data.observations, data.actions, data.lstm_states, data.episode_starts
    )
    real = data.mask > 0
    torch.testing.assert_close(log_prob[real], data.old_log_prob[real], rtol=0, atol=1e-4)
    torch.testing.assert_close(values[real], data.old_values[real], rtol=0, atol=1e-4)
    return real, (data.observations["phase"].flatten() == 0) & real, log_prob, entropy


@pytest.mark.parametrize("config", [{}, {"glimpses": 0}, {"glimpses": 1, "components": 5, "max_objects": 2}], ids=str)
def test_an_update_scores_what_the_roll_out_did(config):
    """The ratio is 1 before the first step, though sequences and batches begin in the middle of meta-steps."""
    model = rolled_out(recurrent_ppo(**config))
    for data in model.rollout_buffer.get(model.batch_size):
        real, attends, log_prob, entropy = scored_again(model, data)
        assert (log_prob[attends] == 0).all()
        assert (entropy[attends] == 0).all()
        assert (entropy[real & ~attends] > 0).all()


def test_labels_teach_the_meta_controller_through_the_mask():
    model = rolled_out(recurrent_ppo(batch_size=132), 1)
    data = next(model.rollout_buffer.get(132))
    _, log_prob, _ = model.policy.evaluate_actions(
        data.observations, data.actions, data.lstm_states, data.episode_starts
    )
    names = (data.observations["phase"].flatten() == 3) & (data.mask > 0)
    weight = model.policy.agent.meta_controller.attention.weight
    gradient = torch.autograd.grad(log_prob[names].sum(), weight)[0]
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


DRAWN = {"config": AgentConfig(attention_policy="drawn", saliency_prior=3.0, meta_hidden=16, controller_hidden=16)}


@pytest.mark.parametrize("config", [{}, {"glimpses": 0}, {"glimpses": 1, "components": 9, "max_objects": 2}], ids=str)
def test_an_update_scores_the_cells_that_the_roll_out_drew(config):
    model = rolled_out(recurrent_ppo(policy_kwargs=DRAWN, **config))
    cells = 0
    for data in model.rollout_buffer.get(model.batch_size):
        real, attends, log_prob, entropy = scored_again(model, data)
        assert (entropy[real] > 0).all()
        assert (log_prob[attends] < 0).all()
        cells += data.actions[attends, -2].unique().numel()
    assert cells > 2


def test_drawn_attention_learns_its_cells_by_their_scores_and_its_masks_through_the_mask():
    model = rolled_out(recurrent_ppo(batch_size=132, policy_kwargs=DRAWN), 1)
    data = next(model.rollout_buffer.get(132))
    values, log_prob, _ = model.policy.evaluate_actions(
        data.observations, data.actions, data.lstm_states, data.episode_starts
    )
    phase, real = data.observations["phase"].flatten(), data.mask > 0
    meta = model.policy.agent.meta_controller
    parts = {
        "prior": meta.saliency_prior,
        "cell": meta.cell[2].weight,
        "mean": meta.mean.weight,
        "value": meta.value.weight,
    }

    def heard(loss) -> set[str]:
        gradients = torch.autograd.grad(loss, list(parts.values()), retain_graph=True, allow_unused=True)
        return {name for name, part in zip(parts, gradients, strict=True) if part is not None and part.any()}

    assert heard(log_prob[(phase == 0) & real].sum()) >= {"prior", "cell"}
    assert heard(log_prob[(phase == 3) & real].sum()) == {"mean"}
    assert heard(values[(phase == 0) & real].sum()) == {"value"}


def test_a_drawing_policy_learns_and_plays_as_its_agent():
    model = recurrent_ppo(4, policy_kwargs=DRAWN).learn(88)
    shaped, env = SB3Agent(model.policy.agent), lanes_of(4, action_mode="packed", components=4)
    seen, starts = env.reset(), np.ones(4, bool)
    actions, _ = model.predict(seen, None, starts, deterministic=True)
    expected, _ = shaped.predict(seen, None, starts, deterministic=True)
    np.testing.assert_allclose(actions[:, :16], expected[:, :16], atol=1e-5)
    drawn, _ = model.predict(seen, None, starts)
    assert not np.array_equal(drawn[:, :16], actions[:, :16])


def test_its_greedy_decisions_are_the_agents():
    """The same modules in the native environment, and SB3's predict, lane by lane and with its memory."""
    model = recurrent_ppo(4, components=4)
    agent = model.policy.agent
    shaped = SB3Agent(agent)
    env = lanes_of(4, action_mode="packed", components=4)
    env.seed(5)
    seen, starts = env.reset(), np.ones(4, bool)
    state = memory = None
    for _ in range(40):
        actions, state = model.predict(seen, state, starts, deterministic=True)
        expected, memory = shaped.predict(seen, memory, starts, deterministic=True)
        phase = int(seen["phase"][0])
        part = slice(0, 16) if phase == 0 else 16 if phase < 3 else 17
        np.testing.assert_allclose(actions[:, part], expected[:, part], atol=1e-5)
        seen, _, starts, _ = env.step(actions)


@pytest.mark.slow
def test_training_is_repeatable_and_survives_saving(tmp_path):
    weights = []
    for _ in range(2):
        model = recurrent_ppo(batch_size=66).learn(132)
        weights.append({name: part.clone() for name, part in model.policy.state_dict().items()})
    for name, part in weights[0].items():
        torch.testing.assert_close(part, weights[1][name], rtol=0, atol=0)
    model.save(tmp_path / "model.zip")
    again = RecurrentPPO.load(tmp_path / "model.zip")
    model.policy.save(tmp_path / "policy.pt")
    policy = HSALPolicy.load(tmp_path / "policy.pt")
    seen = lanes_of(3, action_mode="packed", components=4).reset()
    starts = np.ones(3, bool)
    expected, _ = model.predict(seen, None, starts, deterministic=True)
    for other in (again, policy):
        np.testing.assert_array_equal(other.predict(seen, None, starts, deterministic=True)[0], expected)
    again.set_env(lanes_of(6, action_mode="packed", features="store", components=4))
    assert again.learn(132).num_timesteps == 132


def test_the_optimiser_is_chosen_as_in_every_policy_of_sb3():
    kwargs = {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {"momentum": 0.5}, "net_arch": None}
    policy = recurrent_ppo(policy_kwargs=kwargs).policy
    assert isinstance(policy.optimizer, torch.optim.SGD)
    assert policy.optimizer.defaults["momentum"] == 0.5


@pytest.mark.parametrize(
    "kwargs",
    [
        {"net_arch": [64, 64]},
        {"activation_fn": torch.nn.ReLU, "ortho_init": False},
        {"features_extractor_class": CombinedExtractor, "features_extractor_kwargs": {"cnn_output_dim": 8}},
        {"lstm_hidden_size": 128, "no_such_argument": 1},
    ],
    ids=str,
)
def test_policy_kwargs_that_would_do_nothing_are_refused_by_name(kwargs: dict):
    with pytest.raises(ConfigError) as caught:
        recurrent_ppo(policy_kwargs=kwargs)
    assert str(caught.value).startswith(
        "HSALPolicy takes the policy_kwargs config, rules, map_size, optimizer_class and optimizer_kwargs; got "
        f"{', '.join(kwargs)}, which would do nothing"
    )


def test_every_argument_of_sb3s_policies_is_taken_or_refused():
    """The list is that of the installed version."""
    env = lanes_of(2, action_mode="packed")
    own = {"self", "observation_space", "action_space", "lr_schedule", "use_sde", "optimizer_class", "optimizer_kwargs"}
    for name, part in inspect.signature(RecurrentActorCriticPolicy.__init__).parameters.items():
        if name not in own:
            HSALPolicy(env.observation_space, env.action_space, lambda _: 1e-3, **{name: part.default})
            with pytest.raises(ConfigError, match=f"got {name}, which would do nothing"):
                HSALPolicy(env.observation_space, env.action_space, lambda _: 1e-3, **{name: "other"})


def test_rules_that_are_not_the_environments_are_noticed():
    model = rolled_out(recurrent_ppo(coordinates="centred", beta="exp"), 1)
    with pytest.raises(ConfigError, match=r"env\.world\.rules"):
        model.train()
    env = lanes_of(2, action_mode="packed", coordinates="centred")
    model = rolled_out(recurrent_ppo(policy_kwargs={"rules": env.world.rules}, coordinates="centred", components=5), 1)
    model.train()


@pytest.mark.parametrize("mode", ["flat", "option", "macro"])
def test_another_view_is_refused(mode):
    with pytest.raises(ConfigError, match="action_mode='packed'"):
        RecurrentPPO(HSALPolicy, lanes_of(2, action_mode=mode, include_volume=True))


def test_arguments_that_do_not_fit_are_refused():
    env = lanes_of(2, action_mode="packed")
    with pytest.raises(ConfigError, match="use_sde"):
        HSALPolicy(env.observation_space, env.action_space, lambda _: 1e-3, use_sde=True)
    with pytest.raises(ConfigError, match="expected stop='greedy', got 'median'"):
        HSALPolicy(env.observation_space, env.action_space, lambda _: 1e-3, config=AgentConfig(stop="median"))
    with pytest.raises(ConfigError, match=r"49 cells, 5 Gaussians; got \(7, 8\)"):
        HSALPolicy(env.observation_space, env.action_space, lambda _: 1e-3, map_size=(7, 8))


def test_a_policy_keeps_the_configuration_it_was_given():
    env = lanes_of(2, action_mode="packed")
    config = AgentConfig(meta_hidden=16, controller_hidden=32)
    model = RecurrentPPO(HSALPolicy, env, n_steps=8, policy_kwargs={"config": config})
    assert model.policy.agent.config == config
    assert model._last_lstm_states.pi[0].shape == (1, 2, 48)


# --- its tools on our agents ------------------------------------------------------------------------------------------


def test_a_bundled_agent_scores_under_sb3_what_it_scores_under_ours():
    agent = agents.load("mnist-multiset").agent
    config = evaluation_config(EnvConfig(source="digits", components=25, update="peak"), "test", 30)
    expected = score_agent(agent, config, progress=False)
    env = HSALVecEnv(
        "HSAL-DigitsMultiset-v0",
        8,
        split="test",
        num_examples=30,
        components=25,
        update="peak",
        features="store",
        action_mode="packed",
    )
    found = playing.score(playing.greedy(SB3Agent(agent), env), env, 30)
    for name in ("exact_match", "macro_f1", "overall_recall", "by_count"):
        assert found[name] == expected[name]
    mean, _ = evaluate_policy(SB3Agent(agent), VecMonitor(env), n_eval_episodes=8)
    assert mean > 3


def test_an_agent_predicts_for_a_single_observation():
    agent = agents.load("mnist-multiset").agent
    env = HSALEnv(**SMALL, components=25, update="peak", action_mode="packed")
    observation, _ = env.reset(seed=0)
    state, ended, shaped = None, False, SB3Agent(agent)
    while not ended:
        action, state = shaped.predict(observation, state, deterministic=True)
        assert action.shape == env.action_space.shape
        observation, _, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
    assert info["recall"] > 0
    for mode in ("native", "flat"):
        with pytest.raises(ConfigError, match="action_mode='packed'"):
            shaped.predict(HSALEnv(**SMALL, action_mode=mode).reset(seed=0)[0])
    larger = HSALEnv(**SMALL, components=25, update="peak", action_mode="packed", canvas_px=140)
    with pytest.raises(ConfigError, match=r"49 cells .* got \(81,\)"):
        shaped.predict(larger.reset(seed=0)[0])
    longer = lanes_of(2, action_mode="packed", components=25, update="peak", glimpses=3)
    with pytest.raises(ConfigError, match=r"glimpses=2, .* phase 4"):
        playing.score(playing.greedy(shaped, longer), longer, 2)
    with pytest.raises(ConfigError, match=r"Loaded lacks initial, act, world\. .*agents\.load\(NAME\)\.agent"):
        SB3Agent(agents.load("mnist-multiset"))


def test_an_agent_forgets_where_an_episode_starts():
    agent = agents.load("mnist-multiset-deterministic").agent  # its attention depends on its state at once
    env = HSALVecEnv(ID, 2, num_examples=16, components=49, action_mode="packed")
    seen, shaped = env.reset(), SB3Agent(agent)
    _, state = shaped.predict(seen, None, deterministic=True)
    first, _ = shaped.predict(seen, None, deterministic=True)
    mixed, _ = shaped.predict(seen, state, np.array([True, False]), deterministic=True)
    np.testing.assert_array_equal(mixed[0], first[0])
    assert (mixed[1] != first[1]).any()


def test_an_episode_is_filmed(tmp_path):
    env = VecVideoRecorder(
        lanes_of(1, action_mode="packed", components=25, update="peak", render_mode="rgb_array"),
        str(tmp_path), record_video_trigger=lambda step: step == 0, video_length=6,
    )  # fmt: skip
    evaluate_policy(SB3Agent(agents.load("mnist-multiset").agent), VecMonitor(env), n_eval_episodes=2)
    env.close()
    assert [path.stat().st_size > 1000 for path in tmp_path.glob("*.mp4")] == [True]


def test_baselines_by_hand():
    """Stopping at once earns -1 for the label, and P at the first cell, lit by its own spotlight; random play obeys the mask."""
    env = lanes_of(5, max_objects=2, forbidden="raise")
    stopped = playing.score(playing.stopping(env), env, 12)
    assert stopped["mean_length"] == 4
    assert -1 <= stopped["mean_return"] < 1
    assert stopped["exact_match"] == stopped["overall_recall"] == 0
    assert sum(part["episodes"] for part in stopped["by_count"].values()) == 12
    rewards = []
    for index in range(12):
        single = HSALEnv(source="digits", num_examples=16, max_objects=2, action_mode="flat")
        single.reset(options={"index": index})
        rewards += [single.step(action)[1] for action in (0, 0, 0, CELLS + STOP)]
    assert stopped["mean_return"] == pytest.approx(sum(rewards) / 12, abs=1e-6)
    played = playing.score(playing.at_random(env, 0), env, 12)  # an action that the mask forbids would be an error
    assert played["mean_length"] % 1 == 0 or 4 <= played["mean_length"] <= 12
    assert playing.score(playing.at_random(env, 0), env, 12) == played


@pytest.mark.parametrize("mode", MODES)
def test_every_view_can_be_played_at_random(mode):
    env = lanes_of(3, action_mode=mode)
    assert np.isfinite(playing.score(playing.at_random(env, 0), env, 5)["mean_return"])


def test_agents_of_other_kinds_are_models_too():
    env = lanes_of(4, action_mode="packed")
    agent = ActorCritic(env.world, AgentConfig())
    assert playing.score(playing.greedy(SB3Agent(agent), env), env, 6)["mean_length"] >= 4


def test_without_sb3_contrib_all_but_the_policy_is_there():
    code = (
        "import sys; sys.modules['sb3_contrib'] = None\n"
        "from agents.sb3 import HSALVecEnv, SB3Agent\n"
        "try: from agents.sb3 import HSALPolicy\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == 'HSALPolicy needs sb3-contrib: pip install "hsal[sb3]".'
