"""Torch in forked processes, such as the workers of ``AsyncVectorEnv`` and ``SubprocVecEnv``."""

from __future__ import annotations

import os
import sys


def use_one_thread_after_a_fork() -> None:
    """From now on a forked process begins with ``torch.set_num_threads(1)``, if torch was imported before the fork.

    A fork copies what torch knows of its threads but not the threads. If the parent has computed with several of them, the child
    would wait for ever at its first larger computation.
    """
    if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
        os.register_at_fork(after_in_child=_use_one_thread)


def _use_one_thread() -> None:
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
