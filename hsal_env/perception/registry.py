"""Perception models, by name or as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from torch import nn

from hsal_env.errors import ConfigError
from hsal_env.perception.activation import WEIGHTS_FOLDER, ActivationModel, load_compact
from hsal_env.perception.resnet import load_imagenet
from hsal_env.perception.saliency import SaliencyModel, SumOfSquares
from hsal_env.plugins import import_object

ACTIVATION_MODELS: dict[str, Callable[[], Any]] = {
    "compact": load_compact,
    "compact-ten": partial(load_compact, WEIGHTS_FOLDER / "compact-ten.pt"),
    "compact-single": partial(load_compact, WEIGHTS_FOLDER / "compact-single.pt"),
    "resnet18": partial(load_imagenet, 18),
    "resnet34": load_imagenet,  # the paper's, before it is fine-tuned
    "resnet34-stride16": partial(load_imagenet, output_stride=16),
    "resnet34-stride8": partial(load_imagenet, output_stride=8),
    "resnet34-lower-level": partial(load_imagenet, lower_level=True),
}
SALIENCY_MODELS: dict[str, Callable[[], Any]] = {"sum-of-squares": SumOfSquares}


def activation_model(given: str | nn.Module) -> ActivationModel:
    """The activation model of a registered name or ``"package.module:Name"``, or a copy of a module; frozen, on the CPU.

    Raises:
        ConfigError: the name is unknown or cannot be imported; no module, or one without ``in_channels`` or ``channels``.
    """
    return _activation_of_name(given) if isinstance(given, str) else _checked_activation(given, given)


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
        raise ConfigError(f"Expected {kind} to be one of {', '.join(known)} or 'package.module:Name'; got {name!r}.")
    return import_object(name, kind)()
