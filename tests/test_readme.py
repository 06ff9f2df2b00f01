"""What README.md and the site's pages show works, and their numbers are those of the files in results/."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pages import PAGES, ROOT, blocks, links
from PIL import Image

from agents import BUNDLED_FOLDER

README = ROOT / "README.md"
ELSEWHERE = ROOT / "docs" / "agents.md"  # its block needs the example package: tests/test_examples.py
PYTHON_BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, block in enumerate(blocks(page, "python"))
    if page != ELSEWHERE
]


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """Where a page's blocks run: with a run of the reader's own and a photograph, for which a bundled agent and noise stand."""
    (tmp_path / "runs" / "dice").mkdir(parents=True)
    shutil.copy(BUNDLED_FOLDER / "svhn.pt", tmp_path / "runs" / "dice" / "checkpoint.pt")
    noise = np.random.default_rng(0).integers(0, 256, (120, 90, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.jpg")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("block", PYTHON_BLOCKS)
def test_python_blocks_run(block: str, mnist_root: str, own_folder: Path):
    environment = {**os.environ, "HSAL_DATA": mnist_root, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", block], env=environment, cwd=own_folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_results_table_is_made_from_results():
    command = [sys.executable, "train/make_results.py", "--check"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_linked_files_exist(page: Path):
    made = {f"{name}.md" for name in _every_id()}
    assert [link for link in links(page) if not (page.parent / link).exists() and Path(link).name not in made] == []


def test_the_readme_is_short_and_links_to_the_site():
    assert len(README.read_text().splitlines()) <= 150
    assert {"docs/index.md", "docs/quickstart.md", "docs/decisions.md"} <= set(links(README))


def test_the_code_can_be_read_in_the_order_that_the_readme_names():
    _, reading, _ = re.split("<!-- /?reading -->", README.read_text())
    files = [ROOT / name for name in re.findall(r"^\d\. .*?\]\((.+?)\)", reading, flags=re.MULTILINE)]
    assert 3 < len(files) == len(set(files)) <= 10
    assert sum(len(file.read_text().splitlines()) for file in files) <= 1500
    for number, file in enumerate(files):
        later = {".".join(after.relative_to(ROOT).with_suffix("").parts) for after in files[number + 1 :]}
        imported = set()
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        assert imported & later == set(), f"{file.name} imports what is read after it"


def test_every_id_is_listed():
    import hsal_env

    assert [name for name in hsal_env.ENVIRONMENTS if f"`{name}`" not in README.read_text()] == []
    index = (ROOT / "docs" / "environments" / "index.md").read_text()
    assert [name for name in _every_id() if f"[`{name}`]" not in index] == []


def _every_id() -> list[str]:
    import hsal_env

    return [*hsal_env.ENVIRONMENTS, *hsal_env.VIEW_ENVIRONMENTS]
