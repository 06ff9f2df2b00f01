"""What the README shows works, and its numbers are those of the files in results/."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=range(len(PYTHON_BLOCKS)))
def test_python_blocks_run(block, mnist_root):
    environment = {**os.environ, "HSAL_DATA": str(mnist_root), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", block], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_results_table_is_made_from_results():
    command = [sys.executable, "train/make_results.py", "--check"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_linked_files_exist():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_id_is_listed():
    import hsal_env

    assert [name for name in hsal_env.ENVIRONMENTS if f"`{name}`" not in README] == []
