"""Glyphs, canvases and scores: what is drawn, that it is drawn the same always, and every way a file can be wrong."""

import gzip
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hsal_env.data import CanvasBatch, CanvasConfig, Canvases, Glyphs, glyphs, load_glyphs
from hsal_env.data.resize import bilinear_resize, bilinear_weights
from hsal_env.data.sources import SOURCES, SourceName
from hsal_env.errors import ConfigError, DataError, DataUnavailableError
from hsal_env.fields import choices
from hsal_env.multiset import count_errors, most_frequent, scores

NAMES = [name for pair in glyphs._IDX_FILES.values() for name in pair]


@pytest.fixture(scope="module")
def digits() -> Glyphs:
    return load_glyphs("digits", "train")


def canvases(digits: Glyphs, seed: int = 0, stream: int = 0, **config) -> Canvases:
    return Canvases(digits, CanvasConfig(**config), seed, stream)


# --- canvases: the same always ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{}, {"task": "set"}, {"clutter": 0}, {"max_objects": 9, "max_size_px": 30}])
def test_a_canvas_is_the_same_alone_in_a_batch_and_in_any_order(digits, config):
    supply = canvases(digits, **config)
    in_a_row, shuffled = supply.compose(range(3, 11)), [9, 3, 3, 10, 5]
    out_of_order = supply.compose(shuffled)
    for place, index in enumerate(shuffled):
        alone = canvases(digits, **config).compose([index])
        for part, ordered, picked in zip(alone, in_a_row, out_of_order, strict=True):
            np.testing.assert_array_equal(part[0], ordered[index - 3])
            np.testing.assert_array_equal(part[0], picked[place])


def test_seed_and_stream_and_index_pick_the_canvas(digits):
    pictures = [canvases(digits, seed, stream).compose([index]).images for seed, stream, index in np.ndindex(2, 2, 3)]
    assert len({picture.tobytes() for picture in pictures}) == 12


def test_no_canvases_are_no_canvases(digits):
    assert canvases(digits).compose([]).images.shape == (0, 100, 100)


def test_a_negative_index_is_refused(digits):
    with pytest.raises(DataError, match="at least 0; got -1"):
        canvases(digits).compose([3, -1])


# --- canvases: the look of them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["digits", "mnist"])
def test_objects_lie_in_patches_of_the_largest_one(source, request):
    root = request.getfixturevalue("mnist_root") if source == "mnist" else None
    batch = canvases(load_glyphs(source, "val", root)).compose(range(400))
    assert batch.images.dtype == np.uint8
    assert (batch.labels.dtype, batch.boxes.dtype) == (np.int64, np.int64)
    for labels, boxes in zip(batch.labels, batch.boxes, strict=True):
        count = int((labels >= 0).sum())
        assert 1 <= count <= 4
        assert (labels[:count] < 10).all()
        assert (labels[count:] == -1).all()
        assert (boxes[count:] == -1).all()
        top, left, height, width = boxes[:count].T
        assert (height == width).all()
        assert ((height >= 20) & (height <= 50)).all()
        largest = height.max()
        patches = list(zip(top // largest, left // largest, strict=True))
        assert len(set(patches)) == count  # each its own
        assert (top // largest == (top + height - 1) // largest).all()
        assert (left // largest == (left + width - 1) // largest).all()
        assert max(top.max(), left.max()) // largest < 100 // largest


def test_sizes_and_offsets_take_all_their_values(digits):
    boxes = canvases(digits).compose(range(2000)).boxes.reshape(-1, 4)
    boxes = boxes[boxes[:, 0] >= 0]
    assert set(boxes[:, 2]) == set(range(20, 51))
    assert set(range(70)) <= set(boxes[:, 0])
    assert set(range(70)) <= set(boxes[:, 1])


def test_a_digit_lies_anywhere_in_its_patch(digits):
    """Up to its last row and column: of 20 and 21 px, those of 20 px have two places each way."""
    boxes = canvases(digits, min_size_px=20, max_size_px=21, min_objects=4).compose(range(200)).boxes
    largest = boxes[:, :, 2].max(axis=1)[:, None]
    small = boxes[:, :, 2] < largest
    offsets = (boxes[:, :, :2] % largest[:, :, None])[small]
    assert set(map(tuple, offsets.tolist())) == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_an_object_is_its_glyph_resized(digits):
    """Without clutter the picture is the glyphs in their boxes and black elsewhere."""
    supply = canvases(digits, clutter=0)
    for i in range(20):
        image, labels, boxes = (part[0] for part in supply.compose([i]))
        rest = image.copy()
        for label, (top, left, size, _) in zip(labels[labels >= 0], boxes, strict=False):
            window = image[top : top + size, left : left + size]
            candidates = bilinear_resize(digits.images[digits.labels == label], int(size))
            assert (candidates == window).all(axis=(1, 2)).any()
            rest[top : top + size, left : left + size] = 0
        assert not rest.any()


@pytest.fixture(scope="module")
def with_and_without_clutter(digits) -> tuple[CanvasBatch, CanvasBatch]:
    """The same hundred canvases of one object twice."""
    cluttered, plain = (canvases(digits, task="single", max_objects=1) for _ in range(2))
    plain._paste_clutter = lambda *_: None
    return plain.compose(range(100)), cluttered.compose(range(100))


def test_clutter_is_crops_in_cells_of_their_own(digits, with_and_without_clutter):
    """Outside the objects' ink, eight cells of 5 px at most are not black, and each of them is a crop of a glyph."""
    crops = np.lib.stride_tricks.sliding_window_view(digits.images, (5, 5), axis=(1, 2)).reshape(-1, 25)
    known = {crop.tobytes() for crop in np.unique(crops, axis=0)}
    whole_cells = 0
    plain, cluttered = with_and_without_clutter
    for before, after in zip(plain.images, cluttered.images, strict=True):
        assert (after[before > 0] == before[before > 0]).all()  # objects are put over clutter
        cells = (np.where(before > 0, 0, after).reshape(20, 5, 20, 5) > 0).any(axis=(1, 3))
        assert cells.sum() <= 8
        for row, col in np.argwhere(cells):
            area = np.s_[5 * row : 5 * row + 5, 5 * col : 5 * col + 5]
            if not before[area].any():
                assert after[area].tobytes() in known
                whole_cells += 1
    assert whole_cells > 300  # of 800; most of the others are crops of a glyph's black border


def test_crops_come_from_anywhere_in_a_glyph_and_go_to_any_cell():
    """Glyphs that are row + 1, or column + 1, tell by a crop's first pixel where it was cut."""
    row_of_pixel = np.broadcast_to(np.arange(1, 29, dtype=np.uint8)[:, None], (10, 28, 28))
    seen_cells = set()
    for images, axis in ((row_of_pixel, 0), (row_of_pixel.transpose(0, 2, 1), 1)):
        supply = canvases(Glyphs(images, np.arange(10), "digits"))
        supply._paste_objects = lambda *_: None
        cells = supply.compose(range(300)).images.reshape(300, 20, 5, 20, 5).transpose(0, 1, 3, 2, 4)
        taken = cells.any(axis=(3, 4))
        assert (taken.sum(axis=(1, 2)) == 8).all()
        first = cells[taken][:, 0, 0]
        assert (np.moveaxis(cells[taken], axis + 1, 2) == first[:, None, None] + np.arange(5)).all()
        assert_uniform(np.bincount(first - 1, minlength=24))
        seen_cells |= set(map(tuple, np.argwhere(taken)[:, 1:]))
    assert len(seen_cells) > 395  # of 400


def test_only_ink_is_pasted(with_and_without_clutter):
    """Where an object's box is black, clutter put before it shows through."""
    plain, cluttered = with_and_without_clutter
    shows = 0
    for (top, left, size, _), before, after in zip(plain.boxes[:, 0], plain.images, cluttered.images, strict=True):
        box = np.s_[top : top + size, left : left + size]
        shows += bool(((before[box] == 0) & (after[box] > 0)).any())
    assert shows > 10


def test_a_set_has_no_label_twice_and_a_multiset_has(digits):
    def repeats(task: str) -> int:
        labels = canvases(digits, task=task).compose(range(1000)).labels
        return sum(len(set(row[row >= 0])) < (row >= 0).sum() for row in labels)

    assert repeats("set") == 0
    # P(repeat) for 1..4 labels of ten: the mean of 0, 0.1, 0.28 and 0.496 is 0.219
    assert 160 < repeats("multiset") < 280


def test_a_full_set_holds_every_label(digits):
    supply = canvases(digits, task="set", min_objects=10, max_objects=10, max_size_px=20)
    assert (np.sort(supply.compose(range(20)).labels, axis=1) == np.arange(10)).all()


@pytest.mark.parametrize(
    ("config", "values"),
    [({}, range(1, 5)), ({"min_objects": 2, "max_objects": 3}, (2, 3)), ({"task": "single", "max_objects": 1}, (1,))],
)
def test_the_number_of_objects_is_uniform(digits, config, values):
    labels = canvases(digits, **config).compose(range(4000)).labels
    number, times = np.unique((labels >= 0).sum(axis=1), return_counts=True)
    assert number.tolist() == list(values)
    assert_uniform(times)


def test_labels_are_uniform(digits):
    labels = canvases(digits).compose(range(4000)).labels
    assert_uniform(np.bincount(labels[labels >= 0], minlength=10))


def assert_uniform(times: np.ndarray) -> None:
    """Chi-square, at a threshold that chance passes once in 10,000 (degrees of freedom: 1 to 23)."""
    expected = times.mean()
    assert ((times - expected) ** 2 / expected).sum() <= {1: 0, 2: 15.14, 4: 21.11, 10: 33.72, 24: 56.58}[len(times)]


def test_the_ten_object_variant(digits):
    config = {"min_objects": 10, "max_objects": 10, "min_size_px": 20, "max_size_px": 20}
    batch = canvases(digits, **config).compose(range(100))
    assert (batch.labels >= 0).all()
    assert (batch.boxes[:, :, 2:] == 20).all()
    corners = batch.boxes[:, :, :2]
    assert (corners % 20 == 0).all()
    assert all(len({tuple(corner) for corner in image}) == 10 for image in corners)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"task": "list"}, "task to be one of single, set, multiset; got 'list'"),
        ({"task": "single"}, "needs min_objects = max_objects = 1"),
        ({"min_objects": 0}, "1 <= min_objects <= max_objects; got 0 and 4"),
        ({"min_objects": 5}, "got 5 and 4"),
        ({"task": "set", "max_objects": 11, "max_size_px": 20}, "at most 10 different labels"),
        ({"min_size_px": 0}, "got 0, 50, 100"),
        ({"min_size_px": 51}, "got 51, 50, 100"),
        ({"canvas_px": 40}, "got 20, 50, 40"),
        ({"max_objects": 5}, "5 objects of up to 50 px do not fit a canvas of 100 px, which holds 4"),
        ({"canvas_px": 99}, "which holds 1"),
        ({"clutter": -1}, "clutter >= 0"),
        ({"clutter_px": 0}, "clutter_px in 1..28"),
        ({"clutter_px": 29}, "clutter_px in 1..28"),
        ({"clutter": 401}, "401 crops of 5 px do not fit"),
    ],
)
def test_an_impossible_canvas_is_refused(config, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        CanvasConfig(**config)


def test_a_full_canvas_is_possible(digits):
    batch = canvases(digits, max_objects=4, min_objects=4, min_size_px=50, clutter=400).compose([0])
    assert sorted(map(tuple, batch.boxes[0, :, :2])) == [(0, 0), (0, 50), (50, 0), (50, 50)]


@pytest.mark.parametrize("labels", [[*range(9)], [*range(11)]])
def test_glyphs_of_other_labels_are_refused(labels):
    images = np.zeros((len(labels), 28, 28), np.uint8)
    with pytest.raises(DataError, match=r"every label in 0\.\.9"):
        Canvases(Glyphs(images, np.array(labels), "digits"))


# --- resize -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out_px", [1, 7, 20, 28, 29, 50])
def test_resize_is_pillows_up_to_rounding(digits, out_px):
    resized = bilinear_resize(digits.images[:40], out_px)
    for image, ours in zip(digits.images, resized, strict=False):
        pillows = Image.fromarray(image).resize((out_px, out_px), Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(pillows, int) - ours).max() <= 1


def test_resize_is_the_same_alone_and_in_a_batch(digits):
    batch = bilinear_resize(digits.images[:50], 37)
    for image, resized in zip(digits.images, batch, strict=False):
        np.testing.assert_array_equal(bilinear_resize(image[None], 37)[0], resized)


def test_resize_by_hand():
    """2 to 4 px: centres at -1/4, 1/4, 3/4 and 5/4 of the old grid."""
    assert bilinear_weights(2, 4).tolist() == [[256, 0], [192, 64], [64, 192], [0, 256]]
    corner = np.array([[[0, 0], [0, 160]]], np.uint8)
    assert bilinear_resize(corner, 4)[0].tolist() == [
        [0, 0, 0, 0],
        [0, 10, 30, 40],
        [0, 30, 90, 120],
        [0, 40, 120, 160],
    ]


def test_resize_keeps_size_and_flat_areas():
    noise = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    np.testing.assert_array_equal(bilinear_resize(noise, 28), noise)
    for value in (0, 1, 254, 255):
        assert (bilinear_resize(np.full((1, 28, 28), value, np.uint8), 33) == value).all()


# --- glyph sources ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["digits", "mnist"])
def test_splits_share_no_glyph(source, request):
    root = request.getfixturevalue("mnist_root") if source == "mnist" else None
    parts = {split: load_glyphs(source, split, root) for split in ("train", "val", "test")}
    sizes = {"digits": (1197, 200, 400), "mnist": (55_000, 5_000, 10_000)}[source]
    assert tuple(len(part.labels) for part in parts.values()) == sizes
    pixels = {split: {image.tobytes() for image in part.images} for split, part in parts.items()}
    assert not pixels["val"] & (pixels["train"] | pixels["test"])
    assert not pixels["train"] & pixels["test"]
    for part in parts.values():
        assert part.source == source
        assert part.images.shape[1:] == (28, 28)
        assert (part.images.dtype, part.labels.dtype) == (np.uint8, np.int64)
        assert set(part.labels) == set(range(10))
        assert part.images.max() == 255
        assert not part.images.flags.writeable


def test_every_source_has_a_row_in_the_table():
    assert tuple(SOURCES) == choices(SourceName)


@pytest.mark.parametrize("source", ["digits", "mnist"])
def test_the_papers_policy_draws_every_split_from_all_training_glyphs(source, request):
    root = request.getfixturevalue("mnist_root") if source == "mnist" else None
    parts = [load_glyphs(source, split, root, policy="paper") for split in ("train", "val", "test")]
    disjoint = [load_glyphs(source, split, root) for split in ("train", "val")]
    for part in parts:
        np.testing.assert_array_equal(part.images, np.concatenate([other.images for other in disjoint]))
        np.testing.assert_array_equal(part.labels, np.concatenate([other.labels for other in disjoint]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cifar", "train"), "source to be one of auto, mnist, digits; got 'cifar'"),
        (("digits", "validation"), "split to be one of train, val, test; got 'validation'"),
        (("digits", "train", None, "leaky"), "glyphs to be one of disjoint, paper; got 'leaky'"),
    ],
)
def test_unknown_names_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        load_glyphs(*arguments)


def test_the_cache_folder(monkeypatch):
    monkeypatch.setenv("HSAL_CACHE", "~/mine")
    assert glyphs.cache_folder() == Path.home() / "mine"
    monkeypatch.delenv("HSAL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert glyphs.cache_folder() == Path("/somewhere/hsal")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert glyphs.cache_folder() == Path.home() / ".cache" / "hsal"


# --- MNIST's files ----------------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, suffix: str = "", **replaced: bytes) -> None:
    """A small MNIST: twelve glyphs a file, each with its own number in a corner. ``replaced`` by part and kind."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, names in glyphs._IDX_FILES.items():
        images = np.zeros((12, 28, 28), np.uint8)
        images[:, 0, 0] = np.arange(12) + (100 if part == "test" else 0)
        for kind, name, array in zip(("images", "labels"), names, (images, np.arange(12) % 10), strict=True):
            raw = replaced.get(f"{part}_{kind}", idx(array))
            (folder / (name + suffix)).write_bytes(gzip.compress(raw) if suffix else raw)


@pytest.fixture
def no_mnist(monkeypatch, tmp_path, cache):
    """A machine that knows of no MNIST and cannot download it."""

    def refuse(*_, **__):
        raise ConnectionError("no route to host")

    def forget():
        for cached in (glyphs.find_mnist, glyphs._mnist, glyphs._auto_source):
            cached.cache_clear()

    forget()
    monkeypatch.delenv("HSAL_DATA", raising=False)
    monkeypatch.setenv("HSAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("hsal_env.data.torchvision_import.import_torchvision", refuse)
    monkeypatch.setattr(glyphs, "_MNIST_VALIDATION", 2)
    yield
    forget()


@pytest.mark.parametrize("place", ["", "raw", "MNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("told_by", ["data_root", "HSAL_DATA", "HSAL_CACHE"])
def test_mnist_is_found(no_mnist, tmp_path, monkeypatch, place, suffix, told_by):
    write_mnist(tmp_path / "here" / place, suffix)
    if told_by != "data_root":
        monkeypatch.setenv(told_by, str(tmp_path / "here"))
    root = str(tmp_path / "here") if told_by == "data_root" else None
    for split, marks in (("train", range(10)), ("val", (10, 11)), ("test", range(100, 112))):
        part = load_glyphs("mnist", split, root)
        assert part.images[:, 0, 0].tolist() == list(marks)
        assert part.labels.tolist() == [mark % 100 % 10 for mark in marks]
        assert load_glyphs("auto", split, root).source == "mnist"


@pytest.mark.parametrize("place", ["", "MNIST", "mnist-dataset", "MNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("nested", [None, "idx", "dotted"])
def test_mnist_is_found_as_kaggle_lays_it_out(no_mnist, tmp_path, place, suffix, nested):
    """Files with a dot in their names, alone or each in a folder of its own name, which may be spelled otherwise."""
    folder = tmp_path / place
    write_mnist(folder, suffix)
    for name in NAMES:
        dotted = name.replace("-idx", ".idx")
        inner = folder / {None: ".", "idx": name, "dotted": dotted}[nested]
        file = (folder / (name + suffix)).rename(folder / "moved")
        inner.mkdir(exist_ok=True)
        file.rename(inner / (dotted + suffix if nested != "idx" else name + suffix))
    assert load_glyphs("mnist", "test", str(tmp_path)).images[:, 0, 0].tolist() == list(range(100, 112))


def test_the_message_says_where_was_looked_and_what_is_missing_there(no_mnist, tmp_path):
    write_mnist(tmp_path / "raw")
    (tmp_path / "raw" / NAMES[3]).unlink()
    with pytest.raises(DataUnavailableError) as caught:
        load_glyphs("mnist", "train", str(tmp_path))
    for inner in ("MNIST/raw", "MNIST", "mnist-dataset", f"raw (no {NAMES[3]})"):
        assert f"{tmp_path / inner}" in str(caught.value)
    assert str(tmp_path / "cache" / "raw") in str(caught.value)


def test_mnist_may_be_half_unpacked(no_mnist, tmp_path):
    write_mnist(tmp_path, ".gz")
    (tmp_path / NAMES[0]).write_bytes(gzip.decompress((tmp_path / f"{NAMES[0]}.gz").read_bytes()))
    (tmp_path / f"{NAMES[0]}.gz").unlink()
    assert len(load_glyphs("mnist", "train", str(tmp_path)).labels) == 10


def test_missing_mnist_says_what_was_tried_and_what_to_do(no_mnist, tmp_path):
    write_mnist(tmp_path / "part")
    (tmp_path / "part" / NAMES[3]).unlink()
    with pytest.raises(DataUnavailableError) as caught:
        load_glyphs("mnist", "train", str(tmp_path / "part"))
    for words in (str(tmp_path / "part"), str(tmp_path / "cache"), "no route to host", "HSAL_DATA", "source='digits'"):
        assert words in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)


def test_auto_falls_back_to_digits_with_exactly_one_warning(no_mnist):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parts = [load_glyphs("auto", split) for split in ("train", "val", "test", "train")]
    assert [part.source for part in parts] == ["digits"] * 4
    assert len(caught) == 1
    assert "scikit-learn's digits instead of MNIST" in str(caught[0].message)


def test_mnist_is_downloaded_to_the_first_root(no_mnist, tmp_path, monkeypatch):
    class Torchvision:
        class datasets:  # noqa: N801
            @staticmethod
            def MNIST(root, download):  # noqa: N802
                assert download
                assert not any((tmp_path / "new" / "MNIST" / "raw").iterdir())  # what is there, is whole
                write_mnist(Path(root) / "MNIST" / "raw")

    monkeypatch.setattr("hsal_env.data.torchvision_import.import_torchvision", lambda: Torchvision)
    assert glyphs.find_mnist(str(tmp_path / "new")) == tmp_path / "new" / "MNIST" / "raw"
    assert load_glyphs("auto", "test", str(tmp_path / "new")).source == "mnist"
    assert [path.name for path in (tmp_path / "new" / "MNIST").iterdir()] == ["raw"]


IMAGES = np.zeros((12, 28, 28), np.uint8)
HEADER = b"\x00\x00\x08"


@pytest.mark.parametrize("source", ["mnist", "auto"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("kind", "raw", "message"),
    [
        ("images", b"", "got a header of b''"),
        ("images", b"not an IDX file", "expected an IDX file of unsigned bytes"),
        ("images", b"\x00\x00\x0d\x01" + bytes(4), "expected an IDX file of unsigned bytes"),  # floats
        ("images", HEADER + b"\x03" + bytes(8), "expected an IDX file of unsigned bytes"),  # ends inside the header
        ("images", idx(IMAGES)[:-1], "announces (12, 28, 28), 9408 bytes; got 9407"),
        ("images", idx(IMAGES) + b"\0", "got 9409"),
        ("images", idx(IMAGES[:, 1:]), "expected images of 28x28, got shape (12, 27, 28)"),
        ("images", idx(IMAGES[0]), "expected images of 28x28, got shape (28, 28)"),
        ("images", HEADER + b"\x02" + b"\xff" * 8 + b"\0", "announces"),  # -1 x -1, if read as signed
        ("images", HEADER + b"\x04" + b"\x00\x01\x00\x00" * 4, "announces"),  # 65536**4, which is 0 in 64 bits
        ("labels", idx(np.zeros(11)), "expected 12 labels"),
        ("labels", idx(np.zeros((12, 1))), "expected 12 labels"),
        ("labels", idx(np.full(12, 10)), "labels in 0..9, got 10"),
    ],
    ids=range(13),
)
def test_a_damaged_file_is_an_error_and_never_passed_over(no_mnist, tmp_path, source, suffix, kind, raw, message):
    for split, part in (("train", "train"), ("val", "train"), ("test", "test")):
        write_mnist(tmp_path, suffix, **{f"{part}_{kind}": raw})
        with pytest.raises(DataError) as caught:
            load_glyphs(source, split, str(tmp_path))
        assert not isinstance(caught.value, DataUnavailableError)
        assert message in str(caught.value)
        assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("damage", [lambda raw: raw[:-20], lambda raw: raw[:30], lambda raw: b"x" + raw, lambda _: b""])
def test_a_damaged_gzip_is_an_error(no_mnist, tmp_path, damage):
    write_mnist(tmp_path, ".gz")
    path = tmp_path / f"{NAMES[0]}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"cannot be read|header"):
        load_glyphs("auto", "train", str(tmp_path))


def test_flipped_bits_in_a_gzip_are_an_error(no_mnist, tmp_path):
    write_mnist(tmp_path, ".gz")
    path = tmp_path / f"{NAMES[0]}.gz"
    for place in range(10, len(path.read_bytes()), 7):
        write_mnist(tmp_path, ".gz")
        raw = bytearray(path.read_bytes())
        raw[place] ^= 0x55
        path.write_bytes(bytes(raw))
        with pytest.raises(DataError):
            load_glyphs("auto", "train", str(tmp_path))


# --- scores -----------------------------------------------------------------------------------------------------------


def test_scores_by_hand():
    """Three images, three classes: {0 0 1} as {0 1}; {2} as {2}; {1} as {0 2}."""
    true = np.array([[2, 1, 0], [0, 0, 1], [0, 1, 0]])
    predicted = np.array([[1, 1, 0], [0, 0, 1], [1, 0, 1]])
    expected = {
        "exact_match": 1 / 3,
        "macro_f1": (2 * 1 / (2 + 2) + 2 * 1 / (1 + 2) + 2 * 1 / (2 + 1)) / 3,
        "micro_f1": 2 * 3 / (5 + 5),
        "overall_precision": 3 / 5,
        "overall_recall": 3 / 5,
        "example_f1": (4 / 5 + 1 + 0) / 3,
    }
    assert scores(predicted, true) == pytest.approx(expected)


def test_precision_and_recall_are_not_swapped():
    result = scores(np.array([[1, 0]]), np.array([[2, 2]]))
    assert (result["overall_precision"], result["overall_recall"]) == (1.0, 0.25)


def test_scores_at_their_ends():
    counts = np.eye(10, dtype=np.int64)
    assert set(scores(counts, counts).values()) == {1.0}
    assert set(scores(counts, np.roll(counts, 1, axis=0)).values()) == {0.0}


def test_nothing_predicted_of_nothing_is_right():
    nothing = np.zeros((1, 3), np.int64)
    result = scores(nothing, nothing)
    assert (result["exact_match"], result["macro_f1"], result["example_f1"]) == (1.0, 1.0, 1.0)


def test_a_class_that_occurs_nowhere_does_not_count():
    assert scores(np.array([[1, 1, 0]]), np.array([[1, 0, 0]]))["macro_f1"] == 0.5  # 1 and 0, not 1, 0 and 1


def test_errors_of_counts_by_hand():
    """Two images, three classes: {0 0 1} as {0 1 1 1}; {2} as {}."""
    true, predicted = np.array([[2, 1, 0], [0, 0, 1]]), np.array([[1, 3, 0], [0, 0, 0]])
    expected = {"count_error": {"mean": 2 / 3, "by_class": {"0": 0.5, "1": 1.0, "2": 0.5}}, "total_error": 1.0}
    assert count_errors(predicted, true) == expected
    assert count_errors(true, predicted) == expected
    assert list(count_errors(true, true, ("a", "b", "c"))["count_error"]["by_class"].items()) == [
        ("a", 0.0), ("b", 0.0), ("c", 0.0),
    ]  # fmt: skip


@pytest.mark.parametrize("measure", [scores, count_errors])
@pytest.mark.parametrize(
    ("predicted", "true", "message"),
    [
        (np.zeros((2, 3)), np.zeros((3, 3)), "got shapes"),
        (np.zeros(3), np.zeros(3), "got shapes"),
        (np.zeros((0, 3)), np.zeros((0, 3)), "N > 0"),
        (np.array([[-1, 2]]), np.array([[0, 1]]), "negative"),
        (np.array([[1, 2]]), np.array([[0, -1]]), "negative"),
    ],
)
def test_what_are_no_counts_are_refused(measure, predicted, true, message):
    with pytest.raises(DataError, match=message):
        measure(predicted, true)


def test_most_frequent_by_hand():
    assert most_frequent(np.array([[0, 1], [2, 0], [0, 1], [1, 1]])).tolist() == [0, 1]
