"""Objects of other packages, found by ``package.module:Name`` or by the name of an installed entry point."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Collection, Mapping
from importlib.metadata import entry_points
from pathlib import Path, PureWindowsPath
from typing import Any, TypeAlias

from hsal_env.errors import ConfigError

Trust: TypeAlias = bool | Collection[str]
"""Which names in a file may be followed that are neither ours nor of an installed package: none, all, or those listed."""


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


def check_name_in_file(name: str, what: str, known: Mapping[str, Any], group: str, trust: Trust = False) -> None:
    """Refuse a name that stands in a file, if following it would run code that nobody here has chosen.

    Whoever made the file could name ``os:abort``. So it may name what :func:`find_object` finds without ``package.module:Name``,
    and that form only where an entry point in ``group`` is the same object. See there for the arguments.

    Raises:
        ConfigError: the name is another ``package.module:Name``, and ``trust`` does not have it.
    """
    if ":" not in name or name in known.values() or trusted(name, trust):
        return
    if name not in {entry.value for entry in entry_points(group=group)}:
        module, _, attribute = name.partition(":")
        raise ConfigError(
            f"It names the {what} {name!r}, which would import {module} and call its {attribute}. A file may only name what "
            f"comes with hsal or is an entry point ({group}) of an installed package. If you trust who made the file, pass "
            "trust=True (on the command line --trust-names)."
        )


def check_place_in_file(place: str, what: str, trust: Trust = False) -> None:
    """Refuse a path that stands in a file, if reading it would call another machine, as Windows does.

    Other paths are followed: what lies there is data, which is read and never run.

    Raises:
        ConfigError: the path is of that kind, and ``trust`` does not have it.
    """
    if PureWindowsPath(place).drive.startswith("\\\\") and not trusted(place, trust):
        raise ConfigError(
            f"It names the {what} {place!r}, which would be fetched from another machine. If you trust who made the file, pass "
            "trust=True (on the command line --trust-names)."
        )


def trusted(name: str, trust: Trust) -> bool:
    """Whether ``trust`` has a name.

    Raises:
        ConfigError: ``trust`` is neither a bool nor a collection of names.
    """
    if isinstance(trust, str) or not isinstance(trust, bool | Collection):
        raise ConfigError(f"Expected trust as True, False or a list of names; got {trust!r}.")
    return trust if isinstance(trust, bool) else name in trust


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
