"""Activation models f_A: image -> activation volume V (paper section 3, "Meta-Controller").

An activation model is any ``nn.Module`` with the attributes of :class:`ActivationModel`. HSAL ships one, trained by
``train/pretrain_perception.py``, with three sets of weights: ``"compact"``, from the label multisets of canvases of 1 to 10
objects; ``"compact-ten"``, trained on from there with 10 small objects on each; and ``"compact-single"``, from single objects
alone, as in the paper. A JSON beside each says where it came from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from hsal_env.errors import CheckpointError

WEIGHTS_FOLDER = Path(__file__).with_name("weights")


class ActivationModel(Protocol):
    """What the environment asks of an activation model.

    Attributes:
        in_channels: 1 (grey) or 3 (colour): the images it reads.
        channels: D, the depth of its volume.

    It may also say ``first_px``, ``stride_px`` and ``receptive_field_px``, for pictures and scan paths: see
    :class:`hsal_env.perception.grid.Grid`.
    """

    in_channels: int
    channels: int

    def __call__(self, images: Tensor) -> Tensor:
        """``[B, in_channels, h_px, w_px]`` in [0, 1] to ``[B, D, H, W]``."""
        ...


class ResidualBlock(nn.Module):
    """Two convolutions with batch norm beside a 1x1 shortcut; halves the map."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1, stride=2, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_channels, h, w]`` to ``[B, channels, h / 2, w / 2]``, rounded up."""
        return torch.relu(self.body(x) + self.shortcut(x))


class CompactResNet(nn.Module):
    """A small residual network: 100x100 px to 7x7 cells, 16 px apart, each seeing 87 px.

    A cell has to see the largest object (50 px) whole, and beyond it, to know whether it or a neighbour holds its centre.
    """

    in_channels = 1
    channels = 128
    first_px, stride_px, receptive_field_px = 0.5, 16, 87  # cell r is centred on the image's pixel 16 r

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(self.in_channels, 24, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            ResidualBlock(24, 48),
            ResidualBlock(48, 96),
            ResidualBlock(96, self.channels),
        )
        # NCHW convolutions are several times slower on CPU
        self.layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 1, 100, 100]`` in [0, 1] to ``[B, 128, 7, 7]``, non-negative."""
        return self.layers(images.contiguous(memory_format=torch.channels_last))


def load_compact(path: Path = WEIGHTS_FOLDER / "compact.pt") -> CompactResNet:
    """The compact model with the weights in ``path``.

    Raises:
        CheckpointError: the weights file is missing, damaged, or of another architecture.
    """
    model = CompactResNet()
    try:
        model.load_state_dict(torch.load(path, weights_only=True))
    except Exception as error:  # torch raises several kinds for a damaged file
        raise CheckpointError(
            f"{path}: not the weights of CompactResNet ({error}). Reinstall hsal or retrain them."
        ) from error
    return model
