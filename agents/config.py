"""Sizes and switches of the paper's agent, and settings of its learning.

This module does not import torch, so that ``--help`` is quick.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agents.supervised import Objective
from hsal_env.errors import ConfigError
from hsal_env.fields import MOST_COEFFICIENT, MOST_COUNTED, check_at_most, check_fields
from hsal_env.perception import Architecture, Padding

AttentionPolicy = Literal["learned", "drawn", "winner-take-all"]
LocationPolicy = Literal["learned", "greedy", "uniform"]
Algorithm = Literal["reinforce", "ppo", "cross-entropy", "multiset-loss"]
Estimator = Literal["sampled", "exact", "log", "assigned"]
_SIZES = ("meta_hidden", "controller_hidden", "location_hidden")
MOST_HIDDEN = 8_192  # a recurrent state of this size has 400 million weights
_COUNTS = ("batch_size", "passes", "update_epochs", "num_minibatches")
_WEIGHTS = ("ent_coef", "vf_coef", "stop_coef", "location_coef", "upper_coef", "upper_vf_coef", "upper_ent_coef")
_LOCATION_WEIGHTS = ("location_ent_coef", "last_location_ent_coef")  # None: as another one
_POSITIVE = ("learning_rate", "meta_lr_scale", "location_lr_scale", "clip_coef", "max_grad_norm")
_COEFFICIENTS = (*_POSITIVE, *_WEIGHTS, *_LOCATION_WEIGHTS)


@dataclass(frozen=True)
class AgentConfig:
    """Hyper-parameters of :class:`agents.actor_critic.ActorCritic`.

    Defaults are the paper's. C1 to C7 are our readings of it, see docs/decisions.md.

    Attributes:
        meta_hidden: size of the meta-controller's encoding and recurrent state (C6).
        controller_hidden: size of the controller's encoding and recurrent state (C6).
        location_hidden: hidden units of the location head (C3), and of the head that scores the cells of drawn attention.
        controller_state: ``"reset"``: the controller's state is set to zero at every meta-step. ``"carry"``: it is kept
            through the episode (C1).
        priority_gain: the weights with which the controller's encoder reads P start this many times as large (C7). 1: torch's
            usual weights.
        detach_location_head: the location head and the value head send no gradient into the controller's state (C4).
        location_prior: first value of the learned weight w in the location scores ``MLP(h) + w P``. P gets no gradient from
            them. 0: the scores are ``MLP(h)``, as printed.
        attention_init: of learned attention. ``"default"``: the attention layer starts with torch's usual weights. ``"grid"``:
            the centres of the K Gaussians start on a square grid over the map, so K must be a square number. The layer's weights
            start four times as large, so that the masks of different images soon differ.
        attention_policy: ``"learned"``: the meta-controller's output is the mask, as printed. ``"drawn"``: the meta-controller
            is a stochastic policy over masks on one place (:mod:`agents.drawn_attention`), so K must be a square number.
            ``"winner-take-all"``: a control that puts all Gaussians on the most salient cell.
        saliency_prior: first value of the learned weights of saliency in drawn attention (:mod:`agents.drawn_attention`).
        location_policy: ``"learned"``, or one of two controls: ``"greedy"`` looks at the cell of highest priority,
            ``"uniform"`` at any cell.
        stop: when an agent that takes its most probable actions says stop. ``"greedy"``: where no label is more probable.
            ``"median"``: when it would have said stop by then in half of all cases, by its own probabilities; for many objects,
            whose end is sure at no meta-step.
        bfloat16: multiply matrices in bfloat16 where the device does so faster (an accelerator, and some CPUs). All else stays
            float32, the recurrent state too.
    """

    meta_hidden: int = 128
    controller_hidden: int = 512
    location_hidden: int = 64
    controller_state: Literal["reset", "carry"] = "reset"
    priority_gain: float = 1.0
    detach_location_head: bool = True
    location_prior: float = 0.0
    attention_init: Literal["default", "grid"] = "default"
    attention_policy: AttentionPolicy = "learned"
    saliency_prior: float = 20.0
    location_policy: LocationPolicy = "learned"
    stop: Literal["greedy", "median"] = "greedy"
    bfloat16: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise ConfigError(f"Expected {name} of at least 1; got {getattr(self, name)}.")
        check_at_most(self, **dict.fromkeys(_SIZES, MOST_HIDDEN))
        priors = ("priority_gain", "location_prior", "saliency_prior")
        for name in priors:
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"Expected {name} of at least 0; got {getattr(self, name)}.")
        check_at_most(self, **dict.fromkeys(priors, MOST_COEFFICIENT))


def grid_side(components: int, setting: str = "attention_init='grid'", other: str = "attention_init='default'") -> int:
    """Rows and columns of a square grid of Gaussians.

    Args:
        components: K.
        setting: which setting needs the grid.
        other: which one does not.

    Raises:
        ConfigError: the number of components is not a square number.
    """
    side = math.isqrt(components)
    if side**2 != components:
        raise ConfigError(
            f"{setting} needs a square number of components; got {components}. "
            f"Pass a square number of components, or {other}."
        )
    return side


@dataclass(frozen=True)
class LearnerConfig:
    """How an agent learns. Defaults are the paper's where it gives a value, and ours elsewhere (L7, see docs/decisions.md).

    Attributes:
        algorithm: ``"reinforce"``, ``"ppo"``, ``"cross-entropy"`` (the paper's baseline, L6) or ``"multiset-loss"`` (a
            supervised rival from the authors' later paper).
        estimator: what the algorithm ``"reinforce"`` maximises. ``"sampled"``: REINFORCE with the rewards that the
            environment pays. ``"exact"``: the expected reward of every decision. ``"log"``: for labels, the logarithm of the
            expected success. ``"assigned"``: the log-probability of each label at the meta-step that it suits, for images most
            of whose objects are of one class. See :mod:`agents.learning.losses`.
        batch_size: images in a roll-out.
        passes: passes over the training images.
        learning_rate: peak of Adam's learning rate.
        meta_lr_scale: the meta-controller's learning rate, as a share of that of all other weights. It holds for an agent whose
            part ``meta_controller`` has one.
        location_lr_scale: the location head's learning rate, likewise. It holds for an agent whose part
            ``controller.location`` is one.
        warmup: share of all updates during which the learning rate rises linearly. After that it falls as a cosine to 0.
        ent_coef: weight of the entropy bonus.
        location_ent_coef: its weight for locations, at the first update. None: ``ent_coef``, as for labels.
        last_location_ent_coef: the same at the last update. In between it changes linearly. None: it does not change.
        vf_coef: weight of the value loss, which the estimator ``"sampled"`` and PPO have.
        stop_coef: weight of the stop loss.
        location_coef: weight of the loss of glimpse locations.
        gamma: discount. 0 is the paper's immediate credit (L2).
        gae_lambda: lambda of the advantage estimate, see :func:`agents.learning.returns.advantages`.
        clip_coef: PPO's clipping range.
        update_epochs: PPO's epochs over a roll-out.
        num_minibatches: PPO's minibatches in an epoch.
        max_grad_norm: the gradient is clipped to this norm.
        upper_gamma: discount of the upper level, from one meta-step to the next. The settings that begin with ``upper_`` are of
            agents that draw their attention, see :func:`agents.learning.losses.upper_level`.
        upper_gae_lambda: lambda of its advantage estimate.
        upper_coef: weight of its policy loss.
        upper_vf_coef: weight of its value loss.
        upper_ent_coef: weight of its entropy bonus.
    """

    algorithm: Algorithm = "reinforce"
    estimator: Estimator = "sampled"
    batch_size: int = 256
    passes: int = 10
    learning_rate: float = 1e-3
    meta_lr_scale: float = 1.0
    location_lr_scale: float = 1.0
    warmup: float = 0.05
    ent_coef: float = 0.0
    location_ent_coef: float | None = None
    last_location_ent_coef: float | None = None
    vf_coef: float = 0.5
    stop_coef: float = 1.0
    location_coef: float = 1.0
    gamma: float = 0.0
    gae_lambda: float = 1.0
    clip_coef: float = 0.2
    update_epochs: int = 3
    num_minibatches: int = 4
    max_grad_norm: float = 1.0
    upper_gamma: float = 1.0
    upper_gae_lambda: float = 1.0
    upper_coef: float = 1.0
    upper_vf_coef: float = 0.5
    upper_ent_coef: float = 0.01

    def __post_init__(self) -> None:
        check_fields(self)
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ConfigError(f"Expected {name} of at least 1; got {getattr(self, name)}.")
        check_at_most(self, **dict.fromkeys(_COUNTS, MOST_COUNTED))
        if self.batch_size % self.num_minibatches and self.algorithm == "ppo":
            raise ConfigError(
                f"Expected num_minibatches to divide batch_size; got {self.num_minibatches}, {self.batch_size}."
            )
        for name in ("gamma", "gae_lambda", "warmup", "upper_gamma", "upper_gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"Expected {name} in [0, 1]; got {getattr(self, name)}.")
        for name in _POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"Expected {name} above 0; got {getattr(self, name)}.")
        for name in (*_WEIGHTS, *_LOCATION_WEIGHTS):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"Expected {name} of at least 0; got {value}.")
        check_at_most(self, **dict.fromkeys(_COEFFICIENTS, MOST_COEFFICIENT))
        if self.algorithm == "multiset-loss" and self.gamma:
            raise ConfigError(f"algorithm='multiset-loss' has no discount; expected gamma=0, got {self.gamma}.")
        if self.estimator != "sampled" and (self.gamma or self.algorithm != "reinforce"):
            raise ConfigError(
                f"estimator={self.estimator!r} needs algorithm='reinforce' and immediate credit, gamma=0; "
                "use estimator='sampled'."
            )


BEST_ENV: dict[str, Any] = {"components": 25, "update": "peak"}
"""What suits the agent that reads best here of an environment: its masks are small, and what they are about is wiped whole."""
BEST_AGENT: dict[str, Any] = {"attention_policy": "drawn", "location_prior": 30.0, "bfloat16": True}
"""Its arguments of :class:`AgentConfig`: it draws its attention."""
DETERMINISTIC_ENV: dict[str, Any] = {"components": 49}
"""The same of the agent whose attention is a network's output, as printed; else it departs from the paper where that helps."""
DETERMINISTIC_AGENT: dict[str, Any] = {"location_prior": 30.0, "attention_init": "grid", "bfloat16": True}
"""Its arguments of :class:`AgentConfig`."""
BEST_LEARNER: dict[str, Any] = {"estimator": "log", "learning_rate": 4e-3}
"""What both learn best with: arguments of :class:`LearnerConfig`, by expected success."""


@dataclass(frozen=True)
class PretrainConfig:
    """How an activation model is trained, see :class:`agents.supervised.features.Pretraining`."""

    output: Path = Path("compact.pt")
    """the model file to write, FILE.pt; FILE.json with arguments and accuracies is written beside it"""
    architecture: Architecture = "compact"
    """compact: a small network; resnet18 and resnet34: torchvision's"""
    output_stride: int | None = None
    """px from one cell to the next: 16 (7x7 cells), 8 (14x14) or 4 (28x28) for compact; 32, 16 or 8 for a resnet; default: as
    init has it, else the largest"""
    deeper: int | tuple[int, int] | None = None
    """more residual blocks after each of the last two stages of compact, or a number for each; they change nothing at first;
    default: as init has it, else 0"""
    padding: Padding | None = None
    """what compact's convolutions see beyond the edge: zeros, or the values at the edge (replicate), which do not tell a cell
    where it is; default: as init has it, else zeros"""
    init: str | None = None
    """bundled model or model file to start from, or scratch (random weights); default: the published weights of the
    architecture, or scratch where there are none"""
    objective: Objective = "count"
    """count: learn all labels of an image; classify: the paper's, learn one of them at a time"""
    passes: int = 18
    """passes over num_canvases canvases, which are new in each pass (photographs that are not varied: in a new order)"""
    num_canvases: int = 60_000
    """canvases in a pass"""
    batch_size: int = 128
    """canvases in a batch"""
    learning_rate: float = 4e-3
    """peak of the one-cycle schedule (AdamW)"""
    average_passes: int = 0
    """so many last passes go on at a quarter of that rate, and the mean of their weights is kept: it errs less on new images"""
    fixed_passes: int = 0
    """in so many last passes batch norm keeps its statistics, as it does in use; where images are shown at many sizes, those of a
    batch are others"""
    weight_decay: float = 0.01
    """weight decay of AdamW"""
    sharp_coef: float = 0.2
    """weight of the penalty on cells whose saliency is neither 0 nor 1 (count only)"""
    sharp_ramp: tuple[float, float] = (0.0, 0.0)
    """shares of the training between which that weight rises from 0; before, a cell may be unsure what it shows"""
    scale: float = 1.0
    """each batch is shown at a size of its own, so that nothing is cut off: larger or smaller by at most this factor than the
    images, enlarged by as much as their variations make what is in them smaller in the mean"""
    first_scale: float = 1.0
    """size of the images in the first half of the passes, as a share of theirs: small images teach the coarse sooner"""
    warp_px: float = 3.0
    """largest amplitude of the smooth random displacements of a training canvas"""
    val_canvases: int = 2_000
    """canvases for the accuracy after every pass"""
    test_canvases: int = 10_000
    """canvases of each source and look for the accuracy at the end"""
    device: str = "auto"
    """cpu, cuda, or auto (cuda where there is one)"""
    seed: int = 0
    """seed of weights and canvases"""

    def __post_init__(self) -> None:
        """Refuse arguments that do not fit.

        Raises:
            ConfigError: an unknown choice, or a number outside its range.
        """
        check_fields(self)
        check_at_most(self, seed=(1 << 32) - 1, passes=MOST_COUNTED, num_canvases=MOST_COUNTED)
        check_at_most(self, learning_rate=MOST_COEFFICIENT, weight_decay=MOST_COEFFICIENT)
        least = min(self.passes, self.val_canvases, self.test_canvases)
        if least < 1 or not 1 <= self.batch_size <= self.num_canvases:
            raise ConfigError(
                "Expected passes, val_canvases and test_canvases of at least 1 and 1 <= batch_size <= num_canvases; got "
                f"{self.passes}, {self.val_canvases}, {self.test_canvases}, {self.batch_size}, {self.num_canvases}."
            )
        if not 0 <= self.average_passes < self.passes:
            raise ConfigError(
                f"Expected average_passes of at least 0 and less than passes; got {self.average_passes} of {self.passes}."
            )
        if not 0 <= self.fixed_passes < self.passes:
            raise ConfigError(
                f"Expected fixed_passes of at least 0 and less than passes; got {self.fixed_passes} of {self.passes}."
            )
        if self.average_passes and self.fixed_passes:
            raise ConfigError(
                "Expected average_passes or fixed_passes, not both, since averaged weights need statistics of their own; got "
                f"{self.average_passes} and {self.fixed_passes}."
            )
        if self.first_scale < 1 and self.fixed_passes > self.passes - self.passes // 2:
            raise ConfigError(
                "Expected fixed_passes among those of whole images, the last half, where first_scale is below 1; got "
                f"{self.fixed_passes} of {self.passes} passes."
            )
        if not 1 <= self.scale <= 4:
            raise ConfigError(f"Expected scale of 1 to 4; got {self.scale}.")
        if not 0 <= self.sharp_ramp[0] <= self.sharp_ramp[1] <= 1:
            raise ConfigError(f"Expected sharp_ramp as two shares in 0..1, the lower one first; got {self.sharp_ramp}.")
        if not 0 < self.first_scale <= 1:
            raise ConfigError(f"Expected first_scale above 0 and at most 1; got {self.first_scale}.")
        if self.seed < 0 or self.learning_rate <= 0 or self.weight_decay < 0:
            raise ConfigError(
                "Expected a seed of at least 0, a learning_rate above 0 and a weight_decay of at least 0; got "
                f"{self.seed}, {self.learning_rate}, {self.weight_decay}."
            )
