"""The objectives: hand-worked numbers, and gradients against the enumeration of every course an episode can take."""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.actor_critic import ActorCritic
from agents.config import AgentConfig, LearnerConfig
from agents.learning import losses
from agents.learning.learner import Objective
from agents.learning.returns import advantages
from agents.protocol import World
from agents.trajectory import Evaluation, Trajectory
from hsal_env.dynamics import Example
from hsal_env.rules import Rules

LN2, LN3 = math.log(2), math.log(3)


def example(counts: Tensor, cells: int) -> Example:
    lanes = len(counts)
    return Example(torch.zeros(lanes, 1, 1, cells), torch.zeros(lanes, 1, cells), counts, torch.arange(lanes))


def flat(values: list[float], kinds: int = 2) -> Tensor:
    """Decisions of one lane, in order, as ``[M, k + 1, 1]``."""
    return torch.tensor(values).view(-1, kinds, 1)


# --- advantages -------------------------------------------------------------------------------------------------------


def test_advantages_by_hand():
    rewards, values = flat([1.0, -1.0, 0.5, 1.0]), flat([0.5, 0.0, 0.25, -0.5])
    live = torch.ones(2, 1, dtype=torch.bool)
    # gamma = lambda = 1/2. delta: 1 + 0 - .5, -1 + .125 - 0, .5 - .25 - .25, 1 + 0 + .5; A_n = delta_n + A_{n+1} / 4
    expected = flat([0.5 - 0.78125 / 4, -0.875 + 0.375 / 4, 0.0 + 1.5 / 4, 1.5])
    assert torch.equal(advantages(rewards, values, live, 0.5, 0.5), expected)


def test_immediate_credit_by_hand():
    rewards, values = flat([1.0, -1.0, 0.5, 1.0]), flat([0.5, 0.0, 0.25, -0.5])
    live = torch.ones(2, 1, dtype=torch.bool)
    assert torch.equal(advantages(rewards, values, live, 0.0, 1.0), flat([0.5, -1.0, 0.25, 1.5]))


def test_what_comes_after_the_end_does_not_count_by_hand():
    rewards, values = flat([1.0, -1.0, 50.0, 60.0]), flat([0.5, 0.0, 70.0, 80.0])
    live = torch.tensor([[True], [False]])
    assert torch.equal(advantages(rewards, values, live, 0.5, 0.5), flat([0.5 - 1 / 4, -1.0, 0.0, 0.0]))


def slow_advantages(rewards: Tensor, values: Tensor, live: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """The double sum of the definition, lane by lane."""
    out = torch.zeros_like(rewards)
    _, kinds, lanes = rewards.shape
    for lane in range(lanes):
        length = int(live[:, lane].sum()) * kinds
        r = [float(rewards[n // kinds, n % kinds, lane]) for n in range(length)]
        v = [float(values[n // kinds, n % kinds, lane]) for n in range(length)] + [0.0]
        for n in range(length):
            out[n // kinds, n % kinds, lane] = sum(
                (gamma * gae_lambda) ** (j - n) * (r[j] + gamma * v[j + 1] - v[j]) for j in range(n, length)
            )
    return out


def random_decisions(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 5, 3, 6, generator=generator)
    lengths = torch.tensor([1, 2, 3, 4, 5, 5])
    return rewards, values, torch.arange(5)[:, None] < lengths


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("gae_lambda", [0.0, 0.7, 1.0])
def test_advantages_equal_the_slow_definition(gamma: float, gae_lambda: float):
    decisions = random_decisions()
    expected = slow_advantages(*decisions, gamma, gae_lambda)
    torch.testing.assert_close(advantages(*decisions, gamma, gae_lambda), expected, rtol=1e-5, atol=1e-5)


def test_lambda_one_is_the_return_minus_the_value():
    rewards, values, live = random_decisions()
    masked = torch.where(live[:, None], rewards, 0.0).flatten(0, 1)
    to_go = masked.flip(0).cumsum(0).flip(0).view_as(rewards)
    expected = torch.where(live[:, None], to_go - values, 0.0)
    torch.testing.assert_close(advantages(rewards, values, live, 1.0, 1.0), expected, rtol=1e-5, atol=1e-5)


# --- a toy with free logits, small enough to enumerate ----------------------------------------------------------------

CELLS, CLASSES, STEPS = 3, 2, 3  # two objects, so three meta-steps, one glimpse each
PRIORITY = [0.0, 0.4, 1.0]
COURSES = list(itertools.product(itertools.product(range(CELLS), range(CLASSES + 1)), repeat=STEPS))
MULTISETS = [(1, 1), (2, 0)]

Logits = tuple[Tensor, Tensor]  # of locations [M, cells], of labels [M, C + 1]


def toy_logits(seed: int = 0) -> Logits:
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(STEPS, n, generator=generator, dtype=torch.float64) for n in (CELLS, CLASSES + 1)]
    return draw[0].requires_grad_(), draw[1].requires_grad_()


def label_reward(label: int, remaining: Counter, step: int) -> float:
    if step == STEPS - 1:  # meta-step m + 1
        return 0.0
    return 1.0 if remaining[label] else -1.0


def objective(policy: Logits, reach: Logits, multiset: tuple[int, int]) -> Tensor:
    """Expected sum of rewards by recursion over all courses: ``policy`` decides, ``reach`` says how often we get there.

    With ``reach`` detached its gradient is that of immediate credit; with ``reach = policy`` it is the true gradient.
    """
    locations, labels = (part.softmax(-1) for part in policy)
    onwards = reach[1].softmax(-1)

    def visit(step: int, remaining: Counter) -> Tensor:
        if step == STEPS:
            return torch.zeros((), dtype=torch.float64)
        total = sum(locations[step, cell] * PRIORITY[cell] for cell in range(CELLS))
        for label in range(CLASSES + 1):
            left = remaining.copy()
            if left[label]:
                left[label] -= 1
            total = total + labels[step, label] * label_reward(label, remaining, step)
            total = total + onwards[step, label] * visit(step + 1, left)
        return total

    return visit(0, Counter({label: count for label, count in enumerate(multiset) if count}))


def toy(logits: Logits, multiset: tuple[int, int]) -> tuple[Trajectory, Evaluation, Tensor]:
    """All courses as lanes, their scores, and their probabilities."""
    lanes = len(COURSES)
    rewards = torch.zeros(STEPS, 2, lanes, dtype=torch.float64)
    label_rewards = torch.zeros(STEPS, lanes, CLASSES + 1, dtype=torch.float64)
    for lane, course in enumerate(COURSES):
        remaining = Counter({label: count for label, count in enumerate(multiset) if count})
        for step, (cell, label) in enumerate(course):
            for other in range(CLASSES + 1):
                label_rewards[step, lane, other] = label_reward(other, remaining, step)
            rewards[step, 0, lane], rewards[step, 1, lane] = PRIORITY[cell], label_reward(label, remaining, step)
            if remaining[label]:
                remaining[label] -= 1
    decisions = torch.tensor(COURSES)  # [N, M, 2]
    locations, labels = decisions[..., 0].T, decisions[..., 1].T
    scores = [part.log_softmax(-1) for part in logits]
    generator = torch.Generator().manual_seed(7)
    values = torch.randn(STEPS, 2, 1, generator=generator, dtype=torch.float64).expand(-1, -1, lanes)
    evaluation = Evaluation(
        location_log_probs=scores[0][:, None, None].expand(-1, 1, lanes, -1),
        label_log_probs=scores[1][:, None].expand(-1, lanes, -1),
        values=values,
        location_rewards=torch.tensor(PRIORITY, dtype=torch.float64).expand(STEPS, 1, lanes, -1),
        label_rewards=label_rewards,
    )
    trajectory = Trajectory(
        example=example(torch.tensor([multiset]).expand(lanes, -1), CELLS),
        locations=locations[:, None],
        labels=labels,
        rewards=rewards,
        log_probs=torch.zeros_like(rewards),
        values=values,
        live=torch.ones(STEPS, lanes, dtype=torch.bool),
    )
    log_probs = losses.taken(trajectory, evaluation).detach()
    trajectory = trajectory._replace(log_probs=log_probs)
    return trajectory, evaluation, log_probs.sum(dim=(0, 1)).exp()


def policy_gradient(terms: dict[str, Tensor], logits: Logits) -> Tensor:
    """Ascent direction of the location and label terms, as one vector."""
    loss = terms["location"] + terms["label"]
    return -torch.cat([part.flatten() for part in torch.autograd.grad(loss, logits, retain_graph=True)])


def true_gradient(logits: Logits, multiset: tuple[int, int], immediate: bool) -> Tensor:
    reach = tuple(part.detach() for part in logits) if immediate else logits
    gradient = torch.autograd.grad(objective(logits, reach, multiset), logits)
    return torch.cat([part.flatten() for part in gradient])


def test_the_toy_has_every_course_once():
    assert len(set(COURSES)) == (CELLS * (CLASSES + 1)) ** STEPS == 729
    *_, probability = toy(toy_logits(), (1, 1))
    assert probability.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("multiset", MULTISETS)
@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_sampled_reinforce_is_unbiased(multiset: tuple[int, int], gamma: float):
    logits = toy_logits()
    trajectory, evaluation, probability = toy(logits, multiset)
    advantage = advantages(trajectory.rewards, trajectory.values, trajectory.live, gamma, 1.0)
    weighted = advantage * probability * len(COURSES)  # the loss is a mean over lanes; this makes it an expectation
    gradient = policy_gradient(losses.reinforce(trajectory, evaluation, weighted), logits)
    expected = true_gradient(logits, multiset, immediate=gamma == 0)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


def test_the_two_kinds_of_credit_differ_on_the_toy():
    logits = toy_logits()
    apart = true_gradient(logits, (1, 1), immediate=True) - true_gradient(logits, (1, 1), immediate=False)
    assert apart.abs().max() > 0.1


@pytest.mark.parametrize("multiset", MULTISETS)
def test_the_expected_reward_has_the_gradient_that_reinforce_estimates(multiset: tuple[int, int]):
    logits = toy_logits()
    trajectory, evaluation, probability = toy(logits, multiset)
    weight = (probability * len(COURSES))[:, None]
    weighted = evaluation._replace(
        location_rewards=evaluation.location_rewards * weight, label_rewards=evaluation.label_rewards * weight
    )
    terms = losses.expected_reward(trajectory, weighted)
    expected = true_gradient(logits, multiset, immediate=True)
    torch.testing.assert_close(policy_gradient(terms, logits), expected, rtol=1e-6, atol=1e-8)
    assert -(terms["location"] + terms["label"]).item() == pytest.approx(objective(logits, logits, multiset).item())


@pytest.mark.parametrize("name", ["sampled", "exact"])
def test_many_samples_average_to_the_gradient(name: str):
    logits, samples = toy_logits(), 40_000
    trajectory, evaluation, probability = toy(logits, (1, 1))
    lanes = probability.multinomial(samples, replacement=True, generator=torch.Generator().manual_seed(0))
    drawn = trajectory.lanes(lanes)
    scores = Evaluation(
        *(part.index_select(axis, lanes) for part, axis in zip(evaluation[:5], (2, 1, 2, 2, 1), strict=True))
    )
    advantage = advantages(drawn.rewards, drawn.values, drawn.live, 0.0, 1.0)
    terms = losses.reinforce(drawn, scores, advantage) if name == "sampled" else losses.expected_reward(drawn, scores)
    gradient = policy_gradient(terms, logits)
    # a score has a standard deviation of at most 1/2: five standard errors of the mean
    tolerance = 5 * advantage.abs().max().item() / 2 / math.sqrt(samples)
    assert tolerance < 0.05
    torch.testing.assert_close(gradient, true_gradient(logits, (1, 1), immediate=True), rtol=0, atol=tolerance)


# --- the log form -----------------------------------------------------------------------------------------------------


def one_episode(location_logits: Tensor, label_logits: Tensor) -> tuple[Trajectory, Evaluation]:
    """One lane with one object of class 0, k = 1: a rewarded meta-step, then the final one."""
    trajectory = Trajectory(
        example=example(torch.tensor([[1, 0]]), CELLS),
        locations=torch.tensor([[[2]], [[0]]]),
        labels=torch.tensor([[0], [1]]),
        rewards=torch.tensor([[[1.0], [1.0]], [[0.0], [0.0]]]),
        log_probs=torch.zeros(2, 2, 1),
        values=torch.zeros(2, 2, 1),
        live=torch.ones(2, 1, dtype=torch.bool),
    )
    evaluation = Evaluation(
        location_log_probs=location_logits.log_softmax(-1)[:, None, None],
        label_log_probs=label_logits.log_softmax(-1)[:, None],
        values=torch.zeros(2, 2, 1),
        location_rewards=torch.tensor(PRIORITY).expand(2, 1, 1, -1),
        label_rewards=torch.tensor([[[1.0, -1.0, -1.0]], [[0.0, 0.0, 0.0]]]),
    )
    return trajectory, evaluation


def test_the_expected_success_by_hand():
    location = torch.tensor([[0.2, 0.5, 0.3], [0.0, 0.0, 1.0]]).clamp(min=1e-9).log()
    label = torch.tensor([[0.1, 0.2, 0.7], [0.25, 0.25, 0.5]]).log()
    trajectory, evaluation = one_episode(location, label)
    terms = losses.expected_success(trajectory, evaluation)
    # locations earn .5 * .4 + .3 * 1 = 1/2, then 1; the right label has 1/10; the last meta-step's label is not rewarded
    assert terms["location"].item() == pytest.approx(-1.5)
    assert terms["label"].item() == pytest.approx(math.log(10), abs=1e-4)
    assert terms["stop"].item() == pytest.approx(LN2)


def test_the_log_forms_gradient_is_the_exact_ones_over_the_expected_score():
    torch.manual_seed(0)
    logits = torch.randn(2, CELLS).requires_grad_(), torch.randn(2, CLASSES + 1).requires_grad_()
    trajectory, evaluation = one_episode(*logits)
    log, exact = losses.expected_success(trajectory, evaluation), losses.expected_reward(trajectory, evaluation)
    assert torch.equal(log["location"], exact["location"])
    (gradient,) = torch.autograd.grad(log["label"], logits[1], retain_graph=True)
    (of_reward,) = torch.autograd.grad(exact["label"], logits[1], retain_graph=True)
    expected_score = logits[1].detach().softmax(-1)[0, 0]  # label 0 alone is rewarded
    assert gradient[0].abs().max() > 0.1
    torch.testing.assert_close(gradient[0], of_reward[0] / 2 / expected_score, rtol=1e-3, atol=1e-5)  # s = (1 + r) / 2
    assert not gradient[1].any()


def test_the_log_form_is_finite_where_nothing_can_be_earned():
    location, label = torch.zeros(2, CELLS).requires_grad_(), torch.zeros(2, CLASSES + 1).requires_grad_()
    trajectory, evaluation = one_episode(location, label)
    evaluation = evaluation._replace(
        location_rewards=torch.zeros(2, 1, 1, CELLS), label_rewards=-torch.ones(2, 1, CLASSES + 1)
    )
    terms = losses.expected_success(trajectory, evaluation)
    loss = terms["location"] + terms["label"]
    loss.backward()
    assert loss.isfinite()
    torch.testing.assert_close(location.grad, torch.zeros(2, CELLS))


# --- the best order ---------------------------------------------------------------------------------------------------


def test_the_best_order_is_the_one_that_trying_all_of_them_finds():
    random = torch.Generator().manual_seed(0)
    log_probs = torch.randn(4, 50, 4, generator=random).log_softmax(-1)  # of 3 labels and stop at 4 meta-steps
    counts = torch.randint(0, 3, (50, 3), generator=random)
    counts[counts.sum(dim=1) > 4] = 1
    named = torch.arange(4)[:, None] < counts.sum(dim=1)
    found = losses.best_order(log_probs, counts, named)
    several = 0
    for lane, row in enumerate(counts):
        labels = torch.arange(3).repeat_interleave(row).tolist()
        orders = {*permutations(labels)}
        several += len(orders) > 1

        def score(order: tuple[int, ...], lane: int = lane) -> float:
            return sum(log_probs[step, lane, label].item() for step, label in enumerate(order))

        assert (*found[: len(labels), lane].tolist(),) == max(orders, key=score)
        assert (found[len(labels) :, lane] == -1).all()
    assert several > 20


def test_of_more_meta_steps_than_labels_those_that_suit_least_are_left_out():
    p = torch.tensor([[0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.8, 0.1, 0.1]])
    every = torch.ones(3, 1, dtype=torch.bool)
    assert losses.best_order(p.log()[:, None], torch.tensor([[1, 0]]), every).squeeze(1).tolist() == [-1, -1, 0]
    assert losses.best_order(p.log()[:, None], torch.tensor([[4, 0]]), every).squeeze(1).tolist() == [0, 0, 0]
    assert losses.best_order(p.log()[:, None], torch.tensor([[0, 0]]), every).squeeze(1).tolist() == [-1, -1, -1]
    impossible = torch.zeros(3, 1, 3).log()
    assert losses.best_order(impossible, torch.tensor([[1, 2]]), every).sum() == 2


def test_the_assigned_success_by_hand():
    """Two meta-steps and labels 0 and 1: said in the order 1, 0 they have 0.9 * 0.6, in the other 0.1 * 0.4."""
    location = torch.zeros(2, CELLS)
    trajectory, evaluation = one_episode(location, torch.zeros(2, CLASSES + 1))
    labels = torch.tensor([[[0.1, 0.9, 0.0]], [[0.6, 0.4, 0.0]], [[0.2, 0.3, 0.5]]]).clamp(min=1e-9).log()
    thrice = torch.tensor([0, 0, 1])
    trajectory = Trajectory(example(torch.tensor([[1, 1]]), CELLS), *(part[thrice] for part in trajectory[1:7]))
    evaluation = Evaluation(
        evaluation.location_log_probs[thrice],
        labels.requires_grad_(),
        evaluation.values[thrice],
        evaluation.location_rewards[thrice],
        evaluation.label_rewards[thrice],
    )
    terms = losses.assigned_success(trajectory, evaluation)
    assert terms["label"].item() == pytest.approx(-math.log(0.9) - math.log(0.6))
    assert terms["stop"].item() == pytest.approx(LN2)
    (gradient,) = torch.autograd.grad(terms["label"], evaluation.label_log_probs)
    assert gradient.squeeze(1).tolist() == [[0, -1, 0], [-1, 0, 0], [0, 0, 0]]
    assert terms["location"] == losses.expected_success(trajectory, evaluation)["location"]


# --- PPO --------------------------------------------------------------------------------------------------------------


def test_before_the_first_step_ppo_is_sampled_reinforce():
    logits = toy_logits()
    trajectory, evaluation, _ = toy(logits, (1, 1))
    advantage = advantages(trajectory.rewards, trajectory.values, trajectory.live, 0.0, 1.0)
    ppo = losses.ppo(trajectory, evaluation, advantage, 0.2)
    reinforce = losses.reinforce(trajectory, evaluation, advantage)
    gradient = policy_gradient(ppo, logits)
    assert gradient.abs().max() > 0.01
    torch.testing.assert_close(gradient, policy_gradient(reinforce, logits))
    for name in ("stop", "value", "entropy", "location_entropy"):
        torch.testing.assert_close(ppo[name], reinforce[name])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "learns"),
    [
        (1.1, 2.0, -2.2, True),  # inside the range
        (0.9, -2.0, 1.8, True),
        (1.5, 1.0, -1.2, False),  # gone far enough up
        (0.5, -1.0, 0.8, False),  # gone far enough down
        (1.5, -1.0, 1.5, True),  # wrong way: pulled back in full
        (0.5, 1.0, -0.5, True),
    ],
)
@pytest.mark.parametrize("kind", ["location", "label"])
def test_clipping_by_hand(kind: str, ratio: float, advantage: float, loss: float, learns: bool):
    logits = torch.randn(2, CELLS).requires_grad_(), torch.randn(2, CLASSES + 1).requires_grad_()
    trajectory, evaluation = one_episode(*logits)
    now = losses.taken(trajectory, evaluation).detach()
    only = torch.zeros(2, 2, 1)
    row = {"location": 0, "label": 1}[kind]
    only[0, row] = 1.0  # this decision alone has an advantage
    trajectory = trajectory._replace(log_probs=now - math.log(ratio))
    terms = losses.ppo(trajectory, evaluation, only * advantage, 0.2)
    assert terms[kind].item() == pytest.approx(loss)
    gradient = torch.autograd.grad(terms[kind], logits[row])[0]
    assert bool(gradient.abs().max() > 1e-3) is learns
    other = {"location": "label", "label": "location"}[kind]
    assert terms[other].item() == 0


# --- stop, value, entropy ---------------------------------------------------------------------------------------------


def two_lanes() -> tuple[Trajectory, Evaluation]:
    """Lane 0 has one object and ends after two meta-steps, lane 1 has two; k = 1, uniform policy, value 1/2."""
    trajectory = Trajectory(
        example=example(torch.tensor([[1, 0], [1, 1]]), CELLS),
        locations=torch.tensor([[[0, 1]], [[2, 0]], [[1, 1]]]),
        labels=torch.tensor([[0, 1], [1, 2], [2, 0]]),
        rewards=torch.tensor([[[1.0, 0.0], [1.0, 1.0]], [[0.0, 1.0], [0.0, -1.0]], [[0.0, 0.5], [0.0, 0.0]]]),
        log_probs=torch.full((3, 2, 2), -LN3),
        values=torch.full((3, 2, 2), 0.5),
        live=torch.tensor([[True, True], [True, True], [False, True]]),
    )
    evaluation = Evaluation(
        location_log_probs=torch.full((3, 1, 2, CELLS), -LN3).requires_grad_(),
        label_log_probs=torch.full((3, 2, CLASSES + 1), -LN3).requires_grad_(),
        values=torch.full((3, 2, 2), 0.5).requires_grad_(),
        location_rewards=torch.tensor([[1.0, 0.0, 0.0]]).expand(3, 1, 2, -1),
        label_rewards=torch.tensor([1.0, 1.0, -1.0]).expand(3, 2, -1),
    )
    return trajectory, evaluation


Terms = Callable[[Trajectory, Evaluation], dict[str, Tensor]]


def credit(trajectory: Trajectory) -> Tensor:
    return advantages(trajectory.rewards, trajectory.values, trajectory.live, 0.9, 0.9)


def objective_of(name: str, advantage: Tensor | None = None) -> Terms:
    def loss(trajectory: Trajectory, evaluation: Evaluation) -> dict[str, Tensor]:
        given = credit(trajectory) if advantage is None else advantage
        if name == "cross-entropy":
            return losses.cross_entropy(trajectory, evaluation)
        if name == "ppo":
            return losses.ppo(trajectory, evaluation, given, 0.2)
        if name == "multiset-loss":
            return losses.multiset_loss(trajectory, evaluation)
        if name == "exact":
            return losses.expected_reward(trajectory, evaluation)
        if name == "log":
            return losses.expected_success(trajectory, evaluation)
        if name == "assigned":
            return losses.assigned_success(trajectory, evaluation)
        return losses.reinforce(trajectory, evaluation, given)

    return loss


ESTIMATORS = ("sampled", "exact", "log", "assigned")
OBJECTIVES = {name: objective_of(name) for name in (*ESTIMATORS, "ppo", "cross-entropy", "multiset-loss")}
WITH_VALUE = ["sampled", "ppo"]


def test_terms_by_hand():
    trajectory, evaluation = two_lanes()
    advantage = trajectory.rewards - trajectory.values
    terms = losses.reinforce(trajectory, evaluation, advantage)
    # each term: the sum over lane 0, the sum over lane 1, halved
    assert terms["location"].item() == pytest.approx(LN3 * ((0.5 - 0.5) + (-0.5 + 0.5 + 0.0)) / 2)
    assert terms["label"].item() == pytest.approx(LN3 * (0.5 + (0.5 - 1.5)) / 2)
    assert terms["stop"].item() == pytest.approx(LN3)
    squares = (0.25 + 0.25) + (0.25 + 0.25), (0.25 + 0.25 + 0.0) + (0.25 + 2.25 + 0.25)  # the final labels earn 0
    assert terms["value"].item() == pytest.approx(sum(squares) / 2)
    assert terms["entropy"].item() == pytest.approx(-LN3 * (1 + 2) / 2)
    assert terms["location_entropy"].item() == pytest.approx(-LN3 * (2 + 3) / 2)
    exact = losses.expected_reward(trajectory, evaluation)
    assert exact["location"].item() == pytest.approx(-(2 / 3 + 3 / 3) / 2)
    assert exact["label"].item() == pytest.approx(-(1 / 3 + 2 / 3) / 2)


def test_the_entropy_of_a_certain_choice_is_zero_and_of_a_coin_is_ln_2():
    certain, coin = torch.tensor([80.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, -80.0])
    trajectory, evaluation = one_episode(torch.stack([certain, coin]), torch.stack([coin, certain]))
    terms = losses.expected_reward(trajectory, evaluation)
    assert terms["entropy"].item() == pytest.approx(-LN2)  # the label at 1; not the final label, at 2
    assert terms["location_entropy"].item() == pytest.approx(-LN2)  # the location at 2


@pytest.mark.parametrize("name", WITH_VALUE)
def test_values_regress_to_the_reward_of_immediate_credit(name: str):
    trajectory, evaluation = two_lanes()
    advantage = advantages(trajectory.rewards, trajectory.values, trajectory.live, 0.0, 1.0)
    (slope,) = torch.autograd.grad(objective_of(name, advantage)(trajectory, evaluation)["value"], evaluation.values)
    counted = torch.tensor([[[1, 1], [1, 1]], [[1, 1], [1, 1]], [[0, 1], [0, 1]]])  # nothing after the end
    torch.testing.assert_close(slope, 2 * (0.5 - trajectory.rewards) * counted / 2)


@pytest.mark.parametrize("name", WITH_VALUE)
def test_values_regress_to_the_return_if_that_is_the_credit(name: str):
    trajectory, evaluation = two_lanes()
    advantage = advantages(trajectory.rewards, trajectory.values, trajectory.live, 1.0, 1.0)
    terms = objective_of(name, advantage)(trajectory, evaluation)
    # rewards to go, lane 0: 2, 1 | 0, 0; lane 1: 3/2, 3/2 | 1/2, -1/2 | 1/2, 0. Values are 1/2
    squares = (1.5**2 + 0.5**2) + (0.5**2 + 0.5**2), (1 + 1) + (0 + 1) + (0 + 0.5**2)
    assert terms["value"].item() == pytest.approx(sum(squares) / 2)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_stop_is_taught_at_the_final_meta_step_only(name: str):
    trajectory, evaluation = two_lanes()
    (slope,) = torch.autograd.grad(OBJECTIVES[name](trajectory, evaluation)["stop"], evaluation.label_log_probs)
    expected = torch.zeros(3, 2, CLASSES + 1)
    expected[1, 0, -1] = expected[2, 1, -1] = -0.5  # m + 1 of each lane; the mean over two episodes
    assert torch.equal(slope, expected)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_lane_that_stopped_too_early_has_no_final_meta_step(name: str):
    trajectory, evaluation = two_lanes()
    live = torch.tensor([[True, True], [True, True], [False, False]])  # lane 1 of two objects stopped after one
    terms = OBJECTIVES[name](trajectory._replace(live=live), evaluation)
    assert terms["stop"].item() == pytest.approx(LN3 / 2)  # lane 0's


@pytest.mark.parametrize("name", OBJECTIVES)
def test_nothing_after_the_end_of_an_episode_counts(name: str):
    trajectory, evaluation = two_lanes()
    noise = torch.Generator().manual_seed(0)

    def scrambled(part: Tensor) -> Tensor:
        """Other numbers at meta-step 3 of lane 0, which has ended."""
        part = part.detach().clone()
        lane = part[2, ..., 0] if part.dim() < 4 else part[2, :, 0]
        lane.copy_(torch.randn(lane.shape, generator=noise))
        return part

    def scrambled_scores(part: Tensor) -> Tensor:
        part = part.detach().clone()
        row = part[2, 0] if part.dim() == 3 else part[2, 0, 0]
        row.copy_(torch.randn(row.shape, generator=noise).log_softmax(-1))
        return part

    other_trajectory = trajectory._replace(
        locations=trajectory.locations.clone().index_put(
            (torch.tensor(2), torch.tensor(0), torch.tensor(0)), torch.tensor(2)
        ),
        labels=trajectory.labels.clone().index_put((torch.tensor(2), torch.tensor(0)), torch.tensor(0)),
        rewards=scrambled(trajectory.rewards),
        log_probs=scrambled(trajectory.log_probs),
        values=scrambled(trajectory.values),
    )
    other_evaluation = Evaluation(
        location_log_probs=scrambled_scores(evaluation.location_log_probs),
        label_log_probs=scrambled_scores(evaluation.label_log_probs),
        values=scrambled(evaluation.values),
        location_rewards=scrambled_scores(evaluation.location_rewards).abs(),
        label_rewards=scrambled_scores(evaluation.label_rewards),
    )
    for part, other in zip(
        (*trajectory[1:6], *evaluation[:5]), (*other_trajectory[1:6], *other_evaluation[:5]), strict=True
    ):
        assert not torch.equal(part, other), "nothing was changed, so nothing is tested"
    terms = OBJECTIVES[name](trajectory, evaluation)
    other_terms = OBJECTIVES[name](other_trajectory, other_evaluation)
    assert {key: term.item() for key, term in terms.items()} == {key: term.item() for key, term in other_terms.items()}

    gradients = torch.autograd.grad(sum(terms.values()), list(evaluation[:3]), allow_unused=True)
    assert (gradients[2] is None) == (name not in WITH_VALUE)
    for gradient in gradients:
        if gradient is not None:
            after_the_end = gradient[2, 0] if gradient is gradients[1] else gradient[2, :, 0]
            assert not after_the_end.any()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_terms_are_means_over_episodes(name: str):
    trajectory, evaluation = two_lanes()
    twice = torch.tensor([0, 1, 0, 1])
    doubled = Evaluation(
        *(part.index_select(axis, twice) for part, axis in zip(evaluation[:5], (2, 1, 2, 2, 1), strict=True))
    )
    for key, term in OBJECTIVES[name](trajectory.lanes(twice), doubled).items():
        torch.testing.assert_close(term, OBJECTIVES[name](trajectory, evaluation)[key])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_learner_minimises_the_objective_it_is_told_to(name: str):
    chosen = {"estimator": name} if name in ESTIMATORS else {"algorithm": name}
    agent = ActorCritic(World(Rules(), (2, 3), 3, 10), AgentConfig(meta_hidden=2, controller_hidden=2))
    trajectory, evaluation = two_lanes()
    scores = torch.randn(3, 2, CLASSES + 1, generator=torch.Generator().manual_seed(0))
    evaluation = evaluation._replace(label_log_probs=scores.log_softmax(-1).requires_grad_())
    advantage = credit(trajectory)
    terms = Objective(agent, LearnerConfig(**chosen))._terms(trajectory, evaluation, advantage)
    assert terms == OBJECTIVES[name](trajectory, evaluation)
    others = [OBJECTIVES[other](trajectory, evaluation) for other in OBJECTIVES if other != name]
    assert all(terms != other for other in others)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_term_has_a_weight(name: str):
    weights = LearnerConfig(location_coef=2.0, stop_coef=3.0, vf_coef=4.0, ent_coef=5.0, location_ent_coef=6.0)
    agent = ActorCritic(World(Rules(), (2, 3), 3, 10), AgentConfig(meta_hidden=2, controller_hidden=2))
    objective = Objective(agent, weights)
    known = {"label": 1.0, "location": 2.0, "stop": 3.0, "value": 4.0, "entropy": 5.0, "location_entropy": 6.0}
    terms = OBJECTIVES[name](*two_lanes())
    assert {term: objective._weight(term) for term in terms} == {term: known[term] for term in terms}
    without_value = set(known) - {"value"}
    expected = {"cross-entropy": {"label", "stop"}, "sampled": set(known), "ppo": set(known)}
    assert set(terms) == expected.get(name, without_value)
    with pytest.raises(KeyError):
        objective._weight("unheard of")


@pytest.mark.parametrize(
    ("chosen", "weights"),
    [
        ({"ent_coef": 0.5}, (0.5, 0.5, 0.5)),
        ({"ent_coef": 0.5, "location_ent_coef": 0.0}, (0.0, 0.0, 0.0)),
        ({"ent_coef": 0.5, "last_location_ent_coef": 0.25}, (0.5, 0.4375, 0.25)),
        ({"location_ent_coef": 1.0, "last_location_ent_coef": 0.0}, (1.0, 0.75, 0.0)),
        ({"location_ent_coef": 1.0, "last_location_ent_coef": 3.0}, (1.0, 1.5, 3.0)),
    ],
)
def test_the_weight_of_the_locations_entropy_changes_linearly(chosen: dict[str, float], weights: tuple[float, ...]):
    agent = ActorCritic(World(Rules(), (2, 3), 3, 10), AgentConfig(meta_hidden=2, controller_hidden=2))
    objective = Objective(agent, LearnerConfig(**chosen))
    assert tuple(objective._weight("location_entropy", progress) for progress in (0.0, 0.25, 1.0)) == weights
    assert objective._weight("entropy", 1.0) == chosen.get("ent_coef", 0.0)


# --- cross-entropy ----------------------------------------------------------------------------------------------------


def test_cross_entropy_by_hand():
    trajectory, evaluation = two_lanes()
    probabilities = torch.tensor(
        [[[0.5, 0.25, 0.25], [0.2, 0.5, 0.3]], [[0.3, 0.3, 0.4], [0.1, 0.2, 0.7]], [[0.3, 0.3, 0.4], [0.5, 0.25, 0.25]]]
    )
    trajectory = trajectory._replace(labels=torch.tensor([[0, 1], [2, 0], [2, 2]]))
    terms = losses.cross_entropy(trajectory, evaluation._replace(label_log_probs=probabilities.log()))
    # lane 0: label 0, then stop; lane 1: labels 1 and 0, then stop
    assert terms["label"].item() == pytest.approx(-(math.log(0.5) + math.log(0.5) + math.log(0.1)) / 2)
    assert terms["stop"].item() == pytest.approx(-(math.log(0.4) + math.log(0.25)) / 2)


# --- the multiset loss ------------------------------------------------------------------------------------------------


def three_objects() -> tuple[Trajectory, Evaluation]:
    """Lane 0 holds {0, 0, 1}, lane 1 {1}, which ends after two of the four meta-steps; k = 1."""
    trajectory = Trajectory(
        example=example(torch.tensor([[2, 1], [0, 1]]), CELLS),
        locations=torch.zeros(4, 1, 2, dtype=torch.int64),
        labels=torch.tensor([[0, 0], [2, 1], [0, 1], [1, 0]]),  # lane 0: 0, stop, 0; lane 1: a wrong one
        rewards=torch.zeros(4, 2, 2),
        log_probs=torch.zeros(4, 2, 2),
        values=torch.zeros(4, 2, 2),
        live=torch.tensor([[True, True], [True, True], [True, False], [True, False]]),
    )
    generator = torch.Generator().manual_seed(0)
    evaluation = Evaluation(
        location_log_probs=torch.randn(4, 1, 2, CELLS, generator=generator).log_softmax(-1),
        label_log_probs=torch.randn(4, 2, CLASSES + 1, generator=generator).log_softmax(-1).requires_grad_(),
        values=torch.randn(4, 2, 2, generator=generator),
        location_rewards=torch.rand(4, 1, 2, CELLS, generator=generator),
        label_rewards=torch.randn(4, 2, CLASSES + 1, generator=generator),
    )
    return trajectory, evaluation


def test_the_multiset_loss_by_hand():
    trajectory, evaluation = three_objects()
    thirds, halves = [1 / 3, 1 / 6, 1 / 2], [1 / 4, 1 / 4, 1 / 2]
    probabilities = torch.tensor([[thirds, halves], [halves, thirds], [thirds, thirds], [halves, halves]])
    terms = losses.multiset_loss(trajectory, evaluation._replace(label_log_probs=probabilities.log()))
    # lane 0: {0, 0, 1}, then {0, 1}, and stop takes nothing away; lane 1: {1}
    first = 2 / 3 * math.log(3) + 1 / 3 * math.log(6)
    second, third = math.log(4), (math.log(3) + math.log(6)) / 2
    assert terms["label"].item() == pytest.approx((first + second + third + math.log(4)) / 2)
    assert terms["stop"].item() == pytest.approx(LN2 / 2 + LN2 / 2)


@pytest.mark.parametrize(
    ("named", "shares"),
    [
        ([0, 0], [[2 / 3, 1 / 3], [1 / 2, 1 / 2], [0.0, 1.0]]),
        ([0, 1], [[2 / 3, 1 / 3], [1 / 2, 1 / 2], [1.0, 0.0]]),
        ([1, 1], [[2 / 3, 1 / 3], [1.0, 0.0], [1.0, 0.0]]),  # the second 1 is wrong
        ([1, 0], [[2 / 3, 1 / 3], [1.0, 0.0], [1.0, 0.0]]),
        ([2, 2], [[2 / 3, 1 / 3]] * 3),
    ],
)
def test_its_targets_are_the_shares_of_what_remains_at_meta_steps_1_to_m(named: list[int], shares: list[list[float]]):
    trajectory, evaluation = three_objects()
    labels = trajectory.labels.clone()
    labels[:2, 0] = torch.tensor(named)
    terms = losses.multiset_loss(trajectory._replace(labels=labels), evaluation)
    (slope,) = torch.autograd.grad(terms["label"], evaluation.label_log_probs)
    expected = torch.zeros(4, 2, CLASSES + 1)  # nothing for stop, meta-step m + 1, or after the end
    expected[:3, 0, :CLASSES] = torch.tensor(shares)
    expected[0, 1, 1] = 1.0
    torch.testing.assert_close(slope, -expected / 2)


def test_all_its_other_terms_are_those_of_the_expected_reward():
    trajectory, evaluation = three_objects()
    terms = losses.multiset_loss(trajectory, evaluation)
    exact = losses.expected_reward(trajectory, evaluation)
    assert terms.keys() == exact.keys()
    assert terms.pop("label").item() != exact.pop("label").item()
    assert terms == exact


def test_over_all_orders_the_multiset_loss_is_the_cross_entropy():
    """Where scores do not depend on what was named before: a random order's next label is one of those remaining."""
    orders = list(itertools.permutations([0, 0, 1]))
    lanes = torch.zeros(len(orders), dtype=torch.int64)
    trajectory, evaluation = three_objects()
    labels = torch.tensor([[*order, CLASSES] for order in orders]).T
    trajectory = trajectory.lanes(lanes)._replace(labels=labels)
    evaluation = Evaluation(
        *(part.index_select(axis, lanes) for part, axis in zip(evaluation[:5], (2, 1, 2, 2, 1), strict=True))
    )
    supervised = losses.cross_entropy(trajectory, evaluation)
    terms = losses.multiset_loss(trajectory, evaluation)
    assert supervised["label"] > 1
    torch.testing.assert_close(terms["label"], supervised["label"])
    assert terms["stop"].item() == supervised["stop"].item()


# --- the forced order -------------------------------------------------------------------------------------------------


def test_shuffled_labels_are_each_lanes_labels_then_stop():
    counts = torch.tensor(np.random.default_rng(0).integers(0, 3, (50, 4)))
    counts[0], counts[1] = 0, torch.tensor([2, 2, 2, 2])
    steps = 9
    labels = losses.shuffled_labels(counts, steps, torch.Generator().manual_seed(0))
    assert labels.shape == (steps, 50)
    for lane, row in enumerate(counts.tolist()):
        column = labels[:, lane].tolist()
        assert sorted(column[: sum(row)]) == [label for label, count in enumerate(row) for _ in range(count)]
        assert column[sum(row) :] == [4] * (steps - sum(row))


def test_every_order_of_the_labels_is_equally_likely():
    lanes = 6_000
    labels = losses.shuffled_labels(torch.ones(lanes, 3, dtype=torch.int64), 4, torch.Generator().manual_seed(0))
    orders = Counter(map(tuple, labels.T.tolist()))
    assert set(orders) == {(*order, 3) for order in itertools.permutations(range(3))}
    spread = math.sqrt(lanes * (1 / 6) * (5 / 6))
    assert all(abs(count - lanes / 6) < 5 * spread for count in orders.values())


def test_the_generator_decides_the_order():
    counts = torch.ones(20, 5, dtype=torch.int64)
    first, again, other = (losses.shuffled_labels(counts, 6, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
