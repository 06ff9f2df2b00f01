"""The paper's equations: numbers worked by hand, the slow oracle on random inputs, gradients, and the edge cases."""

import math

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from hsal_env import functional as F

MAP_SIZES = [(7, 7), (3, 5), (5, 2), (1, 1), (1, 4)]
STOP = 10


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_lanes(actual: torch.Tensor, oracle, *arguments) -> None:
    """Lane by lane, ``actual`` is what the oracle makes of that lane's arguments."""
    expected = np.stack([oracle(*(argument[lane].numpy() for argument in arguments)) for lane in range(len(actual))])
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-10, atol=1e-12)


def counts(*labels: int) -> torch.Tensor:
    return torch.from_numpy(reference.counts(labels))[None]


# --- saliency ---------------------------------------------------------------------------------------------------------


def test_sum_of_squares_by_hand():
    volume = torch.tensor([[[[1.0, -2.0]], [[3.0, 0.5]]]])  # two channels, 1x2 cells
    assert F.sum_of_squares(volume).tolist() == [[[10.0, 4.25]]]


def test_normalise_by_hand():
    maps = torch.tensor([[[2.0, 4.0], [3.0, 6.0]], [[-1.0, 1.0], [0.0, 0.0]]])
    assert F.normalise(maps).tolist() == [[[0.0, 0.5], [0.25, 1.0]], [[0.0, 1.0], [0.5, 0.5]]]


@pytest.mark.parametrize("value", [0.0, 3.5, -1e30])
def test_a_constant_map_normalises_to_zeros_with_zero_gradient(value):
    maps = torch.full((2, 3, 5), value, requires_grad=True)
    normalised = F.normalise(maps)
    assert normalised.tolist() == torch.zeros(2, 3, 5).tolist()
    normalised.sum().backward()
    assert maps.grad.isfinite().all()


def test_normalise_treats_lanes_apart():
    maps = torch.stack([torch.full((2, 2), 7.0), torch.tensor([[0.0, 1.0], [2.0, 4.0]])])
    assert F.normalise(maps).tolist() == [[[0, 0], [0, 0]], [[0, 0.25], [0.5, 1]]]


@pytest.mark.parametrize("map_size", MAP_SIZES)
def test_saliency_equals_the_oracle(map_size):
    volume = random(3, 4, *map_size)
    assert_lanes(F.sum_of_squares(volume), reference.raw_saliency, volume)
    assert_lanes(F.normalise(volume[:, 0]), reference.normalise, volume[:, 0])


# --- Gaussian attention -----------------------------------------------------------------------------------------------


def test_mixture_by_hand():
    raw = torch.tensor([[math.log(1.0), math.log(3.0), 0.0, math.log(3.0), 0.0, math.log(3.0), math.log(3.0), 0.0]])
    alpha, beta, row, col = F.mixture(raw, (7, 7))
    torch.testing.assert_close(alpha, torch.tensor([[0.25, 0.75]]))  # softmax
    torch.testing.assert_close(beta, torch.tensor([[1.75, 1.875]]))  # 1.5 + sigmoid / 2
    torch.testing.assert_close(row, torch.tensor([[3.5, 5.25]]))
    torch.testing.assert_close(col, torch.tensor([[5.25, 3.5]]))


@pytest.mark.parametrize(("map_size", "scale"), [((7, 7), 1.0), ((14, 14), 0.25), ((14, 7), 0.5)])
@pytest.mark.parametrize(
    ("width", "raw", "beta"),
    [
        ("bounded", -50.0, 1.5),
        ("bounded", 0.0, 1.75),
        ("bounded", 50.0, 2.0),
        ("exp", 0.0, 1.0),
        ("exp", 2.0, math.e**2),
    ],
)
def test_beta_has_its_range_and_scales_with_the_map(map_size, scale, width, raw, beta):
    parameters = F.mixture(torch.tensor([[0.0, raw, 0.0, 0.0]]), map_size, width=width)
    torch.testing.assert_close(parameters.beta, torch.tensor([[beta * scale]]))


@pytest.mark.parametrize(("width", "beta"), [("bounded", 1.75), ("exp", 1.0)])
def test_widths_in_cells_are_the_same_on_any_map(width, beta):
    for map_size in ((7, 7), (14, 14), (24, 32)):
        parameters = F.mixture(torch.zeros(1, 4), map_size, width=width, width_unit="cell")
        torch.testing.assert_close(parameters.beta, torch.tensor([[beta]]))


@pytest.mark.parametrize(("coordinates", "low", "high"), [("paper", 0.0, 7.0), ("centred", 0.5, 7.5)])
def test_centres_reach_the_interval_of_their_coordinates(coordinates, low, high):
    ends = torch.tensor([[0.0, 0.0, 0.0, 0.0, -50.0, 50.0, 50.0, -50.0]])
    parameters = F.mixture(ends, (7, 7), coordinates)
    torch.testing.assert_close(parameters.row, torch.tensor([[low, high]]))
    torch.testing.assert_close(parameters.col, torch.tensor([[high, low]]))


def test_mask_by_hand():
    """One Gaussian at (1, 2) of the printed coordinates: its peak is in the first row, second column."""
    one, half = torch.ones(1, 1), torch.full((1, 1), 0.5)
    mask = F.attention_mask(F.Mixture(one, half, one, 2 * one), (2, 3))
    by_hand = torch.tensor([[[-0.5, 0.0, -0.5], [-1.0, -0.5, -1.0]]]).exp()  # exp(-distance**2 / 2)
    torch.testing.assert_close(mask, by_hand)


def test_mask_adds_its_gaussians_by_importance():
    alpha, beta = torch.tensor([[0.25, 0.75]]), torch.tensor([[1.0, 2.0]])
    row = col = torch.tensor([[1.0, 3.0]])
    mask = F.attention_mask(F.Mixture(alpha, beta, row, col), (3, 3))
    assert mask[0, 0, 0].item() == pytest.approx(0.25 + 0.75 * math.exp(-16))
    assert mask[0, 1, 1].item() == pytest.approx(0.25 * math.exp(-2) + 0.75 * math.exp(-4))
    assert mask[0, 2, 2].item() == pytest.approx(0.75 + 0.25 * math.exp(-8))


@pytest.mark.parametrize("map_size", MAP_SIZES)
@pytest.mark.parametrize("components", [1, 5])
@pytest.mark.parametrize("coordinates", ["paper", "centred"])
@pytest.mark.parametrize("beta", ["bounded", "exp"])
@pytest.mark.parametrize("unit", ["map", "cell"])
def test_attention_equals_the_oracle(map_size, components, coordinates, beta, unit):
    raw = 2 * random(3, 4 * components)
    parameters = F.mixture(raw, map_size, coordinates, beta, unit)
    oracle = lambda r: reference.mixture(r, map_size, coordinates, beta, unit)  # noqa: E731
    assert_lanes(torch.stack(parameters, dim=-1), oracle, raw)
    for scale in ("paper", "peak"):
        assert_lanes(
            F.attention_mask(parameters, map_size, scale),
            lambda r: reference.mask(oracle(r), map_size, scale),  # noqa: B023
            raw,
        )


@pytest.mark.parametrize("scale", ["paper", "peak"])
def test_a_mask_too_narrow_for_any_cell_is_finite(scale):
    """exp(8) as inverse width, between four cells: every exponential is 0 in float32, and 0 / 0 would be NaN."""
    parameters = F.mixture(torch.tensor([[0.0, 8.0, 0.0, 0.0]]), (7, 7), width="exp")
    assert F.attention_mask(parameters, (7, 7), scale).isfinite().all()


def test_a_narrow_mask_between_four_cells_is_on_them_alone():
    """Inverse width 148, half a cell from each: factors of exp(-37), far below 1 and not nothing."""
    raw = torch.tensor([[0.0, 5.0, 0.0, 0.0]])
    mask = F.attention_mask(F.mixture(raw, (7, 7), width="exp"), (7, 7), "peak")[0]
    expected = torch.zeros(7, 7)
    expected[2:4, 2:4] = 1.0  # the centre is at 3.5, cells count from 1
    torch.testing.assert_close(mask, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("map_size", [(7, 7), (3, 5), (5, 2)])
@pytest.mark.parametrize("coordinates", ["paper", "centred"])
def test_a_spotlight_is_the_inverse_of_the_mixture(map_size, coordinates):
    cells = torch.arange(map_size[0] * map_size[1])
    raw = F.spotlight(cells, map_size, 3, coordinates)
    assert raw.abs().max() <= F.RAW_LIMIT
    alpha, beta, row, col = F.mixture(raw, map_size, coordinates)
    for k in range(3):  # sigmoid(8) is 0.9997: the last row and column are all but reached
        torch.testing.assert_close(row[:, k], (cells // map_size[1] + 1).float(), rtol=4e-4, atol=0)
        torch.testing.assert_close(col[:, k], (cells % map_size[1] + 1).float(), rtol=4e-4, atol=0)
    torch.testing.assert_close(alpha, torch.full_like(alpha, 1 / 3))
    torch.testing.assert_close(beta, torch.full_like(beta, 1.75 * 49 / len(cells)))
    mask = F.attention_mask(F.Mixture(alpha, beta, row, col), map_size)
    assert mask.flatten(1).argmax(dim=1).tolist() == cells.tolist()
    torch.testing.assert_close(mask.amax(dim=(1, 2)), torch.ones(len(cells)), rtol=0, atol=1e-4)


# --- interface and controller -----------------------------------------------------------------------------------------


def test_priority_by_hand():
    mask, saliency = torch.tensor([[[0.5, 1.0, 0.25]]]), torch.tensor([[[0.8, 0.2, 0.0]]])
    torch.testing.assert_close(F.priority(mask, saliency), torch.tensor([[[1.0, 0.5, 0.0]]]))


@pytest.mark.parametrize(("height", "normalised"), [(0.0, 0.0), (9e-16, 0.0), (2e-15, 1.0), (9e-7, 1.0)])
def test_priority_of_hardly_anything_is_zeros_with_zero_gradient(height, normalised):
    mask = torch.full((1, 1, 2), height, requires_grad=True)
    priority = F.priority(mask, torch.tensor([[[0.0, 1.0]]]))
    assert priority.tolist() == [[[0.0, normalised]]]
    priority.sum().backward()
    assert mask.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1.0, 1e-6])
@pytest.mark.parametrize(("difference", "normalised"), [(5e-7, 0.0), (2e-6, 1.0)])
def test_priority_of_a_product_that_differs_by_rounding_is_zeros(difference, normalised, scale):
    mask = scale * torch.tensor([[[1.0, 1.0 + difference]]], dtype=torch.float64)
    assert F.priority(mask, torch.ones_like(mask)).tolist() == [[[0.0, normalised]]]


def test_priority_does_not_depend_on_the_scale_of_the_mask():
    mask, saliency = random(5, 3, 4).sigmoid().float(), random(5, 3, 4, seed=1).sigmoid().float()
    for exponent in (1, 10, 40):  # a power of two rounds nothing
        assert torch.equal(F.priority(mask * 2.0**-exponent, saliency), F.priority(mask, saliency))


@pytest.mark.parametrize("cells_away", [0, 2, 4])
def test_the_gradient_of_priority_is_moderate_however_far_the_object(cells_away):
    """In float32 it is that of float64, which finite differences confirm."""
    saliency = torch.zeros(1, 7, 7, dtype=torch.float64)
    saliency[0, 2:4, 1] = torch.tensor([0.5, 1.0])
    raw = torch.zeros(1, 4, dtype=torch.float64)  # between the two rows
    raw[:, 3] = torch.tensor((2 + cells_away) / 7).logit()

    def place(raw):
        return F.priority(F.attention_mask(F.mixture(raw, (7, 7)), (7, 7)), saliency.to(raw.dtype))

    assert torch.autograd.gradcheck(place, raw.requires_grad_())
    single = raw.detach().float().requires_grad_()
    for start in (raw, single):
        place(start).sum().backward()
    assert 0.01 < raw.grad.abs().max() < 100
    torch.testing.assert_close(single.grad.double(), raw.grad, rtol=1e-3, atol=1e-4)


def test_glimpses_by_hand():
    volume = torch.arange(12.0).view(1, 2, 2, 3)
    mask = torch.tensor([[[1.0, 0.0, 0.5], [0.0, 0.0, 2.0]]])
    assert F.initial_glimpse(mask, volume).tolist() == [[0 + 1 + 10, 6 + 4 + 22]]  # a sum, not a mean
    assert F.glimpse(volume, torch.tensor([4])).tolist() == [[4.0, 10.0]]  # row 1, column 1


@pytest.mark.parametrize("map_size", MAP_SIZES)
def test_interface_and_controller_equal_the_oracle(map_size):
    cells = map_size[0] * map_size[1]
    mask, saliency, volume = random(4, *map_size).abs(), random(4, *map_size, seed=1), random(4, 6, *map_size, seed=2)
    location = torch.tensor([0, cells - 1, cells // 2, cells // 3])
    assert_lanes(F.priority(mask, saliency), reference.priority, mask, saliency)
    assert_lanes(F.initial_glimpse(mask, volume), reference.initial_glimpse, mask, volume)
    assert_lanes(F.glimpse(volume, location), lambda v, a: reference.glimpse(v, int(a)), volume, location)


# --- rewards ----------------------------------------------------------------------------------------------------------


def test_location_rewards_are_the_priority_and_carry_no_gradient():
    priority_map = torch.tensor([[[0.0, 0.25], [1.0, 0.5]]], requires_grad=True)
    rewards = F.location_rewards(priority_map)
    assert rewards.tolist() == [[0.0, 0.25, 1.0, 0.5]]
    assert not rewards.requires_grad


@pytest.mark.parametrize(
    ("labels", "final", "positive"),
    [
        ((2, 2, 7), None, {2, 7}),
        ((), None, {STOP}),
        ((2, 2, 7), False, {2, 7}),
        ((), False, set()),  # teacher: stop is never in the multiset
    ],
)
def test_label_rewards_by_hand(labels, final, positive):
    rewards = F.label_rewards(counts(*labels), None if final is None else torch.tensor([final]))
    assert rewards.dtype == torch.float32
    assert rewards.tolist() == [[1.0 if label in positive else -1.0 for label in range(STOP + 1)]]


@pytest.mark.parametrize("labels", [(), (3,), (3, 3)])
def test_the_teachers_final_step_earns_nothing_whatever_remains(labels):
    assert F.label_rewards(counts(*labels), torch.tensor([True])).tolist() == [[0.0] * (STOP + 1)]


@pytest.mark.parametrize(
    ("labels", "label", "left"),
    [((2, 2, 7), 2, (2, 7)), ((2, 7), 2, (7,)), ((7,), 2, (7,)), ((2, 2, 7), STOP, (2, 2, 7)), ((), 0, ())],
)
def test_take_by_hand(labels, label, left):
    assert F.take(counts(*labels), torch.tensor([label])).tolist() == counts(*left).tolist()


few_labels = st.lists(st.integers(0, 3), max_size=7)  # few, so that they repeat


def rewards_of(labels: list[int], sequence: list[int]) -> list[float]:
    remaining, rewards = counts(*labels), []
    for label in sequence:
        rewards.append(F.label_rewards(remaining)[0, label].item())
        remaining = F.take(remaining, torch.tensor([label]))
    return rewards


@given(few_labels, few_labels, st.data())
def test_the_total_reward_does_not_depend_on_the_order_of_labels(labels, sequence, data):
    """Section 4.2: for any permutation of a sequence of labels (without stop) the sum of rewards is the same."""
    permuted = data.draw(st.permutations(sequence))
    assert sum(rewards_of(labels, sequence)) == sum(rewards_of(labels, permuted))


@given(few_labels, st.lists(st.sampled_from([0, 1, 2, 9, STOP])), st.sampled_from(["free", "teacher"]), st.booleans())
def test_label_rewards_and_take_equal_the_oracle(labels, sequence, protocol, final):
    remaining, available = counts(*labels), list(labels)
    at_end = None if protocol == "free" else torch.tensor([final])
    for label in sequence:
        expected = [reference.label_reward(available, one, protocol, final) for one in range(STOP + 1)]
        assert F.label_rewards(remaining, at_end)[0].tolist() == expected
        remaining, available = F.take(remaining, torch.tensor([label])), reference.without(available, label)
        assert remaining.tolist() == counts(*available).tolist()


# --- update -----------------------------------------------------------------------------------------------------------

SALIENCY, MASK = [[[1.0, 0.5, 0.25]]], [[[0.25, 0.5, 0.125]]]


@pytest.mark.parametrize(
    ("rule", "locations", "left"),
    [
        ("paper", [], [0.75, 0.0, 0.125]),
        ("paper", [0], [0.0, 0.0, 0.125]),
        ("paper", [2, 2], [0.75, 0.0, 0.0]),
        ("peak", [], [0.5, 0.0, 0.0]),
        ("peak", [0], [0.0, 0.0, 0.0]),
        ("none", [0, 1], [1.0, 0.5, 0.25]),
    ],
)
def test_update_by_hand(rule, locations, left):
    cells = torch.tensor([locations], dtype=torch.int64)
    updated = F.update_saliency(torch.tensor(SALIENCY), torch.tensor(MASK), cells, rule)
    assert updated.tolist() == [[left]]


@pytest.mark.parametrize("rule", ["paper", "peak", "none"])
@pytest.mark.parametrize("map_size", MAP_SIZES)
@pytest.mark.parametrize("glimpses", [0, 1, 3])
def test_update_equals_the_oracle(rule, map_size, glimpses):
    saliency, mask = random(4, *map_size).sigmoid(), random(4, *map_size, seed=1).sigmoid()
    generator = torch.Generator().manual_seed(2)
    locations = torch.randint(map_size[0] * map_size[1], (4, glimpses), generator=generator)
    updated = F.update_saliency(saliency, mask, locations, rule)
    assert_lanes(updated, lambda s, m, a: reference.update(s, m, a.tolist(), rule), saliency, mask, locations)


@pytest.mark.parametrize("rule", ["paper", "peak"])
def test_an_empty_mask_suppresses_only_what_was_glimpsed(rule):
    saliency = torch.tensor(SALIENCY)
    updated = F.update_saliency(saliency, torch.zeros_like(saliency), torch.tensor([[1]]), rule)
    assert updated.tolist() == [[[1.0, 0.0, 0.25]]]


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coordinates", ["paper", "centred"])
@pytest.mark.parametrize("beta", ["bounded", "exp"])
@pytest.mark.parametrize("scale", ["paper", "peak"])
@pytest.mark.parametrize("rule", ["paper", "peak"])
def test_gradients_through_a_meta_step(coordinates, beta, scale, rule):
    """By finite differences: attention and volume to mask, priority, first glimpse and next saliency."""
    map_size, locations = (3, 4), torch.tensor([[5, 0], [2, 2]])

    def meta_step(raw, volume):
        saliency = F.normalise(F.sum_of_squares(volume))
        mask = F.attention_mask(F.mixture(raw, map_size, coordinates, beta), map_size, scale)
        following = F.update_saliency(saliency, mask, locations, rule)
        return mask, F.priority(mask, saliency), F.initial_glimpse(mask, volume), following

    raw, volume = 0.5 * random(2, 8, seed=3), random(2, 2, *map_size, seed=4)
    assert torch.autograd.gradcheck(meta_step, (raw.requires_grad_(), volume.requires_grad_()))


def test_a_glimpses_gradient_goes_to_its_column():
    volume = random(1, 2, 2, 3).requires_grad_()
    F.glimpse(volume, torch.tensor([4])).sum().backward()
    assert volume.grad.sum(dim=1).tolist() == [[[0, 0, 0], [0, 2, 0]]]
