"""Files of activation models, and fingerprints of models.

A model file holds the name of an architecture, the arguments that build it, and its weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hsal_env.errors import CheckpointError
from hsal_env.perception.activation import ActivationModel
from hsal_env.storage.weights import load_weights, save_weights

_PARTS = {"architecture", "arguments", "weights"}


def save_model(path: Path, architecture: str, model: ActivationModel) -> None:
    """Write ``model`` so that :func:`load_model` can build it again. An interrupted write leaves the previous file as it was.

    Args:
        path: where the file goes.
        architecture: the name of the model's class, see :data:`hsal_env.perception.registry.ARCHITECTURES`.
        model: the model.

    Raises:
        CheckpointError: the file cannot be written.
    """
    content = {"architecture": architecture, "arguments": model.arguments, "weights": model.state_dict()}
    save_weights(path, content)


def read_model(path: Path) -> dict[str, Any]:
    """The parts of a model file: ``architecture``, ``arguments``, ``weights``.

    Raises:
        CheckpointError: the file is missing, cut off, damaged, or of another kind.
    """
    if not path.is_file():
        folder = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise CheckpointError(f"No activation model at {path}{folder}. Put the file there, or name another.")
    try:
        content = load_weights(path)
    except Exception as error:  # torch raises several kinds for a damaged file
        raise CheckpointError(
            f"{path} is cut off, damaged, or no activation model ({type(error).__name__}: {error}). If the file belongs to "
            "hsal, reinstall hsal; if it is yours, train the model again."
        ) from error
    if not isinstance(content, dict) or set(content) != _PARTS:
        raise CheckpointError(
            f"{path}: expected an activation model written by hsal-pretrain, with the parts "
            f"{', '.join(sorted(_PARTS))}; got {sorted(map(str, content))[:5] if isinstance(content, dict) else type(content)}."
        )
    return content


def load_model(path: Path, architectures: Mapping[Any, type[ActivationModel]], **arguments: Any) -> ActivationModel:
    """The model in ``path``.

    Args:
        path: a model file.
        architectures: the classes that it may hold, by name.
        arguments: of the architecture, in place of those in the file. Another ``output_stride``, for example, gives a finer map
            of the same weights, and a greater ``deeper`` adds blocks that are not trained yet.

    Raises:
        CheckpointError: see :func:`read_model`; or the file holds an unknown architecture, or weights that do not fit it.
    """
    content = read_model(path)
    name = content["architecture"]
    if name not in architectures:
        raise CheckpointError(f"{path} holds a {name!r}; expected {' or '.join(architectures)}. Name another file.")
    try:
        model = architectures[name](**{**content["arguments"], **arguments})
        new = {
            part: tensor
            for part, tensor in model.state_dict().items()
            if "deeper" in arguments and part.startswith("more.")
        }
        model.load_state_dict({**new, **content["weights"]})
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its weights do not fit the architecture {name!r}: {error}") from error
    return model


def fingerprint(*parts: str | np.ndarray | nn.Module) -> str:
    """A short hash of texts, arrays and the weights of models: 20 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, nn.Module):
            for name, tensor in part.state_dict().items():
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(part.encode() if isinstance(part, str) else part.tobytes())
    return digest.hexdigest()[:20]
