"""What must not change by accident: canvases, an episode of every view, and a training run, as tests/pinned.json has them.

Canvases are compared to the bit everywhere; those of SVHN are cut from images of noise. Floats are compared to the bit on the
kind of machine that recorded them, and within rounding elsewhere. After a change that is meant, one part is recorded anew by
``python tests/test_pinned.py canvases`` (or ``episodes``, or ``training``).
"""

import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import svhn_files
import torch
from playing import MODES, play, single

from hsal_env.config import EnvConfig
from hsal_env.registration import ENVIRONMENTS

ROOT = Path(__file__).parents[1]
PINNED = Path(__file__).with_name("pinned.json")
RUN = ["--preset", "tiny", "--source", "digits", "--no-bfloat16", "--test-episodes", "100", "--device", "cpu"]
IDS = [env_id for env_id in ENVIRONMENTS if "Custom" not in env_id]


def digest(arrays: list[np.ndarray]) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def machine() -> str:
    """What decides how floats are rounded."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {names[0].split(':')[1].strip()}"


def canvases(env_id: str, data_root: str | None) -> str:
    kwargs = dict(ENVIRONMENTS[env_id])
    if kwargs["source"] == "auto":
        kwargs["source"] = "mnist"
    drawn = EnvConfig(**{"split": "test", **kwargs, "data_root": data_root}).canvases.compose(np.arange(10))
    return digest([drawn.images, drawn.labels, drawn.boxes])


def episode(mode: str) -> dict[str, Any]:
    """The rewards and the sum of every part of the observations, decision by decision; and the bits of it all."""
    answers = play(single(action_mode=mode), seed=3)
    seen = [answer[0] for answer in answers]
    arrays = [np.asarray(observation[name]) for observation in seen for name in sorted(observation)]
    rewards = np.array([answer[1] for answer in answers[1:]])
    return {
        "rewards": rewards.tolist(),
        "sums": [float(array.sum(dtype=np.float64)) for array in arrays],
        "bits": digest([*arrays, rewards]),
    }


def training(folder: Path) -> dict[str, Any]:
    """Every logged number but the times, the test scores, and the sums of all weights; and the bits of the weights."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "train/ppo_or_reinforce.py"), *RUN, "--output-dir", str(folder)]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    weights = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    with (folder / "progress.csv").open(newline="") as file:
        rows = [{name: float(text) for name, text in row.items() if text} for row in csv.DictReader(file)]
    test = json.loads((folder / "metrics.json").read_text())["test"]
    return {
        "rows": [{name: value for name, value in row.items() if name != "seconds"} for row in rows],
        "test": {name: value for name, value in test.items() if isinstance(value, float)},
        "sums": {name: float(tensor.double().sum()) for name, tensor in weights.items()},
        "bits": digest([tensor.numpy() for tensor in weights.values()]),
    }


def assert_pinned(actual: dict[str, Any], pinned: dict[str, Any], tolerance: float) -> None:
    if pinned["machine"] == machine():
        assert actual["bits"] == pinned["bits"]
    for name in actual.keys() - {"bits"}:
        assert_close(actual[name], pinned[name], tolerance)


def assert_close(actual: Any, pinned: Any, tolerance: float) -> None:
    if isinstance(pinned, dict):
        assert actual.keys() == pinned.keys()
        for name in pinned:
            assert_close(actual[name], pinned[name], tolerance)
    elif pinned and isinstance(pinned[0] if isinstance(pinned, list) else None, dict):
        for one, other in zip(actual, pinned, strict=True):
            assert_close(one, other, tolerance)
    else:
        assert actual == pytest.approx(pinned, rel=tolerance, abs=tolerance)


@pytest.fixture(scope="module")
def pinned() -> dict[str, Any]:
    return json.loads(PINNED.read_text())


@pytest.mark.parametrize("env_id", IDS)
def test_canvases_are_the_pinned_ones(env_id, pinned, request):
    fixture = {"auto": "mnist_root", "svhn": "svhn_folder"}.get(ENVIRONMENTS[env_id]["source"])
    data_root = request.getfixturevalue(fixture) if fixture else None
    assert canvases(env_id, data_root) == pinned["canvases"][env_id]


@pytest.mark.skipif(torch.cpu._is_amx_tile_supported(), reason="features are rounded to bfloat16 here")
@pytest.mark.parametrize("mode", MODES)
def test_an_episode_is_the_pinned_one(mode, pinned):
    assert_pinned(episode(mode), pinned["episodes"][mode], tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(torch.cpu._is_amx_tile_supported(), reason="features are rounded to bfloat16 here")
def test_a_training_run_is_the_pinned_one(pinned, tmp_path):
    assert_pinned(training(tmp_path / "run"), pinned["training"], tolerance=2e-2)


def _record(parts: list[str]) -> None:
    """Rewrite ``parts`` of the file: canvases, episodes or training."""
    content = json.loads(PINNED.read_text()) if PINNED.exists() else {}
    roots = {"auto": os.environ["HSAL_DATA"], "svhn": svhn_files.random_root(Path(tempfile.mkdtemp()))}
    record: dict[str, Callable[[], Any]] = {
        "canvases": lambda: {env_id: canvases(env_id, roots.get(ENVIRONMENTS[env_id]["source"])) for env_id in IDS},
        "episodes": lambda: {mode: {"machine": machine(), **episode(mode)} for mode in MODES},
        "training": lambda: {"machine": machine(), **training(Path(tempfile.mkdtemp()) / "run")},
    }
    for part in parts:
        content[part] = record[part]()
    PINNED.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    _record(sys.argv[1:])
