"""A slow oracle, written from the paper's sections 3 and 4 and the project's readings of them (S1 to S8, L3 to L5).

One image at a time, plain loops over numpy float64, multisets as lists of labels. It imports nothing of the project, so
that a formula that is wrong there is not wrong here in the same way.
"""

import math
from dataclasses import dataclass

import numpy as np

CLASSES = 10
STOP = CLASSES


def raw_saliency(volume):
    """S_ij = sum_c V_cij**2 (S1)."""
    depth, height, width = volume.shape
    total = np.zeros((height, width))
    for c in range(depth):
        for i in range(height):
            for j in range(width):
                total[i, j] += float(volume[c, i, j]) ** 2
    return total


def normalise(grid, least=0.0):
    """Minimum 0 and maximum 1; a constant map, whose range is at most ``least``, gives zeros (S2)."""
    low, high = min(grid.flatten()), max(grid.flatten())
    result = np.zeros(grid.shape)
    if high - low > least:
        for i, j in np.ndindex(*grid.shape):
            result[i, j] = (grid[i, j] - low) / (high - low)
    return result


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def mixture(raw, map_size, coordinates="paper", beta="bounded", width_unit="map"):
    """The 4K raw numbers to a list of (alpha, beta, kappa_1, kappa_2) (S4, S5)."""
    height, width = map_size
    count = len(raw) // 4
    alphas, betas, rows, columns = (raw[n * count : (n + 1) * count] for n in range(4))
    total = sum(math.exp(a) for a in alphas)
    components = []
    for a, b, r, c in zip(alphas, betas, rows, columns, strict=True):
        inverse_width = 1.5 + 0.5 * sigmoid(b) if beta == "bounded" else math.exp(b)
        shift = 0.5 if coordinates == "centred" else 0.0
        on_this_map = inverse_width if width_unit == "cell" else inverse_width * (7 * 7) / (height * width)
        components.append((math.exp(a) / total, on_this_map, sigmoid(r) * height + shift, sigmoid(c) * width + shift))
    return components


def mask(components, map_size, scale="paper"):
    """M_ij = phi(i, j), i = 1..m, j = 1..n."""
    height, width = map_size
    result = np.zeros((height, width))
    for i in range(1, height + 1):
        for j in range(1, width + 1):
            for alpha, beta, row, column in components:
                result[i - 1, j - 1] += alpha * math.exp(-beta * ((row - i) ** 2 + (column - j) ** 2))
    return result / result.max() if scale == "peak" else result


def priority(mask_map, saliency):
    """P = M * S, normalised to [0, 1]. Not in the paper: a range of at most 1e-6 of the maximum, or 1e-15, counts as none."""
    product = np.zeros(saliency.shape)
    for i, j in np.ndindex(*saliency.shape):
        product[i, j] = mask_map[i, j] * saliency[i, j]
    return normalise(product, least=max(1e-6 * product.max(), 1e-15))


def initial_glimpse(mask_map, volume):
    """g_0 = sum_ij M_ij V_:ij (S7)."""
    result = np.zeros(volume.shape[0])
    for i, j in np.ndindex(*mask_map.shape):
        for c in range(volume.shape[0]):
            result[c] += mask_map[i, j] * volume[c, i, j]
    return result


def cell_of(location, map_size):
    """(row, col), from 0, of a flat location."""
    return location // map_size[1], location % map_size[1]


def glimpse(volume, location):
    """g_i = the column V_:,a_i."""
    i, j = cell_of(location, volume.shape[1:])
    return np.array([volume[c, i, j] for c in range(volume.shape[0])])


def update(saliency, mask_map, locations, rule="paper"):
    """Inhibition of return (S8)."""
    if rule == "none":
        return saliency.copy()
    taken = [cell_of(location, saliency.shape) for location in locations]
    result = np.zeros(saliency.shape)
    for i, j in np.ndindex(*saliency.shape):
        amount = mask_map[i, j] / mask_map.max() if rule == "peak" else mask_map[i, j]
        result[i, j] = 0.0 if (i, j) in taken else max(saliency[i, j] - amount, 0.0)
    return result


def label_reward(available, label, protocol="free", final=False):
    """+1 for a label that is still available, else -1; stop by protocol (L4, L5)."""
    if protocol == "teacher" and final:
        return 0.0
    if label == STOP:
        return 1.0 if protocol == "free" and not available else -1.0
    return 1.0 if label in available else -1.0


def without(available, label):
    """A_{i+1}: the multiset less one ``label``, if it is in there."""
    rest = list(available)
    if label in rest:
        rest.remove(label)
    return rest


@dataclass
class Rules:
    """As the environment's, by name only."""

    glimpses: int = 2
    max_objects: int = 4
    coordinates: str = "paper"
    beta: str = "bounded"
    width_unit: str = "map"
    mask_scale: str = "paper"
    update: str = "paper"
    renormalise_saliency: bool = False
    protocol: str = "free"


class Episode:
    """One image's episode; each method makes a decision and returns (reward, terminated, truncated)."""

    def __init__(self, volume, raw, labels, rules):
        self.volume, self.raw, self.labels, self.rules = volume.astype(float), raw.astype(float), list(labels), rules
        self.map_size = volume.shape[1:]
        self.first = self.saliency = normalise(self.raw)
        self.available, self.predicted = list(labels), []
        self.phase = self.meta_step = 0
        self.last_label = None
        self.location_return = self.label_return = 0.0
        self.seen, self.seen_if_uniform = [], []
        self._forget()

    def _forget(self):
        self.mask, self.priority = np.zeros(self.map_size), np.zeros(self.map_size)
        self.glimpse, self.locations = np.zeros(len(self.volume)), []

    def attend(self, raw):
        rules = self.rules
        components = mixture(list(raw), self.map_size, rules.coordinates, rules.beta, rules.width_unit)
        self.mask = mask(components, self.map_size, rules.mask_scale)
        self.priority = priority(self.mask, self.saliency)
        self.glimpse = initial_glimpse(self.mask, self.volume)
        self.phase += 1
        return 0.0, False, False

    def raw_left(self):
        """Raw saliency, suppressed cells counted by the fraction of S_1 that is left (S3)."""
        result = np.zeros(self.map_size)
        for i, j in np.ndindex(*self.map_size):
            if self.first[i, j] > 0:
                result[i, j] = self.raw[i, j] * min(self.saliency[i, j] / self.first[i, j], 1)
        return result

    def look(self, location):
        i, j = cell_of(location, self.map_size)
        left = self.raw_left()
        self.seen.append(left[i, j])
        self.seen_if_uniform.append(sum(left.flatten()) / left.size)
        self.glimpse = glimpse(self.volume, location)
        self.locations.append(location)
        self.phase += 1
        reward = self.priority[i, j]
        self.location_return += reward
        return reward, False, False

    def name(self, label):
        rules = self.rules
        final = self.meta_step == len(self.labels)
        reward = label_reward(self.available, label, rules.protocol, final)
        self.available = without(self.available, label)
        if label != STOP:
            self.predicted.append(label)
        self.saliency = update(self.saliency, self.mask, self.locations, rules.update)
        if rules.renormalise_saliency:
            self.saliency = normalise(self.saliency)
        self.label_return += reward
        self.last_label, self.phase = label, 0
        self.meta_step += 1
        self._forget()
        if rules.protocol == "teacher":
            return reward, final, False
        return reward, label == STOP, label != STOP and self.meta_step == rules.max_objects + 1

    def decide(self, attention, location, label):
        """The decision that the phase asks for."""
        if self.phase == 0:
            return self.attend(attention)
        return self.look(location) if self.phase <= self.rules.glimpses else self.name(label)

    def metrics(self):
        """What the environment reports at the end of an episode."""
        hits, rest = 0, list(self.labels)
        for label in self.predicted:
            hits += label in rest
            rest = without(rest, label)
        return {
            "exact_match": float(sorted(self.predicted) == sorted(self.labels)),
            "precision": hits / len(self.predicted) if self.predicted else 1.0,
            "recall": hits / len(self.labels) if self.labels else 1.0,
            "return_location": self.location_return,
            "return_label": self.label_return,
            "attn_saliency": sum(self.seen) / max(len(self.seen), 1),
            "attn_saliency_uniform": sum(self.seen_if_uniform) / max(len(self.seen), 1),
        }


def counts(labels):
    """A list of labels as counts ``[CLASSES]``."""
    result = np.zeros(CLASSES, dtype=np.int64)
    for label in labels:
        result[label] += 1
    return result
