"""Every command: its help, errors of one line, and the flags that README.md and the site's pages show."""

import re
import shlex
from pathlib import Path

import pytest
import tyro
from commands import EVALUATE, REPRODUCE, ROOT, TRAIN, run, script, succeeded
from pages import PAGES, blocks

from hsal_env.errors import ConfigError


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "train").glob("*.py")))
def test_help_is_given(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # imports are listed on stderr
    done = succeeded(run(name, "--help", cwd=tmp_path))
    assert "usage" in done.stdout.lower()
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "hsal_env" in imported
    assert not imported & {"torch", "matplotlib", "sklearn"}  # slow
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "flags", "said"),
    [
        (
            TRAIN,
            "--source digits --components 5",
            "error: attention_init='grid' needs a square number of components; got 5.",
        ),
        (TRAIN, "--preset huge", "error: Unknown preset 'huge'. Expected one of best, faithful, tiny.\n"),
        (TRAIN, "--output-dir runs --resume", "error: Nothing to resume: no runs/checkpoint.pt."),
        (
            EVALUATE,
            "nothing.pt",
            "error: No agent 'nothing.pt': expected the path of a checkpoint, or a bundled agent's name (",
        ),
        (REPRODUCE, "nothing", "error: Unknown row 'nothing'. Expected one of mnist-multiset, mnist-set,"),
    ],
)
def test_an_error_is_one_line_and_a_status(name: str, flags: str, said: str, tmp_path: Path):
    done = run(name, *shlex.split(flags), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


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
