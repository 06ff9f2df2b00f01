"""Images of any size brought to one size: pixels, boxes, and positions back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hsal_env.data.fitting import Fit, checked_px, suited_px
from hsal_env.errors import ConfigError, DataError

MODES = ("letterbox", "crop", "stretch")
sides = st.integers(1, 60)


def halves(height: int, width: int) -> np.ndarray:
    """The upper half is 10, the lower one 200."""
    image = np.full((height, width), 10, np.uint8)
    image[height // 2 :] = 200
    return image


def test_a_letterbox_shows_the_whole_image_on_its_mean_colour():
    fitted = Fit((20, 40)).pixels(halves(10, 10))
    assert fitted.shape == (20, 40)
    assert (fitted[:, :10] == 105).all()  # the mean of 10 and 200
    assert (fitted[:, 30:] == 105).all()
    assert (fitted[:9, 10:30] == 10).all()
    assert (fitted[11:, 10:30] == 200).all()


def test_padding_has_the_mean_of_each_colour():
    image = np.zeros((10, 10, 3), np.uint8)
    image[..., 0], image[:5, :, 1] = 255, 101
    fitted = Fit((10, 30)).pixels(image)
    assert fitted[0, 0].tolist() == fitted[9, 29].tolist() == [255, 50, 0]
    np.testing.assert_array_equal(fitted[:, 10:20], image)


def test_a_crop_cuts_both_sides_and_a_stretch_none():
    wide = np.repeat(np.arange(8, dtype=np.uint8) * 30, 5)[None].repeat(10, axis=0)  # 10x40, stripes of 5 px
    np.testing.assert_array_equal(Fit((10, 20), "crop").pixels(wide), wide[:, 10:30])
    stretched = Fit((10, 8), "stretch").pixels(wide)
    assert np.abs(stretched.astype(int) - np.arange(8) * 30).max() <= 15  # a stripe mixes with its neighbours


@pytest.mark.parametrize("mode", MODES)
def test_an_image_of_the_target_size_stays_itself(mode):
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    assert Fit((7, 9), mode).pixels(image) is image
    boxes = np.array([[1, 2, 3, 4], [-1, -1, -1, -1]])
    np.testing.assert_array_equal(Fit((7, 9), mode).boxes(boxes, (7, 9)), boxes)


def test_making_an_image_smaller_averages():
    checks = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert np.abs(Fit((16, 16)).pixels(checks).astype(int) - 127).max() < 16  # without antialiasing: 0 or 255


@pytest.mark.parametrize(
    ("fit", "size", "box", "moved"),
    [
        (Fit((100, 200)), (50, 50), [10, 10, 20, 30], [20, 70, 40, 60]),  # twice, 50 px to the right
        (Fit((50, 50)), (100, 200), [1, 3, 20, 30], [12, 0, 6, 9]),  # a quarter; 0.25..5.25 rows, 12 down; 0.75..8.25
        (Fit((50, 50), "stretch"), (100, 200), [1, 3, 20, 30], [0, 0, 11, 9]),
        (Fit((50, 50), "crop"), (100, 200), [0, 60, 10, 20], [0, 5, 5, 10]),  # a half; columns 50 to 150 stay
        (Fit((50, 50), "crop"), (100, 200), [0, 40, 10, 20], [0, 0, 5, 5]),  # cut off
        (Fit((50, 50), "crop"), (100, 200), [0, 20, 10, 30], [-1, -1, -1, -1]),  # cut away
        (Fit((50, 50), "crop"), (100, 200), [-1, -1, -1, -1], [-1, -1, -1, -1]),
    ],
)
def test_boxes_move_along(fit, size, box, moved):
    assert fit.boxes(np.array([box]), size).tolist() == [moved]
    assert fit.boxes(np.zeros((0, 4), np.int64), size).shape == (0, 4)


@pytest.mark.parametrize("mode", MODES)
@given(target=st.tuples(sides, sides), size=st.tuples(sides, sides))
def test_the_box_of_the_image_holds_what_is_not_padding(mode, target, size):
    """The image, white on a mean that is white, too; so only the box tells it from the padding."""
    fit = Fit(target, mode)
    (top, left, height, width) = fit.boxes(np.array([[0, 0, *size]]), size)[0].tolist()
    assert fit.pixels(np.full(size, 7, np.uint8)).shape == target
    if mode == "letterbox":
        assert (height == target[0]) or (width == target[1])
        assert abs(target[0] - height - 2 * top) <= 1
        assert abs(target[1] - width - 2 * left) <= 1
    else:
        assert (top, left, height, width) == (0, 0, *target)


@pytest.mark.parametrize("mode", MODES)
@given(target=st.tuples(sides, sides), size=st.tuples(sides, sides), at=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_positions_go_back_to_where_their_box_came_from(mode, target, size, at):
    fit = Fit(target, mode)
    pixel = [min(int(share * side), side - 1) for share, side in zip(at, size, strict=True)]
    moved = fit.boxes(np.array([[*pixel, 1, 1]]), size)[0]
    if moved[2] < 0:
        assert mode == "crop"
        return
    middle = moved[:2] + moved[2:] / 2
    back = fit.to_original(middle, size)
    step = np.array(size) / np.array(target) if mode == "stretch" else max(np.array(size) / np.array(target))
    assert (np.abs(back - (np.array(pixel) + 0.5)) <= 1 + step).all()


def test_positions_of_padding_lie_outside():
    back = Fit((100, 200)).to_original(np.array([[[0, 0], [50, 100], [100, 200]]]), (50, 50))
    np.testing.assert_allclose(back, [[[0, -25], [25, 25], [50, 75]]])


@pytest.mark.parametrize("mode", MODES)
def test_extreme_shapes_cost_no_memory(mode):
    assert Fit((160, 224), mode).pixels(np.zeros((1, 60_000), np.uint8)).shape == (160, 224)
    assert Fit((160, 224), mode).pixels(np.zeros((60_000, 1, 3), np.uint8)).shape == (160, 224, 3)


def test_where_a_mark_lands_its_box_is():
    image = np.zeros((90, 120), np.uint8)
    image[30:60, 80:100] = 255
    for mode in MODES:
        fit = Fit((48, 48), mode)
        rows, columns = np.nonzero(fit.pixels(image) > 128)
        top, left, height, width = fit.boxes(np.array([[30, 80, 30, 20]]), (90, 120))[0]
        assert (abs(rows.min() - top), abs(columns.min() - left)) <= (1, 1)
        assert abs(rows.max() + 1 - top - height) <= 1
        assert abs(columns.max() + 1 - left - width) <= 1


def test_a_crop_is_a_part_of_the_whole_image_resized():
    image = np.random.default_rng(0).integers(0, 256, (80, 200), dtype=np.uint8)
    whole = np.asarray(Image.fromarray(image).resize((100, 40), Image.Resampling.BILINEAR))
    fitted = Fit((40, 60), "crop").pixels(image)
    np.testing.assert_allclose(fitted[:, 2:-2].astype(int), whole[:, 22:78], atol=1)


@pytest.mark.parametrize("wrong", [0, -1, 4097, 2.5, True, "100", (1, 2, 3), (1,), (0, 5), (5, None), [], None, {}])
def test_what_is_no_size_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"image_px as a whole number in 1\.\.4096, or as two, for rows and columns"):
        Fit(wrong)


def test_sizes_are_read():
    assert checked_px(5) == checked_px([5, 5]) == Fit(np.int64(5)).image_px == (5, 5)
    with pytest.raises(ConfigError, match="fit to be one of letterbox, crop, stretch; got 'pad'"):
        Fit((5, 5), "pad")


@pytest.mark.parametrize("wrong", [np.zeros((3, 3)), np.zeros((3, 3, 1), np.uint8), np.zeros((0, 3), np.uint8)])
def test_what_is_no_image_is_refused(wrong):
    with pytest.raises(DataError, match=r"Expected an image uint8 \[h, w\]"):
        Fit((5, 5)).pixels(wrong)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([[480, 640]], (160, 224)),
        ([[640, 480]] * 3, (224, 160)),
        ([[50, 170], [40, 170], [60, 180]], (64, 176)),  # small images are not enlarged beyond the next 16
        ([[48, 64]], (48, 64)),
        ([[3, 5]], (16, 16)),
        ([[3000, 4000], [4000, 3000], [3000, 4000]], (160, 224)),
        ([[1, 60_000]], (16, 4096)),
    ],
)
def test_a_size_that_suits(sizes, expected):
    assert suited_px(np.array(sizes)) == expected
