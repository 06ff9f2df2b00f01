"""Drawn attention: hand-worked numbers, densities against torch's, samples, gradients, and that acting and evaluating agree."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agents.actor_critic import ActorCritic, AgentState
from agents.config import AgentConfig
from agents.drawn_attention import (
    EXTENT,
    FIRST_AWAY,
    FIRST_EXTENT,
    STD,
    AttentionDraw,
    DrawnAttention,
    mode,
    of_cells,
)
from agents.evaluation import make_env
from agents.protocol import World
from agents.rollout import Rollout, collect
from agents.sampling import SharedGenerator, sample_normal
from agents.trajectory import each, taken
from hsal_env import functional as F
from hsal_env.config import EnvConfig
from hsal_env.dynamics import first_lanes
from hsal_env.errors import ConfigError
from hsal_env.rules import Rules
from hsal_env.spaces import raw_attention
from hsal_env.vector_env import HSALVectorEnv

SIZES = {"meta_hidden": 12, "controller_hidden": 20, "location_hidden": 8, "attention_policy": "drawn"}
LANES, LABELS = 8, 11
NO_LABEL = LABELS


def level(map_size: tuple[int, int] = (7, 7), components: int = 9, prior: float = 20.0, **rules) -> DrawnAttention:
    torch.manual_seed(0)
    return DrawnAttention(map_size, LABELS, Rules(components=components, **rules), 12, 8, prior)


def silent(net: DrawnAttention) -> DrawnAttention:
    """Its MLP says nothing, so the saliency alone decides."""
    for weight in net.cell.parameters():
        nn.init.zeros_(weight)
    return net


def seeing(net: DrawnAttention) -> DrawnAttention:
    """Its convolutions say something, which at first they do not."""
    nn.init.normal_(net.look[2].weight)
    return net


def digits_env(lanes: int = LANES, **config) -> HSALVectorEnv:
    known = {"source": "digits", "num_examples": 32, "features": "store", "components": 9, "protocol": "teacher"}
    return make_env(EnvConfig(**{**known, **config}), lanes)


def drawing(world: World, **config) -> ActorCritic:
    """Far from its first weights, so that every input of every head decides."""
    torch.manual_seed(0)
    agent = ActorCritic(world, AgentConfig(**{**SIZES, **config}))
    with torch.no_grad():
        agent.meta_controller.cell[2].weight.mul_(10)
        agent.meta_controller.mean.weight.normal_()
        agent.meta_controller.look[2].weight.normal_()
        agent.meta_controller.saliency_prior.fill_(3.0)
        agent.controller.label.weight.mul_(10)
    return agent


@pytest.fixture(scope="module")
def env() -> HSALVectorEnv:
    return digits_env()


@pytest.fixture(scope="module")
def agent(env: HSALVectorEnv) -> ActorCritic:
    return drawing(World.of(env.simulation.examples))


@pytest.fixture(scope="module")
def rollout(env: HSALVectorEnv, agent: ActorCritic) -> Rollout:
    return collect(env, agent, np.arange(LANES), generator=torch.Generator().manual_seed(0))


# --- the lattice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coordinates", ["paper", "centred"])
def test_the_lattice_by_hand(coordinates: str):
    raw = F.lattice(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.5]]), (7, 7), 9, coordinates)
    place = F.mixture(raw, (7, 7), coordinates)
    torch.testing.assert_close(place.row, torch.tensor([[2.0, 2, 2, 3, 3, 3, 4, 4, 4]]))
    torch.testing.assert_close(place.col, torch.tensor([[3.5, 4, 4.5] * 3]))
    torch.testing.assert_close(place.alpha, torch.full((1, 9), 1 / 9))
    torch.testing.assert_close(place.beta, torch.full((1, 9), 1.75))


@pytest.mark.parametrize("coordinates", ["paper", "centred"])
@pytest.mark.parametrize("components", [1, 4, 25])
def test_a_lattice_that_reaches_nowhere_is_a_spotlight(components: int, coordinates: str):
    cells = torch.arange(6)
    centre = torch.stack([cells // 3, cells % 3], dim=1) + 1.0
    raw = F.lattice(centre, torch.zeros(6, 2), (2, 3), components, coordinates)
    assert torch.equal(raw, F.spotlight(cells, (2, 3), components, coordinates))


def test_beyond_the_map_the_lattice_is_what_an_action_can_say_and_the_gradient_finite():
    centre, reach = torch.tensor([[0.0, 9.0]], requires_grad=True), torch.tensor([[2.0, 2.0]], requires_grad=True)
    raw = F.lattice(centre, reach, (7, 7), 9)
    assert raw.abs().max() == F.RAW_LIMIT
    raw.sum().backward()
    assert centre.grad.isfinite().all()
    assert reach.grad.isfinite().all()


def test_the_lattice_has_a_gradient_inside_the_map():
    centre = torch.tensor([[3.0, 4.5]], dtype=torch.float64, requires_grad=True)
    reach = torch.tensor([[1.0, 0.5]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *given: F.lattice(*given, (7, 7), 4), (centre, reach))


@pytest.mark.parametrize(("cell", "row", "col"), [(0, 1.0, 1.0), (24, 4.0, 4.0)])
def test_attention_by_hand(cell: int, row: float, col: float):
    drawn = AttentionDraw(torch.tensor([cell]), torch.zeros(1), torch.tensor([[math.atanh(0.5), 0.0]]))
    place = F.mixture(
        level().attention(drawn), (7, 7)
    )  # the extent is 2 sigmoid(0) = 1 cell, the shift half a cell down
    rows = torch.tensor([row - 0.5, row + 0.5, row + 1.5]).clamp(min=7 * torch.tensor(-8.0).sigmoid().item())
    cols = torch.tensor([col - 1, col, col + 1]).clamp(min=7 * torch.tensor(-8.0).sigmoid().item())
    torch.testing.assert_close(place.row.view(3, 3)[:, 0], rows)
    torch.testing.assert_close(place.col.view(3, 3)[0], cols)


def test_on_a_finer_map_the_same_numbers_cover_the_same_share_of_it():
    drawn = AttentionDraw(torch.tensor([7 * 14 + 6]), torch.zeros(1), torch.zeros(1, 2))
    place = F.mixture(level((14, 14)).attention(drawn), (14, 14))
    torch.testing.assert_close(place.row.view(3, 3)[:, 0], torch.tensor([6.0, 8.0, 10.0]))  # two cells of 14, one of 7
    torch.testing.assert_close(place.col.view(3, 3)[0], torch.tensor([5.0, 7.0, 9.0]))


def test_with_widths_in_cells_the_same_numbers_cover_as_many_cells_of_any_map():
    drawn = AttentionDraw(torch.tensor([7 * 14 + 6]), torch.zeros(1), torch.tensor([[math.atanh(0.5), 0.0]]))
    place = F.mixture(level((14, 14), width_unit="cell").attention(drawn), (14, 14))
    torch.testing.assert_close(place.row.view(3, 3)[:, 0], torch.tensor([7.5, 8.5, 9.5]))  # half a cell down, reach 1
    torch.testing.assert_close(place.col.view(3, 3)[0], torch.tensor([6.0, 7.0, 8.0]))


def test_with_widths_in_cells_the_patch_and_the_surroundings_are_of_neighbouring_cells():
    saliency = torch.zeros(1, 14, 14)
    saliency[0, 6, 5] = 1.0  # left of cell 6 * 14 + 6
    for unit, seen, around in (("cell", 0.5, 9), ("map", 0.0, 25)):  # a seventh of the map is two cells
        net = level((14, 14), width_unit=unit)
        with torch.no_grad():
            net.mean.weight.view(3, 5, 5)[1, 2, 1] = 0.5  # x_1 reads the patch's left neighbour
        assert net.means(saliency, torch.tensor([6 * 14 + 6]))[0, 1].item() == seen
        assert int(net._around(saliency.flatten(1)).sum()) == around


def test_on_a_map_that_is_not_square_the_mask_is_and_follows_the_shorter_side():
    drawn = AttentionDraw(torch.tensor([6 * 28 + 9]), torch.zeros(1), torch.tensor([[0.0, math.atanh(0.5)]]))
    place = F.mixture(level((14, 28)).attention(drawn), (14, 28))
    torch.testing.assert_close(place.row.view(3, 3)[:, 0], torch.tensor([5.0, 7.0, 9.0]))
    torch.testing.assert_close(place.col.view(3, 3)[0], torch.tensor([9.0, 11.0, 13.0]))  # shifted by half of 14 / 7


# --- the distribution -------------------------------------------------------------------------------------------------


def test_cells_are_drawn_from_a_softmax_of_saliency_by_hand():
    net = silent(level((2, 3), prior=math.log(2)))
    saliency = torch.tensor([[[0.0, 0.0, 1.0], [2.0, 0.0, 0.0]]])
    choices, _, _ = net(saliency, torch.tensor([NO_LABEL]), torch.zeros(1, 12 + 6))
    expected = torch.tensor([[[1.0, 1.0, 2.0, 4.0, 1.0, 1.0], [0.25, 0.25, 0.5, 0.25, 0.25, 0.5]]]) / 12
    torch.testing.assert_close(choices.exp(), expected)


def test_the_second_way_keeps_away_from_what_has_ever_stood_out():
    net, none = silent(level((1, 6), prior=math.log(2))), torch.tensor([NO_LABEL])
    _, _, state = net(torch.tensor([[[0.0, 2.0, 0.0, 0.0, 0.0, 1.0]]]), none, torch.zeros(1, 12 + 6))
    choices, _, state = net(torch.tensor([[[0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]]), none, state)  # the second was wiped
    assert state[0, 12:].tolist() == [0.0, 2.0, 0.0, 0.0, 0.0, 1.0]
    expected = torch.tensor([[[1.0, 1.0, 1.0, 1.0, 1.0, 2.0], [0.25, 0.25, 0.25, 1.0, 0.5, 0.5]]]) / 9.75
    torch.testing.assert_close(choices.exp(), expected)
    assert mode(choices).item() == 5
    on_nothing, _, _ = net(torch.zeros(1, 1, 6), none, state - 1.0)  # T is at most 1 here, and nothing is left
    assert on_nothing[0, 1].argmax() == 3


def test_convolutions_see_what_is_there_and_what_was_wiped_beside_a_cell_by_hand():
    net = silent(level((1, 7), prior=0.0))
    for weight in net.look.parameters():
        nn.init.zeros_(weight)
    with torch.no_grad():
        net.look[0].weight[0, 0, 1, 1] = 1.0  # what a cell has
        net.look[0].weight[0, 1, 1, 2] = -2.0  # less what was wiped on its right
        net.look[2].weight[0, 0, 1, 1] = 3.0
        net.look[2].weight[1, 0, 1, 1] = -1.0
    state = torch.zeros(1, 12 + 7)
    state[0, 12:] = torch.tensor([0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0])  # T
    choices, _, _ = net(torch.tensor([[[0.0, 1.0, 1.5, 0.5, 0.0, 0.25, 0.0]]]), torch.tensor([NO_LABEL]), state)
    seen = torch.tensor([0.0, 1.0, 1.5, 0.5, 0.0, 0.25, 0.0])  # nothing was wiped yet
    torch.testing.assert_close(choices, torch.stack([3 * seen, -seen]).flatten().log_softmax(0).view(1, 2, 7))
    state[0, 12 + 3] = 1.0  # half of the fourth is gone
    choices, _, _ = net(torch.tensor([[[0.0, 1.0, 1.5, 0.5, 0.0, 0.25, 0.0]]]), torch.tensor([NO_LABEL]), state)
    seen[2] = 0.5
    torch.testing.assert_close(choices, torch.stack([3 * seen, -seen]).flatten().log_softmax(0).view(1, 2, 7))


def test_at_first_the_convolutions_say_nothing():
    assert not any(part.any() for part in level().look[2].parameters())
    assert level().look[0].weight.any()


@pytest.mark.parametrize(("map_size", "apart"), [((7, 7), 1), ((14, 20), 2), ((28, 28), 4)])
def test_on_a_finer_map_the_convolutions_reach_as_far(map_size: tuple[int, int], apart: int):
    net = silent(seeing(level(map_size, prior=0.0)))
    saliency, cell = torch.zeros(2, *map_size), (map_size[0] // 2, map_size[1] // 2)
    saliency[1, cell[0], cell[1]] = 1.0
    label, state = torch.tensor([NO_LABEL] * 2), torch.zeros(2, net.state_size)
    choices, _, _ = net(saliency, label, state)
    rows, cols = torch.nonzero(
        (choices[1] - choices[0] - (choices[1] - choices[0])[0, 0]).abs()[0].view(map_size) > 1e-5
    ).T
    assert {*(rows - cell[0]).tolist()} == {*(cols - cell[1]).tolist()} == {-2 * apart, -apart, 0, apart, 2 * apart}


@pytest.mark.parametrize(("map_size", "reach"), [((7, 7), 1), ((14, 20), 2)])
def test_around_a_cell_counts_its_greatest_neighbour(map_size: tuple[int, int], reach: int):
    maps = torch.rand(3, *map_size)
    found = level(map_size)._around(maps.flatten(1)).view_as(maps)
    for row in range(map_size[0]):
        for col in range(map_size[1]):
            about = maps[:, max(row - reach, 0) : row + reach + 1, max(col - reach, 0) : col + reach + 1]
            assert torch.equal(found[:, row, col], about.amax(dim=(1, 2)))


def test_the_scores_of_cells_are_those_of_the_state_plus_a_multiple_of_saliency():
    net = seeing(level((2, 3), prior=2.5))
    saliency, label, before = torch.rand(4, 2, 3), torch.tensor([0, 5, 10, NO_LABEL]), torch.randn(4, 12 + 6)
    choices, value, state = net(saliency, label, before)
    x = torch.cat([saliency.flatten(1), torch.eye(LABELS + 1)[label][:, :LABELS]], dim=1)
    hidden = net.gru(net.encode(x), before[:, :12])
    ever = torch.maximum(before[:, 12:], saliency.flatten(1))
    around = torch.stack([ever[:, [0, 1, 3, 4]].amax(1), ever.amax(1), ever[:, [1, 2, 4, 5]].amax(1)] * 2, dim=1)
    torch.testing.assert_close(state, torch.cat([hidden, ever], dim=1))
    first, _, second = net.cell
    scores = (hidden @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias
    seen = net.look(torch.stack([saliency, ever.view_as(saliency) - saliency], dim=1)).flatten(1)
    on, away = scores[:, :6] + 2.5 * saliency.flatten(1) + seen[:, :6], scores[:, 6:] - 2.5 * around + seen[:, 6:]
    everything = on.exp().sum(1) + away.exp().sum(1)
    torch.testing.assert_close(choices[:, 0].exp(), on.exp() / everything[:, None])
    torch.testing.assert_close(choices[:, 1].exp(), away.exp() / everything[:, None])
    torch.testing.assert_close(of_cells(choices).exp(), choices.exp().sum(dim=1))
    torch.testing.assert_close(value, hidden @ net.value.weight[0] + net.value.bias)


def patch_of(saliency: np.ndarray, cell: int, step: int) -> list[float]:
    """The 25 numbers about a cell, one by one."""
    rows, cols = saliency.shape
    found = []
    for down in range(-2, 3):
        for across in range(-2, 3):
            row, col = cell // cols + step * down, cell % cols + step * across
            found.append(float(saliency[row, col]) if 0 <= row < rows and 0 <= col < cols else 0.0)
    return found


@pytest.mark.parametrize(("map_size", "step"), [((7, 7), 1), ((3, 4), 1), ((14, 14), 2), ((7, 20), 1)])
def test_means_are_linear_in_the_patch_about_the_cell(map_size: tuple[int, int], step: int):
    net = level(map_size)
    nn.init.normal_(net.mean.weight)
    cells = torch.arange(map_size[0] * map_size[1])
    saliency = torch.rand(len(cells), *map_size)
    patches = torch.tensor([patch_of(one.numpy(), i, step) for i, one in enumerate(saliency)])
    torch.testing.assert_close(net.means(saliency, cells), patches @ net.mean.weight.T + net.mean.bias)


def test_at_first_the_means_are_a_small_mask_on_the_cell():
    net = level()
    means = net.means(torch.rand(2, 7, 7), torch.tensor([0, 24]))
    assert means.tolist() == [[FIRST_EXTENT, 0.0, 0.0]] * 2
    assert EXTENT * torch.tensor(FIRST_EXTENT).sigmoid().item() == pytest.approx(0.5379, abs=1e-4)


def test_at_first_a_cell_where_nothing_was_is_worth_a_saliency_of_0_15():
    net = level((2, 3))
    nn.init.zeros_(net.cell[2].weight)
    nn.init.zeros_(net.cell[2].bias[:6])
    with torch.no_grad():
        net.cell[2].bias[6:] = FIRST_AWAY
    saliency = torch.tensor([[[0.15, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    choices, _, _ = net(saliency, torch.tensor([NO_LABEL]), torch.zeros(1, 12 + 6))
    torch.testing.assert_close(choices[0, 0, 0], choices[0, 1, 2])
    torch.testing.assert_close(choices[0, 1, 0], choices[0, 0, 2])
    bias = level().cell[2].bias.detach()
    assert (bias[:49].abs() < 1).all()
    assert ((bias[49:] - FIRST_AWAY).abs() < 1).all()


def test_log_probability_and_entropy_by_hand():
    net = level((1, 2))  # two cells, one three times as probable as the other
    choices = torch.tensor([[[0.05, 0.7], [0.2, 0.05]]]).log()
    drawn = AttentionDraw(torch.tensor([1]), torch.tensor([FIRST_EXTENT + STD]), torch.tensor([[0.0, -2 * STD]]))
    found = net.scores(drawn, choices, torch.zeros(1, 1, 2), torch.tensor([0.5]))
    normal = -(1 + 0 + 4) / 2 - 3 * math.log(0.3 * math.sqrt(2 * math.pi))
    assert found.log_probs.item() == pytest.approx(math.log(0.75) + normal, abs=1e-5)
    of_cells = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert found.entropies.item() == pytest.approx(
        of_cells + 3 * (0.5 + math.log(0.3 * math.sqrt(2 * math.pi))), abs=1e-5
    )
    assert found.values.item() == 0.5


def test_densities_are_those_of_torch(agent: ActorCritic):
    meta, saliency = agent.meta_controller, torch.rand(50, 7, 7)
    choices, value, _ = meta(saliency, torch.randint(LABELS + 1, (50,)), torch.randn(50, 12 + 49))
    drawn = meta.draw(choices, saliency, False, torch.Generator().manual_seed(0))
    found = meta.scores(drawn, choices, saliency, value)
    cells = torch.distributions.Categorical(probs=choices.exp().sum(dim=1))
    numbers = torch.distributions.Normal(meta.means(saliency, drawn.cell), STD)
    x = torch.cat([drawn.extent[:, None], drawn.shift], dim=1)
    torch.testing.assert_close(found.log_probs, cells.log_prob(drawn.cell) + numbers.log_prob(x).sum(1))
    torch.testing.assert_close(found.entropies, cells.entropy() + numbers.entropy().sum(1))


def test_samples_follow_the_distribution():
    net, many = silent(level((2, 3), prior=math.log(2))), 20_000
    nn.init.normal_(net.mean.weight)
    saliency = torch.tensor([[[0.0, 0.0, 1.0], [2.0, 0.0, 0.0]]]).expand(many, -1, -1)
    choices, _, _ = net(saliency, torch.full((many,), NO_LABEL), torch.zeros(many, 12 + 6))
    drawn = net.draw(choices, saliency, False, torch.Generator().manual_seed(0))
    frequency = torch.bincount(drawn.cell, minlength=6) / many
    torch.testing.assert_close(frequency, of_cells(choices)[0].exp(), rtol=0, atol=5 * 0.5 / many**0.5)
    apart = torch.cat([drawn.extent[:, None], drawn.shift], dim=1) - net.means(saliency, drawn.cell)
    torch.testing.assert_close(apart.mean(0), torch.zeros(3), rtol=0, atol=5 * STD / many**0.5)
    torch.testing.assert_close(apart.std(0), torch.full((3,), STD), rtol=0.05, atol=0)
    assert not any(part.requires_grad for part in drawn)


@pytest.mark.parametrize(
    ("on", "away", "cell"),
    [
        ([0.4, 0.5, 0.02, 0.02], [0.03, 0.01, 0.01, 0.01], 1),
        ([0.28, 0.02, 0.02, 0.02], [0.16, 0.17, 0.18, 0.15], 2),  # no cell is as probable as 0, but away has 0.66
        (
            [0.3, 0.08, 0.08, 0.05],
            [0.0, 0.24, 0.25, 0.0],
            0,
        ),  # away has 0.49
        ([0.0, 0.0, 0.0, 0.1], [0.5, 0.2, 0.1, 0.1], 0),
    ],
)
def test_the_cell_of_the_mode_by_hand(on: list[float], away: list[float], cell: int):
    assert mode(torch.tensor([[on, away]]).log()).tolist() == [cell]


def test_the_mode_has_the_means_of_its_cell_and_draws_nothing(agent: ActorCritic):
    meta, saliency, generator = agent.meta_controller, torch.rand(20, 7, 7), torch.Generator().manual_seed(0)
    choices, _, _ = meta(saliency, torch.full((20,), NO_LABEL), torch.zeros(20, 12 + 49))
    before = generator.get_state()
    fixed = meta.draw(choices, saliency, True, generator)
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(fixed.cell, mode(choices))
    assert torch.equal(torch.cat([fixed.extent[:, None], fixed.shift], 1), meta.means(saliency, fixed.cell))
    drawn = meta.draw(choices, saliency, False, generator)
    assert not torch.equal(generator.get_state(), before)
    assert not torch.equal(drawn.cell, fixed.cell)


def test_processes_together_draw_what_one_draws():
    mean, everyone = torch.randn(6, 3), torch.Generator
    whole = sample_normal(mean, STD, everyone().manual_seed(5))
    parts = []
    for lanes in (slice(0, 3), slice(3, 6)):
        shared = SharedGenerator.seeded(torch.device("cpu"), everyone().manual_seed(5), 7, lanes, 6)
        parts.append(sample_normal(mean[lanes], STD, shared))
    assert torch.equal(torch.cat(parts), whole)


def test_what_attention_is_drawn_about_is_looked_at():
    """The mask peaks at its cell while the shift is small, wherever the cell is."""
    net = level(components=25)
    drawn = AttentionDraw(torch.arange(49), torch.full((49,), FIRST_EXTENT), torch.zeros(49, 2))
    mask = F.attention_mask(F.mixture(net.attention(drawn), (7, 7)), (7, 7))
    assert mask.flatten(1).argmax(1).tolist() == list(range(49))


# --- the agent --------------------------------------------------------------------------------------------------------


def test_evaluate_gives_a_draw_the_scores_that_act_gave_it(agent: ActorCritic, rollout: Rollout):
    trajectory = rollout.trajectory
    evaluation = agent.evaluate(trajectory)
    live, stored = trajectory.live, trajectory.attention
    assert not live.all()
    torch.testing.assert_close(evaluation.attention.log_probs[live], stored.log_probs[live], rtol=0, atol=1e-4)
    torch.testing.assert_close(evaluation.attention.values[live], stored.values[live], rtol=0, atol=1e-5)
    below = live[:, None].expand_as(trajectory.values)
    torch.testing.assert_close(taken(trajectory, evaluation)[below], trajectory.log_probs[below], rtol=0, atol=1e-4)
    torch.testing.assert_close(evaluation.values[below], trajectory.values[below], rtol=0, atol=1e-5)
    assert stored.draws.cell.unique().numel() > 5
    assert not evaluation.attention.log_probs[~live].any()


def test_evaluate_reads_the_draws(agent: ActorCritic, rollout: Rollout):
    trajectory = rollout.trajectory
    other = trajectory.attention._replace(draws=each(lambda part: part.flip(1), trajectory.attention.draws))
    one, two = (agent.evaluate(given) for given in (trajectory, trajectory._replace(attention=other)))
    assert not torch.allclose(one.attention.log_probs, two.attention.log_probs)
    assert not torch.allclose(one.label_log_probs, two.label_log_probs)


def test_some_lanes_of_a_trajectory_keep_their_draws(agent: ActorCritic, rollout: Rollout):
    chosen = torch.tensor([5, 2])
    part, whole = rollout.trajectory.lanes(chosen), rollout.trajectory.attention
    assert torch.equal(part.attention.draws.shift, whole.draws.shift[:, chosen])
    assert torch.equal(part.attention.rewards, whole.rewards[:, chosen])
    found, expected = agent.evaluate(part).attention, agent.evaluate(rollout.trajectory).attention
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other[:, chosen])


def test_lanes_in_mixed_phases_decide_together_what_they_decide_alone(env: HSALVectorEnv, agent: ActorCritic):
    seen, _ = env.reset(options={"index": np.arange(LANES)})
    seen = {name: part.clone() for name, part in seen.items()}
    state = AgentState(torch.randn(LANES, 12 + 49), torch.randn(LANES, 20), torch.rand(LANES, 1))
    alone = agent.act(seen, state, True)
    seen["phase"][::2] = 3
    mixed = agent.act(seen, state, True)
    for name in ("log_prob", "value", "entropy"):
        torch.testing.assert_close(getattr(mixed, name)[1::2], getattr(alone, name)[1::2])
    torch.testing.assert_close(mixed.action["attention"][1::2], alone.action["attention"][1::2])
    for one, other in zip(mixed.draws, alone.draws, strict=True):
        torch.testing.assert_close(one[1::2], other[1::2])
        assert not one[::2].any()
    seen["phase"][:] = 3
    assert agent.act(seen, state, True).draws is None


@pytest.mark.parametrize("controller_state", ["reset", "carry"])
def test_attention_without_drawing_is_the_mode(env: HSALVectorEnv, agent: ActorCritic, controller_state: str):
    agent = drawing(agent.world, controller_state=controller_state)
    saliency, label = torch.rand(3, 7, 7), torch.tensor([0, 1, NO_LABEL])
    before = AgentState(torch.randn(3, 12 + 49), torch.randn(3, 20), torch.rand(3, 1))
    raw, after = agent.attend(saliency, label, before)
    attended = agent.draw(saliency, label, before, deterministic=True)
    assert torch.equal(raw, attended.attention)
    assert torch.equal(after.meta_state, attended.state.meta_state)
    assert not torch.equal(after.meta_state, before.meta_state)
    kept = before.controller_state if controller_state == "carry" else torch.zeros(3, 20)
    assert torch.equal(after.controller_state, kept)
    drawn = agent.draw(saliency, label, before, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(drawn.attention, raw)
    assert raw_attention(raw / 8).abs().max() <= F.RAW_LIMIT


def heard(agent: ActorCritic, loss: Tensor) -> set[str]:
    """Names of the modules that a loss reaches."""
    names, weights = zip(*agent.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, weights, allow_unused=True, retain_graph=True)
    reached = (name for name, part in zip(names, gradients, strict=True) if part is not None and part.any())
    return {".".join(name.split(".")[:2]) for name in reached}


def test_each_level_learns_from_its_own_scores_alone(agent: ActorCritic, rollout: Rollout):
    evaluation = agent.evaluate(rollout.trajectory)
    policy = {
        f"meta_controller.{name}" for name in ("encode", "gru", "cell", "saliency_prior", "away_prior", "look", "mean")
    }
    assert heard(agent, evaluation.attention.log_probs.sum()) == policy
    assert heard(agent, evaluation.attention.entropies.sum()) == policy - {"meta_controller.mean"}
    assert heard(agent, evaluation.attention.values.sum()) == {"meta_controller.value"}
    lower = taken(rollout.trajectory, evaluation).sum() + evaluation.values.sum()
    assert not any(name.startswith("meta_controller") for name in heard(agent, lower))


def test_the_score_function_is_the_gradient_of_the_expected_reward():
    """Over all cells, at one meta-step: sum_c p(c) r(c) grad log p(c) = grad sum_c p(c) r(c)."""
    net, reward = level((2, 3), prior=2.0), torch.rand(6)
    saliency = torch.rand(1, 2, 3)
    choices, value, _ = net(saliency, torch.tensor([NO_LABEL]), torch.zeros(1, 12 + 6))
    log_probs = of_cells(choices)
    weights = [net.saliency_prior, net.away_prior, *net.cell.parameters(), *net.encode.parameters()]
    expected = torch.autograd.grad((log_probs.exp() * reward).sum(), weights, retain_graph=True)
    lanes = saliency.expand(6, -1, -1)
    drawn = AttentionDraw(torch.arange(6), torch.full((6,), FIRST_EXTENT), torch.zeros(6, 2))
    scores = net.scores(drawn, choices.expand(6, -1, -1), lanes, value.expand(6))
    found = torch.autograd.grad((log_probs[0].exp().detach() * reward * scores.log_probs).sum(), weights)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_states_of_ended_lanes_can_be_left_out(agent: ActorCritic):
    state = AgentState(torch.randn(3, 12 + 49), torch.randn(3, 20), torch.rand(3, 1))
    saliency, label = torch.rand(3, 7, 7), torch.tensor([0, 1, 2])
    whole = agent.draw(saliency, label, state, deterministic=True)
    part = agent.draw(saliency[:2], label[:2], first_lanes(state, 2), deterministic=True)
    torch.testing.assert_close(part.scores.log_probs, whole.scores.log_probs[:2])


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("components", [2, 5, 8])
def test_a_lattice_needs_a_square_number(components: int):
    world = World(Rules(components=components), (7, 7), 3, 10)
    with pytest.raises(
        ConfigError, match=f"attention_policy='drawn' needs a square number of components; got {components}"
    ):
        ActorCritic(world, AgentConfig(**SIZES))


def test_an_agent_whose_attention_is_deterministic_draws_nothing():
    agent = ActorCritic(World(Rules(), (7, 7), 3, 10), AgentConfig(**{**SIZES, "attention_policy": "learned"}))
    with pytest.raises(ConfigError, match="attention_policy='drawn'; got 'learned'"):
        agent.draw(torch.rand(1, 7, 7), torch.tensor([0]), agent.initial(1))


def test_a_trajectory_of_the_other_kind_is_refused(env: HSALVectorEnv, agent: ActorCritic, rollout: Rollout):
    with pytest.raises(ConfigError, match=r"a trajectory with draws of attention.*'drawn'.*without them"):
        agent.evaluate(rollout.trajectory._replace(attention=None))
    other = ActorCritic(agent.world, AgentConfig(**{**SIZES, "attention_policy": "learned"}))
    with pytest.raises(ConfigError, match=r"a trajectory without draws of attention.*'learned'.*with them"):
        other.evaluate(rollout.trajectory)


@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_a_saliency_prior_outside_its_range_is_named(value: float):
    with pytest.raises(ConfigError, match="saliency_prior"):
        AgentConfig(saliency_prior=value)
