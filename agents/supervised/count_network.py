"""A baseline without attention: a supervised network that predicts all counts from the activation volume at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus
from tqdm import tqdm

from agents.evaluation import scores_by_count
from agents.supervised import Head
from hsal_env import multiset
from hsal_env.isolation import own_defaults
from hsal_env.perception.examples import Examples


class CountNetwork(nn.Module):
    """A network from the volume ``[B, D, H, W]`` to the counts of the classes, with one of two heads.

    The head ``volume`` flattens V and predicts logits of each class's count, 0 to ``most``. It learns by cross-entropy. The head
    ``columns`` predicts ``lambda_c = sum_ij softplus(MLP(V_ij))_c``, with the same MLP for all columns. It learns by the negative
    Poisson log-likelihood, and its predictions are rounded.

    Args:
        head: ``"volume"`` or ``"columns"``.
        shape: (D, H, W) of the volume.
        classes: C, the number of classes.
        most: the largest count.
        hidden: units of each of the two hidden layers.
    """

    def __init__(self, head: Head, shape: tuple[int, int, int], classes: int, most: int, hidden: int) -> None:
        super().__init__()
        self.by_column, self.classes = head == "columns", classes
        seen, told = (shape[0], classes) if self.by_column else (int(np.prod(shape)), classes * (most + 1))
        last = nn.Linear(hidden, told)
        if self.by_column:
            nn.init.constant_(last.bias, -5.0)  # most columns hold no object; with a bias of 0 all units would die
        self.layers = nn.Sequential(nn.Linear(seen, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), last)

    def forward(self, volume: Tensor) -> Tensor:
        """Expected counts ``[B, C]`` (``columns``), or logits of the counts ``[B, C, most + 1]`` (``volume``)."""
        if self.by_column:
            return softplus(self.layers(volume.permute(0, 2, 3, 1)).float()).sum(dim=(1, 2))
        return self.layers(volume.flatten(1)).float().unflatten(1, (self.classes, -1))

    def loss(self, volume: Tensor, counts: Tensor) -> Tensor:
        """The loss of ``counts`` int64 ``[B, C]``, a mean over images."""
        told = self(volume)
        if self.by_column:
            return (told - counts * (told + 1e-3).log()).sum(dim=1).mean()
        return cross_entropy(told.flatten(0, 1), counts.flatten()) * self.classes

    @torch.no_grad()
    def predict(self, volume: Tensor) -> Tensor:
        """The most probable or rounded counts, int64 ``[B, C]``."""
        told = self(volume)
        return told.round().long() if self.by_column else told.argmax(dim=-1)


def learn(
    examples: Examples, head: Head, hidden: int, passes: int, batch_size: int, learning_rate: float, seed: int = 0
) -> CountNetwork:
    """A network trained with Adam and a one-cycle schedule up to ``learning_rate``; each pass has an order of its own."""
    config, shape = examples.config, (examples.channels, *examples.map_size)
    with own_defaults(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = CountNetwork(head, shape, config.classes, config.objects_limit, hidden)
    updates = len(examples) // batch_size
    optimiser = torch.optim.Adam(net.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=passes * updates)
    for epoch in range(passes):
        order = np.random.default_rng([seed, epoch]).permutation(len(examples))
        for batch in tqdm(range(updates), desc=f"count network, pass {epoch + 1}/{passes}"):
            example, _ = examples.load(np.sort(order[batch * batch_size : (batch + 1) * batch_size]))
            loss = net.loss(example.volume, example.counts)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval()


def score(net: CountNetwork, examples: Examples) -> dict[str, Any]:
    """The scores of the predicted counts, see :func:`hsal_env.multiset.scores` and :func:`hsal_env.multiset.count_errors`.

    ``by_count`` has them by the number of objects. What a network without attention has not is None.
    """
    named, counts = predict(net, examples)
    return {
        **multiset.scores(named, counts),
        **multiset.count_errors(named, counts, examples.config.label_names),
        "attn_saliency": None,
        "attn_saliency_ratio": None,
        "by_count": scores_by_count(named, counts),
    }


def predict(net: CountNetwork, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """The predicted and the true counts, ``[N, C]`` each."""
    predicted, true = [], []
    for start in range(0, len(examples), 500):
        example, _ = examples.load(np.arange(start, min(start + 500, len(examples))))
        predicted.append(net.predict(example.volume).numpy())
        true.append(example.counts.numpy())
    return np.concatenate(predicted), np.concatenate(true)
