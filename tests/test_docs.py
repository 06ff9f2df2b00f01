"""The site: its environment pages say what the environments are. ``.ci/run`` has Sphinx build it without a warning."""

import re
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from pages import ROOT
from PIL import Image

import hsal_env

IDS = [*hsal_env.ENVIRONMENTS, *hsal_env.VIEW_ENVIRONMENTS]
SECTIONS = [
    "Description",
    "Action space",
    "Observation space",
    "Rewards",
    "Starting state",
    "Episode end",
    "Information",
]
PICTURES = ROOT / "docs" / "environments" / "pictures"


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    """The page of each id."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        import environment_pages

        return {env_id: environment_pages.page(env_id) for env_id in IDS}


@pytest.mark.parametrize("env_id", IDS)
def test_a_page_has_every_section_and_a_picture(env_id: str, made: dict[str, str]):
    page = made[env_id]
    titles = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    assert titles == [*SECTIONS, "Arguments", "Version history"]
    (picture,) = (line.split("(")[1].rstrip(")") for line in page.splitlines() if line.startswith("!["))
    assert (PICTURES.parent / picture).stat().st_size <= 250_000
    with Image.open(PICTURES.parent / picture) as moving:
        assert moving.n_frames > 1


def test_no_picture_is_of_a_photograph(made: dict[str, str]):
    assert list(PICTURES.glob("*SVHN*")) == []
    for env_id in ("HSAL-SVHNSingle-v0", "HSAL-SVHNMultiset-v0"):
        assert "whose images are synthetic" in made[env_id]


@pytest.mark.parametrize("env_id", ["HSAL-DigitsMultiset-v0", "HSAL-HouseNumbersSingle-v0", "HSAL-Custom-v0"])
def test_spaces_and_arguments_are_those_of_the_environment(env_id: str, made: dict[str, str]):
    images = {"images": np.zeros((1, 48, 64), np.uint8), "labels": [[0, 4, 4]]} if "Custom" in env_id else {}
    env = gymnasium.make(env_id, **images).unwrapped
    page, action = made[env_id], env.action_space
    assert f"location: Discrete({action['location'].n})" in page
    assert f"label: Discrete({action['label'].n})" in page
    for name, space in env.observation_space.spaces.items():
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` |") and "(" in line.split("|")[2])
        assert str(space.shape) in row or f"`Discrete({space.n})`" in row
    for name, value in hsal_env.ENVIRONMENTS[env_id].items():
        assert f"| `{name}` | **`{value!r}`**" in page or f"| `{name}` | `{value!r}`" in page
    arguments = set(re.findall(r"^\| `(\w+)` \|", page.split("## Arguments")[1], flags=re.MULTILINE))
    assert {"render_mode", "source", "glimpses", "activation"} <= arguments
    assert "extra" not in arguments  # SVHN's alone
    assert "| `extra` |" in made["HSAL-SVHNMultiset-v0"]


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "learning").glob("*.md")), ids=lambda page: page.stem)
def test_the_rows_beside_an_algorithm_are_among_the_results(page: Path):
    results = (ROOT / "results" / "README.md").read_text()
    for names in re.findall(r"^```{result-rows} (.+)$", page.read_text(), flags=re.MULTILINE):
        assert [name for name in names.split() if f"| [{name}](" not in results] == []
