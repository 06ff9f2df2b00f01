"""The commands of train/ in tests: started as people start them, or in this process, and their parts looked at."""

import importlib.util
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]

TRAIN, EVALUATE, ANALYSE, BUNDLE = "ppo_or_reinforce.py", "evaluate_agent.py", "analyse_errors.py", "bundle_agent.py"

COUNT, DEMO, PRETRAIN, REPRODUCE = "count_network.py", "demo.py", "pretrain_perception.py", "reproduce.py"

LEARNERS = "sb3_agents.py"

SMALL = shlex.split(
    "--preset tiny --source digits --num-examples 128 --batch-size 32 --passes 1 --controller-hidden 32"
    " --val-episodes 20 --test-episodes 40"
)


def run(script: str, *flags: object, cwd: Path) -> subprocess.CompletedProcess:
    """``python train/script flags`` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "train" / script), *map(str, flags)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def succeeded(done: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    assert done.returncode == 0, done.stderr
    return done


@cache
def script(name: str) -> ModuleType:
    """A training script as a module, without running it."""
    spec = importlib.util.spec_from_file_location(f"script_{Path(name).stem}", ROOT / "train" / name)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their annotations up there
    spec.loader.exec_module(module)
    return module


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


class Command:
    """Runs a script's ``__main__`` in this process: what would be a traceback is raised here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, name: str, flags: str | list) -> None:
        given = shlex.split(flags) if isinstance(flags, str) else [str(flag) for flag in flags]
        self.monkeypatch.setattr(sys, "argv", [f"train/{name}", *given])
        runpy.run_path(str(ROOT / "train" / name), run_name="__main__")

    def fails(self, name: str, flags: str | list, *said: str) -> None:
        """The command ends in a non-zero status and says why."""
        with pytest.raises(SystemExit) as caught:
            self(name, flags)
        code = caught.value.code
        assert code not in (0, None)
        message = code if isinstance(code, str) else self.capsys.readouterr().err
        assert "Traceback" not in message
        text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", message).split())  # tyro draws boxes
        for part in said:
            assert part in text


def parsed(*flags: str):
    return script(TRAIN).parse(list(flags))
