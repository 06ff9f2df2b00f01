"""What is packed and how it is installed: the lists in pyproject.toml are whole, versions agree, messages suit both."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hsal_env

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS, SCRIPTS = PYPROJECT["tool"]["setuptools"], PYPROJECT["project"]["scripts"]
COMMANDS = sorted(path for path in (ROOT / "train").glob("*.py"))


def folder_of(package: str) -> Path:
    head, *rest = package.split(".")
    return ROOT.joinpath(SETUPTOOLS["package-dir"].get(head, head), *rest)


# --- what is packed ---------------------------------------------------------------------------------------------------


def test_every_package_is_listed():
    there = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("hsal_env", "agents")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert sorted(SETUPTOOLS["packages"]) == sorted({*there, "hsal_commands"})


def test_every_module_is_in_a_listed_package():
    folders = {folder_of(package) for package in SETUPTOOLS["packages"]}
    files = [path for top in ("hsal_env", "agents", "train") for path in (ROOT / top).rglob("*.py")]
    assert [path for path in files if path.parent not in folders] == []


def test_every_other_file_of_the_packages_is_listed():
    packed = {
        path
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for path in folder_of(package).glob(pattern)
    }
    there = {
        path
        for top in ("hsal_env", "agents")
        for path in (ROOT / top).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert there == packed


def test_versions_agree():
    citation, changelog = (ROOT / "CITATION.cff").read_text(), (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^version: (.+)$", citation, re.M)[1] == hsal_env.__version__
    released = re.findall(r"^## \[(\d.*)\] - (\d{4}-\d\d-\d\d)$", changelog, re.M)
    assert released[0] == (hsal_env.__version__, re.search(r"^date-released: (.+)$", citation, re.M)[1])
    assert re.findall(r"^## (.*)$", changelog, re.M)[0] == "[Unreleased]"
    for version, _ in released:
        assert f"\n[{version}]: {PYPROJECT['project']['urls']['Homepage']}/" in changelog


# --- commands ---------------------------------------------------------------------------------------------------------


def test_entry_points_are_scripts_with_a_function_cli():
    for target in SCRIPTS.values():
        module, function = target.split(":")
        assert (folder_of("hsal_commands") / f"{module.removeprefix('hsal_commands.')}.py").is_file()
        assert function == "cli"


def test_the_table_of_commands_has_every_script_and_its_installed_name():
    table = re.findall(r"^\| `(\w+)\.py` \| (?:`([\w-]+)`)? \|", (ROOT / "train" / "README.md").read_text(), re.M)
    assert sorted(script for script, _ in table) == [path.stem for path in COMMANDS]
    assert {name: f"hsal_commands.{script}:cli" for script, name in table if name} == SCRIPTS


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_a_script_is_run_by_its_cli(path: Path):
    tree = ast.parse(path.read_text())
    assert "cli" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert ast.unparse(tree.body[-1]) == "if __name__ == '__main__':\n    cli()"


def test_messages_suit_installations_without_a_checkout():
    files = [path for top in ("hsal_env", "agents", "train") for path in (ROOT / top).rglob("*.py")]
    texts = {path: re.sub(r'^""".*?"""', "", path.read_text(), flags=re.DOTALL) for path in files}
    assert [path.name for path, text in texts.items() if "constraints.txt" in text] == []
    in_a_checkout = {"attention_table.py", "make_results.py", "reproduce.py"}  # what they work on is there alone
    there = re.compile(r"python train/|\b(ppo_or_reinforce|evaluate_agent|report|pretrain_perception)\.py --")
    assert [path.name for path, text in texts.items() if there.search(text) and path.name not in in_a_checkout] == []


# --- another package of the same import name --------------------------------------------------------------------------


def foreign(folder: Path) -> Path:
    """A folder that holds another package ``agents``."""
    (folder / "agents").mkdir(parents=True)
    (folder / "agents" / "__init__.py").write_text("class Runner: ...\n")
    return folder


def mixed(folder: Path) -> Path:
    """A folder with HSAL, into which another package with a folder ``agents/tracing`` has been installed."""
    folder.mkdir()
    (folder / "hsal_env").symlink_to(ROOT / "hsal_env")
    (folder / "agents" / "tracing").mkdir(parents=True)
    for path in (ROOT / "agents").iterdir():
        (folder / "agents" / path.name).symlink_to(path)
    (folder / "agents" / "tracing" / "__init__.py").touch()
    return folder


def overwritten(folder: Path) -> Path:
    """The same, but with the other's ``__init__``, which was installed later."""
    mixed(folder)
    (folder / "agents" / "tracing" / "__init__.py").unlink()
    (folder / "agents" / "__init__.py").unlink()
    (folder / "agents" / "__init__.py").write_text("class Runner: ...\n")
    return folder


@pytest.mark.parametrize("make", [foreign, mixed, overwritten])
@pytest.mark.parametrize(
    "command",
    [
        ["ppo_or_reinforce.py", "--help"],
        ["evaluate_agent.py", "mnist-multiset"],
        ["make_results.py", "--check"],
    ],
    ids=lambda command: command[0],
)
def test_a_foreign_agents_package_is_one_plain_line(make, command: list[str], tmp_path: Path):
    folder = make(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    script, *flags = command
    done = subprocess.run(
        [sys.executable, ROOT / "train" / script, *flags], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: Expected `import agents` to find HSAL's ")
    assert f"; got {folder / 'agents' / '__init__.py'}" in done.stderr
    assert "openai-agents" in done.stderr
    assert "fresh virtual environment" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_policy_by_name_says_so_too(tmp_path: Path):
    folder = foreign(tmp_path / "site")
    code = (
        "from hsal_env.errors import ConfigError\nfrom hsal_env.plugins import import_object\n"
        "try: import_object('agents.policies:mnist_multiset', 'policy')\nexcept ConfigError as error: print(error)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert f"got {folder / 'agents' / '__init__.py'}" in done.stdout, done.stderr


def test_our_own_is_found_without_importing_it():
    code = "import sys; from hsal_env.plugins import check_agents; check_agents(); sys.exit('agents' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# --- checks -----------------------------------------------------------------------------------------------------------


def test_the_workflow_runs_all_checks_on_the_oldest_and_newest_versions():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    oldest = re.search(r"gymnasium>=([\d.]+)", " ".join(PYPROJECT["project"]["dependencies"]))[1]
    first, last = re.fullmatch(r">=(3\.\d+),<3\.(\d+)", PYPROJECT["project"]["requires-python"]).groups()
    assert "- run: .ci/run\n" in workflow
    assert f'python: ["{first}", "3.{int(last) - 1}"]\n' in workflow
    assert f'gymnasium: ["{oldest}", ""]' in workflow
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_large_files_are_refused_but_for_what_is_bundled():
    limit_kb = int(re.search(r"--maxkb=(\d+)", (ROOT / ".pre-commit-config.yaml").read_text())[1])
    largest = max(path.stat().st_size for top in ("hsal_env", "agents") for path in (ROOT / top).rglob("*.pt"))
    assert largest <= 1024 * limit_kb < 1.2 * largest
