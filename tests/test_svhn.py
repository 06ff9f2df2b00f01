"""SVHN: crops, boxes and labels beside a slow reading of the same files, the cache, and every way the data can be wrong."""

import math
import pickle
import shutil
import sys
import tarfile
import threading
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from functools import cache, partial
from hashlib import md5
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
from PIL import Image
from svhn_files import random_part, write_digit_struct, write_part

from hsal_env.config import EnvConfig
from hsal_env.data import svhn
from hsal_env.data.digit_struct import read_digit_struct
from hsal_env.data.resize import bilinear_resize
from hsal_env.data.svhn import MOST_DIGITS, SVHN, find_svhn, grown
from hsal_env.errors import ConfigError, DataError, DataUnavailableError
from hsal_env.storage import array_store
from hsal_env.vector_env import HSALVectorEnv

NOISE = np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8)
PAIR = [(20, 40, 40, 20, 3), (20, 60, 40, 20, 10)]  # their common box grows by 6 px on each side


@pytest.fixture(autouse=True)
def a_machine_of_its_own(monkeypatch, tmp_path):
    """Nothing but what a test says is found, and its cache is empty."""
    monkeypatch.setenv("HSAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HSAL_DATA", raising=False)


@pytest.fixture(scope="module")
def sampled(svhn_root, tmp_path_factory) -> str:
    """The official lists, and of the photographs that are there 150 of each part, drawn at random."""
    root, rng = tmp_path_factory.mktemp("sample"), np.random.default_rng(0)
    for part in ("train", "test"):
        whole, folder = (Path(place) / "SVHN" / part for place in (svhn_root, root))
        folder.mkdir(parents=True)
        photographs = sorted(path.name for path in whole.glob("*.png"))
        for name in ["digitStruct.mat", *rng.choice(photographs, min(150, len(photographs)), replace=False)]:
            shutil.copyfile(whole / name, folder / name)
    return str(root)


@pytest.fixture
def svhn_sample(sampled, monkeypatch) -> str:
    """The same, and a cache where they are read once."""
    monkeypatch.setenv("HSAL_CACHE", f"{sampled}/cache")
    return sampled


@pytest.fixture
def offline(monkeypatch):
    def refuse():
        raise ConnectionError("no route to host")

    monkeypatch.setattr("hsal_env.data.torchvision_import.import_torchvision", refuse)


def numbers(tmp_path: Path, *pairs, part: str = "test", **arguments) -> SVHN:
    """The data set of some images with their digits."""
    write_part(tmp_path / "SVHN" / part, pairs)
    return SVHN(part, data_root=str(tmp_path), **arguments)


def objects(labels: np.ndarray, boxes: np.ndarray) -> list:
    """What stands in an image, sorted."""
    count = int((labels >= 0).sum())
    assert (labels[count:] == -1).all()
    assert (boxes[count:] == -1).all()
    return sorted((int(label), *box.tolist()) for label, box in zip(labels[:count], boxes[:count], strict=True))


# --- beside a slow reading --------------------------------------------------------------------------------------------


@cache
def slow_reading(folder: Path) -> dict[int, tuple[np.ndarray, list[tuple[int, int, int, int, int]]]]:
    """Image and (label, top, left, bottom, right) of its digits, as the web site describes the file.

    By the place of the entry; those whose image is not there are left out.
    """
    found = {}
    with h5py.File(folder / "digitStruct.mat", "r") as file:
        for place, (name, box) in enumerate(
            zip(file["digitStruct/name"][:, 0], file["digitStruct/bbox"][:, 0], strict=True)
        ):
            path = folder / "".join(chr(code) for code in file[name][:, 0])
            if not path.exists():
                continue
            image = np.array(Image.open(path))
            fields = {
                key: [file[v][0, 0] if isinstance(v, h5py.Reference) else v for v in data[:, 0]]
                for key, data in file[box].items()
            }
            digits = []
            for i, label in enumerate(fields["label"]):
                top, left = max(int(fields["top"][i]), 0), max(int(fields["left"][i]), 0)
                bottom = min(int(fields["top"][i] + fields["height"][i]), image.shape[0])
                right = min(int(fields["left"][i] + fields["width"][i]), image.shape[1])
                digits.append((0 if label == 10 else int(label), top, left, bottom, right))
            found[place] = image, digits
    return found


def slow_canvas(image: np.ndarray, digits: list, px: int) -> tuple[bytes, list]:
    """Crop by 15 % on each side, stretch, and measure the boxes there."""
    _, tops, lefts, bottoms, rights = zip(*digits, strict=True)
    ends = []
    for low, high, size in ((min(tops), max(bottoms), image.shape[0]), (min(lefts), max(rights), image.shape[1])):
        margin = Fraction(15, 100) * (high - low)
        ends.append((max(math.floor(low - margin), 0), min(math.ceil(high + margin), size)))
    (top, bottom), (left, right) = ends
    crop = image[top:bottom, left:right]
    stretched = np.stack([bilinear_resize(crop[None, :, :, channel], px)[0] for channel in range(3)], axis=2)
    down, across = Fraction(px, bottom - top), Fraction(px, right - left)
    boxes = []
    for label, first, start, last, stop in digits:
        row, col = math.floor((first - top) * down), math.floor((start - left) * across)
        end_row, end_col = math.ceil((last - top) * down), math.ceil((stop - left) * across)
        boxes.append((label, row, col, end_row - row, end_col - col))
    return stretched.tobytes(), sorted(boxes)


@pytest.mark.filterwarnings("ignore:.* listed in digitStruct.mat but not there")
@pytest.mark.parametrize("root", [pytest.param("svhn_sample", marks=pytest.mark.slow), "svhn_folder"])
@pytest.mark.parametrize("task", ["multiset", "single"])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_is_what_a_slow_reading_finds(request, root, task, split):
    root = request.getfixturevalue(root)
    read = slow_reading(Path(root) / "SVHN" / ("test" if split == "test" else "train"))
    entries = [entry for i, entry in read.items() if split == "test" or (i % 10 == 9) == (split == "val")]
    if task == "single":
        entries = [(image, [digit]) for image, digits in entries for digit in digits]
    expected = Counter(repr(slow_canvas(image, digits, 40)) for image, digits in entries)
    data = SVHN(split, task, 40, data_root=root, progress=False)
    batch = data.compose(range(len(data)))
    assert batch.images.shape == (len(data), 40, 40, 3)
    assert (batch.images.dtype, batch.labels.dtype, batch.boxes.dtype) == (np.uint8, np.int64, np.int64)
    assert batch.labels.shape == (len(data), 1 if task == "single" else 6)
    found = Counter(
        repr((image.tobytes(), objects(labels, boxes)))
        for image, labels, boxes in zip(batch.images, batch.labels, batch.boxes, strict=True)
    )
    assert found == expected


@pytest.mark.slow
def test_the_official_parts(svhn_root):
    """Of the whole data set or of its first images; whichever, all of the part for training can be used."""
    counts = []
    for part in ("train", "test"):
        names = [entry.name for entry in read_digit_struct(Path(svhn_root) / "SVHN" / part / "digitStruct.mat")]
        assert names == [f"{i + 1}.png" for i in range(len(names))]
        counts.append(len(names))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sizes = [len(SVHN(split, data_root=svhn_root, progress=False)) for split in ("train", "val")]
    assert sizes == [counts[0] - counts[0] // 10, counts[0] // 10]


# --- crops and boxes, worked by hand ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 2])
def test_a_number_is_its_common_box_grown_by_30_percent(tmp_path, scale):
    """20..60 and 40..80 grow by 6 px to 14..66 and 34..86, which is 52x52 px."""
    batch = numbers(tmp_path, (NOISE, PAIR), image_px=52 * scale).compose([0])
    if scale == 1:
        np.testing.assert_array_equal(batch.images[0], NOISE[14:66, 34:86])
    boxes = [(0, 6, 26, 40, 20), (3, 6, 6, 40, 20)]
    assert objects(batch.labels[0], batch.boxes[0]) == [(label, *(scale * v for v in box)) for label, *box in boxes]


def test_a_single_digit_is_its_own_box_grown_by_30_percent(tmp_path):
    """A digit of 40x20 px grows by 6 and 3 px: 52x26 px, of which it begins in row 6 and column 3."""
    data = numbers(tmp_path, (NOISE, PAIR), task="single", image_px=52)
    assert len(data) == 2
    batch = data.compose([0, 1])
    for image, (label,), box in zip(batch.images, batch.labels, batch.boxes, strict=True):
        left = {3: 37, 0: 57}[int(label)]
        crop = NOISE[14:66, left : left + 26]
        np.testing.assert_array_equal(image, np.moveaxis(bilinear_resize(np.moveaxis(crop, 2, 0), 52), 0, 2))
        assert box.tolist() == [[6, 6, 40, 40]]
    assert sorted(batch.labels.ravel()) == [0, 3]


@pytest.mark.parametrize(
    ("digit", "box", "window"),
    [
        ((-4, 10, 24, 10, 1), (0, 10, 20, 10), (0, 8, 23, 14)),  # cut off above: 20 px high, 1.5 px to the left
        ((90, 195, 30, 30, 1), (90, 195, 10, 5), (88, 194, 12, 6)),
        ((0, 0, 100, 200, 1), (0, 0, 100, 200), (0, 0, 100, 200)),
        ((10.5, 20.25, 9.5, 3, 1), (10, 20, 10, 4), (8, 19, 14, 6)),  # the whole px that it touches
    ],
)
def test_boxes_and_crops_end_with_the_image(tmp_path, digit, box, window):
    assert grown(np.array([box]), (100, 200)) == window
    data = numbers(tmp_path, (NOISE, [digit]))
    pixels, labels, boxes = data._crops[0].number(0)
    top, left, height, width = window
    np.testing.assert_array_equal(pixels, NOISE[top : top + height, left : left + width])
    assert labels.tolist() == [1]
    assert boxes.tolist() == [[box[0] - top, box[1] - left, *box[2:]]]


@pytest.mark.parametrize("px", [1, 7, 100])
def test_boxes_have_an_area_inside_the_image(svhn_folder, px):
    data = SVHN("train", image_px=px, data_root=svhn_folder)
    batch = data.compose(range(len(data)))
    boxes = batch.boxes[batch.labels >= 0]
    assert boxes.min(axis=0)[:2].min() >= 0
    assert boxes[:, 2:].min() >= 1
    assert (boxes[:, :2] + boxes[:, 2:]).max() <= px


def test_grey_files_are_repeated_over_the_channels(tmp_path):
    batch = numbers(tmp_path, (NOISE[..., 0], PAIR), image_px=52).compose([0])
    for channel in range(3):
        np.testing.assert_array_equal(batch.images[0, ..., channel], NOISE[14:66, 34:86, 0])


# --- the same always --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["multiset", "single"])
def test_a_canvas_is_the_same_alone_in_a_batch_and_in_any_order(svhn_folder, task):
    data = SVHN("train", task, 30, seed=3, data_root=svhn_folder)
    in_a_row, shuffled = data.compose(range(3, 11)), [9, 3, 3, 10, 5]
    out_of_order = data.compose(shuffled)
    pickled = pickle.loads(pickle.dumps(data))
    for place, index in enumerate(shuffled):
        for other in (SVHN("train", task, 30, seed=3, data_root=svhn_folder), pickled):
            for part, ordered, picked in zip(other.compose([index]), in_a_row, out_of_order, strict=True):
                np.testing.assert_array_equal(part[0], ordered[index - 3])
                np.testing.assert_array_equal(part[0], picked[place])


def test_no_canvases_are_no_canvases(svhn_folder):
    batch = SVHN("test", image_px=30, data_root=svhn_folder).compose([])
    assert [part.shape for part in batch] == [(0, 30, 30, 3), (0, 6), (0, 6, 4)]


def test_every_order_of_labels_occurs_and_boxes_keep_to_them(tmp_path):
    digits = [(20, 20 + 30 * i, 40, 20, label) for i, label in enumerate((7, 8, 9))]
    write_part(tmp_path / "SVHN" / "test", [(NOISE, digits)])
    orders = Counter()
    for seed in range(240):
        batch = SVHN("test", seed=seed, data_root=str(tmp_path)).compose([0])
        labels = batch.labels[0, :3].tolist()
        assert np.argsort(batch.boxes[0, :3, 1]).tolist() == np.argsort(labels).tolist()  # boxes from left to right
        orders[tuple(labels)] += 1
    assert len(orders) == 6
    assert min(orders.values()) > 20  # of 40 expected, with a deviation of 6


def test_orders_differ_from_image_to_image(tmp_path):
    data = numbers(tmp_path, *[(NOISE, PAIR)] * 40)
    assert {tuple(labels[:2]) for labels in data.compose(range(40)).labels.tolist()} == {(3, 0), (0, 3)}


# --- splits -----------------------------------------------------------------------------------------------------------


def pictures(data: SVHN) -> list[bytes]:
    return [image.tobytes() for image in data.compose(range(len(data))).images]


def test_splits_share_no_image_and_do_not_depend_on_the_seed(svhn_folder):
    splits = ("train", "val", "test")
    first, second = (
        [pictures(SVHN(split, image_px=30, seed=seed, data_root=svhn_folder)) for split in splits] for seed in (0, 1)
    )
    assert [len(images) for images in first] == [36, 4, 12]
    assert len(set().union(*first)) == 52
    for images, others in zip(first, second, strict=True):
        assert images != others
        assert sorted(images) == sorted(others)


def test_extra_is_added_to_training_alone(svhn_folder):
    plain, more = (
        {s: SVHN(s, image_px=30, data_root=svhn_folder, extra=extra) for s in ("train", "val", "test")}
        for extra in (False, True)
    )
    assert [len(data) for data in more.values()] == [36 + 15, 4, 12]
    assert set(pictures(plain["train"])) < set(pictures(more["train"]))
    assert pictures(plain["val"]) == pictures(more["val"])
    alone = slow_reading(Path(svhn_folder) / "SVHN" / "extra").values()
    assert {slow_canvas(*entry, 30)[0] for entry in alone} == set(pictures(more["train"])) - set(
        pictures(plain["train"])
    )
    digits = sum(
        len(places)
        for part in ("train", "extra")
        for _, places in slow_reading(Path(svhn_folder) / "SVHN" / part).values()
    )
    val = len(SVHN("val", "single", data_root=svhn_folder))
    assert len(SVHN("train", "single", data_root=svhn_folder, extra=True)) == digits - val


def test_an_image_that_is_left_out_moves_none_to_another_split(tmp_path):
    root = random_part(tmp_path / "SVHN" / "train", 30, 0)
    val = pictures(SVHN("val", data_root=str(tmp_path)))
    (root / "3.png").unlink()
    with pytest.warns(UserWarning, match="29 images are used"):
        assert sorted(pictures(SVHN("val", data_root=str(tmp_path)))) == sorted(val)


def test_too_few_images_for_a_split_are_an_error(tmp_path):
    write_part(tmp_path / "SVHN" / "train", [(NOISE, PAIR)])
    with pytest.raises(DataError, match="split 'val' is empty: 1 images"):
        SVHN("val", data_root=str(tmp_path))


@pytest.mark.parametrize("index", [-1, 12])
def test_there_are_no_other_indices(svhn_folder, index):
    with pytest.raises(DataError, match=rf"indices in 0\.\.11; got .*{index}"):
        SVHN("test", data_root=svhn_folder).compose([0, index])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"task": "set"}, "single, multiset with SVHN; got 'set'"), ({"image_px": 0}, "at least 1; got 0")],
)
def test_what_svhn_has_not_is_refused(svhn_folder, arguments, said):
    with pytest.raises(ConfigError, match=said):
        SVHN("test", data_root=svhn_folder, **arguments)


def test_content_is_what_decides_a_canvas(svhn_folder, tmp_path):
    contents = set()
    for arguments in ({}, {"seed": 1}, {"image_px": 50}, {"task": "single"}, {"split": "val"}, {"extra": True}):
        data = SVHN(**{"split": "train", "data_root": svhn_folder, **arguments})
        contents.add(repr([part if isinstance(part, str) else part.tobytes() for part in data.content]))
    assert len(contents) == 6
    shutil.copytree(svhn_folder, tmp_path / "copy")  # other names and times, the same data
    again, copied = (SVHN("test", data_root=root).content for root in (svhn_folder, str(tmp_path / "copy")))
    assert [np.array_equal(part, other) for part, other in zip(again, copied, strict=True)] == [True] * len(again)


# --- bad data ---------------------------------------------------------------------------------------------------------

BAD = {
    "with a label that is none of 1 to 10": [
        [(20, 40, 40, 20, 0)], [PAIR[0], (20, 60, 40, 20, 11)], [(20, 40, 40, 20, -1)], [(20, 40, 40, 20, 2.5)],
        [(20, 40, 40, 20, math.nan)], [(20, 40, 40, 20, 1e300)],
    ],
    "without a digit": [[]],
    "with a box of no area": [
        [(20, 40, 0, 20, 1)], [PAIR[0], (20, 40, 40, 0, 1)], [(20, 40, -3, 20, 1)], [(math.nan, 40, 40, 20, 1)],
        [(20, 40, math.inf, 20, 1)],
    ],
    "with a box outside the image": [
        [(100, 40, 40, 20, 1)], [PAIR[0], (20, 200, 40, 20, 1)], [(-40, 40, 40, 20, 1)], [(20, 1e300, 40, 20, 1)],
    ],
    "of more than 6 digits": [[(20, 10 + 20 * i, 40, 20, 1) for i in range(7)]],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "digits"), [(kind, digits) for kind, every in BAD.items() for digits in every])
def test_an_image_with_bad_digits_is_left_out(tmp_path, kind, digits):
    with pytest.warns(UserWarning, match=rf"1 images are used\. 1 are left out: 1 {kind} \(1\.png\)\."):
        data = numbers(tmp_path, (NOISE, digits), (NOISE, PAIR), image_px=52)
    np.testing.assert_array_equal(data.compose([0]).images[0], NOISE[14:66, 34:86])


def test_six_digits_are_taken(tmp_path):
    data = numbers(tmp_path, (NOISE, [(20, 10 + 20 * i, 40, 20, i + 1) for i in range(6)]))
    assert sorted(data.compose([0]).labels[0]) == [1, 2, 3, 4, 5, 6]


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


BROKEN = {
    "cut off": lambda path: cut(path, 0.5),
    "empty": lambda path: cut(path, 0),
    "garbage": lambda path: path.write_bytes(b"garbage" * 100),
    "a damaged byte": lambda path: path.write_bytes(path.read_bytes()[:200] + b"\xff" + path.read_bytes()[201:]),
    "transparent": lambda path: Image.fromarray(NOISE).convert("RGBA").save(path),
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN)
def test_a_broken_png_is_left_out(tmp_path, damage):
    root = write_part(tmp_path / "SVHN" / "test", [(NOISE, PAIR)] * 2)
    damage(root / "2.png")
    with pytest.warns(UserWarning, match=r"1 are left out: 1 not readable as PNG in grey or RGB \(2\.png\)"):
        assert len(SVHN("test", data_root=str(tmp_path))) == 1


def test_all_that_is_left_out_is_counted_in_one_warning(tmp_path):
    root = write_part(tmp_path / "SVHN" / "test", [(NOISE, PAIR)] * 8)
    bad = [every[0] for every in BAD.values()]
    entries = [(f"{i + 1}.png", digits) for i, digits in enumerate([PAIR, PAIR, *bad])]
    write_digit_struct(root / "digitStruct.mat", [*entries, ("1.png", PAIR), ("9.png", PAIR), ("../test/1.png", PAIR)])
    cut(root / "2.png", 0.5)
    for i in range(3):
        Image.fromarray(NOISE).save(root / f"more {i}.png")
    (root / "notes.txt").write_text("not an image")
    told = (
        "1 images are used. 13 are left out: 2 listed in digitStruct.mat but not there (9.png); 4 not listed in digitStruct.mat "
        "(8.png); 1 listed more than once (1.png); 1 not readable as PNG in grey or RGB (2.png); 1 without a digit (4.png); "
        "1 of more than 6 digits (7.png); 1 with a label that is none of 1 to 10 (3.png); 1 with a box of no area (5.png); "
        "1 with a box outside the image (6.png)."
    )
    for _ in range(2):  # the second time from the cache
        with pytest.warns(UserWarning, match="are used") as caught:
            data = SVHN("test", data_root=str(tmp_path))
        assert [str(warning.message) for warning in caught] == [f"{root}: {told}"]
        assert caught[0].filename == __file__
        assert len(data) == 1


def test_a_folder_without_a_usable_image_is_an_error(tmp_path):
    root = write_part(tmp_path / "SVHN" / "test", [(NOISE, PAIR)] * 3)
    for path in root.glob("*.png"):
        path.unlink()
    said = r"no image can be used\. 3 are left out: 3 listed in digitStruct\.mat but not there \(1\.png\)\. Download the archive"
    with pytest.raises(DataError, match=said):
        SVHN("test", data_root=str(tmp_path))
    write_digit_struct(root / "digitStruct.mat", [])
    with pytest.raises(DataError, match=r"no image can be used\. It lists none\. Download"):
        SVHN("test", data_root=str(tmp_path))
    assert not any((tmp_path / "cache" / "svhn").iterdir())


# --- digitStruct.mat --------------------------------------------------------------------------------------------------


def changed(change) -> object:
    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return damage


def without(name: str):
    def change(file: h5py.File) -> None:
        del file[name]

    return changed(change)


def replaced(name: str, value) -> object:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = value(file) if callable(value) else value

    return changed(change)


def first_box(field: str, value) -> object:
    """Another ``field`` of the first image, which has two digits."""

    def change(file: h5py.File) -> None:
        group = file[file["digitStruct/bbox"][0, 0]]
        kept = group[field][()]
        del group[field]
        if value is not None:
            group[field] = value(file, kept)

    return changed(change)


def references(*items) -> np.ndarray:
    return np.array(items, h5py.ref_dtype).reshape(-1, 1)


DAMAGES = {
    "empty": lambda path: cut(path, 0),
    "cut off": lambda path: cut(path, 0.9),
    "cut off early": lambda path: cut(path, 0.1),
    "of MATLAB 5": lambda path: path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(4096, b" ")),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "no digitStruct": without("digitStruct"),
    "no names": without("digitStruct/name"),
    "no boxes": without("digitStruct/bbox"),
    "a name too many": replaced(
        "digitStruct/name", lambda file: references(*[next(iter(file["#refs#"].values())).ref] * 3)
    ),
    "names that are numbers": replaced("digitStruct/name", np.zeros((2, 1))),
    "a name that is no text": replaced("digitStruct/name", lambda file: references(*[file["#refs#"].ref] * 2)),
    "references to nothing": replaced("digitStruct/bbox", references(*[h5py.Reference()] * 2)),
    "a field missing": first_box("width", None),
    "fields of several lengths": first_box("label", lambda file, kept: kept[:1]),
    "numbers in place of references": first_box("top", lambda file, kept: np.zeros((2, 1))),
    "a list in place of a number": first_box(
        "left", lambda file, kept: references(*[file.create_dataset("long", data=np.zeros((1 << 20, 1))).ref] * 2)
    ),
    "a group in place of a number": first_box("left", lambda file, kept: references(*[file["#refs#"].ref] * 2)),
    "text in place of a number": first_box(
        "left",
        lambda file, kept: references(*[file.create_dataset("text", data=[["a"]], dtype=h5py.string_dtype()).ref] * 2),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_digit_struct_is_an_error_that_names_it(tmp_path, offline, damage):
    root = write_part(tmp_path / "SVHN" / "test", [(NOISE, PAIR)] * 2)
    damage(root / "digitStruct.mat")
    with pytest.raises(DataError, match=r"SVHN/test.*digitStruct\.mat") as caught:
        SVHN("test", data_root=str(tmp_path))
    assert not isinstance(caught.value, DataUnavailableError)
    assert not list((tmp_path / "cache").glob("svhn/*"))


def test_without_h5py_it_is_said_what_to_install(svhn_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigError, match=r"needs h5py.*\[svhn\]"):
        SVHN("test", data_root=svhn_folder)


def test_what_is_in_the_cache_needs_no_h5py(svhn_folder, monkeypatch):
    before = pictures(SVHN("test", data_root=svhn_folder))
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert pictures(SVHN("test", data_root=svhn_folder)) == before


# --- the cache --------------------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Which parts were read from the official files."""
    found, read = [], svhn._read_part
    monkeypatch.setattr(svhn, "_read_part", lambda part, *rest: (found.append(part), read(part, *rest))[1])
    return found


def test_a_part_is_read_once(svhn_folder, reads):
    for arguments in ({}, {"task": "single"}, {"seed": 4}, {"image_px": 17}):
        for split in ("train", "val", "test"):
            SVHN(split, data_root=svhn_folder, **arguments)
    assert reads == ["train", "test"]


def test_other_data_are_read_anew(tmp_path, reads):
    """Another digitStruct.mat, another image, an image more, another folder."""
    root = random_part(tmp_path / "a" / "SVHN" / "test", 12, 0)
    first = pictures(SVHN("test", data_root=str(tmp_path / "a")))
    write_digit_struct(root / "digitStruct.mat", [(f"{i + 1}.png", [(1, 1, 5, 5, 1)]) for i in range(12)])
    second = pictures(SVHN("test", data_root=str(tmp_path / "a")))
    assert not set(first) & set(second)
    Image.fromarray(NOISE[:20, :30]).save(root / "4.png")
    assert len(set(pictures(SVHN("test", data_root=str(tmp_path / "a")))) - set(second)) == 1
    Image.fromarray(NOISE).save(root / "13.png")
    with pytest.warns(UserWarning, match="1 not listed"):
        SVHN("test", data_root=str(tmp_path / "a"))
    random_part(tmp_path / "b" / "SVHN" / "test", 12, 1)
    SVHN("test", data_root=str(tmp_path / "b"))
    assert reads == ["test"] * 5


@pytest.mark.parametrize("name", ["pixels.npy", "labels.npy", "store.json"])
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_damaged_cache_is_made_again_with_a_warning(svhn_folder, tmp_path, monkeypatch, reads, name, share):
    before = pictures(SVHN("test", data_root=svhn_folder))
    (folder,) = (tmp_path / "cache" / "svhn").iterdir()
    cut(folder / name, share)
    monkeypatch.setattr(array_store, "_checked", {})  # as in another process
    with pytest.warns(UserWarning, match=r"svhn.test-\w+ is damaged"):
        assert pictures(SVHN("test", data_root=svhn_folder)) == before
    assert reads == ["test", "test"]


def test_a_changed_byte_in_the_cache_is_found(svhn_folder, tmp_path, monkeypatch):
    before = pictures(SVHN("test", data_root=svhn_folder))
    path = next((tmp_path / "cache" / "svhn").glob("*/pixels.npy"))
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(array_store, "_checked", {})
    with pytest.warns(UserWarning, match="damaged"):
        assert pictures(SVHN("test", data_root=svhn_folder)) == before


def test_an_interrupted_reading_leaves_nothing(svhn_folder, tmp_path, monkeypatch):
    def interrupted(file: str):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(svhn, "read_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            SVHN("test", data_root=svhn_folder)
    assert not any((tmp_path / "cache" / "svhn").iterdir())
    assert len(SVHN("test", data_root=svhn_folder)) == 12


def test_reading_holds_no_more_than_a_few_images(tmp_path):
    image = np.tile(NOISE, (2, 2, 1))
    root = write_part(tmp_path / "SVHN" / "test", [(image, [(0, 0, 200, 300, 1)])] * 80)
    tracemalloc.start()
    data = SVHN("test", data_root=str(tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(data) == len(list(root.glob("*.png"))) == 80
    assert peak < 80 * 200 * 345 * 3 / 4


# --- where the data are found -----------------------------------------------------------------------------------------


def test_the_folders_are_searched_in_order(tmp_path, monkeypatch, svhn_folder):
    places = [
        tmp_path / "given" / "SVHN", tmp_path / "given", tmp_path / "set" / "SVHN", tmp_path / "set", tmp_path / "cache" / "SVHN",
    ]  # fmt: skip
    monkeypatch.setenv("HSAL_DATA", str(tmp_path / "set"))
    for place in reversed(places):
        write_part(place / "test", [(NOISE, PAIR)])
        assert find_svhn("test", str(tmp_path / "given")) == place / "test"
    assert find_svhn("test") == tmp_path / "set" / "SVHN" / "test"


def test_data_that_cannot_be_had_are_an_error_that_says_what_was_tried(tmp_path, monkeypatch, offline):
    monkeypatch.setenv("HSAL_DATA", str(tmp_path / "set"))
    said = (
        rf"train part was not found in {tmp_path}/given/SVHN/train, .*{tmp_path}/set/train, .*{tmp_path}/cache/train/train, and "
        r"downloading "
        r"http://ufldl\.stanford\.edu/housenumbers/train\.tar\.gz failed \(ConnectionError: no route to host\)\. Unpack .*"
        r"DIR/SVHN/train/digitStruct\.mat.*HSAL_DATA=DIR.*house-numbers"
    )
    with pytest.raises(DataUnavailableError, match=said):
        SVHN("val", data_root=str(tmp_path / "given"))


def test_images_without_a_digit_struct_are_an_error(tmp_path, offline):
    write_part(tmp_path / "SVHN" / "test", [(NOISE, PAIR)])
    (tmp_path / "SVHN" / "test" / "digitStruct.mat").unlink()
    with pytest.raises(DataError, match=r"SVHN/test: no digitStruct\.mat, which names the digits\. Add it, or delete"):
        SVHN("test", data_root=str(tmp_path))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None: ...


@pytest.fixture
def site(tmp_path, svhn_folder, monkeypatch) -> Iterator[Path]:
    """A web site with the archives of ``svhn_folder``, and their checksums."""
    folder = tmp_path / "site"
    folder.mkdir()
    sums = {}
    for part in ("train", "test", "extra"):
        with tarfile.open(folder / f"{part}.tar.gz", "w:gz") as archive:
            archive.add(Path(svhn_folder) / "SVHN" / part, part)
        sums[part] = md5((folder / f"{part}.tar.gz").read_bytes()).hexdigest()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(svhn, "URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(svhn, "MD5", sums)
    yield folder
    server.shutdown()
    server.server_close()


def test_what_is_nowhere_is_downloaded_once(tmp_path, svhn_folder, site):
    root = tmp_path / "root"
    assert len(SVHN("train", data_root=str(root), extra=True)) == 51
    assert pictures(SVHN("test", data_root=str(root))) == pictures(SVHN("test", data_root=svhn_folder))
    assert sorted(path.name for path in (root / "SVHN").iterdir()) == ["extra", "test", "train"]  # and no archive
    shutil.rmtree(site)
    assert len(SVHN("test", data_root=str(root))) == 12


def test_a_download_that_fails_its_checksum_is_refused_and_leaves_nothing(tmp_path, site):
    with (site / "test.tar.gz").open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataUnavailableError, match=r"test\.tar\.gz failed \(RuntimeError: File not found or corrupted"):
        SVHN("test", data_root=str(tmp_path / "root"))
    assert not list((tmp_path / "root" / "SVHN").iterdir())


def test_of_two_downloads_the_first_is_kept(tmp_path, svhn_folder, site, monkeypatch):
    """The other process is through while this one still unpacks."""
    target, staging = tmp_path / "root" / "SVHN" / "test", svhn.temporary_folder

    def meanwhile(place):
        write_part(target, [(NOISE, PAIR)])
        return staging(place)

    monkeypatch.setattr(svhn, "temporary_folder", meanwhile)
    assert len(SVHN("test", data_root=str(tmp_path / "root"))) == 1
    assert [path.name for path in target.parent.iterdir()] == ["test"]


def test_checksums_are_of_every_part():
    assert sorted(svhn.MD5) == ["extra", "test", "train"]
    assert all(len(bytes.fromhex(text)) == 16 for text in svhn.MD5.values())
    assert MOST_DIGITS == 6


# --- the environment --------------------------------------------------------------------------------------------------


def arguments(svhn_folder: str, **more) -> dict:
    return {"data_root": svhn_folder, "activation": "playing:Colours", **more}


@pytest.mark.filterwarnings("ignore:.* listed in digitStruct.mat but not there")
@pytest.mark.parametrize("root", [pytest.param("svhn_sample", marks=pytest.mark.slow), "svhn_folder"])
@pytest.mark.parametrize(("task", "most"), [("Single", 1), ("Multiset", 6)])
def test_the_environment_shows_the_numbers_in_colour(request, root, task, most):
    root = request.getfixturevalue(root)
    env = gym.make(f"HSAL-SVHN{task}-v0", **arguments(root, split="test", seed=5, canvas_px=40))
    config = env.unwrapped.simulation.config
    data = SVHN("test", task.lower(), 40, 5, root)
    assert (config.size, config.objects_limit, config.image_shape) == (len(data), most, (40, 40, 3))
    for index in range(len(data)):
        observation, info = env.reset(options={"index": index})
        batch = data.compose([index])
        np.testing.assert_array_equal(observation["image"], batch.images[0])
        assert info["source"] == "svhn"
        assert info["label_counts"].tolist() == np.bincount(batch.labels[batch.labels >= 0], minlength=10).tolist()


def test_lanes_are_single_environments_and_stored_features_the_lazy_ones(svhn_folder):
    lazy, stored = (
        HSALVectorEnv(3, source="svhn", **arguments(svhn_folder, features=features, include_volume=True))
        for features in ("lazy", "store")
    )
    single = gym.make("HSAL-SVHNMultiset-v0", **arguments(svhn_folder, include_volume=True))
    seen = [env.reset(options={"index": np.array([3, 7, 30])})[0] for env in (lazy, stored)]
    for name in ("image", "saliency", "volume"):
        np.testing.assert_allclose(seen[0][name], seen[1][name], rtol=1e-2)
        for lane, index in enumerate((3, 7, 30)):
            np.testing.assert_array_equal(single.reset(options={"index": index})[0][name], seen[0][name][lane])


def test_a_model_that_reads_grey_is_refused(svhn_folder):
    with pytest.raises(DataError, match="in colour and the activation model reads 1 channel"):
        gym.make("HSAL-SVHNMultiset-v0", data_root=svhn_folder, activation="compact")


@pytest.mark.parametrize(
    ("extra", "wished", "size"), [(False, None, 36), (True, None, 51), (True, 40, 40), (False, 40, 36)]
)
def test_the_size_of_a_split_is_that_of_the_data(svhn_folder, extra, wished, size):
    assert EnvConfig(source="svhn", data_root=svhn_folder, extra=extra, num_examples=wished).size == size


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"task": "set"}, "task to be one of single, multiset with SVHN; got 'set'"),
        ({"max_objects": 5}, "max_objects of at least 6 with SVHN, whose images have up to 6; got 5"),
        ({"task": "single", "max_objects": 0}, "max_objects of at least 1"),
        ({"canvas_px": 0}, "canvas_px of at least 1; got 0"),
        ({"extra": 1}, "extra as True or False; got 1"),
        (
            {"clutter": 3, "glyphs": "paper"},
            r"'svhn' takes; got clutter \(for auto, mnist, digits\), glyphs \(for auto",
        ),
        ({"split": "all"}, "got 'all', which only images of your own have"),
        ({"source": "digits", "extra": True}, r"'digits' takes; got extra \(for svhn\)\. Leave them out"),
    ],
)
def test_arguments_that_do_not_suit_svhn_are_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        EnvConfig(**{"source": "svhn", **wrong})


def test_more_objects_than_any_image_has_may_be_asked_for(svhn_folder):
    env = HSALVectorEnv(2, source="svhn", max_objects=8, **arguments(svhn_folder))
    assert env.simulation.config.rules.max_meta_steps == 9
    assert env.reset(seed=0)[1]["label_counts"].sum(axis=1).max() <= 6
