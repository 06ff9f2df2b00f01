"""Checks of a configuration's values against the types of its fields."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hsal_env.errors import ConfigError

_IN_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}
_HUGE = 1 << 64
MOST_COUNTED = 1_000_000_000
MOST_COEFFICIENT = 1e30  # single precision ends at 3e38


def check_fields(config: Any) -> None:
    """Hold every value of a dataclass against the type of its field: ``Literal``, int, float, bool or str, or None.

    Fields of other types are left alone. A bool is no number; a whole number is a float, too.

    Raises:
        ConfigError: a value that does not fit; the message lists the choices of a ``Literal``.
    """
    for name, choices, kinds in _checked(config.__class__):
        value = getattr(config, name)
        if isinstance(value, int) and abs(value) >= _HUGE:  # Python refuses to write out such a number
            raise ConfigError(f"Expected {name} of less than 2**64 in size; got a larger whole number.")
        if choices and value not in choices:
            raise ConfigError(f"Expected {name} to be one of {', '.join(map(str, choices))}; got {value!r}.")
        if kinds and not _fits(value, kinds):
            words = " or ".join(_IN_WORDS.get(kind, "None") for kind in kinds)
            raise ConfigError(f"Expected {name} as {words}; got {value!r}.")


def check_at_most(config: Any, **limits: float) -> None:
    """Hold numbers of a dataclass against limits far above what anyone has use for.

    Without them a number like 10**9 takes all memory, or hours, before it fails, and 1e300 is no number of single precision.

    Raises:
        ConfigError: a number above its limit.
    """
    for name, most in limits.items():
        value = getattr(config, name)
        if value is not None and not value <= most:  # NaN is above every limit
            raise ConfigError(f"Expected {name} of at most {most:,}; got {value:,}.")


def choices(kind: Any) -> tuple[Any, ...]:
    """The values of a ``Literal`` type, or of a union that holds one."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return tuple(value for part in get_args(kind) for value in ((None,) if part is NoneType else choices(part)))
    return ()


@cache
def _checked(config: type) -> list[tuple[str, tuple[Any, ...], tuple[type, ...]]]:
    """Name, choices and plain types of every field that can be checked."""
    hints = get_type_hints(config)
    found = []
    for field in fields(config):
        kind = hints[field.name]
        parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        plain = all(part in (*_IN_WORDS, NoneType) for part in parts)
        literal = any(get_origin(part) is Literal for part in parts)
        if plain or literal:
            found.append((field.name, choices(kind) if literal else (), parts if plain else ()))
    return found


def _fits(value: Any, kinds: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, (*kinds, int) if float in kinds else kinds)
