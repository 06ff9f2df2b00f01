"""The paper's equations, batched, in the order in which data flow: saliency, attention, interface, glimpse, rewards, update.

The activation model has turned images into a volume V (:mod:`hsal_env.perception.activation`). Here begins what the environment,
the agent and the learner share. Every function is pure: it writes nothing in place and does not branch on a tensor's value, so
that gradients flow wherever the paper lets them.

Shapes: B lanes, each with an image of its own; D activation channels; a map of H x W cells; K Gaussians; k glimpses; C classes.
A location is a flat cell index ``row * W + col``. Labels are 0 to C - 1, and C is "stop". References are to Welleck et al., NIPS
2017. S1 to S8 and L1 to L5 number our readings of its open points (docs/decisions.md), restated where they apply.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

# --- saliency ---------------------------------------------------------------------------------------------------------


def sum_of_squares(volume: Tensor) -> Tensor:
    """Raw saliency of an activation volume, section 3 "Saliency Model": ``S_ij = sum_c V_cij**2`` (S1).

    Args:
        volume: ``[B, D, H, W]``.

    Returns:
        ``[B, H, W]``, non-negative, unbounded.

    Example:
        >>> sum_of_squares(torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]]))  # two channels, one row of two cells
        tensor([[[10.,  4.]]])
    """
    return volume.square().sum(dim=1)


def normalise(maps: Tensor, least: float | Tensor = 0.0) -> Tensor:
    """Map each lane linearly to minimum 0 and maximum 1 (Appendix A); a constant map becomes zeros (S2).

    Args:
        maps: ``[B, H, W]``.
        least: a map whose range is at most this counts as constant; one number, or one of each lane ``[B, 1, 1]``.

    Example:
        >>> normalise(torch.tensor([[[2.0, 3.0, 6.0]], [[5.0, 5.0, 5.0]]]))
        tensor([[[0.0000, 0.2500, 1.0000]],
        <BLANKLINE>
                [[0.0000, 0.0000, 0.0000]]])
    """
    low = maps.amin(dim=(1, 2), keepdim=True)
    span = maps.amax(dim=(1, 2), keepdim=True) - low
    return (maps - low) / torch.where(span > least, span, torch.inf)


# --- Gaussian attention (section 3, "Gaussian Attention Mechanism") -----------------------------------------------------


class Mixture(NamedTuple):
    """Parameters of the attention mask, each ``[B, K]``.

    Attributes:
        alpha: importance, positive, sums to 1.
        beta: inverse squared width, positive, in 1/cell**2.
        row: centre kappa_1, in cells; the first row is at 1.
        col: centre kappa_2, in cells; the first column is at 1.
    """

    alpha: Tensor
    beta: Tensor
    row: Tensor
    col: Tensor


RAW_LIMIT = 8.0
"""The raw numbers of :func:`mixture` are clamped to [-8, 8], at whose ends sigmoid and softmax are saturated. Divided by 8 they
are an action in [-1, 1]; division by a power of two rounds nothing."""


def mixture(
    attention: Tensor,
    map_size: tuple[int, int],
    coordinates: Literal["paper", "centred"] = "paper",
    width: Literal["bounded", "exp"] = "bounded",
    width_unit: Literal["map", "cell"] = "map",
) -> Mixture:
    """Transform the 4K raw numbers that the meta-controller puts out, the dots below, to their ranges.

    ``alpha = softmax(.)``, ``kappa_1 = sigmoid(.) H`` and ``kappa_2 = sigmoid(.) W`` (S4). ``beta`` is in Appendix A's range
    [1.5, 2.0] on a 7x7 map, ``(1.5 + 0.5 sigmoid(.)) * 49 / (H W)``. The last factor lets a Gaussian cover the same share of any
    map (S5); ``width_unit="cell"`` leaves it out.

    Args:
        attention: the raw numbers ``[B, 4K]``: K of alpha, then K each of beta, kappa_1 and kappa_2.
        map_size: (H, W) in cells.
        coordinates: ``"centred"`` adds 1/2 to the centres, so that the interval they can reach is symmetric about the cells 1..H.
        width: ``"exp"`` makes ``beta = exp(.) * 49 / (H W)``, without bounds.
        width_unit: ``"map"`` scales beta with the map, as above; ``"cell"`` does not, so that a Gaussian is as wide in cells on
            any map.

    Example:
        >>> centre = mixture(torch.zeros(1, 4), map_size=(7, 7))  # one Gaussian
        >>> centre.row.item(), centre.col.item(), centre.beta.item()
        (3.5, 3.5, 1.75)
    """
    alpha, inverse_width, row, col = attention.unflatten(1, (4, -1)).unbind(dim=1)  # each [B, K]
    scale = {"map": 49 / (map_size[0] * map_size[1]), "cell": 1.0}[width_unit]
    offset = {"paper": 0.0, "centred": 0.5}[coordinates]
    beta = {"bounded": lambda raw: 1.5 + 0.5 * raw.sigmoid(), "exp": torch.exp}[width](inverse_width)
    return Mixture(
        alpha=alpha.softmax(dim=1),
        beta=beta * scale,
        row=row.sigmoid() * map_size[0] + offset,
        col=col.sigmoid() * map_size[1] + offset,
    )


def attention_mask(parameters: Mixture, map_size: tuple[int, int], scale: Literal["paper", "peak"] = "paper") -> Tensor:
    """The mask ``M_ij = sum_k alpha_k exp(-beta_k [(kappa_1k - i)**2 + (kappa_2k - j)**2])``, i = 1..H, j = 1..W (S6).

    ``scale="peak"`` divides each mask by its maximum, so that the most attended cell has weight 1. If K H W is 400 or more, the
    matrix product rounds by where a lane lies in memory.

    Returns:
        ``[B, H, W]`` in [0, 1].

    Example:
        >>> one = Mixture(*(torch.tensor([[value]]) for value in (1.0, 2.0, 1.0, 2.0)))  # alpha, beta, row, col
        >>> attention_mask(one, map_size=(2, 3))
        tensor([[[0.1353, 1.0000, 0.1353],
                 [0.0183, 0.1353, 0.0183]]])
    """
    alpha, beta, row, col = parameters
    i = torch.arange(1, map_size[0] + 1, device=alpha.device, dtype=alpha.dtype)
    j = torch.arange(1, map_size[1] + 1, device=alpha.device, dtype=alpha.dtype)
    distance = torch.cat([row[..., None] - i, col[..., None] - j], dim=2)  # [B, K, H + W]: a Gaussian is separable
    # factors below 1e-17 count as 0: their products would be denormal numbers in float32, many times as slow
    bottom, least = (-330.0, 1e-139) if distance.dtype == torch.float64 else (-40.0, 1e-17)
    exponent = (-beta[..., None] * distance.square()).clamp(min=bottom)  # exp(bottom) < least
    by_row, by_col = (exponent.exp() - least).clamp(min=0).split(map_size, dim=2)
    mask = (alpha[..., None] * by_row).transpose(1, 2) @ by_col  # [B, H, W]
    return _peak(mask) if scale == "peak" else mask


def _peak(mask: Tensor) -> Tensor:
    """The mask divided by its maximum. A mask that is zero, or nearly zero, everywhere stays so."""
    return mask / mask.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(mask.dtype).tiny)


def spotlight(
    location: Tensor, map_size: tuple[int, int], components: int, coordinates: Literal["paper", "centred"] = "paper"
) -> Tensor:
    """The inverse of :func:`mixture`: raw numbers ``[B, 4K]`` that centre all K Gaussians on ``location`` ``[B]``.

    It serves agents that attend by choosing a cell; the paper's agent does not use it. All Gaussians have the same importance and
    the raw width 0, the middle of the bounded range. Raw centres are clamped to ``RAW_LIMIT``, since the sigmoid reaches the last
    row and column only at infinity.

    Example:
        >>> raw = spotlight(torch.tensor([9]), map_size=(7, 7), components=1)  # cell 9: second row, third column
        >>> place = mixture(raw, map_size=(7, 7))
        >>> round(place.row.item(), 3), round(place.col.item(), 3)
        (2.0, 3.0)
    """
    row, col = (location // map_size[1]).float() + 1, (location % map_size[1]).float() + 1
    centre = torch.stack([row, col], dim=1)[..., None].expand(-1, -1, components)
    return _placed(centre, map_size, coordinates)


def lattice(
    centre: Tensor,
    reach: Tensor,
    map_size: tuple[int, int],
    components: int,
    coordinates: Literal["paper", "centred"] = "paper",
) -> Tensor:
    """Raw numbers ``[B, 4K]`` that put the K Gaussians on a square lattice about a centre: the mask of a drawn attention.

    The lattice has sqrt(K) rows and columns, evenly from ``centre - reach`` to ``centre + reach``. Importance, width and the
    limits of the centres are those of :func:`spotlight`, which this is if ``reach`` is 0. It is differentiable in both.

    Args:
        centre: (row, col) in cells ``[B, 2]``; the first cell is at 1.
        reach: half the lattice's height and width in cells ``[B, 2]``.
        map_size: (H, W) in cells.
        components: K, a square number.
        coordinates: see :func:`mixture`.

    Example:
        >>> raw = lattice(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.5]]), map_size=(7, 7), components=4)
        >>> place = mixture(raw, map_size=(7, 7))
        >>> place.row.round(decimals=3).tolist(), place.col.round(decimals=3).tolist()
        ([[2.0, 2.0, 4.0, 4.0]], [[3.5, 4.5, 3.5, 4.5]])
    """
    side = round(components**0.5)
    along = torch.linspace(-1, 1, side, device=centre.device, dtype=centre.dtype) if side > 1 else centre.new_zeros(1)
    steps = torch.stack([along.repeat_interleave(side), along.repeat(side)])  # [2, K]
    return _placed(centre[..., None] + reach[..., None] * steps, map_size, coordinates)


def _placed(centres: Tensor, map_size: tuple[int, int], coordinates: Literal["paper", "centred"]) -> Tensor:
    """Raw numbers ``[B, 4K]`` of Gaussians of one importance and the middle width, at ``centres`` ``[B, 2, K]`` in cells."""
    offset = {"paper": 0.0, "centred": 0.5}[coordinates]
    share = torch.stack(
        [(places - offset) / size for places, size in zip(centres.unbind(1), map_size, strict=True)], dim=1
    )
    beyond = 1e-4  # where the logit exceeds RAW_LIMIT, and is finite with its gradient
    raw = share.clamp(beyond, 1 - beyond).logit().clamp(-RAW_LIMIT, RAW_LIMIT)
    return torch.cat([torch.zeros_like(raw), raw], dim=1).flatten(1)


# --- interface (section 3, "Interface") -------------------------------------------------------------------------------


def priority(mask: Tensor, saliency: Tensor) -> Tensor:
    """Priority map ``P = M * S`` (elementwise), normalised to [0, 1] at each step (Appendix A, S2). ``[B, H, W]``.

    P does not depend on the scale of M: a mask beside all objects, where the product is tiny, still tells which one is nearest. A
    product counts as constant if its range is at most 1e-6 of its maximum, since such differences are rounding in float32; or at
    most 1e-15, since the factors of M end at 1e-17 (:func:`attention_mask`). So the gradient of the normalisation, at most
    S / range, stays below 1e15; the Gaussians multiply it by about M, which brings it back to the size of P.

    Example:
        >>> priority(torch.tensor([[[1.0, 0.5, 0.0]]]), torch.tensor([[[0.5, 1.0, 1.0]]]))
        tensor([[[1., 1., 0.]]])
        >>> priority(torch.tensor([[[1e-9, 5e-10, 0.0]]]), torch.tensor([[[0.5, 1.0, 1.0]]]))  # the same, but for the scale
        tensor([[[1., 1., 0.]]])
    """
    product = mask * saliency
    rounding = 1e-6 * product.amax(dim=(1, 2), keepdim=True)
    return normalise(product, least=rounding.clamp(min=1e-15))


def initial_glimpse(mask: Tensor, volume: Tensor) -> Tensor:
    """The first glimpse, ``g_0 = sum_ij M_ij V_:ij``: covert, since it looks at no one cell. A sum, not a mean (S7).

    Args:
        mask: ``[B, H, W]``.
        volume: ``[B, D, H, W]``.

    Returns:
        ``[B, D]``.

    Example:
        >>> volume = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])  # two channels, two cells
        >>> initial_glimpse(torch.tensor([[[1.0, 0.5]]]), volume)
        tensor([[2., 5.]])
    """
    columns = volume.permute(0, 2, 3, 1).flatten(1, 2)  # [B, H W, D], a view of a channels-last volume
    return (mask.flatten(1)[:, None] @ columns).squeeze(1)


# --- controller (section 3, "Controller") -----------------------------------------------------------------------------


def glimpse(volume: Tensor, location: Tensor) -> Tensor:
    """Overt glimpse ``g_i = V_:,a_i``: the column of ``volume`` ``[B, D, H, W]`` at ``location`` ``[B]``. ``[B, D]``.

    Example:
        >>> volume = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])  # two channels, two cells
        >>> glimpse(volume, torch.tensor([1]))
        tensor([[2., 4.]])
    """
    return volume.flatten(2)[torch.arange(len(location), device=location.device), :, location]


# --- rewards (section 4.2, "Reward") ----------------------------------------------------------------------------------


def location_rewards(priority_map: Tensor) -> Tensor:
    """Reward of each possible location, ``R_loc(a) = P_a``: ``[B, H, W]`` to ``[B, H W]``. It has no gradient (L3)."""
    return priority_map.detach().flatten(1)


def label_rewards(remaining: Tensor, final: Tensor | None = None) -> Tensor:
    """Reward of each possible label: +1 if it is in the multiset of remaining labels, else -1.

    What "stop", index C, earns depends on the protocol of the episode. In the *free* protocol (L5) saying stop ends the episode
    and earns +1 if nothing remains, else -1. In the *teacher* protocol (L4), the paper's in training, an image of m objects has
    m + 1 meta-steps whatever is said. Stop then earns -1, and at the last meta-step every label earns 0, because the loss there
    is the cross-entropy to stop.

    Args:
        remaining: how often each label is still to be named, ``[B, C]``: the multiset A_i.
        final: None in the free protocol; in the teacher protocol bool ``[B]``, the lanes at their meta-step m + 1.

    Returns:
        ``[B, C + 1]``, float32.

    Example:
        >>> label_rewards(torch.tensor([[2, 0, 1], [0, 0, 0]]))  # labels 0, 1, 2 and stop
        tensor([[ 1., -1.,  1., -1.],
                [-1., -1., -1.,  1.]])
    """
    named = 2.0 * (remaining > 0).float() - 1.0
    if final is None:
        stop = 2.0 * (remaining.sum(dim=1, keepdim=True) == 0).float() - 1.0
        return torch.cat([named, stop], dim=1)
    return torch.cat([named, -torch.ones_like(named[:, :1])], dim=1) * (~final[:, None]).float()


def take(remaining: Tensor, label: Tensor) -> Tensor:
    """The multiset ``A_{i+1}``: ``remaining`` ``[B, C]`` less one ``label`` ``[B]``, if it is in it. Stop removes nothing.

    Example:
        >>> take(torch.tensor([[2, 0, 1]]), torch.tensor([0]))
        tensor([[1, 0, 1]])
    """
    named = label[:, None] == torch.arange(remaining.shape[1], device=label.device)
    return (remaining - named.to(remaining.dtype)).clamp(min=0)


# --- update (section 3, "Update Mechanism") ---------------------------------------------------------------------------


def update_saliency(
    saliency: Tensor, mask: Tensor, locations: Tensor, rule: Literal["paper", "peak", "none"] = "paper"
) -> Tensor:
    """Inhibition of return: glimpsed cells become 0, all others ``max(S - M, 0)`` (S8).

    Args:
        saliency: ``[B, H, W]`` in [0, 1].
        mask: ``[B, H, W]``.
        locations: the glimpsed cells ``[B, k]``; the index H W stands for none.
        rule: ``"peak"`` subtracts ``M / max M`` instead, so that the attended peak is wiped whatever the height of the mask.
            ``"none"`` leaves S as it is, a control.

    Example:
        >>> update_saliency(torch.tensor([[[1.0, 0.75, 0.25]]]), torch.tensor([[[0.5, 0.5, 0.5]]]), torch.tensor([[0]]))
        tensor([[[0.0000, 0.2500, 0.0000]]])
    """
    if rule == "none":
        return saliency
    suppression = _peak(mask) if rule == "peak" else mask
    none = saliency[0].numel()
    kept = saliency.new_ones(len(saliency), none + 1).scatter(1, locations, 0.0)[:, :-1]  # 0 where glimpsed
    return (saliency - suppression).clamp(min=0) * kept.reshape(saliency.shape)
