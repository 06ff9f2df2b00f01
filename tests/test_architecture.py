"""Which package imports which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("package", ["hsal_env", "agents"])
def test_importing_a_package_imports_neither_torch_nor_data(package):
    code = f"import sys, {package}; sys.exit(any(m.split('.')[0] in ('torch', 'sklearn', 'torchvision') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def imports_of(path: Path) -> set[str]:
    """The packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or ".").split(".")[0] if not node.level else ".")
    return found


@pytest.mark.parametrize(("package", "never"), [("hsal_env", {"agents", "train"}), ("agents", {"train"})])
def test_arrows_point_one_way(package, never):
    files = list((ROOT / package).rglob("*.py"))
    assert len(files) > 10
    assert {path.name: imports_of(path) & never for path in files if imports_of(path) & never} == {}


@pytest.mark.parametrize(
    ("libraries", "door"),
    [
        ({"ray"}, "agents/rllib.py"),
        ({"stable_baselines3", "sb3_contrib"}, "agents/sb3/"),
        ({"sb3_contrib"}, "agents/sb3/policy.py"),
    ],
    ids=["ray", "sb3", "sb3-contrib"],
)
def test_other_libraries_come_in_by_one_door(libraries, door):
    files = [path for folder in ("hsal_env", "agents", "train") for path in (ROOT / folder).rglob("*.py")]
    inside = [path.relative_to(ROOT).as_posix() for path in files if imports_of(path) & libraries]
    assert inside
    assert [path for path in inside if not path.startswith(door)] == []


def test_the_equations_import_torch_only():
    assert imports_of(ROOT / "hsal_env" / "functional.py") == {"__future__", "typing", "torch"}
