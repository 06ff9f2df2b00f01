"""The pages that people read: README.md, the site's, and those that lie beside what they are about."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
_BESIDE = (
    "README.md",
    "CONTRIBUTING.md",
    *(f"{name}/README.md" for name in ("train", "examples", "results", "benchmarks")),
)
PAGES = [
    *(ROOT / name for name in _BESIDE if (ROOT / name).exists()),
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if not page.name.startswith("HSAL-")),  # those are made
]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def links(page: Path) -> list[str]:
    """Where links and pictures to files point, without what comes after ``#``."""
    found = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    return [link for link in found if "://" not in link]
