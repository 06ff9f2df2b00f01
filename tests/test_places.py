"""Where the objects of cells are, on images whose objects are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from test_centring import STRIDE, Beside
from torch import Tensor, nn

import agents
from agents.evaluation import score_agent
from agents.tracing import record
from hsal_env.config import EnvConfig
from hsal_env.perception.activation import completed
from hsal_env.perception.examples import Examples, to_images
from hsal_env.perception.grid import Grid
from hsal_env.perception.places import Views, places_px, views
from hsal_env.trace.scan_path import located

MAP = (10, 16)


def squares(count: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Black images of 40x64 px with two white squares of 4x4 px far from each other, and their centres ``[N, 2, 2]``."""
    rng, images = np.random.default_rng(0), np.zeros((count, 40, 64), np.uint8)
    corners = np.stack(
        [rng.integers(10, 26, (count, 2)), rng.integers((10, 38), (22, 50), (count, 2))], axis=2
    )  # [N, 2, (row, col)]
    for image, both in zip(images, corners, strict=True):
        for row, col in both:
            image[row : row + STRIDE, col : col + STRIDE] = 255
    return images, corners + STRIDE / 2


def seen_by(model: nn.Module, images: np.ndarray) -> tuple[Grid, np.ndarray]:
    """The grid, and of each image the cells that are highest in its left and its right half ``[N, 2]``."""
    grid = Grid.of(model, images.shape[1:3], MAP)
    maps = model(to_images(images, 1)).square()[:, 0]
    cells = np.stack(
        [
            maps.where(left, 0).flatten(1).argmax(dim=1).numpy()
            for left in (torch.arange(16) < 8, torch.arange(16) >= 8)
        ],
        axis=1,
    )
    return grid, cells


def measured(model: nn.Module, images: np.ndarray, grid: Grid, cells: np.ndarray) -> np.ndarray:
    return places_px(views(lambda part: saliency(model, part), images, grid), cells, grid, MAP[1])


def saliency(model: nn.Module, images: np.ndarray) -> np.ndarray:
    return model(to_images(images, 1))[:, 0].double().square().numpy()


@pytest.mark.parametrize("first_px", [(2.0, 2.0), (3.5, 0.5), (1.0, 3.0), (4.0, 2.0), (2.0, 0.0)])
def test_an_object_is_found_although_its_cell_is_beside_it(first_px: tuple[float, float]):
    """Cells whose centres are said to be up to half a cell beside what they show."""
    images, centres = squares()
    model = completed(Beside(0, 0))
    model.first_px = first_px
    grid, cells = seen_by(model, images)
    coarse = np.abs(grid.centres(cells, MAP[1]) - centres)
    fine = np.abs(measured(model, images, grid, cells) - centres)
    assert coarse.max() >= 2
    assert fine.max() <= 1.25
    assert fine.mean() <= coarse.mean() / 2.5


def test_an_object_at_a_cell_is_found_to_the_px():
    """By hand: the copies see the square at places 2 px apart, with as much on each side of its middle. So do the turned ones."""
    image = np.zeros((1, 40, 64), np.uint8)
    image[0, 12:16, 20:24] = 255  # cell (3, 5)
    model = completed(Beside(0, 0))
    grid, cell = Grid.of(model, (40, 64), MAP), np.array([[3 * 16 + 5, -1]])
    found = measured(model, image, grid, cell)
    np.testing.assert_allclose(found[0], [[14, 22], [np.nan, np.nan]], atol=1e-12)


def test_where_nothing_is_seen_the_place_is_the_cells_centre():
    model = completed(Beside(0, 0))
    grid, cells = Grid.of(model, (40, 64), MAP), np.array([[0, 37, 159, -1]])
    found = measured(model, np.zeros((1, 40, 64), np.uint8), grid, cells)
    np.testing.assert_array_equal(found, grid.centres(cells, MAP[1]))


def naive(model: nn.Module, image: np.ndarray, cell: int, grid: Grid) -> np.ndarray:
    """The equation, cell by cell."""
    height, width = image.shape[:2]
    place, found = grid.centres(np.array(cell), MAP[1]), []
    for turned in (False, True):
        seen = []
        source = image[::-1, ::-1] if turned else image
        for down in (0, STRIDE // 2):
            for across in (0, STRIDE // 2):
                rows, cols = (np.arange(n) + by for n, by in ((height, down), (width, across)))
                shifted = source[rows.clip(max=height - 1)][:, cols.clip(max=width - 1)]
                for (r, c), mass in np.ndenumerate(saliency(model, shifted[None])[0]):
                    at = np.array(grid.first_px) + np.array([r, c]) * STRIDE + (down, across)
                    seen.append((np.array([height, width]) - at if turned else at, mass))
        for _ in range(2):
            near = [(at, mass) for at, mass in seen if np.hypot(*((at - place) / STRIDE)) <= 1 + 1e-9]
            total = sum(mass for _, mass in near)
            place = sum(mass * at for at, mass in near) / total if total > 0 else place
        found.append(place)
    return (found[0] + found[1]) / 2


@pytest.mark.parametrize("shape", [(40, 64), (40, 64, 3)])
def test_places_are_those_of_the_definition(shape: tuple[int, ...]):
    rng = np.random.default_rng(1)
    images = (255 * rng.random((3, *shape)) ** 4).astype(np.uint8)
    grey = images if len(shape) == 2 else images[..., 1]
    model = completed(Beside(1, -1))
    model.first_px = (2.7, 1.6)
    grid, cells = Grid.of(model, (40, 64), MAP), rng.integers(0, 160, (3, 5))
    seen = views(lambda part: saliency(model, part if part.ndim == 3 else part[..., 1]), images, grid)
    found = places_px(seen, cells, grid, MAP[1])
    expected = [
        [naive(model, image, cell, grid) for cell in row] for image, row in zip(grey, cells.tolist(), strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert np.abs(found - grid.centres(cells, MAP[1])).max() > 0.1


@pytest.mark.parametrize(("first", "stride"), [(100 / 14, 100 / 7), (10.182976587278233, 8.0), (0.1, 0.3)])
def test_the_next_cells_count_whatever_the_rounding(first: float, stride: float):
    """On a map of ones a place moves by nothing, on either axis, as long as all four neighbours of its cell are there."""
    side = 7
    grid = Grid((first, first), (stride, stride), (stride, stride))
    cells = np.arange(side * side).reshape(side, side)[1:-1, 1:-1].reshape(1, -1)
    points = grid.centres(np.arange(side * side), side)
    seen = Views(np.ones((2, 1, side * side)), np.stack([points, points]))
    np.testing.assert_allclose(places_px(seen, cells, grid, side), grid.centres(cells, side), atol=1e-9)


def test_cells_of_one_px_are_not_shifted():
    class Pixels(Beside):
        stride_px = 1.0

        def forward(self, images: Tensor) -> Tensor:
            return images.sqrt()

    images, _ = squares(1)
    model = completed(Pixels(0, 0))
    seen = views(lambda part: saliency(model, part), images, Grid((0.5, 0.5), (1, 1), (1, 1)))
    assert seen.saliency.shape == (2, 1, 40 * 64)


# --- in traces --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def turned() -> EnvConfig:
    return EnvConfig(source="digits", split="test", num_examples=6, components=25, update="peak", places="turned")


def test_a_trace_looks_where_the_object_is(turned: EnvConfig):
    """The bundled cells are beside their digits; the measured places lie nearer to their middles."""
    agent = agents.load("mnist-multiset").agent
    away: dict[str, list[float]] = {"cells": [], "turned": []}
    for places, errors in away.items():
        for trace in record(agent, dataclasses.replace(turned, places=places), np.arange(6)):
            looks = trace.location >= 0
            assert (np.isnan(trace.location_px).any(axis=1) == ~looks).all()
            middles = trace.boxes[:, :2] + trace.boxes[:, 2:] / 2
            named = np.flatnonzero((trace.label >= 0) & (trace.label < 10)) - 2
            errors += [np.hypot(*(middles - place).T).min() for place in trace.location_px[named]]
    assert np.mean(away["turned"]) < 0.7 * np.mean(away["cells"])


def test_places_change_nothing_but_places(turned: EnvConfig):
    agent = agents.load("mnist-multiset").agent
    one, other = (record(agent, dataclasses.replace(turned, places=places), 0) for places in ("cells", "turned"))
    grid = Examples(turned).grid
    np.testing.assert_array_equal(one.location_px, grid.centres(one.location, 7))
    for name, value in one._asdict().items():
        if name not in ("location_px", "states"):
            np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)


def test_images_that_were_just_seen_are_not_encoded_again(turned: EnvConfig, monkeypatch: pytest.MonkeyPatch):
    examples = Examples(turned)
    images = examples.compose(np.arange(2)).images
    first = examples.places_px(images, np.array([[3], [4]]))
    with monkeypatch.context() as patched:
        patched.setattr(Examples, "encode", lambda self, images: pytest.fail("encoded again"))
        assert (examples.places_px(images, np.array([[3], [4]])) == first).all()
    other = examples.places_px(images[::-1].copy(), np.array([[4], [3]]))
    np.testing.assert_allclose(other, first[::-1], atol=0.02)  # another batch may round otherwise


def test_a_place_does_not_depend_on_the_lanes_beside(turned: EnvConfig):
    agent = agents.load("mnist-multiset").agent
    several, alone = record(agent, turned, [0, 1, 2]), record(agent, turned, 1)
    np.testing.assert_allclose(several[1].location_px, alone.location_px, atol=0.05)


def test_an_array_that_is_filled_anew_is_looked_at_anew(turned: EnvConfig):
    examples = Examples(turned)
    images, cells = examples.compose(np.arange(1)).images.copy(), np.array([[24]])
    first = examples.places_px(images, cells)
    images[...] = examples.compose(np.array([1])).images
    second = examples.places_px(images, cells)
    assert (first != second).any()
    assert examples.places_px(images[:0], cells[:0]).shape == (0, 1, 2)


def test_without_a_cell_or_a_box_nothing_is_encoded(turned: EnvConfig, monkeypatch: pytest.MonkeyPatch):
    examples = Examples(turned)
    monkeypatch.setattr(Examples, "_sums_of_squares", lambda self, images: pytest.fail("encoded"))
    assert np.isnan(examples.places_px(examples.compose(np.arange(2)).images, np.full((2, 3), -1))).all()
    images = np.zeros((3, 100, 100), np.uint8)
    env = EnvConfig(source="custom", images=images, labels=[[1], [2, 2], [3]], num_classes=10, components=25, update="peak",
                    max_objects=4, places="turned", features="lazy")  # fmt: skip
    agent = agents.load("mnist-multiset").agent
    scores = score_agent(agent, dataclasses.replace(env, split="all", protocol="free"), progress=False)
    assert scores["pointing"] is None


def test_the_test_measures_places(turned: EnvConfig, monkeypatch: pytest.MonkeyPatch):
    """Where every glimpse looks beside the image, none points at anything, neither in the test nor in a trace."""
    agent, config = agents.load("mnist-multiset").agent, dataclasses.replace(turned, features="lazy", protocol="free")
    assert score_agent(agent, config, progress=False)["pointing"] > 0.8
    monkeypatch.setattr(Examples, "places_px", lambda self, images, cells: np.full((*cells.shape, 2), -50.0))
    assert score_agent(agent, config, progress=False)["pointing"] == 0
    assert np.nanmean(located(record(agent, config, 0)).pointing) == 0


def test_what_is_named_lies_at_measured_places(turned: EnvConfig):
    loaded = agents.load("mnist-multiset")
    image = Examples(turned).compose(np.array([3])).images[0]
    by_places = {}
    for places in ("cells", "turned"):
        env = dataclasses.replace(loaded.env, places=places)
        by_places[places] = loaded._replace(env=env).name_objects(image)
    cells, turned_ones = by_places["cells"], by_places["turned"]
    assert [thing.cell for thing in cells] == [thing.cell for thing in turned_ones]
    assert any((a.row_px, a.col_px) != (b.row_px, b.col_px) for a, b in zip(cells, turned_ones, strict=True))
    trace = record(loaded.agent, dataclasses.replace(turned, protocol="free"), 3)
    first = np.flatnonzero((trace.label >= 0) & (trace.label < 10)) - 2
    np.testing.assert_allclose([[t.row_px, t.col_px] for t in turned_ones], trace.location_px[first], atol=0.05)
