"""Every command: its help, errors of one line, and the flags that README.md and the site's pages show."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import tyro
from commands import EVALUATE, REPRODUCE, ROOT, TRAIN, Command, run, script, succeeded
from pages import PAGES, blocks

from hsal_env.command_line import run as run_main
from hsal_env.command_line import run_command
from hsal_env.errors import ConfigError

SCRIPTS = sorted((ROOT / "train").glob("*.py"))
HELP = """
import contextlib, io, json, runpy, sys
given = {}
for path in sys.argv[1:]:
    sys.argv, said, status = [path, "--help"], io.StringIO(), None
    with contextlib.redirect_stdout(said):
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            status = end.code
    given[path] = status, said.getvalue(), [name for name in ("torch", "matplotlib", "sklearn") if name in sys.modules]
print(json.dumps(given))
"""


@pytest.fixture(scope="module")
def helped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int | None, str, list[str]]]:
    """Of every command, one after the other in one process: its status, what it said, slow packages imported by then."""
    folder = tmp_path_factory.mktemp("empty")
    command = [sys.executable, "-c", HELP, *map(str, SCRIPTS)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = succeeded(subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300))
    assert list(folder.iterdir()) == []
    return json.loads(done.stdout)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_help_is_given_before_anything_slow_is_imported(helped: dict, path: Path):
    status, said, slow = helped[str(path)]
    assert status == 0
    assert said.lower().startswith("usage")
    assert slow == []


@pytest.mark.parametrize(
    ("name", "flags", "said"),
    [
        (
            TRAIN,
            "--source digits --components 5",
            "error: attention_policy='drawn' needs a square number of components; got 5.",
        ),
        (
            TRAIN,
            "--preset huge",
            "error: Unknown preset 'huge'. Expected one of best, deterministic, faithful, tiny.\n",
        ),
        (TRAIN, "--output-dir runs --resume", "error: Nothing to resume: no runs/checkpoint.pt."),
        (
            EVALUATE,
            "nothing.pt",
            "error: No agent 'nothing.pt': expected the path of a checkpoint, the folder of its training run, or a bundled",
        ),
        (REPRODUCE, "nothing", "error: Unknown row 'nothing'. Expected one of mnist-multiset, mnist-set,"),
    ],
)
def test_an_error_is_one_line(command: Command, capsys: pytest.CaptureFixture, name: str, flags: str, said: str):
    with pytest.raises(SystemExit) as caught:
        command(name, flags)
    assert f"{caught.value.code}\n".startswith(said)
    assert "\n" not in caught.value.code
    assert capsys.readouterr() == ("", "")


def test_an_error_is_all_that_is_said_and_a_status(tmp_path: Path):
    done = run(TRAIN, "--preset", "huge", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: Unknown preset 'huge'. Expected one of best, deterministic, faithful, tiny.\n"


def commands_of(page: Path) -> list[str]:
    """Every ``python train/...`` in a fenced bash block, or ``torchrun``'s, by which it is started several times."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in re.split(r"&&|\|\||;", line)]
    parts = [re.sub(r"^torchrun (--\S+ \S+ )+", "python ", part) for part in parts]
    return [part for part in parts if re.match(r"python3? train/", part)]


def check(command: str) -> None:
    """Fail unless the script is there and takes these flags."""
    _, path, *flags = shlex.split(command, comments=True)
    module = script(Path(path).name)
    if hasattr(module, "parse"):
        module.parse(flags)
    else:
        tyro.cli(module.Args, args=flags)


COMMANDS = [
    pytest.param(command, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, command in enumerate(commands_of(page))
]


def test_the_readme_shows_the_command():
    assert f"python train/{TRAIN}" in commands_of(ROOT / "README.md")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_pages_parse(command: str):
    check(command)


def test_commands_are_found_in_bash_blocks_alone(tmp_path: Path):
    (tmp_path / "page.md").write_text(
        "python train/not_in_a_block.py\n```bash\npip install x && python train/a.py --b 1  # why\n"
        "python train/c.py \\\n    --d\necho python train/no.py\n"
        "torchrun --n 2 train/e.py --f\n```\n```python\npython train/no.py\n```\n"
    )
    commands = [" ".join(command.split()) for command in commands_of(tmp_path / "page.md")]
    assert commands == ["python train/a.py --b 1 # why", "python train/c.py --d", "python train/e.py --f"]


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("python train/ppo_or_reinforce.py --no-such-flag", SystemExit),
        ("python train/ppo_or_reinforce.py --preset huge", ConfigError),
        ("python train/evaluate_agent.py", SystemExit),
        ("python train/evaluate_agent.py x.pt --no-such-flag 3", SystemExit),
        ("python train/make_results.py --no-such-flag", SystemExit),
        ("python train/no_such_script.py", FileNotFoundError),
    ],
)
def test_a_wrong_command_on_a_page_would_be_found(command: str, error: type[BaseException]):
    with pytest.raises(error):
        check(command)


@dataclass(frozen=True)
class OfATask:
    env_id: str


def test_an_env_id_may_name_its_module(monkeypatch: pytest.MonkeyPatch):
    given: list[OfATask] = []
    monkeypatch.setattr(sys, "argv", ["command", "--env-id", "hsal_env:HSAL-DigitsSet-v0"])
    run_command(given.append, OfATask)
    assert given == [OfATask("HSAL-DigitsSet-v0")]


@pytest.mark.parametrize("flags", [["--list"], ["--help"]])
def test_a_command_whose_reader_has_gone_ends_silently(flags: list[str]):
    """As in ``command | head -1``."""
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, str(ROOT / "train" / "reproduce.py"), *flags]
    done = subprocess.run(
        command, stdout=writes, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True
    )
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")


def test_another_pipe_that_breaks_is_not_silent():
    """As that to a program which writes a film: what is printed is still read."""

    def main(args: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        run_main(main, object)
