"""Learning works, is reproducible to the bit, survives interruptions, and leaves the files it promises."""

import csv
import dataclasses
import json
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from agents import checkpoint
from agents import evaluation as evaluation_module
from agents.actor_critic import ActorCritic
from agents.config import AgentConfig, LearnerConfig
from agents.evaluation import blind_guess, evaluation_config, make_env, score_agent, scores_by_count
from agents.learning.learner import Learner, all_finite
from agents.learning.provenance import resources
from agents.learning.run import Run, RunConfig, as_good
from agents.protocol import Decision, World
from agents.rollout import collect
from agents.tracing import record
from hsal_env import multiset
from hsal_env.config import EnvConfig
from hsal_env.errors import CheckpointError, ConfigError, DivergenceError
from hsal_env.storage.array_store import ArrayStore

ROOT = Path(__file__).parents[1]
STOP = 10
CELL = 24  # in the middle of 7 x 7
ENV = EnvConfig(source="digits", num_examples=64, protocol="teacher", features="store", include_image=False)
AGENT = AgentConfig(meta_hidden=8, controller_hidden=16, location_hidden=8)
LEARNER = LearnerConfig(batch_size=16, passes=2, num_minibatches=2, learning_rate=3e-3)
VARIANTS = {
    "sampled": {"estimator": "sampled"},
    "exact": {"estimator": "exact"},
    "log": {"estimator": "log"},
    "assigned": {"estimator": "assigned"},
    "ppo": {"algorithm": "ppo"},
    "cross-entropy": {"algorithm": "cross-entropy"},
    "multiset-loss": {"algorithm": "multiset-loss"},
}


def start(folder: Path, resume: bool = False, seed: int = 0, agent: AgentConfig = AGENT, **learner) -> Run:
    """A run of eight updates in two passes, with a row of progress every other update."""
    learner_config = dataclasses.replace(LEARNER, **learner)
    config = RunConfig(folder, ENV, "hsal", agent, learner_config, seed, "cpu", val_episodes=12, log_every=2)
    return Run(config, resume)


def weights(run: Run) -> dict[str, Tensor]:
    return {name: part.clone() for name, part in run.agent.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def progress(folder: Path) -> list[dict[str, str]]:
    """The rows of progress.csv, without the one column that clocks decide."""
    with (folder / "progress.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "passes"),
    [("sampled", 32), ("exact", 12), ("log", 12), ("ppo", 8), ("cross-entropy", 12), ("multiset-loss", 12)],
)
def test_a_toy_task_is_learnt(tmp_path: Path, variant: str, passes: int):
    """One digit and clutter: chance is a reward of -0.8, and the right multiset at most once in ten."""
    config = EnvConfig(task="single", source="digits", num_examples=512, protocol="teacher", features="store")
    settings = RunConfig(
        tmp_path,
        dataclasses.replace(config, update="peak", components=4),
        "hsal",
        AgentConfig(
            meta_hidden=16, controller_hidden=64, location_hidden=16, attention_init="grid", location_prior=3.0
        ),
        LearnerConfig(
            **VARIANTS[variant],
            batch_size=64,
            passes=passes,
            num_minibatches=2,
            learning_rate=5e-3,
            ent_coef=0.05,
            stop_coef=0.1,
        ),
        seed=0,
        device="cpu",
        val_episodes=128,
        log_every=4,
    )
    run = Run(settings)
    run.train()
    first, last = run.rows[0], run.rows[-1]
    assert last["val/exact_match"] > 0.6
    assert last["val/macro_f1"] > 0.6
    assert last["loss/stop"] < first["loss/stop"] / 4
    if variant != "cross-entropy":  # whose labels are forced, and whose glimpses earn nothing
        assert first["reward/label"] < -0.6
        assert last["reward/label"] > 0.5
        assert last["attention/saliency_ratio"] > 1.4 * first["attention/saliency_ratio"]


@pytest.mark.parametrize(
    ("attention", "estimator"), [("learned", "sampled"), ("winner-take-all", "sampled"), ("learned", "assigned")]
)
def test_a_run_that_diverges_stops_with_one_line_and_writes_no_weights(tmp_path: Path, attention: str, estimator: str):
    agent = dataclasses.replace(AGENT, attention_policy=attention)
    run = start(tmp_path, agent=agent, learning_rate=1e30, estimator=estimator)
    with pytest.raises(
        DivergenceError, match=r"^Training diverged: [^\n]* in update [1-4] of 8\. .* lower learning rate than 1e\+30"
    ):
        run.train()
    assert not run.checkpoint_path.exists()


def test_the_first_update_that_is_not_finite_is_named_though_numbers_are_read_later():
    env = make_env(ENV, 16)
    learner = Learner(build(env), LEARNER, 10)
    rows = [learner.update(env, np.arange(16)) for _ in range(3)]
    assert len(learner.numbers(rows)) == 3
    rows[1] |= {"loss/label": rows[1]["loss/label"] * torch.nan}
    with pytest.raises(DivergenceError, match=r"diverged: loss/label not finite in update 2 of 10\."):
        learner.numbers(rows)


@pytest.mark.parametrize("attention", ["learned", "winner-take-all"])
def test_a_run_that_diverges_keeps_its_last_good_weights(tmp_path: Path, attention: str):
    agent = dataclasses.replace(AGENT, attention_policy=attention)
    run = start(tmp_path, agent=agent)
    run.train(checkpoint_minutes=0)
    good = run.checkpoint_path.read_bytes()
    run.learner.num_updates += 4
    with torch.no_grad():
        next(run.agent.parameters()).fill_(torch.nan)
    with pytest.raises(DivergenceError):
        run.train(checkpoint_minutes=0)
    with pytest.raises(DivergenceError, match="The weights are not finite after update"):
        run._save()
    assert run.checkpoint_path.read_bytes() == good
    assert all_finite(checkpoint.load(run.checkpoint_path).agent)


META = {"meta_controller.encode", "meta_controller.gru", "meta_controller.attention"}
CONTROLLER = {"controller.encode", "controller.gru", "controller.label"}
LOCATION = {"controller.location.0", "controller.location.2", "controller.location_prior"}
HEADS = dict.fromkeys(VARIANTS, LOCATION) | {
    "sampled": LOCATION | {"controller.value"},
    "ppo": LOCATION | {"controller.value"},
    "cross-entropy": set(),
}
"""The heads that each variant trains beside the label's."""


def logged(learner: Learner, env, lanes: int = 16) -> dict[str, float]:
    """What one update logs."""
    return learner.numbers([learner.update(env, np.arange(lanes))])[0]


def moved_by_an_update(agent: ActorCritic, env, **learner) -> tuple[set[str], dict[str, float]]:
    """The layers whose weights one update changes, and its log."""
    before = {name: weight.detach().clone() for name, weight in agent.named_parameters()}
    log = logged(Learner(agent, dataclasses.replace(LEARNER, **learner), 10), env)
    moved = [name for name, weight in agent.named_parameters() if not torch.equal(weight, before[name])]
    return {re.sub(r"\.(weight|bias)\w*$", "", name) for name in moved}, log


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_update_moves_every_weight_that_has_an_objective(variant: str, bfloat16: bool):
    env = make_env(ENV, 16)
    agent = build(env, dataclasses.replace(AGENT, bfloat16=bfloat16, location_prior=1.0))
    moved, log = moved_by_an_update(agent, env, **VARIANTS[variant])
    assert moved == META | CONTROLLER | HEADS[variant]
    assert all(np.isfinite(value) for value in log.values())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("control", "fixed"),
    [
        ({"attention_policy": "winner-take-all"}, META),
        ({"location_policy": "greedy"}, LOCATION),
        ({"location_policy": "uniform"}, LOCATION),
    ],
    ids=["winner-take-all", "greedy", "uniform"],
)
def test_an_update_of_a_control_leaves_alone_what_it_replaces(variant: str, control: dict, fixed: set[str]):
    env = make_env(ENV, 16)
    agent = build(env, dataclasses.replace(AGENT, location_prior=1.0, **control))
    moved, log = moved_by_an_update(agent, env, **VARIANTS[variant])
    assert moved == (META | CONTROLLER | HEADS[variant]) - fixed
    assert all(np.isfinite(value) for value in log.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_baseline_is_trained_where_it_is_read_and_nowhere_else(variant: str):
    env = make_env(ENV, 16)
    agent = build(env)
    before = [weight.detach().clone() for weight in agent.controller.value.parameters()]
    log = logged(Learner(agent, dataclasses.replace(LEARNER, **VARIANTS[variant]), 10), env)
    is_read = variant in ("sampled", "ppo")
    for weight, old in zip(agent.controller.value.parameters(), before, strict=True):
        assert (weight.grad is not None) == is_read
        assert torch.equal(weight, old) != is_read
    assert ("loss/value" in log) == is_read


def build(env, config: AgentConfig = AGENT, seed: int = 0) -> ActorCritic:
    torch.manual_seed(seed)
    examples = env.simulation.examples
    return ActorCritic(World(env.simulation.rules, examples.map_size, examples.channels, 10), config)


def test_bfloat16_learns_nearly_what_float32_learns():
    env, after = make_env(ENV, 16), []
    for bfloat16 in (False, True):
        agent = build(env, dataclasses.replace(AGENT, bfloat16=bfloat16))
        learner = Learner(agent, dataclasses.replace(LEARNER, estimator="exact"), 10)
        losses = [logged(learner, env)["loss/stop"] for _ in range(10)]
        after.append(losses)
    assert after[0][-1] < after[0][0] - 0.2  # something was learnt, so stale copies of weights would show
    np.testing.assert_allclose(after[1], after[0], rtol=0.05)


# --- the learner ------------------------------------------------------------------------------------------------------


def test_the_learning_rate_rises_in_a_line_and_falls_as_a_cosine():
    env = make_env(ENV, 4)
    learner = Learner(build(env), LearnerConfig(learning_rate=0.1, warmup=0.4, batch_size=4), num_updates=10)
    rates = [logged(learner, env, 4)["optimiser/learning_rate"] for _ in range(10)]
    rising = [0.1 * step / 5 for step in (1, 2, 3, 4)]
    falling = [0.05 * (1 + np.cos(np.pi * step / 6)) for step in range(6)]
    assert rates == pytest.approx(rising + falling)


@pytest.mark.parametrize(("location", "groups"), [(3.0, 3), (1.0, 2)])
def test_meta_controller_and_location_head_have_their_shares_of_the_learning_rate(location: float, groups: int):
    """Adam's first step is as long as the rate, whatever the size of the gradient."""
    env = make_env(ENV, 16)
    agent = build(env, dataclasses.replace(AGENT, location_prior=1.0))
    before = {name: weight.detach().clone() for name, weight in agent.named_parameters()}
    config = dataclasses.replace(
        LEARNER, learning_rate=0.01, meta_lr_scale=0.25, location_lr_scale=location, warmup=0.0
    )
    learner = Learner(agent, config, 10)
    learner.update(env, np.arange(16))
    shares = {"meta_controller.": 0.0025, "controller.location.": 0.01 * location, "": 0.01}
    for name, weight in agent.named_parameters():
        rate = next(rate for part, rate in shares.items() if name.startswith(part))
        assert (weight - before[name]).abs().max().item() == pytest.approx(rate, rel=0.02), name
    assert len(learner.optimiser.param_groups) == groups  # a checkpoint without a share of the head's has two


def test_the_first_update_has_the_first_weight_of_the_locations_entropy_and_the_last_the_last():
    env = make_env(ENV, 16)
    config = dataclasses.replace(LEARNER, location_ent_coef=1.0, last_location_ent_coef=0.0)
    learner, seen = Learner(build(env), config, 5), []
    weigh = learner.objective._weight
    learner.objective._weight = lambda *given: seen.append((given[0], weigh(*given))) or weigh(*given)
    for _ in range(5):
        learner.update(env, np.arange(16))
    assert [weight for term, weight in seen if term == "location_entropy"] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_ppo_sees_every_lane_once_an_epoch():
    env = make_env(ENV, 16)
    agent = build(env)
    config = dataclasses.replace(LEARNER, algorithm="ppo", num_minibatches=4, update_epochs=3)
    learner, indices = Learner(agent, config, 1), np.arange(16) + 30
    rollout = collect(env, agent, indices, generator=torch.Generator().manual_seed(0))
    parts = learner._minibatches(rollout, torch.Generator().manual_seed(0))
    seen = [part.trajectory.example.canvas_index.tolist() for part in parts]
    assert [len(lanes) for lanes in seen] == [4] * 12
    epochs = [[lane for part in seen[first : first + 4] for lane in part] for first in (0, 4, 8)]
    assert all(sorted(epoch) == indices.tolist() for epoch in epochs)
    assert epochs[0] != epochs[1] != indices.tolist()
    for part, advantage, *_ in parts:  # gamma = 0: reward minus value
        expected = torch.where(part.live[:, None], part.rewards - part.values, 0.0)
        torch.testing.assert_close(advantage, expected)


def test_every_update_draws_samples_of_its_own():
    env = make_env(ENV, 16)
    learner = Learner(build(env), dataclasses.replace(LEARNER, learning_rate=1e-12), 10)
    first, second = (logged(learner, env) for _ in range(2))
    assert first["loss/stop"] != second["loss/stop"]  # the same weights and images, other labels before
    assert first["reward/location"] != second["reward/location"]


def test_the_gradient_is_clipped_but_logged_as_it_was():
    env = make_env(ENV, 16)
    agent = build(env)
    learner = Learner(agent, dataclasses.replace(LEARNER, max_grad_norm=1e-3), 10)
    norm = logged(learner, env)["optimiser/grad_norm"]
    left = torch.cat([weight.grad.flatten() for weight in agent.parameters()]).norm()
    assert norm > 0.1
    assert left.item() == pytest.approx(1e-3, rel=1e-2)


def test_logged_rewards_are_those_of_rewarded_decisions():
    env = make_env(ENV, 16)
    learner = Learner(build(env), LEARNER, 10)
    log = logged(learner, env)
    rollout = collect(
        env, build(env), np.arange(16), generator=torch.Generator().manual_seed(0)
    )  # the learner's, step 0
    trajectory = rollout.trajectory
    objects = trajectory.example.counts.sum(dim=1).tolist()
    named = [trajectory.rewards[step, 2, lane].item() for lane, m in enumerate(objects) for step in range(m)]
    looked = [trajectory.rewards[: m + 1, :2, lane].flatten() for lane, m in enumerate(objects)]
    assert log["reward/label"] == pytest.approx(np.mean(named), abs=1e-6)
    assert log["reward/location"] == pytest.approx(torch.cat(looked).mean().item(), abs=1e-6)


def test_logged_saliency_is_that_of_the_glimpsed_cells():
    env = make_env(dataclasses.replace(ENV, update="none"), 16)  # so that every glimpse counts in full
    log = logged(Learner(build(env), LEARNER, 10), env)
    trajectory = collect(env, build(env), np.arange(16), generator=torch.Generator().manual_seed(0)).trajectory
    raw = trajectory.example.raw_saliency.flatten(1)
    raw = torch.where(raw > raw.amin(dim=1, keepdim=True), raw, 0.0)  # nothing is left to count at the minimum (S3)
    at, lengths = [], trajectory.live.sum(dim=0)
    for lane, steps in enumerate(lengths.tolist()):
        at += raw[lane, trajectory.locations[:steps, :, lane].flatten()].tolist()
    assert log["attention/saliency"] == pytest.approx(np.mean(at), rel=1e-4)
    uniform = (raw.mean(dim=1) * lengths).sum().item() / lengths.sum().item()
    assert log["attention/saliency_ratio"] == pytest.approx(np.mean(at) / uniform, rel=1e-4)


def test_without_glimpses_their_logged_saliency_and_reward_are_zero():
    env = make_env(dataclasses.replace(ENV, glimpses=0), 16)
    log = logged(Learner(build(env), LEARNER, 10), env)
    assert log["attention/saliency"] == log["attention/saliency_ratio"] == log["reward/location"] == 0
    assert log["loss/label"] != 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"algorithm": "dqn"}, "algorithm to be one of reinforce, ppo, cross-entropy, multiset-loss; got 'dqn'"),
        ({"estimator": "best"}, "estimator to be one of sampled, exact, log, assigned; got 'best'"),
        ({"batch_size": 0}, "batch_size of at least 1; got 0"),
        ({"passes": 0}, "passes of at least 1; got 0"),
        ({"update_epochs": 0}, "update_epochs of at least 1; got 0"),
        ({"num_minibatches": 0}, "num_minibatches of at least 1; got 0"),
        (
            {"algorithm": "ppo", "batch_size": 10, "num_minibatches": 4},
            "num_minibatches to divide batch_size; got 4, 10",
        ),
        ({"gamma": 1.5}, r"gamma in \[0, 1\]; got 1.5"),
        ({"gae_lambda": -0.1}, r"gae_lambda in \[0, 1\]; got -0.1"),
        ({"warmup": 2.0}, r"warmup in \[0, 1\]; got 2.0"),
        ({"estimator": "exact", "gamma": 0.9}, "use estimator='sampled'"),
        ({"estimator": "assigned", "gamma": 0.9}, "use estimator='sampled'"),
        ({"estimator": "log", "algorithm": "ppo"}, "use estimator='sampled'"),
        ({"estimator": "exact", "algorithm": "multiset-loss"}, "use estimator='sampled'"),
        ({"gamma": 0.9, "algorithm": "multiset-loss"}, "expected gamma=0, got 0.9"),
    ],
)
def test_learner_settings_outside_their_range_are_named(fields: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        LearnerConfig(**fields)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", -1.0), ("learning_rate", float("nan")), ("max_grad_norm", -1.0), ("clip_coef", -0.1),
        ("location_lr_scale", 0.0), ("location_ent_coef", -0.1), ("last_location_ent_coef", float("nan")),
        ("last_location_ent_coef", 1e31),
    ],
)  # fmt: skip
def test_rates_and_norms_outside_their_range_are_named(field: str, value: float):
    with pytest.raises(ConfigError, match=field):
        LearnerConfig(**{field: value})


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs whose pictures nobody looks at: drawing them takes longer than learning."""
    monkeypatch.setattr("agents.learning.run.draw_traces", lambda *_, **__: np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    "variant",
    ["sampled", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ppo", "cross-entropy", "multiset-loss"))],
)
def test_a_seed_decides_a_training_to_the_bit(tmp_path: Path, variant: str):
    runs = [start(tmp_path / name, seed=seed, **VARIANTS[variant]) for name, seed in (("a", 0), ("again", 0), ("b", 1))]
    at_first = [weights(run) for run in runs]
    for run in runs:
        run.train()
    assert not same(at_first[0], weights(runs[0]))
    assert same(weights(runs[0]), weights(runs[1]))
    assert progress(tmp_path / "a") == progress(tmp_path / "again")
    assert not same(weights(runs[0]), weights(runs[2]))


def test_an_epoch_is_a_permutation_of_the_images_and_the_next_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run, batches = start(tmp_path), []
    update = Learner.update
    monkeypatch.setattr(
        Learner, "update", lambda self, env, indices: [batches.append(indices.tolist()), update(self, env, indices)][1]
    )
    run.train()
    epochs = [[index for batch in part for index in batch] for part in (batches[:4], batches[4:])]
    assert len(batches) == 8
    assert all(sorted(epoch) == list(range(64)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def interrupt_after(monkeypatch: pytest.MonkeyPatch, updates: int) -> None:
    """Ctrl-C at the next update but ``updates``."""
    update = Learner.update

    def until(self: Learner, env, indices: np.ndarray) -> dict[str, float]:
        if self.step == updates:
            raise KeyboardInterrupt
        return update(self, env, indices)

    monkeypatch.setattr(Learner, "update", until)


@pytest.mark.parametrize(
    ("variant", "minutes", "saved_at"),
    [
        ("sampled", 0.0, 6),
        ("sampled", 60.0, 4),
        *(pytest.param(variant, 0.0, 6, marks=pytest.mark.slow) for variant in VARIANTS if variant != "sampled"),
        pytest.param("ppo", 60.0, 4, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str, minutes: float, saved_at: int
):
    learner = {**VARIANTS[variant], "location_lr_scale": 2.0, "location_ent_coef": 0.3, "last_location_ent_coef": 0.1}
    whole = start(tmp_path / "whole", **learner)
    whole.train(minutes)
    expected = whole.test(24)

    folder = tmp_path / "parts"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 7)
        run = start(folder, **learner)
        with pytest.raises(KeyboardInterrupt):
            run.train(minutes)
    resumed = start(folder, resume=True, **learner)
    assert resumed.learner.step == saved_at
    assert not same(weights(resumed), weights(whole))
    resumed.train(minutes)

    assert same(weights(resumed), weights(whole))
    assert progress(folder) == progress(tmp_path / "whole")
    assert [row["update"] for row in progress(folder)] == ["2", "4", "6", "8"]
    results = resumed.test(24)
    for part in ("test", "blind_guess", "source", "config", "versions"):
        assert results[part] == expected[part]


def validating(monkeypatch: pytest.MonkeyPatch, scores: list[float], f1: Sequence[float] = (0.5, 0.5)) -> None:
    """Let the passes of a run validate with these scores."""

    def validate(run: Run) -> dict[str, float]:
        at = run.learner.step // run.updates_per_pass - 1
        return {"val/exact_match": scores[at], "val/macro_f1": f1[at]}

    monkeypatch.setattr(Run, "_validate", validate)


@pytest.mark.parametrize(("score", "best", "episodes", "good"), [
    (0.9, 0.8, 10, True),
    (0.5, 0.6, 48, True),  # sqrt(0.49 / 49) = 0.1
    (0.5, 0.6, 50, False),
    (0.87, 0.89, 200, True),
    (0.87, 0.89, 500, True),  # sqrt(0.211 / 527) = 0.02
    (0.87, 0.89, 550, False),
    (0.0, 1.0, 1, False),
    (1.0, 1.0, 5, True),
])  # fmt: skip
def test_chance_makes_no_weights_worse(score: float, best: float, episodes: int, good: bool):
    assert as_good(score, best, episodes) is good


@pytest.mark.parametrize(("scores", "best"), [([0.5, 0.75], 8), ([0.75, 0.5], 4), ([0.5, 0.5], 8), ([0.75, 0.7], 8)])
def test_the_weights_that_validate_best_are_kept_and_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: list[float], best: int
):
    validating(monkeypatch, scores)
    first = start(tmp_path / "first")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            first.train()
    whole = start(tmp_path / "whole")
    whole.train()
    last = weights(whole)
    expected = weights(first) if best == 4 else last
    results = whole.test(24)
    assert results["tested_update"] == best
    assert same(weights(whole), expected)
    assert same(checkpoint.load(whole.checkpoint_path).agent.state_dict(), expected)
    assert same(checkpoint.read(whole.checkpoint_path)["last"], last)

    resumed = start(tmp_path / "first", resume=True)
    resumed.train()
    assert same(weights(resumed), last)
    assert resumed.test(24)["tested_update"] == best
    assert same(weights(resumed), expected)


@pytest.mark.parametrize(
    ("scores", "f1", "best"),
    [
        ([0.0, 0.0], (0.7, 0.1), 4),  # the one says nothing, the other decides
        ([0.0, 0.0], (0.1, 0.7), 8),
        ([0.0, 0.1], (0.7, 0.1), 8),
        ([0.5, 0.5], (0.7, 0.1), 8),
    ],
)
def test_macro_f1_chooses_among_weights_that_are_never_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: list[float], f1: tuple[float, float], best: int
):
    validating(monkeypatch, scores, f1)
    run = start(tmp_path)
    run.train()
    assert run.best is not None
    assert run.best.update == best


def test_the_time_before_an_interruption_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = start(tmp_path)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            run.train(0.0)
    resumed = start(tmp_path, resume=True)
    assert resumed.train_seconds == run.rows[1]["seconds"] > 0
    resumed.train()
    seconds = [row["seconds"] for row in resumed.rows]
    assert seconds == sorted(seconds)
    assert resumed.train_seconds == seconds[-1]


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path):
    run = start(tmp_path)
    run.train()
    again = start(tmp_path, resume=True)
    again.train()
    assert same(weights(run), weights(again))
    assert again.rows == run.rows


# --- the folder -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run = start(folder)
    run.train()
    run.test(30)
    return folder


def no_nan(name: str) -> float:
    raise AssertionError(f"{name} is not JSON")


SCORES = {"exact_match", "macro_f1", "micro_f1", "overall_precision", "overall_recall", "example_f1"}
COUNTS, WHERE = {"count_error", "total_error"}, {"pointing", "mask_in_box", "focus", "several"}


def test_metrics_hold_what_is_promised(finished: Path):
    metrics = json.loads((finished / "metrics.json").read_text(), parse_constant=no_nan)
    assert set(metrics) == {
        "source", "test", "tested_update", "blind_guess", "checksum", "progress_checksum",
        "train_seconds", "feature_seconds", "cpu_seconds", "max_memory_mib",
        "processes", "threads", "config", "versions", "command",
    }  # fmt: skip
    assert metrics["source"] == "digits"
    assert metrics["train_seconds"] > 0
    assert metrics["cpu_seconds"] > 0
    assert metrics["max_memory_mib"] is None or metrics["max_memory_mib"] > 50  # torch alone takes more
    assert metrics["threads"] == torch.get_num_threads()
    assert metrics["processes"] == 1
    assert set(metrics["test"]) == SCORES | COUNTS | WHERE | {"attn_saliency", "attn_saliency_ratio", "by_count"}
    assert all(0 <= metrics["test"][name] <= 1 for name in SCORES)
    named = any(metrics["test"][name] > 0 for name in ("overall_precision", "overall_recall"))
    assert named <= all(metrics["test"][name] is not None for name in WHERE)
    assert set(metrics["blind_guess"]) == SCORES | COUNTS | {"mean_counts"}
    for part in (metrics["test"], metrics["blind_guess"], metrics["blind_guess"]["mean_counts"]):
        assert list(part["count_error"]["by_class"]) == [str(label) for label in range(10)]
        assert part["count_error"]["mean"] == pytest.approx(np.mean([*part["count_error"]["by_class"].values()]))
    assert set(metrics["test"]["by_count"]) <= {"1", "2", "3", "4"}
    for part in metrics["test"]["by_count"].values():
        assert set(part) == {"episodes", "exact_match", "macro_f1"}
    assert sum(part["episodes"] for part in metrics["test"]["by_count"].values()) == 30
    assert set(metrics["versions"]) >= {"python", "torch", "numpy", "gymnasium", "hsal"}


@pytest.mark.parametrize(("platform", "peak"), [("linux", 3 << 10), ("darwin", 3 << 20)])
def test_resources_are_of_this_process(monkeypatch: pytest.MonkeyPatch, platform: str, peak: int):
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage={0: SimpleNamespace(ru_maxrss=peak)}.get)
    before = time.process_time()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "resource", usage)
        patch.setattr(sys, "platform", platform)
        found = resources()
    assert found["max_memory_mib"] == 3  # one counts in KiB, the other in bytes
    assert before <= found["cpu_seconds"] <= time.process_time()


def test_where_memory_cannot_be_asked_it_is_unknown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # the import fails
    found = resources()
    assert found["max_memory_mib"] is None
    assert found["cpu_seconds"] > 0


def test_metrics_hold_the_configuration(finished: Path):
    config = json.loads((finished / "metrics.json").read_text())["config"]
    assert EnvConfig.from_kwargs(config["env"]) == ENV
    assert AgentConfig(**config["agent"]) == AGENT
    assert LearnerConfig(**config["learner"]) == LEARNER
    assert (config["agent_name"], config["seed"]) == ("hsal", 0)


def test_the_folder_holds_what_is_promised_and_nothing_half_written(finished: Path):
    names = {path.name for path in finished.iterdir()}
    assert names == {"checkpoint.pt", "metrics.json", "progress.csv", "episodes.png", "tensorboard"}
    assert list((finished / "tensorboard").glob("events*"))
    assert (finished / "episodes.png").read_bytes().startswith(b"\x89PNG")


def test_every_logged_name_is_explained(finished: Path):
    page = re.sub(
        r"^```.*?^```", "", (ROOT / "docs" / "learning" / "runs.md").read_text(), flags=re.DOTALL | re.MULTILINE
    )
    explained = set(re.findall(r"`([^`]+)`", page))
    with (finished / "progress.csv").open() as file:
        names = next(csv.reader(file))
    assert {"update", "seconds", "loss/label", "reward/label", "val/exact_match"} <= set(names)
    assert set(names) - {"update", "seconds"} <= explained


def test_validation_is_logged_after_every_pass(finished: Path):
    tested = [bool(row["val/exact_match"]) for row in progress(finished)]
    assert tested == [False, True, False, True]


def test_an_existing_run_is_not_overwritten(finished: Path):
    before = (finished / "checkpoint.pt").read_bytes()
    with pytest.raises(CheckpointError, match=r"checkpoint.pt exists. Continue it with --resume"):
        start(finished)
    assert (finished / "checkpoint.pt").read_bytes() == before


def test_there_must_be_something_to_resume(tmp_path: Path):
    with pytest.raises(CheckpointError, match="Nothing to resume"):
        start(tmp_path, resume=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"learning_rate": 1e-5}, "learner"),
        ({"agent": dataclasses.replace(AGENT, controller_state="carry")}, "agent"),
    ],
    ids=["seed", "learner", "agent"],
)
def test_a_run_resumes_only_with_the_flags_it_was_started_with(finished: Path, changes: dict, named: str):
    with pytest.raises(CheckpointError, match=f"of another run: {named} differ"):
        start(finished, resume=True, **changes)


def test_a_run_is_tested_again_with_other_places(finished: Path):
    """Where a glimpse is said to look decides nothing that is learned."""
    again = shutil.copytree(finished, finished.parent / "with places")
    turned = dataclasses.replace(ENV, places="turned")
    config = RunConfig(again, turned, "hsal", AGENT, LEARNER, 0, "cpu", val_episodes=12, log_every=2)
    assert Run(config, resume=True).test(20)["config"]["env"]["places"] == "turned"


@pytest.mark.parametrize("below", [".", "deeper/still"])
def test_a_file_in_the_way_of_the_folder_is_a_clear_error(tmp_path: Path, below: str):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match=r"Cannot write .*file"):
        start(tmp_path / "file" / below)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agent": dataclasses.replace(AGENT, attention_init="grid")}, "square number of components; got 5"),
        ({"batch_size": 65}, "batch_size=65 training images; got 64. Raise --num-examples"),
    ],
    ids=["agent", "batch_size"],
)
def test_what_is_wrong_is_said_before_features_are_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, message: str
):
    monkeypatch.setattr(ArrayStore, "open", lambda *_: pytest.fail("it began to compute features"))
    with pytest.raises(ConfigError, match=message):
        start(tmp_path, **changes)


def test_a_device_must_be_there(tmp_path: Path):
    with pytest.raises(ConfigError, match="Expected a device that is there, such as cpu; got 'abacus'"):
        Run(RunConfig(tmp_path, ENV, "hsal", AGENT, LEARNER, device="abacus"))


@pytest.mark.parametrize("name", ["progress.csv", "metrics.json", "tensorboard"])
def test_a_file_that_cannot_be_written_is_a_clear_error(tmp_path: Path, name: str):
    if name == "tensorboard":  # a folder
        (tmp_path / name).write_text("in the way")
    else:
        (tmp_path / name).mkdir()

    def whole() -> None:
        run = start(tmp_path, passes=1)
        run.train()
        run.test(5)

    with pytest.raises(CheckpointError, match=name):
        whole()


# --- evaluation -------------------------------------------------------------------------------------------------------


class Scripted:
    """Names the labels it is told for each canvas, then stops; looks at the middle cell, ``CELL``."""

    def __init__(self, env, plan: dict[int, list[int]]) -> None:
        self.env, self.plan = env, plan

    def initial(self, lanes: int) -> Tensor:
        return torch.zeros(lanes, dtype=torch.int64)

    def act(self, observation, state, deterministic=False, generator=None) -> Decision:
        phase, lanes = int(observation["phase"][0]), len(state)
        zero = torch.zeros(lanes)
        if phase == 3:
            labels = [
                self.plan[index][step] if step < len(self.plan[index]) else STOP
                for index, step in zip(self.env().state.example.canvas_index.tolist(), state.tolist(), strict=True)
            ]
            return Decision({"label": torch.tensor(labels)}, zero, zero, state + 1)
        action = {"attention": torch.zeros(lanes, 20), "location": torch.full((lanes,), CELL)}
        return Decision(action, zero, zero, state)


def truth(config: EnvConfig) -> list[list[int]]:
    canvases = make_env(config, 1).simulation.examples.compose(np.arange(config.size))
    return [[label for label in row.tolist() if label >= 0] for row in canvases.labels]


def evaluate_script(config: EnvConfig, plan: list[list[int]], monkeypatch: pytest.MonkeyPatch, lanes: int) -> dict:
    made: list = []
    real = evaluation_module.make_env
    with monkeypatch.context() as patch:
        patch.setattr(evaluation_module, "_LANES", lanes)
        patch.setattr(evaluation_module, "make_env", lambda *given: made.append(real(*given)) or made[-1])
        return score_agent(Scripted(lambda: made[-1], dict(enumerate(plan))), config, progress=False)


TEST = evaluation_config(ENV, "test", 17)


def test_evaluation_is_of_held_out_canvases_under_the_free_protocol():
    assert (TEST.split, TEST.protocol, TEST.size) == ("test", "free", 17)
    assert truth(TEST) != truth(dataclasses.replace(TEST, split="train"))


@pytest.mark.parametrize("lanes", [1, 5, 17, 500])
def test_naming_the_truth_scores_one_whatever_the_number_of_lanes(monkeypatch: pytest.MonkeyPatch, lanes: int):
    true = truth(TEST)
    scores = evaluate_script(TEST, true, monkeypatch, lanes)
    assert {name: scores[name] for name in SCORES} == dict.fromkeys(SCORES, 1.0)
    assert scores["count_error"]["mean"] == scores["total_error"] == 0
    objects = Counter(len(labels) for labels in true)
    by_count = {str(m): {"episodes": n, "exact_match": 1.0, "macro_f1": 1.0} for m, n in sorted(objects.items())}
    assert scores["by_count"] == by_count


def test_scores_by_count_by_hand():
    named = np.array([[1, 0], [2, 0], [0, 1], [1, 1]])
    true = np.array([[1, 0], [1, 1], [1, 0], [1, 1]])
    # one object: class 0 is hit once of (1 named + 2 true) / 2, class 1 never; two: 2 of 5 / 2, and 1 of 3 / 2
    assert scores_by_count(named, true) == {
        "1": {"episodes": 2, "exact_match": 0.5, "macro_f1": pytest.approx((2 / 3 + 0) / 2)},
        "2": {"episodes": 2, "exact_match": 0.5, "macro_f1": pytest.approx((4 / 5 + 2 / 3) / 2)},
    }


def test_order_does_not_matter_and_a_miss_is_a_miss(monkeypatch: pytest.MonkeyPatch):
    true = truth(TEST)
    said = [labels[::-1] for labels in true]
    several = next(i for i, labels in enumerate(true) if len(labels) > 1)
    said[several] = said[several][1:]  # one label short
    none = next(i for i in range(17) if i != several)
    said[none] = []
    scores = evaluate_script(TEST, said, monkeypatch, lanes=5)
    assert scores["exact_match"] == pytest.approx(15 / 17)
    assert scores["overall_precision"] == 1
    total = sum(map(len, true))
    assert scores["overall_recall"] == pytest.approx((total - 1 - len(true[none])) / total)


def test_too_many_labels_are_cut_off_after_max_objects_plus_one(monkeypatch: pytest.MonkeyPatch):
    scores = evaluate_script(TEST, [[3] * 50] * 17, monkeypatch, lanes=17)
    hits = sum(min(labels.count(3), 5) for labels in truth(TEST))
    assert scores["overall_precision"] == pytest.approx(hits / (17 * 5))


def test_saliency_at_glimpses_is_a_mean_over_glimpses_taken(monkeypatch: pytest.MonkeyPatch):
    scores = evaluate_script(TEST, [[]] * 17, monkeypatch, lanes=5)  # one meta-step each, two glimpses at one cell
    env = make_env(TEST, 17)
    env.reset(options={"index": np.arange(17)})
    raw = env.state.example.raw_saliency.flatten(1)
    # a cell at the minimum of S_1 has no fraction left to count (S3), so it counts as zero
    seen = torch.where(raw > raw.amin(dim=1, keepdim=True), raw, 0.0)
    assert seen[:, CELL].mean() > 0.1
    assert scores["attn_saliency"] == pytest.approx(seen[:, CELL].mean().item(), rel=1e-4)
    ratio = seen[:, CELL].sum() / seen.mean(dim=1).sum()
    assert scores["attn_saliency_ratio"] == pytest.approx(ratio.item(), rel=1e-4)


def test_without_glimpses_there_is_no_saliency_at_them():
    config = dataclasses.replace(TEST, glimpses=0)
    scores = score_agent(build(make_env(config, 1)), config, progress=False)
    assert scores["attn_saliency"] is scores["attn_saliency_ratio"] is None


def test_the_blind_guess_is_the_most_frequent_training_multiset():
    single = dataclasses.replace(ENV, task="single", max_objects=1)
    test = evaluation_config(single, "test", 40)
    labels = Counter(labels[0] for labels in truth(single))
    most = max(labels.values())
    best = [label for label, count in labels.items() if count == most]
    shares = [[true[0] for true in truth(test)].count(label) / 40 for label in best]
    guess = blind_guess(single, test)
    assert any(guess["exact_match"] == pytest.approx(share) for share in shares)


def test_the_blind_guess_of_counts_is_their_rounded_mean():
    images = np.zeros((10, 8, 8), np.uint8)
    labels = [[0, 1], [0, 1], [0, 1, 1, 1], [0, 1, 1, 1, 2]] + [[0, 0]] * 6
    own = EnvConfig(source="custom", images=images, labels=labels, class_names=["a", "b", "c"], split="all")
    guess = blind_guess(own, own)  # means of 1.6, 0.8 and 0.1; most frequent: two of a
    of_class = guess["count_error"]["by_class"]
    assert of_class == {"a": pytest.approx(0.4), "b": pytest.approx(0.8), "c": pytest.approx(0.1)}
    assert guess["total_error"] == pytest.approx((0 + 0 + 2 + 3) / 10)
    mean = guess["mean_counts"]["count_error"]  # two of a, one of b
    assert mean["by_class"] == {"a": pytest.approx(0.4), "b": pytest.approx((2 + 2 + 6) / 10), "c": pytest.approx(0.1)}
    assert mean["mean"] == pytest.approx(1.5 / 3)


def test_an_evaluation_of_uniform_glimpses_draws_the_same_each_time():
    env = make_env(TEST, 17)
    agent = build(env, dataclasses.replace(AGENT, location_policy="uniform"))
    draws = [
        collect(env, agent, np.arange(17), True, torch.Generator().manual_seed(s)).trajectory.locations for s in (0, 1)
    ]
    assert not torch.equal(draws[0][0], draws[1][0]), "another generator draws others"
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(score_agent(agent, TEST, progress=False))
    assert found[0] == found[1]


def test_uniform_glimpses_see_what_uniform_ones_see_and_greedy_ones_much_more():
    config, ratio = evaluation_config(dataclasses.replace(ENV, update="none"), "test", 100), {}
    for policy in ("uniform", "greedy"):
        agent = build(make_env(config, 1), dataclasses.replace(AGENT, location_policy=policy))
        ratio[policy] = score_agent(agent, config, progress=False)["attn_saliency_ratio"]
    assert ratio["uniform"] == pytest.approx(1, abs=0.4)
    assert ratio["greedy"] > 3


def test_pictured_episodes_are_the_evaluated_ones():
    env = make_env(TEST, 6)
    agent, indices = build(env), np.array([4, 0, 9, 9, 2, 1])
    rollout = collect(env, agent, indices, deterministic=True)
    for lane, trace in enumerate(record(agent, TEST, indices)):
        live, names = rollout.trajectory.live[:, lane], trace.phase == TEST.glimpses + 1
        looks = (trace.phase > 0) & ~names
        assert trace.label[names].tolist() == rollout.trajectory.labels[live, lane].tolist()
        assert trace.location[looks].tolist() == rollout.trajectory.locations[live, :, lane].flatten().tolist()
        np.testing.assert_allclose(
            trace.reward[trace.phase > 0], rollout.trajectory.rewards[live, :, lane].flatten(), atol=1e-5
        )
        np.testing.assert_allclose(
            trace.log_prob[trace.phase > 0], rollout.trajectory.log_probs[live, :, lane].flatten(), atol=1e-5
        )
        assert sorted(trace.labels.tolist()) == sorted(truth(TEST)[indices[lane]])
        assert trace.canvas_index == indices[lane]


def test_scores_of_an_agent_are_those_of_its_predictions():
    env = make_env(TEST, 17)
    agent = build(env)
    rollout = collect(env, agent, np.arange(17), deterministic=True)
    expected = multiset.scores(rollout.predicted.numpy(), rollout.trajectory.example.counts.numpy())
    scores = score_agent(agent, TEST, progress=False)
    assert {name: scores[name] for name in SCORES} == expected
