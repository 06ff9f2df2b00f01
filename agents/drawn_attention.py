"""The upper level as a stochastic policy: a mask that is drawn, on one place of the map.

The paper's meta-controller puts out the mask itself, and learns through it. Here it has a policy, a value and an entropy, as the
controller has. At meta-step t it draws

- a cell c, in one of two ways: where something stands out, or where nothing ever has. With T_t, the largest saliency that each
  cell has had so far, and N T_t, its largest value among a cell and the eight about it, the scores of these 2 H W choices are
  ``w S_t + u(h_t) + f(S_t, T_t)`` and ``v(h_t) - w' N T_t + g(S_t, T_t)``. u and v are two outputs of one MLP, f and g two
  channels of a small convolutional network over S_t and ``T_t - S_t``, what was wiped. The policy is the softmax over all
  choices. The log-probability of c is that of both ways together;
- an extent x_0 and a shift (x_1, x_2) from ``Normal(mean, STD)``, where the mean is linear in the 5x5 patch of S_t about c.

The K Gaussians stand on a square lattice about ``c + SHIFT tanh(x_1, x_2)``, and it reaches ``EXTENT sigmoid(x_0)`` from there.
Lengths are in units of a cell of the paper's map: a seventh of the map's shorter side, or with ``width_unit="cell"`` a cell of
any map. Attention reaches the environment as the 4K numbers that describe this lattice (:func:`hsal_env.functional.lattice`). In
a test the way is the more probable one and the cell its most probable one (:func:`mode`), with its means.

Why a convolution: an object that is several cells wide is seldom wiped as a whole. What is left of it and an object that nobody
has looked at differ in what was wiped beside them, and they do so in the same way all over the map.

Why two ways: when every object is named, any of some forty empty cells will do, and no single one of them is probable. What is
left of a named object would then be the most probable cell. The second way gathers the empty ones, and by T_t it keeps away from
named objects, where S_t is low, too.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, pad

from agents.config import grid_side
from agents.encoding import EncodedGRU, one_hot_or_zeros
from agents.sampling import sample, sample_normal
from agents.trajectory import AttentionScores
from hsal_env import functional as F
from hsal_env.rules import Rules

PATCH = 5
"""Rows and columns of the patch that the means of extent and shift are read off."""
STD = 0.3
"""Standard deviation of the three numbers."""
EXTENT, SHIFT = 2.0, 1.0
"""Limits of extent and shift, in units of length."""
FIRST_EXTENT = -1.0
"""First mean of x_0: the lattice reaches 0.54 cells of a 7x7 map."""
PATTERNS = 16
"""Channels between the two convolutions."""
FIRST_AWAY = 3.0
"""First value of v: a cell where nothing ever was is as probable as one of ``S = FIRST_AWAY / w``, 0.15 by default."""


class AttentionDraw(NamedTuple):
    """What is drawn at a meta-step of B lanes.

    Attributes:
        cell: c, int64 ``[B]``, row-major.
        extent: x_0 ``[B]``.
        shift: (x_1, x_2) ``[B, 2]``, of the row and of the column.
    """

    cell: Tensor
    extent: Tensor
    shift: Tensor


class DrawnAttention(EncodedGRU):
    """``x_t = [S_t, y_{t-1}]``, ``e_t = W_encode x_t``, ``h_t = GRU(e_t, h_{t-1})`` as in the paper, and the heads of a policy.

    Args:
        map_size: (H, W) in cells.
        labels: C + 1.
        rules: the rules of the environment.
        hidden: size of encoding and state.
        cell_hidden: hidden units of the MLP.
        saliency_prior: first value of w and w'.

    Attributes:
        state_size: size of the recurrent state: h_t and T_t.

    Raises:
        ConfigError: K is not a square number.
    """

    def __init__(
        self,
        map_size: tuple[int, int],
        labels: int,
        rules: Rules,
        hidden: int,
        cell_hidden: int,
        saliency_prior: float,
    ) -> None:
        grid_side(rules.components, "attention_policy='drawn'", "another attention_policy")
        cells = map_size[0] * map_size[1]
        super().__init__(cells + labels, hidden)
        self.map_size, self.labels, self.rules = map_size, labels, rules
        scores = nn.Linear(cell_hidden, 2 * cells)
        self.cell = nn.Sequential(nn.Linear(hidden, cell_hidden), nn.ReLU(), scores)
        self.hidden, self.state_size = hidden, hidden + cells
        self.saliency_prior = nn.Parameter(torch.tensor(float(saliency_prior)))
        self.away_prior = nn.Parameter(torch.tensor(float(saliency_prior)))
        self.reach = reach = max(1, round(_unit(map_size, rules)))  # in cells
        first, last = (nn.Conv2d(*sizes, 3, padding=reach, dilation=reach) for sizes in ((2, PATTERNS), (PATTERNS, 2)))
        self.look = nn.Sequential(first, nn.ReLU(), last)
        self.mean = nn.Linear(PATCH**2, 3)
        self.value = nn.Linear(hidden, 1)
        for weight in (*last.parameters(), self.mean.weight):
            nn.init.zeros_(weight)
        with torch.no_grad():
            self.mean.bias.copy_(torch.tensor([FIRST_EXTENT, 0.0, 0.0]))
            scores.bias[cells:] += FIRST_AWAY

    def forward(self, saliency: Tensor, last_label: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take one step.

        Args:
            saliency: S_t ``[B, H, W]``.
            last_label: ``[B]``. C + 1 means none yet, and is encoded as zeros (C2).
            state: h_{t-1} and T_{t-1} ``[B, state_size]``.

        Returns:
            Log-probabilities of the choices ``[B, 2, H W]``, on what stands out and away from it; the value ``[B]``, which reads
            the detached h_t; and h_t with T_t.
        """
        now = saliency.flatten(1)
        x = torch.cat([now, one_hot_or_zeros(last_label, self.labels)], dim=1)
        hidden = self.step(x, state[:, : self.hidden])
        ever = torch.maximum(state[:, self.hidden :], now)
        prior = torch.cat([self.saliency_prior * now, -self.away_prior * self._around(ever)], dim=1)
        seen = self.look(torch.stack([now, ever - now], dim=1).unflatten(2, self.map_size)).flatten(1)
        scores = prior + self.cell(hidden).float() + seen.float()
        choices = scores.log_softmax(dim=1).unflatten(1, (2, -1))
        return choices, self.value(hidden.detach()).float().squeeze(1), torch.cat([hidden, ever], dim=1)

    def _around(self, maps: Tensor) -> Tensor:
        """The largest value within a unit of length of each cell, of ``maps`` ``[B, H W]``."""
        pooled = max_pool2d(maps.view(-1, 1, *self.map_size), 2 * self.reach + 1, stride=1, padding=self.reach)
        return pooled.flatten(1)

    def means(self, saliency: Tensor, cell: Tensor) -> Tensor:
        """Means of (x_0, x_1, x_2) ``[B, 3]``, from the patch of ``saliency`` ``[B, H, W]`` about ``cell`` ``[B]``.

        Beyond the map S counts as 0. The patch's points are a unit of length apart: a cell, or a seventh of the shorter side.
        """
        half, step = PATCH // 2, self.reach
        rows, cols = (
            at[:, None] + step * torch.arange(PATCH, device=cell.device)  # in the padded map
            for at in (cell // self.map_size[1], cell % self.map_size[1])
        )
        padded = pad(saliency, (half * step,) * 4)
        lanes = torch.arange(len(cell), device=cell.device)[:, None, None]
        return self.mean(padded[lanes, rows[:, :, None], cols[:, None]].flatten(1)).float()

    def draw(
        self, choices: Tensor, saliency: Tensor, deterministic: bool, generator: torch.Generator | None
    ) -> AttentionDraw:
        """Draw a mask, or take the mode. It has no gradient.

        Args:
            choices: log-probabilities ``[B, 2, H W]``.
            saliency: S_t ``[B, H, W]``.
            deterministic: take :func:`mode` and its means.
            generator: draws.
        """
        cell = mode(choices) if deterministic else sample(choices.detach().exp().sum(dim=1), generator)
        mean = self.means(saliency, cell).detach()
        return _about(cell, mean if deterministic else sample_normal(mean, STD, generator))

    def most_probable(self, saliency: Tensor, cell: Tensor) -> AttentionDraw:
        """The means about ``cell`` ``[B]``, with gradient."""
        return _about(cell, self.means(saliency, cell))

    def scores(self, drawn: AttentionDraw, choices: Tensor, saliency: Tensor, value: Tensor) -> AttentionScores:
        """Log-probability, value and entropy of what was drawn, with gradient.

        ``log p = log p(c) + sum_i log Normal(x_i; mean_i, STD)``. The entropy is that of the cells and of three Normal
        distributions, ``3/2 log(2 pi e STD**2)``; it does not depend on the cell.
        """
        x = torch.cat([drawn.extent[:, None], drawn.shift], dim=1)
        log_normal = -0.5 * ((x - self.means(saliency, drawn.cell)) / STD).square() - math.log(
            STD * math.sqrt(2 * math.pi)
        )
        log_probs = of_cells(choices)
        at_cell = log_probs.gather(1, drawn.cell[:, None]).squeeze(1)
        entropy = -(log_probs.exp() * log_probs).sum(dim=1) + 1.5 * math.log(2 * math.pi * math.e * STD**2)
        return AttentionScores(at_cell + log_normal.sum(dim=1), value, entropy)

    def attention(self, drawn: AttentionDraw) -> Tensor:
        """The raw numbers ``[B, 4K]`` of the mask that was drawn."""
        return mask_about(drawn, self.map_size, self.rules)


def of_cells(choices: Tensor) -> Tensor:
    """Log-probabilities of the cells ``[B, H W]``, in whichever way, of those of the choices ``[B, 2, H W]``."""
    return choices.logsumexp(dim=1)


def mode(choices: Tensor) -> Tensor:
    """The cell ``[B]`` that attention is about where nothing is drawn: the most probable one in the more probable way.

    Args:
        choices: log-probabilities ``[B, 2, H W]``.
    """
    way = choices.logsumexp(dim=2).argmax(dim=1)
    return choices[torch.arange(len(way), device=way.device), way].argmax(dim=1)


def mask_about(drawn: AttentionDraw, map_size: tuple[int, int], rules: Rules) -> Tensor:
    """The raw numbers ``[B, 4K]`` of the lattice that ``drawn`` says, on a map of (H, W) cells."""
    unit = _unit(map_size, rules)
    places = (drawn.cell // map_size[1] + 1, drawn.cell % map_size[1] + 1)
    shifts, extent = drawn.shift.tanh().unbind(1), drawn.extent.sigmoid()
    centre = torch.stack([at + SHIFT * unit * shift for at, shift in zip(places, shifts, strict=True)], dim=1)
    reach = (EXTENT * unit * extent)[:, None].expand(-1, 2)
    return F.lattice(centre, reach, map_size, rules.components, rules.coordinates)


def _unit(map_size: tuple[int, int], rules: Rules) -> float:
    """The unit of length in cells: that of the widths of the environment's masks."""
    return {"map": min(map_size) / 7, "cell": 1.0}[rules.width_unit]


def _about(cell: Tensor, x: Tensor) -> AttentionDraw:
    return AttentionDraw(cell, x[:, 0], x[:, 1:])
