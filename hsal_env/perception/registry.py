"""Perception models, by name or as they are.

A name is one of the tables below, that of an entry point of an installed package, in the group ``hsal.activation_models`` or
``hsal.saliency_models``, or ``package.module:Name``; each means something that makes a model when it is called.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from hsal_env.errors import ConfigError
from hsal_env.perception.activation import ActivationModel, CompactResNet
from hsal_env.perception.itti_koch import IttiKoch
from hsal_env.perception.map_files import PREFIX, MapFiles
from hsal_env.perception.model_file import load_model
from hsal_env.perception.resnet import ResNet18, ResNet34
from hsal_env.perception.saliency import (
    READABLE,
    Boxes,
    Brightness,
    CentrePrior,
    SaliencyModel,
    SumOfMagnitudes,
    SumOfSquares,
    Uniform,
)
from hsal_env.perception.spectral_residual import SpectralResidual
from hsal_env.plugins import find_object

WEIGHTS_FOLDER = Path(__file__).with_name("weights")
ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "compact": CompactResNet,
    "resnet18": ResNet18,
    "resnet34": ResNet34,
}
"""What a model file may hold, by name; built with keyword arguments."""

BUNDLED = sorted(path.stem for path in WEIGHTS_FOLDER.glob("*.pt"))
"""Model files that come with the package."""
ACTIVATION_MODELS: dict[str, Callable[[], Any]] = {
    **{name: partial(load_model, WEIGHTS_FOLDER / f"{name}.pt", ARCHITECTURES) for name in BUNDLED},
    "compact-crowded-lower-level": partial(
        load_model, WEIGHTS_FOLDER / "compact-crowded.pt", ARCHITECTURES, lower_level=True
    ),
    "resnet18": ResNet18.published,
    "resnet34": ResNet34.published,  # the paper's, before it is fine-tuned
    "resnet34-stride16": partial(ResNet34.published, output_stride=16),
    "resnet34-stride8": partial(ResNet34.published, output_stride=8),
    "resnet34-lower-level": partial(ResNet34.published, lower_level=True),
}


class Listed(NamedTuple):
    """A saliency model of ours.

    Attributes:
        build: makes it.
        words: what it is, for people.
    """

    build: Callable[[], SaliencyModel]
    words: str


SALIENCY_MODELS = {
    "sum-of-squares": Listed(SumOfSquares, "the paper's: squared activations, summed"),
    "sum-of-magnitudes": Listed(SumOfMagnitudes, "absolute activations, summed"),
    "itti-koch": Listed(IttiKoch, "what stands out in intensity, colour or orientation (Itti, Koch and Niebur)"),
    "spectral-residual": Listed(SpectralResidual, "what is unusual in the spectrum (Hou and Zhang)"),
    "brightness": Listed(Brightness, "how bright a cell is"),
    "centre-prior": Listed(CentrePrior, "a control: the middle of the image"),
    "uniform": Listed(Uniform, "a control: all cells alike, but one corner"),
    "boxes": Listed(Boxes, "an oracle: the true objects"),
}
ACTIVATION_GROUP, SALIENCY_GROUP = "hsal.activation_models", "hsal.saliency_models"


def activation_model(given: str | nn.Module) -> ActivationModel:
    """The activation model of a name or a model file, or a copy of a module.

    It is frozen, and on the CPU. A file's name ends with ``.pt``: see :mod:`hsal_env.perception.model_file`.

    Raises:
        ConfigError: the name is unknown, cannot be imported, or makes no model when it is called without arguments; no module,
            or one without ``in_channels`` or ``channels``.
        CheckpointError: no such file, or it is damaged.
        DataUnavailableError: the name's published weights are nowhere to be had.
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
        init: a bundled model or a model file, whose weights it starts from; ``"scratch"``: random ones; None: the published
            weights of the architecture if it has any (its class then has ``published``), else random ones.
        arguments: of the architecture; None, and ``in_channels`` where it has no such: its default, or what ``init`` has.

    Raises:
        ConfigError: an unknown architecture, or an argument outside its range.
        CheckpointError: ``init`` is no such file, of another architecture, or does not fit the arguments.
        DataUnavailableError: published weights are nowhere to be had.
    """
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"Expected architecture to be one of {', '.join(ARCHITECTURES)}; got {architecture!r}.")
    make = ARCHITECTURES[architecture]
    known = inspect.signature(make).parameters
    given = {name: value for name, value in arguments.items() if value is not None and name in known}
    if init is not None and init != "scratch":
        path = WEIGHTS_FOLDER / f"{init}.pt" if init in BUNDLED else Path(init).expanduser()
        return load_model(path, {architecture: make}, **given)
    return make(**given) if init == "scratch" else getattr(make, "published", make)(**given)


def saliency_model(given: str | SaliencyModel) -> SaliencyModel:
    """The saliency model of a name or ``"file:PATH"`` (:class:`MapFiles`), or a given one, copied if it is a module.

    Raises:
        ConfigError: the name is unknown, cannot be imported, or makes no model when it is called without arguments; or nothing
            that can be called, or a class; or it reads what there is not.
    """
    return _saliency_of_name(given) if isinstance(given, str) else _checked_saliency(given, given)


def model_name(given: Any) -> str:
    """What messages call a model: its name in quotes, or its class."""
    return (
        repr(given) if isinstance(given, str | int | float | None) else getattr(given, "__name__", type(given).__name__)
    )


@cache
def _activation_of_name(name: str) -> ActivationModel:
    forms = "a model file .pt, or 'package.module:Name'"
    build = find_object(name, "activation model", ACTIVATION_MODELS, ACTIVATION_GROUP, forms)
    return _checked_activation(_made(build, "activation", name), name)


@cache
def _saliency_of_name(name: str) -> SaliencyModel:
    if name.startswith(PREFIX):
        return MapFiles(name.removeprefix(PREFIX))
    found = find_object(
        name, "saliency model", SALIENCY_MODELS, SALIENCY_GROUP, "'file:PATH' of maps, or 'package.module:Name'"
    )
    return _checked_saliency(_made(found.build if isinstance(found, Listed) else found, "saliency", name), name)


def _made(build: Any, argument: str, name: str) -> Any:
    try:
        return build()
    except TypeError as error:
        raise ConfigError(
            f"{argument}={name!r}: expected a class or function that makes a model when it is called without arguments: {error}."
        ) from error


def _checked_saliency(model: Any, given: Any) -> SaliencyModel:
    if isinstance(model, type) or not callable(model):
        raise ConfigError(
            f"saliency={model_name(given)}: expected a name, or an object to be called with images and volume."
        )
    reads = getattr(model, "reads", ())
    if not isinstance(reads, tuple) or not set(reads) <= set(READABLE):
        raise ConfigError(
            f"saliency={model_name(given)}: expected its attribute reads as a tuple of names out of {', '.join(READABLE)}; "
            f"got {reads!r}."
        )
    return _frozen(model) if isinstance(model, nn.Module) else model


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
