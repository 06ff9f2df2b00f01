"""A training run: passes over the images, a folder of results, and how to continue after an interruption."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from agents import checkpoint
from agents.config import AgentConfig, LearnerConfig
from agents.evaluation import blind_guess, evaluation_config, make_env, score_agent
from agents.learning.distributed import ALONE, Processes
from agents.learning.learner import Learner, all_finite
from agents.learning.provenance import resources, versions
from agents.protocol import Agent, World, build_agent, find_agent
from agents.reports.metrics_file import write_metrics
from agents.reports.runs import flat
from agents.reports.tables import (
    OTHER_MEASURES,
    comma_separated,
    format_table,
    measure,
    method_in_words,
    source_in_words,
)
from agents.tracing import record
from hsal_env.config import EnvConfig
from hsal_env.errors import CheckpointError, ConfigError, DivergenceError
from hsal_env.isolation import own_defaults
from hsal_env.multiset import SCORES
from hsal_env.perception.examples import Examples
from hsal_env.rendering import draw_traces, save_picture
from hsal_env.storage.claims import claim_folder
from hsal_env.storage.files import as_path, write_text, writing

_PICTURED_EPISODES, _WATCHED_EPISODES = 4, 3  # of episodes.png, and of TensorBoard after every pass
_TESTED = (*SCORES, "attn_saliency_ratio", *OTHER_MEASURES)


@dataclass(frozen=True)
class RunConfig:
    """The settings of a training run.

    Attributes:
        folder: receives checkpoint.pt, metrics.json, progress.csv, episodes.png and TensorBoard logs.
        env: the training environment.
        agent_name: see :func:`agents.protocol.find_agent`.
        agent: sizes and switches of the agent.
        learner: how it learns.
        seed: seed of the weights, of the order of images, and of the samples.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
        val_episodes: number of validation canvases.
        log_every: number of updates between two rows of progress.csv.
        command: the command that was typed, for metrics.json.

    Raises:
        ConfigError: a number outside its range.
    """

    folder: Path
    env: EnvConfig
    agent_name: str
    agent: AgentConfig
    learner: LearnerConfig
    seed: int = 0
    device: str = "auto"
    val_episodes: int = 2_000
    log_every: int = 20
    command: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("log_every", 1), ("val_episodes", 1)):
            if not least <= getattr(self, name) < 1 << 32:
                raise ConfigError(f"Expected {name} of at least {least} and below 2**32; got {getattr(self, name)}.")


class Best(NamedTuple):
    """The weights that validated best so far: the latest ones that are :func:`as_good` as the best score.

    The score is the exact match; macro-F1 as long as no episode has been exact.

    Attributes:
        update: number of updates before them.
        weights: the agent's.
    """

    update: int
    weights: dict[str, Tensor]


def as_good(score: float, best: float, episodes: int) -> bool:
    """Whether a score in [0, 1] of so many episodes is no less than the best one, but for what chance explains.

    ``score >= best - sqrt((score (1 - score) + best (1 - best)) / episodes)``: the standard error of a difference. The learning
    rate falls, so later weights are the better ones where validation cannot tell. With 200 photographs and scores near 0.9,
    differences up to 0.03 count as chance.
    """
    return score >= best - math.sqrt((score * (1 - score) + best * (1 - best)) / episodes)


class Run:
    """One training run in one folder, which is refused to other processes while this object lives.

    Its checkpoint holds the weights that validated best, which are what others load and what is tested, and the last ones, with
    which ``resume`` goes on.

    Args:
        config: settings of the run.
        resume: continue from the folder's checkpoint.
        processes: the processes that share its batches, see :func:`agents.learning.distributed.joined`.

    Raises:
        ConfigError: the agent is unknown; the device is not there; there are fewer images than a batch has; the processes
            cannot share a batch equally, or have different settings; or the images or models cannot be stored in a
            checkpoint (:meth:`EnvConfig.plain`).
        CheckpointError: the folder cannot be written, another process writes in it, it already holds a checkpoint (without
            ``resume``), holds none (with it), or holds one of another configuration.
    """

    def __init__(self, config: RunConfig, resume: bool = False, processes: Processes = ALONE) -> None:
        self.config, self.processes, self.folder = config, processes, as_path(config.folder)
        self.checkpoint_path = self.folder / "checkpoint.pt"
        batch_size = config.learner.batch_size
        # every error in the settings is raised before minutes of work
        find_agent(config.agent_name)
        _ = config.env.plain()
        lanes = processes.lanes(batch_size)
        self.device = processes.device(config.device)
        if processes.leads:
            self._claim_folder(resume)
        with processes.one_per_machine_first():  # it may download images
            examples = Examples(dataclasses.replace(config.env, features="lazy"))
        self.source = examples.source
        self.world = World.of(examples)
        shared = processes.from_leader(self._identity)
        if not processes.leads and (different := _different(shared, self._identity())):
            raise ConfigError(
                f"Expected one run in all processes; {different} differ from process 0's. Start them with the same flags, "
                "data and packages on every machine."
            )
        self.updates_per_pass = len(examples) // batch_size
        if not self.updates_per_pass:
            raise ConfigError(
                f"Expected at least batch_size={batch_size} training images; got {len(examples)}. "
                "Raise --num-examples or lower --batch-size."
            )
        self._random: list[torch.Tensor] = []
        with self._own_random():
            self.agent = build_agent(config.agent_name, self.world, config.agent).to(self.device)
        num_updates = self.updates_per_pass * config.learner.passes
        self.learner = Learner(self.agent, config.learner, num_updates, config.seed, processes)
        self.rows: list[dict[str, float]] = []
        self.best: Best | None = None
        self.train_seconds = self.cpu_seconds = self.cpu_seconds_of_others = 0.0
        if resume:
            self._restore()
        start = time.perf_counter()
        with processes.one_per_machine_first():  # it may compute features for minutes
            self.env = make_env(config.env, lanes.stop - lanes.start, self.device)
            if processes.count > 1:
                self.env.simulation.examples.wait_until_stored()
        self.feature_seconds = time.perf_counter() - start

    def train(self, checkpoint_minutes: float = 3.0) -> None:
        """Run the remaining updates, with a progress bar.

        After every pass the agent is validated. It is saved then, and every ``checkpoint_minutes``.

        Raises:
            DivergenceError: see :meth:`agents.learning.learner.Learner.numbers`. The folder keeps the last good checkpoint.
        """
        with self._own_random():
            self._train(checkpoint_minutes)

    def _train(self, checkpoint_minutes: float) -> None:
        leads, learner = self.processes.leads, self.config.learner
        if leads:
            method = method_in_words(dataclasses.asdict(learner))
            tqdm.write(f"{method} on {source_in_words(self.source)}, results go to {self.folder}")
        saved = started = time.perf_counter()
        before = self.train_seconds
        pending: list[dict[str, Tensor]] = []
        with self._writing():
            board = self._board(self.learner.step + 1) if leads else None
        total, done = self.learner.num_updates, self.learner.step
        bar = tqdm(total=total, initial=done, desc=learner.algorithm, unit="update", disable=not leads)
        while self.learner.step < total:
            pending.append(self.learner.update(self.env, self._next_batch()))
            bar.update()
            passes, rest = divmod(self.learner.step, self.updates_per_pass)
            pass_ends = rest == 0
            if not pass_ends and self.learner.step % self.config.log_every:
                continue
            rows = self.learner.numbers(pending)
            row = {name: float(np.mean([line[name] for line in rows])) for name in rows[0]}
            pending = []
            own = torch.tensor(time.process_time(), dtype=torch.float64, device=self.device)
            self.cpu_seconds_of_others = float(self.processes.total(own) - own)
            if board is None:
                continue  # the leading process does the rest
            if pass_ends:
                row |= self._validate()
                exact, f1 = row["val/exact_match"], row["val/macro_f1"]
                bar.write(f"pass {passes}: validation exact match {exact:.3f}, macro-F1 {f1:.3f}")
                measure = "val/exact_match" if exact or self._best_of("val/exact_match") else "val/macro_f1"
                if as_good(row[measure], self._best_of(measure), self._val_config.size):
                    self.best = Best(self.learner.step, _copied(self.agent))
            now = time.perf_counter()
            self.train_seconds = before + now - started
            self._log(row, board)
            bar.set_postfix(reward=f"{row['reward/label']:.3f}", ratio=f"{row['attention/saliency_ratio']:.1f}")
            if pass_ends:
                picture = self._picture(self._val_config, _WATCHED_EPISODES)
                board.add_image("attention/episodes", picture, self.learner.step, dataformats="HWC")
            if pass_ends or now - saved > 60 * checkpoint_minutes:
                self._save()
                saved = now
        bar.close()
        if board:
            board.close()

    def _best_of(self, score: str) -> float:
        """The highest validation score of the passes so far."""
        return max((row.get(score, 0.0) for row in self.rows), default=0.0)

    def test(self, episodes: int) -> dict[str, Any]:
        """Test the agent on held-out canvases, with the weights that validated best. Only the leading process may call this.

        It prints the table, writes metrics.json and episodes.png, and gives TensorBoard the settings and test scores.

        Raises:
            CheckpointError: a file cannot be written.
        """
        with self._own_random():
            return self._test(episodes)

    def _test(self, episodes: int) -> dict[str, Any]:
        config = evaluation_config(self.config.env, "test", episodes)
        if self.best:
            self.agent.load_state_dict(self.best.weights)
        self.agent.eval()
        results: dict[str, Any] = {
            "source": self.source,
            "test": score_agent(self.agent, config, self.device),
            "tested_update": self.best.update if self.best else self.learner.step,
            "blind_guess": blind_guess(self.config.env, config),
            "train_seconds": self.train_seconds,
            "feature_seconds": self.feature_seconds,
            **resources(self.cpu_seconds + self.cpu_seconds_of_others),
            "processes": self.processes.count,
            "threads": torch.get_num_threads(),
            "config": self._settings(),
            "versions": versions(),
            "command": list(self.config.command),
        }
        tqdm.write(format_table(results))
        picture = self._picture(config, _PICTURED_EPISODES)
        with self.processes.tidy():
            write_metrics(self.folder / "metrics.json", results)
        with self._writing():
            save_picture(picture, self.folder / "episodes.png")
        last = self.learner.num_updates + 1  # after the steps of training; a second test replaces the first
        scores = {f"test/{name}": measure(results["test"], name) for name in _TESTED}
        with self._writing(), self._board(last) as board:
            board.add_hparams(
                flat(results["config"]),
                {name: value for name, value in scores.items() if value is not None},
                run_name=".",  # in this folder; TensorBoard would take another folder for another run
                global_step=last,
            )
        tqdm.write(f"Results are in {self.folder}")
        return results

    def _next_batch(self) -> np.ndarray:
        """Indices ``[batch_size]`` of the next update's images. Every pass has an order of its own.

        The first one takes images that are composed or varied, which come in no order, as they come: a thread may still be
        encoding the later ones.
        """
        number, batch = divmod(self.learner.step, self.updates_per_pass)
        size, env = self.config.learner.batch_size, self.config.env
        if number or env.is_finite:
            order = np.random.default_rng([self.config.seed, number]).permutation(env.size)
        else:
            order = np.arange(env.size)
        return order[batch * size : (batch + 1) * size]

    def _settings(self) -> dict[str, Any]:
        """What decides the result; where the data lie does not."""
        config = self.config
        env = {name: value for name, value in config.env.plain().items() if name not in ("data_root", "images")}
        if env["activation"].endswith(".pt"):
            env["activation"] = Path(env["activation"]).name
        return {
            "env": env,
            "agent_name": config.agent_name,
            "agent": dataclasses.asdict(config.agent),
            "learner": dataclasses.asdict(config.learner),
            "seed": config.seed,
        }

    @property
    def _val_config(self) -> EnvConfig:
        return evaluation_config(self.config.env, "val", self.config.val_episodes)

    def _validate(self) -> dict[str, float]:
        self.agent.eval()
        scores = score_agent(self.agent, self._val_config, self.device, progress=False, locate=False)
        self.agent.train()
        return {f"val/{name}": scores[name] for name in ("exact_match", "macro_f1")}

    def _board(self, first_step: int) -> SummaryWriter:
        """A writer for TensorBoard. What an earlier process logged from ``first_step`` on is dropped."""
        return SummaryWriter(str(self.folder / "tensorboard"), purge_step=first_step)

    def _picture(self, config: EnvConfig, episodes: int) -> np.ndarray:
        """A picture of the first canvases. It draws from a generator of its own, so it does not change training."""
        agent = self.agent if self.device == "cpu" else copy.deepcopy(self.agent).to("cpu")
        training = agent.training
        picture = draw_traces(record(agent.eval(), config, np.arange(min(episodes, config.size))))
        agent.train(training)
        return picture

    def _log(self, row: dict[str, float], board: SummaryWriter) -> None:
        for name, value in row.items():
            board.add_scalar(name, value, self.learner.step)
        self.rows.append({"update": self.learner.step, "seconds": self.train_seconds, **row})

    def _save(self) -> None:
        if not all_finite(self.agent):
            raise DivergenceError(
                f"The weights are not finite after update {self.learner.step}: {self.folder} keeps the last good ones."
            )
        config = self.config
        content = checkpoint.describe(config.agent_name, self.agent, config.agent, config.env, self.source, self.world)
        content |= {
            "last": content["model"],
            "best": self.best and self.best._asdict(),
            "optimiser": self.learner.optimiser.state_dict(),
            "step": self.learner.step,
            "rows": self.rows,
            "train_seconds": self.train_seconds,
            "cpu_seconds": self.cpu_seconds + self.cpu_seconds_of_others + time.process_time(),
            "run": self._identity(),
        }
        if self.best:
            content["model"] = self.best.weights
        with self.processes.tidy():
            checkpoint.save(self.checkpoint_path, content)
            write_text(self.folder / "progress.csv", comma_separated(self.rows))

    def _restore(self) -> None:
        content = self.processes.from_leader(lambda: checkpoint.read(self.checkpoint_path))
        stored, current = content.get("run"), self._identity()
        if different := _different(stored if isinstance(stored, dict) else {}, current):
            raise CheckpointError(
                f"{self.checkpoint_path} is of another run: {different} differ. Resume with the flags it was "
                "started with, or choose another --output-dir."
            )
        checkpoint.check_features(content, self.config.env, self.checkpoint_path)
        try:
            if best := content["best"]:
                self.best = Best(int(best["update"]), best["weights"])
                checkpoint.restore(self.agent, self.best.weights, self.checkpoint_path)  # fails now, if at all
            checkpoint.restore(self.agent, content["last"], self.checkpoint_path)
            self.learner.restore(content["optimiser"], content["step"])
            self.rows = list(map(dict, content["rows"]))
            if not all(isinstance(value, int | float) for row in self.rows for value in row.values()):
                raise TypeError("rows holds more than numbers")
            self.train_seconds, self.cpu_seconds = float(content["train_seconds"]), float(content["cpu_seconds"])
        except CheckpointError:
            raise
        except Exception as error:  # of many types: anything may stand in the place of anything
            raise CheckpointError(
                f"{self.checkpoint_path} is damaged, so the run cannot be continued ({type(error).__name__}: {error}). Choose "
                "another --output-dir."
            ) from error

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a run to be continued, and in all its processes."""
        env = self.config.env
        own = {} if env.images is None else {"images": env.data.digest}
        settings = self._settings()
        settings["env"].pop("places")  # no training depends on it
        return {**settings, "source": self.source, "perception": checkpoint.perception(env), **own}

    def _claim_folder(self, resume: bool) -> None:
        self._check_checkpoint(resume)
        with self.processes.tidy():
            self._claim = claim_folder(self.folder)
        self._check_checkpoint(resume)  # another run may have ended between the two

    def _check_checkpoint(self, resume: bool) -> None:
        if resume and not self.checkpoint_path.is_file():
            raise CheckpointError(
                f"Nothing to resume: no {self.checkpoint_path}. Leave out --resume, or mend --output-dir."
            )
        if not resume and self.checkpoint_path.exists():
            raise CheckpointError(
                f"{self.checkpoint_path} exists. Continue it with --resume, or choose another --output-dir."
            )

    @contextmanager
    def _own_random(self) -> Iterator[None]:
        """A block in which torch's global generators are the run's: seeded at first, and later as the last block left them.

        Agents draw their first weights from them. After the block they are the caller's again.
        """
        device = torch.device(self.device)
        on_cuda = device.type == "cuda"
        with own_defaults(), torch.random.fork_rng(devices=[device] if on_cuda else []):
            if self._random:
                torch.set_rng_state(self._random[0])
            else:
                torch.default_generator.manual_seed(self.config.seed)
            if on_cuda:
                with torch.cuda.device(device):
                    if self._random:
                        torch.cuda.set_rng_state(self._random[1])
                    else:
                        torch.cuda.manual_seed(self.config.seed)
            yield
            self._random = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if on_cuda else [])]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with writing(self.folder), self.processes.tidy():
            yield


def _copied(agent: Agent) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in agent.state_dict().items()}


def _different(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Names of the entries in which two runs differ."""
    return ", ".join(sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key)))
