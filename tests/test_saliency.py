"""Saliency models: what each makes of an image, how one is found by name, and how well maps find objects."""

import itertools
import json
import math
import re
from importlib.metadata import EntryPoint
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image
from torch import nn

import hsal_env  # noqa: F401, registers the ids
from hsal_env import functional as F
from hsal_env import plugins
from hsal_env.config import EnvConfig
from hsal_env.errors import CheckpointError, ConfigError, DataError
from hsal_env.perception import itti_koch, registry
from hsal_env.perception.examples import Examples
from hsal_env.perception.finding import area_under_curve, cells_held, find_objects, local_maxima
from hsal_env.perception.grid import Grid
from hsal_env.perception.itti_koch import IttiKoch, promote
from hsal_env.perception.registry import (
    ACTIVATION_GROUP,
    SALIENCY_GROUP,
    SALIENCY_MODELS,
    activation_model,
    saliency_model,
)
from hsal_env.perception.saliency import Boxes, Brightness, CentrePrior, SumOfMagnitudes, Uniform, to_cells
from hsal_env.perception.spectral_residual import SpectralResidual
from hsal_env.rendering.maps import draw_maps
from train import compare_saliency

OF_IMAGES = [IttiKoch(), SpectralResidual(), Brightness()]
SIDE = 5  # cells, of 20 px
PLACES = [(0, 0), (1, 3), (2, 2), (3, 1), (4, 4)]


def named(value) -> str:
    return type(value).__name__ if callable(value) else str(value)


def examples(**config) -> Examples:
    return Examples(EnvConfig(**{"source": "digits", "num_examples": 6, **config}), progress=False)


def grid_of(images: torch.Tensor, rows: int = SIDE, columns: int = SIDE) -> tuple[torch.Tensor, Grid]:
    """A volume of so many cells, which cut the images into bands."""
    return torch.zeros(len(images), 1, rows, columns), Grid.of(None, tuple(images.shape[2:]), (rows, columns))


def cells(model, images: torch.Tensor, rows: int = SIDE, columns: int = SIDE) -> torch.Tensor:
    volume, grid = grid_of(images, rows, columns)
    return model(images, volume, grid=grid)


def highest(maps: torch.Tensor) -> tuple[int, int]:
    """The only cell of a map that is highest."""
    (cell,) = (maps == maps.max()).nonzero().tolist()
    return tuple(cell)


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SALIENCY_MODELS)
def test_every_model_is_reached_by_name_and_normalised(name: str):
    env = gym.make("HSAL-DigitsMultiset-v0", num_examples=6, saliency=name)
    observation, _ = env.reset(seed=0)
    assert observation["saliency"].min() == 0
    assert observation["saliency"].max() == 1
    assert env.unwrapped.simulation.config.plain()["saliency"] == name


@pytest.mark.parametrize("features", ["lazy", "store"])
@pytest.mark.parametrize("name", SALIENCY_MODELS)
def test_a_map_does_not_depend_on_its_batch(name: str, features: str):
    together = examples(saliency=name, features=features).load(range(6))[0].raw_saliency
    other = examples(saliency=name, features=features)
    assert torch.equal(other.load([5, 2])[0].raw_saliency, together[[5, 2]])
    for lane in range(6):
        assert torch.equal(other.load([lane])[0].raw_saliency[0], together[lane])
    assert together.dtype == torch.float32
    assert bool(together.isfinite().all() & (together >= 0).all())


@pytest.mark.parametrize("name", sorted(set(SALIENCY_MODELS) - {"centre-prior", "uniform"}))
def test_maps_of_different_canvases_differ(name: str):
    maps = examples(saliency=name).load(range(6))[0].raw_saliency
    assert len({part.numpy().tobytes() for part in maps}) == 6


@pytest.mark.parametrize("model", OF_IMAGES, ids=named)
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(1, 100, 100), (3, 100, 60)])
def test_a_constant_image_has_a_constant_map(model, value: float, shape: tuple[int, ...]):
    maps = cells(model, torch.full((1, *shape), value))
    assert not F.normalise(maps).any()
    if not isinstance(model, Brightness):
        assert not maps.any()


@pytest.mark.parametrize("model", OF_IMAGES, ids=named)
def test_grey_in_three_channels_is_grey(model):
    image = torch.rand(1, 1, 80, 100, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cells(model, image.expand(1, 3, 80, 100)), cells(model, image))


@pytest.mark.parametrize("model", OF_IMAGES, ids=named)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_mirrored_image_has_a_mirrored_map(model, channels: int):
    image = torch.rand(1, channels, 80, 100, generator=torch.Generator().manual_seed(0))
    there = cells(model, image)
    for dims in ([1], [2], [1, 2]):
        flipped = cells(model, image.flip([dim + 1 for dim in dims])).flip(dims)
        torch.testing.assert_close(flipped, there, rtol=1e-3, atol=1e-3 * float(there.max()))
    torch.testing.assert_close(cells(model, image.mT).mT, there, rtol=1e-3, atol=1e-3 * float(there.max()))


@pytest.mark.parametrize("model", OF_IMAGES, ids=named)
@pytest.mark.parametrize("place", PLACES)
def test_a_spot_is_salient_wherever_it_is(model, place: tuple[int, int]):
    image = torch.zeros(1, 1, 100, 100)
    top, left = 20 * place[0] + 6, 20 * place[1] + 6
    image[..., top : top + 8, left : left + 8] = 0.7
    assert highest(cells(model, image)[0]) == place


@pytest.mark.parametrize("model", OF_IMAGES, ids=named)
@pytest.mark.parametrize("size", [(1, 1), (3, 40), (28, 28), (224, 224), (31, 47)])
def test_images_of_any_size(model, size: tuple[int, int]):
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    maps = cells(model, image, 2, 3)
    assert maps.shape == (1, 2, 3)
    assert bool(maps.isfinite().all() & (maps >= 0).all())


# --- Itti, Koch and Niebur --------------------------------------------------------------------------------------------


def array(draw, odd: tuple[int, int], channels: int = 1, ground: float = 0.0) -> torch.Tensor:
    """An image ``[1, channels, 100, 100]`` of 5x5 patterns, which ``draw`` draws into 20x20 px."""
    image = torch.full((1, channels, 100, 100), ground)
    for row, col in itertools.product(range(SIDE), range(SIDE)):
        draw(image[0, :, 20 * row : 20 * row + 20, 20 * col : 20 * col + 20], (row, col) == odd)
    return image


def bright(cell, odd):
    cell[:, 6:14, 6:14] = 1.0 if odd else 0.5


def large(cell, odd):
    side = slice(4, 16) if odd else slice(7, 13)
    cell[:, side, side] = 1


def tilted(cell, odd):
    bar = sum(torch.diag(torch.ones(12 - abs(k)), k) for k in (-1, 0, 1))
    cell[:, 4:16, 4:16] = bar.flip(0) if odd else bar


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("draw", [bright, large, tilted])
def test_what_differs_in_intensity_size_or_orientation_pops_out(draw, place: tuple[int, int]):
    maps = cells(IttiKoch(), array(draw, place))[0]
    assert highest(maps) == place
    assert maps.max() > 1.3 * maps.flatten().sort().values[-2]


RED, GREEN, BLUE, YELLOW = (0.8, 0.35, 0.35), (0.35, 0.8, 0.35), (0.25, 0.25, 1.0), (0.75, 0.75, 0.0)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("many", "one"), [(RED, GREEN), (GREEN, RED), (BLUE, YELLOW), (YELLOW, BLUE)])
def test_a_colour_among_others_as_bright_pops_out(many, one, place: tuple[int, int]):
    def dot(cell, odd):
        cell[:, 5:15, 8:12] = torch.tensor(one if odd else many)[:, None, None]

    image = array(dot, place, channels=3, ground=0.5)
    assert highest(cells(IttiKoch(), image)[0]) == place
    assert not cells(IttiKoch(), image.mean(dim=1, keepdim=True)).any()  # the intensity tells nothing


def test_red_on_green_is_salient_and_plain_red_is_not():
    image = torch.zeros(1, 3, 100, 100)
    image[:, 1] = 1
    image[0, :, 40:60, 60:80] = torch.tensor([1.0, 0, 0])[:, None, None]
    assert highest(cells(IttiKoch(), image)[0]) == (2, 3)
    plain = torch.zeros(1, 3, 100, 100)
    plain[:, 0] = 1
    assert not cells(IttiKoch(), plain).any()


@pytest.mark.parametrize("degrees", itti_koch.ORIENTATIONS)
def test_a_grating_is_of_its_own_orientation(degrees: int):
    """Bright and dark 4 px apart in that direction, from the columns' towards the rows'."""
    row, col = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    along = col * math.cos(math.radians(degrees)) + row * math.sin(math.radians(degrees))
    for phase in (0.0, 1.0):  # the pair of filters does not care where the bars begin
        strength = itti_koch._orientations((0.5 + 0.5 * torch.cos(math.pi / 2 * along + phase))[None])[:, 16, 16]
        assert itti_koch.ORIENTATIONS[int(strength.argmax())] == degrees
        assert strength.max() > 3 * strength.sort().values[-2]
        assert 0.35 < strength.max() < 0.5  # of the amplitude, 0.5
    assert itti_koch._orientations(torch.full((1, 32, 32), 0.7)).abs().max() < 1e-6


def test_promotion_by_hand():
    maps = torch.zeros(4, 5, 5)
    maps[0, 1, 1] = 2.0  # alone: m = 0
    maps[1, 0, 0] = maps[1, 0, 4] = maps[1, 4, 0] = 3.0  # all equal: m = 1
    maps[2, 2, 2], maps[2, 0, 0], maps[2, 4, 4] = 4.0, 1.0, 3.0  # m = (1/4 + 3/4) / 2
    maps[2, 0, 1] = 0.5  # beside a higher one
    maps[3, 2, 2], maps[3, 0, 0] = 1.0, 0.05  # too low to be a maximum
    found = promote(maps)
    assert found[0].max() == 1
    assert not found[1].any()
    torch.testing.assert_close(found[2], maps[2] / 4 * 0.25)
    torch.testing.assert_close(found[3], maps[3])
    assert not promote(torch.full((1, 3, 3), 0.2)).any()
    assert not promote(torch.rand(1, 3, 3) * 1e-4).any()  # rounding, not structure


# --- Hou and Zhang ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("draw", [bright, large])
def test_what_differs_is_unusual(draw, place: tuple[int, int]):
    assert highest(cells(SpectralResidual(), array(draw, place))[0]) == place


@pytest.mark.parametrize("place", PLACES)
def test_an_odd_patch_in_a_regular_texture_is_unusual(place: tuple[int, int]):
    row, col = torch.meshgrid(torch.arange(100), torch.arange(100), indexing="ij")
    image = (row // 4 % 2).float()
    patch = (slice(20 * place[0], 20 * place[0] + 20), slice(20 * place[1], 20 * place[1] + 20))
    image[patch] = (col // 3 % 2).float()[patch]
    maps = cells(SpectralResidual(), image[None, None])[0]
    assert highest(maps) == place
    assert maps.max() > 1.5 * maps.flatten().sort().values[-2]


def test_a_turned_around_image_has_a_turned_around_residual():
    """The spectrum's amplitude does not depend on where things are: away from the borders the map moves along."""
    image = torch.zeros(1, 64, 64)
    image[:, 20:26, 30:34], image[:, 34:38, 24:38] = 0.9, 0.6
    model = SpectralResidual()
    moved = model.pixel_map(image.roll((5, -7), dims=(1, 2)))
    torch.testing.assert_close(moved[16:-16, 16:-16], model.pixel_map(image).roll((5, -7), (0, 1))[16:-16, 16:-16])


def test_the_spectral_residual_by_another_route():
    """Amplitude and phase apart, as the paper has it, in float64."""
    image = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0))
    spectrum = np.fft.fft2(image[0].double().numpy())
    amplitude = np.log(np.abs(spectrum) + 64 / math.sqrt(12) / 255)
    usual = sum(np.roll(amplitude, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
    phase = np.exp(1j * np.angle(spectrum))
    rounding = np.abs(spectrum) / np.exp(amplitude)  # what the added amplitude leaves of each
    raw = np.abs(np.fft.ifft2(rounding * np.exp(amplitude - usual) * phase)) ** 2
    weights = np.exp(-(np.arange(-7, 8) ** 2) / (2 * 2.5**2))
    weights /= weights.sum()
    smooth = np.pad(raw, 7, mode="edge")
    for axis in (0, 1):
        smooth = np.apply_along_axis(np.convolve, axis, smooth, weights, mode="valid")
    np.testing.assert_allclose(SpectralResidual().pixel_map(image), smooth, rtol=1e-3)


# --- cells of pixels --------------------------------------------------------------------------------------------------


def test_the_area_of_cells_by_hand():
    """A compact cell: 16 px wide about 0.5 + 16 r, as far as it lies on the image."""
    rows, columns = Grid((0.5, 2.0), (16.0, 4.0), (87.0, 4.0)).areas((20, 6), (2, 2), (20, 6))
    np.testing.assert_allclose(rows[0], [2 / 17] * 8 + [1 / 17] + [0] * 11)
    np.testing.assert_allclose(rows[1], [0] * 8 + [1 / 23] + [2 / 23] * 11)
    np.testing.assert_allclose(columns, [[1 / 4] * 4 + [0] * 2, [0] * 4 + [1 / 2] * 2])


def test_a_cell_beside_the_image_is_0():
    grid = Grid((2.0, 2.0), (4.0, 4.0), (4.0, 4.0))
    maps = to_cells([torch.ones(4, 8)], grid, (4, 8), (2, 2))
    assert maps.tolist() == [[[1, 1], [0, 0]]]


def test_pixels_are_averaged_over_cells():
    pixels = torch.arange(24.0).reshape(4, 6)
    found = to_cells([pixels, 2 * pixels], Grid.of(None, (4, 6), (2, 3)), (4, 6), (2, 3))
    expected = nn.functional.avg_pool2d(pixels[None], 2)[0]
    torch.testing.assert_close(found, torch.stack([expected, 2 * expected]))


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_a_map_of_another_resolution_covers_the_same_image(factor: int):
    pixels = torch.rand(7, 5, generator=torch.Generator().manual_seed(0))
    grid = Grid((0.5, 1.0), (3.0, 2.0), (3.0, 2.0))
    finer = pixels.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    torch.testing.assert_close(
        to_cells([finer], grid, (7, 5), (3, 2)), to_cells([pixels], grid, (7, 5), (3, 2)), rtol=1e-6, atol=1e-6
    )


# --- of cells alone, and of true boxes ---------------------------------------------------------------------------------


def test_the_centre_prior_by_hand():
    config = EnvConfig(canvas_px=80, max_size_px=40, source="digits")
    maps = CentrePrior()(None, torch.zeros(2, 1, 4, 4), grid=Grid.of(None, (80, 80), (4, 4)), config=config)
    profile = torch.tensor([math.exp(-((away / 20) ** 2) / 2) for away in (-30, -10, 10, 30)])
    torch.testing.assert_close(maps, (profile[:, None] * profile).expand(2, 4, 4))


def test_the_uniform_map_survives_normalisation():
    """But for one corner it is 1 everywhere, also after it was normalised."""
    maps = Uniform()(None, torch.randn(2, 3, 4, 5))
    assert maps[:, -1, -1].tolist() == [0, 0]
    assert maps.sum() == 2 * 19
    assert torch.equal(F.normalise(maps), maps)


def test_the_oracle_by_hand():
    boxes = torch.tensor([[[10, 10, 20, 40], [-1] * 4], [[-1] * 4, [-1] * 4]])
    maps = Boxes()(None, torch.zeros(2, 1, 4, 4), boxes=boxes, grid=Grid.of(None, (80, 80), (4, 4)))
    # its middle (20, 30) is as near to row 10 as to 30, the first counts; 5 px and 10 px wide
    rows = torch.tensor([math.exp(-((away / 5) ** 2) / 2) for away in (0, 20, 40, 60)])
    columns = torch.tensor([math.exp(-((away / 10) ** 2) / 2) for away in (-20, 0, 20, 40)])
    torch.testing.assert_close(maps[0], rows[:, None] * columns)
    assert not maps[1].any()


def test_the_oracle_peaks_once_per_object():
    """Wherever no two objects are nearest to one cell or to neighbours."""
    supply = examples(num_examples=200, saliency="boxes")
    example, canvases = supply.load(range(200))
    found = find_objects(example.raw_saliency.numpy(), canvases.boxes, supply.grid)
    middles = canvases.boxes[..., :2] + canvases.boxes[..., 2:] / 2
    nearest = np.ceil((middles - 0.5) / 16 - 0.5)  # of two as near the first
    apart = [
        all(np.abs(a - b).max() > 1 for a, b in itertools.combinations(cell[box[:, 2] > 0], 2))
        for cell, box in zip(nearest, canvases.boxes, strict=True)
    ]
    assert sum(apart) > 150
    assert np.array_equal(found.found[apart], found.objects[apart])
    assert not found.spurious[apart].any()


def test_boxes_that_are_unknown_are_refused(custom_folder: Path):
    config = EnvConfig(source="custom", images=str(custom_folder), split="all", saliency="boxes")
    with pytest.raises(DataError, match="reads the boxes of the objects, which are unknown for these images"):
        Examples(config).load([0])


# --- maps from files --------------------------------------------------------------------------------------------------


RAW = np.random.default_rng(0).random((6, 7, 7)).astype(np.float32)


@pytest.mark.parametrize("features", ["lazy", "store"])
def test_maps_of_cells_are_taken_as_they_are(tmp_path: Path, features: str):
    np.save(tmp_path / "train.npy", 1000 * RAW)
    name = f"file:{tmp_path}/{{split}}.npy"
    found = examples(saliency=name, features=features).load([4, 0])[0].raw_saliency
    np.testing.assert_array_equal(found, 1000 * RAW[[4, 0]])
    assert EnvConfig(source="digits", saliency=name).plain()["saliency"] == name


def test_more_maps_than_canvases_will_do(tmp_path: Path):
    np.save(tmp_path / "maps.npy", RAW.astype(np.float64))
    found = examples(saliency=f"file:{tmp_path}/maps.npy", num_examples=3).load([2])[0].raw_saliency
    np.testing.assert_array_equal(found[0], RAW[2])


def test_maps_of_pixels_are_averaged(tmp_path: Path):
    supply = examples(saliency="brightness")
    expected, canvases = supply.load(range(6))
    np.save(tmp_path / "maps.npy", canvases.images)
    found = examples(saliency=f"file:{tmp_path}/maps.npy").load(range(6))[0].raw_saliency
    torch.testing.assert_close(found / 255, expected.raw_saliency)


def test_a_folder_of_pictures_and_arrays(tmp_path: Path):
    picture = np.arange(49, dtype=np.uint8).reshape(7, 7)
    Image.fromarray(picture).save(tmp_path / "0.png")
    Image.fromarray(picture.astype(np.uint16) * 1000).save(tmp_path / "1.png")
    np.save(tmp_path / "2.npy", RAW[2])
    found = examples(saliency=f"file:{tmp_path}", num_examples=3).load([2, 0, 1])[0].raw_saliency.numpy()
    np.testing.assert_array_equal(found, [RAW[2], picture, picture.astype(np.float32) * 1000])


def test_a_map_is_taken_as_it_is_whatever_lies_beside_it(tmp_path: Path):
    np.save(tmp_path / "0.npy", RAW[0])
    np.save(tmp_path / "1.npy", np.ones((100, 100), np.float32))
    several = examples(saliency=f"file:{tmp_path}", num_examples=2)
    for indices in ([0], [0, 1], [1, 0]):
        found = several.load(indices)[0].raw_saliency.numpy()
        np.testing.assert_array_equal(found[indices.index(0)], RAW[0])


def nan(maps):
    return np.where(np.arange(49).reshape(7, 7) == 3, np.nan, maps)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"No saliency maps .*maps\.npy"),
        (RAW[:5], r"a map for each of the 6 canvases; got shape \(5, 7, 7\)"),
        (RAW[0], r"expected an array \[N, h, w\]"),
        (nan(RAW), "map 1: expected finite values of at least 0; got nan"),
        (-RAW, r"map 1: expected finite values of at least 0; got -0\."),
        (RAW.astype(np.complex64), "map 1: expected numbers"),
        (b"garbage", "cannot be read as an array"),
        (b"PK\x03\x04 and no more", "cannot be read as an array"),
    ],
    ids=["missing", "too few", "one", "nan", "negative", "complex", "garbage", "broken zip"],
)
def test_maps_that_are_none_are_refused(tmp_path: Path, content, said: str):
    path = tmp_path / "maps.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(DataError, match=said):
        examples(saliency=f"file:{path}").load([1])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("0.npy", r"holds no map of canvas 1. Expected 1\.npy or 1\.png"),
        ("1.png", r"1\.png: cannot be read as PNG"),
        ("colour", r"1\.png: expected grey of 8 or 16 bits; got mode RGB"),
        ("several", r"1\.npy: expected one array; got several"),
    ],
)
def test_a_folder_that_lacks_a_map_is_refused(tmp_path: Path, name: str, said: str):
    if name == "colour":
        Image.fromarray(np.zeros((7, 7, 3), np.uint8)).save(tmp_path / "1.png")
    elif name == "several":
        np.savez(tmp_path / "1.npz", a=RAW[0])
        (tmp_path / "1.npz").rename(tmp_path / "1.npy")
    else:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=said):
        examples(saliency=f"file:{tmp_path}").load([1])


# --- one of yours -----------------------------------------------------------------------------------------------------


class Curious:
    """Reads all there is."""

    reads = ("boxes", "indices", "grid", "config")

    def __init__(self):
        self.seen = {}

    def __call__(self, images, volume, **read):
        self.seen = {"images": images, **read}
        return volume[:, 0] ** 2


class Deep(nn.Module):
    """An activation model whose saliency is to be made of its first channel alone."""

    in_channels, channels, saliency_channels = 1, 3, 1

    def forward(self, images):
        pooled = nn.functional.adaptive_avg_pool2d(images.float(), (4, 4))
        return torch.cat([pooled, 5 + pooled, 7 - pooled], dim=1)


@pytest.mark.parametrize("features", ["lazy", "store"])
def test_a_model_is_given_what_it_reads(features: str):
    model = Curious()
    supply = examples(saliency=model, features=features)
    supply.load([3, 1])
    canvases = supply.compose(np.array([3, 1]))
    assert model.seen.keys() == {"images", *Curious.reads}
    np.testing.assert_array_equal(model.seen["images"][:, 0] * 255, canvases.images)
    np.testing.assert_array_equal(model.seen["boxes"], canvases.boxes)
    assert model.seen["indices"].tolist() == [3, 1]
    assert model.seen["grid"] is supply.grid
    assert model.seen["config"] is supply.config


@pytest.mark.parametrize("reads", [("labels",), "boxes", ["boxes"]])
def test_a_model_that_reads_what_there_is_not_is_refused(reads):
    model = Curious()
    model.reads = reads
    with pytest.raises(
        ConfigError, match="saliency=Curious: expected its attribute reads to be a tuple of names from boxes"
    ):
        saliency_model(model)


@pytest.mark.parametrize("features", ["lazy", "store"])
def test_saliency_is_made_of_the_channels_meant_for_it(features: str):
    supply = examples(activation=Deep(), features=features)
    example, _ = supply.load(range(6))
    torch.testing.assert_close(example.raw_saliency, example.volume[:, 0].square())
    for lane in range(6):
        assert torch.equal(supply.load([lane])[0].raw_saliency[0], example.raw_saliency[lane])


def install(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    """As if a package had registered these perception models, by group."""
    entries = {group: [EntryPoint(name="mine", value=value, group=group)] for group, value in values.items()}
    monkeypatch.setattr(plugins, "entry_points", lambda group: entries.get(group.split(".")[1], []))


def test_an_installed_model_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch):
    assert (ACTIVATION_GROUP, SALIENCY_GROUP) == ("hsal.activation_models", "hsal.saliency_models")
    install(monkeypatch, saliency_models=f"{__name__}:Curious", activation_models=f"{__name__}:Deep")
    saliency_model.__globals__["_saliency_of_name"].cache_clear()
    registry._activation_of_name.cache_clear()
    assert isinstance(saliency_model("mine").call, Curious)
    assert isinstance(activation_model("mine"), Deep)
    with pytest.raises(
        ConfigError, match=r"saliency model 'yours'\. Expected one of sum-of-squares, .*boxes, mine, 'file:"
    ):
        saliency_model("yours")
    with pytest.raises(ConfigError, match=r"activation model 'yours'\. Expected one of compact.*, mine, a model file"):
        activation_model("yours")


def test_a_model_that_was_uninstalled_is_a_clear_error(monkeypatch: pytest.MonkeyPatch):
    install(monkeypatch, saliency_models="no_such_package.x:Model")
    saliency_model.__globals__["_saliency_of_name"].cache_clear()
    with pytest.raises(ConfigError, match="saliency model 'mine' cannot be loaded: No module named 'no_such_package'"):
        saliency_model("mine")


def test_no_package_takes_the_place_of_ours(monkeypatch: pytest.MonkeyPatch):
    entry = EntryPoint(name="sum-of-magnitudes", value=f"{__name__}:Curious", group=SALIENCY_GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry])
    saliency_model.__globals__["_saliency_of_name"].cache_clear()
    assert isinstance(saliency_model("sum-of-magnitudes"), SumOfMagnitudes)


def test_a_name_of_what_cannot_be_called_is_refused():
    with pytest.raises(ConfigError, match="expected a name, or an object that can be called"):
        saliency_model("collections:OrderedDict")


# --- how well maps find objects ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["010", "000", "002"], [(0, 1), (2, 2)]),
        (["210", "000", "000"], [(0, 0)]),  # 1 touches 2
        (["111", "111", "111"], []),  # constant
        (["0000", "0110", "0110", "0000"], [(1, 1)]),  # of four as near to the middle, the first
        (["01110"], [(0, 2)]),  # the middle of a plateau
        (["01120"], [(0, 3)]),  # a shoulder is none
        (["11100", "10100", "11100"], [(0, 1)]),  # a ring: its middle is no cell of it, the next one is
        (["10203"], [(0, 0), (0, 2), (0, 4)]),
    ],
)
def test_local_maxima_by_hand(rows: list[str], expected: list[tuple[int, int]]):
    maps = np.array([[[float(value) for value in row] for row in rows]])
    assert [tuple(cell) for cell in np.argwhere(local_maxima(maps)[0]).tolist()] == expected


def slow_maxima(values: np.ndarray) -> np.ndarray:
    """Flood every plateau, and look at all that it touches."""
    found, seen = np.zeros(values.shape, bool), set()
    for start in np.ndindex(values.shape):
        if start in seen or np.ptp(values) == 0:
            continue
        plateau, edge, border = {start}, [start], []
        while edge:
            row, col = edge.pop()
            for other in itertools.product(range(row - 1, row + 2), range(col - 1, col + 2)):
                if other in plateau or not (0 <= other[0] < values.shape[0] and 0 <= other[1] < values.shape[1]):
                    continue
                if values[other] == values[start]:
                    plateau.add(other)
                    edge.append(other)
                else:
                    border.append(values[other])
        seen |= plateau
        if all(value < values[start] for value in border):
            own = sorted(plateau)
            mean = np.mean(own, axis=0)
            away = [round(float(np.square(np.array(cell) - mean).sum()), 9) for cell in own]
            found[own[away.index(min(away))]] = True
    return found


@given(
    npst.arrays(np.float32, npst.array_shapes(min_dims=3, max_dims=3, max_side=6), elements=st.sampled_from([0, 1, 2]))
)
def test_local_maxima_by_another_route(maps: np.ndarray):
    np.testing.assert_array_equal(local_maxima(maps), np.stack([slow_maxima(values) for values in maps]))


def test_area_under_the_curve_by_hand():
    maps = np.array([[[3.0, 2.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 0.0]], [[1.0, 2.0], [3.0, 4.0]]])
    positive = np.array([[[True, False], [True, False]], [[True, False], [False, False]], [[True] * 2] * 2])
    # 3 > 2, 3 > 0, 1 < 2, 1 > 0; a half, a half and one; all in objects
    np.testing.assert_array_equal(area_under_curve(maps, positive), [3 / 4, 2 / 3, np.nan])


@given(st.data())
def test_area_under_the_curve_by_another_route(data):
    values = data.draw(npst.arrays(np.float32, (1, 3, 4), elements=st.sampled_from([0, 0.5, 1, 2])))
    positive = data.draw(npst.arrays(bool, (1, 3, 4)))
    inside, beside = values[positive], values[~positive]
    pairs = [(a > b) + (a == b) / 2 for a in inside for b in beside]
    np.testing.assert_allclose(area_under_curve(values, positive), [np.mean(pairs) if pairs else np.nan])


BANDS = Grid((5.0, 5.0), (10.0, 10.0), (10.0, 10.0))


def test_a_cell_is_held_where_its_centre_is():
    boxes = np.array([[[5, 15, 10, 10], [5, 15, 11, 11], [6, 6, 9, 9], [-1, -1, -1, -1]]])
    held = [np.argwhere(part).tolist() for part in cells_held(boxes, BANDS, (2, 3))[0]]
    assert held == [[[0, 1]], [[0, 1], [0, 2], [1, 1], [1, 2]], [], []]


def test_found_and_spurious_by_hand():
    maps = np.zeros((2, 3, 5))
    maps[0, 0, 0], maps[0, 0, 2], maps[0, 2, 4], maps[0, 2, 0] = 1.0, 0.4, 0.6, 0.2
    boxes = np.full((2, 3, 4), -1)
    boxes[0] = [[0, 0, 10, 10], [0, 20, 10, 10], [21, 21, 3, 3]]  # the last holds no cell
    found = find_objects(maps, boxes, BANDS)
    assert [part.tolist() for part in found[:5]] == [[3, 0], [2, 0], [2, 0], [1, 0], [1, 0]]
    # cells of 1 and 0.4 among 13 others, two of which, 0.6 and 0.2, are not 0
    assert found.auc[0] == pytest.approx((13 + 12) / 26)
    assert math.isnan(found.auc[1])
    assert found.summary() == pytest.approx(
        {"found": 2 / 3, "spurious": 1.0, "found_high": 1 / 3, "spurious_high": 0.5, "auc": 25 / 26}
    )
    raised = find_objects(maps + 1, boxes, BANDS)  # high is counted from a map's lowest value
    assert [part.tolist() for part in raised[:5]] == [part.tolist() for part in found[:5]]
    nothing = find_objects(maps[1:], boxes[1:], BANDS).summary()
    assert nothing == {"found": None, "spurious": 0, "found_high": None, "spurious_high": 0, "auc": None}


@pytest.mark.parametrize(
    ("maps", "boxes", "said"),
    [
        (np.zeros((2, 3)), np.zeros((2, 1, 4)), r"Expected maps \[B, H, W\]"),
        (np.zeros((0, 3, 3)), np.zeros((0, 1, 4)), r"Expected maps \[B, H, W\] with B > 0"),
        (np.zeros((2, 3, 3)), np.zeros((1, 1, 4)), r"got \(2, 3, 3\) and \(1, 1, 4\)"),
        (np.zeros((2, 3, 3)), np.zeros((2, 4)), "got"),
        (np.full((1, 3, 3), np.inf), np.zeros((1, 1, 4)), "Expected finite maps"),
    ],
)
def test_maps_and_boxes_that_do_not_fit_are_refused(maps, boxes, said: str):
    with pytest.raises(DataError, match=said):
        find_objects(maps, boxes, BANDS)


def test_the_papers_map_finds_digits_it_never_saw():
    supply = examples(num_examples=200, split="test")
    example, canvases = supply.load(range(200))
    found = find_objects(example.raw_saliency.numpy(), canvases.boxes, supply.grid).summary()
    assert found["found_high"] > 0.9
    assert found["spurious_high"] < 0.1


# --- the picture and the command --------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [(), (3,)])
def test_the_picture_has_a_row_per_image_and_a_column_per_model(channels: tuple[int, ...]):
    images = np.full((2, 40, 50, *channels), 90, np.uint8)
    boxes = np.full((2, 1, 4), -1)
    maps = {"one": np.random.default_rng(0).random((2, 4, 5)), "flat": np.ones((2, 4, 5))}
    picture = draw_maps(images, boxes, maps, BANDS)
    assert picture.dtype == np.uint8
    assert picture.shape == (275, 450, 3)
    assert np.array_equal(draw_maps(images, boxes, maps, BANDS), picture)
    boxes[0, 0] = 10, 10, 20, 20
    assert not np.array_equal(draw_maps(images, boxes, maps, BANDS), picture)


FEW = {"env_id": "HSAL-DigitsMultiset-v0", "episodes": 12}


def test_models_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    np.save(tmp_path / "maps.npy", np.random.default_rng(0).random((12, 7, 7)))
    models = ("sum-of-squares", "boxes", "itti-koch", f"file:{tmp_path}/maps.npy")
    compare_saliency.main(compare_saliency.Args(**FEW, models=models, output_dir=tmp_path / "out"))
    results = json.loads((tmp_path / "out" / "saliency.json").read_text())
    assert list(results["models"]) == list(models)
    assert (results["source"], results["split"], results["episodes"]) == ("digits", "test", 12)
    supply = examples(split="test", num_examples=12, saliency="itti-koch")
    example, canvases = supply.load(range(12))
    found = find_objects(example.raw_saliency.numpy(), canvases.boxes, supply.grid).summary()
    assert results["models"]["itti-koch"] == pytest.approx(found)
    text = (tmp_path / "out" / "saliency.md").read_text()
    assert text in capsys.readouterr().out
    assert f"| itti-koch | {' | '.join(f'{value:.3f}' for value in found.values())} |" in text
    with Image.open(tmp_path / "out" / "saliency.png") as picture:
        assert picture.size == (750, 935)


def test_models_are_compared_on_no_more_images_than_there_are(tmp_path: Path, svhn_folder: str):
    args = compare_saliency.Args(
        "HSAL-SVHNMultiset-v0", models=("boxes",), data_root=svhn_folder, episodes=50, output_dir=tmp_path
    )
    compare_saliency.main(args)
    results = json.loads((tmp_path / "saliency.json").read_text())
    assert (results["source"], results["episodes"]) == ("svhn", 12)
    assert results["models"]["boxes"]["found"] is not None


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"env_id": "CartPole-v1"}, ConfigError, "Unknown env id 'CartPole-v1'"),
        ({"env_id": "HSAL-Custom-v0"}, ConfigError, "which are unknown for images of your own"),
        ({"episodes": 0}, ConfigError, "Expected --episodes of at least 1; got 0"),
        ({"models": ("nobody",)}, ConfigError, "Unknown saliency model 'nobody'"),
        ({"output_dir": Path("/dev/null/x"), "models": ("uniform",)}, CheckpointError, "Cannot write /dev/null/x"),
    ],
)
def test_what_cannot_be_compared_is_a_clear_error(tmp_path: Path, changed: dict, error: type, said: str):
    with pytest.raises(error, match=said):
        compare_saliency.main(compare_saliency.Args(**{**FEW, "output_dir": tmp_path, **changed}))


def test_what_cannot_be_written_is_said_before_the_work(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compare_saliency, "maps_by_model", None)  # it is not called
    with pytest.raises(CheckpointError, match="Cannot write /dev/null/x"):
        compare_saliency.main(compare_saliency.Args(**{**FEW, "output_dir": Path("/dev/null/x")}))


# --- the page ---------------------------------------------------------------------------------------------------------


PAGE = (Path(__file__).parents[1] / "docs" / "perception.md").read_text()


def test_the_page_names_every_model():
    section = PAGE.partition("## Saliency models")[2].partition("### Which finds")[0]
    assert re.findall(r"^\| `(.+?)` \|", section, re.MULTILINE) == [*SALIENCY_MODELS, "file:PATH"]


def test_the_example_on_the_page_runs(capsys: pytest.CaptureFixture[str]):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.partition("### One of your own")[2], re.DOTALL)
    exec(compile(block, "docs/perception.md", "exec"), {})
    assert capsys.readouterr().out.count("[[") == 3
