"""Pictures and windows of running environments."""

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from matplotlib import pyplot
from playing import (
    ATTENTION,
    MODES,
    STOP,
    batch,
    lane_of,
    random_action,
    single,
    vector,
)

from hsal_env.env import HSALEnv
from hsal_env.errors import ConfigError
from hsal_env.rendering import draw_frame


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_shows_the_episode_so_far_in_every_view(mode):
    """All decisions, in the right lane: as if a recorder had watched the native environment."""
    config = {"render_mode": "rgb_array", "action_mode": mode, "max_objects": 2}
    env, lanes = single(**config), vector(2, **config)
    rng = np.random.default_rng(0)
    with pytest.raises(ResetNeeded, match="reset"):
        env.render()
    with pytest.raises(ResetNeeded, match="reset"):
        lanes.render()
    (seen, _), (both, _) = env.reset(seed=1), lanes.reset(seed=0)  # lane 1 begins as the single one
    pictures = [env.render()]
    while True:
        action = random_action(rng, env.action_space, seen, stop_share=0.1, forbidden_share=0.2)
        other = random_action(rng, env.action_space, lane_of(both, 0), stop_share=0.5)
        seen, _, terminated, truncated, _ = env.step(action)
        both, *_ = lanes.step(batch([other, action]))
        pictures.append(env.render())
        np.testing.assert_array_equal(pictures[-1], lanes.render()[1])
        if terminated or truncated:
            break
    assert {(p.shape, p.dtype.name) for p in pictures} == {(pictures[0].shape, "uint8")}
    assert len({p.tobytes() for p in pictures}) > len(pictures) / 2  # a forbidden decision changes nothing
    (trace,) = env.simulation.traces(env._recorder, env._state.example.canvas_index.numpy())
    phases = np.arange(len(trace.phase)) % 4
    np.testing.assert_array_equal(trace.phase, phases)
    assert trace.phase[-1] == 3 or truncated
    assert (trace.terminated, trace.truncated) == (terminated, truncated)
    assert (trace.location >= 0).tolist() == ((phases == 1) | (phases == 2)).tolist()
    assert np.isnan(trace.alpha).all()
    np.testing.assert_array_equal(pictures[-1], draw_frame(trace))


@pytest.mark.parametrize("autoreset", ["NextStep", "SameStep", "Disabled"])
def test_a_lane_that_begins_anew_begins_a_new_picture(autoreset):
    lanes = vector(2, render_mode="rgb_array", action_mode="macro", autoreset_mode=autoreset)
    lanes.reset(options={"index": np.array([3, 5])})
    go_on, stop = [0, 1, 2, 7], [0, 1, 2, STOP]
    lanes.step(np.array([go_on, go_on]))
    lanes.step(np.array([go_on, stop]))  # lane 1 ends
    expected = {"NextStep": [2, 2], "SameStep": [2, 0], "Disabled": [2, 2]}[autoreset]
    after = {"NextStep": [3, 0], "SameStep": [3, 1], "Disabled": [3, 2]}[autoreset]

    def meta_steps() -> list[int]:
        traces = lanes.simulation.traces(lanes._recorder, lanes._current.example.canvas_index.numpy())
        assert all(draw_frame(t).tobytes() == p.tobytes() for t, p in zip(traces, lanes.render(), strict=True))
        assert traces[1].terminated == (autoreset != "SameStep" and traces[1].meta_steps == 2)
        return [trace.meta_steps for trace in traces]

    assert meta_steps() == expected
    lanes.step(np.array([go_on, go_on]))
    assert meta_steps() == after


def test_without_a_render_mode_nothing_is_recorded():
    for env in (single(), vector(1)):
        env.reset(seed=0)
        assert env.render() is None
        assert env._recorder is None
    with pytest.raises(ConfigError, match="render_mode='rgb_array'"):
        single().trace()


def test_the_episode_so_far_is_a_trace_for_figures():
    env = single(render_mode="rgb_array")
    with pytest.raises(ResetNeeded, match="reset"):
        env.trace()
    env.reset(seed=0)
    assert len(env.trace().phase) == 0
    env.step({"attention": ATTENTION})
    assert env.trace().phase.tolist() == [0]
    np.testing.assert_array_equal(env.render(), draw_frame(env.trace()))


def test_a_window_is_redrawn_by_itself_until_it_is_closed(monkeypatch):
    monkeypatch.setitem(HSALEnv.metadata, "render_fps", 1_000)
    human, array = single(render_mode="human"), single(render_mode="rgb_array")
    with pytest.raises(ResetNeeded, match="reset"):
        human.render()
    for env in (human, array):
        env.reset(seed=0)
        env.step({"attention": ATTENTION})
    assert human.render() is None
    shown = human._window._image.get_array()
    np.testing.assert_array_equal(shown, array.render())
    human.close()
    human.step({"location": 3})  # opens again
    assert (human._window._image.get_array() != shown).any()
    human.close(), human.close(), array.close()
    assert pyplot.get_fignums() == []


def test_without_a_display_there_is_no_window(monkeypatch):
    monkeypatch.delenv("MPLBACKEND")
    with pytest.raises(
        ConfigError, match=r"render_mode='human' opens a window.*no display.*Use render_mode='rgb_array'"
    ):
        single(render_mode="human")
    with pytest.raises(ConfigError, match=r"'rgb_array'; got 'human'\. A window shows a single environment"):
        vector(2, render_mode="human")
