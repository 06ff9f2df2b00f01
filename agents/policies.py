"""Bundled agents as given policies, by name: ``policy="agents.policies:mnist_multiset"`` (see :mod:`hsal_env.policies`)."""

from __future__ import annotations

from typing import Any

from agents import load


def mnist_multiset() -> Any:
    """The bundled agent ``mnist-multiset``: masks of 49 Gaussians, features ``compact``."""
    return load("mnist-multiset").agent


def greedy_mnist_multiset() -> Any:
    """The same, but its glimpses go to the peak of P."""
    return load("mnist-multiset", location_policy="greedy").agent
