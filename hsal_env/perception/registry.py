"""Perception models, by name or as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import nn

from hsal_env.errors import ConfigError
from hsal_env.perception.activation import ActivationModel, CompactResNet
from hsal_env.perception.model_file import load_model
from hsal_env.perception.saliency import SaliencyModel, SumOfSquares
from hsal_env.plugins import import_object

WEIGHTS_FOLDER = Path(__file__).with_name("weights")
ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"compact": CompactResNet}
"""What a model file may hold, by name; built with keyword arguments."""

ACTIVATION_MODELS: dict[str, Callable[[], Any]] = {
    path.stem: partial(load_model, path, ARCHITECTURES) for path in sorted(WEIGHTS_FOLDER.glob("*.pt"))
}
SALIENCY_MODELS: dict[str, Callable[[], Any]] = {"sum-of-squares": SumOfSquares}


def activation_model(given: str | nn.Module) -> ActivationModel:
    """The activation model of a registered name, a model file or ``"package.module:Name"``, or a copy of a module.

    It is frozen, and on the CPU. A file's name ends with ``.pt``: see :mod:`hsal_env.perception.model_file`.

    Raises:
        ConfigError: the name is unknown or cannot be imported; no module, or one without ``in_channels`` or ``channels``.
        CheckpointError: no such file, or it is damaged.
    """
    if not isinstance(given, str):
        return _checked_activation(given, given)
    if given.endswith(".pt"):
        return _checked_activation(load_model(Path(given).expanduser(), ARCHITECTURES), given)
    return _activation_of_name(given)


def initial_model(architecture: str, init: str | None = None, **arguments: Any) -> nn.Module:
    """A model to be trained.

    Args:
        architecture: a key of :data:`ARCHITECTURES`.
        init: a registered model or a model file, whose weights it starts from; ``"scratch"``: random ones; None: the published
            weights of the architecture if it has any (its class then has ``published``), else random ones.
        arguments: of the architecture; None: its default, or what ``init`` has.

    Raises:
        ConfigError: an unknown architecture or argument.
        CheckpointError: ``init`` is no such file, of another architecture, or does not fit.
    """
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"Expected architecture to be one of {', '.join(ARCHITECTURES)}; got {architecture!r}.")
    given = {name: value for name, value in arguments.items() if value is not None}
    if init is not None and init != "scratch":
        path = WEIGHTS_FOLDER / f"{init}.pt" if init in ACTIVATION_MODELS else Path(init).expanduser()
        return load_model(path, {architecture: ARCHITECTURES[architecture]}, **given)
    make = ARCHITECTURES[architecture]
    return make(**given) if init == "scratch" else getattr(make, "published", make)(**given)


def saliency_model(given: str | SaliencyModel) -> SaliencyModel:
    """The saliency model of a registered name or ``"package.module:Name"``, or a given one, copied if it is a module.

    Raises:
        ConfigError: the name is unknown or cannot be imported; or nothing that can be called, or a class.
    """
    if isinstance(given, str):
        return _saliency_of_name(given)
    if isinstance(given, type) or not callable(given):
        raise ConfigError(
            f"saliency={model_name(given)}: expected a name, or an object to be called with images and volume."
        )
    return _frozen(given) if isinstance(given, nn.Module) else given


def model_name(given: Any) -> str:
    """What messages call a model: its name in quotes, or its class."""
    return (
        repr(given) if isinstance(given, str | int | float | None) else getattr(given, "__name__", type(given).__name__)
    )


@cache
def _activation_of_name(name: str) -> ActivationModel:
    return _checked_activation(_build("activation", name, ACTIVATION_MODELS), name)


@cache
def _saliency_of_name(name: str) -> SaliencyModel:
    return _build("saliency", name, SALIENCY_MODELS)


def _checked_activation(model: Any, given: Any) -> ActivationModel:
    if not isinstance(model, nn.Module) or not hasattr(model, "in_channels") or not hasattr(model, "channels"):
        raise ConfigError(
            f"activation={model_name(given)}: expected an nn.Module with the attributes in_channels and channels. On one of "
            "yours, set them: model.in_channels, model.channels = 3, 64."
        )
    return _frozen(model)


def _frozen(model: nn.Module) -> Any:
    """A copy: what is done to the original later changes no feature, and the original can still be trained."""
    return copy.deepcopy(model).cpu().eval().requires_grad_(False)


def _build(kind: str, name: str, known: dict[str, Callable[[], Any]]) -> Any:
    if name in known:
        return known[name]()
    if ":" not in name:
        file = ", a file .pt" if kind == "activation" else ""
        raise ConfigError(f"Expected {kind} to be one of {', '.join(known)}{file} or 'package.module:Name'; got {name!r}.")
    return import_object(name, kind)()
