"""How Sphinx builds the site: ``python -m sphinx -W -b html docs FOLDER``, without a network."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import docstrings
import environment_pages

import hsal_env

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent

project = "HSAL"
author = copyright = "HSAL contributors"
version = release = hsal_env.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3

suppress_warnings = ["ref.python"]  # two classes may have one name, such as Run

autosummary_generate = True
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_mock_imports = ["ray"]  # the extra rllib pins another gymnasium
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # fields are listed, not documented a second time

html_theme = "furo"
html_math_renderer = "mathml"
html_title = "HSAL"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False
templates_path = ["_templates"]

PAGES = {
    "README.md": "index",
    "CHANGELOG.md": "changelog",
    "CONTRIBUTING.md": "contributing",
    "benchmarks/README.md": "benchmarks",
    "results/README.md": "results",
    "train/README.md": "learning/commands",
}
"""Which page shows a file that lies outside of docs/."""
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")

_CODE = re.compile(r"`(functional|dynamics|multiset)\.(\w+)`")


def link(file: Path, page: Path, found: re.Match[str]) -> str:
    """A link or picture that ``file`` shows on ``page``: to another page, to a module's reference, or as it is.

    A link to what the site does not have, such as a folder, becomes its text.
    """
    image, text, target, anchor = found.groups()
    path = (file.parent / target).resolve()
    if "://" in target or not path.is_relative_to(ROOT):
        return found[0]
    inside = path.relative_to(ROOT)
    if image:
        return f"![{text}]({os.path.relpath(path, page.parent)})"
    if path.is_relative_to(DOCS) and path.suffix != ".py":
        return f"[{text}]({os.path.relpath(path, page.parent)}{anchor or ''})"
    if str(inside) in PAGES:
        return f"[{text}]({os.path.relpath(DOCS / PAGES[str(inside)], page.parent)}.md{anchor or ''})"
    if inside.parts[0] in ("hsal_env", "agents") and path.suffix == ".py":
        module = ".".join(inside.with_suffix("").parts).removesuffix(".__init__")
        return f"{{py:mod}}`{text.strip('`')} <{module}>`"
    return text


def read_page(app: Sphinx, name: str, source: list[str]) -> None:
    """Turn links to files of the repository to the site's own pages."""
    path = Path(app.env.doc2path(name))
    if path.suffix == ".md":
        source[0] = _LINK.sub(lambda found: link(path, path, found), source[0])


def read_included(app: Sphinx, included: Path, name: str, source: list[str]) -> None:
    """The same for a file that a page includes."""
    file, page = (DOCS / included).resolve(), Path(app.env.doc2path(app.env.docname))  # MyST's name lacks the folder
    if file.suffix == ".md":
        source[0] = _LINK.sub(lambda found: link(file, page, found), source[0]).replace(" ± ", "\u00a0±\u00a0")
        if page.stem == "equations":
            source[0] = _CODE.sub(r"{py:obj}`\1.\2 <hsal_env.\1.\2>`", source[0])
            source[0] = re.sub(r"`(agents\.[\w.]+)`", r"{py:obj}`\1`", source[0])


class ResultRows(SphinxDirective):
    """Rows of the tables in results/README.md, by name: the numbers beside the algorithm they belong to."""

    required_arguments = 1
    final_argument_whitespace = True
    COLUMNS = (
        "row",
        "what",
        "seeds",
        "steps",
        "mean return",
        "random",
        "0-1",
        "macro-F1",
        "paper 0-1",
        "focus",
        "several",
        "train min",
        "command",
    )

    def run(self) -> list[nodes.Node]:
        """The table."""
        self.env.note_dependency(str(ROOT / "results" / "README.md"))
        lines = (ROOT / "results" / "README.md").read_text().splitlines()
        split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
        found, head = {}, []
        for cells in split:
            if cells[0] == "row":
                head = cells
            else:
                found[re.sub(r"^\[(.+)\]\(.+\)$", r"\1", cells[0])] = dict(zip(head, cells, strict=True))
        rows = [{**found[name], "row": name} for name in self.arguments[0].split()]
        shown = [column for column in self.COLUMNS if any(row.get(column) for row in rows)]
        text = [f"| {' | '.join(shown)} |", "|---" * len(shown) + "|"]
        text += [f"| {' | '.join(row.get(column, '') for column in shown)} |" for row in rows]
        return self.parse_text_to_nodes("\n".join(text).replace(" ± ", "\u00a0±\u00a0") + "\n")


def process_docstring(app: Sphinx, what: str, name: str, documented: Any, options: Any, lines: list[str]) -> None:
    """Markdown's headings and tables, which our docstrings hold, to reStructuredText, before napoleon reads it.

    Napoleon takes what comes before a colon in the first line of an attribute's docstring for a type.
    """
    lines[:] = ["", *lines] if what in ("attribute", "data") else docstrings.sphinx_lines(lines)


def skip_member(app: Sphinx, what: str, name: str, documented: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what Python writes about the fields of a NamedTuple: the class says what they are."""
    return True if (getattr(documented, "__doc__", None) or "").startswith("Alias for field number") else None


def mark_commands(app: Sphinx, tree: nodes.document) -> None:
    """Give tables whose last column holds commands a class, for site.css."""
    for head in tree.findall(nodes.thead):
        if head.astext().endswith("command"):
            head.parent.parent["classes"].append("commands")


def visit_math(translator: Any, node: nodes.Element) -> None:
    """Formulas as MathML, which browsers draw by themselves: MathJax would be loaded from a network."""
    tex = re.sub(r"\\(hat|vec) (\w)_", r"\\\1 \2{}_", node.astext())  # or the index would stand under the letter
    try:
        translator.body.append(tex2mathml(tex, as_block=isinstance(node, nodes.math_block)))
    except MathError as error:
        logging.getLogger(__name__).warning("%s", error, location=node)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Write the environment pages, and take part in the reading of files."""
    environment_pages.write_pages()
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.connect("doctree-read", mark_commands)
    app.add_directive("result-rows", ResultRows)
    app.connect("source-read", read_page)
    app.connect("include-read", read_included)
    app.connect("autodoc-process-docstring", process_docstring, priority=400)
    app.connect("autodoc-skip-member", skip_member)
