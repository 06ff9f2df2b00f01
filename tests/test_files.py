"""Files that are written completely or not at all, whatever ends the process that writes them."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import COUNT, ROOT, TRAIN
from processes import python

from hsal_env.storage import files
from hsal_env.storage.files import creating_folder, replacing, sweep

WRITE_AND_WAIT = """
import sys, time
from hsal_env.storage import files
with files.replacing("weights.pt") as file, files.creating_folder("store") as folder, files.temporary_folder("part") as part:
    for path in (file, folder / "a.npy", part / "archive"):
        path.write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forget, as another process would, which folders were swept."""
    return lambda: monkeypatch.setattr(files, "_swept", set())


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def write(folder: Path) -> None:
    with replacing(folder / "mine") as path:
        path.write_text("whole")


def test_the_next_to_write_removes_what_a_killed_process_left_and_nothing_of_a_living_one(tmp_path, fresh_process):
    with python("-c", WRITE_AND_WAIT, cwd=tmp_path) as running:
        running.stdout.readline()
        halves = names(tmp_path)
        assert len(halves) == 3
        write(tmp_path)
        assert names(tmp_path) == {*halves, "mine"}
    assert names(tmp_path) == {*halves, "mine"}  # it was killed
    fresh_process()
    write(tmp_path)
    assert names(tmp_path) == {"mine"}


def test_what_this_process_writes_is_not_swept_by_its_other_threads(tmp_path, fresh_process):
    with creating_folder(tmp_path / "store") as folder, replacing(tmp_path / "file"):
        fresh_process()
        sweep(tmp_path)
        assert len(names(tmp_path)) == 2
        (folder / "a").write_text("whole")
    assert names(tmp_path) == {"store", "file"}


def test_other_hidden_files_are_not_swept(tmp_path, fresh_process):
    own = {".bashrc", ".weights-hsal.pt", f".x-hsal-{files._HOST}-12345678.pt.mine~/", "a-hsal-00000000-12345678"}
    for name in own:
        (tmp_path / name.strip("/")).write_text("")
    os.rename(tmp_path / f".x-hsal-{files._HOST}-12345678.pt.mine~", tmp_path / f".x-hsal-{files._HOST}-1234567")
    kept = names(tmp_path)
    sweep(tmp_path)
    assert names(tmp_path) == kept


def test_what_another_host_writes_is_swept_after_a_day(tmp_path, fresh_process):
    """Some file systems show locks only to the host that holds them."""
    left = tmp_path / ".weights-hsal-0a0a0a0a-abcd_123.pt"
    left.write_text("half")
    sweep(tmp_path)
    assert names(tmp_path) == {left.name}
    day_ago = time.time() - 25 * 60 * 60
    os.utime(left, (day_ago, day_ago))
    fresh_process()
    sweep(tmp_path)
    assert names(tmp_path) == set()


def test_without_locks_nothing_is_swept_and_all_is_written(tmp_path, monkeypatch, fresh_process):
    monkeypatch.setattr("hsal_env.storage.locks.fcntl", None)
    left = tmp_path / f".weights-hsal-{files._HOST}-abcd_123.pt"
    left.write_text("half")
    write(tmp_path)
    assert names(tmp_path) == {left.name, "mine"}


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)])
@pytest.mark.parametrize("script", [TRAIN, COUNT])
def test_a_command_that_is_stopped_removes_its_half_made_store_and_says_so(script, sent, status, tmp_path):
    flags = "--source digits" if script == TRAIN else "--env-id HSAL-DigitsMultiset-v0"
    started = python(
        ROOT / "train" / script, *flags.split(), "--output-dir", "run", cwd=tmp_path, HSAL_CACHE=str(tmp_path)
    )
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
    with started as running:
        signal.signal(signal.SIGINT, heard)
        until = time.monotonic() + 120
        while not list(tmp_path.glob("features/.*/*.npy")):
            assert running.poll() is None, running.stderr.read()
            assert time.monotonic() < until
            time.sleep(0.05)
        running.send_signal(sent)
        _, errors = running.communicate(timeout=120)
    assert running.returncode == status
    assert "Traceback" not in errors
    assert [line for line in errors.splitlines() if line.startswith("interrupted")]
    assert list((tmp_path / "features").iterdir()) == []
