"""Read the docstrings of the code: their sections for Markdown pages, their Markdown tables for Sphinx."""

from __future__ import annotations

import inspect
import re
from typing import Any


def sections(documented: Any) -> dict[str, str]:
    """The text under each ``## Title`` of a docstring, as Markdown."""
    _, *parts = re.split(r"^## (.+)\n", inspect.getdoc(documented) or "", flags=re.MULTILINE)
    return {
        title: markdown(re.split(r"^(?:Raises|Args|Returns|Attributes):$", text, flags=re.MULTILINE)[0])
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    }


def attributes(documented: type) -> dict[str, str]:
    """What the Google-style ``Attributes:`` of a class and of its bases say of each name, as Markdown in one line."""
    about: dict[str, str] = {}
    for part in documented.__mro__:
        _, *text = re.split(r"^Attributes:\n", inspect.cleandoc(part.__doc__ or ""), flags=re.MULTILINE)
        found = re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", "".join(text), flags=re.MULTILINE)
        about |= {name: markdown(re.sub(r"\s+", " ", said)) for name, said in found if name not in about}
    return about


def table(text: str) -> dict[str, str]:
    """The rows of two cells of a Markdown table, by the first cell without its backticks."""
    rows = re.findall(r"^\s*\| *(.+?) *\| *(.+?) *\|$", text, flags=re.MULTILINE)
    return {first.strip("` "): markdown(second) for first, second in rows if not first.startswith("-")}


def markdown(text: str) -> str:
    """Sphinx's roles as MyST writes them."""
    return re.sub(r":(\w+):`([^`]+)`", r"{py:\1}`\2`", text).strip()


def sphinx_lines(lines: list[str]) -> list[str]:
    """A docstring with Markdown's headings and tables, as reStructuredText."""
    made: list[str] = []
    in_table = False
    for line in lines:
        heading = re.fullmatch(r"## (.+)", line)
        row = re.fullmatch(r"\|(.*)\|", line.strip())
        if heading:
            made += [f".. rubric:: {heading[1]}", ""]
        elif row:
            cells = [cell.strip() for cell in row[1].split("|")]
            if not in_table:
                made += ["", ".. list-table::", *(["   :header-rows: 1"] if any(cells) else []), ""]
            if any(cells) and not all(re.fullmatch(r"-+", cell) for cell in cells):
                made += [f"   {'  ' if number else '* '}- {cell}" for number, cell in enumerate(cells)]
        else:
            made += [""] * (in_table and bool(line)) + [line]
        in_table = bool(row)
    return made
