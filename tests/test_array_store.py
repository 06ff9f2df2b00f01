"""The array store: what was computed is read back, whatever happens to its files or its writers."""

import errno
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from hsal_env.errors import DataError
from hsal_env.storage import array_store, filling
from hsal_env.storage.array_store import ArrayStore, DamagedStoreError

VALUES = np.arange(40, dtype=np.float32).reshape(10, 2, 2)


def batches():
    for start in (0, 4, 8):
        yield {"values": VALUES[start : start + 4], "names": np.arange(start, min(start + 4, 10))}


def nothing():
    raise AssertionError("computed again")


def assert_whole(store: ArrayStore) -> None:
    record = store.read([9, 0, 3], "values", "names")
    np.testing.assert_array_equal(record["values"], VALUES[[9, 0, 3]])
    assert record["names"].tolist() == [9, 0, 3]


def test_a_store_holds_what_was_computed_and_is_not_computed_again(tmp_path, another_process):
    folder = tmp_path / "deep" / "store"
    assert_whole(ArrayStore.open(folder, batches, 10))
    assert_whole(ArrayStore.open(folder, nothing, 10))
    another_process()
    assert_whole(ArrayStore.open(folder, nothing, 10))
    assert [path.name for path in folder.parent.iterdir()] == ["store"]


def cut(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])


def flip_last_byte(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))


DAMAGES = {
    "flipped bit": lambda folder: flip_last_byte(folder / "values.npy"),
    "array cut off": lambda folder: cut(folder / "values.npy", 200),
    "array cut off in its header": lambda folder: cut(folder / "values.npy", 20),
    "array empty": lambda folder: cut(folder / "names.npy", 0),
    "array missing": lambda folder: (folder / "names.npy").unlink(),
    "array garbage": lambda folder: (folder / "values.npy").write_bytes(b"garbage" * 100),
    "index cut off": lambda folder: cut(folder / "store.json", 12),
    "index empty": lambda folder: cut(folder / "store.json", 0),
    "index missing": lambda folder: (folder / "store.json").unlink(),
    "index without arrays": lambda folder: (folder / "store.json").write_text('{"length": 10}'),
    "index of another kind": lambda folder: (folder / "store.json").write_text("[]"),
    "index in no encoding": lambda folder: (folder / "store.json").write_bytes(b"\xff\xfe\xff"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_store_is_computed_again_with_a_warning(tmp_path, another_process, damage):
    folder = tmp_path / "store"
    ArrayStore.open(folder, batches, 10)
    damage(folder)
    another_process()
    with pytest.warns(UserWarning, match=r"store is damaged .*; computing it again"):
        assert_whole(ArrayStore.open(folder, batches, 10))
    assert_whole(ArrayStore.open(folder, nothing, 10))


@pytest.mark.parametrize("same_process", [False, True])
def test_a_store_of_another_length_is_computed_again_with_a_warning(tmp_path, another_process, same_process):
    folder = tmp_path / "store"
    ArrayStore.open(folder, lambda: [{"values": VALUES[:4], "names": np.arange(4)}], 4)
    if not same_process:
        another_process()
    with pytest.warns(UserWarning, match="expected 10 examples, got 4"):
        assert_whole(ArrayStore.open(folder, batches, 10))


@pytest.mark.parametrize("length", [9, 11])
def test_examples_of_another_number_are_refused(tmp_path, length):
    with pytest.raises(DataError, match=f"Expected {length} examples"):
        ArrayStore.open(tmp_path / "store", batches, length)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_writer_leaves_nothing(tmp_path, interruption):
    def interrupted():
        yield next(batches())
        raise interruption

    with pytest.raises(interruption):
        ArrayStore.open(tmp_path / "store", interrupted, 10)
    assert not list(tmp_path.iterdir())
    assert_whole(ArrayStore.open(tmp_path / "store", batches, 10))


def test_a_killed_writer_leaves_nothing_that_a_reader_takes(tmp_path):
    code = f"""
import os, sys; sys.path[:0] = {sys.path!r}
from pathlib import Path
from test_array_store import batches, ArrayStore
def killed():
    yield next(batches())
    os._exit(9)
ArrayStore.open(Path({str(tmp_path / "store")!r}), killed, 10)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert not (tmp_path / "store").exists()
    assert_whole(ArrayStore.open(tmp_path / "store", batches, 10))


def test_of_two_concurrent_writers_both_get_the_store(tmp_path):
    barrier, stores, errors = threading.Barrier(2, timeout=120), [], []

    def meeting():
        for batch in batches():
            barrier.wait()  # both are half through at the same time
            yield batch

    def write():
        try:
            stores.append(ArrayStore.open(tmp_path / "store", meeting, 10))
        except Exception as error:
            errors.append(error)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not errors
    for store in stores:
        assert_whole(store)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("step", ["os.posix_fallocate", "os.rename", "tempfile.mkdtemp"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_store_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path, monkeypatch, step, code):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(step, fail, raising=False)  # not every system has posix_fallocate
    with pytest.raises(DataError, match=f"{os.strerror(code)}.*HSAL_CACHE"):
        ArrayStore.open(tmp_path / "store", batches, 10)
    assert not list(tmp_path.iterdir())


def test_a_file_in_a_stores_place_is_an_error(tmp_path):
    (tmp_path / "store").write_text("mine")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(DataError, match="Cannot write"):
        ArrayStore.open(tmp_path / "store", batches, 10)
    assert (tmp_path / "store").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_pickled_store_is_small_and_reads_the_same_files(tmp_path):
    values = np.zeros((10, 10_000), np.float32)
    store = ArrayStore.open(tmp_path / "store", lambda: [{"values": values}], 10)
    pickled = pickle.dumps(store)
    assert len(pickled) < 1000
    np.testing.assert_array_equal(pickle.loads(pickled).read([1], "values")["values"], values[:1])


def test_a_stores_rows_are_copies(tmp_path):
    store = ArrayStore.open(tmp_path / "store", batches, 10)
    store.read([0, 3, 9], "values")["values"][:] = -1
    assert_whole(store)


@pytest.fixture
def unmapped(monkeypatch):
    """Every array is read from its file, as in a store of more than 1 GB."""
    if not hasattr(os, "preadv"):
        pytest.skip("arrays are mapped here, however large")
    monkeypatch.setattr(array_store, "_MAPPED_BYTES", 0)


def test_a_large_store_reads_what_a_mapped_one_does(tmp_path, unmapped):
    store = ArrayStore.open(tmp_path / "store", batches, 10)
    for read in (store, pickle.loads(pickle.dumps(store))):
        assert_whole(read)
        assert read.read([], "values")["values"].shape == (0, 2, 2)
        rows = read.read(np.array([4, 4, 0]), "values")["values"]
        np.testing.assert_array_equal(rows, VALUES[[4, 4, 0]])
        assert rows.dtype == VALUES.dtype


@pytest.mark.parametrize("row", [-1, 10])
def test_a_large_store_has_no_other_rows(tmp_path, unmapped, row):
    store = ArrayStore.open(tmp_path / "store", batches, 10)
    with pytest.raises(IndexError, match=rf"rows in 0\.\.9; got {row}"):
        store.read([0, row], "values")


def test_a_large_store_that_is_cut_off_while_in_use_is_an_error(tmp_path, unmapped):
    store = ArrayStore.open(tmp_path / "store", batches, 10)
    os.truncate(tmp_path / "store" / "values.npy", 200)
    with pytest.raises(DataError, match=r"values\.npy was cut off while it was in use\. Delete"):
        store.read([9], "values")


def test_a_large_store_closes_its_files(tmp_path, unmapped):
    store = ArrayStore.open(tmp_path / "store", batches, 10)
    descriptors = list(store._files.values())
    assert len(descriptors) == 2
    del store
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


# --- blocks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def blocks_of_two(monkeypatch):
    """Two rows of ``values`` share a checksum."""
    monkeypatch.setattr(filling, "_BLOCK_BYTES", 40)


def flip_in_row(folder: Path, row: int) -> None:
    """Flip a bit of a row of ``values``."""
    raw = bytearray((folder / "values.npy").read_bytes())
    raw[len(raw) - VALUES.nbytes + 16 * row] ^= 1
    (folder / "values.npy").write_bytes(raw)


@pytest.mark.parametrize("large", [False, True])
def test_a_block_is_compared_when_it_is_first_read(tmp_path, another_process, blocks_of_two, request, large):
    if large:
        request.getfixturevalue("unmapped")
    folder = tmp_path / "store"
    ArrayStore.open(folder, batches, 10)
    flip_in_row(folder, 5)
    another_process()
    store = ArrayStore.open(folder, batches, 10)
    for row in (0, 1, 2, 3, 6, 7, 8, 9):
        np.testing.assert_array_equal(store.read([row], "values")["values"], VALUES[[row]])
    with pytest.warns(
        UserWarning, match=r"store is damaged \(values\.npy does not match its checksum\); computing it again"
    ):
        found = store.read([4], "values")["values"]
    np.testing.assert_array_equal(found, VALUES[[4]])
    assert_whole(store)
    assert_whole(ArrayStore.open(folder, nothing, 10))


def test_a_block_is_compared_once_in_a_process(tmp_path, another_process, blocks_of_two, unmapped):
    folder = tmp_path / "store"
    ArrayStore.open(folder, batches, 10)
    another_process()
    first = ArrayStore.open(folder, nothing, 10)
    first.read([4], "values")
    flip_in_row(folder, 5)
    other = ArrayStore.open(folder, nothing, 10)
    assert other.read([5], "values")["values"][0, 0, 0] != VALUES[5, 0, 0]


def test_a_slice_compares_all_its_blocks(tmp_path, another_process, blocks_of_two):
    folder = tmp_path / "store"
    ArrayStore.open(folder, batches, 10)
    flip_in_row(folder, 9)
    another_process()
    store = ArrayStore.open(folder, batches, 10)
    np.testing.assert_array_equal(store.read_slice("values", 2, 8), VALUES[2:8])
    with pytest.warns(UserWarning, match="computing it again"):
        np.testing.assert_array_equal(store.read_all("values"), VALUES)


def test_a_pickled_store_that_is_damaged_is_an_error(tmp_path, blocks_of_two):
    store = pickle.loads(pickle.dumps(ArrayStore.open(tmp_path / "store", batches, 10)))
    flip_in_row(tmp_path / "store", 3)
    with pytest.raises(DamagedStoreError, match=r"store is damaged \(values\.npy .*\)\. Start again"):
        store.read([2], "values")
    np.testing.assert_array_equal(store.read([4], "values")["values"], VALUES[[4]])


def test_what_is_asked_of_a_found_store_may_find_damage(tmp_path, another_process, blocks_of_two):
    folder = tmp_path / "store"
    ArrayStore.open(folder, batches, 10)
    flip_in_row(folder, 3)
    another_process()
    with pytest.warns(UserWarning, match="damaged"):
        assert_whole(ArrayStore.open(folder, batches, 10, is_current=lambda store: bool(store.read([3], "values"))))


# --- ahead ------------------------------------------------------------------------------------------------------------


class Gate:
    """Batches of which all but the first wait until they are let through."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.opened, self.error = threading.Event(), error

    def __call__(self):
        given = batches()
        yield next(given)
        assert self.opened.wait(120)
        if self.error:
            raise self.error
        yield from given


needs_posix = pytest.mark.skipif(os.name != "posix", reason="all is written first here")


@needs_posix
@pytest.mark.parametrize("large", [False, True])
def test_a_store_is_read_while_a_thread_writes_it(tmp_path, another_process, request, large):
    if large:
        request.getfixturevalue("unmapped")
    gate, folder, found = Gate(), tmp_path / "store", []
    store = ArrayStore.open(folder, gate, 10, ahead=True)
    np.testing.assert_array_equal(store.read([3, 0], "values")["values"], VALUES[[3, 0]])
    assert not folder.exists()
    reader = threading.Thread(target=lambda: found.append(store.read([4], "values")["values"]))
    reader.start()
    reader.join(0.2)
    assert reader.is_alive()
    assert not found
    gate.opened.set()
    reader.join()
    np.testing.assert_array_equal(found[0], VALUES[[4]])
    assert_whole(store)
    store.wait_until_written()
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert_whole(store)
    assert_whole(ArrayStore.open(folder, nothing, 10, ahead=True))
    another_process()
    assert_whole(ArrayStore.open(folder, nothing, 10, ahead=True))


@needs_posix
@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (OSError(errno.ENOSPC, "No space"), DataError, "Cannot write the store .*No space"),
        (RuntimeError("broken"), RuntimeError, "broken"),
    ],
)
def test_rows_that_cannot_be_written_ahead_are_an_error_for_who_waits(tmp_path, error, expected, message):
    gate = Gate(error)
    store = ArrayStore.open(tmp_path / "store", gate, 10, ahead=True)
    gate.opened.set()
    for wait in (lambda: store.read([9], "values"), store.wait_until_written, lambda: pickle.dumps(store)):
        with pytest.raises(expected, match=message):
            wait()
    assert not list(tmp_path.iterdir())
    assert_whole(ArrayStore.open(tmp_path / "store", batches, 10, ahead=True))


@needs_posix
def test_an_error_before_the_first_row_is_raised_at_once(tmp_path):
    def broken():
        raise RuntimeError("at once")
        yield

    with pytest.raises(RuntimeError, match="at once"):
        ArrayStore.open(tmp_path / "store", broken, 10, ahead=True)
    assert not list(tmp_path.iterdir())


@needs_posix
def test_who_opens_or_pickles_a_store_that_is_being_written_waits(tmp_path):
    gate, folder = Gate(), tmp_path / "store"
    first = ArrayStore.open(folder, gate, 10, ahead=True)
    threading.Timer(0.2, gate.opened.set).start()
    assert_whole(ArrayStore.open(folder, nothing, 10))
    assert_whole(pickle.loads(pickle.dumps(first)))


@needs_posix
def test_a_store_that_nobody_holds_is_written_to_its_end(tmp_path):
    gate, folder = Gate(), tmp_path / "store"
    ArrayStore.open(folder, gate, 10, ahead=True)
    gate.opened.set()
    assert_whole(ArrayStore.open(folder, nothing, 10))


@needs_posix
def test_a_process_that_ends_early_leaves_nothing(tmp_path):
    code = f"""
import sys; sys.path[:0] = {sys.path!r}
from pathlib import Path
from test_array_store import VALUES, ArrayStore
def slowly():
    import time
    for row in range(1000):
        yield {{"values": VALUES[:1]}}
        time.sleep(0.01)
store = ArrayStore.open(Path({str(tmp_path / "store")!r}), slowly, 1000, ahead=True)
assert store.read([0], "values")["values"].tolist() == VALUES[:1].tolist()
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_does_not_wait_for_a_thread_that_it_lacks(tmp_path):
    gate = Gate()
    store = ArrayStore.open(tmp_path / "store", gate, 10, ahead=True)
    child = os.fork()
    if child == 0:  # no assertion may leave this process
        try:
            store.read([9], "values")
        except DataError as error:
            os._exit(0 if "not yet written" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    gate.opened.set()
    assert_whole(store)


UNEVEN = {
    "pixels": np.arange(1000, dtype=np.uint8),
    "labels": np.arange(12).reshape(4, 3),
    "names": np.array([b"one", b"three"]),
    "none": np.zeros((0, 2), np.int32),
}


def uneven():
    """Now this array, now that."""
    yield {"pixels": UNEVEN["pixels"][:700], "none": UNEVEN["none"]}
    yield {"labels": UNEVEN["labels"][:1], "names": UNEVEN["names"]}
    yield {"pixels": UNEVEN["pixels"][700:], "labels": UNEVEN["labels"][1:]}


@pytest.mark.parametrize("large", [False, True])
def test_without_a_length_every_array_has_its_own(tmp_path, another_process, request, large):
    if large:
        request.getfixturevalue("unmapped")
    first = ArrayStore.open(tmp_path / "store", uneven, None)
    another_process()
    second = ArrayStore.open(tmp_path / "store", nothing, None)
    for store in (first, second, pickle.loads(pickle.dumps(second))):
        for name, values in UNEVEN.items():
            whole = store.read_all(name)
            np.testing.assert_array_equal(whole, values)
            assert (whole.dtype, whole.flags.writeable) == (values.dtype, True)
        np.testing.assert_array_equal(store.read_slice("pixels", 650, 750), UNEVEN["pixels"][650:750])
        np.testing.assert_array_equal(store.read_slice("labels", 1, 3), UNEVEN["labels"][1:3])
        assert store.read_slice("pixels", 5, 5).shape == (0,)


def test_a_head_that_announces_fewer_rows_is_damage(tmp_path, another_process):
    ArrayStore.open(tmp_path / "store", uneven, None)
    path = tmp_path / "store" / "pixels.npy"
    path.write_bytes(path.read_bytes().replace(b"(1000,)", b"(100,) ", 1))
    another_process()
    with pytest.warns(UserWarning, match=r"pixels\.npy does not match its checksum"):
        ArrayStore.open(tmp_path / "store", uneven, None)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_reads_a_large_store_on_its_own(tmp_path, unmapped):
    store = ArrayStore.open(tmp_path / "store", batches, 10)
    child = os.fork()
    if child == 0:  # no assertion may leave this process
        same = all((store.read([i], "values")["values"] == VALUES[[i]]).all() for i in range(10))
        os._exit(0 if same else 1)
    for i in reversed(range(10)):
        np.testing.assert_array_equal(store.read([i], "values")["values"], VALUES[[i]])
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("name", ["values", "names"])
def test_a_flipped_bit_in_a_header_is_damage(tmp_path, another_process, name):
    ArrayStore.open(tmp_path / "store", batches, 10)
    path = tmp_path / "store" / f"{name}.npy"
    whole = path.read_bytes()
    for bit in range(0, 8 * 128, 3):
        path.write_bytes(bytes(byte ^ (1 << bit % 8 if i == bit // 8 else 0) for i, byte in enumerate(whole)))
        another_process()
        with pytest.warns(UserWarning, match=r"store is damaged"):
            assert_whole(ArrayStore.open(tmp_path / "store", batches, 10))


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES])
def test_a_store_that_cannot_be_read_is_not_called_damaged(tmp_path, another_process, monkeypatch, code):
    ArrayStore.open(tmp_path / "store", batches, 10)
    another_process()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(np, "load", refuse)
        with pytest.raises(DataError, match=f"Cannot read the store .*, which may be whole: .*{os.strerror(code)}"):
            ArrayStore.open(tmp_path / "store", nothing, 10)
    assert_whole(ArrayStore.open(tmp_path / "store", nothing, 10))


@pytest.mark.skipif(os.name == "nt", reason="modes are those of POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_others_may_read_a_store_if_the_umask_lets_them(tmp_path, mask):
    before = os.umask(mask)
    try:
        ArrayStore.open(tmp_path / "store", batches, 10)
    finally:
        os.umask(before)
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o777 & ~mask
    assert (tmp_path / "store" / "values.npy").stat().st_mode & 0o777 == 0o666 & ~mask
