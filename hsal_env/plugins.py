"""Third-party objects by ``package.module:Name``."""

from __future__ import annotations

import importlib
from typing import Any

from hsal_env.errors import ConfigError


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
