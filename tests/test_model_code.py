"""A changed activation model is not taken for the old one: its attributes, and the code that it reaches."""

import dataclasses
import importlib
import linecache
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from agents import checkpoint
from hsal_env.config import EnvConfig
from hsal_env.errors import ConfigError
from hsal_env.perception.examples import Examples
from hsal_env.perception.model_code import code_of
from hsal_env.perception.model_file import fingerprint
from hsal_env.perception.registry import ACTIVATION_MODELS, ARCHITECTURES, BUNDLED, activation_model

NET = '''
import dataclasses, functools
import torch
from torch import nn
from . import helpers
from .helpers import scaled

@dataclasses.dataclass
class Settings:
    gain: float = 1.0

def decorated(function):
    @functools.wraps(function)
    def wrapper(*arguments):
        return function(*arguments) * 1
    return wrapper

def made(factor):
    def inner(x):
        return x * factor
    return inner

class Net(nn.Module):
    """A model."""
    levels = [1, 2]

    def __init__(self):
        super().__init__()
        self.in_channels, self.channels = 1, 1
        self.sizes = [1, [2.0, 3.0]]
        self.table = {"a": 1}
        self.settings = Settings()
        self.inner = made(3)
        self.register_buffer("window", torch.ones(2), persistent=False)
        self.cache = {}

    @decorated
    def forward(self, images):
        from .lazy import late
        self.cache[len(self.cache)] = images
        return scaled(helpers.pooled(images)) + late(images).mean() + self.own(images).mean()

    @property
    def own(self):
        return lambda x: x * helpers.WEIGHT
'''
HELPERS = """
import torch.nn.functional as F
from .deep import deeper

WEIGHT = 0.0

def pooled(x):
    return F.avg_pool2d(x, 10)

def scaled(x):
    return deeper(x) * 1

def unused(x):
    return 5
"""
FILES = {
    "__init__.py": "",
    "net.py": NET,
    "helpers.py": HELPERS,
    "deep.py": "TABLE = [1, 2]\ndef deeper(x):\n    return x * TABLE[0]\n",
    "lazy.py": "def late(x):\n    return x * 0\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Writes a package that holds a model, less some texts in place of others, and makes the model."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "own_net"]:
            del sys.modules[name]

    def make(changes: dict[str, tuple[str, str]] | None = None) -> nn.Module:
        forget()
        shutil.rmtree(tmp_path / "own_net", ignore_errors=True)
        (tmp_path / "own_net").mkdir()
        for name, text in FILES.items():
            old, new = (changes or {}).get(name, ("", ""))
            assert old in text
            (tmp_path / "own_net" / name).write_text(text.replace(old, new, 1))
        importlib.invalidate_caches()
        linecache.clearcache()
        return activation_model(importlib.import_module("own_net.net").Net())

    yield make
    forget()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("net.py", "3.0", "4.0"),  # a nested list
        ("net.py", '{"a": 1}', '{"a": 2}'),
        ("net.py", "gain: float = 1.0", "gain: float = 2.0"),
        ("net.py", "made(3)", "made(4)"),  # a closure
        ("net.py", "torch.ones(2), persistent", "torch.zeros(2), persistent"),
        ("net.py", "levels = [1, 2]", "levels = [1, 3]"),
        ("net.py", "function(*arguments) * 1", "function(*arguments) * 2"),
        ("net.py", "lambda x: x * helpers", "lambda x: -x * helpers"),
        ("helpers.py", "avg_pool2d(x, 10)", "max_pool2d(x, 10)"),
        ("helpers.py", "deeper(x) * 1", "deeper(x) * 2"),
        ("helpers.py", "WEIGHT = 0.0", "WEIGHT = 0.5"),
        ("deep.py", "x * TABLE[0]", "x + TABLE[0]"),
        ("deep.py", "TABLE = [1, 2]", "TABLE = [2, 2]"),
        ("lazy.py", "x * 0", "x * 1"),
    ],
)
def test_a_change_is_seen(package, file, old, new):
    before, after = code_of(package()), code_of(package({file: (old, new)}))
    assert len(before) == len(after) == 64
    assert before != after


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("net.py", '"""A model."""', '"""A net."""  # the same'),
        ("helpers.py", "return 5", "return 6"),  # nobody calls it
        ("helpers.py", "def scaled(x):\n", "def scaled(x):\n\n    # the same\n"),
    ],
)
def test_what_decides_nothing_does_not_count(package, file, old, new):
    assert code_of(package()) == code_of(package({file: (old, new)}))


def test_what_a_model_keeps_of_its_use_does_not_count(package):
    before = code_of(package())
    model = package()
    model(torch.zeros(1, 1, 20, 20))
    assert model.cache
    assert code_of(model) == before


class Plain(nn.Module):
    in_channels = channels = 1

    def __init__(self, extra: object = None) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images, 20)


@dataclasses.dataclass
class Pair:
    left: object
    right: object = ()


def linear(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1, [2]], [1, [3]]),
        ({"a": (1, [2])}, {"a": (1, [4])}),
        ({1, 2}, {1, 3}),
        (np.zeros(3), np.ones(3)),
        (np.zeros(3), np.zeros(3, np.float32)),
        (np.array([[1, "a"]], object), np.array([[1, "b"]], object)),
        ([torch.zeros(2)], [torch.ones(2)]),
        (Pair(1, [2]), Pair(1, [3])),
        (True, 1),
        (None, 0),
        (np.float32(1), np.float32(2)),
        (slice(1), slice(2)),
        ([lambda x: x], [lambda x: x + 1]),
        (threading.Thread, threading.Timer),
        ([linear(0)], [linear(1)]),  # modules that torch does not know of
    ],
    ids=repr,
)
def test_attributes_of_any_kind_are_seen(one, other):
    first, again, second = (code_of(activation_model(Plain(extra))) for extra in (one, one, other))
    assert first == again
    assert first != second


def test_a_hook_and_a_function_on_a_bundled_model_are_seen():
    model = activation_model("compact")
    assert code_of(model) == ""
    hooked = activation_model(model)
    hooked.layers[0].register_forward_hook(lambda module, inputs, output: -output)
    patched = activation_model(model)
    patched.forward = lambda images: -type(model).forward(model, images)
    assert len({"", code_of(activation_model(hooked)), code_of(activation_model(patched))}) == 3


def test_what_cannot_be_seen_is_refused_where_it_is_stored_and_taken_where_not(monkeypatch):
    class Handle:
        def __deepcopy__(self, _: dict) -> "Handle":
            return self

        def __reduce_ex__(self, _: int) -> None:
            raise TypeError("a handle")

    config = EnvConfig(source="digits", num_examples=2, activation=Plain(Handle()))
    assert len(Examples(config)) == 2
    with pytest.raises(ConfigError, match=r"whose changes cannot be noticed: Plain\.extra is a Handle \(a handle\)"):
        Examples(dataclasses.replace(config, features="store"))
    namespace: dict = {}
    exec("def made(x):\n    return x", namespace)
    with pytest.raises(ConfigError, match="source of made, which the activation model uses, cannot be read"):
        Examples(dataclasses.replace(config, activation=Plain(namespace["made"]), features="store"))


def test_a_cycle_ends():
    ring: list = [1]
    ring.append({"back": ring})
    assert code_of(activation_model(Plain(ring)))


def test_changed_models_have_stores_and_checkpoints_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("HSAL_CACHE", str(tmp_path))
    found = []
    for extra in ([1], [2], [2]):
        config = EnvConfig(source="digits", num_examples=2, features="store", activation=Plain(extra))
        Examples(config)
        found.append(checkpoint.perception(config))
    assert len(list((tmp_path / "features").iterdir())) == 2
    assert found[0] != found[1] == found[2]
    assert checkpoint.same_perception(found[1], found[2])
    assert not checkpoint.same_perception(found[0], found[1])
    weights, code = found[0].split("-")
    assert checkpoint.same_perception(weights, found[0])  # as version 0.2 wrote it
    assert not checkpoint.same_perception(code, found[0])


@pytest.mark.parametrize("name", [*BUNDLED, "compact-crowded-lower-level"])
def test_fingerprints_of_bundled_models_are_those_of_their_weights(name):
    """So that stores and checkpoints of earlier versions stay valid."""
    model = ACTIVATION_MODELS[name]()
    assert code_of(model) == code_of(activation_model(name)) == ""
    assert fingerprint(model) == fingerprint(model.state_dict())
    assert "-" not in checkpoint.perception(EnvConfig(activation=name))


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_architectures_hold_nothing_beside_their_weights(architecture):
    assert code_of(activation_model(ARCHITECTURES[architecture]())) == ""


def test_the_fingerprint_of_the_default_model_is_that_of_version_0_2():
    assert checkpoint.perception(EnvConfig()) == fingerprint(activation_model("compact").state_dict())
