"""Synthetic house numbers: what is in them, where it stands, and that an index decides a canvas."""

import numpy as np
import pytest

from hsal_env.config import EnvConfig
from hsal_env.data.house_numbers import FACES, HouseNumbers, _blurred, _ink, _walls
from hsal_env.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def train():
    return HouseNumbers("train")


def test_a_canvas_is_the_same_alone_in_a_batch_and_in_any_order(train):
    batch = train.compose(range(40))
    for chosen in ([7], [39, 0, 7], list(range(20, 40))):
        some = HouseNumbers("train").compose(chosen)
        for part, whole in zip(some, batch, strict=True):
            np.testing.assert_array_equal(part, whole[chosen])


def test_no_canvases_are_no_canvases(train):
    batch = train.compose([])
    assert [part.shape for part in batch] == [(0, 100, 100, 3), (0, 5), (0, 5, 4)]
    assert batch.images.dtype == np.uint8


def test_a_negative_index_is_refused(train):
    with pytest.raises(DataError, match="at least 0; got -1"):
        train.compose([3, -1])


def test_another_split_or_seed_is_another_canvas(train):
    first = train.compose(range(4)).images
    for other in (HouseNumbers("val"), HouseNumbers("test"), HouseNumbers("train", seed=1)):
        assert (other.compose(range(4)).images != first).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize(
    ("task", "least", "most"), [("multiset", 1, 5), ("multiset", 3, 4), ("set", 5, 5), ("single", 1, 1)]
)
def test_labels_are_what_the_task_says(task, least, most):
    batch = HouseNumbers("val", task=task, min_objects=least, max_objects=most).compose(range(400))
    present = batch.labels >= 0
    counts = present.sum(axis=1)
    assert sorted(set(counts.tolist())) == list(range(least, most + 1))
    shares = np.bincount(counts)[least:] / 400
    np.testing.assert_allclose(shares, 1 / (most - least + 1), atol=0.07)
    assert set(batch.labels[present].tolist()) == set(range(10))
    twice = [len(set(row[row >= 0])) < (row >= 0).sum() for row in batch.labels]
    assert any(twice) == (task == "multiset" and most > 1)
    np.testing.assert_array_equal((batch.boxes >= 0).all(axis=2), present)
    assert (batch.boxes[~present] == -1).all()


@pytest.mark.parametrize("px", [100, 64, 33])
def test_boxes_stand_side_by_side_inside_the_image(px):
    batch = HouseNumbers("train", image_px=px).compose(range(200))
    assert batch.images.shape == (200, px, px, 3)
    for boxes, labels in zip(batch.boxes, batch.labels, strict=True):
        boxes = boxes[labels >= 0]
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= px).all()
        assert (boxes[:, 2:] >= 2).all()
        assert (np.diff(boxes[:, 1]) > 0).all()  # left to right
        common = (boxes[:, :2] + boxes[:, 2:]).max(axis=0) - boxes[:, :2].min(axis=0)
        assert common[1] > px / 1.3 * 0.75  # stretched over the crop, however many there are


def test_the_ink_lies_in_the_boxes(train):
    """Where wall, light and noise are taken away, every pixel of ink is in a box, and every box is full of it."""
    draw = train._random.draws(np.arange(60))
    labels, layout = train._layout(draw)
    ink, boxes = train._alpha(layout) > 0, layout.boxes(100)
    for lane in range(60):
        covered = np.zeros((100, 100), bool)
        for row, col, height, width in boxes[lane][labels[lane] >= 0]:
            covered[row : row + height, col : col + width] = True
            inside = ink[lane, row : row + height, col : col + width]
            assert inside.any(axis=1).mean() > 0.9  # ink from top to bottom
        assert not (ink[lane] & ~covered).any()


def test_digits_look_like_their_labels_and_unlike_others():
    """An upright digit is nearest to the ink of its own label: pictures and labels belong together."""
    canvases = HouseNumbers("test", task="single", max_objects=1)
    draw = canvases._random.draws(np.arange(300))
    labels, layout = canvases._layout(draw)
    alpha = canvases._alpha(layout._replace(shear=np.zeros(300, np.float32)))
    mean = np.zeros((10, 16, 16))
    small = np.empty((300, 16, 16))
    for lane in range(300):
        top, left = max(layout.top[lane, 0], 0), max(layout.left[lane, 0], 0)
        digit = alpha[lane, top : top + layout.high[lane, 0], left : left + layout.width[lane, 0]]
        rows, cols = (np.linspace(0, size - 1, 16).astype(int) for size in digit.shape)
        small[lane] = digit[np.ix_(rows, cols)]
    label = labels[:, 0]
    for value in range(10):
        mean[value] = small[:150][label[:150] == value].mean(axis=0)
    nearest = ((small[150:, None] - mean) ** 2).sum(axis=(2, 3)).argmin(axis=1)
    assert (nearest == label[150:]).mean() > 0.9


def test_the_number_stands_out_from_the_wall(train):
    """Every number differs from its wall in brightness by more than noise does."""
    draw = train._random.draws(np.arange(100))
    _, layout = train._layout(draw)
    ink = train._alpha(layout) > 200
    images = train.compose(range(100)).images.astype(float).mean(axis=3)
    differences = [abs(np.median(image[on]) - np.median(image[~on])) for image, on in zip(images, ink, strict=True)]
    assert np.median(differences) > 60
    assert np.mean(np.array(differences) > 20) > 0.94


def test_images_are_in_colour_and_vary(train):
    images = train.compose(range(64)).images
    tints = images.mean(axis=(1, 2))  # [64, 3]
    assert (np.ptp(tints, axis=1) > 5).mean() > 0.9
    means = images.mean(axis=(1, 2, 3))
    assert means.std() > 30


def test_splits_share_no_type_face_but_under_the_papers_policy():
    faces = [face for split in FACES.values() for face in split]
    assert len(faces) == len(set(faces)) == 20
    looks = {split: HouseNumbers(split)._ink.looks for split in FACES}
    assert looks == {split: 3 * len(names) for split, names in FACES.items()}
    assert {HouseNumbers(split, "paper")._ink.looks for split in FACES} == {60}
    assert HouseNumbers("train").content[2].shape != HouseNumbers("train", "paper").content[2].shape


def test_every_face_draws_ten_different_digits():
    for names in FACES.values():
        for face in names:
            ink = _ink((face,))
            widest = ink.pixels[: ink.offset[1]].reshape(30, -1)
            assert len(np.unique(widest, axis=0)) == 30, face
            assert (widest.max(axis=1) > 200).all(), face
            assert ((ink.aspect > 0.2) & (ink.aspect < 1.2)).all(), face


def test_splits_share_no_wall():
    walls = [_walls(stream).reshape(len(_walls(stream)), -1)[:, :4096] for stream in range(3)]
    assert len(np.unique(np.concatenate(walls), axis=0)) == 3 * len(walls[0])


def test_blurring_by_hand():
    spot = np.zeros((1, 3, 4), np.int32)
    spot[0, 1, 1] = 160
    assert _blurred(spot).tolist() == [[[10, 20, 10, 0], [20, 40, 20, 0], [10, 20, 10, 0]]]
    assert _blurred(np.full((2, 3, 3), 7, np.int32)).tolist() == np.full((2, 3, 3), 7).tolist()


@pytest.mark.parametrize("px", [32, 512])
def test_the_smallest_and_the_largest_image_are_drawn(px):
    images, labels, boxes = HouseNumbers(image_px=px).compose([0])
    assert images.shape == (1, px, px, 3)
    assert (boxes[labels >= 0] >= 0).all()
    assert (boxes[..., :2] + boxes[..., 2:]).max() <= px


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"task": "pair"}, "Expected task"),
        ({"task": "single", "max_objects": 2}, "min_objects = max_objects = 1"),
        ({"max_objects": 6}, "<= 5 with house numbers; got 1 and 6"),
        ({"min_objects": 0}, "1 <= min_objects"),
        ({"min_objects": 3, "max_objects": 2}, "got 3 and 2"),
        ({"canvas_px": 16}, "canvas_px of at least 32 and at most 512 with house numbers; got 16"),
        ({"canvas_px": 513}, "canvas_px of at least 32 and at most 512 with house numbers; got 513"),
        ({"clutter": 3}, r"'house-numbers' takes; got clutter \(for auto, mnist, digits\)"),
        ({"min_size_px": 10, "max_size_px": 30}, r"min_size_px \(.*\), max_size_px \("),
        ({"extra": True}, r"got extra \(for svhn\)"),
        ({"images": "folder"}, r"got images \(for custom\)"),
        ({"split": "all"}, "got 'all', which only images of your own have"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments, said):
    with pytest.raises(ConfigError, match=said):
        EnvConfig(source="house-numbers", **arguments)


def test_the_configuration_knows_them():
    config = EnvConfig(source="house-numbers")
    assert (config.objects_limit, config.classes, config.image_shape) == (5, 10, (100, 100, 3))
    assert (EnvConfig(source="house-numbers", task="single").objects_limit, config.size) == (1, 60_000)
    assert config.canvases.source == "house-numbers"
    grey = config.on_source("digits", max_objects=4)
    assert (grey.image_shape, grey.source) == ((100, 100, 1), "digits")
    assert EnvConfig(source="digits", clutter=3, task="set").on_source("house-numbers").clutter == 8
