"""A training of an activation model: passes over images, its files, and how to go on after an interruption."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn
from tqdm import tqdm

from agents.config import PretrainConfig
from agents.learning.distributed import ALONE, Processes
from agents.learning.provenance import versions
from agents.supervised.centring import centre, displacement_px, map_variation
from agents.supervised.pretraining import Pretrainer, Supply, accuracy, batches, resized, risen, warped
from hsal_env.errors import CheckpointError, ConfigError, DivergenceError
from hsal_env.isolation import own_defaults
from hsal_env.perception.examples import to_images
from hsal_env.perception.model_file import save_model
from hsal_env.perception.precision import has_matrix_unit
from hsal_env.perception.registry import initial_model
from hsal_env.storage.claims import claim_file
from hsal_env.storage.files import write_text
from hsal_env.storage.weights import load_weights, save_weights

_MEASURED = 500  # images
_NORMALISED = 100  # batches that the statistics of batch norm are taken from, where they are measured anew
_LEAST_VARIATION = 0.1  # of the maps; below that they hardly depend on the image
_CHECKED_EVERY = 50  # updates; an accelerator is waited for at each check


@dataclass(frozen=True)
class Images:
    """What an activation model learns from, and what its accuracy is measured on.

    Attributes:
        training: canvases to learn from.
        held_out: for ``"val"`` and ``"test"`` the canvases by source and look. After every pass the first look of each source of
            ``"val"`` is measured.
    """

    training: Sequence[Supply]
    held_out: Mapping[str, Mapping[str, Mapping[str, Supply]]]


class _Loss(nn.Module):
    """The loss as a module, so that processes can average its gradients."""

    def __init__(self, net: Pretrainer, config: PretrainConfig) -> None:
        super().__init__()
        self.net, self.objective = net, config.objective

    def forward(self, images: torch.Tensor, counts: torch.Tensor, sharp_coef: float) -> tuple[torch.Tensor, None]:
        return self.net.loss(images, counts, self.objective, sharp_coef), None


class Pretraining:
    """One training of an activation model, whose output is refused to other processes while this object lives.

    With ``average_passes`` the weights of the last passes are averaged (Izmailov et al., 2018), and batch norm measures anew.
    In the last ``fixed_passes`` its statistics are fixed.

    After every pass the model file is written, and beside it FILE.resume.pt, with which ``resume`` goes on. The latter is
    removed at the end, when FILE.json with arguments and accuracies is written. Then the model file also says where the objects
    of its cells are (:mod:`agents.supervised.centring`).

    Args:
        config: how it learns.
        images: what it learns from.
        told: the arguments that FILE.json tells. A training is continued only with the same ones.
        resume: go on after the last whole pass, if there is one.
        processes: the processes that share its batches, see :func:`agents.learning.distributed.joined`. Batch norm takes the
            statistics of a process's own share, and the model keeps those of the leading process, which alone measures and
            writes.

    Raises:
        ConfigError: the output is no .pt file; the device is unknown or not there; or the processes cannot share a batch equally.
        CheckpointError: ``init`` is no model file of the architecture, the output cannot be written, or what was to be continued
            is damaged or of another training.
        DataUnavailableError: the images or the published weights of the architecture were not found and cannot be downloaded.
    """

    def __init__(
        self,
        config: PretrainConfig,
        images: Images,
        told: dict[str, Any],
        resume: bool = False,
        processes: Processes = ALONE,
    ) -> None:
        if config.output.suffix != ".pt":
            raise ConfigError(
                f"Expected --output as FILE.pt, since --activation recognises a model file by its suffix; got {config.output}."
            )
        self.config, self.images, self.told, self.processes = config, images, told, processes
        processes.lanes(config.batch_size)
        self.device = processes.device(config.device)
        if processes.leads:
            self._claim = claim_file(config.output)
        self._resume_path = config.output.with_suffix(".resume.pt")
        task = images.training[0].config
        channels = task.image_shape[2]
        kept = channels == 1 and config.init not in (None, "scratch")  # grey images suit a model that reads colour, too
        with self._own_random(torch.Generator().manual_seed(config.seed).get_state()):
            with processes.one_per_machine_first():  # it may download weights
                model = initial_model(
                    config.architecture,
                    config.init,
                    in_channels=None if kept else channels,
                    output_stride=config.output_stride,
                    deeper=config.deeper,
                    padding=config.padding,
                )
            self.net = Pretrainer(model.requires_grad_(True), task.classes).to(self.device).train()
            if processes.rank:
                torch.default_generator.manual_seed(config.seed + (processes.rank << 32))
            self._random = torch.get_rng_state()
        self.objective = processes.parallel(_Loss(self.net, config))
        self.steps = config.num_canvases // config.batch_size
        scheduled = (config.passes - config.average_passes) * self.steps
        self.average = AveragedModel(self.net) if config.average_passes else None
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, config.learning_rate, total_steps=scheduled, pct_start=0.15
        )
        self.passes, self.seconds = 0, 0.0
        if resume and self._resume_path.is_file():
            self._restore()

    def run(self) -> None:
        """Train, test, save.

        Raises:
            DivergenceError: the loss or its gradient is not finite; the output is left as it was.
        """
        config, total = self.config, self.config.passes * self.steps
        done = self.passes * self.steps
        share = self.processes.rank, self.processes.count
        supply = batches(self.images.training, config.batch_size, total, config.seed, done, share)
        started, before = time.perf_counter(), self.seconds
        hidden = not self.processes.leads
        with tqdm(total=total, initial=done, desc="features", unit="update", mininterval=1, disable=hidden) as bar:
            while self.passes < config.passes:
                with self._own_random(self._random):
                    loss = self._pass(supply, bar)
                    self._random = torch.get_rng_state()
                scale = self._scale(self.passes)
                self.passes += 1
                self.seconds = before + time.perf_counter() - started
                random = self.processes.of_all(self._random)
                if not self.processes.leads:
                    continue
                val = {
                    source: self._accuracy(next(iter(looks.values())), config.val_canvases, scale)
                    for source, looks in self.images.held_out["val"].items()
                }
                bar.write(f"pass {self.passes}: loss {loss:.4f}, validation {val}, {self.seconds:.0f} s")
                self._save(random)
        if not self.processes.leads:
            return
        if self.average is not None:
            self._take_average(self.average)
        measured = self._centre()
        results = {
            "test": {
                source: {look: self._accuracy(supply, config.test_canvases) for look, supply in looks.items()}
                for source, looks in self.images.held_out["test"].items()
            },
            **measured,
            "seconds": self.seconds,
            "images_per_second": total * config.batch_size / self.seconds,
            "device": self.device,
            "threads": torch.get_num_threads(),
            "processes": self.processes.count,
            "args": self.told,
            "versions": versions(),
        }
        tqdm.write(f"test: {results['test']}")
        write_text(config.output.with_suffix(".json"), json.dumps(results, indent=2) + "\n")
        self._resume_path.unlink(missing_ok=True)

    def _take_average(self, average: AveragedModel) -> None:
        """Go on with the averaged weights."""
        self.net.load_state_dict(average.module.state_dict())
        with self._own_random(self._random):
            self._normalise()

    def _normalise(self) -> None:
        """Measure the statistics of batch norm that fit the weights."""
        supply = batches(self.images.training, self.config.batch_size, _NORMALISED, self.config.seed)
        update_bn((self._shown(canvases) for canvases, _ in supply), self.net)

    def _shown(self, canvases: np.ndarray) -> torch.Tensor:
        """Training images as the network sees them in this pass."""
        images = to_images(canvases, self.net.model.in_channels).to(self.device)
        if self.config.warp_px:
            images = warped(images, self.config.warp_px)
        factor = 1.0
        if self.config.scale > 1:
            factor = self.config.scale ** float(2 * torch.rand(()) - 1) / self._zoom
        return resized(images, factor * self._scale(self.passes))

    @property
    def _zoom(self) -> float:
        """Size of what is in a varied image over its size in the image, the geometric mean."""
        variation = self.images.training[0].config.variation
        return math.sqrt(math.prod(variation.zoom)) if variation else 1.0

    def _centre(self) -> dict[str, Any]:
        """Measure where the objects of the cells are, and write it into the model file; returns how far off they were, in px.

        Also measured is how much the maps depend on the image, with a warning where they hardly do.
        """
        model, plain = self.net.model.eval(), self.images.training[0].config.unvaried
        canvases = plain.canvases.compose(np.arange(min(_MEASURED, plain.size)))
        images = to_images(canvases.images, model.in_channels).to(self.device)
        found = displacement_px(model, images)
        centre(model, found, (images.shape[2], images.shape[3]))
        save_model(self.config.output, self.config.architecture, model)
        variation = map_variation(model, images)
        if variation < _LEAST_VARIATION:
            warnings.warn(
                f"The saliency map of {self.config.output} hardly depends on the image (map_variation {variation:.2g}): about "
                "the same cells are high whatever it shows, so an agent finds nothing by it. Images that hold about as many "
                "objects each teach this. More images, or some with few objects or none, teach more.",
                stacklevel=2,
            )
        return {"displacement_px": found, "map_variation": variation}

    def _pass(self, supply: Iterator[tuple[np.ndarray, np.ndarray]], bar: tqdm[Any]) -> float:
        """The updates of one pass; returns the last loss."""
        config, net = self.config, self.net
        finite = torch.ones((), dtype=torch.bool, device=self.device)
        loss = torch.zeros(())
        fixed_from = config.passes - config.fixed_passes
        if self.passes == fixed_from:
            self._normalise()
        if self.passes >= fixed_from:
            for part in net.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.eval()
        for step in range(1, self.steps + 1):
            canvases, label_counts = next(supply)
            counts = torch.from_numpy(label_counts).float()
            images = self._shown(canvases)
            done = (self.passes + step / self.steps) / config.passes
            sharp_coef = config.sharp_coef * risen(done, *config.sharp_ramp)
            with torch.autocast(self.device, dtype=torch.bfloat16, enabled=has_matrix_unit(self.device)):
                loss, _ = self.objective(images, counts, sharp_coef)
            self.optimiser.zero_grad()
            loss.backward()
            grad_norm = nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            self.optimiser.step()
            self._step_schedule()
            bar.update()
            finite = finite & loss.detach().isfinite() & grad_norm.isfinite()
            if (step % _CHECKED_EVERY == 0 or step == self.steps) and not finite:
                raise DivergenceError(
                    f"Training diverged: the loss or its gradient is not finite in pass {self.passes + 1}, at update {step} of "
                    f"{self.steps} or a little before. {config.output} is as it was. Try a lower learning rate than "
                    f"{config.learning_rate:g} (--learning-rate)."
                )
        return loss.item()

    def _step_schedule(self) -> None:
        """The learning rate of the next update; in the averaged passes a constant, and these weights join the average."""
        if self.passes < self.config.passes - self.config.average_passes:
            self.schedule.step()
        elif self.average is not None:
            self.average.update_parameters(self.net)
            for group in self.optimiser.param_groups:
                group["lr"] = self.config.learning_rate / 4

    def _scale(self, done: int) -> float:
        """Size at which the images of a pass are shown and measured, ``done`` passes after the first."""
        return self.config.first_scale if done < self.config.passes // 2 else 1.0

    def _accuracy(self, supply: Supply, canvases: int, scale: float = 1.0) -> dict[str, float]:
        return accuracy(self.net, supply.config, canvases, self.config.objective, scale)

    def _save(self, random: list[torch.Tensor]) -> None:
        """Write the model and what ``resume`` needs; ``random`` holds the generator of each process."""
        save_model(self.config.output, self.config.architecture, self.net.model)
        state = {
            "args": json.dumps(self.told, sort_keys=True),
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "passes": self.passes,
            "seconds": self.seconds,
            "random": random,
            "average": self.average and self.average.state_dict(),
        }
        save_weights(self._resume_path, state)

    def _restore(self) -> None:
        path = self._resume_path
        try:
            state = load_weights(path)
            if state["args"] != json.dumps(self.told, sort_keys=True):
                raise CheckpointError(
                    f"{path} is of a training with other flags. Go on with the flags it was started with, or delete it to begin "
                    "anew."
                )
            self.net.load_state_dict(state["net"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.schedule.load_state_dict(state["schedule"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.passes, self.seconds = int(state["passes"]), float(state["seconds"])
            if len(state["random"]) != self.processes.count:
                raise CheckpointError(
                    f"{path} is of a training in {len(state['random'])} processes; go on with as many, not "
                    f"{self.processes.count}."
                )
            self._random = state["random"][self.processes.rank]
            torch.Generator().set_state(self._random)  # fails now, if at all
        except CheckpointError:
            raise
        except Exception as error:  # of many types: anything may stand in the place of anything
            raise CheckpointError(
                f"{path} is damaged, so the training cannot be continued ({type(error).__name__}: {error}). Delete it to begin "
                "anew."
            ) from error

    @contextmanager
    def _own_random(self, state: torch.Tensor) -> Iterator[None]:
        """A block in which torch's global generator is in ``state``; after it, it is the caller's again."""
        with own_defaults(), torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            yield
