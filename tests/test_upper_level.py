"""The upper level learns: rewards, credit and loss by hand and by slow oracles; runs; agents of others, that draw or do not."""

import csv
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import agents
from agents.actor_critic import ActorCritic
from agents.config import AgentConfig, LearnerConfig
from agents.drawn_attention import FIRST_EXTENT, STD
from agents.evaluation import make_env, score_agent
from agents.learning import losses
from agents.learning.learner import Learner, Objective
from agents.learning.returns import standardised, upper_rewards
from agents.learning.run import Run, RunConfig
from agents.protocol import Decision, World
from agents.rollout import collect
from agents.tracing import record
from agents.trajectory import AttentionDraws, AttentionScores, Evaluation, Trajectory
from hsal_env.config import EnvConfig
from hsal_env.dynamics import Example
from hsal_env.errors import ConfigError
from hsal_env.trace import load, save
from hsal_env.vector_env import HSALVectorEnv

ENV = EnvConfig(
    source="digits",
    num_examples=64,
    protocol="teacher",
    features="store",
    include_image=False,
    components=9,
    update="peak",
)
AGENT = AgentConfig(meta_hidden=8, controller_hidden=16, location_hidden=8, attention_policy="drawn")
LEARNER = LearnerConfig(batch_size=16, passes=2, num_minibatches=2, learning_rate=3e-3)
WAYS = {
    "sampled": {"estimator": "sampled"},
    "log": {"estimator": "log"},
    "ppo": {"algorithm": "ppo"},
    "cross-entropy": {"algorithm": "cross-entropy"},
    "multiset-loss": {"algorithm": "multiset-loss"},
}
LANES, STOP = 8, 10
TERMS = {"upper", "upper_value", "upper_entropy"}


@pytest.fixture(scope="module")
def env() -> HSALVectorEnv:
    return make_env(ENV, LANES)


def drawing(env: HSALVectorEnv, **config) -> ActorCritic:
    torch.manual_seed(0)
    return ActorCritic(World.of(env.simulation.examples), dataclasses.replace(AGENT, **config))


def played(env: HSALVectorEnv, agent, seed: int = 0, **given) -> Trajectory:
    return collect(env, agent, np.arange(LANES), generator=torch.Generator().manual_seed(seed), **given).trajectory


# --- rewards ----------------------------------------------------------------------------------------------------------


def test_the_upper_rewards_by_hand():
    log_probs = torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 4).log()  # three labels and stop
    earned = torch.tensor([[1.0, -1, 1, -1], [-1, -1, -1, 1], [0, 0, 0, 0], [-1, -1, -1, -1]])
    free = upper_rewards(log_probs, earned)
    torch.testing.assert_close(free, torch.tensor([-0.6, -0.6, -1.0, -1.0]))
    teacher = upper_rewards(log_probs, earned, torch.tensor([False, False, True, False]))
    torch.testing.assert_close(teacher, torch.tensor([-0.6, -0.6, -0.6, -1.0]))


def test_the_upper_rewards_have_no_gradient():
    log_probs = torch.randn(2, 4, requires_grad=True).log_softmax(1)
    assert not upper_rewards(log_probs, torch.ones(2, 4)).requires_grad


@pytest.mark.parametrize("protocol", ["teacher", "free"])
def test_a_roll_out_has_the_rewards_of_the_controllers_distribution(protocol: str):
    """By the labels of ``evaluate``, label by label."""
    env = make_env(dataclasses.replace(ENV, protocol=protocol), LANES)
    agent = drawing(env)
    nn.init.normal_(agent.controller.label.weight)
    trajectory = played(env, agent)
    evaluation = agent.evaluate(trajectory)
    for lane in range(LANES):
        remaining = trajectory.example.counts[lane].tolist()
        objects = sum(remaining)
        for step in range(int(trajectory.live[:, lane].sum())):
            p = evaluation.label_log_probs[step, lane].exp().tolist()
            right = [label for label, count in enumerate(remaining) if count]
            if protocol == "teacher":
                right = [STOP] if step == objects else right
            elif not right:
                right = [STOP]
            expected = sum(p[label] for label in right) - 1
            assert trajectory.attention.rewards[step, lane].item() == pytest.approx(expected, abs=1e-4)
            if (said := int(trajectory.labels[step, lane])) != STOP and remaining[said]:
                remaining[said] -= 1


def test_labels_that_are_forced_decide_what_remains_to_be_rewarded(env: HSALVectorEnv):
    agent = drawing(env)
    forced = torch.zeros(env.simulation.rules.max_meta_steps, LANES, dtype=torch.int64)
    trajectory = played(env, agent, forced_labels=forced)
    evaluation = agent.evaluate(trajectory)
    right = upper_rewards(evaluation.label_log_probs, evaluation.label_rewards, trajectory.final)
    live = trajectory.live
    torch.testing.assert_close(trajectory.attention.rewards[live], right[live], rtol=0, atol=1e-5)


# --- credit -----------------------------------------------------------------------------------------------------------


def by_hand(rewards: list[float], values: list[float], live: list[bool] | None = None) -> Trajectory:
    """One lane of a trajectory that has nothing but an upper level."""
    steps = len(rewards)
    blank = torch.zeros(steps, 1)
    counts = torch.tensor([[steps - 1, 0]])
    return Trajectory(
        example=Example(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1), counts, torch.zeros(1, dtype=torch.int64)),
        locations=torch.zeros(steps, 0, 1, dtype=torch.int64),
        labels=blank.long(),
        rewards=blank[:, None],
        log_probs=blank[:, None],
        values=blank[:, None],
        live=torch.tensor(live or [True] * steps)[:, None],
        attention=AttentionDraws((), *(torch.tensor(part)[:, None] for part in (rewards, rewards, values))),
    )


def credit(trajectory: Trajectory, **settings):
    learner = Learner(nn.Linear(1, 1), LearnerConfig(batch_size=1, **settings), 1)  # any module: it does not act
    return learner._upper_credit(trajectory)


@pytest.mark.parametrize(
    ("gamma", "returns"), [(0.0, [-0.5, -0.25, -1.0]), (0.5, [-0.875, -0.75, -1.0]), (1.0, [-1.75, -1.25, -1.0])]
)
def test_returns_are_discounted_sums_over_this_and_later_meta_steps_by_hand(gamma: float, returns: list[float]):
    found = credit(by_hand([-0.5, -0.25, -1.0], [0.0, -0.5, -0.25]), upper_gamma=gamma)
    torch.testing.assert_close(found.returns.squeeze(1), torch.tensor(returns))
    apart = torch.tensor(returns) - torch.tensor([0.0, -0.5, -0.25])
    torch.testing.assert_close(found.advantage.squeeze(1), (apart - apart.mean()) / apart.std(correction=0))


def test_lambda_zero_reads_the_next_value_by_hand():
    found = credit(by_hand([-0.5, -0.25, -1.0], [0.0, -0.5, -0.25]), upper_gamma=0.5, upper_gae_lambda=0.0)
    torch.testing.assert_close(found.returns.squeeze(1), torch.tensor([-0.75, -0.375, -1.0]))


def test_each_level_has_a_discount_of_its_own():
    trajectory = by_hand([-0.5, -0.25, -1.0], [0.0, -0.5, -0.25])
    one, other = (credit(trajectory, upper_gamma=0.5, gamma=gamma) for gamma in (0.0, 1.0))
    assert torch.equal(one.returns, other.returns)


def test_what_comes_after_the_end_does_not_count():
    short = credit(by_hand([-0.5, -0.25], [0.0, -0.5]))
    long = credit(by_hand([-0.5, -0.25, -9.0], [0.0, -0.5, 7.0], [True, True, False]))
    torch.testing.assert_close(long.advantage[:2], short.advantage)
    assert long.advantage[2] == 0


def test_an_agent_that_draws_nothing_gets_no_credit():
    assert credit(by_hand([-0.5], [0.0])._replace(attention=None)) is None


def test_advantages_are_standardised_over_all_processes():
    advantage, live = torch.randn(5, 6), torch.rand(5, 6) < 0.7
    whole = standardised(advantage, live)
    expected = (advantage - advantage[live].mean()) / advantage[live].std(correction=0)
    torch.testing.assert_close(whole, torch.where(live, expected, 0.0))
    seen: list[Tensor] = []
    for part in (slice(0, 2), slice(2, 6)):
        standardised(advantage[:, part], live[:, part], lambda sums: seen.append(sums) or sums)
    halves = [
        standardised(advantage[:, part], live[:, part], lambda _: sum(seen)) for part in (slice(0, 2), slice(2, 6))
    ]
    torch.testing.assert_close(torch.cat(halves, dim=1), whole)


@pytest.mark.parametrize("live", [True, False])
def test_equal_advantages_are_zeros(live: bool):
    assert not standardised(torch.full((2, 3), -0.1), torch.full((2, 3), live)).any()


# --- the loss ---------------------------------------------------------------------------------------------------------


def scores_of(log_probs: list[float], values: list[float]) -> AttentionScores:
    parts = [torch.tensor(part)[:, None].requires_grad_() for part in (log_probs, values, [1.5] * len(values))]
    return AttentionScores(*parts)


def test_the_terms_of_reinforce_by_hand():
    trajectory, scores = by_hand([0.0, 0.0], [0.0, 0.0]), scores_of([-2.0, -3.0], [0.5, -0.5])
    advantage, returns = torch.tensor([[1.0], [-2.0]]), torch.tensor([[0.0], [-1.0]])
    terms = losses.upper_level(trajectory, scores, advantage, returns)
    assert {name: term.item() for name, term in terms.items()} == {
        "upper": 2.0 - 6.0, "upper_value": 0.25 + 0.25, "upper_entropy": -3.0,
    }  # fmt: skip
    (gradient,) = torch.autograd.grad(terms["upper"], scores.log_probs)
    assert torch.equal(gradient, -advantage)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "moves"),
    [
        (1.0, 2.0, -2.0, True),
        (1.5, 2.0, -2.4, False),
        (1.5, -2.0, 3.0, True),
        (0.5, -2.0, 1.6, False),
        (0.5, 2.0, -1.0, True),
    ],
)
def test_the_ratio_of_ppo_is_clipped_by_hand(ratio: float, advantage: float, loss: float, moves: bool):
    trajectory = by_hand([-1.0], [0.0])  # its log-probability is -1, too
    scores = scores_of([-1.0 + math.log(ratio)], [0.0])
    terms = losses.upper_level(trajectory, scores, torch.tensor([[advantage]]), torch.zeros(1, 1), clip_coef=0.2)
    assert terms["upper"].item() == pytest.approx(loss, abs=1e-5)
    (gradient,) = torch.autograd.grad(terms["upper"], scores.log_probs)
    assert bool(gradient.any()) == moves


def test_terms_are_means_over_episodes_and_ended_lanes_do_not_count():
    trajectory = by_hand([-1.0, -1.0], [0.0, 0.0], [True, False])
    scores = scores_of([-2.0, -50.0], [1.0, 70.0])
    terms = losses.upper_level(trajectory, scores, torch.tensor([[1.0], [9.0]]), torch.zeros(2, 1))
    assert {name: term.item() for name, term in terms.items()} == {
        "upper": 2.0,
        "upper_value": 1.0,
        "upper_entropy": -1.5,
    }


def test_before_the_first_step_the_ratio_of_ppo_is_one(env: HSALVectorEnv):
    agent = drawing(env)
    learner = Learner(agent, dataclasses.replace(LEARNER, batch_size=LANES, algorithm="ppo"), 1)
    rollout = collect(env, agent, np.arange(LANES), generator=torch.Generator().manual_seed(0))
    parts = learner._minibatches(rollout, torch.Generator().manual_seed(0))
    assert len(parts) == LEARNER.update_epochs * LEARNER.num_minibatches
    for part in parts:
        stored, live = part.trajectory.attention, part.trajectory.live
        scores = agent.evaluate(part.trajectory).attention
        torch.testing.assert_close(scores.log_probs[live], stored.log_probs[live], rtol=0, atol=1e-4)
        clipped, plain = (
            torch.autograd.grad(
                losses.upper_level(part.trajectory, scores, *part.upper, clip)["upper"], scores.log_probs
            )[0]
            for clip in (0.2, None)
            if (scores := agent.evaluate(part.trajectory).attention)
        )
        torch.testing.assert_close(clipped, plain, rtol=1e-3, atol=1e-5)
    together = torch.cat([part.upper.returns for part in parts[: LEARNER.num_minibatches]], dim=1)
    whole = learner._upper_credit(rollout.trajectory).returns
    torch.testing.assert_close(together.sort(dim=1).values, whole.sort(dim=1).values)


@pytest.mark.parametrize("coefficient", ["upper_coef", "upper_vf_coef", "upper_ent_coef"])
def test_each_term_has_a_weight_of_its_own(env: HSALVectorEnv, coefficient: str):
    agent = drawing(env)
    found = []
    for weight in (0.0, 2.0):
        config = dataclasses.replace(LEARNER, batch_size=LANES, **{coefficient: weight})
        learner = Learner(agent, config, 1)
        rollout = collect(env, agent, np.arange(LANES), generator=torch.Generator().manual_seed(0))
        (part,) = learner._minibatches(rollout, torch.Generator())
        loss, terms = Objective(agent, config)(part)
        assert set(terms) >= TERMS
        found.append(loss.item())
    term = {"upper_coef": "upper", "upper_vf_coef": "upper_value", "upper_ent_coef": "upper_entropy"}[coefficient]
    assert found[1] - found[0] == pytest.approx(2 * terms[term].item(), abs=1e-3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("upper_gamma", 1.5), ("upper_gamma", -0.1), ("upper_gae_lambda", 2.0), ("upper_coef", -1.0),
        ("upper_vf_coef", math.inf), ("upper_ent_coef", math.nan), ("upper_ent_coef", -0.5),
    ],
)  # fmt: skip
def test_settings_outside_their_range_are_named(field: str, value: float):
    with pytest.raises(ConfigError, match=field):
        LearnerConfig(**{field: value})


# --- runs -------------------------------------------------------------------------------------------------------------


class UnpicturedRun(Run):
    """Its pictures nobody looks at: drawing them takes longer than learning."""

    def _picture(self, config: EnvConfig, episodes: int) -> np.ndarray:
        return np.zeros((8, 8, 3), np.uint8)


def start(folder: Path, resume: bool = False, agent_name: str = "hsal", **learner) -> Run:
    """A run of eight updates in two passes, with a row of progress every other update."""
    config = dataclasses.replace(LEARNER, **learner)
    return UnpicturedRun(
        RunConfig(folder, ENV, agent_name, AGENT, config, 0, "cpu", val_episodes=12, log_every=2), resume
    )


def progress(folder: Path) -> list[dict[str, str]]:
    with (folder / "progress.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def same(one: Run, other: Run) -> bool:
    parts = zip(one.agent.state_dict().values(), other.agent.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in parts)


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str):
    whole = start(tmp_path / "whole", **WAYS[way])
    whole.train()
    run, update = start(tmp_path / "parts", **WAYS[way]), Learner.update
    with monkeypatch.context() as patch:

        def interrupted(learner: Learner, *given):
            if learner.step == 6:
                raise KeyboardInterrupt
            return update(learner, *given)

        patch.setattr(Learner, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.train()
    del run
    resumed = start(tmp_path / "parts", resume=True, **WAYS[way])
    assert resumed.learner.step == 4
    assert not same(resumed, whole)
    resumed.train()
    assert same(resumed, whole)
    assert progress(tmp_path / "parts") == progress(tmp_path / "whole")
    row = progress(tmp_path / "whole")[-1]
    assert {f"loss/{term}" for term in TERMS} <= set(row)
    assert -1 <= float(row["reward/upper"]) <= 0


def test_a_checkpoint_brings_the_agent_back(tmp_path: Path):
    run = start(tmp_path)
    run.train()
    tested = run.test(24)["test"]
    loaded = agents.load(tmp_path)
    assert loaded.agent.config == AGENT
    config = dataclasses.replace(ENV, split="test", protocol="free", num_examples=24)
    assert score_agent(loaded.agent, config, progress=False)["exact_match"] == tested["exact_match"]
    assert {"focus", "several", "pointing"} <= set(tested)


@pytest.mark.parametrize("way", ["log", "ppo"])
def test_the_upper_level_learns_what_it_is_rewarded_for(env: HSALVectorEnv, monkeypatch: pytest.MonkeyPatch, way: str):
    """Where its reward is the extent of its mask, and it is drawn about the cell 24."""
    agent, real = drawing(env, saliency_prior=0.0), collect

    def rewarded(*given, **named):
        rollout = real(*given, **named)
        attention = rollout.trajectory.attention
        reward = (attention.draws.cell == 24).float() + attention.draws.extent - 2
        return rollout._replace(trajectory=rollout.trajectory._replace(attention=attention._replace(rewards=reward)))

    monkeypatch.setattr("agents.learning.learner.collect", rewarded)
    config = dataclasses.replace(
        LEARNER, batch_size=LANES, learning_rate=0.02, upper_gamma=0.0, warmup=0.0, **WAYS[way]
    )
    learner = Learner(agent, config, 120)
    for _ in range(120):
        learner.update(env, np.arange(LANES))
    draws = played(env, agent).attention.draws
    assert (draws.cell == 24).float().mean() > 0.8
    assert draws.extent.mean() > FIRST_EXTENT + 0.2


def test_a_tiny_training_raises_the_upper_reward(env: HSALVectorEnv):
    agent = drawing(env)
    learner = Learner(agent, dataclasses.replace(LEARNER, batch_size=LANES, learning_rate=0.01, estimator="log"), 60)
    rewards = [float(learner.update(env, np.arange(LANES))["reward/upper"]) for _ in range(60)]
    assert max(rewards[:5]) < -0.6
    assert min(rewards[-5:]) > max(rewards[:5]) + 0.1


# --- agents of others -------------------------------------------------------------------------------------------------


class Dreamer(nn.Module):
    """Draws raw attention, all 4K numbers, about a mean that it learns. The level below is HSAL's."""

    def __init__(self, world: World, config: AgentConfig) -> None:
        super().__init__()
        self.below = ActorCritic(world, dataclasses.replace(config, attention_policy="learned"))
        self.mean = nn.Parameter(torch.zeros(4 * world.rules.components))
        self.baseline = nn.Parameter(torch.zeros(()))

    def initial(self, lanes: int):
        return self.below.initial(lanes)

    def dreams(self, drawn: Tensor) -> AttentionScores:
        normal = torch.distributions.Normal(self.mean.expand_as(drawn), 0.5)
        log_prob = normal.log_prob(drawn).sum(-1)
        return AttentionScores(log_prob, self.baseline.expand_as(log_prob), normal.entropy().sum(-1))

    def act(self, observation, state, deterministic=False, generator=None) -> Decision:
        decision = self.below.act(observation, state, deterministic, generator)
        if int(observation["phase"][0]):
            return decision
        mean = self.mean.detach().expand(len(decision.value), -1)
        drawn = mean if deterministic else mean + 0.5 * torch.empty_like(mean).normal_(generator=generator)
        scores = self.dreams(drawn)
        return Decision(
            {"attention": (drawn / 8).clamp(-1, 1)}, scores.log_probs, scores.values, decision.state, draws=drawn
        )

    def evaluate(self, trajectory: Trajectory) -> Evaluation:
        drawn = trajectory.attention.draws  # [M, B, 4K]
        steps = iter(drawn)

        def placed(saliency: Tensor, last_label: Tensor, state):
            _, after = ActorCritic.attend(self.below, saliency, last_label, state)
            return next(steps)[self.order][: len(saliency)].clamp(-8, 8), after

        self.order = trajectory.live.sum(dim=0).argsort(descending=True, stable=True)
        self.below.attend = placed
        evaluation = self.below.evaluate(trajectory._replace(attention=None))
        del self.below.attend
        return evaluation._replace(attention=self.dreams(drawn))


class Forgetful(Dreamer):
    """Forgets to score what it drew."""

    def evaluate(self, trajectory: Trajectory) -> Evaluation:
        return super().evaluate(trajectory)._replace(attention=None)


class Secretive(Dreamer):
    """Does not tell how probable its labels are."""

    def act(self, *given, **named) -> Decision:
        return super().act(*given, **named)._replace(log_probs=None)


class Plain(nn.Module):
    """Knows nothing of drawn attention: its decisions and scores have only the parts that there were before."""

    def __init__(self, world: World, config: AgentConfig) -> None:
        super().__init__()
        self.below = ActorCritic(world, dataclasses.replace(config, attention_policy="learned"))

    def initial(self, lanes: int):
        return self.below.initial(lanes)

    def act(self, *given, **named) -> Decision:
        return Decision(*self.below.act(*given, **named)[:4])

    def evaluate(self, trajectory: Trajectory) -> Evaluation:
        return Evaluation(*self.below.evaluate(Trajectory(*trajectory[:7]))[:5])


def test_an_agent_that_knows_nothing_of_drawn_attention_learns_as_before(tmp_path: Path):
    run = start(tmp_path / "plain", agent_name=f"{__name__}:Plain")
    run.train()
    assert not any("upper" in name for row in progress(tmp_path / "plain") for name in row)
    loaded = agents.load(tmp_path / "plain", trust=True)
    trace = record(loaded.agent, ENV, 0)
    assert np.isnan(trace.log_prob[trace.phase == 0]).all()
    assert (trace.attended == -1).all()


@pytest.mark.parametrize("way", ["sampled", "ppo"])
def test_another_agent_may_draw_what_it_likes(tmp_path: Path, env: HSALVectorEnv, way: str):
    run = start(tmp_path, agent_name=f"{__name__}:Dreamer", **WAYS[way])
    run.train()
    assert run.agent.mean.abs().max() > 0.01
    assert run.agent.baseline.item() < 0  # rewards are not above 0
    agent = agents.load(tmp_path, trust=[f"{__name__}:Dreamer"]).agent
    trajectory = played(env, agent)
    live = trajectory.live
    found = agent.evaluate(trajectory).attention
    torch.testing.assert_close(found.log_probs[live], trajectory.attention.log_probs[live])
    trace = record(agent, ENV, 0)
    assert np.isfinite(trace.log_prob).all()
    assert (trace.attended == -1).all()  # it draws about no cell
    assert np.isnan(trace.entropy[trace.phase == 0]).all()  # and does not tell


def test_draws_without_scores_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="expected the scores of the draws as attention in the Evaluation"):
        start(tmp_path, agent_name=f"{__name__}:Forgetful").train()


def test_draws_without_probabilities_of_labels_are_refused(env: HSALVectorEnv):
    agent = Secretive(World.of(env.simulation.examples), AGENT)
    with pytest.raises(ConfigError, match="expected log_probs in its Decision of a label, got None"):
        played(env, agent)


# --- traces -----------------------------------------------------------------------------------------------------------


def test_traces_show_what_the_upper_level_drew(env: HSALVectorEnv, tmp_path: Path):
    agent = drawing(env)
    traces = record(agent, ENV, np.arange(6), deterministic=False, seed=3)
    for trace in traces:
        attends = trace.phase == 0
        assert ((trace.attended >= 0) == attends).all()
        assert np.isfinite(trace.log_prob).all()
        labels = torch.from_numpy(np.append(STOP + 1, trace.label[trace.phase == 3]))
        state = agent.initial(1)
        for n in np.flatnonzero(attends):  # what the agent says of the recorded states
            saliency = torch.from_numpy(trace.saliency[n : n + 1])
            attended = agent.draw(saliency, labels[trace.meta_step[n]][None], state, deterministic=True)
            state = attended.state
            assert attended.scores.values.item() == pytest.approx(trace.value[n], abs=1e-5)
            assert attended.scores.entropies.item() == pytest.approx(trace.entropy[n], abs=1e-4)
            # the log-probability is that of the recorded cell, and of numbers that are not recorded
            most = attended.log_probs[0, trace.attended[n]].item() - 3 * math.log(STD * math.sqrt(2 * math.pi))
            assert most - 20 < trace.log_prob[n] < most
    assert len({trace.attended[0] for trace in traces}) > 1
    save(traces, tmp_path / "traces.npz")
    found = load(tmp_path / "traces.npz")
    assert all((one.attended == two.attended).all() for one, two in zip(found, traces, strict=True))


def test_a_trace_of_an_older_file_has_no_attended_cell(env: HSALVectorEnv, tmp_path: Path):
    (trace,) = record(drawing(env), ENV, [0])
    save([trace], tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz") as stored:
        np.savez(tmp_path / "old.npz", **{name: stored[name] for name in stored.files if name != "0/attended"})
    (old,) = load(tmp_path / "old.npz")
    assert (trace.attended[trace.phase == 0] >= 0).all()
    assert (old.attended == -1).all()
