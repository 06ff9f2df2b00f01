"""Perception models: found by name, checked, and completed.

A name is a key of a table below, or that of an entry point of an installed package (in the group ``hsal.activation_models`` or
``hsal.saliency_models``), or ``package.module:Name``. Each stands for something that makes a model when it is called.

Models of users pass through :func:`activation_model` and :func:`saliency_model`. Those check them and add the attributes that
they lack, so that the code behind them reads the attributes of :class:`ActivationModel` and :class:`SaliencyModel` plainly.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from hsal_env.errors import ConfigError
from hsal_env.isolation import own_defaults, own_torch
from hsal_env.perception import Architecture
from hsal_env.perception.activation import ActivationModel, CompactResNet, completed
from hsal_env.perception.itti_koch import IttiKoch
from hsal_env.perception.map_files import PREFIX, MapFiles
from hsal_env.perception.model_file import load_model
from hsal_env.perception.resnet import ResNet18, ResNet34
from hsal_env.perception.saliency import (
    READABLE,
    Boxes,
    Brightness,
    CallableSaliency,
    CentrePrior,
    SaliencyModel,
    SumOfMagnitudes,
    SumOfSquares,
    Uniform,
)
from hsal_env.perception.spectral_residual import SpectralResidual
from hsal_env.plugins import Trust, check_name_in_file, check_place_in_file, find_object
from hsal_env.storage.files import as_path

WEIGHTS_FOLDER = Path(__file__).with_name("weights")
ARCHITECTURES: dict[Architecture, type[ActivationModel]] = {
    "compact": CompactResNet,
    "resnet18": ResNet18,
    "resnet34": ResNet34,
}
"""The classes that a model file may name; they are built with keyword arguments."""

BUNDLED = sorted(path.stem for path in WEIGHTS_FOLDER.glob("*.pt"))
"""Names of the model files that come with the package."""
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
    """A saliency model that comes with the package.

    Attributes:
        build: its class, which is called without arguments.
        words: what it is, in plain words.
    """

    build: type[SaliencyModel]
    words: str


SALIENCY_MODELS = {
    "sum-of-squares": Listed(SumOfSquares, "the paper's: squared activations, summed"),
    "sum-of-magnitudes": Listed(SumOfMagnitudes, "absolute activations, summed"),
    "itti-koch": Listed(IttiKoch, "what stands out in intensity, colour or orientation (Itti, Koch and Niebur)"),
    "spectral-residual": Listed(SpectralResidual, "what is unusual in the spectrum (Hou and Zhang)"),
    "brightness": Listed(Brightness, "how bright a cell is"),
    "centre-prior": Listed(CentrePrior, "a control: the middle of the image"),
    "uniform": Listed(Uniform, "a control: all cells alike except one corner"),
    "boxes": Listed(Boxes, "an oracle: the boxes of the true objects"),
}
ACTIVATION_GROUP, SALIENCY_GROUP = "hsal.activation_models", "hsal.saliency_models"


@own_torch()
def activation_model(given: str | nn.Module) -> ActivationModel:
    """The activation model of a name or of a model file, or a copy of a given module.

    It is frozen, on the CPU, and has every attribute of :class:`ActivationModel`. The name of a model file ends with ``.pt``, see
    :mod:`hsal_env.perception.model_file`.

    Raises:
        ConfigError: the name is unknown, cannot be imported, or makes no model when it is called without arguments; or the
            model is no ``nn.Module``, or lacks ``in_channels`` or ``channels``.
        CheckpointError: the file is missing or damaged.
        DataUnavailableError: the published weights of that name were not found and cannot be downloaded.
    """
    if not isinstance(given, str):
        return _checked_activation(given, given)
    if given.endswith(".pt"):
        return _checked_activation(load_model(as_path(given), ARCHITECTURES), given)
    return _activation_of_name(given)


@own_defaults()
def initial_model(architecture: Architecture, init: str | None = None, **arguments: Any) -> ActivationModel:
    """A model to be trained.

    Args:
        architecture: a key of :data:`ARCHITECTURES`.
        init: what its weights are at first: those of a bundled model or a model file; random with ``"scratch"``; with None
            the published ones of the architecture (:meth:`ActivationModel.published`), or random ones where there are none.
        arguments: of the architecture. One that is None takes the value that ``init`` has, or else its default. One that the
            architecture does not have, such as ``in_channels`` of a ResNet, is left out.

    Raises:
        ConfigError: an unknown architecture, or an argument outside its range.
        CheckpointError: ``init`` is missing, holds another architecture, or does not fit the arguments.
        DataUnavailableError: published weights were not found and cannot be downloaded.
    """
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"Expected architecture to be one of {', '.join(ARCHITECTURES)}; got {architecture!r}.")
    make = ARCHITECTURES[architecture]
    known = inspect.signature(make).parameters
    given = {name: value for name, value in arguments.items() if value is not None and name in known}
    if init is not None and init != "scratch":
        path = WEIGHTS_FOLDER / f"{init}.pt" if init in BUNDLED else as_path(init)
        return load_model(path, {architecture: make}, **given)
    return make(**given) if init == "scratch" else make.published(**given)


def saliency_model(given: str | Callable[..., Tensor]) -> SaliencyModel:
    """The saliency model of a name or of ``"file:PATH"`` (:class:`MapFiles`), or a given one.

    A given ``nn.Module`` is copied. What is no :class:`SaliencyModel` is wrapped into a :class:`CallableSaliency`.

    Raises:
        ConfigError: the name is unknown, cannot be imported, or makes no model when it is called without arguments; or the
            given object cannot be called or is a class; or its ``reads`` holds an unknown name.
    """
    return _saliency_of_name(given) if isinstance(given, str) else _checked_saliency(given, given)


def check_models_in_file(activation: str, saliency: str, trust: Trust = False) -> None:
    """Refuse names of models that stand in a file, see :func:`hsal_env.plugins.check_name_in_file`.

    A model file and files of maps are data: they may be named, unless they lie on another machine.

    Raises:
        ConfigError: a name would run code that nobody here has chosen.
    """
    if activation.endswith(".pt"):
        check_place_in_file(activation, "activation model", trust)
    else:
        check_name_in_file(activation, "activation model", ACTIVATION_MODELS, ACTIVATION_GROUP, trust)
    if saliency.startswith(PREFIX):
        check_place_in_file(saliency.removeprefix(PREFIX), "saliency maps", trust)
    else:
        check_name_in_file(saliency, "saliency model", SALIENCY_MODELS, SALIENCY_GROUP, trust)


def model_name(given: Any) -> str:
    """How messages name a model: its name in quotes, or its class."""
    return (
        repr(given) if isinstance(given, str | int | float | None) else getattr(given, "__name__", type(given).__name__)
    )


@cache
@own_torch()
def _activation_of_name(name: str) -> ActivationModel:
    forms = "a model file .pt, or 'package.module:Name'"
    build = find_object(name, "activation model", ACTIVATION_MODELS, ACTIVATION_GROUP, forms)
    return _checked_activation(_made(build, "activation", name), name)


@cache
@own_torch()
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
            f"saliency={model_name(given)}: expected a name, or an object that can be called with images and volume."
        )
    plugged = _frozen(model) if isinstance(model, nn.Module) else model
    checked = plugged if isinstance(plugged, SaliencyModel) else CallableSaliency(plugged)
    if not isinstance(checked.reads, tuple) or not set(checked.reads) <= set(READABLE):
        raise ConfigError(
            f"saliency={model_name(given)}: expected its attribute reads to be a tuple of names from {', '.join(READABLE)}; "
            f"got {checked.reads!r}."
        )
    return checked


def _checked_activation(model: Any, given: Any) -> ActivationModel:
    if not isinstance(model, nn.Module) or not hasattr(model, "in_channels") or not hasattr(model, "channels"):
        raise ConfigError(
            f"activation={model_name(given)}: expected an nn.Module with the attributes in_channels and channels. Set them on "
            "a model of your own: model.in_channels, model.channels = 3, 64."
        )
    return completed(_frozen(model))


def _frozen(model: nn.Module) -> nn.Module:
    """A copy, so that later changes to the original change no feature and the original can still be trained."""
    return copy.deepcopy(model).cpu().eval().requires_grad_(False)
