"""Bundled agents as given policies.

An environment takes them by name: ``policy="agents.policies:mnist_multiset"``. See :mod:`hsal_env.policies`.
"""

from __future__ import annotations

from agents import load
from agents.protocol import Agent


def mnist_multiset() -> Agent:
    """The bundled agent ``mnist-multiset``.

    Its masks have 25 Gaussians, its features are ``compact``, and it learned with ``update="peak"``.
    """
    return load("mnist-multiset").agent


def greedy_mnist_multiset() -> Agent:
    """The same agent, but its glimpses go to the peak of P."""
    return load("mnist-multiset", location_policy="greedy").agent
