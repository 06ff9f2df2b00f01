"""The decision process: whole episodes against the slow oracle, and one decision of mixed lanes against each alone."""

import itertools

import numpy as np
import pytest
import reference
import torch

from hsal_env import dynamics
from hsal_env import functional as F
from hsal_env.dynamics import Action, Example, Outcome, State
from hsal_env.rules import Rules

STOP = reference.STOP
DEPTH = 4


def example(
    lanes: int, map_size: tuple[int, int], most: int, seed: int, least: int = 1
) -> tuple[Example, list[list[int]]]:
    """Random float64 volumes (exact enough to compare with the oracle) and label lists with repeats."""
    rng = np.random.default_rng(seed)
    volume = torch.from_numpy(rng.standard_normal((lanes, DEPTH, *map_size)))
    labels = [rng.integers(0, 4, rng.integers(least, most + 1)).tolist() for _ in range(lanes)]
    counts = torch.from_numpy(np.stack([reference.counts(of_lane) for of_lane in labels]))
    return Example(volume, F.sum_of_squares(volume), counts, torch.arange(lanes)), labels


def oracles(given: Example, labels: list[list[int]], rules: Rules) -> list[reference.Episode]:
    mirrored = reference.Rules(**{name: getattr(rules, name) for name in reference.Rules.__dataclass_fields__})
    return [
        reference.Episode(volume.numpy(), raw.numpy(), of_lane, mirrored)
        for volume, raw, of_lane in zip(given.volume, given.raw_saliency, labels, strict=True)
    ]


def random_action(rng: np.random.Generator, lanes: int, rules: Rules, cells: int, stop_share: float) -> Action:
    """Labels among the four that occur, or stop."""
    label = np.where(rng.random(lanes) < stop_share, STOP, rng.integers(0, 4, lanes))
    attention = 2 * rng.standard_normal((lanes, 4 * rules.components))
    return Action(torch.from_numpy(attention), torch.from_numpy(rng.integers(0, cells, lanes)), torch.from_numpy(label))


def assert_mirrors(state: State, lane: int, oracle: reference.Episode, rules: Rules) -> None:
    """Every field of ``state``."""
    close = {"rtol": 1e-9, "atol": 1e-12}
    for name in ("saliency", "mask", "priority", "glimpse"):
        np.testing.assert_allclose(getattr(state, name)[lane].numpy(), getattr(oracle, name), err_msg=name, **close)
    cells = state.saliency[0].numel()
    padded = oracle.locations + [cells] * (rules.glimpses - len(oracle.locations))
    assert state.locations[lane].tolist() == padded
    assert state.last_location[lane] == (oracle.locations or [cells])[-1]
    assert state.last_label[lane] == (STOP + 1 if oracle.last_label is None else oracle.last_label)
    assert state.remaining[lane].tolist() == reference.counts(oracle.available).tolist()
    assert state.predicted[lane].tolist() == reference.counts(oracle.predicted).tolist()
    assert (state.phase[lane], state.meta_step[lane]) == (oracle.phase, oracle.meta_step)
    returns = [oracle.location_return, oracle.label_return]
    np.testing.assert_allclose(state.returns[lane].numpy(), returns, **close)
    looks = [sum(oracle.seen), sum(oracle.seen_if_uniform)]
    np.testing.assert_allclose(state.looks[lane].numpy(), looks, **close)


VARIANTS = [
    {},
    {"glimpses": 0},
    {"components": 1, "glimpses": 1},
    {"coordinates": "centred", "beta": "exp"},
    {"beta": "exp", "width_unit": "cell"},
    {"mask_scale": "peak", "update": "none"},
    {"update": "peak", "renormalise_saliency": True},
    {"max_objects": 1},
]


@pytest.mark.parametrize("protocol", ["free", "teacher"])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: ",".join(f"{name}={v[name]}" for name in v) or "paper")
@pytest.mark.parametrize("map_size", [(3, 3), (2, 5)])
def test_whole_episodes_equal_the_oracle(protocol, variant, map_size):
    """Lanes run in lockstep until each has ended; every field is compared after every decision."""
    rules, lanes = Rules(protocol=protocol, **variant), 6
    given, labels = example(lanes, map_size, rules.max_objects, seed=5)
    mirrors, state = oracles(given, labels, rules), dynamics.initial(given, rules)
    rng, running, endings = np.random.default_rng(6), set(range(lanes)), set()
    for lane in running:
        assert_mirrors(state, lane, mirrors[lane], rules)
    for _ in range(rules.option_length * rules.max_meta_steps):
        action = random_action(rng, lanes, rules, given.raw_saliency[0].numel(), stop_share=0.15)
        state, reward, terminated, truncated, _ = dynamics.transition(state, action, rules)
        for lane in sorted(running):
            decision = (part[lane].numpy().tolist() for part in action)
            expected = mirrors[lane].decide(*decision)
            actual = (reward[lane].item(), bool(terminated[lane]), bool(truncated[lane]))
            assert actual == (pytest.approx(expected[0], abs=1e-6), *expected[1:])
            assert_mirrors(state, lane, mirrors[lane], rules)
            if expected[1] or expected[2]:
                running.remove(lane)
                endings.add("terminated" if expected[1] else "truncated")
    assert not running
    assert endings == ({"terminated", "truncated"} if protocol == "free" and rules.max_objects > 1 else endings)


def at(state: State, rules: Rules, phases: list[int], rng: np.random.Generator) -> State:
    """Lane i brought to ``phases[i]`` of its second meta-step, by itself."""
    lanes = []
    for lane, phase in enumerate(phases):
        alone = lane_of(state, lane)
        for _ in range(rules.option_length + phase):
            alone = dynamics.transition(alone, random_action(rng, 1, rules, 6, 0.0), rules).state
        lanes.append(alone)
    return stack(lanes)


def lane_of(nested, lane: int):
    if isinstance(nested, torch.Tensor):
        return nested[lane : lane + 1]
    return type(nested)(*(lane_of(part, lane) for part in nested))


def stack(lanes: list):
    if isinstance(lanes[0], torch.Tensor):
        return torch.cat(lanes)
    return type(lanes[0])(*(stack(list(parts)) for parts in zip(*lanes, strict=True)))


def assert_same(a, b) -> None:
    """To the bit, or to rounding where a batch may sum in another order."""
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, check_dtype=False)
    else:
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)


@pytest.mark.parametrize("protocol", ["free", "teacher"])
@pytest.mark.parametrize("glimpses", [0, 1, 2])
@pytest.mark.parametrize("forbid", [False, True])
def test_mixed_phases_equal_lane_by_lane(protocol, glimpses, forbid):
    rules = Rules(glimpses=glimpses, components=2, protocol=protocol)
    rng = np.random.default_rng(0)
    for phases in itertools.product(range(rules.option_length), repeat=2):
        given, _ = example(len(phases), (2, 3), 4, seed=7, least=2)
        state = at(dynamics.initial(given, rules), rules, list(phases), rng)
        action = random_action(rng, len(phases), rules, 6, stop_share=0.5)
        forbidden = torch.tensor([False, True]) if forbid else None
        together = dynamics.transition(state, action, rules, forbidden)
        for lane in range(len(phases)):
            flag = None if forbidden is None else forbidden[lane : lane + 1]
            alone = dynamics.transition(lane_of(state, lane), lane_of(action, lane), rules, flag)
            assert_same(lane_of(together, lane), alone)


@pytest.fixture
def started() -> tuple[State, Rules]:
    """Two lanes, {2} and {2, 2}, before the first decision."""
    rules = Rules(components=1)
    given, _ = example(2, (3, 3), 4, seed=0)
    counts = torch.from_numpy(np.stack([reference.counts([2]), reference.counts([2, 2])]))
    return dynamics.initial(given._replace(counts=counts), rules), rules


def name_label(state: State, rules: Rules, label: int) -> Outcome:
    """A whole meta-step that ends with ``label`` in every lane."""
    lanes = len(state.phase)
    action = Action(
        torch.zeros(lanes, 4, dtype=torch.float64), torch.zeros(lanes, dtype=torch.int64), torch.full((lanes,), label)
    )
    for _ in range(rules.option_length - 1):
        state = dynamics.transition(state, action, rules).state
    return dynamics.transition(state, action, rules)


def outcome_of(outcome: Outcome) -> list[list]:
    return [part.tolist() for part in outcome[1:4]]


def test_the_free_protocol_by_hand(started):
    state, rules = started
    first = name_label(state, rules, 2)
    assert outcome_of(first) == [[1.0, 1.0], [False, False], [False, False]]
    second = name_label(first.state, rules, 2)
    assert outcome_of(second) == [[-1.0, 1.0], [False, False], [False, False]]
    assert outcome_of(name_label(second.state, rules, STOP)) == [[1.0, 1.0], [True, True], [False, False]]
    assert outcome_of(name_label(first.state, rules, STOP)) == [[1.0, -1.0], [True, True], [False, False]]


def test_the_free_protocol_truncates_after_one_meta_step_more_than_objects(started):
    state, rules = started
    for _ in range(rules.max_objects):
        outcome = name_label(state, rules, 2)
        assert not outcome.truncated.any()
        state = outcome.state
    assert outcome_of(name_label(state, rules, 2))[1:] == [[False, False], [True, True]]
    assert outcome_of(name_label(state, rules, STOP))[1:] == [[True, True], [False, False]]


def test_the_teachers_protocol_by_hand(started):
    """Stop before the end is a wrong label and nothing ends; meta-step m + 1 ends, for 0, whatever remains (L4)."""
    state, _ = started
    rules = Rules(components=1, protocol="teacher")
    first = name_label(state, rules, STOP)
    assert outcome_of(first) == [[-1.0, -1.0], [False, False], [False, False]]
    assert first.state.remaining[:, 2].tolist() == [1, 2]
    second = name_label(first.state, rules, 2)
    assert outcome_of(second) == [[0.0, 1.0], [True, False], [False, False]]
    third = name_label(second.state, rules, 2)  # lane 0 has ended already
    assert [part[1] for part in outcome_of(third)] == [0.0, True, False]


def test_stop_is_no_predicted_label(started):
    state, rules = started
    assert name_label(state, rules, STOP).state.predicted.tolist() == torch.zeros(2, 10).tolist()


def test_a_forbidden_decision_costs_one_and_changes_nothing_else(started):
    state, rules = started
    action = Action(
        torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    )
    outcome = dynamics.transition(state, action, rules, torch.tensor([True, False]))
    assert outcome_of(outcome) == [[-1.0, 0.0], [False, False], [False, False]]
    kept = lane_of(outcome.state, 0)
    assert kept.returns.tolist() == [[0.0, -1.0]]
    assert_same(kept._replace(returns=state.returns[:1], forbidden=state.forbidden[:1]), lane_of(state, 0))
    assert outcome.state.forbidden.tolist() == [1, 0]
    assert_same(lane_of(outcome.state, 1), lane_of(dynamics.transition(state, action, rules).state, 1))


def test_forbidden_decisions_are_truncated_when_there_were_as_many_as_an_episode_has(started):
    state, rules = started
    action = Action(
        torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    )
    for count in range(1, rules.option_length * rules.max_meta_steps + 1):
        outcome = dynamics.transition(state, action, rules, torch.tensor([True, True]))
        state = outcome.state
        assert outcome.truncated.tolist() == [count == 20] * 2
    assert state.returns.tolist() == [[0.0, -20.0]] * 2


def test_raw_saliency_counts_suppressed_cells_by_what_is_left():
    """S3: raw 8 of which half is left counts 4; before any update the map is the raw one."""
    raw = torch.tensor([[[0.0, 4.0, 8.0]]])
    given = Example(torch.zeros(1, 1, 1, 3), raw, torch.ones(1, 10, dtype=torch.int64), torch.zeros(1))
    state = dynamics.initial(given, Rules())
    assert dynamics.raw_saliency_left(state).tolist() == raw.tolist()
    suppressed = state._replace(saliency=torch.tensor([[[0.0, 0.0, 0.5]]]))
    assert dynamics.raw_saliency_left(suppressed).tolist() == [[[0.0, 0.0, 4.0]]]


def test_looks_add_up_the_glimpsed_and_the_mean_raw_saliency():
    raw = torch.tensor([[[0.0, 4.0, 8.0]]])
    given = Example(torch.zeros(1, 1, 1, 3), raw, torch.ones(1, 10, dtype=torch.int64), torch.zeros(1))
    state = dynamics.attend(dynamics.initial(given, Rules()), torch.zeros(1, 20), Rules())
    for location in (2, 1):
        state = dynamics.look(state, torch.tensor([location]), Rules()).state
    assert state.looks.tolist() == [[12.0, 8.0]]


def test_no_gradient_flows_from_the_glimpse_reward_but_from_priority_and_first_glimpse(started):
    state, rules = started
    attention = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    attended = dynamics.attend(state, attention, rules)
    assert not dynamics.look(attended, torch.tensor([0, 1]), rules).reward.requires_grad
    for part in (attended.priority[:, 0], attended.glimpse):
        (gradient,) = torch.autograd.grad(part.sum(), attention, retain_graph=True)
        assert gradient.abs().sum() > 0
