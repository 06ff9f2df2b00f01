"""Checkpoints: they rebuild an agent whole, refuse what is not one of ours, and are never half written."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents import checkpoint
from agents.actor_critic import ActorCritic
from agents.config import AgentConfig
from agents.evaluation import make_env
from agents.protocol import World
from agents.trajectory import collect
from hsal_env.config import EnvConfig
from hsal_env.errors import CheckpointError

ENV = EnvConfig(source="digits", num_examples=32, features="store", update="peak", data_root="somewhere")
AGENT = AgentConfig(meta_hidden=8, controller_hidden=16, location_hidden=8, controller_state="carry")
LANES = 8


@pytest.fixture(scope="module")
def env():
    return make_env(ENV, LANES)


@pytest.fixture(scope="module")
def world(env) -> World:
    examples = env.simulation.examples
    return World(ENV.rules, examples.map_size, examples.channels, ENV.num_classes)


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


def test_all_of_the_environment_is_kept_but_where_the_data_lie(path: Path):
    assert checkpoint.load(path).env == EnvConfig(source="digits", num_examples=32, features="store", update="peak")
    assert b"somewhere" not in path.read_bytes()


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
        ({"agent_config": None}, "does not fit"),
        ({"env": {"no_such_field": 1}}, "no_such_field"),
        ({"env": {"task": "chess"}}, "task"),
        ({"world": {}}, "rules"),
        (
            {"world": {"rules": {"no_such_rule": 1}, "map_size": [7, 7], "channels": 1, "num_classes": 10}},
            "no_such_rule",
        ),
        ({"agent": "nobody"}, "Unknown agent 'nobody'"),
        ({"agent": "no_such_package.x:Agent"}, "no_such_package"),
        ({"model": 5}, "does not fit"),
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


def wider(model: dict[str, torch.Tensor]) -> None:
    model["controller.label.weight"] = torch.zeros(11, 17)


def one_less(model: dict[str, torch.Tensor]) -> None:
    del model["controller.label.weight"]


def one_more(model: dict[str, torch.Tensor]) -> None:
    model["controller.taste"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("change", "named"), [(wider, "label.weight"), (one_less, "label.weight"), (one_more, "taste")]
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
        assert "another --output-dir" in str(caught.value)


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
