"""Objects of other packages, found by ``package.module:Name`` or by the name of an installed entry point."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from hsal_env.errors import ConfigError


def find_object(
    name: str, what: str, known: Mapping[str, Any], group: str, forms: str = "or 'package.module:Name'"
) -> Any:
    """The object that ``name`` means: one of ours, an installed package's, or any that can be imported.

    Args:
        name: a key of ``known``, the name of an entry point in ``group``, or ``package.module:Name``.
        what: what kind of object it is, for messages.
        known: our own objects, or ``package.module:Name`` of them. They hide entry points of the same name.
        group: the group of the entry points.
        forms: which forms ``name`` may have besides a name, for messages.

    Raises:
        ConfigError: there is nothing of that name, or it cannot be imported.
    """
    if name in known and not isinstance(known[name], str):
        return known[name]
    name = known.get(name, name)
    if ":" in name:
        return import_object(name, what)
    installed = {entry.name: entry for entry in entry_points(group=group)}
    if name not in installed:
        raise ConfigError(
            f"Unknown {what} {name!r}. Expected one of {', '.join([*known, *sorted(set(installed) - set(known))])}, {forms}. "
            "If it belongs to a package: is that installed?"
        )
    try:
        return installed[name].load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{what} {name!r} cannot be loaded: {error}. Is its package completely installed?") from error


def import_object(path: str, what: str) -> Any:
    """Import ``package.module:Name``.

    Raises:
        ConfigError: ``path`` has another form, or the import fails. The message names ``what``.
    """
    module, _, name = path.partition(":")
    if not module or not name or module.startswith("."):
        raise ConfigError(f"Expected {what} as 'package.module:Name'; got {path!r}.")
    if module.partition(".")[0] == "agents":
        check_agents()
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{what} {path!r} cannot be imported: {error}. Is its package installed?") from error


def check_agents() -> None:
    """Make sure, without importing it, that ``import agents`` finds the package that comes with this one.

    An unrelated package on PyPI, openai-agents, has the same import name. Installed into one environment, the two share a folder.

    Raises:
        ConfigError: it finds another package, one mixed with ours, or none.
    """
    ours = Path(__file__).parents[1] / "agents" / "__init__.py"
    spec = importlib.util.find_spec("agents")
    found = Path(spec.origin) if spec and spec.origin else None
    if found is None or found.resolve() != ours.resolve():
        got = str(found or "nothing")
    elif "hsal_env" not in found.read_text() or any(
        (file.with_suffix("") / "__init__.py").exists()
        for file in found.parent.glob("*.py")  # hidden by a package
    ):
        got = f"{found}, into which another package has been installed"
    else:
        return
    raise ConfigError(
        f"Expected `import agents` to find HSAL's {ours}; got {got}. Another package of that name, such as openai-agents, is in "
        "the way: install hsal into a fresh virtual environment."
    )
