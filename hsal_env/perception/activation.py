"""Activation models f_A: image -> activation volume V (paper section 3, "Meta-Controller").

An activation model is any ``nn.Module`` with the attributes ``in_channels`` and ``channels`` of :class:`ActivationModel`. This
file also holds the small network that HSAL ships. ``train/pretrain_perception.py`` made its several sets of weights, and a JSON
file beside each says how. ``docs/perception.md`` lists them, and the models with published weights
(:mod:`hsal_env.perception.resnet`).
"""

from __future__ import annotations

import math
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_unshuffle

from hsal_env.errors import ConfigError
from hsal_env.isolation import own_defaults
from hsal_env.perception import Padding


class ActivationModel(nn.Module):
    """What the environment reads of an activation model.

    A model of your own need not inherit from this class. It has to name ``in_channels`` and ``channels``; :func:`completed` adds
    the other attributes.

    Attributes:
        in_channels: channels of the images that it reads: 1 (grey) or 3 (colour).
        channels: D, the depth of its volume.
        saliency_channels: the sum Σ V² of the saliency map runs over so many first channels; by default over all D.
        arguments: keyword arguments that build the model again, as in a model file; by default none.
        first_px, stride_px, receptive_field_px, resized_px: where the cells lie on the image, see
            :meth:`hsal_env.perception.grid.Grid.of`. Pictures, scan paths and some saliency models need it.
    """

    in_channels: int
    channels: int
    saliency_channels: int
    arguments: dict[str, Any]
    first_px: float | tuple[float, float] | None = None
    stride_px: float | None = None
    receptive_field_px: float | None = None
    resized_px: float | None = None

    def forward(self, images: Tensor) -> Tensor:
        """``[B, in_channels, h_px, w_px]`` in [0, 1] to ``[B, D, H, W]``."""
        raise NotImplementedError

    @classmethod
    def published(cls, *_: Any, **arguments: Any) -> ActivationModel:
        """The model with the published weights of its architecture; with random weights where there are none."""
        return cls(**arguments)


def completed(model: nn.Module) -> ActivationModel:
    """Add to ``model`` those attributes of :class:`ActivationModel` that it lacks, and return it."""
    defaults: dict[str, Any] = {"saliency_channels": model.channels, "arguments": {}}
    for name in ("first_px", "stride_px", "receptive_field_px", "resized_px"):
        defaults[name] = None
    for name, default in defaults.items():
        if not hasattr(model, name):
            setattr(model, name, default)
    return cast(ActivationModel, model)


@torch.no_grad()
@own_defaults()
def sample_volume(model: ActivationModel, image_px: tuple[int, int]) -> Tensor:
    """What ``model`` makes of one image, always the same, of ``image_px`` (rows, columns): ``[1, D, H, W]``, float16."""
    shape = (1, model.in_channels, *image_px)
    scattered = torch.arange(math.prod(shape), dtype=torch.float64) * (5**0.5 / 2) % 1  # as even as noise
    volume: Tensor = model(scattered.float().view(shape))
    return volume.half()


def same_volumes(one: Tensor, other: Tensor, tolerance: float = 0.01) -> bool:
    """Whether two volumes ``[B, D, H, W]`` are of one model, up to the rounding of other machines and batches.

    In every channel the mean difference is at most ``tolerance`` times the mean of all values.
    """
    if one.shape != other.shape:
        return False
    one, other = one.float(), other.float()
    return bool(((one - other).abs().mean(dim=(0, 2, 3)) <= tolerance * other.abs().mean()).all())


_MOST_DEEPER = 8
FIRST_PX = (0.5, 0.5)
"""Centre of pixel (0, 0): where cell (0, 0) looks if its network pads as much as it strides over."""


def checked_first_px(given: tuple[float, float]) -> tuple[float, float]:
    """``first_px`` as two numbers.

    Raises:
        ConfigError: it is something else.
    """
    numbers = tuple(given) if isinstance(given, tuple | list) else ()
    if len(numbers) != 2 or not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        raise ConfigError(f"Expected first_px as two finite numbers (row, col); got {given!r}.")
    return float(numbers[0]), float(numbers[1])


def _convolution(in_channels: int, channels: int, stride: int, dilation: int, padding: Padding) -> nn.Conv2d:
    """3x3, and as wide as its input where ``stride`` is 1."""
    return nn.Conv2d(
        in_channels, channels, 3, stride, padding=dilation, dilation=dilation, bias=False, padding_mode=padding
    )


class ResidualBlock(nn.Module):
    """A residual block: two convolutions with batch norm, added to the input or, where sizes differ, to a 1x1 shortcut.

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        stride: 2 halves the height and width of the map, 1 keeps them.
        dilation: of the first convolution. It is 2 if an earlier block has stride 1 in place of 2, so that the input is twice as
            fine as the one that the weights were trained on.
        shortcut: whether there is the 1x1 shortcut, with batch norm. Without it, the block changes nothing at first but what
            is negative: its last batch norm begins at 0.
        padding: what the convolutions see beyond the edge, see :class:`CompactResNet`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 2,
        dilation: int = 1,
        shortcut: bool = True,
        padding: Padding = "zeros",
    ) -> None:
        super().__init__()
        # without the halving, the input of the second convolution is twice as fine as the weights expect
        after = dilation if stride == 2 or not shortcut else 2 * dilation
        self.body = nn.Sequential(
            _convolution(in_channels, channels, stride, dilation, padding),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            _convolution(channels, channels, 1, after, padding),
            nn.BatchNorm2d(channels),
        )
        if shortcut:
            self.shortcut: nn.Module = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        else:
            self.shortcut = nn.Identity()
            nn.init.zeros_(cast(nn.BatchNorm2d, self.body[-1]).weight)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_channels, h, w]`` to ``[B, channels, h / stride, w / stride]``, rounded up."""
        return torch.relu(self.body(x) + self.shortcut(x))


class CompactResNet(ActivationModel):
    """A small residual network. It turns 100x100 px into 7x7 cells that lie 16 px apart and see 87 px each.

    The receptive field is larger than the largest object (50 px), so that a cell can tell whether the centre of an object lies
    in itself or in a neighbour.

    Finer maps use the same weights. The last one or two blocks are dilated and do not halve the map (Yu and Koltun 2015), so that
    each cell sees as much as before. The image is first padded at its lower and right edge to a multiple of 16 px, with copies
    of the edge, so that 100 px give 14x14 or 28x28 cells. Cells that see beyond these edges therefore differ from those of the
    7x7 map, which see zeros there.

    Args:
        in_channels: 1 (grey) or 3 (RGB).
        output_stride: px from one cell to the next: 16, 8 or 4.
        lower_level: append to each column the activations of the stage before the last, at the 2x2 finer places inside the cell
            (paper section 5.2, "Activation Resolution"). These 4 * 96 channels do not count for saliency.
        deeper: so many more residual blocks after each of the last two stages, or a number for each. They change nothing at
            first, so weights without them can be trained on with them. Each widens what a cell sees, by 32 px and 64 px.
        padding: what every convolution sees beyond the edge: zeros, or the values at the edge once more (``"replicate"``). Zeros
            tell a cell where it is. Then a network that learns to count can light the same cells whatever the image shows.
        first_px: (row, col) on the image where an object of cell (0, 0) is. By default the centre of its first pixel, about
            which the cell sees; :mod:`agents.supervised.centring` measures it.

    Raises:
        ConfigError: an argument has another value.
    """

    stride_px: int

    def __init__(
        self,
        in_channels: int = 1,
        output_stride: int = 16,
        lower_level: bool = False,
        deeper: int | tuple[int, int] = 0,
        padding: Padding = "zeros",
        first_px: tuple[float, float] = FIRST_PX,
    ) -> None:
        super().__init__()
        if in_channels not in (1, 3) or output_stride not in (16, 8, 4) or (lower_level and output_stride != 16):
            raise ConfigError(
                "Expected in_channels 1 or 3, output_stride 16, 8 or 4, and lower_level only at 16; got "
                f"{in_channels}, {output_stride}, {lower_level}."
            )
        self.first_px = checked_first_px(first_px)
        more = (deeper, deeper) if isinstance(deeper, int) else tuple(deeper)
        if len(more) != 2 or not all(isinstance(number, int) and 0 <= number <= _MOST_DEEPER for number in more):
            raise ConfigError(f"Expected deeper in 0..{_MOST_DEEPER}, or two such numbers; got {deeper}.")
        if padding not in get_args(Padding):
            raise ConfigError(f"Expected padding to be zeros or replicate; got {padding!r}.")
        self.arguments = {
            "in_channels": in_channels,
            "output_stride": output_stride,
            "lower_level": lower_level,
            "deeper": deeper,
            "padding": padding,
            "first_px": self.first_px,
        }
        self.in_channels, self.stride_px, self.lower_level = in_channels, output_stride, lower_level
        self.saliency_channels = 128
        self.channels = self.saliency_channels + 4 * 96 * lower_level
        self.layers = nn.Sequential(
            _convolution(in_channels, 24, 2, 1, padding),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            ResidualBlock(24, 48, padding=padding),
            ResidualBlock(48, 96, 1 if output_stride == 4 else 2, padding=padding),
            ResidualBlock(96, 128, 2 if output_stride == 16 else 1, 2 if output_stride == 4 else 1, padding=padding),
        )
        self.receptive_field_px = 87 + 32 * more[0] + 64 * more[1]
        dilation = {16: (1, 1), 8: (1, 2), 4: (2, 4)}[output_stride]
        self.more = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(c, c, 1, d, shortcut=False, padding=padding) for _ in range(number)))
            for c, d, number in zip((96, 128), dilation, more, strict=True)
        )
        # convolutions in NCHW order are several times slower on a CPU
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, in_channels, h_px, w_px]`` in [0, 1] to volumes ``[B, channels, H, W]``, non-negative."""
        images = images.contiguous(memory_format=torch.channels_last)
        if self.stride_px < 16 or self.lower_level:
            below, right = (-size % 16 for size in images.shape[2:])
            images = pad(images, (0, right, 0, below), mode="replicate")
        before = self.more[0](self.layers[:-1](images))
        volume = self.more[1](self.layers[-1](before))
        return torch.cat([volume, pixel_unshuffle(before, 2)], dim=1) if self.lower_level else volume
