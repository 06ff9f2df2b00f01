"""Bundled agents as given policies, by name: ``policy="agents.policies:mnist_multiset"`` (see :mod:`hsal_env.policies`)."""

from __future__ import annotations

from agents import load
from agents.protocol import Agent


def mnist_multiset() -> Agent:
    """The bundled agent ``mnist-multiset``: masks of 49 Gaussians, features ``compact``."""
    return load("mnist-multiset").agent


def greedy_mnist_multiset() -> Agent:
    """The same, but its glimpses go to the peak of P."""
    return load("mnist-multiset", location_policy="greedy").agent
