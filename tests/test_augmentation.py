"""Variations of photographs: what stays, what moves, and that an index decides."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest

from hsal_env.config import EnvConfig
from hsal_env.data.augmentation import NUMBERS, NUMBERS_BESIDE, VARIATIONS, Variation, Varied
from hsal_env.data.canvases import CanvasBatch
from hsal_env.data.custom import CustomCanvases, LabelledImages
from hsal_env.data.variation import FormDraw, bent, beside, overlaid, varied
from hsal_env.errors import ConfigError, DataError

STILL = Variation(
    zoom=(1.0, 1.0),
    stretch=0.0,
    turn_deg=0.0,
    shear=0.0,
    bend=0.0,
    blur_px=0.0,
    saturation=(1.0, 1.0),
    contrast=(1.0, 1.0),
    light=0.0,
    noise=0.0,
)
"""Changes nothing, but for the blur of 0.3 px that half of the images get."""
OVERLAID = replace(VARIATIONS["mirrored"], overlaid=0.7)
NO_BOXES = np.full((1, 4), -1, np.int64)


OWN = {"source": "custom", "images": np.zeros((3, 8, 8), np.uint8), "labels": [[0]] * 3}


@pytest.fixture
def images() -> CustomCanvases:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 24, 32, 3)).astype(np.uint8)
    labels = [[i] * (i % 3) for i in range(10)]
    return CustomCanvases(LabelledImages(pixels, labels, labels_are="lists"), "all")


def unblurred() -> np.random.Generator:
    """Random numbers under which the image is not blurred."""
    for seed in range(100):
        image = np.zeros((9, 9), np.uint8)
        image[4, 4] = 255
        if (varied(image, NO_BOXES, STILL, np.random.default_rng(seed))[0] == image).all():
            return np.random.default_rng(seed)
    raise AssertionError


def test_a_variation_by_nothing_is_the_image():
    image = np.random.default_rng(1).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    found, _ = varied(image, NO_BOXES, STILL, unblurred())
    assert (found == image).all()


def test_zoom_by_hand():
    """At half its size a white square of 8 px in the middle becomes one of 4 px, and its box with it."""
    image = np.zeros((32, 32), np.uint8)
    image[12:20, 12:20] = 255
    half = dataclasses.replace(STILL, zoom=(0.5, 0.5))
    for seed in range(4):
        found, boxes = varied(image, np.array([[12, 12, 8, 8], [-1] * 4]), half, np.random.default_rng(seed))
        rows, columns = np.nonzero(found > 127)
        top, left, height, width = boxes[0].tolist()
        assert 3 <= np.ptp(rows) + 1 <= 5
        assert 3 <= np.ptp(columns) + 1 <= 5
        assert top <= rows.min() < rows.max() < top + height <= top + 5
        assert left <= columns.min() < columns.max() < left + width <= left + 5
        assert (boxes[1] == -1).all()


def test_what_is_in_the_image_stays_in_it():
    """The content shrinks, and is shifted by no more than the room that this makes."""
    image = np.zeros((40, 60), np.uint8)
    image[:, [0, -1]] = image[[0, -1]] = 255
    shift = dataclasses.replace(STILL, zoom=(0.6, 0.9))
    for seed in range(20):
        _, boxes = varied(image, np.array([[0, 0, 40, 60]]), shift, np.random.default_rng(seed))
        top, left, height, width = boxes[0].tolist()
        assert 0.55 < height / 40 < 0.95
        assert top + height <= 40
        assert left + width <= 60


def test_half_of_the_images_are_mirrored():
    image = np.random.default_rng(2).integers(0, 256, (9, 15)).astype(np.uint8)
    met = [0, 0]
    for seed in range(120):
        found, _ = varied(image, NO_BOXES, dataclasses.replace(STILL, mirrored=True), np.random.default_rng(seed))
        for side, wanted in enumerate((image, image[:, ::-1])):
            met[side] += np.abs(found.astype(int) - wanted).max() <= 1
    # half of the images are blurred a little, and then like neither
    assert min(met) > 15


def test_an_image_that_is_turned_by_any_angle_stays_in_its_frame():
    """What lies in the ellipse that touches the four sides: here boxes at the ends of its axes."""
    ends = np.array([[46, 2, 8, 8], [46, 190, 8, 8], [2, 96, 8, 8], [90, 96, 8, 8]])
    turned = dataclasses.replace(STILL, turn_deg=180.0, zoom=(0.9, 1.0))
    angles = []
    for seed in range(60):
        _, boxes = varied(np.zeros((100, 200), np.uint8), ends, turned, np.random.default_rng(seed))
        centres = boxes[:, :2] + boxes[:, 2:] / 2
        assert (boxes[:, 2:] >= 4).all()  # at least 8 * 0.9 / 2, so that nothing is cut off
        across = centres[1] - centres[0]
        angles.append(np.degrees(np.arctan2(*across)))
    assert np.histogram(angles, bins=6, range=(-180, 180))[0].min() >= 3


def test_a_turn_is_measured_in_px_and_not_in_sides():
    """A square in a wide image stays a square. At 45 degrees its box grows by the root of 2, in an image shrunk to fit."""
    turned = dataclasses.replace(STILL, zoom=(0.999, 1.0), turn_deg=45.0)
    box = np.array([[40, 140, 20, 20]])
    found = [varied(np.zeros((100, 300), np.uint8), box, turned, np.random.default_rng(s))[1][0] for s in range(60)]
    heights, widths = np.array(found)[:, 2], np.array(found)[:, 3]
    assert np.abs(heights - widths).max() <= 1
    assert heights.max() <= 22
    assert 12 <= heights.min() <= 14  # 20 sqrt(2) / sqrt(0.5 + 0.5 * 3**2) = 12.6, rounded outwards


def test_colours_by_hand():
    """Contrast 2 about the mean, and the negative of an image."""
    image = np.zeros((10, 10, 3), np.uint8)
    image[:5], image[5:] = 102, 153  # mean 127.5
    sharp, _ = varied(image, NO_BOXES, dataclasses.replace(STILL, contrast=(2.0, 2.0)), unblurred())
    assert np.abs(sharp[:5].astype(int) - 76.5).max() <= 0.5  # 127.5 + 2 * (102 - 127.5)
    assert np.abs(sharp[5:].astype(int) - 178.5).max() <= 0.5
    negative, _ = varied(image, NO_BOXES, dataclasses.replace(STILL, negative=1.0), unblurred())
    assert (negative == 255 - image).all()


def test_rectangles_of_one_colour_cover_a_part():
    image, sizes = np.full((40, 80, 3), 77, np.uint8), []
    for seed in range(300):
        found, _ = varied(image, NO_BOXES, replace(STILL, covered=(1, 0.25)), np.random.default_rng(seed))
        rows, columns = np.nonzero((found != 77).any(axis=2))
        if not len(rows):
            continue  # of the very colour of the image
        patch = found[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (patch == patch[0, 0]).all()
        sizes.append(patch.shape[:2])
    sizes = np.array(sizes)
    assert sizes.max(axis=0).tolist() == [10, 20]
    assert sizes.min(axis=0).tolist() == [1, 1]
    np.testing.assert_allclose(sizes.mean(axis=0), [5, 9.5], atol=1.0)  # some are cut off at the edge
    several, _ = varied(image, NO_BOXES, replace(STILL, covered=(3, 0.25)), np.random.default_rng(0))
    assert len(np.unique(several.reshape(-1, 3), axis=0)) == 4


def test_without_saturation_an_image_is_grey():
    image = np.random.default_rng(3).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    plain = dataclasses.replace(STILL, saturation=(0.0, 0.0))
    found, _ = varied(image, NO_BOXES, plain, unblurred())
    spread = found.astype(int) - found.mean(axis=2, keepdims=True)
    assert np.ptp(spread, axis=(0, 1)).max() <= 2  # one and the same tint everywhere: the mean colour stays


def canvas(value: int, labels: list[int], boxes: list[list[int]]) -> CanvasBatch:
    """One image of a single value, 10x12 px, with room for three objects."""
    image = np.full((1, 10, 12), value, np.uint8)
    padded = np.full((1, 3), -1), np.full((1, 3, 4), -1)
    padded[0][0, : len(labels)], padded[1][0, : len(boxes)] = labels, boxes or -1
    return CanvasBatch(image, *padded)


def test_two_images_beside_each_other_by_hand():
    """Two objects get 8 of 12 columns, one gets 4; boxes shrink with their image and are rounded outwards."""
    left = canvas(10, [4, 4], [[1, 0, 3, 6], [2, 6, 5, 5]])
    right = canvas(200, [7], [[0, 3, 9, 6]])
    image, labels, boxes = beside(left, 0, right)
    assert (image[:, :8] == 10).all()
    assert (image[:, 8:] == 200).all()
    assert labels.tolist() == [4, 4, 7]
    assert boxes.tolist() == [[1, 0, 3, 4], [2, 4, 5, 4], [0, 9, 9, 2]]


def test_a_box_beside_another_image_stays_with_its_label():
    unknown = [-1, -1, -1, -1]
    _, labels, boxes = beside(canvas(10, [4, 5], [unknown, [2, 6, 5, 6]]), 0, canvas(200, [7], [unknown]))
    assert labels.tolist() == [4, 5, 7]
    assert boxes.tolist() == [unknown, [2, 4, 5, 4], unknown]


def test_images_stay_single_where_two_do_not_fit_or_one_is_empty():
    full, one, none = canvas(1, [1, 2, 3], []), canvas(2, [0], []), canvas(3, [], [])
    for first, second in ((full, one), (one, none), (none, one)):
        image, labels, boxes = beside(first, 0, second)
        assert (image == first.images[0]).all()
        assert (labels == first.labels[0]).all()
        assert (boxes == first.boxes[0]).all()


def test_about_so_many_images_stand_beside_another():
    pixels = np.zeros((10, 24, 32, 3), np.uint8)
    ones = CustomCanvases(LabelledImages(pixels, [[0]] * 9 + [[0, 0]], labels_are="lists"), "all")
    batch = Varied(ones, dataclasses.replace(STILL, beside=0.5), seed=0).compose(range(400))
    counts = np.bincount((batch.labels >= 0).sum(axis=1), minlength=3)
    # of each ten images nine may stand beside one of nine; the tenth has two objects as it is
    assert counts[2] / 400 == pytest.approx(0.1 + 0.9 * 0.5 * 0.9, abs=0.07)


def squares(background: int, *places: tuple[int, int, int], labels: list[int]) -> CanvasBatch:
    """One image of 32x48 px: squares of 8 px of (row, col, value) on one background, with room for three objects."""
    image = np.full((1, 32, 48), background, np.uint8)
    boxes = np.full((1, 3, 4), -1)
    for i, (row, col, value) in enumerate(places):
        image[0, row : row + 8 : 4, col : col + 8] = value  # striped: a block of one value has no variance
        boxes[0, i] = row, col, 8, 8
    padded = np.full((1, 3), -1)
    padded[0, : len(labels)] = labels
    return CanvasBatch(image, padded, boxes)


def stacked(*batches: CanvasBatch) -> CanvasBatch:
    return CanvasBatch(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))


def test_an_image_laid_over_another_by_hand():
    """What differs from the background of the one is added to the other: 50 + (90 - 100) and 200 + 0, at most 255."""
    below = squares(50, (0, 0, 200), (8, 8, 250), labels=[4, 5])
    above = squares(100, (8, 8, 190), (16, 24, 90), labels=[6])
    found = overlaid(below, 0, above)
    assert found is not None
    image, labels, boxes = found
    assert [image[0, 0], image[8, 8], image[16, 24], image[17, 24], image[31, 47]] == [200, 255, 40, 50, 50]
    assert labels.tolist() == [4, 5, 6]
    assert boxes.tolist() == [[0, 0, 8, 8], [8, 8, 8, 8], [8, 8, 8, 8]]
    assert below.labels.tolist() == [[4, 5, -1]]  # as it was
    colour = [np.repeat(batch.images[..., None], 3, axis=3) for batch in (below, above)]
    found = overlaid(below._replace(images=colour[0]), 0, above._replace(images=colour[1]))
    assert found is not None
    assert (found.images == image[..., None]).all()


def test_the_image_that_covers_least_is_laid_over_another():
    below = squares(50, (8, 8, 200), labels=[0])
    on_it, near, away = (squares(50, (row, col, 200), labels=[7]) for row, col in ((8, 8), (12, 8), (16, 32)))
    too_many = squares(50, (16, 32, 100), labels=[1, 2, 3])
    without = squares(50, labels=[])
    for others in ((on_it, near, away), (away, on_it), (too_many, without, near, away)):
        found = overlaid(below, 0, stacked(*others))
        assert found is not None
        assert found.boxes[1].tolist() == [16, 32, 8, 8]
    assert overlaid(below, 0, stacked(too_many, without)) is None


def test_images_are_laid_over_one_another_until_there_are_as_many_objects_as_one_may_hold():
    pixels = np.zeros((10, 24, 32, 3), np.uint8)
    ones = CustomCanvases(LabelledImages(pixels, [[i] for i in range(9)] + [[9, 9, 9]], labels_are="lists"), "all")
    batch = Varied(ones, dataclasses.replace(STILL, overlaid=0.5), seed=0).compose(range(1000))
    counts = np.bincount((batch.labels >= 0).sum(axis=1), minlength=4) / 1000
    # of ten images nine have one object: a half of them stays, a half of the others stops at two, one of three at once
    assert counts.tolist() == pytest.approx([0, 0.45, 0.225, 0.325], abs=0.04)
    assert any(len({*row}) == 3 for row in batch.labels.tolist())


def test_no_image_is_laid_over_itself():
    pixels = np.zeros((2, 24, 32, 3), np.uint8)
    both = CustomCanvases(LabelledImages(pixels, [[0, 0, 0], [1]], labels_are="lists"), "all")
    batch = Varied(both, dataclasses.replace(STILL, overlaid=0.9), seed=0).compose(range(40))
    assert {tuple(row) for row in batch.labels.tolist()} == {(0, 0, 0), (1, -1, -1)}


@pytest.mark.parametrize("variation", [*VARIATIONS.values(), NUMBERS_BESIDE, OVERLAID, None])
def test_an_index_decides_its_canvas(images, variation):
    supply = Varied(images, variation, seed=3)
    batch = supply.compose(range(25))
    for index in (0, 7, 24):
        alone = supply.compose([index])
        assert (alone.images[0] == batch.images[index]).all()
        assert (alone.labels[0] == batch.labels[index]).all()
    back = supply.compose(np.arange(25)[::-1])
    assert (back.images[::-1] == batch.images).all()
    other = Varied(images, variation, seed=4).compose(range(25))
    assert (other.images != batch.images).any()


def test_a_round_shows_every_image_once(images):
    batch = Varied(images, None, seed=1).compose(range(30))
    for first in (0, 10, 20):
        shown = {image.tobytes() for image in batch.images[first : first + 10]}
        assert shown == {image.tobytes() for image in images.compose(range(10)).images}
    assert (batch.images[:10] != batch.images[10:20]).any()


def test_the_same_image_varies_from_round_to_round(images):
    batch = Varied(images, VARIATIONS["upright"], seed=1).compose(range(200))
    assert len({image.tobytes() for image in batch.images}) == 200


def test_what_decides_a_canvas_is_in_the_content(images):
    def contents(*arguments: object) -> str:
        return repr([part.tolist() if isinstance(part, np.ndarray) else part for part in Varied(*arguments).content])

    plain = contents(images, STILL, 0)
    assert plain == contents(images, STILL, 0)
    assert len({plain, contents(images, STILL, 1), contents(images, None, 0), contents(images, NUMBERS, 0)}) == 4


def test_a_negative_index_is_refused(images):
    with pytest.raises(DataError, match="at least 0; got -1"):
        Varied(images, None).compose([-1])


def test_an_environment_draws_variations_of_few_images():
    pixels = np.random.default_rng(0).integers(0, 256, (10, 32, 32)).astype(np.uint8)
    config = EnvConfig(source="custom", images=pixels, labels=[["a"]] * 10, split="train", augment="turned")
    assert config.size == 60_000
    assert not config.is_finite
    assert dataclasses.replace(config, num_examples=50).size == 50
    assert len({image.tobytes() for image in config.canvases.compose(range(40)).images}) == 40
    val = dataclasses.replace(config, split="val")
    assert val.is_finite
    assert (val.canvases.compose([0]).images[0] == pixels).all(axis=(1, 2)).any()


@pytest.mark.parametrize("task", ["multiset", "set", "single"])
def test_each_digit_of_a_training_canvas_is_varied_by_itself(task):
    plain = EnvConfig(source="digits", task=task, clutter=0)
    upright = dataclasses.replace(plain, augment="upright")
    assert not upright.is_finite
    still, varied_ = (config.canvases.compose(range(100)) for config in (plain, upright))
    assert (varied_.labels == still.labels).all()
    assert (varied_.boxes == still.boxes).all()
    same, between = [], []
    for lane, boxes in enumerate(still.boxes):
        for top, left, height, width in boxes[boxes[:, 0] >= 0].tolist():
            one, other = (batch.images[lane, top : top + height, left : left + width] for batch in (still, varied_))
            same.append((one == other).all())
            between.append(np.abs(one.astype(float) - other).mean())
    assert 0.12 < np.mean(same) < 0.4  # a quarter
    assert np.median(between) > 5
    assert not ((varied_.images > 0) & ~inside(still.boxes, varied_.images.shape)).any()


def inside(boxes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Whether a pixel lies in a box, bool of ``shape``."""
    found = np.zeros(shape, bool)
    for lane, of_lane in enumerate(boxes.tolist()):
        for top, left, height, width in of_lane:
            if top >= 0:
                found[lane, top : top + height, left : left + width] = True
    return found


def test_an_index_decides_a_canvas_of_varied_digits():
    canvases = EnvConfig(source="digits", augment="upright").canvases
    together = canvases.compose(range(30)).images
    assert (canvases.compose([29, 3]).images == together[[29, 3]]).all()
    for other in ({"seed": 1}, {"split": "val"}):
        assert not (
            EnvConfig(source="digits", augment="upright", **other).canvases.compose([3]).images == together[3]
        ).all()
    plain = EnvConfig(source="digits", split="val")
    val = dataclasses.replace(plain, augment="upright")
    assert (val.canvases.compose(range(5)).images == plain.canvases.compose(range(5)).images).all()
    contents = [str(EnvConfig(source="digits", augment=augment).canvases.content) for augment in ("none", "upright")]
    assert contents[0] != contents[1]


def test_the_form_of_an_image_is_that_of_a_variation_without_its_colours():
    image = np.random.default_rng(3).integers(0, 256, (20, 28)).astype(np.uint8)
    form = dataclasses.replace(STILL, zoom=(0.8, 1.2), stretch=0.2, turn_deg=30.0, shear=0.2, bend=0.05)
    compared = 0
    for seed in range(20):
        whole, _ = varied(image, NO_BOXES, form, np.random.default_rng(seed))
        random = np.random.default_rng(seed)
        alone = bent(image[None], form, FormDraw.of(1, random))[0]
        if random.random() >= 0.5:  # it is not blurred
            assert np.abs(whole.astype(int) - alone).max() <= 1
            compared += 1
    assert compared > 3


@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        ({"source": "house-numbers", "augment": "upright"}, "augment"),
        ({"source": "mnist", "augment": "mirrored"}, "one of none, upright with"),
        ({"source": "svhn", "augment": "turned"}, "one of none, upright, beside with"),
        ({"source": "svhn", "augment": "sideways"}, "augment"),
        ({"source": "svhn", "augment": "upright", "overlaid": 0.5}, "overlaid"),
        ({**OWN, "augment": "mirrored", "overlaid": 1.0}, r"\[0, 1\); got 1.0"),
        ({**OWN, "augment": "mirrored", "overlaid": -0.1}, r"\[0, 1\); got -0.1"),
        ({**OWN, "overlaid": 0.5}, "augment to vary"),
    ],
)
def test_a_wrong_augmentation_is_refused(arguments, got):
    with pytest.raises(ConfigError, match=got):
        EnvConfig(**arguments)
