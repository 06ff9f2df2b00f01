"""The controller turns the priority map and glimpses into locations and a label (paper section 3, "Controller")."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from agents.config import LocationPolicy
from agents.encoding import EncodedGRU, one_hot_or_zeros


class Controller(EncodedGRU):
    """``x_i = [P_t, y_{t-1}, a_{i-1}, g_{i-1}]``, ``e_i = W_encode x_i``, ``h_i = GRU(e_i, h_{i-1})``, and three heads.

    Location scores are ``MLP(h_i)``, or ``MLP(h_i) + w P_t`` with a learned w. In the second form the agent looks at peaks of
    the priority map from the start, and the MLP learns where else to look.

    Args:
        cells: H W.
        labels: C + 1.
        channels: D.
        hidden: size of encoding and state.
        location_hidden: hidden units of the location head.
        priority_gain: the encoder's weights of P start this many times as large.
        detach: the location head and the value head read the detached state (C4 in docs/decisions.md).
        location_prior: first value of w. 0: the term with P is left out.
        location_policy: ``"learned"``, ``"greedy"`` (always the peak of P) or ``"uniform"``.
    """

    def __init__(
        self,
        cells: int,
        labels: int,
        channels: int,
        hidden: int,
        location_hidden: int,
        priority_gain: float,
        detach: bool,
        location_prior: float,
        location_policy: LocationPolicy,
    ) -> None:
        super().__init__(cells + labels + cells + channels, hidden)
        with torch.no_grad():
            self.encode.weight[:, :cells].mul_(priority_gain)
        self.cells, self.labels = cells, labels
        self.detach, self.location_policy = detach, location_policy
        self.location = nn.Sequential(nn.Linear(hidden, location_hidden), nn.ReLU(), nn.Linear(location_hidden, cells))
        self.location_prior = nn.Parameter(torch.tensor(float(location_prior))) if location_prior else None
        self.label = nn.Linear(hidden, labels)
        self.value = nn.Linear(hidden, 1)

    def forward(
        self,
        priority: Tensor,
        last_label: Tensor,
        last_location: Tensor,
        glimpse: Tensor,
        state: Tensor | None,
        folded: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Take one step and return the new state ``[B, hidden]``.

        Args:
            priority: P_t ``[B, H, W]``.
            last_label: ``[B]``. C + 1 means none.
            last_location: ``[B]``. H W means none.
            glimpse: g_{i-1} ``[B, D]``.
            state: h_{i-1} ``[B, hidden]``. None means zeros.
            folded: what :meth:`~agents.encoding.EncodedGRU.folded` returned.
        """
        x = torch.cat(
            [
                priority.flatten(1),
                one_hot_or_zeros(last_label, self.labels),
                one_hot_or_zeros(last_location, self.cells),
                glimpse,
            ],
            dim=1,
        )
        return self.step(x, state, folded)

    def location_log_probs(self, state: Tensor, priority: Tensor) -> Tensor:
        """``log softmax`` over cells, ``[B, H W]``."""
        proposed = priority.detach().flatten(1)
        if self.location_policy == "greedy":
            return torch.where(one_hot(proposed.argmax(dim=1), self.cells) > 0, 0.0, -100.0)
        if self.location_policy == "uniform":
            return torch.zeros_like(proposed).log_softmax(dim=1)
        scores = self.location(state.detach() if self.detach else state).float()
        if self.location_prior is not None:
            scores = scores + self.location_prior * proposed
        return scores.log_softmax(dim=1)

    def label_log_probs(self, state: Tensor) -> Tensor:
        """``log softmax`` over labels and stop, ``[B, C + 1]``."""
        return self.label(state).float().log_softmax(dim=1)

    def values(self, state: Tensor) -> Tensor:
        """The baseline V(s_{t,i}), ``[B]``."""
        return self.value(state.detach() if self.detach else state).float().squeeze(-1)
