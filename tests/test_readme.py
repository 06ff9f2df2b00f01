"""What README.md and the site's pages show works, and their numbers are those of the files in results/."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pages import PAGES, ROOT, blocks, links

README = ROOT / "README.md"
ELSEWHERE = ROOT / "docs" / "agents.md"  # its block needs the example package: tests/test_examples.py
PYTHON_BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, block in enumerate(blocks(page, "python"))
    if page != ELSEWHERE
]


@pytest.mark.slow
@pytest.mark.parametrize("block", PYTHON_BLOCKS)
def test_python_blocks_run(block: str, mnist_root: str, tmp_path: Path):
    environment = {**os.environ, "HSAL_DATA": mnist_root, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", block], env=environment, cwd=tmp_path, capture_output=True, text=True)
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


def test_every_id_is_listed():
    import hsal_env

    assert [name for name in hsal_env.ENVIRONMENTS if f"`{name}`" not in README.read_text()] == []
    index = (ROOT / "docs" / "environments" / "index.md").read_text()
    assert [name for name in _every_id() if f"[`{name}`]" not in index] == []


def _every_id() -> list[str]:
    import hsal_env

    return [*hsal_env.ENVIRONMENTS, *hsal_env.VIEW_ENVIRONMENTS]
