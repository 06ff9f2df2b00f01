"""Perception models by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from torch import nn

from hsal_env.errors import ConfigError
from hsal_env.perception.activation import WEIGHTS_FOLDER, ActivationModel, load_compact
from hsal_env.perception.saliency import SaliencyModel, SumOfSquares
from hsal_env.plugins import import_object

ACTIVATION_MODELS: dict[str, Callable[[], Any]] = {
    "compact": load_compact,
    "compact-ten": partial(load_compact, WEIGHTS_FOLDER / "compact-ten.pt"),
    "compact-single": partial(load_compact, WEIGHTS_FOLDER / "compact-single.pt"),
}
SALIENCY_MODELS: dict[str, Callable[[], Any]] = {"sum-of-squares": SumOfSquares}


@cache
def activation_model(name: str) -> ActivationModel:
    """The activation model ``name``, in evaluation mode: a registered name, or ``"package.module:Name"``.

    Raises:
        ConfigError: the name is unknown, cannot be imported, or lacks ``in_channels`` or ``channels``.
    """
    model = _build("activation", name, ACTIVATION_MODELS)
    if not isinstance(model, nn.Module) or not hasattr(model, "in_channels") or not hasattr(model, "channels"):
        raise ConfigError(f"activation={name!r}: expected an nn.Module with the attributes in_channels and channels.")
    frozen: Any = model.eval().requires_grad_(False)
    return frozen


@cache
def saliency_model(name: str) -> SaliencyModel:
    """The saliency model ``name``: a registered name, or ``"package.module:Name"``.

    Raises:
        ConfigError: the name is unknown or cannot be imported.
    """
    return _build("saliency", name, SALIENCY_MODELS)


def _build(kind: str, name: str, known: dict[str, Callable[[], Any]]) -> Any:
    if name in known:
        return known[name]()
    if ":" not in name:
        raise ConfigError(f"Expected {kind} to be one of {', '.join(known)} or 'package.module:Name'; got {name!r}.")
    return import_object(name, kind)()
