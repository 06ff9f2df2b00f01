"""Checkpoints: they rebuild an agent whole, refuse what is not one of ours, and are never half written."""

import dataclasses
import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import agents
from agents import checkpoint
from agents.actor_critic import ActorCritic
from agents.config import AgentConfig
from agents.evaluation import make_env
from agents.protocol import World
from agents.rollout import collect
from hsal_env.config import EnvConfig
from hsal_env.errors import CheckpointError, ConfigError
from hsal_env.perception.activation import CompactResNet
from hsal_env.perception.examples import Examples
from hsal_env.perception.model_file import fingerprint, save_model

ENV = EnvConfig(source="digits", num_examples=32, features="store", update="peak", data_root="somewhere")
AGENT = AgentConfig(
    meta_hidden=8, controller_hidden=16, location_hidden=8, controller_state="carry", location_prior=2.0
)
LANES = 8


@pytest.fixture(scope="module")
def env():
    return make_env(ENV, LANES)


@pytest.fixture(scope="module")
def world(env) -> World:
    examples = env.simulation.examples
    return World(ENV.rules, examples.map_size, examples.channels, ENV.classes)


def build(world: World, seed: int = 0) -> ActorCritic:
    torch.manual_seed(seed)
    return ActorCritic(world, AGENT)


@pytest.fixture
def content(world: World) -> dict[str, Any]:
    return checkpoint.describe("hsal", build(world), AGENT, ENV, "digits", world)


@pytest.fixture
def path(tmp_path: Path, content: dict[str, Any]) -> Path:
    checkpoint.save(tmp_path / "checkpoint.pt", content)
    return tmp_path / "checkpoint.pt"


# --- the round trip ---------------------------------------------------------------------------------------------------


def test_a_loaded_agent_decides_as_the_saved_one(path: Path, env, world: World):
    loaded = checkpoint.load(path)

    def decisions(agent: ActorCritic) -> list[torch.Tensor]:
        rollout = collect(env, agent, np.arange(LANES), generator=torch.Generator().manual_seed(0))
        return [rollout.trajectory.locations, rollout.trajectory.labels, rollout.trajectory.log_probs]

    saved, other = decisions(build(world)), decisions(build(world, seed=1))
    assert all(torch.equal(a, b) for a, b in zip(decisions(loaded.agent), saved, strict=True))
    assert not torch.equal(other[1], saved[1])


def test_a_loaded_agent_knows_its_world_and_configuration(path: Path, world: World):
    loaded = checkpoint.load(path)
    assert loaded.agent.config == AGENT
    assert loaded.agent.world == world
    assert isinstance(loaded.agent.world.map_size, tuple)
    assert loaded.source == "digits"
    assert not loaded.agent.training


def test_a_learned_location_prior_goes_on_from_where_it_was(tmp_path: Path, world: World):
    agent = build(world)
    torch.nn.init.constant_(agent.controller.location_prior, 3.5)
    checkpoint.save(tmp_path / "x.pt", checkpoint.describe("hsal", agent, AGENT, ENV, "digits", world))
    loaded = checkpoint.load(tmp_path / "x.pt").agent
    assert loaded.config.location_prior == 2.0
    assert loaded.controller.location_prior.item() == 3.5


def test_all_of_the_environment_is_kept_but_where_the_data_lie(path: Path):
    assert checkpoint.load(path).env == EnvConfig(source="digits", num_examples=32, features="store", update="peak")
    assert b"somewhere" not in path.read_bytes()


def test_a_checkpoint_keeps_the_name_of_its_saliency_model(tmp_path: Path, world: World):
    env = dataclasses.replace(ENV, saliency="itti-koch")
    checkpoint.save(tmp_path / "x.pt", checkpoint.describe("hsal", build(world), AGENT, env, "digits", world))
    loaded = checkpoint.load(tmp_path / "x.pt").env
    assert loaded.saliency == "itti-koch"
    found, given = (Examples(config).load([3])[0].raw_saliency for config in (loaded, env))
    assert torch.equal(found, given)
    assert not torch.equal(found, Examples(ENV).load([3])[0].raw_saliency)


def test_anything_else_that_was_saved_is_kept(tmp_path: Path, content: dict[str, Any]):
    checkpoint.save(tmp_path / "x.pt", {**content, "step": 7, "rows": [{"update": 7, "loss": 0.5}]})
    loaded = checkpoint.read(tmp_path / "x.pt")
    assert (loaded["step"], loaded["rows"]) == (7, [{"update": 7, "loss": 0.5}])


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(path: Path, message: str) -> None:
    """Reading ``path`` is a CheckpointError that names it."""
    for door in (checkpoint.load, checkpoint.read):
        with pytest.raises(CheckpointError, match=message) as caught:
            door(path)
        assert str(path) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path):
    refused(tmp_path / "nothing.pt", "No checkpoint at")


def test_a_folder_is_refused(tmp_path: Path):
    refused(tmp_path, "No checkpoint at")


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.9, 0.99])
def test_a_file_cut_off_is_refused(path: Path, kept: float):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    refused(path, "cut off, damaged, or not a checkpoint")


@pytest.mark.parametrize("garbage", [b"hello\n", b"\x80\x02N.", b"\x00" * 5000, b"PK\x03\x04" + b"?" * 100])
def test_garbage_is_refused(path: Path, garbage: bytes):
    path.write_bytes(garbage)
    refused(path, "cut off, damaged, or not a checkpoint|it lacks")


class Touch:
    """A pickle of this runs code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path: Path, content: dict[str, Any]):
    victim = tmp_path / "touched"
    torch.save({**content, "rows": Touch(victim)}, tmp_path / "evil.pt")
    refused(tmp_path / "evil.pt", "not a checkpoint")
    assert not victim.exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert victim.exists()  # it would have been


@pytest.mark.parametrize("key", ["format", "agent", "agent_config", "env", "world", "source", "perception", "model"])
def test_a_missing_part_is_named(tmp_path: Path, content: dict[str, Any], key: str):
    del content[key]
    torch.save(content, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", f"not an agent's checkpoint: it lacks {key}")


def test_features_of_another_activation_model_are_refused(tmp_path: Path, content: dict[str, Any]):
    checkpoint.save(tmp_path / "c.pt", {**content, "perception": "of other weights"})
    with pytest.raises(CheckpointError, match=r"c\.pt was trained on the features of another activation model"):
        checkpoint.load(tmp_path / "c.pt")


def test_an_activation_model_in_a_file_must_be_there_and_the_same(
    tmp_path: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """The name is relative to where a command is started."""
    monkeypatch.chdir(tmp_path)
    env = dataclasses.replace(ENV, activation="own.pt")
    save_model(Path("own.pt"), "compact", CompactResNet())
    path = tmp_path / "run" / "c.pt"
    checkpoint.save(path, {**content, "env": env.plain(), **checkpoint.features(env)})
    assert checkpoint.load(path).env.activation == "own.pt"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    with pytest.raises(
        CheckpointError, match=r"c\.pt cannot be loaded without.*No activation model at own\.pt in .*/elsewhere"
    ):
        checkpoint.load(path)
    save_model(Path("own.pt"), "compact", CompactResNet())
    with pytest.raises(CheckpointError, match=r"than 'own\.pt' is here\. Train it again, or bring back the file that"):
        checkpoint.load(path)
    Path("own.pt").rename(path.with_name("own.pt"))  # beside the checkpoint it is found, and held against it
    with pytest.raises(CheckpointError, match="bring back the file that"):
        checkpoint.load(path)
    shutil.copy(tmp_path / "own.pt", path.with_name("own.pt"))
    assert checkpoint.load(path).env.activation == str(path.with_name("own.pt"))


def test_the_same_weights_on_a_finer_map_are_another_activation_model(
    tmp_path: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    env, model = dataclasses.replace(ENV, activation="own.pt"), CompactResNet()
    save_model(Path("own.pt"), "compact", model)
    checkpoint.save(tmp_path / "c.pt", {**content, "env": env.plain(), **checkpoint.features(env)})
    assert checkpoint.perception(env) == fingerprint(model)  # defaults go without saying
    finer = CompactResNet(output_stride=8)
    finer.load_state_dict(model.state_dict())
    save_model(Path("own.pt"), "compact", finer)
    with pytest.raises(CheckpointError, match=r"than 'own\.pt' is here"):
        checkpoint.load(tmp_path / "c.pt")


def test_the_environment_may_change_with_the_source():
    loaded = checkpoint.Loaded(None, EnvConfig(source="digits", max_objects=6, max_size_px=33), "digits")
    with pytest.raises(ConfigError, match="<= 5 with house numbers; got 1 and 6"):
        loaded.env_on("test", "house-numbers")
    changed = loaded.env_on("test", "house-numbers", max_objects=5)
    assert (changed.source, changed.max_objects, changed.max_size_px) == ("house-numbers", 5, 50)


@pytest.mark.parametrize("other", [[1, 2], torch.zeros(3), {"weight": torch.zeros(3)}, None])
def test_another_kind_of_file_is_refused(tmp_path: Path, other: object):
    torch.save(other, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "it lacks agent, agent_config, env, format, model, perception, source, world")


@pytest.mark.parametrize("number", [0, 2, "1"])
def test_another_format_is_refused(tmp_path: Path, content: dict[str, Any], number: object):
    torch.save({**content, "format": number}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", f"has format {number}; this version reads 1")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"agent_config": {"no_such_field": 1}}, "no_such_field"),
        ({"agent_config": {"controller_state": "keep"}}, "controller_state"),
        ({"agent_config": {"location_sees_priority": True}}, "location_sees_priority"),  # once there was
        ({"agent_config": {"attention_init": "grid"}}, "square number of components; got 5"),
        ({"agent_config": None}, "does not fit"),
        ({"env": {"no_such_field": 1}}, "no_such_field"),
        ({"env": {"task": "chess"}}, "task"),
        ({"world": {}}, "rules"),
        (
            {"world": {"rules": {"no_such_rule": 1}, "map_size": [7, 7], "channels": 1, "num_classes": 10}},
            "no_such_rule",
        ),
        ({"model": 5}, "expected model as dict; got int"),
        ({"agent": 5}, "expected agent as str; got int"),
        ({"env": {"activation": 5}}, "expected activation as str; got int"),
        ({"env": {"images": [1]}}, "expected images as str | None; got list"),
    ],
    ids=str,
)
def test_what_this_version_cannot_rebuild_is_named(
    tmp_path: Path, content: dict[str, Any], part: dict[str, Any], message: str
):
    checkpoint.save(tmp_path / "x.pt", {**content, **part})
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.load(tmp_path / "x.pt")
    assert f"{tmp_path / 'x.pt'} does not fit this version of HSAL" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobody", r"Unknown agent 'nobody'\. Expected one of hsal, .* to a package: is that installed\?"),
        ("no_such_package.x:Agent", "agent 'no_such_package.x:Agent' cannot be imported.* Is its package installed?"),
    ],
)
def test_an_agent_that_is_not_installed_is_named(tmp_path: Path, content: dict[str, Any], name: object, message: str):
    checkpoint.save(tmp_path / "x.pt", {**content, "agent": name})
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.load(tmp_path / "x.pt", trust=True)
    assert f"{tmp_path / 'x.pt'} holds an agent that is not available here: " in str(caught.value)


def wider(model: dict[str, torch.Tensor]) -> None:
    model["controller.label.weight"] = torch.zeros(11, 17)


def one_less(model: dict[str, torch.Tensor]) -> None:
    del model["controller.label.weight"]


def one_more(model: dict[str, torch.Tensor]) -> None:
    model["controller.taste"] = torch.zeros(1)


def no_prior(model: dict[str, torch.Tensor]) -> None:
    del model["controller.location_prior"]


@pytest.mark.parametrize(
    ("change", "named"),
    [(wider, "label.weight"), (one_less, "label.weight"), (one_more, "taste"), (no_prior, "location_prior")],
)
def test_weights_of_another_shape_are_refused(
    tmp_path: Path, content: dict[str, Any], world: World, change: Callable, named: str
):
    content["model"] = dict(content["model"])
    change(content["model"])
    path = tmp_path / "x.pt"
    checkpoint.save(path, content)
    with pytest.raises(CheckpointError, match=f"holds weights of another shape.*(?s:.)*{named}") as caught:
        checkpoint.load(path)
    assert str(path) in str(caught.value)
    with pytest.raises(CheckpointError, match=named):
        checkpoint.restore(build(world), content["model"], path)


# --- trained agents by name -------------------------------------------------------------------------------------------


@pytest.fixture
def two_bundled(tmp_path: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of bundled agents, "alpha" and "beta", of which only the first is whole."""
    folder = tmp_path / "bundled"
    folder.mkdir()
    checkpoint.save(folder / "alpha.pt", content)
    (folder / "beta.pt").write_bytes(b"half of it")
    (folder / "alpha.md").write_text("a card")
    monkeypatch.setattr(agents, "BUNDLED_FOLDER", folder)
    return folder


def assert_the_saved_one(loaded: checkpoint.Loaded, content: dict[str, Any]) -> None:
    assert not loaded.agent.training
    weights = loaded.agent.state_dict()
    assert weights.keys() == content["model"].keys()
    assert all(torch.equal(weights[name], part) for name, part in content["model"].items())
    assert (loaded.env.update, loaded.source) == ("peak", "digits")


def test_a_bundled_agent_is_loaded_by_its_name(two_bundled: Path, content: dict[str, Any]):
    assert agents.bundled() == ["alpha", "beta"]
    assert_the_saved_one(agents.load("alpha"), content)


@pytest.mark.parametrize("kind", [str, Path])
def test_an_agent_of_ones_own_is_loaded_by_its_path(two_bundled: Path, path: Path, content: dict[str, Any], kind: type):
    assert_the_saved_one(agents.load(kind(path)), content)


def test_a_file_of_the_same_name_does_not_hide_a_bundled_agent(
    two_bundled: Path, tmp_path: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "alpha").write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert_the_saved_one(agents.load("alpha"), content)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        agents.load("./alpha")


@pytest.mark.parametrize("name", ["gamma", "alpha.pt", "alpha.md", "", ".", "no/such/file.pt"])
def test_an_agent_that_is_not_there_is_a_clear_error(two_bundled: Path, name: str):
    with pytest.raises(CheckpointError) as caught:
        agents.load(name)
    assert (
        str(caught.value)
        == f"No agent {name!r}: expected the path of a checkpoint, the folder of its training run, or a bundled agent's name "
        "(alpha, beta)."
    )


def test_a_folder_is_no_agent(two_bundled: Path):
    with pytest.raises(CheckpointError, match=r"No agent .*bundled"):
        agents.load(two_bundled)


def test_a_damaged_bundled_agent_is_a_clear_error(two_bundled: Path):
    with pytest.raises(CheckpointError, match=r"beta\.pt is cut off, damaged, or not a checkpoint"):
        agents.load("beta")


def test_where_nothing_is_bundled_there_are_no_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(agents, "BUNDLED_FOLDER", tmp_path / "nowhere")
    assert agents.bundled() == []
    with pytest.raises(CheckpointError, match="No agent 'alpha': expected the path of a checkpoint"):
        agents.load("alpha")


@pytest.mark.parametrize("name", agents.bundled())
def test_every_bundled_agent_fits_this_version_and_has_a_card(name: str):
    loaded = agents.load(name)
    assert loaded.agent.world.rules == loaded.env.rules
    assert all(weight.isfinite().all() for weight in loaded.agent.state_dict().values())
    assert (agents.BUNDLED_FOLDER / f"{name}.md").read_text().strip()


def test_every_card_is_of_a_bundled_agent():
    assert {path.stem for path in agents.BUNDLED_FOLDER.glob("*.md")} <= set(agents.bundled())


# --- writing ----------------------------------------------------------------------------------------------------------


def full_disk(content: object, path: Path) -> None:
    Path(path).write_bytes(b"half of it")
    raise OSError(errno.ENOSPC, "No space left on device")


def broken_stream(content: object, path: Path) -> None:
    Path(path).write_bytes(b"half of it")
    raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file")


def interrupted(content: object, path: Path) -> None:
    Path(path).write_bytes(b"half of it")
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("failure", "error"),
    [(full_disk, CheckpointError), (broken_stream, CheckpointError), (interrupted, KeyboardInterrupt)],
)
@pytest.mark.parametrize("first", [False, True], ids=["there was one before", "the first one"])
def test_a_failed_write_leaves_things_as_they_were(
    path: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch, failure: Callable, error: type, first: bool
):
    if first:
        path.unlink()
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", failure)
        with pytest.raises(error) as caught:
            checkpoint.save(path, content)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before
    if error is CheckpointError:
        assert str(path) in str(caught.value)
        assert "another place" in str(caught.value)


def test_a_second_write_takes_the_place_of_the_first(path: Path, world: World):
    torch.manual_seed(1)
    other = checkpoint.describe("hsal", build(world, seed=1), AGENT, ENV, "mnist", world)
    checkpoint.save(path, other)
    assert checkpoint.load(path).source == "mnist"
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


def test_a_file_in_the_way_is_a_clear_error(tmp_path: Path, content: dict[str, Any]):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="Cannot write"):
        checkpoint.save(tmp_path / "file" / "checkpoint.pt", content)
    assert (tmp_path / "file").read_text() == "mine"
