"""Objects of other packages: by ``package.module:Name``, or by the name of an installed entry point."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from hsal_env.errors import ConfigError


def find_object(
    name: str, what: str, known: Mapping[str, Any], group: str, forms: str = "or 'package.module:Name'"
) -> Any:
    """The object that ``name`` means: one of ours, an installed package's, or any that can be imported.

    Args:
        name: a key of ``known``, the name of an entry point in ``group``, or ``package.module:Name``.
        what: for what it is asked, in messages.
        known: ours, or where to import them from; one of the same name elsewhere is not looked at.
        group: of the entry points.
        forms: what ``name`` may be but a name, for messages.

    Raises:
        ConfigError: nothing of that name, or it cannot be imported.
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
        raise ConfigError(f"{what} {name!r} cannot be loaded: {error}. Is its package installed whole?") from error


def import_object(path: str, what: str) -> Any:
    """Import ``package.module:Name``.

    Raises:
        ConfigError: not of that form, or the import fails; ``what`` says for what it was asked.
    """
    module, _, name = path.partition(":")
    if not module or not name or module.startswith("."):
        raise ConfigError(f"Expected {what} as 'package.module:Name'; got {path!r}.")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{what} {path!r} cannot be imported: {error}. Is its package installed?") from error
