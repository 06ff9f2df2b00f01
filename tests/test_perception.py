"""From pixels to volume and saliency: the models, how they are found, and the store that keeps their volumes."""

import errno
import math
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from agents import pretraining
from hsal_env import array_store
from hsal_env import functional as F
from hsal_env.array_store import ArrayStore
from hsal_env.config import EnvConfig
from hsal_env.data import torchvision_import
from hsal_env.errors import CheckpointError, ConfigError, DataError
from hsal_env.perception.activation import CompactResNet
from hsal_env.perception.examples import Examples, fingerprint, label_counts, to_images
from hsal_env.perception.grid import Grid
from hsal_env.perception.model_file import load_model, save_model
from hsal_env.perception.registry import ARCHITECTURES, WEIGHTS_FOLDER, activation_model, initial_model, saliency_model
from train import pretrain_perception

# --- activation and saliency models -----------------------------------------------------------------------------------


class Pool(nn.Module):
    """A third-party activation model: colour in, two channels on a 2x3 map out."""

    in_channels, channels = 3, 2
    value = 1.0

    def forward(self, images):
        pooled = nn.functional.adaptive_avg_pool2d(images.float(), (2, 3)) * self.value
        return torch.stack([pooled[:, 0], 2 * pooled[:, 2]], dim=1)


class NaNModel(Pool):
    value = float("nan")


class OverflowingModel(Pool):
    """Finite in single precision, not in the half precision that volumes are kept in."""

    value = 1e7


class FlatModel(Pool):
    def forward(self, images):
        return super().forward(images).flatten(1)


class Unnamed(nn.Module):
    channels = 3


class NoModule:
    in_channels, channels = 1, 1


class Brightness:
    """A saliency model that reads the images."""

    def __call__(self, images, volume):
        return nn.functional.adaptive_avg_pool2d(images.mean(dim=1), volume.shape[2:])


def examples(**config) -> Examples:
    return Examples(EnvConfig(**{"source": "digits", "num_examples": 4, **config}), progress=False)


COMPACT = ["compact", "compact-single", "compact-ten"]


@pytest.mark.parametrize("name", COMPACT)
def test_the_compact_model_maps_100_px_to_7x7_cells(name):
    model = activation_model(name)
    volume = model(torch.rand(2, 1, 100, 100))
    assert (model.in_channels, model.channels) == (1, 128)
    assert volume.shape == (2, 128, 7, 7)
    assert volume.min() == 0
    assert volume.max() > 0


@pytest.mark.parametrize("name", COMPACT)
def test_the_compact_model_is_fixed(name):
    model = activation_model(name)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model is activation_model(name)


def test_a_compact_cell_sees_87_px_16_px_apart():
    torch.manual_seed(0)
    model = CompactResNet().eval()
    images = torch.rand(8, 1, 132, 132, requires_grad=True)  # 9 x 9 cells, of which the middle ones see no border

    def seen(row, col):
        """First row and column that the cell sees, and how many."""
        (gradient,) = torch.autograd.grad(model(images)[:, :, row, col].sum(), images)
        lit = gradient.abs().sum(dim=(0, 1)).nonzero()
        return lit.amin(dim=0), (lit.amax(dim=0) - lit.amin(dim=0) + 1).tolist()

    (first, extent), (next_first, next_extent) = seen(4, 4), seen(4, 5)
    assert extent == next_extent == [87, 87]
    assert (next_first - first).tolist() == [0, 16]


@pytest.mark.parametrize("name", COMPACT)
def test_the_bundled_saliency_peaks_at_the_object(name):
    """On test digits it never saw: the most salient cell's centre, 16 px apart from 2 px on, is in the object's box."""
    tested = examples(task="single", split="test", num_examples=200, activation=name)
    example, canvases = tested.load(np.arange(200))
    peak = example.raw_saliency.flatten(1).argmax(dim=1).numpy()
    centre = np.stack([peak // 7, peak % 7], axis=1) * 16 + 2
    corner, size = canvases.boxes[:, 0, :2], canvases.boxes[:, 0, 2:]
    inside = ((centre >= corner - 8) & (centre < corner + size + 8)).all(axis=1)
    assert inside.mean() > 0.97


def test_sum_of_squares_is_the_default_saliency():
    model, volume = saliency_model("sum-of-squares"), torch.randn(2, 3, 4, 5)
    assert not model.needs_images
    torch.testing.assert_close(model(None, volume), F.sum_of_squares(volume))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("missing", "No activation model at"),
        ("empty", "cut off, damaged"),
        ("cut off", "cut off, damaged"),
        ("garbage", "cut off, damaged"),
        ("a list", "expected an activation model written by"),
        ("plain weights", r"got \['bias', 'weight'\]"),
        ("unknown architecture", "holds a 'vgg'"),
        ("other weights", "do not fit the architecture 'compact'"),
        ("unknown argument", "do not fit the architecture 'compact'"),
        ("argument out of range", "Expected in_channels 1 or 3"),
    ],
)
def test_a_file_that_is_no_such_model_is_refused(tmp_path, damage, said):
    path, whole = tmp_path / "model.pt", (WEIGHTS_FOLDER / "compact.pt").read_bytes()
    content = torch.load(WEIGHTS_FOLDER / "compact.pt", weights_only=True)
    if damage in ("empty", "cut off", "garbage"):
        path.write_bytes({"empty": b"", "cut off": whole[: len(whole) // 2], "garbage": bytes(1000)}[damage])
    elif damage != "missing":
        torch.save(
            {
                "a list": [1, 2],
                "plain weights": nn.Linear(2, 2).state_dict(),
                "unknown architecture": content | {"architecture": "vgg"},
                "other weights": content | {"weights": nn.Linear(2, 2).state_dict()},
                "unknown argument": content | {"arguments": {"depth": 3}},
                "argument out of range": content | {"arguments": {"in_channels": 2}},
            }[damage],
            path,
        )
    with pytest.raises(CheckpointError, match=said) as caught:
        activation_model(str(path))
    assert str(path) in str(caught.value)


def test_a_model_file_is_an_activation_by_its_path(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, path = CompactResNet(3, output_stride=8), tmp_path / "own.pt"
    save_model(path, "compact", model)
    read = activation_model(str(path))
    assert (read.in_channels, read.stride_px, read.channels) == (3, 8, 128)
    assert not any(parameter.requires_grad for parameter in read.parameters())
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in read.state_dict().items())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert activation_model("~/own.pt").stride_px == 8
    observed = Examples(EnvConfig(source="digits", num_examples=1, activation=str(path))).load([0])[0]
    assert observed.volume.shape == (1, 128, 14, 14)


def test_a_failed_write_leaves_the_model_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "own.pt"
    save_model(path, "compact", CompactResNet())
    before = path.read_bytes()

    def full(content, to):
        Path(to).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"Cannot write .*own\.pt: No space left"):
        save_model(path, "compact", CompactResNet())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("init", "said"),
    [("missing.pt", "No activation model at missing"), ("compact-ten", "holds a 'compact'")],
)
def test_a_model_to_go_on_from_must_be_there_and_of_the_architecture(monkeypatch, init, said):
    monkeypatch.setitem(ARCHITECTURES, "other", CompactResNet)
    with pytest.raises(CheckpointError, match=said):
        initial_model("other", init)


def test_an_unknown_architecture_is_refused():
    with pytest.raises(ConfigError, match="Expected architecture to be one of compact"):
        initial_model("vgg")


def test_what_a_model_is_trained_from():
    class Published(CompactResNet):
        @classmethod
        def published(cls, **arguments):
            return f"published with {arguments}"

    scratch = initial_model("compact", in_channels=3, output_stride=None)
    assert scratch.arguments == {"in_channels": 3, "output_stride": 16, "lower_level": False}
    finer = initial_model("compact", "compact-ten", output_stride=4)
    bundled = activation_model("compact-ten").state_dict()
    assert finer.stride_px == 4
    assert all(torch.equal(weight, bundled[name]) for name, weight in finer.state_dict().items())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "compact", Published)
        assert initial_model("compact", in_channels=3) == "published with {'in_channels': 3}"
        assert isinstance(initial_model("compact", "scratch"), Published)


@pytest.mark.parametrize("stride", [8, 4])
def test_a_finer_map_holds_the_coarse_one(stride):
    """The same weights: at every 16 px, cells of the dilated network are those of the network itself."""
    coarse, step = activation_model("compact"), 16 // stride
    fine = load_model(WEIGHTS_FOLDER / "compact.pt", ARCHITECTURES, output_stride=stride).eval()
    images = torch.rand(2, 1, 112, 96)
    with torch.no_grad():
        torch.testing.assert_close(fine(images)[:, :, ::step, ::step], coarse(images), rtol=1e-4, atol=1e-4)
        assert fine(images[..., :100, :]).shape == (2, 128, 112 // stride, 96 // stride)
    grid = Grid.of(fine, (112, 96), (112 // stride, 96 // stride))
    assert grid.stride_px == (stride, stride)


def test_the_lower_level_columns_hold_what_lies_in_the_cell():
    model = load_model(WEIGHTS_FOLDER / "compact.pt", ARCHITECTURES, lower_level=True).eval()
    images = torch.rand(2, 1, 112, 112)
    with torch.no_grad():
        volume, top = model(images), activation_model("compact")(images)
        before = model.layers[:-1](images)  # [2, 96, 14, 14]
    assert (model.channels, model.saliency_channels) == (512, 128)
    torch.testing.assert_close(volume[:, :128], top)
    places = volume[:, 128:].view(2, 96, 2, 2, 7, 7)
    for row, col, i, j in [(0, 0, 0, 0), (3, 5, 1, 0), (6, 6, 1, 1)]:
        torch.testing.assert_close(places[:, :, i, j, row, col], before[:, :, 2 * row + i, 2 * col + j])


@pytest.mark.parametrize(
    "wrong", [{"in_channels": 2}, {"output_stride": 32}, {"output_stride": 8, "lower_level": True}]
)
def test_a_compact_network_that_cannot_be_built_is_refused(wrong):
    with pytest.raises(ConfigError, match="Expected in_channels 1 or 3"):
        CompactResNet(**wrong)


@pytest.mark.parametrize("name", COMPACT)
def test_a_registered_name_means_the_file_of_that_name(name):
    registered = activation_model(name).state_dict()
    read = load_model(WEIGHTS_FOLDER / f"{name}.pt", ARCHITECTURES).state_dict()
    assert all(torch.equal(registered[part], read[part]) for part in read)
    assert (WEIGHTS_FOLDER / f"{name}.json").is_file()  # where they came from


@pytest.mark.parametrize("find", [activation_model, saliency_model])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet1000", "Unknown (activation|saliency) model 'resnet1000'. Expected one of"),
        ("compact-multiset", "Expected one of"),
        ("", "Expected one of"),
        (":", "package.module:Name"),
        ("os.path:", "package.module:Name"),
        ("no_such_package.models:Model", "cannot be imported"),
        ("os.path:NoSuchModel", "cannot be imported"),
        ("os.path:dirname", "(activation|saliency)='os.path:dirname': expected a class or function that makes a model"),
        ("os.path:sep", "expected a class or function .*: 'str' object is not callable"),
    ],
)
def test_a_model_that_cannot_be_found_is_refused(find, name, message):
    with pytest.raises(ConfigError, match=message):
        find(name)


@pytest.mark.parametrize("name", ["Unnamed", "NoModule"])
def test_a_model_that_is_none_is_refused(name):
    with pytest.raises(ConfigError, match=r"expected an nn\.Module with the attributes in_channels and channels"):
        activation_model(f"{__name__}:{name}")


# --- examples ---------------------------------------------------------------------------------------------------------


def test_images_are_scaled_and_grey_is_repeated():
    images = to_images(np.array([[[0, 51], [102, 255]]], np.uint8), 3)
    torch.testing.assert_close(images, torch.tensor([[0.0, 0.2], [0.4, 1.0]]).expand(1, 3, 2, 2))


def test_a_third_partys_models_are_used():
    third = examples(activation=f"{__name__}:Pool", saliency=f"{__name__}:Brightness", num_examples=3)
    assert (third.channels, third.map_size) == (2, (2, 3))
    example, canvases = third.load([2, 0])
    grey = to_images(canvases.images, 1)
    expected = nn.functional.adaptive_avg_pool2d(grey, (2, 3))
    torch.testing.assert_close(example.volume, torch.cat([expected, 2 * expected], dim=1), rtol=2e-2, atol=1e-3)
    torch.testing.assert_close(example.raw_saliency, expected[:, 0])
    assert example.canvas_index.tolist() == [2, 0]


def test_examples_hold_the_canvases_labels_and_the_volumes_saliency():
    supply = examples()
    example, canvases = supply.load([3, 1])
    assert example.counts.dtype == torch.int64
    for counts, labels in zip(example.counts, canvases.labels, strict=True):
        assert [c for c in range(10) for _ in range(counts[c])] == sorted(labels[labels >= 0])
    torch.testing.assert_close(example.raw_saliency, F.sum_of_squares(example.volume))
    np.testing.assert_array_equal(canvases.images, supply.compose(np.array([3, 1])).images)


def test_an_example_does_not_depend_on_its_batch():
    supply = examples()
    together = supply.load(range(4))[0]
    for lane in range(4):
        for part, alone in zip(together, supply.load([lane])[0], strict=True):
            assert torch.equal(part[lane], alone[0])


@pytest.mark.parametrize("indices", [[-1], [0, 4]])
def test_an_index_outside_the_split_is_refused(indices):
    with pytest.raises(DataError, match=r"in 0\.\.3; got"):
        examples().load(indices)


@pytest.mark.parametrize(
    ("name", "words"), [("NaNModel", "NaN or infinity"), ("OverflowingModel", ""), ("FlatModel", "")]
)
def test_a_volume_that_is_none_is_refused(name, words):
    with pytest.raises(DataError, match=f"expected a finite volume.*{words}"):
        examples(activation=f"{__name__}:{name}")


@pytest.mark.parametrize("wrong", [np.zeros((1, 100, 100)), np.zeros((100, 100), np.uint8)])
def test_images_that_are_none_are_refused(wrong):
    with pytest.raises(DataError, match="Expected images uint8"):
        examples().encode(wrong)


def test_label_counts_by_hand():
    counts = label_counts(np.array([[3, 3, -1], [0, 9, 3], [-1, -1, -1]]))
    assert counts.tolist() == [[0, 0, 0, 2, *[0] * 6], [1, 0, 0, 1, *[0] * 5, 1], [0] * 10]


@pytest.mark.parametrize("label", [-2, 10])
def test_other_labels_are_refused(label):
    with pytest.raises(DataError, match=r"labels in 0\.\.9, or -1"):
        label_counts(np.array([[0, label]]))


def test_a_fingerprint_tells_texts_arrays_and_weights_apart():
    torch.manual_seed(0)
    parts = ["a", "b", np.zeros(3), np.ones(3), nn.Linear(2, 2), nn.Linear(2, 2)]
    assert len({fingerprint(part) for part in parts}) == len(parts)
    assert fingerprint(*parts) == fingerprint(*parts)


# --- the feature store ------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HSAL_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def another_process(monkeypatch):
    """Forget, as another process would, which stores were checked."""
    return lambda: monkeypatch.setattr(array_store, "_checked", set())


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


def test_stored_examples_are_the_lazy_ones_up_to_rounding(fresh_cache):
    config = {"num_examples": 70, "split": "val"}  # more than one batch
    stored, lazy = examples(features="store", **config), examples(**config)
    assert (stored.channels, stored.map_size) == (lazy.channels, lazy.map_size)
    indices = np.array([69, 0, 64, 64])
    (kept, no_canvases), (computed, _) = stored.load(indices), lazy.load(indices)
    assert no_canvases is None
    torch.testing.assert_close(kept.volume, computed.volume, rtol=0.05, atol=0.05)  # bfloat16: three digits at most
    torch.testing.assert_close(kept.raw_saliency, F.sum_of_squares(kept.volume))
    assert torch.equal(kept.counts, computed.counts)
    assert torch.equal(kept.canvas_index, computed.canvas_index)
    assert kept.volume.dtype == computed.volume.dtype == torch.float32


def test_a_second_reader_computes_nothing(fresh_cache, another_process, monkeypatch):
    first = examples(features="store").load([2])[0]
    another_process()
    monkeypatch.setattr(Examples, "encode", lambda *_: nothing())
    second = examples(features="store").load([2])[0]
    assert torch.equal(first.volume, second.volume)


def test_other_examples_have_another_store(fresh_cache):
    changes = [
        {},
        {"seed": 1},
        {"split": "test"},
        {"num_examples": 5},
        {"clutter": 7},
        {"activation": f"{__name__}:Pool"},
    ]
    for change in changes:
        examples(features="store", **change)
    assert len(list((fresh_cache / "features").iterdir())) == len(changes)


def test_a_store_is_shared_where_only_the_dynamics_differ(fresh_cache):
    for change in [{}, {"glimpses": 3}, {"protocol": "teacher"}, {"saliency": f"{__name__}:Brightness"}]:
        examples(features="store", **change)
    assert len(list((fresh_cache / "features").iterdir())) == 1


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
    with pytest.warns(UserWarning, match="expected 10 examples, it holds 4"):
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
from test_perception import batches, ArrayStore
def killed():
    yield next(batches())
    os._exit(9)
ArrayStore.open(Path({str(tmp_path / "store")!r}), killed, 10)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert not (tmp_path / "store").exists()
    assert_whole(ArrayStore.open(tmp_path / "store", batches, 10))


def test_of_two_concurrent_writers_both_get_the_store(tmp_path):
    barrier, stores, errors = threading.Barrier(2, timeout=30), [], []

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
    with pytest.raises(DataError, match=r"values\.npy was cut off while it was in use; delete"):
        store.read([9], "values")


def test_a_large_store_closes_its_files(tmp_path, unmapped):
    store = ArrayStore.open(tmp_path / "store", batches, 10)
    descriptors = list(store._files.values())
    assert len(descriptors) == 2
    del store
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


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


# --- pretraining ------------------------------------------------------------------------------------------------------


def cells(*of: tuple[float, int | None], classes: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """One image in a row of cells: each has a saliency and a class, certain, or None: all classes alike."""
    probabilities = [[1 / classes] * classes if c is None else [float(i == c) for i in range(classes)] for _, c in of]
    return torch.tensor([[[height for height, _ in of]]]), torch.tensor([[probabilities]]).log()


def counted(image: tuple[torch.Tensor, torch.Tensor], counts: list[int], sharp_coef: float = 0.0) -> float:
    return pretraining.counting_loss(*image, torch.tensor([counts]).float(), sharp_coef).item()


def test_expected_counts_by_hand():
    probabilities = torch.tensor([[[[0.75, 0.25], [0.0, 1.0]]], [[[0.5, 0.5], [1.0, 0.0]]]])
    saliency = torch.tensor([[[1.0, 0.5]], [[2.0, 0.0]]])
    expected = torch.tensor([[0.75, 0.75], [1.0, 1.0]])
    torch.testing.assert_close(pretraining.expected_counts(saliency, probabilities.log()), expected)


@pytest.mark.parametrize(
    ("image", "counts", "loss"),
    [
        (cells((1.0, 0)), [1, 0], 1 - math.log(1.001)),
        (cells((1.0, 0), (0.0, 1)), [1, 0], 1 - math.log(1.001)),
        (cells((1.0, 1)), [1, 0], 1 - math.log(0.001)),  # another class
        (cells((1.0, None)), [1, 0], 0.5 - math.log(0.501) + 0.5),  # an undecided one
        (cells((1.0, 0), (1.0, 1), (1.0, 0)), [2, 1], (3 - 2 * math.log(2.001) - math.log(1.001)) / math.sqrt(3)),
        (cells((0.0, 0)), [2, 2], -4 * math.log(0.001) / 2),  # nothing seen
    ],
)
def test_the_counting_loss_by_hand(image, counts, loss):
    assert counted(image, counts) == pytest.approx(loss, rel=1e-4)


def test_the_counting_loss_is_a_mean_over_images():
    (s, p), (t, q) = cells((1.0, 0), (0.25, 1)), cells((0.5, 0), (2.0, None))
    together = pretraining.counting_loss(
        torch.cat([s, t]), torch.cat([p, q]), torch.tensor([[1.0, 0.0], [2.0, 1.0]]), 0.3
    )
    assert together.item() == pytest.approx((counted((s, p), [1, 0], 0.3) + counted((t, q), [2, 1], 0.3)) / 2)


@pytest.mark.parametrize(("height", "count"), [(0.5, 1), (1.0, 1), (2.0, 1), (0.5, 4), (4.0, 4), (6.0, 4)])
def test_the_counting_loss_pulls_a_cell_towards_its_count(height, count):
    saliency, log_probs = cells((height, 0))
    saliency.requires_grad_()
    pretraining.counting_loss(saliency, log_probs, torch.tensor([[count, 0.0]]), 0.0).backward()
    slope = (1 - count / (height + 1e-3)) / math.sqrt(count)  # of (s - n log(s + 1e-3)) / sqrt(n)
    assert saliency.grad.item() == pytest.approx(slope, abs=1e-6)
    assert (slope < -0.1, abs(slope) < 2e-3, slope > 0.1) == (height < count, height == count, height > count)


def test_an_object_is_one_cell_of_height_one_and_not_two_of_a_half():
    one, two = cells((1.0, 0), (0.0, 0)), cells((0.5, 0), (0.5, 0))
    assert counted(one, [1, 0]) == counted(two, [1, 0])
    assert counted(two, [1, 0], 0.2) - counted(one, [1, 0], 0.2) == pytest.approx(0.2 * (0.25 + 0.25))


@pytest.mark.parametrize(("height", "penalty"), [(0.0, 0.0), (0.25, 0.1875), (1.0, 0.0), (1.5, 0.75), (2.0, 2.0)])
def test_the_sharp_penalty_by_hand(height, penalty):
    image = cells((height, 1))
    assert counted(image, [0, 1], 0.5) - counted(image, [0, 1]) == pytest.approx(penalty / 2, abs=1e-6)


def test_the_objective_finds_an_object():
    """From a flat map and no idea of the class, by gradient descent."""
    saliency, scores = torch.tensor([[[0.3, 0.4, 0.3]]]), torch.zeros(1, 1, 3, 2)
    for part in (saliency, scores):
        part.requires_grad_()
    optimiser = torch.optim.Adam([saliency, scores], lr=0.05)
    for _ in range(250):
        loss = pretraining.counting_loss(saliency.clamp(min=0), scores.log_softmax(-1), torch.tensor([[0.0, 1.0]]), 0.5)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    torch.testing.assert_close(saliency.detach().clamp(min=0), torch.tensor([[[0.0, 1.0, 0.0]]]), rtol=0, atol=0.05)
    assert scores[0, 0, 1].softmax(-1)[1] > 0.9


def test_a_warp_of_0_px_changes_nothing():
    images = torch.rand(3, 2, 100, 100)
    torch.testing.assert_close(pretraining.warped(images, 0.0), images, rtol=0, atol=1e-4)


def test_a_warp_displaces_by_a_normal_times_a_uniform_amplitude():
    """Of ramps, whose values say where a pixel came from: the middle one is a point of the 5x5 grid itself."""
    torch.manual_seed(0)
    lanes, warp_px = 4_000, 1.5
    ramp = torch.arange(21.0).expand(21, 21)
    images = torch.stack([ramp, ramp.T]).expand(lanes, -1, -1, -1)
    moved = pretraining.warped(images, warp_px)[:, :, 10, 10] - 10
    # E (N U)^2 = 1/3, E (N U)^4 = 3/5: five standard errors
    spread = math.sqrt((3 / 5 - 1 / 9) / lanes)
    assert (moved.square().mean(dim=0) / warp_px**2 - 1 / 3).abs().max() < 5 * spread
    assert moved.mean(dim=0).abs().max() < 5 * warp_px * math.sqrt(1 / 3 / lanes)
    assert (moved[:, 0] * moved[:, 1]).mean().abs() < 5 * warp_px**2 * math.sqrt(1 / 3 / lanes)  # x apart from y


def test_a_warp_is_smooth_and_of_each_image_its_own():
    torch.manual_seed(0)
    ramp = torch.arange(101.0).expand(2, 1, 101, 101)
    bent = pretraining.warped(ramp, 3.0)[:, 0, 30:71, 30:71] - ramp[:, 0, 30:71, 30:71]
    assert bent.abs().mean() > 0.2
    assert bent.diff(dim=1).square().mean() < bent.square().mean() / 20  # white noise: twice as much
    assert (bent[0] - bent[1]).abs().mean() > 0.2


class Scripted(nn.Module):
    """A pretrainer that answers for an image what its first pixel, in 1/255, says."""

    model, classes = SimpleNamespace(in_channels=1), 10

    def __init__(self, answers) -> None:
        super().__init__()
        self.answers, self.classifier = answers, nn.Linear(1, 1)

    def forward(self, images):
        assert not self.training
        chosen = [self.answers[round(float(image[0, 0, 0]) * 255)] for image in images]
        return torch.cat([saliency for saliency, _ in chosen]), torch.cat([log_probs for _, log_probs in chosen])


def test_accuracy_by_hand():
    answers = [
        cells((1.0, 3), (0.0, 5), (0.1, 5), classes=10),  # counts and peaks are right
        cells((0.5, 3), (0.5, 3), (0.0, 5), classes=10),  # the sum is right, the peaks are two
        cells((0.4, 3), (0.1, 5), (0.0, 5), classes=10),  # the peak is right, the sum rounds to none
        cells((1.0, 3), (0.6, 5), (0.0, 5), classes=10),  # one too many
        cells((1.0, 5), (0.0, 3), (0.0, 3), classes=10),  # another class
    ]
    images = np.arange(5, dtype=np.uint8)[:, None, None].repeat(2, axis=1).repeat(2, axis=2)
    labels = np.full((5, 1), 3)
    canvases = SimpleNamespace(compose=lambda chosen: SimpleNamespace(images=images[chosen], labels=labels[chosen]))
    canvases = SimpleNamespace(canvases=canvases, size=5)
    net = Scripted(answers)
    assert pretraining.accuracy(net, canvases) == {"counts": 0.4, "peaks": 0.4}
    assert pretraining.accuracy(net, canvases, 2) == {"counts": 1.0, "peaks": 0.5}
    assert net.training


@pytest.mark.parametrize(
    ("objects", "numbers"),
    [
        ("multiset", [(1, 4), (1, 9), (10, 10)]),
        ("ten", [(10, 10)]),
        ("crowded", [(10, 10)] * 2),
        ("single", [(1, 1)] * 3),
        ("house-numbers", [(1, 5)]),
        ("long-house-numbers", [(1, 5), (4, 5)]),
    ],
)
def test_what_is_learned_from_has_as_many_objects_as_it_says(objects, numbers):
    args = pretrain_perception.Args(objects=objects)
    looks = pretrain_perception.LOOKS[objects]
    for look, (least, most) in zip(looks, numbers, strict=True):
        *_, supply = pretrain_perception.supplies(args, "train", 0).values()  # digits, where there are two sources
        config = supply[look].config
        labels = config.canvases.compose(range(100)).labels
        found = (labels >= 0).sum(axis=1)
        assert (found.min(), found.max()) == (least, most)
    assert sum(share for _, share in looks.values()) == pytest.approx(1)


@pytest.mark.parametrize("objects", ["multiset", "house-numbers", "long-house-numbers"])
def test_what_is_learned_from_has_the_side_it_says(objects):
    args = pretrain_perception.Args(objects=objects, canvas_px=112)
    for looks in pretrain_perception.supplies(args, "val", 0).values():
        assert {supply.config.image_shape[:2] for supply in looks.values()} == {(112, 112)}


def test_what_is_learned_from_is_laid_out_otherwise_than_the_environments_canvases():
    supplies = pretrain_perception.supplies(pretrain_perception.Args(), "train", seed=0)
    ours = supplies["digits"]["plain"].config.canvases.compose(range(4))
    theirs = examples().compose(np.arange(4))
    assert ours.boxes.shape == theirs.boxes.shape
    assert (ours.boxes != theirs.boxes).any(axis=(1, 2)).all()


@pytest.mark.parametrize("lower_level", [False, True])
def test_the_pretrainer_reads_saliency_and_classes_off_the_volume(lower_level):
    torch.manual_seed(0)
    net = pretraining.Pretrainer(CompactResNet(lower_level=lower_level)).eval()
    images = torch.rand(2, 1, 100, 100)
    with torch.no_grad():
        saliency, log_probs = net(images)
        volume = net.model(images)[:, :128]
    torch.testing.assert_close(saliency, volume.square().mean(dim=1))
    scores = torch.einsum("bdij,cd->bijc", volume, net.classifier.weight) + net.classifier.bias
    torch.testing.assert_close(log_probs.exp(), scores.softmax(-1))
    torch.testing.assert_close(net.pooled(images), scores.mean(dim=(1, 2)))


def test_the_papers_objective_takes_one_of_the_labels_at_a_time():
    torch.manual_seed(0)
    scores, counts = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[1.0, 0.0, 3.0]])
    losses = -scores.log_softmax(dim=1)[0]
    drawn = torch.stack([pretraining.classification_loss(scores, counts) for _ in range(400)])
    assert set(drawn.unique().tolist()) == {losses[0].item(), losses[2].item()}
    assert (drawn == losses[2]).float().mean() == pytest.approx(0.75, abs=0.08)  # 3 of 4 labels


def test_labels_are_counted_right_under_the_papers_objective():
    class Pooled(Scripted):
        def pooled(self, images):
            return torch.stack([self.answers[round(float(image[0, 0, 0]) * 255)] for image in images])

    images = np.arange(4, dtype=np.uint8)[:, None, None].repeat(2, axis=1).repeat(2, axis=2)
    labels = np.array([[1, 2], [3, -1], [0, 0], [9, 8]])
    canvases = SimpleNamespace(compose=lambda chosen: SimpleNamespace(images=images[chosen], labels=labels[chosen]))
    net = Pooled(list(torch.eye(10)[[2, 3, 1, 9]]))
    config = SimpleNamespace(canvases=canvases, size=9)
    assert pretraining.accuracy(net, config, 4, "classify") == {"label": 0.75}


def test_batches_are_fresh_mixed_and_the_same_for_a_seed():
    one, two = EnvConfig(source="digits", task="single"), EnvConfig(source="digits", min_objects=4)
    supplies = [pretraining.Supply(one, 0.25), pretraining.Supply(two, 0.75)]

    def drawn(seed):
        return list(pretraining.batches(supplies, 40, 6, seed))

    (first, again), other = (drawn(0), drawn(0)), drawn(1)
    assert len(first) == 6
    for (images, counts), (images_again, counts_again) in zip(first, again, strict=True):
        np.testing.assert_array_equal(images, images_again)
        np.testing.assert_array_equal(counts, counts_again)
        assert counts.shape == (40, 10)
    singles = [int((counts.sum(axis=1) == 1).sum()) for _, counts in first]
    assert singles != [int((counts.sum(axis=1) == 1).sum()) for _, counts in other]
    assert sum(singles) / 240 == pytest.approx(0.25, abs=0.1)
    everything = np.concatenate([images for images, _ in first])
    assert len(np.unique(everything.reshape(240, -1), axis=0)) == 240
    np.testing.assert_array_equal(first[0][0][: singles[0]], one.canvases.compose(range(singles[0])).images)


def test_a_source_that_ends_is_gone_through_in_a_new_order_each_time():
    images = np.arange(5, dtype=np.uint8)[:, None, None].repeat(8, axis=1).repeat(8, axis=2)
    config = EnvConfig(source="custom", split="all", images=images, labels=[[i] for i in range(5)])
    met = np.concatenate(
        [images[:, 0, 0] for images, _ in pretraining.batches([pretraining.Supply(config, 1.0)], 4, 5, 0)]
    )
    rounds = met.reshape(4, 5)
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in rounds.tolist())
    assert len({tuple(order) for order in rounds.tolist()}) > 1


# --- torchvision ------------------------------------------------------------------------------------------------------


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


class NegativeSaliency:
    needs_images = False

    def __call__(self, images, volume):
        return -volume.square().sum(dim=1)


class FlatSaliency(NegativeSaliency):
    def __call__(self, images, volume):
        return volume.sum(dim=(1, 2, 3))


@pytest.mark.parametrize("name", ["NegativeSaliency", "FlatSaliency"])
def test_a_saliency_map_of_another_shape_or_range_is_refused(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "odd_saliency", sys.modules[__name__])
    examples = Examples(EnvConfig(source="digits", num_examples=2, saliency=f"odd_saliency:{name}"))
    with pytest.raises(DataError, match="saliency="):
        examples.load([0])
