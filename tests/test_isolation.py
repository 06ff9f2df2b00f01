"""Nothing of ours moves a global random generator, and the caller's defaults of torch change nothing of ours."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import gymnasium as gym
import numpy as np
import pytest
import torch
from playing import MODES, SMALL, assert_equal, play
from sb3_contrib import RecurrentPPO

import agents
from agents.config import AgentConfig, LearnerConfig
from agents.learning.run import Run, RunConfig
from agents.policies import mnist_multiset
from agents.protocol import World
from agents.sb3 import HSALPolicy, HSALVecEnv, SB3Agent
from agents.tracing import record
from hsal_env import ENVIRONMENTS, VIEW_ENVIRONMENTS
from hsal_env.config import EnvConfig
from hsal_env.env import HSALEnv
from hsal_env.perception import registry
from hsal_env.perception.examples import Examples
from hsal_env.vector_env import HSALVectorEnv

IDS = [*ENVIRONMENTS, *VIEW_ENVIRONMENTS]
DEFAULTS = [(torch.float64, "cpu"), (torch.float32, "meta"), (torch.float16, "meta")]
OF_AGENT = {**SMALL, "components": 25, "update": "peak"}


def forget_models() -> None:
    """Models are made once in a process: make them again."""
    registry._activation_of_name.cache_clear()
    registry._saliency_of_name.cache_clear()


@contextmanager
def unmoved() -> Iterator[None]:
    """The global generators of torch, numpy and Python are afterwards as they were."""
    forget_models()
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    yield
    assert torch.equal(torch.get_rng_state(), before[0])
    assert_equal(np.random.get_state(), before[1])
    assert random.getstate() == before[2]


@contextmanager
def defaults(dtype: torch.dtype, device: str) -> Iterator[None]:
    """What a user may have set."""
    forget_models()
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


def a_few_steps(env: gym.Env | gym.vector.VectorEnv) -> list:
    env.action_space.seed(0)
    answers = [env.reset(seed=0)]
    while len(answers) < 4 and not np.any(answers[-1][2:4] if len(answers) > 1 else False):
        seen = answers[-1][0]
        action = env.action_space.sample()
        if "action_mask" in seen:
            action = seen["action_mask"].argmax(axis=-1)
        answers.append(env.step(action))
    return answers


@pytest.mark.parametrize("env_id", IDS)
def test_making_and_playing_moves_no_global_generator(env_id, small):
    with unmoved():
        a_few_steps(gym.make(env_id, **small).unwrapped)
        a_few_steps(gym.make_vec(env_id, num_envs=2, **small))


@pytest.mark.parametrize("name", agents.bundled())
def test_loading_an_agent_moves_no_global_generator(name):
    with unmoved():
        agents.load(name)


def test_playing_and_tracing_an_agent_moves_no_global_generator():
    with unmoved():
        agent = agents.load("mnist-multiset", location_policy="uniform").agent  # it draws even when greedy
        record(agent, EnvConfig(**OF_AGENT), [0, 1], deterministic=False)
        a_few_steps(HSALEnv(**OF_AGENT, action_mode="option", policy=agent))
        a_few_steps(HSALVectorEnv(2, **OF_AGENT, action_mode="option", policy=agent))


def test_training_leaves_the_generators_of_its_caller(tmp_path):
    """Its own draws do not depend on them either."""
    learner = LearnerConfig(batch_size=8, passes=1)
    sizes = AgentConfig(meta_hidden=4, controller_hidden=4, location_hidden=4)
    config = EnvConfig(**SMALL, protocol="teacher", features="store", include_image=False)
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with unmoved():
            run = Run(RunConfig(tmp_path / str(seed), config, "hsal", sizes, learner, device="cpu", val_episodes=4))
            run.train()
            run.test(4)
        weights.append(run.agent.state_dict())
    assert_equal(*weights)


def test_a_policy_of_sb3_draws_from_the_generator_that_sb3_seeds_and_from_no_other(tmp_path):
    config = {**SMALL, "action_mode": "packed", "components": 4}
    model = RecurrentPPO(HSALPolicy, HSALVecEnv("HSAL-DigitsMultiset-v0", 2, **config), n_steps=4, seed=0)
    model.policy.save(tmp_path / "policy.pt")
    with unmoved():
        loaded = HSALPolicy.load(tmp_path / "policy.pt")
        loaded.predict(HSALVecEnv("HSAL-DigitsMultiset-v0", 2, **config).reset(), deterministic=True)
    for name, part in model.policy.state_dict().items():
        assert torch.equal(part, loaded.state_dict()[name])


@pytest.mark.parametrize(("dtype", "device"), DEFAULTS, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_the_callers_defaults_change_no_episode(mode, dtype, device):
    config = {**OF_AGENT, "action_mode": mode, "saliency": "itti-koch"}
    if mode in ("option", "controller"):
        config["policy"] = "agents.policies:mnist_multiset"
    config["components"] = 25 if "policy" in config else 5

    def played() -> list:
        return a_few_steps(HSALEnv(**config)) if mode == "option" else play(HSALEnv(**config), seed=0)

    expected, lanes = played(), a_few_steps(HSALVectorEnv(3, **config))
    with defaults(dtype, device):
        found, found_lanes = played(), a_few_steps(HSALVectorEnv(3, **config))
    after = played()  # with the models that were made then
    for answers in (found, after):
        for one, other in zip(answers, expected, strict=True):
            assert_equal(one, other)
    assert_equal(tuple(found_lanes), tuple(lanes))


@pytest.mark.parametrize(("dtype", "device"), DEFAULTS, ids=str)
def test_the_callers_defaults_change_no_agent(dtype, device):
    config = EnvConfig(**OF_AGENT)
    packed = HSALVecEnv("HSAL-DigitsMultiset-v0", 2, **OF_AGENT, action_mode="packed")
    packed.seed(0)
    seen = packed.reset()
    expected = record(mnist_multiset(), config, [0, 1], deterministic=False)
    action, _ = SB3Agent(mnist_multiset()).predict(seen, deterministic=True)
    with defaults(dtype, device):
        agent = agents.load("mnist-multiset").agent
        found = record(agent, config, [0, 1], deterministic=False)
        assert_equal(SB3Agent(agent).predict(seen, deterministic=True)[0], action)
    assert {part.dtype for part in agent.state_dict().values()} == {torch.float32}
    assert_equal(tuple(found), tuple(expected))


@pytest.mark.parametrize(("dtype", "device"), DEFAULTS, ids=str)
def test_the_callers_defaults_change_no_training(tmp_path, dtype, device):
    learner = LearnerConfig(batch_size=8, passes=1, algorithm="ppo", num_minibatches=2)
    sizes = AgentConfig(meta_hidden=4, controller_hidden=4, location_hidden=4)
    config = EnvConfig(**SMALL, protocol="teacher", features="store", include_image=False)

    def trained(folder: str) -> dict:
        run = Run(RunConfig(tmp_path / folder, config, "hsal", sizes, learner, device="cpu", val_episodes=4))
        run.train()
        return run.agent.state_dict()

    expected = trained("expected")
    with defaults(dtype, device):
        found = trained("found")
    assert_equal(found, expected)


def test_a_policy_of_sb3_is_float32_whatever_the_default():
    config = {**SMALL, "action_mode": "packed", "components": 4}
    env = HSALVecEnv("HSAL-DigitsMultiset-v0", 2, **config)
    with defaults(torch.float64, "cpu"):
        model = RecurrentPPO(HSALPolicy, env, n_steps=8, batch_size=8, seed=0).learn(16)
    assert {part.dtype for part in model.policy.parameters()} == {torch.float32}


def test_models_that_were_made_in_inference_mode_can_be_trained_later():
    with torch.inference_mode():
        forget_models()
        examples = Examples(EnvConfig(**SMALL))
        agent = agents.load("mnist-multiset").agent
    assert World.of(examples).channels == 128
    loss = sum(part.square().sum() for part in agent.parameters())
    loss.backward()
