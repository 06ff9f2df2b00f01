"""Whatever bit of a file is damaged, its reader says so, or reads the same."""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import REPRODUCE, Command
from PIL import Image
from traces import MetaStep, trace_of

from agents.reports import runs
from agents.reports.metrics_file import read_metrics, write_metrics
from hsal_env.data import glyphs
from hsal_env.data.pixels import read_image
from hsal_env.errors import CheckpointError, DataError
from hsal_env.multiset import SCORES
from hsal_env.perception.map_files import _load, _load_picture
from hsal_env.perception.resnet import ResNet18
from hsal_env.storage.checksums import BlockChecksums
from hsal_env.trace import load, save

NOISE = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)


def damaged(path: Path, every: int) -> Iterator[str]:
    """Damage ``path`` in one place after the other, and name it."""
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), every):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        yield f"bit {bit}"
    for length in range(0, len(whole), max(1, len(whole) // 50)):
        path.write_bytes(whole[:length])
        yield f"the first {length} bytes"
    path.write_bytes(whole)


def read_or_refused(read: Callable[[], Any], said: str) -> Any:
    """What ``read`` returns. None: it was refused with ``said``."""
    try:
        return read()
    except DataError as error:
        message = str(error)
    assert re.search(said, message)
    return None


# --- MNIST ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def plain(mnist_root: str, tmp_path: Path) -> Path:
    """A file of MNIST without gzip, and so without a checksum."""
    path = tmp_path / "t10k-labels-idx1-ubyte"
    found = next(Path(mnist_root).rglob(f"{path.name}*"))
    path.write_bytes(gzip.decompress(found.read_bytes()) if found.suffix == ".gz" else found.read_bytes())
    return path


def test_a_damaged_file_of_mnist_is_refused_without_gzip_too(plain: Path):
    assert glyphs.read_idx(plain).shape == (10_000,)
    for place in damaged(plain, 997):
        assert read_or_refused(lambda: glyphs.read_idx(plain), rf"{plain.name}: .*[Ff]etch.* again") is None, place


def test_the_checksums_of_all_four_files_are_known(mnist_root: str, tmp_path: Path):
    for found in Path(mnist_root).rglob("*ubyte*"):
        path = tmp_path / found.name.removesuffix(".gz")
        path.write_bytes(gzip.decompress(found.read_bytes()) if found.suffix == ".gz" else found.read_bytes())
        assert path.stat().st_size in glyphs._PLAIN_CHECKSUMS
        assert len(glyphs.read_idx(path))


# --- images, maps and traces ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [read_image, _load_picture], ids=["image", "map"])
def test_a_damaged_png_is_refused(read, tmp_path: Path):
    path = tmp_path / "a.png"
    Image.fromarray(NOISE if read is read_image else NOISE[..., 0]).save(path)
    before, same = read(path), 0
    for place in damaged(path, 5):
        if (pixels := read_or_refused(lambda: read(path), r"a\.png: ")) is not None:
            assert np.array_equal(pixels, before), place
            same += 1
    assert same < 5


def test_a_header_that_announces_less_than_the_file_of_maps_holds_is_refused(tmp_path: Path):
    path = tmp_path / "maps.npy"
    np.save(path, np.ones((4, 7, 7), np.float32))
    whole = path.read_bytes()
    for old, new in ((b"(4, 7, 7)", b"(4, 7, 6)"), (b"<f4", b"<f2")):
        assert old in whole
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(DataError, match=r"maps\.npy: its header announces .*less than the file holds"):
            _load(path)


def test_a_damaged_file_of_traces_is_refused(tmp_path: Path):
    path = tmp_path / "a.npz"
    save([trace_of([MetaStep((3, 4), 2), MetaStep((5, 6), 10)], [2])], path)
    (before,) = load(path)
    for place in damaged(path, 211):
        for trace in read_or_refused(lambda: load(path), r"a\.npz") or ():
            for name, value in before._asdict().items():
                np.testing.assert_equal(getattr(trace, name), value, err_msg=place)


@pytest.mark.slow
def test_damaged_weights_of_ones_own_are_refused(tmp_path: Path):
    path = tmp_path / "own.pth"
    torch.save(ResNet18().state_dict(), path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 64]) + whole[middle + 1 :])
    with pytest.raises(
        CheckpointError, match=r"own\.pth: the weights of resnet18 cannot be read .*does not match its checksum"
    ):
        ResNet18.published(path=path)


# --- results ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run, in short."""
    folder = tmp_path / "mnist-set" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "progress.csv").write_text("update,reward/label\n20,0.25\n40,0.75\n")
    test = {**dict.fromkeys(SCORES, 0.75), "by_count": {"1": {"exact_match": 0.5, "episodes": 10}}}
    write_metrics(folder / "metrics.json", {"source": "mnist", "test": test, "config": {"seed": 0, "sizes": (1, 2)}})
    return folder


@pytest.mark.parametrize("name", ["metrics.json", "progress.csv"])
def test_damaged_results_are_refused(folder: Path, name: str):
    before = runs.read(folder)
    assert before.metrics["config"]["sizes"] == [1, 2]
    assert set(before.metrics) == {"source", "test", "config"}
    for place in damaged(folder / name, 7):
        found = read_or_refused(lambda: runs.read(folder), f"{name} is damaged")
        if found:
            extra = {key for key in found.metrics if "check" not in key and key not in before.metrics}
            assert len(extra) <= 1, place  # the name of a checksum was hit: the rest is whole
            assert {key: found.metrics[key] for key in before.metrics} == before.metrics, place
            assert found.progress == before.progress, place


def test_results_of_version_0_2_have_no_checksums_and_are_read(folder: Path):
    path = folder / "metrics.json"
    content = json.loads(path.read_text())
    del content["checksum"], content["progress_checksum"]
    path.write_text(json.dumps(content))
    assert runs.read(folder).metrics == content
    assert read_metrics(path) == (content, None)


def test_damaged_results_are_not_copied(folder: Path, command: Command, tmp_path: Path):
    path = folder / "metrics.json"
    path.write_text(path.read_text().replace("0.75", "0.95", 1))
    command.fails(
        REPRODUCE,
        f"mnist-set --seeds 0 --runs-dir {tmp_path}",
        "metrics.json is damaged",
        "does not match its checksum",
    )


@pytest.mark.parametrize("block_bytes", [1, 7, 64, 1000])
def test_every_block_of_a_stream_has_its_checksum_however_the_stream_comes(block_bytes: int):
    content, rng = NOISE.tobytes(), np.random.default_rng(1)
    cuts = np.sort(rng.integers(0, len(content), 9)).tolist()
    sums = BlockChecksums(block_bytes)
    for start, stop in zip([0, *cuts], [*cuts, len(content)], strict=True):
        sums.add(memoryview(content)[start:stop])
    blocks = [content[i : i + block_bytes] for i in range(0, len(content), block_bytes)]
    assert sums.values == [zlib.crc32(block) for block in blocks]
