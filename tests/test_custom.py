"""HSAL-Custom-v0: your own images, as arrays and as a folder, with models of yours; every way the data can be wrong."""

import copy
import dataclasses
import hashlib
import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from commands import ANALYSE, BUNDLE, COUNT, EVALUATE, TRAIN
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv
from PIL import Image
from playing import assert_equal
from torch import nn
from traces import MetaStep, trace_of

from agents import checkpoint
from agents.actor_critic import ActorCritic
from agents.config import AgentConfig, LearnerConfig
from agents.evaluation import make_env
from agents.learning.learner import Learner
from agents.learning.run import Run, RunConfig
from agents.protocol import World
from agents.reports.mistakes import describe, tables
from agents.tracing import record
from hsal_env.config import EnvConfig
from hsal_env.data import LabelledImages
from hsal_env.data.custom import load_folder
from hsal_env.env import HSALEnv
from hsal_env.errors import ConfigError, DataError
from hsal_env.perception.examples import Examples
from hsal_env.perception.registry import activation_model, saliency_model
from hsal_env.rendering import draw_trace
from hsal_env.vector_env import HSALVectorEnv

HEAD = "file,labels\n"
GREY = np.random.default_rng(0).integers(0, 256, (12, 24, 32), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (12, 24, 32, 3), dtype=np.uint8)
LABELS = [[1, 1], [0], [], [2, 3, 1]] * 3
STOP = 4


class Patches(nn.Module):
    """Colour in; the mean of each patch of 8x8 px out."""

    in_channels, channels = 3, 3

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain, self.scale = gain, nn.Parameter(torch.ones(1))

    def forward(self, images):
        return nn.functional.avg_pool2d(images.float(), 8) * self.scale * self.gain


class GreyPatches(Patches):
    in_channels, channels = 1, 1


class Total:
    """A saliency model."""

    needs_images = False

    def __call__(self, images, volume):
        return volume.sum(dim=1)


class Redness(nn.Module):
    """A saliency model that reads the images and has a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images, volume):
        return nn.functional.adaptive_avg_pool2d(images[:, 0], volume.shape[2:]) * self.weight


def config(images=GREY, labels=LABELS, **more) -> EnvConfig:
    arrays = {"images": images} | ({} if isinstance(images, (str, Path, LabelledImages)) else {"labels": labels})
    return EnvConfig(**{"source": "custom", "split": "all", "activation": f"{__name__}:GreyPatches", **arrays, **more})


def single(**more) -> HSALEnv:
    return HSALEnv(**vars(config(**more)))


def write_folder(folder: Path, images: np.ndarray, labels: list[list[int]], form: str = "png") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i}.{form}")
    rows = [f"{i}.{form},{' '.join(map(str, row))}" for i, row in enumerate(labels)]
    (folder / "labels.csv").write_text("\n".join(["file,labels", *rows]) + "\n")
    return str(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(write_folder(tmp_path / "mine", GREY, LABELS))


# --- images and labels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
def test_a_canvas_is_the_image_and_its_labels_and_says_nothing_of_boxes(images):
    chosen = config(images).canvases.compose([3, 0, 2])
    np.testing.assert_array_equal(chosen.images, images[[3, 0, 2]])
    assert chosen.labels.tolist() == [[2, 3, 1], [1, 1, -1], [-1, -1, -1]]
    assert chosen.boxes.shape == (3, 3, 4)
    assert (chosen.boxes == -1).all()


def test_what_the_data_decide_and_what_may_be_asked_for():
    plain, wished = config(COLOUR), config(COLOUR, num_classes=6, max_objects=5, num_examples=7)
    assert (plain.classes, plain.objects_limit, plain.rules.max_objects, plain.size) == (4, 3, 3, 12)
    assert (wished.classes, wished.objects_limit, wished.rules.max_objects, wished.size) == (6, 5, 5, 7)
    assert (plain.image_shape, config().image_shape) == ((24, 32, 3), (24, 32, 1))
    assert config(num_examples=100).size == 12


@pytest.mark.parametrize(
    "labels",
    [
        [np.array(row, np.uint8) for row in LABELS],
        [tuple(row) for row in LABELS],
        iter(LABELS),
        [torch.tensor(row, dtype=torch.int64) for row in LABELS],
        [" ".join(map(str, row)) for row in LABELS],
        [";".join(map(str, row)) for row in LABELS],
        [str(row) for row in LABELS],
        [str(row)[1:-1] if row else float("nan") for row in LABELS],  # an empty cell, as pandas reads it
        np.array([str(row) for row in LABELS], object),
        LabelledImages(GREY, LABELS).labels,  # a table that is filled up with -1
        torch.from_numpy(LabelledImages(GREY, LABELS).labels),
    ],
    ids=range(11),
)
def test_labels_may_be_any_lists_of_whole_numbers(labels):
    np.testing.assert_array_equal(LabelledImages(GREY, labels).labels, LabelledImages(GREY, LABELS).labels)


ONE_EACH = [row[0] if row else 0 for row in LABELS]


@pytest.mark.parametrize(
    "labels", [ONE_EACH, np.array(ONE_EACH), torch.tensor(ONE_EACH), [str(one) for one in ONE_EACH]]
)
def test_one_number_per_image_is_a_label_each(labels):
    assert LabelledImages(GREY, labels).labels.tolist() == [[one] for one in ONE_EACH]


COUNTS = np.array([np.bincount(row, minlength=STOP + 1) for row in LABELS])
MULTI_HOT = np.minimum(COUNTS, 1)


@pytest.mark.parametrize("table", [COUNTS, MULTI_HOT], ids=["counts", "multi-hot"])
@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy, np.ndarray.tolist, lambda table: table.astype(float)])
def test_counts_are_read_as_counts_where_that_is_said(table, form):
    read = LabelledImages(GREY, form(table), labels_are="counts")
    lists = [np.repeat(np.arange(STOP + 1), row).tolist() for row in table]
    np.testing.assert_array_equal(read.labels, LabelledImages(GREY, lists).labels)
    assert read.num_classes() == STOP + 1  # one more than occur
    env = single(labels=form(table), labels_are="counts")
    np.testing.assert_array_equal(env.reset(options={"index": 3})[1]["label_counts"], table[3])


@pytest.mark.parametrize(
    "labels",
    [
        MULTI_HOT,
        torch.from_numpy(MULTI_HOT),
        MULTI_HOT.tolist(),
        [*map(tuple, MULTI_HOT)],
        MULTI_HOT.astype(float),
        COUNTS,
        [" ".join(map(str, row)) for row in MULTI_HOT],
        np.array([ONE_EACH]).T,
    ],
)
def test_a_table_that_may_be_lists_or_counts_is_refused(labels):
    with pytest.raises(DataError, match=r"one way only; got 12 rows of .*labels_are='lists' or labels_are='counts'"):
        single(labels=labels)


def test_true_and_false_can_only_be_multi_hot():
    np.testing.assert_array_equal(
        LabelledImages(GREY, MULTI_HOT.astype(bool)).labels, LabelledImages(GREY, MULTI_HOT, labels_are="counts").labels
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": COUNTS - 1}, r"image 0: expected counts as whole numbers in 0\.\.10000; got -1 of label 0"),
        ({"labels": COUNTS / 2}, r"image 1: expected counts as whole numbers .* got 0\.5 of label 0"),
        ({"labels": COUNTS * 1e9}, "expected counts as whole numbers"),
        ({"labels": COUNTS * np.nan}, "image 0: expected counts as whole numbers .* got nan"),
        ({"labels": LABELS}, "image 1: expected how often each of the C classes occurs"),
        ({"labels": COUNTS[:3]}, "as many lists of labels as images; got 3 for 12"),
        ({"labels_are": "multi-hot"}, "labels_are to be one of lists, counts, None; got 'multi-hot'"),
        ({"labels": COUNTS, "class_names": "abc"}, "one class name|each class name"),
        ({"labels": COUNTS, "class_names": ["a", "b"]}, "Expected 2 counts per image, one for each class name; got 5"),
    ],
)
def test_wrong_counts_are_refused(wrong, message):
    with pytest.raises((ConfigError, DataError), match=message):
        single(**{"labels_are": "counts", **wrong})


WORDS = ["cup", "big dog", "cat", "ant"]
NAMED = [[WORDS[label] for label in row] for row in LABELS]


@pytest.mark.parametrize(
    "labels",
    [NAMED, ["; ".join(row) for row in NAMED], [str(row) for row in NAMED], np.array([", ".join(r) for r in NAMED])],
)
def test_labels_may_be_names(labels):
    data = LabelledImages(GREY, labels)
    assert data.class_names == ("ant", "big dog", "cat", "cup")  # sorted
    assert [[data.class_names[c] for c in row if c >= 0] for row in data.labels] == NAMED
    two_each = LabelledImages(GREY[:2], [["cup", "cat"], ["cat", "cat"]])  # names are never counts
    assert two_each.labels.tolist() == [[1, 0], [0, 0]]
    given = LabelledImages(GREY, labels, class_names=WORDS)
    np.testing.assert_array_equal(given.labels, LabelledImages(GREY, LABELS).labels)
    env = config(labels=labels, class_names=[*WORDS, "eel"])
    assert (env.classes, env.label_names) == (5, (*WORDS, "eel"))
    assert env.canvases.compose([3]).labels.tolist() == [[2, 3, 1]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": [*NAMED[:-1], ["cup", 1]]}, r"image 11: expected labels as whole numbers .*got \['cup', 1\]"),
        ({"labels": [*NAMED[:-1], ["1"]]}, r"image 11: expected labels as whole numbers .*got \['1'\]"),
        (
            {"labels": NAMED, "class_names": WORDS[:3]},
            "image 3: expected labels among the class names cup, .*; got 'ant'",
        ),
        ({"class_names": WORDS[:3]}, r"image 3: expected labels in 0\.\.2, since num_classes=3; got 3"),
        ({"class_names": WORDS, "num_classes": 6}, "Expected 6 class names, since num_classes=6; got 4: cup, "),
        ({"class_names": ["a", "b", "a", "c"]}, "each class name once; got 'a' again for label 2"),
        ({"class_names": ["a", "b", "", "c"]}, "class names as texts; got '' for label 2"),
        ({"class_names": ["a", "b", 7, "c"]}, "class names as texts; got 7 for label 2"),
        ({"class_names": ["1", "0", "2", "3"]}, "that no label can be taken for; got '1' for label 0"),
        ({"class_names": []}, "at least one class name"),
        ({"labels": "cup"}, "one list of whole numbers per image; got 'cup'"),
        ({"labels": dict.fromkeys(range(12), 1)}, "one list of whole numbers per image; got {0: 1"),
    ],
)
def test_wrong_names_are_refused(wrong, message):
    with pytest.raises(DataError, match=message):
        single(**wrong).simulation.config.classes  # noqa: B018


def test_a_pandas_table_of_counts_names_its_classes():
    class Table:  # as pandas.DataFrame; no extra installs pandas
        ndim, columns = 2, ["ant", "bee", "cat", "dog", "eel"]

        def __array__(self, dtype=None, copy=None):
            return COUNTS

    assert LabelledImages(GREY, Table(), labels_are="counts").class_names == tuple(Table.columns)


@pytest.mark.parametrize(
    ("images", "same"),
    [
        (GREY[..., None], GREY),
        (GREY[:, None], GREY),
        (torch.from_numpy(GREY), GREY),
        (torch.from_numpy(GREY)[:, None], GREY),
        (COLOUR.transpose(0, 3, 1, 2), COLOUR),
        (torch.from_numpy(COLOUR).permute(0, 3, 1, 2), COLOUR),
        ([*GREY], GREY),
        ([*torch.from_numpy(COLOUR).permute(0, 3, 1, 2)], COLOUR),
        ([Image.fromarray(image) for image in GREY], GREY),
        ([Image.fromarray(image) for image in COLOUR], COLOUR),
        ([COLOUR[0], *GREY[1:]], np.concatenate([COLOUR[:1], GREY[1:, ..., None].repeat(3, axis=3)])),
    ],
    ids=range(11),
)
def test_images_may_be_tensors_or_lists_of_any_layout(images, same):
    read = LabelledImages(images, LABELS)
    np.testing.assert_array_equal(read.images, same)
    assert read.digest == LabelledImages(same, LABELS).digest
    assert not read.images.flags.writeable


def test_images_may_be_paths(folder):
    files = [folder / f"{i}.png" for i in range(12)]
    for paths in (files, [*map(str, files)], np.array([*map(str, files)], object)):
        np.testing.assert_array_equal(LabelledImages(paths, LABELS).images, GREY)


def test_images_are_copied_once_and_shared_after_that():
    mine = GREY.copy()
    held = config(mine).images
    mine[:] = 0
    np.testing.assert_array_equal(held.images, GREY)
    assert not held.images.flags.writeable
    assert copy.deepcopy(held) is held
    assert config(held).canvases.compose([1]).images.tolist() == GREY[[1]].tolist()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": GREY / 255}, r"float64 of shape \(12, 24, 32\)\. Scale them to 0\.\.255 and convert"),
        ({"images": np.full(GREY.shape, np.nan)}, "float64 .* Scale them"),
        ({"images": GREY.astype(int)}, "int64 .* Scale them"),
        ({"images": GREY.astype(str)}, "<U"),
        ({"images": GREY[0]}, r"N > 0; got shape \(24, 32\)"),
        ({"images": GREY[..., None, None]}, r"got shape \(12, 24, 32, 1, 1\)"),
        ({"images": COLOUR[..., :2]}, r"got shape \(12, 24, 32, 2\)\. A grey axis of length 1 .* \[N, 3, h, w\]"),
        ({"images": COLOUR[:, :3]}, r"\(12, 3, 32, 3\), whose colours may come first or last\. Pad"),
        ({"images": torch.from_numpy(GREY / 255)}, r"float64 of shape .* Scale them"),
        ({"images": torch.zeros(12, 8, 8, dtype=torch.bfloat16)}, "got Tensor of several shapes or kinds"),
        ({"images": [*GREY[:11], GREY[11] / 255]}, r"image 11: .* got float64 of shape \(24, 32\)"),
        ({"images": [*GREY[:11], Image.new("RGBA", (32, 24))]}, "image 11: expected 8-bit grey or RGB; got mode RGBA"),
        ({"images": [*GREY[:11], "nowhere.png"]}, r"nowhere\.png: cannot be read as PNG, JPEG"),
        ({"images": GREY[None, None, None]}, "got shape"),
        ({"images": GREY[:0], "labels": []}, r"N > 0; got shape \(0, 24, 32\)"),
        ({"images": GREY[:, :0]}, r"got shape \(12, 0, 32\)"),
        ({"images": [GREY[0], GREY[1, :5]], "labels": [[], []]}, "image 1: expected 24x32 px .* image 0; got 5x32"),
        ({"images": 3}, r"got int64 of shape \(\)"),
        ({"labels": LABELS[:-1]}, "as many lists of labels as images; got 11 for 12 images"),
        ({"labels": 3}, "one list of whole numbers per image; got 3"),
        (
            {"labels": [*LABELS[:-1], 3]},
            r"image 11: expected a list of labels; got 3\. Write a single label as a list, too: \[3\]",
        ),
        ({"labels": [*LABELS[:-1], [1, -1]]}, r"image 11: expected labels as whole numbers in 0\.\.9999; got -1"),
        ({"labels": [*LABELS[:-1], [1.0]]}, r"image 11: .* got 1\.0"),
        ({"labels": [[True], *LABELS[1:]]}, "image 0: .* got True"),
        ({"labels": [*LABELS[:-1], "12"]}, "image 11: .* got '1'"),
        ({"labels": [[10_000], *LABELS[1:]]}, "image 0: .* got 10000"),
        ({"num_classes": 3}, r"image 3: expected labels in 0\.\.2, since num_classes=3; got 3\. Raise num_classes"),
        ({"labels": [[]] * 12}, "No image has a label.* pass num_classes"),
        ({"max_objects": 2}, r"image 3: expected at most max_objects=2 labels; got 3\. Raise max_objects to 3"),
        (
            {"images": GREY[:2], "labels": LABELS[:2], "split": "val"},
            "Expected at least 3 images to share .* got 2.* split='all'",
        ),
    ],
)
def test_wrong_data_are_refused(wrong, message):
    with pytest.raises(DataError, match=message):
        single(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": None}, "Expected labels, N lists of whole numbers, with images as an array"),
        ({"images": "somewhere", "labels": LABELS}, "Expected labels only with images as an array; a folder names"),
        ({"images": None, "labels": LABELS}, "Expected labels only with images as an array"),
        (
            {"min_objects": 2, "clutter": 0},
            r"got min_objects \(for auto, .*house-numbers\), clutter \(for auto, mnist, digits\)",
        ),
        ({"task": "set"}, r"'custom' takes; got task \(for auto, "),
        ({"num_classes": 0}, "num_classes of at least 1; got 0"),
        ({"num_classes": 2.5}, "num_classes as a whole number"),
        ({"max_objects": -1}, "max_objects of at least 0; got -1"),
        ({"split": "training"}, "split to be one of train, val, test, all; got 'training'"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        HSALEnv(**{"source": "custom", "images": GREY, "labels": LABELS, **wrong})


def test_without_images_the_id_says_what_it_needs():
    with pytest.raises(ConfigError, match=r"HSAL-Custom-v0 needs your images: pass images=FOLDER"):
        gym.make("HSAL-Custom-v0")


@pytest.mark.parametrize("given", [{"images": GREY, "labels": LABELS}, {"num_classes": 5}, {"split": "all"}])
def test_what_is_for_images_of_your_own_is_refused_elsewhere(given):
    with pytest.raises(
        ConfigError, match=rf"{next(iter(given))} .*(\(for custom\)|which only images of your own have)"
    ):
        gym.make("HSAL-DigitsSet-v0", **given)


def test_a_canvas_index_outside_the_split_is_refused():
    canvases = config().canvases
    for index in (-1, 12):
        with pytest.raises(DataError, match=rf"canvas indices in 0\.\.11; got {index}\.\.{index}"):
            canvases.compose([index])


# --- splits -----------------------------------------------------------------------------------------------------------


def many(number: int) -> LabelledImages:
    images = np.random.default_rng(2).integers(0, 256, (number, 4, 4), dtype=np.uint8)
    return LabelledImages(images, [[i % 5] for i in range(number)])


def pictures(data: LabelledImages, split: str) -> set[bytes]:
    return {image.tobytes() for image in data.images[data.part(split)]}


@pytest.mark.parametrize(("number", "sizes"), [(3, (1, 1, 1)), (19, (17, 1, 1)), (200, (160, 20, 20))])
def test_shares_are_disjoint_and_hold_every_image(number, sizes):
    parts = [many(number).part(split) for split in ("train", "val", "test")]
    assert tuple(map(len, parts)) == sizes
    assert sorted(np.concatenate(parts)) == list(range(number))


def test_shares_do_not_depend_on_order_or_seed():
    data, order = many(50), np.random.default_rng(3).permutation(50)
    shuffled = LabelledImages(data.images[order], [[0]] * 50)
    for split in ("train", "val", "test"):
        assert pictures(data, split) == pictures(shuffled, split)
        drawn = [config(data, split=split, seed=seed).canvases for seed in (0, 1)]
        images = [canvases.compose(range(len(canvases))).images for canvases in drawn]
        assert (images[0] != images[1]).any()
        assert {image.tobytes() for image in images[0]} == {image.tobytes() for image in images[1]}


def test_a_few_more_images_move_none_from_train_to_test():
    assert not pictures(many(1000), "train") & pictures(many(1200), "test")


def test_all_images_keep_their_order_whatever_the_seed():
    np.testing.assert_array_equal(config(seed=5).canvases.compose(range(12)).images, GREY)


# --- a folder ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
def test_a_folder_is_its_arrays(tmp_path, images):
    folder = write_folder(tmp_path / "png", images, LABELS)
    read, given = config(folder).data, LabelledImages(images, LABELS)
    np.testing.assert_array_equal(read.images, given.images)
    np.testing.assert_array_equal(read.labels, given.labels)
    assert read.digest == given.digest
    assert config(Path(folder)).images == folder


def test_jpeg_palette_and_black_and_white_files_are_read(tmp_path):
    flat = np.full((1, 24, 32), 100, np.uint8)
    jpeg = config(write_folder(tmp_path / "jpeg", flat, [[0]], form="jpg")).data
    assert np.abs(np.asarray(jpeg.images).astype(int) - 100).max() <= 1
    Image.fromarray(COLOUR[0]).quantize(8).save(tmp_path / "jpeg" / "p.png")
    Image.fromarray(GREY[0] > 99).save(tmp_path / "jpeg" / "1.png")
    (tmp_path / "jpeg" / "labels.csv").write_text("file,labels\np.png,0\n1.png,\n\n")
    read = config(str(tmp_path / "jpeg")).data
    with Image.open(tmp_path / "jpeg" / "p.png") as image:
        np.testing.assert_array_equal(read.images[0], np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(read.images[1], 255 * (GREY[0] > 99)[..., None].repeat(3, axis=2))  # grey repeated


def test_a_colour_file_among_grey_ones_makes_all_colour(folder):
    Image.fromarray(COLOUR[5]).save(folder / "5.png")
    images = config(str(folder)).data.images
    np.testing.assert_array_equal(images[5], COLOUR[5])
    for i in (0, 4, 6, 11):
        np.testing.assert_array_equal(images[i], GREY[i][..., None].repeat(3, axis=2))


def test_folders_of_splits_are_the_splits(tmp_path):
    for name, rows in (("train", slice(0, 6)), ("val", slice(6, 8)), ("test", slice(8, 12))):
        write_folder(tmp_path / name, GREY[rows], LABELS[rows])
    drawn = {split: config(str(tmp_path), split=split) for split in ("train", "val", "test", "all")}
    assert {split: one.size for split, one in drawn.items()} == {"train": 6, "val": 2, "test": 4, "all": 12}
    np.testing.assert_array_equal(drawn["all"].canvases.compose(range(12)).images, GREY)
    assert pictures(drawn["val"].data, "val") == {GREY[6].tobytes(), GREY[7].tobytes()}
    assert {one.classes for one in drawn.values()} == {4}  # of all splits: val alone has no label 3
    shutil.rmtree(tmp_path / "val")
    val, train = (pictures(config(str(tmp_path)).data, split) for split in ("val", "train"))
    assert (len(val), len(train)) == (1, 5)  # a tenth of train
    assert val | train == {image.tobytes() for image in GREY[:6]}
    assert pictures(config(str(tmp_path)).data, "test") == {image.tobytes() for image in GREY[8:]}
    shutil.rmtree(tmp_path / "train")
    assert config(str(tmp_path), split="test").size == 4
    with pytest.raises(DataError, match=r"images for test, none for 'train': make a folder train with labels\.csv"):
        _ = config(str(tmp_path), split="train").size


def test_what_is_chosen_by_is_never_what_is_tested(tmp_path):
    """Without a test part, the own val is tested, and a tenth of train is for choosing."""
    for name, rows in (("train", slice(0, 9)), ("valid", slice(9, 12))):
        write_folder(tmp_path / name, GREY[rows], LABELS[rows])
    data = config(str(tmp_path)).data
    assert {split: len(data.part(split)) for split in ("train", "val", "test")} == {"train": 8, "val": 1, "test": 3}
    assert pictures(data, "test") == {image.tobytes() for image in GREY[9:]}
    first = min(GREY[:9], key=lambda image: hashlib.sha256(image.tobytes()).digest())
    assert pictures(data, "val") == {first.tobytes()}
    shutil.rmtree(tmp_path / "valid")
    assert sorted(map(len, map(config(str(tmp_path)).data.part, ("train", "val", "test")))) == [1, 1, 7]


def test_train_of_one_image_cannot_be_shared(tmp_path):
    for name in ("train", "val"):
        write_folder(tmp_path / name, GREY[:1], LABELS[:1])
    with pytest.raises(DataError, match="at least 2 images in train, to share with val; got 1"):
        config(str(tmp_path)).data.part("val")


def test_a_changed_folder_is_read_again(folder):
    assert config(str(folder)).data.labels[1].tolist() == [0, -1, -1]
    assert config(str(folder)).data is config(str(folder)).data  # and an unchanged one is not
    Image.fromarray(GREY[0]).save(folder / "1.png")
    (folder / "labels.csv").write_text((folder / "labels.csv").read_text().replace("1.png,0\n", "1.png,3 3 3 3\n"))
    data = config(str(folder)).data
    assert data.labels[1].tolist() == [3, 3, 3, 3]
    np.testing.assert_array_equal(data.images[1], GREY[0])


LINES = [(f"{i}.png", " ".join(map(str, row))) for i, row in enumerate(LABELS)]


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(f"{name},{row}" for name, row in LINES),  # no first line
        "\n".join(["File , Labels", *(f" {name} , {row} " for name, row in LINES)]),  # blanks around names
        "\ufeff" + "\r\n".join(["file_name,label", *(f"{name},{row}" for name, row in LINES)]),
        "\n".join(
            ["file;labels", *(f"{name};{row}" for name, row in LINES)]
        ),  # as spreadsheets write it in some countries
        "\n".join(["file\tlabels", *(f"{name}\t{row}" for name, row in LINES)]),
        "\n".join(["file,labels", *(f"{name},{row.replace(' ', ';')}" for name, row in LINES)]),
        "\n".join(["file,labels", *(f'{name}, "{row.replace(" ", ", ")}"' for name, row in LINES)]),
        "\n".join([",file,labels", *(f'{i},{i}.png,"{row}"' for i, row in enumerate(LABELS))]),  # DataFrame.to_csv
        "\n".join(["labels,image", *(f"{row},{name}" for name, row in LINES)]),
        "\n".join(
            ["file,counts", *(f"{i}.png,{' '.join(map(str, row[:-1]))}" for i, row in enumerate(COUNTS.tolist()))]
        ),
    ],
    ids=["bare", "blanks", "other names", "semicolons", "tabs", "3;3;0", "quoted", "pandas", "other order", "counts"],
)
def test_labels_csv_as_people_write_it(folder, text):
    (folder / "labels.csv").write_text(text + "\n", newline="")
    read = config(str(folder)).data
    assert read.digest == LabelledImages(GREY, [sorted(row) for row in LABELS] if "counts" in text else LABELS).digest


def test_labels_csv_may_name_classes(folder):
    """Sorted names, or in the order of classes.txt, over all splits; an agent's order outranks both."""
    rows = [f"{i}.png,{'; '.join(row)}" for i, row in enumerate(NAMED)]
    (folder / "labels.csv").write_text("\n".join([HEAD.strip(), *rows]))
    assert config(str(folder)).data.class_names == ("ant", "big dog", "cat", "cup")
    assert config(str(folder)).data.digest == LabelledImages(GREY, NAMED).digest
    (folder / "classes.txt").write_text("\n".join([*WORDS, "eel"]) + "\n")
    read = config(str(folder))
    assert (read.label_names, read.classes) == ((*WORDS, "eel"), 5)
    np.testing.assert_array_equal(read.data.labels, LabelledImages(GREY, LABELS).labels)
    turned = config(str(folder), class_names=["eel", *WORDS])
    assert turned.data.labels[3].tolist() == [3, 4, 2]
    with pytest.raises(DataError, match=r"3\.png: expected labels among the class names cup, big dog, cat; got 'ant'"):
        _ = config(str(folder), class_names=WORDS[:3]).data
    (folder / "labels.csv").write_text("\n".join([HEAD.strip(), *(f"{name},{row}" for name, row in LINES)]))
    assert config(str(folder)).data.labels[3].tolist() == [2, 3, 1]  # numbers: classes.txt names them
    assert config(str(folder)).label_names == (*WORDS, "eel")


def test_a_name_of_several_words_in_classes_txt_is_one_label(folder):
    (folder / "classes.txt").write_text("big dog\ncup\n")
    (folder / "labels.csv").write_text(HEAD + "0.png,big dog\n1.png,cup cup\n2.png,\n")
    assert config(str(folder)).data.labels.tolist() == [[0, -1], [1, 1], [-1, -1]]


def test_splits_share_their_class_names(tmp_path):
    for split, name in (("train", "cup"), ("val", "ant"), ("test", "bee")):
        write_folder(tmp_path / split, GREY[:2], [[], []])
        (tmp_path / split / "labels.csv").write_text(HEAD + f"0.png,{name}\n1.png,\n")
    read = {split: config(str(tmp_path), split=split) for split in ("train", "val", "test")}
    with pytest.warns(UserWarning, match=r"No image of train holds ant, bee, which others hold"):
        _ = read["train"].data
    assert {one.label_names for one in read.values()} == {("ant", "bee", "cup")}
    assert {split: one.canvases.compose([0, 1]).labels.max() for split, one in read.items()} == {
        "train": 2,
        "val": 0,
        "test": 1,
    }
    (tmp_path / "val" / "labels.csv").write_text("file,counts\n0.png,1 0 0\n1.png,0 0 0\n")
    with pytest.raises(DataError, match="expected the same first line in the labels"):
        _ = config(str(tmp_path)).data


def overwrite(name: str, content: str | bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def save(image: Image.Image, **options) -> Callable[[Path], None]:
    return lambda folder: image.save(folder / "5.png", **options)


def cut_off(folder: Path) -> None:
    content = (folder / "5.png").read_bytes()
    (folder / "5.png").write_bytes(content[: len(content) // 2])


def with_splits(folder: Path) -> None:
    shutil.copytree(folder, folder / "train", ignore=shutil.ignore_patterns("train"))


RGB = Image.fromarray(COLOUR[0])
BROKEN_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, r"No folder .*mine\. Expected one that holds labels\.csv"),
    "no csv": (lambda f: (f / "labels.csv").unlink(), "mine: expected labels.csv, or train/labels.csv.*; got none"),
    "two kinds of csv": (with_splits, "got both it and train/labels.csv"),
    "csv is empty": (overwrite("labels.csv", ""), "labels.csv: expected the first line 'file,labels'; got ''"),
    "another head": (
        overwrite("labels.csv", "id,classes\n0,1\n"),
        "expected the first line 'file,labels'; got 'id,classes'",
    ),
    "one-hot columns": (
        overwrite("labels.csv", "file,cup,dog\n0.png,1,0\n"),
        "first line 'file,labels'; got 'file,cup,dog'",
    ),
    "two label columns": (overwrite("labels.csv", "file,label,labels\n0.png,1,1\n"), "first line 'file,labels'"),
    "a column too many": (overwrite("labels.csv", "file,label,label2\n0.png,1,1\n"), "Leave out other columns"),
    "no head and multi-hot": (
        overwrite("labels.csv", "0.png,0 1\n1.png,1 1\n"),
        "read in one way only.*file,labels or file,counts",
    ),
    "counts of two lengths": (
        overwrite("labels.csv", "file,counts\n0.png,0 1\n1.png,1\n"),
        r"line 3 \(1.png\): expected how often",
    ),
    "counts of words": (overwrite("labels.csv", "file,counts\n0.png,cup\n"), r"line 2 \(0.png\): expected how often"),
    "a name not among classes.txt": (
        lambda f: (overwrite("classes.txt", "cup\n")(f), overwrite("labels.csv", HEAD + "0.png,cup\n1.png,cap\n")(f)),
        r"line 3 \(1.png\): expected labels among the class names cup; got 'cap'",
    ),
    "an empty class name": (overwrite("classes.txt", "cup\n\ndog\n"), r"classes.txt: .*got '' for label 1"),
    "too few class names": (overwrite("classes.txt", "cup\n"), r"0\.png: expected labels in 0\.\.0"),
    "only a head": (overwrite("labels.csv", HEAD), "labels.csv names no images"),
    "no text": (overwrite("labels.csv", b"\xff\xfe\x00"), "labels.csv cannot be read.*UTF-8"),
    "null bytes": (overwrite("labels.csv", HEAD + "0.png,\x001\n"), r"labels.csv"),
    "too many columns": (overwrite("labels.csv", HEAD + "0.png,1,2\n"), "line 2: expected a file, a comma, and labels"),
    "no labels column": (overwrite("labels.csv", HEAD + "0.png\n"), "line 2: expected a file, a comma"),
    "no file name": (overwrite("labels.csv", HEAD + "0.png,1\n,2\n"), "line 3: expected a file, a comma"),
    "twice": (overwrite("labels.csv", HEAD + "0.png,1\n./0.png,2\n"), r"line 3: ./0.png is listed twice"),
    "label is text": (overwrite("labels.csv", HEAD + "0.png,1 cat\n"), r"line 2 \(0.png\): .*whole numbers.*'cat'"),
    "label is negative": (overwrite("labels.csv", HEAD + "0.png,-1\n"), r"line 2 \(0.png\): .*'-1'"),
    "label is a fraction": (overwrite("labels.csv", HEAD + "0.png,1.5\n"), r"line 2 \(0.png\): .*'1.5'"),
    "label is huge": (overwrite("labels.csv", HEAD + f"0.png,{10**30}\n"), r"line 2 \(0.png\): .*0\.\.9999; got 1000"),
    "a box too few": (
        overwrite("labels.csv", "file,labels,boxes\n0.png,1 1,1 1 2 2\n"),
        r"line 2 \(0.png\): expected a box for each of 2 labels; got 1 boxes",
    ),
    "a box of three": (
        overwrite("labels.csv", "file,labels,boxes\n0.png,1,1 1 2\n"),
        "line 2: expected boxes as 'row col",
    ),
    "a box of words": (
        overwrite("labels.csv", "file,labels,boxes\n0.png,1,a b c d\n"),
        "line 2: expected boxes as 'row",
    ),
    "a box of NaN": (
        overwrite("labels.csv", "file,labels,boxes\n0.png,1,1 1 nan 2\n"),
        "line 2: expected boxes as 'row",
    ),
    "boxes of counts": (overwrite("labels.csv", "file,counts,boxes\n0.png,1 0,\n"), "expected 'labels' beside 'boxes'"),
    "two columns of boxes": (
        overwrite("labels.csv", "file,labels,boxes,boxes\n0.png,1,,\n"),
        "Leave out other columns",
    ),
    "all images are missing": (
        lambda f: [(f / f"{i}.png").unlink() for i in range(12)],
        r"mine: no image can be used\. 12 are left out: 12 named but not there \(.*0\.png\)",
    ),
    "all images are broken": (
        lambda f: [(f / f"{i}.png").write_bytes(b"garbage") for i in range(12)],
        r"No image can be used\. .*0\.png: cannot be read as PNG, JPEG, BMP, WebP or TIFF.*Repair or remove it",
    ),
    "all images have alpha": (
        lambda f: [RGB.convert("RGBA").save(f / f"{i}.png") for i in range(12)],
        r"No image can be used\. .*0\.png: expected 8-bit grey or RGB; got mode RGBA",
    ),
    "all images are cut off": (
        lambda f: [(f / f"{i}.png").write_bytes((f / f"{i}.png").read_bytes()[:-9]) for i in range(12)],
        r"No image can be used: .*0\.png and all others are damaged",
    ),
}


@pytest.mark.parametrize(("damage", "message"), BROKEN_FOLDERS.values(), ids=BROKEN_FOLDERS)
def test_a_broken_folder_is_an_error_that_names_the_file(folder, damage, message):
    damage(folder)
    with pytest.raises(DataError, match=message):
        HSALEnv(source="custom", images=str(folder))


BAD_IMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda f: (f / "5.png").unlink(), "named but not there"),
    "a folder": (lambda f: ((f / "5.png").unlink(), (f / "5.png").mkdir()), "damaged or in no format that is read"),
    "empty": (overwrite("5.png", b""), "damaged or in no format that is read"),
    "garbage": (overwrite("5.png", b"garbage" * 99), "damaged or in no format that is read"),
    "cut off": (cut_off, "damaged or in no format that is read"),
    "a GIF": (save(RGB, format="GIF"), "damaged or in no format that is read"),
    "two pages": (save(RGB, format="TIFF", save_all=True, append_images=[RGB]), "damaged or in no format that is read"),
    "alpha": (save(RGB.convert("RGBA")), "neither 8-bit grey nor RGB"),
    "transparency": (save(RGB, transparency=(0, 0, 0)), "neither 8-bit grey nor RGB"),
    "16 bits": (save(Image.fromarray(GREY[0].astype(np.uint16))), "neither 8-bit grey nor RGB"),
    "a box of no area": (
        overwrite("labels.csv", "file,labels,boxes\n5.png,0,1 1 0 2\n0.png,1,0 0 2 2\n"), "with a box of no area",
    ),
    "a box outside": (
        overwrite("labels.csv", "file,labels,boxes\n5.png,0 0,1 1 2 2;24 0 9 9\n0.png,1,0 0 2 2\n"),
        "with a box outside the image",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "reason"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_an_image_that_cannot_be_used_is_left_out_and_told_once(folder, damage, reason):
    damage(folder)
    with pytest.warns(
        UserWarning, match=rf"mine: \d+ images are used\. 1 are left out: 1 {reason} \(.*5\.png\)\.$"
    ) as said:
        data = load_folder(str(folder))
    assert len(said) == 1
    assert len(data) == len((folder / "labels.csv").read_text().splitlines()) - 2
    assert not any(name.endswith("5.png") for name in data.names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_folder(str(folder)) is data


def test_boxes_of_a_table_stay_with_their_labels(folder):
    (folder / "labels.csv").write_text(
        'file;labels;boxes\n0.png;1 0;"1 2 3 4; 20 30 9 9.5"\n1.png;2;\n2.png;;\n', newline=""
    )
    data = load_folder(str(folder))
    assert data.labels.tolist() == [[1, 0], [2, -1], [-1, -1]]
    assert data.boxes.tolist() == [[[1, 2, 3, 4], [20, 30, 4, 2]], [[-1] * 4] * 2, [[-1] * 4] * 2]  # cut off at 24x32
    assert not data.has_boxes  # of 1.png
    read = config(str(folder)).canvases.compose([0])
    assert read.boxes.tolist() == data.boxes[[0]].tolist()


def test_messages_name_the_file_of_a_label(folder):
    with pytest.raises(DataError, match=r"mine/3\.png: expected labels in 0\.\.2"):
        HSALEnv(source="custom", images=str(folder), num_classes=3)


# --- the environment --------------------------------------------------------------------------------------------------

ARRAYS = {
    "grey": {"images": GREY, "labels": LABELS},
    "colour": {"images": COLOUR, "labels": LABELS, "activation": Patches(), "saliency": Total()},
}


@pytest.mark.parametrize("mode", ["native", "flat"])
@pytest.mark.parametrize("arrays", ARRAYS.values(), ids=ARRAYS)
def test_arrays_pass_the_checker_and_the_spec_survives(arrays, mode):
    env = gym.make("HSAL-Custom-v0", **arrays, action_mode=mode, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
    again = gym.make(env.spec)
    assert again.observation_space == env.observation_space
    assert_equal(again.reset(seed=3)[0], env.reset(seed=3)[0])


@pytest.mark.parametrize("arrays", ARRAYS.values(), ids=ARRAYS)
def test_an_observation_holds_the_image_and_the_info_its_labels(arrays):
    env = gym.make("HSAL-Custom-v0", **arrays)
    observation, info = env.reset(options={"index": 3})
    shape = (24, 32, 3) if arrays["images"] is COLOUR else (24, 32, 1)
    assert env.observation_space["image"].shape == shape
    np.testing.assert_array_equal(observation["image"], arrays["images"][3].reshape(shape))
    assert info["label_counts"].tolist() == [0, 1, 1, 1]
    assert info["source"] == "custom"
    assert env.action_space["label"].n == 5
    assert env.observation_space["last_label"].n == 6


@pytest.mark.parametrize("arrays", ARRAYS.values(), ids=ARRAYS)
def test_native_lanes_are_gymnasiums_to_the_bit(arrays):
    native = gym.make_vec("HSAL-Custom-v0", num_envs=3, **arrays)
    assert isinstance(native.unwrapped, HSALVectorEnv)
    in_turn = gym.make_vec("HSAL-Custom-v0", num_envs=3, vectorization_mode="sync", **arrays)
    assert isinstance(in_turn.unwrapped, SyncVectorEnv)
    native.action_space.seed(0)
    assert_equal(native.reset(seed=5), in_turn.reset(seed=5))
    for _ in range(12):
        actions = native.action_space.sample()
        (seen, *outcome, _), (expected, *expected_outcome, _) = native.step(actions), in_turn.step(actions)
        assert_equal((seen, *outcome), (expected, *expected_outcome))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["copy", "pickle"])
@pytest.mark.parametrize("arrays", [*ARRAYS.values(), None], ids=[*ARRAYS, "folder"])
def test_a_copy_goes_on_identically(copied, arrays, folder):
    env = HSALEnv(source="custom", split="all", **(arrays or {"images": str(folder)}))
    env.action_space.seed(0)
    env.reset(seed=1)
    twin = copied(env)
    for _ in range(3):
        action = env.action_space.sample()
        assert_equal(twin.step(action), env.step(action))
    assert_equal(twin.reset(seed=2), env.reset(seed=2))


def test_of_an_image_without_objects_stop_is_right():
    env = single()
    _, info = env.reset(options={"index": 2})
    assert info["label_counts"].tolist() == [0, 0, 0, 0]
    for _ in range(4):
        _, reward, terminated, _, info = env.step({"attention": np.zeros(20, np.float32), "location": 0, "label": STOP})
    assert (reward, terminated) == (1.0, True)
    assert (info["exact_match"], info["precision"], info["recall"]) == (1, 1, 1)


def test_of_an_image_without_objects_a_label_is_wrong():
    env = single(protocol="teacher")
    env.reset(options={"index": 2})
    for _ in range(4):
        *_, terminated, _, info = env.step({"attention": np.zeros(20, np.float32), "location": 0, "label": 1})
    assert terminated
    assert (info["exact_match"], info["precision"], info["recall"]) == (0, 0, 1)


@pytest.mark.parametrize("shape", [(24, 60), (60, 24)])
def test_a_picture_shows_colour_and_keeps_proportions(shape):
    red = np.zeros((1, *shape, 3), np.uint8)
    red[..., 0] = 255
    env = single(images=red, labels=[[0]], activation=Patches())
    env.render_mode = "rgb_array"
    env.reset(seed=0)
    pixels = np.argwhere((env.render() == [255, 0, 0]).all(axis=2))
    height, width = np.ptp(pixels, axis=0) + 1
    assert height / width == pytest.approx(shape[0] / shape[1], rel=0.03)
    assert max(height, width) > 120


# --- models -----------------------------------------------------------------------------------------------------------


def test_a_given_module_is_the_named_one():
    named, given = (
        Examples(config(COLOUR, activation=activation, saliency=saliency))
        for activation, saliency in ((f"{__name__}:Patches", f"{__name__}:Redness"), (Patches(), Redness()))
    )
    for one, other in zip(named.load([3, 0])[0], given.load([3, 0])[0], strict=True):
        assert torch.equal(one, other)


def test_a_volume_is_of_the_colours():
    example, _ = Examples(config(COLOUR, activation=Patches(), saliency=Total())).load([7])
    patches = COLOUR[7].reshape(3, 8, 4, 8, 3).mean(axis=(1, 3)).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(example.volume[0], patches, rtol=1e-2)  # bfloat16 where the processor has it
    np.testing.assert_allclose(example.raw_saliency[0], patches.sum(axis=0), rtol=1e-2)


def test_grey_is_repeated_for_a_model_that_reads_colour():
    volume = Examples(config(GREY, activation=Patches())).load([4])[0].volume[0]
    assert torch.equal(volume[0], volume[1])
    assert torch.equal(volume[0], volume[2])


def test_a_given_module_is_copied():
    mine, weighing = Patches().train(), Redness()
    used = Examples(config(COLOUR, activation=mine, saliency=weighing))
    before = used.load([0])[0]
    with torch.no_grad():
        mine.scale.zero_(), weighing.weight.zero_()
    after = used.load([0])[0]
    assert torch.equal(before.volume, after.volume)
    assert torch.equal(before.raw_saliency, after.raw_saliency)
    assert mine.training
    assert mine.scale.requires_grad


@pytest.mark.parametrize("activation", ["compact", GreyPatches()])
def test_colour_for_a_model_that_reads_grey_is_refused_with_a_way_out(activation):
    for features in ("lazy", "store"):
        with pytest.raises(DataError, match=r"in colour .* reads 1 channel.* image\.convert\('L'\).* in_channels = 3"):
            HSALEnv(source="custom", images=COLOUR, labels=LABELS, activation=activation, features=features)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            nn.Conv2d(3, 8, 3),
            r"activation=Conv2d: expected an nn\.Module with .*model\.in_channels, model\.channels = 3, 64",
        ),
        (Patches, "activation=Patches: expected an nn.Module"),
        (Total(), "activation=Total: expected"),
        (None, "activation=None: expected"),
    ],
)
def test_what_is_no_activation_model_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        activation_model(given)


@pytest.mark.parametrize(("given", "name"), [(Total, "Total"), (3, "3"), (None, "None"), (nn.Parameter(), "Parameter")])
def test_what_is_no_saliency_model_is_refused(given, name):
    with pytest.raises(ConfigError, match=f"saliency={name}: expected a name, or an object that can be called"):
        saliency_model(given)


def test_a_given_models_bad_answers_are_named_by_its_class():
    with pytest.raises(DataError, match=r"activation=Patches: expected a finite volume.*NaN"):
        Examples(config(COLOUR, activation=Patches(gain=float("nan"))))
    with pytest.raises(DataError, match="saliency=<lambda>: expected a map"):
        Examples(config(saliency=lambda images, volume: -volume.sum(dim=1))).load([0])


@pytest.mark.parametrize("features", ["lazy", "store"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_saliency_map_of_any_precision_becomes_float32(features, dtype):
    given = config(features=features, saliency=lambda images, volume: volume.abs().sum(dim=1).to(dtype))
    assert Examples(given).load([0, 1])[0].raw_saliency.dtype == torch.float32


@pytest.mark.parametrize("shape", [(100, 100), (48, 64), (37, 130)])
def test_the_compact_model_reads_other_sizes(shape):
    env = single(images=np.zeros((1, *shape), np.uint8), labels=[[0]], activation="compact")
    assert env.simulation.examples.map_size == (-(-shape[0] // 16), -(-shape[1] // 16))


# --- the feature store ------------------------------------------------------------------------------------------------


@pytest.fixture
def stores(tmp_path, monkeypatch) -> Callable[[], int]:
    """How many stores there are."""
    monkeypatch.setenv("HSAL_CACHE", str(tmp_path / "cache"))
    return lambda: len(list((tmp_path / "cache" / "features").iterdir()))


def test_stored_features_are_the_lazy_ones(stores):
    kept, lazy = (Examples(config(COLOUR, activation=Patches(), features=f), progress=False) for f in ("store", "lazy"))
    for one, other in zip(kept.load([3, 11, 2])[0], lazy.load([3, 11, 2])[0], strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


def test_a_store_is_found_by_what_its_content_depends_on(stores, tmp_path):
    stronger = Patches()
    with torch.no_grad():
        stronger.scale.mul_(2)
    dimmed = COLOUR.copy()
    dimmed[3, 0, 0, 0] ^= 1
    different = [
        {},
        {"images": dimmed},
        {"labels": [[3, 3], *LABELS[1:]]},
        {"num_examples": 11},
        {"split": "train"},
        {"split": "train", "seed": 1},
        {"activation": stronger},
        {"activation": Patches(gain=2.0)},
    ]
    for count, change in enumerate(different, start=1):
        Examples(config(**{"images": COLOUR, "activation": Patches(), "features": "store", **change}), progress=False)
        assert stores() == count
    folder = write_folder(tmp_path / "same", COLOUR, LABELS)
    for same in ({"activation": f"{__name__}:Patches"}, {"images": folder}, {"glimpses": 3}, {"num_classes": 9}):
        Examples(config(**{"images": COLOUR, "activation": Patches(), "features": "store", **same}), progress=False)
    assert stores() == len(different)


def test_a_store_of_a_model_without_source_is_refused_with_a_way_out(stores):
    made: dict = {"Patches": Patches, "__name__": "__main__"}
    exec("class Typed(Patches):\n    pass", made)  # as in a notebook
    given = made["Typed"]()
    given.__class__.__module__ = "no_such_module"
    assert Examples(config(COLOUR, activation=given)).channels == 3
    with pytest.raises(ConfigError, match=r"The source of Typed cannot be read.*Put the class into a file.*'lazy'"):
        Examples(config(COLOUR, activation=given, features="store"), progress=False)


def test_a_stock_module_needs_no_source(stores):
    made = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.ReLU())
    made.in_channels, made.channels = 3, 4
    assert Examples(config(COLOUR, activation=made, features="store"), progress=False).map_size == (3, 4)


# --- pictures of episodes ---------------------------------------------------------------------------------------------


def test_an_episode_of_other_labels_is_drawn_with_its_own_stop():
    step = MetaStep((0,), STOP)
    stopped, named = (
        draw_trace(trace_of([step], [3], map_size=(3, 4), image=COLOUR[0], num_classes=classes))
        for classes in (STOP, STOP + 1)
    )
    assert (stopped != named).any()


# --- learning ---------------------------------------------------------------------------------------------------------

AGENT = AgentConfig(meta_hidden=8, controller_hidden=16, location_hidden=8)


def agent_for(env: EnvConfig) -> ActorCritic:
    examples = Examples(env)
    return ActorCritic(World(env.rules, examples.map_size, examples.channels, env.classes), AGENT)


@pytest.mark.parametrize("algorithm", ["reinforce", "ppo", "cross-entropy", "multiset-loss"])
@pytest.mark.parametrize("labels", [LABELS, [[]] * 12], ids=["some empty", "all empty"])
def test_images_without_objects_can_be_learned_from(algorithm, labels):
    env = config(labels=labels, num_classes=STOP, protocol="teacher")
    learner = Learner(agent_for(env), LearnerConfig(algorithm=algorithm, batch_size=4), num_updates=1)
    (logged,) = learner.numbers([learner.update(make_env(env, 4), np.arange(4))])
    assert all(np.isfinite(value) for value in logged.values())
    assert all(part.isfinite().all() for part in learner.agent.parameters())


def test_episodes_are_recorded_in_colour_with_their_labels():
    env = config(COLOUR, activation=Patches())
    for index, trace in enumerate(record(agent_for(env).eval(), env, np.arange(4))):
        np.testing.assert_array_equal(trace.image, COLOUR[index])
        assert trace.labels.tolist() == LABELS[index]
        assert (trace.boxes == -1).all()
        assert trace.saliency.shape[1:] == (3, 4)
        assert trace.grid.stride_px == (COLOUR[0].shape[0] / 3, COLOUR[0].shape[1] / 4)


@pytest.mark.parametrize(
    ("objects", "named"),
    [
        ({"images": GREY, "labels": LABELS}, "images"),
        ({"activation": GreyPatches()}, "activation"),
        ({"saliency": Total()}, "saliency"),
    ],
)
def test_what_a_checkpoint_cannot_hold_is_refused_before_anything_is_written(folder, tmp_path, objects, named):
    env = EnvConfig(**{"source": "custom", "images": str(folder), "split": "train", **objects})
    with pytest.raises(
        ConfigError, match=f"^{named}: a checkpoint cannot hold arrays or objects. Give images as a folder"
    ):
        Run(RunConfig(tmp_path / "run", env, "hsal", AGENT, LearnerConfig(batch_size=4)))
    assert not (tmp_path / "run").exists()


def test_plain_values_hold_what_the_data_decide(folder):
    plain = config(str(folder), activation="compact").plain()
    assert plain == json.loads(json.dumps(plain))
    assert {name: plain[name] for name in ("images", "num_classes", "max_objects")} == {
        "images": str(folder), "num_classes": 4, "max_objects": 3,
    }  # fmt: skip
    assert not {"images", "labels", "num_classes"} & set(EnvConfig(source="digits").plain())


# --- the commands -----------------------------------------------------------------------------------------------------


FLAGS = [
    *("--preset", "tiny", "--env-id", "HSAL-Custom-v0", "--activation", f"{__name__}:GreyPatches", "--passes", 1),
    *("--batch-size", 8, "--controller-hidden", 16, "--meta-hidden", 16, "--output-dir", "run"),
]


AGENT_OF_MINE = ["run/checkpoint.pt", "--trust-names"]


def metrics_of(path: str) -> dict:
    return json.loads(Path(path).read_text())


def test_a_folder_is_trained_on_and_its_agent_tested(command, custom_folder, tmp_path):
    """From images to the table, where the folder has moved, and on with the run."""
    folder = tmp_path / "mine"
    shutil.copytree(custom_folder, folder)
    (folder / "labels.csv").write_text((folder / "labels.csv").read_text() + "empty.png,\n")
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(folder / "empty.png")
    command(TRAIN, [*FLAGS, "--images", "mine"])
    metrics = metrics_of("run/metrics.json")
    assert metrics["source"] == "custom"
    assert sum(part["episodes"] for part in metrics["test"]["by_count"].values()) == 4
    env = metrics["config"]["env"]
    assert (env["split"], env["num_classes"], env["max_objects"]) == ("train", 5, 3)
    assert "mine" not in json.dumps(metrics)  # where the data lie is a fact of the machine
    assert (tmp_path / "run" / "episodes.png").is_file()
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt", trust=True).env.images == "mine"

    command(EVALUATE, [*AGENT_OF_MINE, "--json", "t.json", "--picture", "t.png"])
    assert metrics_of("t.json")["test"] == metrics["test"]
    folder.rename(tmp_path / "moved")
    command.fails(EVALUATE, [*AGENT_OF_MINE], "error: No folder mine.")
    command(EVALUATE, [*AGENT_OF_MINE, "--images", "moved", "--json", "m.json"])
    assert metrics_of("m.json")["test"] == metrics["test"]
    command(EVALUATE, [*AGENT_OF_MINE, "--images", "moved", "--split", "all", "--json", "all.json"])
    assert sum(part["episodes"] for part in metrics_of("all.json")["test"]["by_count"].values()) == 41

    command(TRAIN, [*FLAGS, "--images", "moved", "--resume"])
    (tmp_path / "moved" / "labels.csv").write_text((custom_folder / "labels.csv").read_text())
    command.fails(TRAIN, [*FLAGS, "--images", "moved", "--resume"], "error:", "images differ")
    command.fails(EVALUATE, [*AGENT_OF_MINE, "--source", "digits"], "error: The agent names 5 labels, digits has 10")
    command.fails(ANALYSE, [*AGENT_OF_MINE, "--episodes", 4], "error: No folder mine.")
    (tmp_path / "moved").rename(folder)
    command.fails(
        ANALYSE,
        [*AGENT_OF_MINE, "--episodes", 4],
        "error: Expected images whose objects have known boxes; got images without",
    )
    command.fails(
        BUNDLE,
        ["run", "--name", "x", "--trust-names"],
        "error: Expected an agent that was trained on mnist or digits or house-numbers or svhn; got one trained on 'custom'",
    )


def test_class_names_go_with_the_agent_and_are_shown(command, custom_folder, tmp_path):
    """Words in labels.csv: the checkpoint holds their order, and traces, pictures and tables show them."""
    shutil.copytree(custom_folder, tmp_path / "mine")
    words = dict(zip("01234", ["fig", "elk", "dog", "cat", "bee"], strict=True))
    first, *lines = (custom_folder / "labels.csv").read_text().splitlines()
    named = [
        f"{file},{' '.join(words[label] for label in row.split())}" for file, row in (line.split(",") for line in lines)
    ]
    (tmp_path / "mine" / "labels.csv").write_text("\n".join([first, *named]))
    command(TRAIN, [*FLAGS, "--images", "mine"])
    loaded = checkpoint.load(tmp_path / "run" / "checkpoint.pt", trust=True)
    assert loaded.env.class_names == ("bee", "cat", "dog", "elk", "fig")
    assert metrics_of("run/metrics.json")["config"]["env"]["class_names"] == [*loaded.env.class_names]
    shutil.copytree(tmp_path / "mine", tmp_path / "few")
    (tmp_path / "few" / "labels.csv").write_text(HEAD + "1.png,fig\n2.png,dog\n")
    env = dataclasses.replace(loaded.env_on("all", images="few"), split="all")
    assert env.canvases.compose([0, 1]).labels.tolist() == [[4], [2]]  # as the agent knows them
    trace = record(loaded.agent, env, 0)
    assert (trace.class_names, trace.label_name(4), trace.label_name(5)) == (loaded.env.class_names, "fig", "stop")
    assert [*tables([describe(trace)])["by label"]] == [*loaded.env.class_names]
    (tmp_path / "few" / "labels.csv").write_text(HEAD + "1.png,yak\n")
    with pytest.raises(DataError, match=r"1\.png: expected labels among the class names bee, .*; got 'yak'"):
        _ = dataclasses.replace(loaded.env_on("all", images="few"), split="all").data


def test_a_bundled_agent_scores_alike_on_canvases_and_on_their_files(command, tmp_path):
    tested = EnvConfig(source="digits", split="test", num_examples=20, max_objects=6, max_size_px=33)
    canvases = Examples(tested).compose(np.arange(20))
    write_folder(tmp_path / "files", canvases.images, [[c for c in row if c >= 0] for row in canvases.labels.tolist()])
    same = ["mnist-multiset", "--episodes", 20, "--max-objects", 6]
    command(EVALUATE, [*same, "--source", "digits", "--max-size-px", 33, "--json", "a.json"])
    command(EVALUATE, [*same, "--images", "files", "--split", "all", "--json", "b.json"])
    on_canvases, on_files = metrics_of("a.json"), metrics_of("b.json")
    where = ("pointing", "mask_in_box", "focus", "several")  # the files come without boxes
    assert all(on_files["test"].pop(name) is None and on_canvases["test"].pop(name) is not None for name in where)
    assert on_files["test"] == on_canvases["test"]
    assert (on_files["source"], on_files["trained_on"]) == ("custom", "mnist")
    assert on_files["test"]["exact_match"] > 0
    command.fails(EVALUATE, ["mnist-multiset", "--images", "files"], "files/", "max_objects=4 labels; got", "to 6")


@pytest.mark.parametrize(
    ("name", "flags", "said"),
    [
        (TRAIN, [], "error: HSAL-Custom-v0 needs your images: pass images=FOLDER (--images FOLDER)"),
        (TRAIN, ["--images", "nowhere"], "error: No folder nowhere."),
        (TRAIN, ["--images", "mine", "--env-id", "HSAL-DigitsSet-v0"], "'digits' takes; got images (for custom)"),
        (TRAIN, ["--images", "mine", "--min-objects", 2], "'custom' takes; got min_objects (for auto"),
        (TRAIN, ["--images", "mine", "--batch-size", 64], "batch_size=64 training images; got 10"),
        (TRAIN, ["--images", "mine", "--activation", "resnet1000"], "Unknown activation model 'resnet1000'"),
    ],
)
def test_a_wrong_flag_is_a_clear_error(command, folder, tmp_path, name, flags, said):
    command.fails(name, [*FLAGS, *flags], said)
    assert {path.name for path in tmp_path.glob("run/*")} <= {".lock"}  # which says that the folder was in use


def test_the_count_network_says_that_it_takes_no_images(command):
    command.fails(COUNT, ["--env-id", "HSAL-Custom-v0"], "error: HSAL-Custom-v0 needs your images")


def test_an_image_that_a_camera_stored_lying_is_turned_upright(tmp_path: Path):
    lying = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    lying.save(tmp_path / "a.png", exif=exif)
    (tmp_path / "labels.csv").write_text("file,labels\na.png,1\n")
    image = load_folder(str(tmp_path)).images[0]
    assert image.shape == (6, 4)
    np.testing.assert_array_equal(image, np.rot90(np.asarray(lying), -1))


# --- files outside the folder ----------------------------------------------------------------------------------------


@pytest.fixture(params=["..", "absolute", "link"])
def folder_that_reaches_out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder whose labels.csv names an image that lies beside it."""
    folder, image = tmp_path / "folder", tmp_path / "secret.png"
    folder.mkdir()
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(image)
    name = {"..": "../secret.png", "absolute": str(image), "link": "link.png"}[request.param]
    if request.param == "link":
        (folder / "link.png").symlink_to(image)
    (folder / "labels.csv").write_text(f"file,labels\n{name},1\n")
    return folder


def test_a_file_outside_the_folder_is_refused(folder_that_reaches_out: Path):
    with pytest.raises(
        DataError, match=r"labels\.csv, line 2: expected a file in .*folder; got .*, which lies outside"
    ):
        load_folder(str(folder_that_reaches_out))


def test_a_file_outside_the_folder_may_be_allowed(folder_that_reaches_out: Path):
    assert np.max(load_folder(str(folder_that_reaches_out), outside=True).images) == 7
