"""Agents learn to act in the environments.

``protocol`` says what an agent is, ``actor_critic`` holds the paper's agent, and ``load`` opens a trained one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsal_env.errors import CheckpointError
from hsal_env.storage.files import as_path

if TYPE_CHECKING:
    from agents.checkpoint import Loaded
    from hsal_env.plugins import Trust

BUNDLED_FOLDER = Path(__file__).with_name("bundled")


def bundled() -> list[str]:
    """Names of the trained agents that come with the package. ``NAME.md`` in their folder is the model card of each.

    Example:
        >>> bundled()
        ['house-numbers', 'mnist-multiset', 'mnist-multiset-deterministic', 'mnist-multiset-faithful', 'mnist-set',
         'mnist-set-faithful', 'svhn']
    """
    return sorted(path.stem for path in BUNDLED_FOLDER.glob("*.pt"))


def load(name: str | Path, *, trust: Trust = False, **switches: Any) -> Loaded:
    """Load a trained agent: a bundled one by its name, or one of yours by its checkpoint or the folder of its training run.

    ``agents.load("mnist-multiset").agent`` is the agent, in evaluation mode. ``.env`` is the environment that it was trained
    on. ``.name_objects(images)`` names what is in images of yours. ``switches`` replace fields of its
    :class:`agents.config.AgentConfig`, such as ``location_policy="greedy"``.

    A checkpoint may name an agent or a model that is no part of an installed package, as ``package.module:Name``. That name is
    imported and called only with ``trust=True``, or if ``trust`` is a list that has it: do so for files of people you trust.

    Raises:
        CheckpointError: there is no such agent; or the file is damaged; or it does not fit this version or the switches; or it
            names code that is not trusted.
        ConfigError: a switch is unknown or outside its range; or ``name`` can be no path.

    Example:
        >>> trained = load("mnist-multiset")
        >>> trained.env.components, trained.agent.initial(4).controller_state.shape
        (25, torch.Size([4, 512]))
    """
    from agents import checkpoint  # torch: not before it is needed

    if str(name) in bundled():
        return checkpoint.load(BUNDLED_FOLDER / f"{name}.pt", trust=trust, **switches)
    path = as_path(name)
    if path.is_dir():
        path = path / "checkpoint.pt"
    if not path.is_file():
        known = ", ".join(bundled()) or "nothing is bundled"
        raise CheckpointError(
            f"No agent {str(name)!r}: expected the path of a checkpoint, the folder of its training run, or a bundled agent's "
            f"name ({known})."
        )
    return checkpoint.load(path, trust=trust, **switches)
