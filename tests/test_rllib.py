"""RLlib: the two levels as two agents, the environments under its names, the masked policy, and the command."""

import csv
import importlib.util
import json
import runpy
import shlex
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import needs
import numpy as np
import pytest
import torch
import tyro
from gymnasium.error import ResetNeeded
from playing import CELLS, MODES, SMALL, STOP, assert_equal, random_action, single, with_policy

import agents
from agents.drawn_attention import FIRST_EXTENT, AttentionDraw, mask_about
from hsal_env import ENVIRONMENTS
from hsal_env.errors import ActionError, CheckpointError, ConfigError
from hsal_env.spaces import attention_action

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "train" / "rllib_agents.py"
ID = "HSAL-DigitsMultiset-v0"
META, CONTROLLER = "meta_controller", "controller"
TINY = shlex.split(
    f"--env-id {ID} --num-examples 32 --iterations 2 --train-batch-size 256 --minibatch-size 64 --num-envs 4"
    " --test-episodes 20"
)


@pytest.fixture(scope="session")
def rllib(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """``agents.rllib``, with a home folder of its own: ray keeps tokens and results there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        needs.module("ray.rllib", "rllib", 'ray is not installed: pip install "hsal[rllib]"')
        yield importlib.import_module("agents.rllib")


def two_agents(rllib: ModuleType, **config):
    return rllib.HSALMultiAgentEnv({"env_id": ID, "num_examples": 16, **config})


def run(monkeypatch: pytest.MonkeyPatch, flags: str | list) -> None:
    """The script's ``__main__`` in this process."""
    given = shlex.split(flags) if isinstance(flags, str) else [str(flag) for flag in flags]
    monkeypatch.setattr(sys, "argv", [f"train/{SCRIPT.name}", *given])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def message(monkeypatch: pytest.MonkeyPatch, flags: str | list) -> str:
    """What the command says when it gives up."""
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, flags)
    assert isinstance(caught.value.code, str)
    assert caught.value.code.startswith("error: ")
    return caught.value.code


# --- the command, without ray -----------------------------------------------------------------------------------------


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "agents.rllib", raising=False)
    monkeypatch.delattr(agents, "rllib", raising=False)


def test_help_needs_no_ray(no_ray: None, monkeypatch, capsys):
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "--help")
    assert caught.value.code == 0
    assert "--num-env-runners" in capsys.readouterr().out


def test_the_command_says_how_to_install_ray(no_ray: None, monkeypatch, tmp_path):
    said = message(monkeypatch, "--output-dir out")
    assert 'pip install "hsal[rllib]"' in said
    assert 'pip install "hsal[rllib]"' in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--view native", "Expected a view of flat, multi-agent, option, controller, macro and an id of"),
        ("--env-id CartPole-v1", "and 'CartPole-v1'."),
        ("--iterations 0", "--iterations of at least 1; got 0"),
        ("--num-env-runners -1", "--num-env-runners of at least 0; got -1"),
        ("--num-envs 0", "--num-envs of at least 1; got 0"),
        ("--minibatch-size 0", "--minibatch-size of at least 1; got 0"),
        ("--train-batch-size 10 --minibatch-size 20", "--train-batch-size of at least 20; got 10"),
        ("--test-episodes 0", "--test-episodes of at least 1; got 0"),
        ("--seed -1", "--seed of at least 0; got -1"),
    ],
)
def test_a_mistyped_flag_is_an_error_of_one_line(no_ray: None, monkeypatch, flags, said):
    assert said in message(monkeypatch, flags)


# --- two agents -------------------------------------------------------------------------------------------------------


@pytest.mark.rllib
@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_two_agents_pass_rllibs_checker(rllib, env_id, request):
    from ray.rllib.utils.pre_checks.env import check_multiagent_environments

    few = SMALL
    if env_id == "HSAL-Custom-v0":
        few = {"images": str(request.getfixturevalue("custom_folder"))}
    elif env_id.startswith("HSAL-SVHN"):
        few = {"data_root": request.getfixturevalue("svhn_folder"), "activation": "playing:Colours"}
    env = rllib.HSALMultiAgentEnv({"env_id": env_id, **few})
    check_multiagent_environments(env)
    assert (env.agents, env.possible_agents) == ([META, CONTROLLER], [META, CONTROLLER])


@pytest.mark.rllib
@pytest.mark.parametrize("mode", MODES)
def test_every_view_passes_rllibs_checker(rllib, mode):
    """RLlib checks multi-agent environments only; its own ``make_multi_agent`` makes one of each view."""
    from ray.rllib.utils.pre_checks.env import check_multiagent_environments

    env = rllib.make_env(ID, mode, with_policy({**SMALL, "action_mode": mode}))
    check_multiagent_environments(env)


@pytest.mark.rllib
def test_spaces_of_the_levels(rllib):
    env = two_agents(rllib, components=3)
    assert env.action_spaces[META] == gym.spaces.Box(-1, 1, (12,), np.float32)
    assert env.action_spaces[CONTROLLER] == gym.spaces.Discrete(CELLS + STOP + 1)
    assert set(env.observation_spaces[META]) == {"saliency", "last_label"}
    assert set(env.observation_spaces[CONTROLLER]) == {
        "priority", "glimpse", "last_location", "last_label", "phase", "action_mask",
    }  # fmt: skip
    shown = two_agents(rllib, include_image=True, include_volume=True)
    for agent in (META, CONTROLLER):
        assert shown.observation_spaces[agent]["image"].shape == (100, 100, 1)
        assert shown.observation_spaces[agent]["volume"].shape == (128 * CELLS,)
    assert set(shown.reset()[0][META]) == {"saliency", "last_label", "image", "volume"}


@pytest.mark.rllib
@pytest.mark.parametrize("protocol", ["free", "teacher"])
def test_two_agents_are_the_native_environment(rllib, protocol):
    """The same decisions bring the same states, rewards and ends, whoever makes them."""
    config = {**SMALL, "task": "multiset", "max_objects": 2, "protocol": protocol}
    env, native = two_agents(rllib, **config), single(**config)
    rng, cut_off = np.random.default_rng(0), 0
    for episode in range(12):
        seen, infos = env.reset(seed=episode)
        expected, info = native.reset(seed=episode)
        turns, total, returns, over = [], 0.0, dict.fromkeys((META, CONTROLLER), 0.0), False
        while not over:
            turn = META if expected["phase"] == 0 else CONTROLLER
            turns.append(turn)
            assert list(seen) == list(infos) == [turn]
            assert env.observation_spaces[turn].contains(seen[turn])
            for name, part in seen[turn].items():
                if name != "action_mask":
                    assert_equal(part, expected[name].ravel() if np.ndim(expected[name]) == 2 else expected[name])
            mask = {"action_mask": seen[turn]["action_mask"]} if turn == CONTROLLER else {}
            assert_equal(infos[turn], info | mask)
            decision = random_action(rng, native.action_space, expected, stop_share=0.15)
            names = expected["phase"] == 3
            choice = CELLS + decision["label"] if names else decision["location"]
            action = decision["attention"] if turn == META else choice
            seen, rewards, terminated, truncated, infos = env.step({turn: action})
            expected, reward, *ended, info = native.step(decision)
            total += reward
            assert rewards.get(CONTROLLER, 0.0) == reward
            assert (META in rewards) == names  # at the end of a meta-step
            for agent, earned in rewards.items():
                returns[agent] += earned
            assert terminated == dict.fromkeys((META, CONTROLLER, "__all__"), ended[0])
            assert truncated == dict.fromkeys((META, CONTROLLER, "__all__"), ended[1])
            over = any(ended)
        assert turns == [META, *[CONTROLLER] * 3] * (len(turns) // 4)
        assert set(seen) == set(infos) == {META, CONTROLLER}
        assert all(env.observation_spaces[agent].contains(part) for agent, part in seen.items())
        assert infos[META]["return_location"] + infos[META]["return_label"] == pytest.approx(total, abs=1e-5)
        assert returns == {META: pytest.approx(total), CONTROLLER: pytest.approx(total)}
        cut_off += ended[1]
    assert protocol == "teacher" or 0 < cut_off < 12


@pytest.mark.rllib
def test_the_upper_level_may_choose_the_cell_of_a_small_mask(rllib):
    env, native = (
        make(components=9, coordinates="centred") for make in (partial(two_agents, rllib, attention="cell"), single)
    )
    assert env.action_spaces[META] == gym.spaces.Discrete(CELLS)
    state = env.env.simulation
    for cell in range(CELLS):
        env.reset(options={"index": 3})
        native.reset(options={"index": 3})
        seen, *_ = env.step({META: cell})
        drawn = AttentionDraw(torch.tensor([cell]), torch.tensor([FIRST_EXTENT]), torch.zeros(1, 2))
        attention = attention_action(mask_about(drawn, (7, 7), state.rules))[0].numpy()
        expected, *_ = native.step({"attention": attention})
        np.testing.assert_array_equal(seen[CONTROLLER]["priority"], expected["priority"].ravel())
    env.reset()
    with pytest.raises(ActionError, match=r"cell in 0\.\.48; got 49"):
        env.step({META: CELLS})


@pytest.mark.rllib
def test_two_agents_may_see_boxes_alone(rllib):
    """The same episode, whose turns are read from a one-hot phase."""
    plain, boxes = (two_agents(rllib, boxes=wanted) for wanted in (False, True))
    for space in boxes.observation_spaces.values():
        assert {type(part).__name__ for part in space.values()} == {"Box"}
    rng, over = np.random.default_rng(0), False
    expected, seen = plain.reset(seed=3)[0], boxes.reset(seed=3)[0]
    while not over:
        assert list(seen) == list(expected)
        turn = next(iter(seen))
        assert boxes.observation_spaces[turn].contains(seen[turn])
        names = turn == CONTROLLER and expected[turn]["phase"] == 3
        action = np.zeros(20, np.float32) if turn == META else CELLS + int(rng.integers(11)) if names else 0
        expected, rewards, ended, cut_off, _ = plain.step({turn: action})
        seen, *outcome, infos = boxes.step({turn: action})
        assert outcome == [rewards, ended, cut_off]
        assert "action_mask" not in infos.get(META, {})
        over = ended["__all__"] or cut_off["__all__"]


@pytest.mark.rllib
def test_rewards_of_an_episode_by_hand(rllib):
    """One object; P, normalised and never suppressed, is 1 at its peak and 0 at its least."""
    env = two_agents(rllib, max_objects=1, update="none")
    _, infos = env.reset(seed=3)
    label = CELLS + int(infos[META]["label_counts"].argmax())
    attention = {META: np.zeros(20, np.float32)}

    seen, rewards, terminated, truncated, _ = env.step(attention)
    assert (list(seen), rewards) == ([CONTROLLER], {})
    peak, least = (int(choose(seen[CONTROLLER]["priority"])) for choose in (np.argmax, np.argmin))
    assert env.step({CONTROLLER: peak})[1] == {CONTROLLER: 1.0}
    assert env.step({CONTROLLER: least})[1] == {CONTROLLER: 0.0}
    seen, rewards, terminated, truncated, _ = env.step({CONTROLLER: label})
    assert (list(seen), rewards) == ([META], {CONTROLLER: 1.0, META: 2.0})
    assert not terminated["__all__"]
    assert not truncated["__all__"]

    seen, rewards, *_ = env.step(attention)
    assert rewards == {}
    again, rewards, *_ = env.step({CONTROLLER: label})  # a label where a location is asked for
    assert rewards == {CONTROLLER: -1.0}
    assert_equal(again, seen)
    assert env.step({CONTROLLER: peak})[1] == {CONTROLLER: 1.0}
    assert env.step({CONTROLLER: peak})[1] == {CONTROLLER: 1.0}
    assert env.step({CONTROLLER: peak})[1] == {CONTROLLER: -1.0}  # a location where a label is asked for
    seen, rewards, terminated, truncated, infos = env.step({CONTROLLER: CELLS + STOP})
    assert rewards == {CONTROLLER: 1.0, META: 1.0}
    assert list(seen) == [META, CONTROLLER]
    assert terminated == dict.fromkeys((META, CONTROLLER, "__all__"), True)
    assert truncated == dict.fromkeys((META, CONTROLLER, "__all__"), False)
    assert infos[CONTROLLER]["exact_match"] == 1


@pytest.mark.rllib
def test_a_meta_step_that_is_cut_off_pays_what_it_earned(rllib):
    env = two_agents(rllib, max_objects=1)
    env.reset(seed=0)
    env.step({META: np.zeros(20, np.float32)})
    for _ in range(7):  # one fewer than the 2 (k + 2) decisions of the longest episode
        seen, rewards, _, truncated, _ = env.step({CONTROLLER: CELLS})
        assert (list(seen), rewards, truncated["__all__"]) == ([CONTROLLER], {CONTROLLER: -1.0}, False)
    seen, rewards, terminated, truncated, infos = env.step({CONTROLLER: CELLS})
    assert rewards == {CONTROLLER: -1.0, META: -8.0}
    assert truncated == dict.fromkeys((META, CONTROLLER, "__all__"), True)
    assert not terminated["__all__"]
    assert set(seen) == set(infos) == {META, CONTROLLER}


@pytest.mark.rllib
def test_seeds_and_options_reach_the_environment(rllib):
    first, second = (two_agents(rllib).reset(seed=5) for _ in range(2))
    assert_equal(first, second)
    assert two_agents(rllib).reset(options={"index": 7})[1][META]["index"] == 7
    shown = two_agents(rllib, render_mode="rgb_array")
    shown.reset(seed=0)
    assert shown.render_mode == "rgb_array"
    assert shown.render().dtype == np.uint8
    shown.close()


@pytest.mark.rllib
def test_turns_are_kept(rllib):
    env, attention = two_agents(rllib, max_objects=1), np.zeros(20, np.float32)
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step({META: attention})
    env.reset(seed=0)
    for wrong in ({CONTROLLER: 0}, {META: attention, CONTROLLER: 0}, {}):
        with pytest.raises(ActionError, match="Expected an action of 'meta_controller' alone"):
            env.step(wrong)
    with pytest.raises(ActionError, match=r"attention in \[-1, 1\]"):
        env.step({META: attention + 2})
    env.step({META: attention})
    with pytest.raises(ActionError, match="Expected an action of 'controller' alone"):
        env.step({META: attention})
    with pytest.raises(ActionError, match=r"Expected action in 0\.\.59; got 60"):
        env.step({CONTROLLER: CELLS + STOP + 1})
    for action in (0, 0, CELLS + STOP):  # refused actions cost nothing
        _, _, terminated, _, _ = env.step({CONTROLLER: action})
    assert terminated["__all__"]
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step({CONTROLLER: 0})
    assert list(env.reset()[0]) == [META]


@pytest.mark.rllib
def test_wrong_configurations_are_refused(rllib):
    with pytest.raises(ConfigError, match="env_id to be one of HSAL-MNISTSingle-v0"):
        rllib.HSALMultiAgentEnv({"env_id": "CartPole-v1"})
    with pytest.raises(ConfigError, match="leave out action_mode='flat'"):
        two_agents(rllib, action_mode="flat")
    with pytest.raises(ConfigError, match="attention to be one of raw, cell; got 'drawn'"):
        two_agents(rllib, attention="drawn")
    with pytest.raises(ConfigError, match="attention='cell' needs a square number of components; got 5"):
        two_agents(rllib, attention="cell")
    with pytest.raises(ConfigError, match="unexpected keyword argument 'glances'"):
        two_agents(rllib, glances=2)
    with pytest.raises(ConfigError, match="no Dict actions"):
        rllib.ppo_config(ID, "native")
    for view in ("flat", "multi-agent"):
        with pytest.raises(ConfigError, match="CartPole-v1"):
            rllib.ppo_config("CartPole-v1", view)


# --- the policy -------------------------------------------------------------------------------------------------------


@pytest.mark.rllib
def test_what_the_mask_forbids_has_no_probability(rllib):
    """RLlib's flattening puts the mask first; allowed actions keep the scores of RLlib's own network."""
    from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
    from ray.rllib.core.columns import Columns
    from ray.rllib.core.rl_module import RLModuleSpec
    from ray.rllib.utils.numpy import flatten_inputs_to_1d_tensor

    env = single(action_mode="flat")
    env.reset(seed=0)
    for action in (0, 0, 0):
        seen, *_ = env.step(action)
    flat = flatten_inputs_to_1d_tensor(seen, env.observation_space.spaces, batch_axis=False)
    np.testing.assert_array_equal(flat[: CELLS + STOP + 1], seen["action_mask"])
    batch = {Columns.OBS: torch.from_numpy(flat)[None]}
    for action_space in (env.action_space, gym.spaces.Box(-1, 1, (20,), np.float32)):
        spec = RLModuleSpec(
            module_class=rllib.MaskedPPOModule,
            observation_space=gym.spaces.Box(-np.inf, np.inf, flat.shape, np.float32),
            action_space=action_space,
            model_config={"fcnet_hiddens": [8]},
            catalog_class=rllib.PPOConfig().get_default_rl_module_spec().catalog_class,
        )
        module = spec.build()
        masked = torch.zeros(1, 40).bool()
        if action_space == env.action_space:
            masked = torch.from_numpy(seen["action_mask"])[None] == 0
        for forward, plain in (
            (module.forward_inference, DefaultPPOTorchRLModule._forward),
            (module.forward_exploration, DefaultPPOTorchRLModule._forward),
            (module.forward_train, DefaultPPOTorchRLModule._forward_train),
        ):
            scores = forward(batch)[Columns.ACTION_DIST_INPUTS]
            assert (scores[~masked] == plain(module, batch)[Columns.ACTION_DIST_INPUTS][~masked]).all()
            assert (scores.softmax(dim=1)[masked] == 0).all()
        if action_space == env.action_space:
            assert masked.sum() == CELLS
            assert module.get_train_action_dist_cls().from_logits(scores).entropy().isfinite().all()


@pytest.mark.rllib
@pytest.mark.parametrize("view", ["flat", "multi-agent", "option", "controller", "macro", "packed"])
def test_playing_canvases_at_random(rllib, view):
    env = rllib.make_env(ID, view, {} if view == "multi-agent" else with_policy({"action_mode": view, **SMALL}))
    played = rllib.score(env, rllib.at_random(env, 0), 5)
    assert sum(part["episodes"] for part in played["by_count"].values()) == 5
    assert rllib.score(env, rllib.at_random(env, 0), 5) == played
    assert np.isfinite(played["mean_return"])


@pytest.mark.rllib
def test_baselines_by_hand(rllib):
    """Stopping at once earns -1 for the label and P at the first cell twice; two agents at random obey the mask."""
    env = rllib.make_env(ID, "flat", {"num_examples": 16, "forbidden": "raise"})
    stopped = rllib.score(env, rllib.stopping(env), 6)
    rewards, alone = [], single(action_mode="flat", task="multiset")
    for index in range(6):
        alone.reset(options={"index": index})
        rewards += [alone.step(action)[1] for action in (0, 0, 0, CELLS + STOP)]
    assert stopped["mean_return"] == pytest.approx(sum(rewards) / 6)
    assert stopped["mean_length"] == 4
    assert stopped["exact_match"] == stopped["overall_recall"] == 0
    two = two_agents(rllib, forbidden="raise")
    assert round(6 * rllib.score(two, rllib.at_random(two, 0), 6)["mean_length"]) % 4 == 0


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(rllib, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "out"


def check_run(folder: Path, view: str, iterations: int, steps: int) -> tuple[list[float], dict]:
    """Its mean returns and its metrics."""
    assert {path.name for path in folder.iterdir()} == {"checkpoint", "progress.csv", "metrics.json"}
    rows = list(csv.DictReader((folder / "progress.csv").open()))
    assert [int(row["iteration"]) for row in rows] == list(range(1, iterations + 1))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["steps"] == int(rows[-1]["steps"]) >= iterations * steps
    assert metrics["source"] == "digits"
    assert metrics["config"]["view"] == view
    assert metrics["versions"]["ray"]
    assert "--output-dir" not in metrics["command"]
    for name in ("test", "random", "stop_at_once"):
        assert sum(part["episodes"] for part in metrics[name]["by_count"].values()) == 20
        assert -30 < metrics[name]["mean_return"] < 12
    return [float(row["mean_return"]) for row in rows], metrics


@pytest.mark.rllib
@pytest.mark.parametrize("view", ["flat", "multi-agent"])
def test_ppo_trains_here_and_a_level_has_a_policy_of_its_own(rllib, folder, monkeypatch, capsys, view):
    from ray.rllib.core.rl_module import MultiRLModule

    longer = shlex.split("--iterations 10 --train-batch-size 512 --minibatch-size 128 --num-envs 8")
    run(monkeypatch, [*TINY, *longer, "--view", view, "--output-dir", folder])
    assert not rllib.ray.is_initialized()
    printed = capsys.readouterr().out
    assert [printed.count(f"iteration {i}/10: ") for i in range(1, 11)] == [1] * 10
    returns, metrics = check_run(folder, view, 10, 512)
    assert returns[-1] > returns[0] + 0.5  # with seeds 0, 1 and 2 it was at least 0.9
    saved = MultiRLModule.from_checkpoint(folder / "checkpoint" / "learner_group" / "learner" / "rl_module")
    assert set(saved.keys()) == ({META, CONTROLLER} if view == "multi-agent" else {"default_policy"})
    env = rllib.make_env(ID, view, {"num_examples": 20, "split": "test", "features": "store"})
    algorithm = type("Saved", (), {"get_module": staticmethod(saved.__getitem__)})
    assert rllib.score(env, rllib.greedy(algorithm, env), 20) == metrics["test"]
    assert "holds a finished run" in message(monkeypatch, [*TINY, "--output-dir", folder])


@pytest.mark.rllib
def test_a_level_that_chooses_cells_learns(rllib):
    """Its policy is a categorical one over cells, and the canvases' rewards reach it."""
    task = {"num_examples": 32, "features": "store", "components": 9, "attention": "cell"}
    with rllib.session():
        sizes = {"train_batch_size_per_learner": 512, "minibatch_size": 128}
        algorithm = rllib.ppo_config(ID, "multi-agent", task, num_envs=8, **sizes).build_algo()
        before = {name: part.clone() for name, part in algorithm.get_module(META).state_dict().items()}
        row = rllib.train_once(algorithm)
        assert row["steps"] >= 512
        after = algorithm.get_module(META).state_dict()
        assert any(not torch.equal(before[name], part) for name, part in after.items())
        env = rllib.make_env(ID, "multi-agent", task)
        seen, _ = env.reset(options={"index": 0})
        cell = rllib.greedy(algorithm, env)(META, seen[META])
        assert env.action_spaces[META].contains(cell)
        algorithm.stop()


@pytest.mark.rllib
@pytest.mark.parametrize("view", ["flat", "multi-agent"])
def test_the_same_command_trains_on_a_cluster_of_two_nodes(rllib, folder, monkeypatch, view):
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    try:
        cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        address = cluster.address
        flags = ["--view", view, "--num-env-runners", 2, "--address", address]  # a CPU each: one on either node
        run(monkeypatch, [*TINY, *flags, "--output-dir", folder])
    finally:
        cluster.shutdown()
    _, metrics = check_run(folder, view, 2, 256)
    assert metrics["config"]["address"] == address


@pytest.mark.rllib
def test_a_seed_fixes_a_run(rllib):
    """And an iteration in which no episode ends has no mean return."""
    with rllib.session():
        found = []
        for seed in (0, 0, 1):
            config = rllib.ppo_config(
                ID,
                "flat",
                {"num_examples": 16},
                num_envs=4,
                seed=seed,
                train_batch_size_per_learner=64,
                minibatch_size=32,
            )
            algorithm = config.build_algo()
            found.append([rllib.train_once(algorithm) for _ in range(2)])
            algorithm.stop()
        config.training(train_batch_size_per_learner=8, minibatch_size=8)
        first = rllib.train_once(config.build_algo())
    assert found[0] == found[1] != found[2]
    assert first["steps"] == 8
    assert np.isnan(first["mean_return"])


@pytest.mark.rllib
@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:1", "127.0.0.1:port", "127.0.0.1:99999", "auto"])
def test_a_cluster_that_does_not_answer_is_said(rllib, monkeypatch, tmp_path, address):
    monkeypatch.chdir(tmp_path)
    assert f"No Ray cluster answers at '{address}'" in message(monkeypatch, ["--address", address])
    assert not rllib.ray.is_initialized()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.rllib
def test_ray_is_shut_down_after_an_error(rllib, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    said = message(monkeypatch, [*TINY, "--output-dir", tmp_path / "file" / "out"])
    assert "Cannot write" in said
    assert not rllib.ray.is_initialized()
    with pytest.raises(CheckpointError, match="too late"), rllib.session():
        raise CheckpointError("too late")
    assert not rllib.ray.is_initialized()


def test_the_commands_of_the_docstring_are_understood(monkeypatch):
    spec = importlib.util.spec_from_file_location("script_rllib_agents", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their annotations up there
    spec.loader.exec_module(module)
    lines = [line for line in module.__doc__.splitlines() if line.startswith("    python train/")]
    given = [tyro.cli(module.Args, args=shlex.split(line, comments=True)[2:]) for line in lines]
    assert [args.view for args in given] == ["flat", "multi-agent", "flat", "flat"]
    assert [args.address for args in given] == [None, None, None, "auto"]
