"""What the single and the vector environment share: examples, rules and a view, for any number of lanes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hsal_env import dynamics
from hsal_env.config import EnvConfig
from hsal_env.dynamics import Example, Outcome, State
from hsal_env.errors import ConfigError
from hsal_env.isolation import own_torch
from hsal_env.memory import require_memory
from hsal_env.perception.examples import Examples
from hsal_env.policies import Policy
from hsal_env.trace import Trace
from hsal_env.trace.recorder import Recorder
from hsal_env.views import make_view


class Simulation:
    """Draws examples, applies decisions and describes states. It holds no state of its own. Call it without gradient.

    Args:
        config: everything that decides the task.
        device: where the state lives.
        policy: decides on the level that the view leaves to a given policy, see :func:`hsal_env.policies.given_policy`.
        lanes: how many lanes there will be.

    Raises:
        ConfigError: so many lanes do not fit the memory; or a value does not suit the data, the models or the view.
    """

    @own_torch()
    def __init__(
        self,
        config: EnvConfig,
        device: torch.device | str = "cpu",
        policy: Policy | str | None = None,
        lanes: int = 1,
    ) -> None:
        self.config, self.rules, self.device = config, config.rules, torch.device(device)
        self.examples = Examples(config)
        cells, channels = math.prod(self.examples.map_size), self.examples.channels
        pixels = math.prod(config.image_shape) if config.shows_image else 0
        require_memory(
            lanes * (4 * cells * (channels + config.components) + pixels),  # V, the K Gaussians, the image
            f"{lanes} environments with components={config.components} and maps of {cells} cells and {channels} channels",
        )
        self.view = make_view(config, self.examples.channels, self.examples.map_size, policy)

    def start(self, indices: np.ndarray) -> tuple[State, Tensor | None]:
        """The initial state of the examples ``indices`` ``[B]``, and, if observed, their images uint8 ``[B, h, w, 1 or 3]``."""
        on_host, canvases = self.examples.load(indices)
        example = Example(*(part.to(self.device) for part in on_host))
        images = None
        if self.config.shows_image:
            pixels = (canvases or self.examples.compose(indices)).images
            images = torch.from_numpy(pixels).view(len(pixels), *self.config.image_shape).to(self.device)
        return self.view.begin(dynamics.initial(example, self.rules)), images

    def step(self, state: State, action: Any) -> Outcome:
        """Apply batched actions of the view.

        Raises:
            ActionError: an action outside its space.
        """
        return self.view.step(state, action)

    def traces(self, recorder: Recorder, indices: np.ndarray) -> list[Trace]:
        """What ``recorder`` has seen, a trace per lane. The lanes hold the canvases ``indices`` ``[B]``."""
        canvases = self.examples.compose(indices)
        recorded = [
            recorder.trace(
                lane, canvases.images[lane], canvases.labels[lane], canvases.boxes[lane],
                source=self.examples.source, canvas_index=int(index), grid=self.examples.grid,
                class_names=self.config.label_names,
            )
            for lane, index in enumerate(indices)
        ]  # fmt: skip
        if self.config.places == "cells":
            return recorded
        longest = max((len(trace.location) for trace in recorded), default=0)
        cells = np.full((len(recorded), longest), -1)
        for lane, trace in enumerate(recorded):
            cells[lane, : len(trace.location)] = trace.location
        places = self.examples.places_px(canvases.images, cells)
        return [
            trace._replace(location_px=part[: len(trace.location)])
            for trace, part in zip(recorded, places, strict=True)
        ]

    def info(self, state: State) -> dict[str, Tensor]:
        """For learners, not for policies: the index of the example, and its label counts: true, remaining and predicted.

        In views with a Discrete action also ``action_mask`` int8 ``[B, n]``, which a policy may read.
        """
        example = state.example
        counts = {
            "label_counts": example.counts,
            "remaining_counts": state.remaining,
            "predicted_counts": state.predicted,
        }
        mask = self.view.action_mask(state)
        return {"index": example.canvas_index, **counts} | ({} if mask is None else {"action_mask": mask})

    def episode_info(self, state: State) -> dict[str, Tensor]:
        """Metrics of episodes that ended in ``state``, ``[B]`` each.

        - ``exact_match``: whether the predicted multiset is the true one;
        - ``precision``, ``recall`` of the predicted multiset. The precision of an empty prediction is 1, and so is the recall
          where nothing is to be named;
        - ``return_location``, ``return_label``: the sum of rewards of each kind;
        - ``attn_saliency``: mean raw saliency at the glimpses, ``attn_saliency_uniform``: its expectation at uniformly drawn
          locations (S3).
        """
        hits = torch.minimum(state.predicted, state.example.counts).sum(dim=1)
        named, true = state.predicted.sum(dim=1), state.example.counts.sum(dim=1)
        unfinished = (state.phase - 1).clamp(min=0).to(named.device)  # glimpses of an option that was cut off
        glimpses = (state.meta_step * self.rules.glimpses + unfinished).clamp(min=1)
        return {
            "exact_match": (state.predicted == state.example.counts).all(dim=1).double(),
            "precision": torch.where(named > 0, hits.float() / named.clamp(min=1), 1.0).double(),
            "recall": torch.where(true > 0, hits.float() / true.clamp(min=1), 1.0).double(),
            "return_location": state.returns[:, 0].double(),
            "return_label": state.returns[:, 1].double(),
            "attn_saliency": (state.looks[:, 0] / glimpses).double(),
            "attn_saliency_uniform": (state.looks[:, 1] / glimpses).double(),
        }


def reset_options(options: Any, *known: str) -> list[Any]:
    """What the ``options`` of a reset hold under each of the names ``known``: None where nothing.

    Raises:
        ConfigError: they are no dict, or hold other names.
    """
    if options is not None and not isinstance(options, dict):
        raise ConfigError(f"Expected reset options as a dict; got {type(options).__name__}.")
    given = options or {}
    if unknown := sorted(map(repr, given.keys() - set(known))):
        raise ConfigError(f"Expected reset options of {', '.join(known)}; got also {', '.join(unknown)}.")
    return [given.get(name) for name in known]
