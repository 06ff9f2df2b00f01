"""What the single and the vector environment share: examples, rules and a view, for any number of lanes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hsal_env import dynamics
from hsal_env.config import EnvConfig
from hsal_env.dynamics import Example, Outcome, State
from hsal_env.perception.examples import Examples
from hsal_env.policies import Policy
from hsal_env.trace import Trace
from hsal_env.trace.recorder import Recorder
from hsal_env.views import make_view


class Simulation:
    """Draws examples, applies decisions, and describes states. Holds no state of its own. To be called without gradient.

    Args:
        config: everything that decides the task.
        device: where the state lives.
        policy: who decides on the level that the view leaves to a given policy, see :func:`hsal_env.policies.given_policy`.
    """

    def __init__(
        self, config: EnvConfig, device: torch.device | str = "cpu", policy: Policy | str | None = None
    ) -> None:
        self.config, self.rules, self.device = config, config.rules, torch.device(device)
        self.examples = Examples(config)
        self.view = make_view(config, self.examples.channels, self.examples.map_size, policy)

    def start(self, indices: np.ndarray) -> tuple[State, Tensor | None]:
        """Initial state of the examples ``indices`` ``[B]``, and their images uint8 ``[B, h_px, w_px, 1 or 3]`` if observed."""
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
        """What ``recorder`` has seen of all lanes, which hold the canvases ``indices`` ``[B]``."""
        canvases = self.examples.compose(indices)
        return [
            recorder.trace(
                lane, canvases.images[lane], canvases.labels[lane], canvases.boxes[lane],
                source=self.examples.source, canvas_index=int(index), grid=self.examples.grid,
            )
            for lane, index in enumerate(indices)
        ]  # fmt: skip

    def info(self, state: State) -> dict[str, Tensor]:
        """What a learner, not a policy, may use: example index, and label counts: true ones, not yet named, named so far."""
        example = state.example
        counts = {
            "label_counts": example.counts,
            "remaining_counts": state.remaining,
            "predicted_counts": state.predicted,
        }
        return {"index": example.canvas_index, **counts}

    def episode_info(self, state: State) -> dict[str, Tensor]:
        """Metrics of episodes that ended in ``state``, ``[B]`` each.

        ``exact_match``: predicted multiset = true one; ``precision``, ``recall`` of the predicted multiset (precision of an
        empty one is 1, and so is recall of an empty true one); ``return_location``, ``return_label``: rewards by level;
        ``attn_saliency``: mean raw saliency at the glimpses, ``attn_saliency_uniform``: the same for uniformly drawn ones
        (S3).
        """
        hits = torch.minimum(state.predicted, state.example.counts).sum(dim=1)
        named, true = state.predicted.sum(dim=1), state.example.counts.sum(dim=1)
        unfinished = (state.phase - 1).clamp(min=0).to(named.device)  # an option that was cut off
        glimpses = (state.meta_step * self.rules.glimpses + unfinished).clamp(min=1)
        return {
            "exact_match": (state.predicted == state.example.counts).all(dim=1).double(),
            "precision": torch.where(named > 0, hits / named.clamp(min=1), 1.0).double(),
            "recall": torch.where(true > 0, hits / true.clamp(min=1), 1.0).double(),
            "return_location": state.returns[:, 0].double(),
            "return_label": state.returns[:, 1].double(),
            "attn_saliency": (state.looks[:, 0] / glimpses).double(),
            "attn_saliency_uniform": (state.looks[:, 1] / glimpses).double(),
        }
