"""The recipes and the page on other libraries: run where their libraries are installed, the extra ``recipes``."""

import os
import re
import subprocess
import sys
from pathlib import Path

import needs
import pytest
from pages import ROOT, blocks

RECIPES = ROOT / "examples" / "recipes"
PAGE = ROOT / "docs" / "learning" / "other-libraries.md"
LIBRARIES = {"torchrl_ppo.py": "torchrl", "skrl_ppo.py": "skrl", "tianshou_ppo.py": "tianshou"}


def python(*command: object, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def require(library: str) -> None:
    if library == "tianshou" and sys.version_info < (3, 11):
        pytest.skip("Tianshou needs Python 3.11")
    needs.module(library, "recipes", f'{library} is not installed: pip install "hsal[recipes]"')


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo_lstm.py", *LIBRARIES])
def test_a_recipe_learns_and_says_what_it_reached(name: str, tmp_path: Path):
    if name in LIBRARIES:
        require(LIBRARIES[name])
    printed = python(RECIPES / name, "--total-timesteps", 4096, cwd=tmp_path)
    assert 0 <= float(re.findall(r"^test: exact match ([\d.]+)", printed, flags=re.MULTILINE)[0]) <= 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "block", blocks(PAGE, "py"), ids=lambda block: re.findall(r"from (torchrl|skrl|tianshou)", block)[0]
)
def test_what_the_page_shows_of_a_library_runs(block: str, tmp_path: Path):
    require(re.findall(r"from (torchrl|skrl|tianshou)", block)[0])
    python("-c", block, cwd=tmp_path)


def test_the_page_names_every_recipe_and_the_version_that_it_was_run_with():
    page = PAGE.read_text()
    assert {path.name for path in RECIPES.glob("*.py")} == {*LIBRARIES, "ppo_lstm.py", "task.py"}
    for name, library in LIBRARIES.items():
        (version,) = re.findall(rf"Run with {library} ([\d.]+\d)", (RECIPES / name).read_text())
        assert f"{library} {version}" in page.lower()
        assert f"(../../examples/recipes/{name})" in page
