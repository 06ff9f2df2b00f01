"""torchvision is imported also where its operators are missing."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hsal_env.data import torchvision_import


def test_torchvision_has_what_is_used():
    code = """
from hsal_env.data.torchvision_import import import_torchvision
torchvision = import_torchvision()
assert import_torchvision() is torchvision
torchvision.datasets.MNIST, torchvision.models.resnet34, torchvision.utils.make_grid
import torchvision.transforms.v2
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr


class FakeImports:
    """``importlib`` whose torchvision fails with ``error`` until its operators are declared."""

    def __init__(self, error: Exception) -> None:
        self.error, self.declared, self.modules = (
            error,
            [],
            {"torchvision": "half", "torchvision.ops": "half", "os": os},
        )

    def import_module(self, name: str):
        if any(schema.startswith("nms(") for schema in self.declared) and "torchvision" not in self.modules:
            return "whole"
        raise self.error

    def library(self, namespace: str, kind: str):
        assert (namespace, kind) == ("torchvision", "FRAGMENT")
        return SimpleNamespace(define=self.declared.append)


@pytest.fixture
def fake(monkeypatch):
    def install(error: Exception) -> FakeImports:
        imports = FakeImports(error)
        monkeypatch.setattr(torchvision_import, "importlib", imports)
        monkeypatch.setattr(torchvision_import, "sys", imports)
        monkeypatch.setattr(torchvision_import, "_library", None)
        monkeypatch.setattr(torch.library, "Library", imports.library)
        return imports

    return install


def test_missing_operators_are_declared_and_the_import_repeated(fake):
    imports = fake(RuntimeError("operator torchvision::nms does not exist"))
    assert torchvision_import.import_torchvision() == "whole"
    assert list(imports.modules) == ["os"]  # nothing else was forgotten


@pytest.mark.parametrize("error", [RuntimeError("out of luck"), ImportError("No module named 'torchvision'")])
def test_another_failure_is_passed_on(fake, error):
    imports = fake(error)
    with pytest.raises(type(error), match=str(error)):
        torchvision_import.import_torchvision()
    assert not imports.declared


def test_operators_are_declared_only_once(fake, monkeypatch):
    imports = fake(RuntimeError("operator torchvision::nms does not exist"))
    monkeypatch.setattr(torchvision_import, "_library", object())
    with pytest.raises(RuntimeError, match="nms"):
        torchvision_import.import_torchvision()
    assert not imports.declared
