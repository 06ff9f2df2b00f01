"""An activation model of yours that has changed where neither its weights nor its own code show it."""

import textwrap
import warnings
from pathlib import Path

import pytest
import torch

from agents import checkpoint
from agents.actor_critic import ActorCritic
from agents.config import AgentConfig
from agents.protocol import World
from agents.supervised.centring import centre
from hsal_env.config import EnvConfig
from hsal_env.errors import CheckpointError
from hsal_env.perception.activation import CompactResNet, same_volumes, sample_volume
from hsal_env.perception.examples import Examples
from hsal_env.perception.model_file import save_model
from hsal_env.perception.registry import activation_model
from hsal_env.storage import array_store

MODEL = """
    import numpy as np
    import torch
    from torch import nn
    from {helper} import brightened

    class Model(nn.Module):
        in_channels, channels = 1, 4

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.encode = nn.Conv2d(1, 4, 20, stride=20)
            self.gains = [1.0, 1.0]
            self.offsets = {{"first": 0.0}}
            self.kernel = np.ones(4, np.float32)

        def forward(self, images):
            volume = self.encode(brightened(images)) * torch.from_numpy(self.kernel)[:, None, None]
            return self.gains[1] * volume + self.offsets["first"]
"""
HELPER = """
    def brightened(images):
        return 1.0 * images
"""


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A model of one's own as ``module:Model``, and beside it a module with a function that it calls."""
    module = "model_" + "".join(filter(str.isalnum, request.node.name))
    (tmp_path / f"{module}.py").write_text(textwrap.dedent(MODEL.format(helper=f"{module}_helper")))
    (tmp_path / f"{module}_helper.py").write_text(textwrap.dedent(HELPER))
    monkeypatch.syspath_prepend(tmp_path)
    return f"{module}:Model"


def change(what: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change a model where it is cached, as a new process would find it after an edit."""
    model = activation_model(name)
    changes = {"list": ("gains", [1.0, 1.5]), "dict": ("offsets", {"first": 0.1})}
    if what == "function":
        module = name.partition(":")[0]
        monkeypatch.setattr(f"{module}.brightened", lambda images: 0.5 * images)
    elif what == "array":
        model.kernel[2] = 0.0  # one channel of four
    elif what != "nothing":
        setattr(model, *changes[what])
    monkeypatch.setattr(array_store, "_checked", {})  # another process


def config(name: str, **settings) -> EnvConfig:
    return EnvConfig(source="digits", num_examples=24, activation=name, **settings)


CHANGES = ["list", "dict", "array", "function"]


@pytest.mark.parametrize("what", [*CHANGES, "nothing"])
def test_a_store_of_features_follows_its_model(name: str, monkeypatch: pytest.MonkeyPatch, what: str):
    first = Examples(config(name, features="store"), progress=False)
    stored = first.load([0, 23])[0].volume
    first.wait_until_stored()
    change(what, name, monkeypatch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = Examples(config(name, features="store"), progress=False).load([0, 23])[0].volume
    fresh = Examples(config(name, features="lazy")).load([0, 23])[0].volume
    torch.testing.assert_close(again, fresh, rtol=1e-2, atol=1e-2)
    assert ["out of date; computing it again" in str(warning.message) for warning in caught] == [True] * (
        what != "nothing"
    )
    assert torch.equal(again, stored) == (what == "nothing")


@pytest.mark.parametrize("what", [*CHANGES, "nothing"])
def test_a_checkpoint_refuses_features_of_a_changed_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
):
    env = config(name)
    world = World.of(Examples(env))
    agent = ActorCritic(world, AgentConfig(controller_hidden=8))
    path = tmp_path / "c.pt"
    checkpoint.save(path, checkpoint.describe("hsal", agent, AgentConfig(controller_hidden=8), env, "digits", world))
    change(what, name, monkeypatch)
    if what == "nothing":
        assert checkpoint.load(path, trust=True).env == env
        return
    with pytest.raises(CheckpointError, match=r"another activation model than .* bring back the version of the model"):
        checkpoint.load(path, trust=True)


def test_a_checkpoint_without_a_sample_is_loaded(tmp_path: Path):
    env = EnvConfig(source="digits", num_examples=4)
    world = World.of(Examples(env))
    content = checkpoint.describe("hsal", ActorCritic(world, AgentConfig()), AgentConfig(), env, "digits", world)
    del content["sample"]
    checkpoint.save(tmp_path / "c.pt", content)
    checkpoint.load(tmp_path / "c.pt")


@pytest.mark.parametrize("saliency", ["sum-of-squares", "itti-koch"])
def test_where_cells_are_said_to_be_matters_to_maps_of_the_image_alone(tmp_path: Path, saliency: str):
    path = tmp_path / "model.pt"
    model = CompactResNet()
    save_model(path, "compact", model)
    env = EnvConfig(source="digits", num_examples=4, activation=str(path), saliency=saliency)
    world = World.of(Examples(env))
    content = checkpoint.describe("hsal", ActorCritic(world, AgentConfig()), AgentConfig(), env, "digits", world)
    checkpoint.save(tmp_path / "c.pt", content)
    centre(model, (3.0, -2.0), (100, 100))
    save_model(path, "compact", model)
    if saliency == "sum-of-squares":
        checkpoint.load(tmp_path / "c.pt")
    else:
        with pytest.raises(CheckpointError, match=r"another activation model than .* bring back the file"):
            checkpoint.load(tmp_path / "c.pt")


def test_volumes_are_the_same_up_to_rounding():
    volume = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    noise = 0.002 * torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(1))
    assert same_volumes(volume + noise, volume)
    assert same_volumes(volume.half(), volume)
    other = volume.clone()
    other[:, 3] *= 1.02  # one channel, by more than 1 % of the mean of all
    assert not same_volumes(other, volume)
    assert not same_volumes(volume[:, :7], volume)
    assert not same_volumes(volume * torch.nan, volume)


def test_the_sample_is_the_same_each_time_and_leaves_no_trace():
    model, state = activation_model("compact"), torch.get_rng_state()
    sample = sample_volume(model, (100, 100))
    assert sample.shape == (1, 128, 7, 7)
    assert sample.dtype == torch.float16
    assert torch.equal(sample, sample_volume(model, (100, 100)))
    assert sample.float().std() > 0
    assert torch.equal(torch.get_rng_state(), state)
