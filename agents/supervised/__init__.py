"""Learning from labels, without a policy: activation models, and networks that count."""

from typing import Literal

Objective = Literal["count", "classify"]
"""What an activation model learns from, see :mod:`agents.supervised.pretraining`."""
Head = Literal["volume", "columns"]
"""What a count network reads at once, see :class:`agents.supervised.count_network.CountNetwork`."""
