"""The paper's agent: what its networks read, where gradients go, and that acting and evaluating are one computation."""

import itertools
import math
from importlib.metadata import EntryPoint

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hsal_env  # noqa: F401, registers the ids
from agents import protocol
from agents.actor_critic import ActorCritic, AgentState
from agents.config import AgentConfig
from agents.evaluation import make_env
from agents.protocol import Agent, World, build_agent, find_agent
from agents.rollout import Rollout, collect
from agents.trajectory import taken
from hsal_env import functional as F
from hsal_env import plugins
from hsal_env.config import EnvConfig
from hsal_env.errors import ConfigError
from hsal_env.rules import Rules
from hsal_env.spaces import raw_attention
from hsal_env.vector_env import HSALVectorEnv

CELLS, CLASSES, CHANNELS = 6, 10, 3
STOP, NO_LABEL, NO_LOCATION = CLASSES, CLASSES + 1, CELLS
WORLD = World(Rules(components=2), (2, 3), CHANNELS, CLASSES)
SIZES = {"meta_hidden": 12, "controller_hidden": 20, "location_hidden": 8}
LANES = 8


def small_agent(world: World = WORLD, seed: int = 0, **config) -> ActorCritic:
    torch.manual_seed(seed)
    return ActorCritic(world, AgentConfig(**{**SIZES, **config}))


def digits_env(lanes: int = LANES, **config) -> HSALVectorEnv:
    return make_env(EnvConfig(**{"source": "digits", "num_examples": 32, "features": "store", **config}), lanes)


def world_of(env: HSALVectorEnv) -> World:
    examples = env.simulation.examples
    return World(env.simulation.rules, examples.map_size, examples.channels, CLASSES)


def decisive(agent: ActorCritic) -> ActorCritic:
    """Far from uniform, so that images decide, and no rounding does."""
    with torch.no_grad():
        agent.controller.encode.weight.mul_(5)
        agent.controller.label.weight.mul_(30)
        agent.controller.location[2].weight.mul_(30)
    return agent


@pytest.fixture(scope="module")
def env() -> HSALVectorEnv:
    return digits_env(protocol="teacher")


@pytest.fixture
def rollout(env: HSALVectorEnv) -> Rollout:
    agent = small_agent(world_of(env))
    return collect(env, agent, np.arange(LANES), generator=torch.Generator().manual_seed(0))


def heard(module: nn.Module, call) -> Tensor:
    """What ``module`` is given while ``call()`` runs."""
    inputs: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    call()
    hook.remove()
    (only,) = inputs
    return only


def gru(cell: nn.GRUCell, x: Tensor, h: Tensor) -> Tensor:
    """Cho et al.'s gated unit, written out."""
    from_x = (x @ cell.weight_ih.T + cell.bias_ih).chunk(3, dim=1)
    from_h = (h @ cell.weight_hh.T + cell.bias_hh).chunk(3, dim=1)
    reset, update = (torch.sigmoid(a + b) for a, b in zip(from_x[:2], from_h[:2], strict=True))
    return (1 - update) * torch.tanh(from_x[2] + reset * from_h[2]) + update * h


def one_hot(index: int, size: int) -> list[float]:
    return [float(i == index) for i in range(size)]


# --- the two networks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last_label", "encoded"), [(NO_LABEL, [0.0] * 11), (3, one_hot(3, 11)), (STOP, one_hot(10, 11))]
)
def test_the_meta_controller_reads_saliency_and_the_last_label(last_label: int, encoded: list[float]):
    net = small_agent().meta_controller
    saliency, state = torch.rand(1, 2, 3), torch.zeros(1, 12)
    x = heard(net.encode, lambda: net(saliency, torch.tensor([last_label]), state))
    assert x.tolist() == [saliency.flatten().tolist() + encoded]


def test_the_meta_controller_is_encoder_gru_and_attention_layer():
    net = small_agent().meta_controller
    saliency, last_label, state = torch.rand(4, 2, 3), torch.tensor([0, 5, STOP, NO_LABEL]), torch.randn(4, 12)
    attention, new_state = net(saliency, last_label, state)
    assert attention.shape == (4, 4 * 2)
    x = torch.cat([saliency.flatten(1), torch.eye(12)[last_label][:, :11]], dim=1)
    expected = gru(net.gru, net.encode(x), state)
    torch.testing.assert_close(new_state, expected)
    torch.testing.assert_close(attention, expected @ net.attention.weight.T + net.attention.bias)


def test_weights_multiplied_beforehand_are_the_two_maps_one_after_the_other():
    net = small_agent().controller
    x, state = torch.randn(3, net.encode.in_features), torch.randn(3, 20)
    folded = net.folded()
    torch.testing.assert_close(net.step(x, state, folded), net.step(x, state))
    assert torch.equal(net.step(x, None, folded), net.step(x, torch.zeros_like(state), folded))
    (gradient,) = torch.autograd.grad(net.step(x, state, folded).sum(), net.encode.weight)
    (expected,) = torch.autograd.grad(net.step(x, state).sum(), net.encode.weight)
    torch.testing.assert_close(gradient, expected)


def test_multiplied_weights_are_kept_only_while_the_weights_are_fixed(env: HSALVectorEnv):
    agent = small_agent(world_of(env))
    before = collect(env, agent, np.arange(LANES), True).trajectory
    with torch.no_grad():
        agent.controller.encode.weight.data.mul_(-3)  # which no version counter notices
    after = collect(env, agent, np.arange(LANES), True).trajectory
    live = after.live[:, None].expand_as(after.values)
    torch.testing.assert_close(agent.evaluate(after).values[live], after.values[live])
    assert not torch.allclose(before.values[0], after.values[0])
    with agent.weights_fixed():
        assert agent._folded is not None
    assert agent._folded is None


def test_an_ended_lane_is_left_out_wherever_it_stands(env: HSALVectorEnv):
    """Lanes are sorted by length on the way and come back in their own order; a part that ends early scores 0 from there."""
    agent = small_agent(world_of(env))
    trajectory = collect(env, agent, np.arange(LANES), generator=torch.Generator().manual_seed(1)).trajectory
    lengths = trajectory.live.sum(dim=0)
    shortest = (lengths == lengths.min()).nonzero().squeeze(1)
    assert lengths.min() < len(trajectory.live)
    part, whole = agent.evaluate(trajectory.lanes(shortest)), agent.evaluate(trajectory)
    assert part.values.shape == (*trajectory.values.shape[:2], len(shortest))
    torch.testing.assert_close(part.values, whole.values[..., shortest])
    assert not part.label_log_probs[int(lengths.min()) :].any()


@pytest.mark.parametrize("sign", [-1, 1])
def test_raw_attention_stays_within_what_an_action_can_say(sign: int):
    agent = small_agent()
    nn.init.constant_(agent.meta_controller.attention.bias, sign * 1000.0)
    attention, _ = agent.attend(torch.rand(2, 2, 3), torch.tensor([0, 1]), agent.initial(2))
    assert attention.unique().tolist() == [sign * F.RAW_LIMIT]


@pytest.mark.parametrize(("label", "encoded_label"), [(NO_LABEL, [0.0] * 11), (9, one_hot(9, 11))])
@pytest.mark.parametrize(("location", "encoded_location"), [(NO_LOCATION, [0.0] * 6), (4, one_hot(4, 6))])
def test_the_controller_reads_priority_last_label_last_location_and_glimpse(
    label: int, encoded_label: list[float], location: int, encoded_location: list[float]
):
    net = small_agent().controller
    priority, glimpse = torch.rand(1, 2, 3), torch.rand(1, CHANNELS)
    x = heard(
        net.encode,
        lambda: net(priority, torch.tensor([label]), torch.tensor([location]), glimpse, torch.zeros(1, 20)),
    )
    assert x.tolist() == [priority.flatten().tolist() + encoded_label + encoded_location + glimpse[0].tolist()]


def test_the_controller_is_encoder_gru_and_three_heads():
    net = small_agent().controller
    priority, glimpse, state = torch.rand(3, 2, 3), torch.rand(3, CHANNELS), torch.randn(3, 20)
    label, location = torch.tensor([1, STOP, NO_LABEL]), torch.tensor([0, 5, NO_LOCATION])
    hidden = net(priority, label, location, glimpse, state)
    x = torch.cat([priority.flatten(1), torch.eye(12)[label][:, :11], torch.eye(7)[location][:, :6], glimpse], dim=1)
    torch.testing.assert_close(hidden, gru(net.gru, net.encode(x), state))

    first, _, second = net.location
    scores = (hidden @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias
    torch.testing.assert_close(net.location_log_probs(hidden, priority).exp(), scores.softmax(1))
    scores = hidden @ net.label.weight.T + net.label.bias
    torch.testing.assert_close(net.label_log_probs(hidden).exp(), scores.softmax(1))
    torch.testing.assert_close(net.values(hidden), hidden @ net.value.weight[0] + net.value.bias)
    assert net.location_log_probs(hidden, priority).shape == (3, CELLS)
    assert net.label_log_probs(hidden).shape == (3, CLASSES + 1)


def test_the_papers_sizes_are_the_defaults():
    agent = ActorCritic(World(Rules(), (7, 7), 512, CLASSES), AgentConfig())
    assert agent.meta_controller.encode.weight.shape == (128, 49 + 11)
    assert agent.meta_controller.attention.weight.shape == (4 * 5, 128)
    assert agent.controller.encode.weight.shape == (512, 49 + 11 + 49 + 512)
    assert [part.shape for part in agent.initial(3)] == [(3, 128), (3, 512), (3, 1)]
    assert agent.controller.location[0].weight.shape == (64, 512)


def test_without_a_prior_location_scores_do_not_depend_on_the_priority_map():
    agent = small_agent()
    assert agent.config.location_prior == 0
    assert not any("prior" in name for name, _ in agent.named_parameters())
    hidden = torch.randn(1, 20).expand(2, -1)
    one, other = agent.controller.location_log_probs(hidden, torch.stack([torch.zeros(2, 3), torch.rand(2, 3)]))
    assert torch.equal(one, other)


def test_with_a_prior_they_are_those_of_the_hidden_state_plus_a_multiple_of_priority():
    net = small_agent(location_prior=2.5).controller
    hidden, priority = torch.randn(3, 20), torch.rand(3, 2, 3)
    assert net.location_prior.item() == 2.5
    for w in (2.5, -4.0):  # where it starts, and where it may go
        nn.init.constant_(net.location_prior, w)
        expected = (net.location(hidden) + w * priority.flatten(1)).softmax(1)
        torch.testing.assert_close(net.location_log_probs(hidden, priority).exp(), expected)


def test_a_prior_over_a_silent_head_is_a_softmax_of_priority_by_hand():
    net = small_agent(location_prior=math.log(2)).controller
    for weight in net.location.parameters():
        nn.init.zeros_(weight)
    probabilities = net.location_log_probs(torch.zeros(1, 20), torch.tensor([[[0.0, 0.0, 1.0], [2.0, 0.0, 0.0]]])).exp()
    torch.testing.assert_close(probabilities, torch.tensor([[1.0, 1.0, 2.0, 4.0, 1.0, 1.0]]) / 10)


@pytest.mark.parametrize("prior", [0.0, 2.0])
def test_greedy_locations_are_the_peak_of_priority(prior: float):
    net = small_agent(location_policy="greedy", location_prior=prior).controller
    priority = torch.tensor([[0.1, 0.9, 0.2, 0.0, 0.3, 0.4], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]).view(2, 2, 3)
    probabilities = net.location_log_probs(torch.randn(2, 20), priority).exp()
    torch.testing.assert_close(probabilities, torch.tensor([one_hot(1, 6), one_hot(5, 6)]), rtol=0, atol=1e-30)


@pytest.mark.parametrize("prior", [0.0, 2.0])
def test_uniform_locations_are_uniform(prior: float):
    net = small_agent(location_policy="uniform", location_prior=prior).controller
    probabilities = net.location_log_probs(torch.randn(2, 20), torch.rand(2, 2, 3)).exp()
    torch.testing.assert_close(probabilities, torch.full((2, 6), 1 / 6))


@pytest.mark.parametrize("controller_state", ["reset", "carry"])
def test_the_controller_forgets_at_a_meta_step_unless_its_state_is_carried(controller_state: str):
    agent = small_agent(controller_state=controller_state)
    before = AgentState(torch.randn(2, 12), torch.randn(2, 20), torch.zeros(2, 1))
    _, after = agent.attend(torch.rand(2, 2, 3), torch.tensor([0, 1]), before)
    assert not torch.equal(after.meta_state, before.meta_state)
    expected = torch.zeros(2, 20) if controller_state == "reset" else before.controller_state
    assert torch.equal(after.controller_state, expected)


def centres(attention: Tensor) -> Tensor:
    _, _, row, col = F.mixture(attention[None], (7, 7))
    return torch.stack([row[0], col[0]], dim=1)  # [K, 2]


@pytest.mark.parametrize(
    ("components", "places"),
    [(1, [3.5]), (4, [1.75, 5.25]), (9, [7 / 6, 3.5, 35 / 6]), (16, [0.875, 2.625, 4.375, 6.125])],
)
def test_grid_centres_start_in_the_middles_of_equal_squares_of_the_map(components: int, places: list[float]):
    agent = small_agent(World(Rules(components=components), (7, 7), CHANNELS, CLASSES), attention_init="grid")
    at = centres(agent.meta_controller.attention.bias.detach())
    torch.testing.assert_close(at, torch.tensor(list(itertools.product(places, places))))


def test_grid_weights_are_four_times_the_default_ones():
    world = World(Rules(components=4), (2, 3), CHANNELS, CLASSES)
    grid, default = (small_agent(world, attention_init=init).meta_controller.attention for init in ("grid", "default"))
    assert torch.equal(grid.weight, 4 * default.weight)
    assert not grid.bias[: 2 * 4].any()  # equal importance, middling width
    assert default.bias.all()


def test_the_encoders_weights_of_priority_alone_have_a_gain():
    usual, gained = (small_agent(priority_gain=gain).state_dict() for gain in (1.0, 8.0))
    usual["controller.encode.weight"][:, :CELLS] *= 8
    assert all(torch.equal(gained[name], usual[name]) for name in usual)


@pytest.mark.parametrize("components", [2, 5, 8, 15])
def test_a_grid_needs_a_square_number(components: int):
    world = World(Rules(components=components), (7, 7), CHANNELS, CLASSES)
    with pytest.raises(
        ConfigError, match=f"attention_init='grid' needs a square number of components; got {components}"
    ):
        small_agent(world, attention_init="grid")
    small_agent(world)


@pytest.mark.parametrize(
    ("coordinates", "expected"),
    [
        ("paper", [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, math.log(2), math.log(2)]),  # row 1 of 2: 1/2; column 2 of 3: 2/3
        ("centred", [0.0, 0.0, 0.0, 0.0, -math.log(3), -math.log(3), 0.0, 0.0]),  # (1 - 1/2) / 2, (2 - 1/2) / 3
    ],
)
def test_winner_take_all_centres_every_gaussian_on_the_most_salient_cell(coordinates: str, expected: list[float]):
    world = World(Rules(components=2, coordinates=coordinates), (2, 3), CHANNELS, CLASSES)
    agent = small_agent(world, attention_policy="winner-take-all")
    saliency = torch.tensor([[[0.1, 0.9, 0.2], [0.3, 0.8, 0.0]]])
    before = agent.initial(1)
    attention, after = agent.attend(saliency, torch.tensor([NO_LABEL]), before)
    torch.testing.assert_close(attention, torch.tensor([expected]), rtol=0, atol=1e-6)
    assert torch.equal(after.meta_state, before.meta_state)


@pytest.mark.parametrize("coordinates", ["paper", "centred"])
@pytest.mark.parametrize("cell", range(49))
def test_the_mask_of_winner_take_all_peaks_at_the_winner(cell: int, coordinates: str):
    world = World(Rules(components=3, coordinates=coordinates), (7, 7), CHANNELS, CLASSES)
    agent = small_agent(world, attention_policy="winner-take-all")
    saliency = torch.rand(1, 7, 7)
    saliency.view(-1)[cell] = 2.0
    attention, _ = agent.attend(saliency, torch.tensor([3]), agent.initial(1))
    assert attention.abs().max() <= F.RAW_LIMIT  # the last row and column are out of the sigmoid's reach
    mask = F.attention_mask(F.mixture(attention, (7, 7), coordinates), (7, 7))
    assert mask.argmax().item() == cell


@pytest.mark.parametrize("controller_state", ["reset", "carry"])
def test_winner_take_all_resets_the_controller_as_learned_attention_does(controller_state: str):
    agent = small_agent(attention_policy="winner-take-all", controller_state=controller_state)
    before = AgentState(torch.randn(2, 12), torch.randn(2, 20), torch.zeros(2, 1))
    _, after = agent.attend(torch.rand(2, 2, 3), torch.tensor([0, 1]), before)
    assert torch.equal(after.meta_state, before.meta_state)
    expected = torch.zeros(2, 20) if controller_state == "reset" else before.controller_state
    assert torch.equal(after.controller_state, expected)


# --- gradients (C4) ---------------------------------------------------------------------------------------------------

TRUNK = {"meta_controller.encode", "meta_controller.gru", "meta_controller.attention"} | {
    "controller.encode",
    "controller.gru",
}


def learns(agent: ActorCritic, rollout: Rollout, part: str) -> set[str]:
    """The modules that get a gradient from one part of the objective."""
    evaluation = agent.evaluate(rollout.trajectory)
    log_probs = taken(rollout.trajectory, evaluation)
    losses = {
        "location": log_probs[:, :-1].sum(),
        "label": log_probs[:, -1].sum(),
        "stop": evaluation.label_log_probs[..., STOP].sum(),
        "value": evaluation.values.square().sum(),
    }
    agent.zero_grad()
    losses[part].backward()
    named = [name for name, weight in agent.named_parameters() if weight.grad is not None and weight.grad.abs().sum()]
    return {".".join(name.split(".")[:2]) for name in named}


@pytest.mark.parametrize("prior", [0.0, 2.0])
@pytest.mark.parametrize(
    ("part", "modules"),
    [
        ("location", {"controller.location"}),
        ("value", {"controller.value"}),
        ("label", TRUNK | {"controller.label"}),
        ("stop", TRUNK | {"controller.label"}),
    ],
)
def test_only_labels_teach_the_encoders_and_recurrent_layers(
    env: HSALVectorEnv, rollout: Rollout, part: str, modules: set[str], prior: float
):
    taught = {"controller.location_prior"} if prior and part == "location" else set()
    assert learns(small_agent(world_of(env), location_prior=prior), rollout, part) == modules | taught


@pytest.mark.parametrize("part", ["location", "value"])
def test_without_detaching_every_head_teaches_them(env: HSALVectorEnv, rollout: Rollout, part: str):
    agent = small_agent(world_of(env), detach_location_head=False)
    assert learns(agent, rollout, part) == TRUNK | {f"controller.{part}"}


@pytest.mark.parametrize(
    ("through_priority", "through_glimpse"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_the_labels_gradient_reaches_the_attention_through_priority_and_first_glimpse_alone(
    env: HSALVectorEnv, rollout: Rollout, through_priority: bool, through_glimpse: bool
):
    agent = small_agent(world_of(env))
    cells = 49
    with torch.no_grad():
        if not through_priority:
            agent.controller.encode.weight[:, :cells] = 0
        if not through_glimpse:
            agent.controller.encode.weight[:, cells + 11 + cells :] = 0
    modules = learns(agent, rollout, "label")
    assert ("meta_controller.attention" in modules) is (through_priority or through_glimpse)


@pytest.mark.parametrize("part", ["label", "stop"])
def test_labels_do_not_teach_attention_that_is_not_learned(env: HSALVectorEnv, rollout: Rollout, part: str):
    agent = small_agent(world_of(env), attention_policy="winner-take-all")
    assert learns(agent, rollout, part) == {"controller.encode", "controller.gru", "controller.label"}


@pytest.mark.parametrize("policy", ["greedy", "uniform"])
def test_locations_that_are_not_learned_carry_no_gradient(env: HSALVectorEnv, rollout: Rollout, policy: str):
    agent = small_agent(world_of(env), location_policy=policy, location_prior=2.0)
    assert not agent.evaluate(rollout.trajectory).location_log_probs.requires_grad
    assert learns(agent, rollout, "label") == TRUNK | {"controller.label"}


def test_rewards_carry_no_gradient(env: HSALVectorEnv, rollout: Rollout):
    evaluation = small_agent(world_of(env)).evaluate(rollout.trajectory)
    assert not evaluation.location_rewards.requires_grad
    assert not evaluation.label_rewards.requires_grad


# --- act and evaluate are one computation -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agent_config", "env_config"),
    [
        ({}, {}),
        ({"controller_state": "carry"}, {}),
        ({"detach_location_head": False, "location_prior": 2.0}, {}),
        ({"attention_init": "grid"}, {"update": "peak", "mask_scale": "peak", "components": 4}),
        ({"attention_policy": "winner-take-all"}, {"coordinates": "centred"}),
        ({"attention_policy": "winner-take-all", "controller_state": "carry"}, {"mask_scale": "peak"}),
        ({"location_policy": "uniform"}, {}),
        ({}, {"protocol": "free", "renormalise_saliency": True}),
        ({}, {"glimpses": 0}),
        ({}, {"glimpses": 3, "components": 1, "beta": "exp", "coordinates": "centred"}),
        ({"bfloat16": True, "location_prior": 2.0}, {}),
    ],
    ids=str,
)
def test_stored_decisions_score_what_they_scored_when_taken(agent_config: dict, env_config: dict):
    env = digits_env(**{"protocol": "teacher", **env_config})
    agent = small_agent(world_of(env), **agent_config)
    trajectory = collect(env, agent, np.arange(LANES), generator=torch.Generator().manual_seed(1)).trajectory
    evaluation = agent.evaluate(trajectory)

    tolerance = 2e-2 if agent.config.bfloat16 else 1e-6
    live = trajectory.live[:, None].expand_as(trajectory.rewards)
    assert not live.all(), "some lanes end before others"
    scored = taken(trajectory, evaluation)
    torch.testing.assert_close(scored[live], trajectory.log_probs[live], rtol=0, atol=tolerance)
    torch.testing.assert_close(evaluation.values[live], trajectory.values[live], rtol=0, atol=tolerance)
    assert not scored[~live].any()
    assert (trajectory.log_probs < -0.1).all(), "log-probabilities of sampled decisions, not zeros"

    # the reward of every action, at the action taken, is the reward the environment paid
    glimpses = env.simulation.rules.glimpses
    at_location = evaluation.location_rewards.gather(-1, trajectory.locations[..., None]).squeeze(-1)
    at_label = evaluation.label_rewards.gather(-1, trajectory.labels[..., None]).squeeze(-1)
    rewards = torch.cat([at_location, at_label[:, None]], dim=1)
    assert rewards.shape == (len(trajectory.live), glimpses + 1, LANES)
    torch.testing.assert_close(rewards[live], trajectory.rewards[live], rtol=0, atol=tolerance)
    assert not trajectory.rewards[~live].any()


def test_stored_greedy_locations_are_certain_when_evaluated(env: HSALVectorEnv):
    agent = small_agent(world_of(env), location_policy="greedy")
    trajectory = collect(env, agent, np.arange(LANES), generator=torch.Generator().manual_seed(1)).trajectory
    evaluation = agent.evaluate(trajectory)
    live = trajectory.live[:, None].expand_as(trajectory.locations)
    assert torch.equal(evaluation.location_log_probs.argmax(-1)[live], trajectory.locations[live])
    assert not taken(trajectory, evaluation)[:, :-1][live].any()
    assert not trajectory.log_probs[:, :-1].any()
    # P is normalised, so its peak earns 1 where there is one
    assert set(trajectory.rewards[:, :-1][live].tolist()) <= {0.0, 1.0}
    assert trajectory.rewards[0, :-1].eq(1).any()


def test_bfloat16_is_coarser_than_float32_and_leaves_the_state_float32(
    env: HSALVectorEnv, rollout: Rollout, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("agents.actor_critic.has_matrix_unit", lambda device: True)
    exact = small_agent(world_of(env)).evaluate(rollout.trajectory).label_log_probs
    coarse = small_agent(world_of(env), bfloat16=True)
    scores = coarse.evaluate(rollout.trajectory).label_log_probs
    assert scores.dtype == torch.float32
    assert 1e-5 < (scores - exact).abs().max() < 5e-2
    _, state = coarse.attend(torch.rand(2, 7, 7), torch.tensor([0, 1]), coarse.initial(2))
    assert state.meta_state.dtype == torch.float32
    monkeypatch.setattr("agents.actor_critic.has_matrix_unit", lambda device: False)
    assert torch.equal(coarse.evaluate(rollout.trajectory).label_log_probs, exact)


def test_lanes_are_evaluated_independently(env: HSALVectorEnv, rollout: Rollout):
    agent, chosen = small_agent(world_of(env)), torch.tensor([6, 1, 3])
    whole, part = agent.evaluate(rollout.trajectory), agent.evaluate(rollout.trajectory.lanes(chosen))
    torch.testing.assert_close(part.location_log_probs, whole.location_log_probs[:, :, chosen])
    torch.testing.assert_close(part.label_log_probs, whole.label_log_probs[:, chosen])
    torch.testing.assert_close(part.values, whole.values[..., chosen])
    assert torch.equal(part.label_rewards, whole.label_rewards[:, chosen])


# --- acting -----------------------------------------------------------------------------------------------------------

READ = {0: "attention", 1: "location", 2: "location", 3: "label"}


@pytest.mark.parametrize("controller_state", ["reset", "carry"])
@torch.no_grad()
def test_lanes_in_mixed_phases_decide_as_they_would_alone(controller_state: str):
    agent = decisive(small_agent(controller_state=controller_state))
    phases = [1, 0, 3, 2, 0, 3, 1]
    lanes = len(phases)
    observation = {
        "saliency": torch.rand(lanes, 2, 3),
        "priority": torch.rand(lanes, 2, 3),
        "glimpse": torch.rand(lanes, CHANNELS),
        "last_location": torch.tensor([NO_LOCATION, NO_LOCATION, 4, 0, NO_LOCATION, 1, NO_LOCATION]),
        "last_label": torch.tensor([2, NO_LABEL, STOP, 0, 5, NO_LABEL, 9]),
        "phase": torch.tensor(phases),
    }
    state = AgentState(torch.randn(lanes, 12), torch.randn(lanes, 20), torch.rand(lanes, 1))
    together = agent.act(observation, state, deterministic=True)
    for lane, phase in enumerate(phases):
        alone = agent.act(
            {name: part[lane : lane + 1] for name, part in observation.items()},
            AgentState(*(part[lane : lane + 1] for part in state)),
            deterministic=True,
        )
        chosen = READ[phase]
        torch.testing.assert_close(together.action[chosen][lane], alone.action[chosen][0])
        torch.testing.assert_close(together.log_prob[lane], alone.log_prob[0])
        torch.testing.assert_close(together.value[lane], alone.value[0])
        for batched, single in zip(together.state, alone.state, strict=True):
            torch.testing.assert_close(batched[lane], single[0])


def test_an_agent_drives_lanes_that_start_again_on_their_own():
    env = HSALVectorEnv(LANES, output="torch", source="digits", num_examples=32, include_image=False)
    agent = small_agent(world_of(env))
    nn.init.constant_(agent.controller.label.bias[STOP:], 2.0)  # episodes of different length
    observation, _ = env.reset(seed=0)
    state, episodes, mixed = agent.initial(LANES), 0, False
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        with torch.no_grad():
            decision = agent.act(observation, state, generator=generator)
        observation, _, terminated, truncated, _ = env.step(decision.action)
        ended = terminated | truncated
        state = AgentState(*(torch.where(ended[:, None], 0.0, part) for part in decision.state))
        episodes += int(ended.sum())
        mixed |= len(observation["phase"].unique()) > 1
    assert episodes > LANES
    assert mixed


def test_the_single_environment_and_the_vector_one_give_the_same_episodes():
    options = {"num_examples": 32, "update": "peak"}
    vector = digits_env(features="lazy", **options)
    agent = decisive(small_agent(world_of(vector), seed=9))
    rollout = collect(vector, agent, np.arange(LANES), deterministic=True)
    single = gym.make("HSAL-DigitsMultiset-v0", disable_env_checker=True, include_image=False, **options)
    labels_seen: set[int] = set()
    for lane in range(LANES):
        observation, info = single.reset(options={"index": lane})
        state, ended, labels, locations, rewards = agent.initial(1), False, [], [], []
        while not ended:
            batch = {name: torch.as_tensor(part)[None] for name, part in observation.items()}
            with torch.no_grad():
                decision = agent.act(batch, state, deterministic=True)
            state = decision.state
            observation, reward, terminated, truncated, info = single.step(
                {name: part[0].numpy() for name, part in decision.action.items()}
            )
            ended = terminated or truncated
            if batch["phase"] == 0:
                continue
            rewards.append(reward)
            (labels if "label" in decision.action else locations).append(int(next(iter(decision.action.values()))[0]))
        live = rollout.trajectory.live[:, lane]
        assert labels == rollout.trajectory.labels[live, lane].tolist()
        assert locations == rollout.trajectory.locations[live, :, lane].flatten().tolist()
        torch.testing.assert_close(torch.tensor(rewards), rollout.trajectory.rewards[live, :, lane].flatten())
        looks = rollout.looks[lane] / rollout.glimpses[lane]
        assert looks.tolist() == pytest.approx([info["attn_saliency"], info["attn_saliency_uniform"]], rel=1e-4)
        exact = torch.equal(rollout.predicted[lane], rollout.trajectory.example.counts[lane])
        assert float(exact) == info["exact_match"]
        labels_seen |= set(labels)
    assert STOP in labels_seen
    assert len(labels_seen) > 1, "an agent that says the same everywhere tests little"


def test_what_a_lane_does_after_its_episode_is_not_counted():
    env = digits_env(num_examples=32, protocol="free")
    agent = small_agent(world_of(env))
    with torch.no_grad():
        agent.controller.label.bias[STOP] = 2.0  # stops early, in some lanes
    rollout = collect(env, agent, np.arange(LANES), generator=torch.Generator().manual_seed(3))
    trajectory = rollout.trajectory
    assert trajectory.live[0].all()
    assert 0 < (~trajectory.live[1:]).sum() < trajectory.live[1:].numel()
    for lane in range(LANES):
        labels = trajectory.labels[:, lane].tolist()
        length = labels.index(STOP) + 1 if STOP in labels else 5  # max_objects + 1
        assert trajectory.live[:, lane].tolist() == [step < length for step in range(len(labels))]
        counts = [labels[:length].count(label) for label in range(CLASSES)]
        assert rollout.predicted[lane].tolist() == counts
        assert rollout.glimpses[lane] == 2 * length


def test_the_final_meta_step_is_the_one_after_the_last_object(rollout: Rollout):
    trajectory = rollout.trajectory
    objects = trajectory.example.counts.sum(dim=1).tolist()
    assert len(set(objects)) > 1
    for lane, count in enumerate(objects):
        column = range(len(trajectory.labels))
        assert trajectory.final[:, lane].tolist() == [step == count for step in column]
        assert trajectory.live[:, lane].tolist() == [step <= count for step in column]


def test_forced_labels_take_the_place_of_the_agents(env: HSALVectorEnv):
    forced = torch.randint(0, CLASSES + 1, (5, LANES), generator=torch.Generator().manual_seed(0))
    rollout = collect(env, small_agent(world_of(env)), np.arange(LANES), forced_labels=forced)
    assert torch.equal(rollout.trajectory.labels, forced[: len(rollout.trajectory.labels)])
    named = (rollout.trajectory.live & (rollout.trajectory.labels < STOP)).sum()
    assert rollout.predicted.sum() == named > 0


def test_a_generator_decides_the_samples(env: HSALVectorEnv):
    agent = small_agent(world_of(env))

    def sample(seed: int) -> list[Tensor]:
        trajectory = collect(env, agent, np.arange(LANES), generator=torch.Generator().manual_seed(seed)).trajectory
        return [trajectory.locations, trajectory.labels, trajectory.log_probs]

    first, again, other = sample(0), sample(0), sample(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])


def observation_at(phase: int, lanes: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    maps = torch.rand(2, 1, 2, 3, generator=generator).expand(-1, lanes, -1, -1)
    return {
        "saliency": maps[0],
        "priority": maps[1],
        "glimpse": torch.rand(1, CHANNELS, generator=generator).expand(lanes, -1),
        "last_location": torch.full((lanes,), NO_LOCATION),
        "last_label": torch.full((lanes,), NO_LABEL),
        "phase": torch.full((lanes,), phase),
    }


@pytest.mark.parametrize(("phase", "name", "choices"), [(1, "location", CELLS), (3, "label", CLASSES + 1)])
@torch.no_grad()
def test_samples_follow_the_policy_and_greedy_decisions_are_its_mode(phase: int, name: str, choices: int):
    agent, lanes = small_agent(), 20_000
    generator = torch.Generator().manual_seed(0)
    sampled = agent.act(observation_at(phase, lanes), agent.initial(lanes), generator=generator)
    probability = torch.zeros(choices).index_copy(0, sampled.action[name], sampled.log_prob.exp())
    assert probability.sum() == pytest.approx(1, abs=1e-4)  # every choice was drawn, and log_prob is of the drawn one
    frequency = sampled.action[name].bincount(minlength=choices) / lanes
    assert ((frequency - probability).abs() < 5 * (probability / lanes).sqrt()).all()

    before = generator.get_state()
    greedy = agent.act(observation_at(phase, 1), agent.initial(1), deterministic=True, generator=generator)
    assert greedy.action[name].item() == probability.argmax().item()
    assert torch.equal(generator.get_state(), before)


@torch.no_grad()
def test_an_agent_may_stop_when_it_would_have_stopped_in_half_of_all_cases():
    """With p(stop) of 0.2 at each meta-step it would have stopped by 1 - 0.8^3 = 0.488 at the third, and 0.59 at the fourth."""
    for stop, said in (("greedy", [0] * 5), ("median", [0, 0, 0, STOP, STOP])):
        agent = small_agent(stop=stop)
        label = agent.controller.label
        label.weight.zero_()
        label.bias.copy_(torch.tensor([0.7, *[1e-9] * (CLASSES - 2), 0.1, 0.2]).log())
        state, labels, stopped = agent.initial(1), [], []
        for _ in range(5):
            for phase in range(4):
                decision = agent.act(observation_at(phase, 1), state, deterministic=True)
                state = decision.state
            labels.append(decision.action["label"].item())
            stopped.append(round(state.stopped.item(), 3))
        assert labels == said
        assert stopped == [0.2, 0.36, 0.488, 0.59, 0.672]
        drawn = agent.act(observation_at(3, 2_000), agent.initial(2_000), generator=torch.Generator().manual_seed(0))
        assert (drawn.action["label"] == STOP).float().mean().item() == pytest.approx(0.2, abs=0.04)


@pytest.mark.parametrize("deterministic", [False, True])
@torch.no_grad()
def test_uniform_locations_are_drawn_even_by_a_greedy_agent(deterministic: bool):
    agent, lanes = small_agent(location_policy="uniform"), 6_000

    def draw(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        decision = agent.act(observation_at(1, lanes), agent.initial(lanes), deterministic, generator)
        torch.testing.assert_close(decision.log_prob, torch.full((lanes,), -math.log(CELLS)))
        return decision.action["location"]

    first, again, other = draw(0), draw(0), draw(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    spread = math.sqrt(lanes * (1 / CELLS) * (1 - 1 / CELLS))
    assert ((first.bincount(minlength=CELLS) - lanes / CELLS).abs() < 5 * spread).all()


@pytest.mark.parametrize("deterministic", [False, True])
@torch.no_grad()
def test_greedy_locations_need_no_luck(deterministic: bool):
    agent, observation = small_agent(location_policy="greedy"), observation_at(1, 1_000)
    decision = agent.act(observation, agent.initial(1_000), deterministic, torch.Generator().manual_seed(0))
    assert decision.action["location"].unique().tolist() == [observation["priority"][0].argmax().item()]
    assert not decision.log_prob.any()


@torch.no_grad()
def test_labels_of_an_agent_with_uniform_locations_are_greedy_where_it_is():
    agent, generator = small_agent(location_policy="uniform"), torch.Generator().manual_seed(0)
    before = generator.get_state()
    greedy = agent.act(observation_at(3, 100), agent.initial(100), deterministic=True, generator=generator)
    assert len(greedy.action["label"].unique()) == 1
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("policy", ["learned", "winner-take-all"])
def test_attention_is_deterministic_and_has_no_score(policy: str):
    agent = small_agent(attention_policy=policy)
    decisions = [agent.act(observation_at(0, 2), agent.initial(2)) for _ in range(2)]
    assert torch.equal(decisions[0].action["attention"], decisions[1].action["attention"])
    assert decisions[0].action["attention"].abs().max() <= 1
    assert decisions[0].log_prob.tolist() == decisions[0].value.tolist() == [0, 0]
    raw, _ = agent.attend(*(observation_at(0, 2)[name] for name in ("saliency", "last_label")), agent.initial(2))
    assert torch.equal(raw_attention(decisions[0].action["attention"]), raw)


# --- finding and configuring agents -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hsal", "agents.actor_critic:ActorCritic"])
def test_the_papers_agent_is_found_by_either_name(name: str):
    assert find_agent(name) is ActorCritic
    assert isinstance(build_agent(name, WORLD, AgentConfig(**SIZES)), Agent)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobody", "Unknown agent 'nobody'. Expected one of hsal"),
        ("no_such_package.x:Agent", "cannot be imported: No module named 'no_such_package'"),
        ("agents.actor_critic:Nobody", "cannot be imported.*Nobody"),
        ("agents.actor_critic:", "Expected agent as 'package.module:Name'"),
        (":ActorCritic", "Expected agent as 'package.module:Name'"),
        ("agents.actor_critic:AgentState", "lacks initial, act, evaluate"),
        ("torch.nn:Linear", "lacks initial, act, evaluate"),
    ],
)
def test_an_agent_that_cannot_be_had_is_a_clear_error(name: str, message: str):
    with pytest.raises(ConfigError, match=message):
        find_agent(name)


def install(monkeypatch: pytest.MonkeyPatch, value: str, name: str = "mine") -> None:
    """As if a package had registered an agent of that name."""
    entry = EntryPoint(name=name, value=value, group=protocol.ENTRY_POINTS)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry] if group == protocol.ENTRY_POINTS else [])


def test_an_installed_agent_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch):
    install(monkeypatch, "agents.actor_critic:ActorCritic")
    assert find_agent("mine") is ActorCritic
    with pytest.raises(ConfigError, match="Expected one of hsal, mine, or"):
        find_agent("yours")


def test_our_agent_is_not_replaced_by_an_installed_one_of_its_name(monkeypatch: pytest.MonkeyPatch):
    install(monkeypatch, "torch.nn:Linear", "hsal")
    assert find_agent("hsal") is ActorCritic


def test_a_broken_installed_agent_is_a_clear_error(monkeypatch: pytest.MonkeyPatch):
    install(monkeypatch, "no_such_package.x:Agent")
    with pytest.raises(ConfigError, match="mine"):
        find_agent("mine")


def test_a_relative_module_is_a_clear_error():
    with pytest.raises(ConfigError):
        find_agent(".actor_critic:ActorCritic")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("controller_state", "keep", "controller_state to be one of reset, carry; got 'keep'"),
        ("attention_init", "ring", "attention_init to be one of default, grid; got 'ring'"),
        ("attention_policy", "random", "attention_policy to be one of learned, drawn, winner-take-all; got 'random'"),
        ("location_policy", "sampled", "location_policy to be one of learned, greedy, uniform; got 'sampled'"),
        ("priority_gain", -1.0, "priority_gain of at least 0; got -1.0"),
        ("priority_gain", math.nan, "priority_gain of at least 0; got nan"),
        ("location_prior", -0.5, "location_prior of at least 0; got -0.5"),
        ("location_prior", math.nan, "location_prior of at least 0; got nan"),
        ("location_prior", math.inf, "location_prior of at least 0; got inf"),
        ("meta_hidden", 0, "meta_hidden of at least 1; got 0"),
        ("controller_hidden", -1, "controller_hidden of at least 1; got -1"),
        ("location_hidden", 0, "location_hidden of at least 1; got 0"),
    ],
)
def test_agent_settings_outside_their_range_are_named(field: str, value: object, message: str):
    with pytest.raises(ConfigError, match=message):
        AgentConfig(**{field: value})
