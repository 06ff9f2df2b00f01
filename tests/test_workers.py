"""Environments in processes of their own: forked and spawned workers, with as many threads as the machine has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

HEADER = """
import os
import gymnasium
import hsal_env
import torch

assert "OMP_NUM_THREADS" not in os.environ
torch.set_num_threads(max(2, torch.get_num_threads()))  # on one core, too
small = dict(source="digits", num_examples=70)

def play(env):
    env.reset(seed=0)
    env.action_space.seed(0)  # an episode that lasts
    for _ in range(6):
        env.step(env.action_space.sample())
    env.close()
"""

# Each would wait for ever if a forked worker computed with the threads of its parent.
FORKS = {
    "async": """
play(gymnasium.make_vec("HSAL-DigitsMultiset-v0", num_envs=2, vectorization_mode="async",
                        vector_kwargs={"context": "fork"}, **small))
play(gymnasium.make_vec("HSAL-MNISTMultisetOption-v0", num_envs=2, vectorization_mode="async",
                        vector_kwargs={"context": "fork"}, **small))
""",
    "an empty store": """
play(gymnasium.make_vec("HSAL-DigitsMultiset-v0", num_envs=2, vectorization_mode="async", features="store",
                        vector_kwargs={"context": "fork"}, **small))
""",
    "after a batch": """
import numpy
from stable_baselines3.common.vec_env import SubprocVecEnv
torch.rand(500, 500) @ torch.rand(500, 500)
play(gymnasium.make_vec("HSAL-DigitsMultiset-v0", num_envs=4, **small))
def make():
    return gymnasium.make("HSAL-DigitsMultiset-v0", action_mode="flat", **small)
env = SubprocVecEnv([make, make], start_method="fork")
env.reset()
for _ in range(6):
    env.step(numpy.array([env.action_space.sample() for _ in range(2)]))
env.close()
""",
    "an environment made before": """
env = gymnasium.make("HSAL-DigitsMultiset-v0", **small)
env.reset(seed=0)
child = os.fork()
if not child:
    play(env)
    torch.rand(500, 500) @ torch.rand(500, 500)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert torch.get_num_threads() > 1  # the parent keeps its threads
""",
}


def without_thread_variables() -> dict[str, str]:
    """The environment of a user who has set nothing; these tests themselves run in one thread."""
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    return {**kept, "PYTHONPATH": str(ROOT)}


def run_python(*command: str, cwd: Path) -> None:
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=without_thread_variables(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


SPAWNED = """
import gymnasium
from stable_baselines3.common.vec_env import SubprocVecEnv

small = {"source": "digits", "num_examples": 70}

def make():
    return gymnasium.make("hsal_env:HSAL-DigitsMultiset-v0", action_mode="flat", **small)

if __name__ == "__main__":
    lanes = gymnasium.make_vec(
        "hsal_env:HSAL-DigitsMultiset-v0", num_envs=2, vectorization_mode="async", vector_kwargs={"context": "spawn"}, **small
    )
    lanes.reset(seed=0)
    lanes.close()
    env = SubprocVecEnv([make], start_method="spawn")
    env.reset()
    env.close()
"""


@pytest.mark.slow
def test_spawned_workers_import_the_package_where_the_id_names_it(tmp_path, monkeypatch):
    """``import hsal_env`` under the main guard would reach no worker."""
    monkeypatch.setenv("HSAL_CACHE", str(tmp_path))
    (tmp_path / "program.py").write_text(SPAWNED)
    run_python("program.py", cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("code", FORKS.values(), ids=FORKS)
def test_forked_workers_do_not_wait_for_threads_that_they_lack(code, tmp_path, monkeypatch):
    monkeypatch.setenv("HSAL_CACHE", str(tmp_path))
    run_python("-c", HEADER + code, cwd=tmp_path)
