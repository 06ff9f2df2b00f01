"""Two processes do not write in one place."""

import gc
import os
import shutil
import signal
from pathlib import Path

import pytest
from commands import ANALYSE, COUNT, LEARNERS, PRETRAIN, SMALL, TRAIN, Command, metrics_of
from processes import python

from hsal_env.errors import CheckpointError
from hsal_env.storage.claims import claim_file, claim_folder

CLAIM_AND_WAIT = """
import pathlib, time
from hsal_env.storage.claims import claim_file, claim_folder
claims = claim_folder(pathlib.Path("run")), claim_file(pathlib.Path("model.pt"))
print("claimed", flush=True)
time.sleep(600)
"""


@pytest.fixture
def busy(tmp_path: Path):
    """A process that writes in ``run`` and ``model.pt``."""
    with python("-c", CLAIM_AND_WAIT, cwd=tmp_path) as running:
        running.stdout.readline()
        yield running


def test_a_place_in_use_is_refused_until_its_process_is_killed(busy, tmp_path):
    for claim, name in ((claim_folder, "run"), (claim_file, "model.pt")):
        with pytest.raises(
            CheckpointError, match=rf"{name} is in use by process {busy.pid} on .* choose another place"
        ):
            claim(tmp_path / name)
    busy.kill()
    busy.wait()
    claims = claim_folder(tmp_path / "run"), claim_file(tmp_path / "model.pt")
    assert (tmp_path / "run" / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    del claims
    gc.collect()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["run"]  # no lock is left


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        (TRAIN, [*SMALL, "--output-dir", "run"]),
        (LEARNERS, "ppo --source digits --timesteps 10 --output-dir run"),
        (COUNT, "--env-id HSAL-DigitsMultiset-v0 --num-examples 256 --output-dir run"),
        (ANALYSE, "mnist-multiset --source digits --episodes 5 --output-dir run"),
        ("compare_saliency.py", "--source digits --output-dir run"),
        (PRETRAIN, "--objects house-numbers --num-canvases 128 --output model.pt"),
    ],
    ids=[TRAIN, LEARNERS, COUNT, ANALYSE, "compare_saliency.py", PRETRAIN],
)
def test_commands_refuse_a_place_in_use(script, flags, busy, command: Command):
    command.fails(script, flags, "is in use by process")


def test_a_process_may_claim_a_place_again_and_after_it_was_deleted(tmp_path):
    first = claim_folder(tmp_path / "run")
    assert claim_folder(tmp_path / "run") is first
    shutil.rmtree(tmp_path / "run")
    again = claim_folder(tmp_path / "run")
    assert again is not first
    del first
    assert (tmp_path / "run" / ".lock").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_neither_holds_nor_ends_the_claim(tmp_path):
    code = """
import os, pathlib, time
from hsal_env.storage.claims import claim_folder
claim = claim_folder(pathlib.Path("run"))
if os.fork() == 0:
    del claim
    print(os.getpid(), flush=True)
    time.sleep(600)
    os._exit(0)
time.sleep(600)
"""
    with python("-c", code, cwd=tmp_path) as running:
        child = int(running.stdout.readline())
        try:
            with pytest.raises(CheckpointError, match="in use"):
                claim_folder(tmp_path / "run")
            running.kill()
            running.wait()
            _claim = claim_folder(tmp_path / "run")
        finally:
            os.kill(child, signal.SIGKILL)


def test_without_locks_nobody_is_refused(busy, tmp_path, monkeypatch):
    monkeypatch.setattr("hsal_env.storage.locks.fcntl", None)
    _claim = claim_folder(tmp_path / "run")


@pytest.mark.slow
def test_a_killed_run_is_resumed(trained: Path, tmp_path: Path, command: Command):
    shutil.copytree(trained, tmp_path / "run")
    flags = "--preset tiny --source digits --output-dir run --resume"
    with python("-c", CLAIM_AND_WAIT, cwd=tmp_path) as running:
        running.stdout.readline()
        command.fails(TRAIN, flags, "is in use by process")
    command(TRAIN, flags)
    assert metrics_of(tmp_path / "run")["test"] == metrics_of(trained)["test"]
