"""Where the objects of a map's cells are, measured on images whose objects and cells are known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import PRETRAIN, script
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from agents.supervised.centring import centre, displacement_px, map_variation
from hsal_env.errors import ConfigError
from hsal_env.perception.activation import CompactResNet, completed
from hsal_env.perception.grid import Grid
from hsal_env.perception.model_file import load_model, save_model
from hsal_env.perception.registry import ARCHITECTURES, activation_model

STRIDE = 4


class Beside(nn.Module):
    """The mean brightness of 4x4 px, its root, written into the cell ``(down, across)`` further."""

    in_channels = channels = 1
    stride_px = float(STRIDE)
    first_px: float | tuple[float, float] | None = STRIDE / 2

    def __init__(self, down: int, across: int) -> None:
        super().__init__()
        self.shifts = (down, across)

    def forward(self, images: Tensor) -> Tensor:
        return avg_pool2d(images, STRIDE).sqrt().roll(self.shifts, (2, 3))


def squares(count: int = 40, objects: int = 2) -> Tensor:
    """Black images of 40x64 px with white squares of 8x8 px, away from the edge."""
    rng, images = np.random.default_rng(0), torch.zeros(count, 1, 40, 64)
    for image in images:
        for _ in range(objects):
            row, col = rng.integers(10, 22), rng.integers(10, 46)
            image[:, row : row + 8, col : col + 8] = 1
    return images


@pytest.mark.parametrize(("down", "across"), [(0, 0), (1, 0), (-1, 2)])
def test_the_displacement_is_found_without_boxes(down: int, across: int):
    model = completed(Beside(down, across))
    found = displacement_px(model, squares())
    assert found == pytest.approx((STRIDE * down, STRIDE * across), abs=1e-5)
    assert displacement_px(model, squares(), batch_size=7) == pytest.approx(found, abs=1e-9)


def test_a_map_that_shows_nothing_is_known_by_its_variation():
    def of(*maps: list[list[float]]) -> float:
        model = completed(Beside(0, 0))
        return map_variation(model, torch.tensor(maps)[:, None].repeat_interleave(4, 2).repeat_interleave(4, 3), 1)

    same, other = [[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]
    assert of(same, same, same) == 0
    assert of(same, other) == pytest.approx(0.5)  # the mean has 1/2 in two cells: 4 * 1/4 of 2
    assert of(*[[[0.0, 0.0], [0.0, 0.0]]] * 2) == 0


def test_after_centring_cells_are_where_objects_are():
    model = completed(Beside(1, -2))
    model.arguments = {"kept": 1}
    centre(model, displacement_px(model, squares()), (40, 64))
    assert model.arguments == {"kept": 1, "first_px": model.first_px}
    assert displacement_px(model, squares()) == pytest.approx((0, 0), abs=1e-5)
    image = squares(1, objects=1)
    cell = model(image).square().flatten().argmax().numpy()
    row, col = Grid.of(model, (40, 64), (10, 16)).centres(cell, 16)
    assert image[0, 0, int(row), int(col)] == 1


def test_a_model_that_resizes_keeps_px_of_what_it_resizes_to():
    model = completed(Beside(0, 0))
    model.resized_px = 20.0
    before = Grid.of(model, (40, 10), (1, 1)).first_px
    centre(model, (6.0, -3.0), (40, 10))
    assert model.first_px == pytest.approx((2 - 6 / 2, 2 + 3 * 2))
    after = Grid.of(model, (40, 10), (1, 1)).first_px
    assert np.subtract(before, after).tolist() == pytest.approx([6.0, -3.0])


def test_images_in_which_other_objects_are_found_when_turned_do_not_count():
    class OnlyAbove(Beside):
        def forward(self, images: Tensor) -> Tensor:
            volume = super().forward(images)
            volume[:, :, 5:] = 0
            return volume

    assert displacement_px(completed(OnlyAbove(0, 0)), squares(60, objects=1)) == (0.0, 0.0)
    assert displacement_px(completed(Beside(1, 1)), squares(9)) == (0.0, 0.0)  # too few
    assert displacement_px(completed(Beside(1, 1)), torch.zeros(20, 1, 40, 64)) == (0.0, 0.0)  # nothing in them


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_file_keeps_where_its_cells_are(name: str, tmp_path: Path):
    model = ARCHITECTURES[name](first_px=(2.5, -1))
    save_model(tmp_path / "m.pt", name, model)
    again = load_model(tmp_path / "m.pt", ARCHITECTURES)
    assert again.first_px == (2.5, -1.0)
    size = (100, 100) if again.resized_px is None else (again.resized_px, again.resized_px)
    assert Grid.of(again, size, (7, 7)).first_px == (2.5, -1.0)
    assert ARCHITECTURES[name]().first_px == (0.5, 0.5)


@pytest.mark.parametrize("wrong", [0.5, (1.0,), (1.0, math.nan), ("a", 1.0), None])
def test_a_place_that_is_none_is_refused(wrong: object):
    with pytest.raises(ConfigError, match="first_px as two finite numbers"):
        CompactResNet(first_px=wrong)


def test_a_training_measures_where_its_cells_are_and_warns_if_they_show_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    module = script(PRETRAIN)
    monkeypatch.setattr("agents.supervised.features._LEAST_VARIATION", 1.1)
    few = {"num_canvases": 64, "batch_size": 32, "passes": 1, "val_canvases": 32, "test_canvases": 32}
    with pytest.warns(UserWarning, match="hardly depends on the image"):
        module.main(module.Args(output=tmp_path / "m.pt", init="compact-house-numbers", objects="house-numbers", **few))
    results = json.loads((tmp_path / "m.json").read_text())
    assert 0.1 < results["map_variation"] < 1
    row, col = results["displacement_px"]
    assert (row, col) != (0, 0)
    first_row, first_col = activation_model("compact-house-numbers").first_px
    assert load_model(tmp_path / "m.pt", ARCHITECTURES).first_px == pytest.approx((first_row - row, first_col - col))
