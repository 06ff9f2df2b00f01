"""The single environment: a batch of one lane."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import ResetNeeded

from hsal_env.config import EnvConfig
from hsal_env.dynamics import State
from hsal_env.errors import ActionError, ConfigError
from hsal_env.policies import Policy
from hsal_env.rendering import draw_frame
from hsal_env.simulation import Simulation, reset_options
from hsal_env.spaces import require_action_mask
from hsal_env.trace import Trace
from hsal_env.trace.recorder import Recorder

if TYPE_CHECKING:
    from hsal_env.rendering.window import Window


class HSALEnv(gym.Env[dict[str, Any], Any]):
    """Name every object of an image, one at a time, in any order, and say when there are no more.

    ## Description
    The image is turned into an activation volume V and a saliency map S. An episode is a sequence of options of k + 2
    decisions each: a mask of attention on the saliency map (the meta-controller's), k glimpse locations, and a label
    (the controller's). After each label the saliency of what was attended is suppressed. "Stop" ends the episode.
    From "Saliency-based Sequential Image Attention with Multiset Prediction" (Welleck et al., NIPS 2017).

    ## Action space
    | action_mode | space |
    |---|---|
    | ``native`` | ``Dict(attention: Box(-1, 1, (4K,)), location: Discrete(H W), label: Discrete(C + 1))`` |
    | ``flat`` | ``Discrete(H W + C + 1)``: cells, then labels, then stop |
    | ``packed`` | ``Box((4K + 2,))``: the native one as one vector of numbers |
    | ``option`` | ``Box(-1, 1, (4K,))``: attention; a given controller does the rest of the meta-step |
    | ``controller`` | ``Discrete(H W + C + 1)``: cells, then labels, then stop; a given meta-controller attends |
    | ``macro`` | ``MultiDiscrete([H W] * (k + 1) + [C + 1])``: a whole meta-step at once |

    In the native view the phase decides which part is read, and the others may be left out. ``attention`` holds alpha, beta,
    kappa_1 and kappa_2 of the K Gaussians, K numbers each. Multiplied by 8 they are the raw numbers of
    :func:`hsal_env.functional.mixture`.

    In the flat view a cell at phase 0 stands for a spotlight centred there, and ``action_mask`` marks what the phase allows. The
    last three views are described in :mod:`hsal_env.views`.

    ## Observation space
    A ``Dict``. In the native view it holds the keys below from ``image`` to ``phase``, and ``volume`` on request. In the other
    views the maps are vectors and there is no image. ``flat`` and ``controller`` add ``action_mask``. ``option`` and ``macro``
    show only ``saliency`` and ``last_label``, and ``macro`` also ``volume``. With ``boxes=True`` every part of every view is a
    Box: the Discrete ones are one-hot, and ``action_mask`` is ``Box(0, 1, (H W + C + 1,), int8)``.

    | key | space | meaning |
    |---|---|---|
    | ``image`` | ``Box(0, 255, (h_px, w_px, 1 or 3), uint8)`` | the canvas |
    | ``saliency`` | ``Box(0, 1, (H, W))`` | the saliency map S_t |
    | ``priority`` | ``Box(0, 1, (H, W))`` | the priority map P_t; zeros before attention is placed |
    | ``glimpse`` | ``Box((D,))`` | g_0 after attention, then V at the last location |
    | ``last_location`` | ``Discrete(H W + 1)`` | this option's last location; H W = none |
    | ``last_label`` | ``Discrete(C + 2)`` | the previous option's label; C + 1 = none |
    | ``phase`` | ``Discrete(k + 2)`` | 0: attention; 1..k: location; k + 1: label |
    | ``volume`` | ``Box((D, H, W))`` | V, with ``include_volume=True`` |
    | ``action_mask`` | ``MultiBinary(H W + C + 1)`` | what the phase allows |

    ## Rewards
    Attention earns 0. A location earns P_t there. A label earns +1 if it is still in the multiset of remaining labels, else -1.
    Stop earns +1 if nothing remains, else -1. In the flat view a forbidden action earns -1 and nothing happens. Under
    ``protocol="teacher"`` stop always earns -1, and the last label of the episode earns 0.

    ## Starting state
    A canvas of the split, drawn uniformly or chosen by ``reset(options={"index": i})``.

    ## Episode end
    Stop terminates the episode. Under ``protocol="teacher"`` it terminates after as many meta-steps as there are objects, plus
    one. The episode is truncated after max_objects + 1 meta-steps, or after (max_objects + 1)(k + 2) forbidden actions.

    ## Information
    ``source`` (``"mnist"``, ``"digits"``, ``"house-numbers"``, ``"svhn"`` or ``"custom"``: what the pixels are), ``index``,
    ``label_counts``, ``remaining_counts``, ``predicted_counts``; at the end of an episode ``exact_match``, ``precision``,
    ``recall``, ``return_location``, ``return_label``, ``attn_saliency``, ``attn_saliency_uniform``. They are for learners and
    plots. A policy that reads them cheats. Views with a Discrete action also have ``action_mask``, int8 ``[H W + C + 1]``, which
    is for policies: ``env.action_space.sample(info["action_mask"])``.

    ## Arguments
    ``render_mode`` (None, ``"rgb_array"``, or ``"human"``: a window, redrawn at each step), ``policy`` for the option and
    controller views (:func:`hsal_env.policies.given_policy`), and every field of :class:`hsal_env.config.EnvConfig`.

    ``HSAL-Custom-v0`` takes your own images: ``images`` and ``labels`` as arrays, or ``images`` as a folder
    (:mod:`hsal_env.data.custom`), with ``activation`` and ``saliency`` models of your own. By default all images are used, in
    their own order. ``split="train"``, ``"val"`` or ``"test"`` is a fixed share of them. The number of classes, the size and
    colour of the image and ``max_objects`` come from the data. To write the environment's ``spec`` as JSON, give images as a
    folder and models as ``"package.module:Name"``.

    Raises:
        UnknownArgumentError: an unknown argument. It is a ConfigError, and a TypeError.
        ConfigError: a value outside its range.
        DataError: the data are missing or damaged.
    """

    metadata: dict[str, Any] = {"render_modes": ["human", "rgb_array"], "render_fps": 4}  # noqa: RUF012 - as in the base class

    def __init__(self, render_mode: str | None = None, policy: Policy | str | None = None, **config: Any) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ConfigError(f"Expected render_mode None, 'human' or 'rgb_array'; got {render_mode!r}.")
        self.render_mode = render_mode
        self._window = _window() if render_mode == "human" else None
        self._recorder: Recorder | None = None
        self.simulation = Simulation(EnvConfig.from_kwargs(config), policy=policy)
        self.action_space = self.simulation.view.action_space
        self.observation_space = self.simulation.view.observation_space
        self._state: State | None = None
        self._images: torch.Tensor | None = None
        self._ended = True

    @torch.inference_mode()  # a fifth faster than no_grad; these tensors stay inside
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode on a random canvas, or on ``options["index"]``.

        Raises:
            DataError: the index is outside the split.
            ConfigError: an unknown option.
        """
        (index,) = reset_options(options, "index")
        super().reset(seed=seed)
        if index is None:
            index = self.np_random.integers(len(self.simulation.examples))
        self._state, self._images = self.simulation.start(np.array([index]))
        self._ended = False
        if self.render_mode is not None:
            self._recorder = Recorder(self.simulation.rules, self.simulation.config.classes, self._state)
        if self._window:
            self._window.show(self._picture())
        return self._observe(), self._info()

    @torch.inference_mode()
    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Make one decision.

        Raises:
            ResetNeeded: before the first reset, or after the end of an episode.
            ActionError: the action is outside its space.
        """
        if self._state is None or self._ended:
            raise ResetNeeded("The episode has ended or not begun; call reset() before step().")
        self._state, reward, terminated, truncated, between = self.simulation.step(self._state, _batched(action))
        self._ended = bool(terminated) or bool(truncated)
        if self._recorder:
            for state in (*between, self._state):
                self._recorder.add(state)
            self._recorder.end(terminated, truncated)
        if self._window:
            self._window.show(self._picture())
        return self._observe(), float(reward), bool(terminated), bool(truncated), self._info()

    def action_masks(self) -> np.ndarray:
        """bool ``[H W + C + 1]``, what sb3-contrib's MaskablePPO asks for.

        Raises:
            ConfigError: a view other than the flat and the controller view, which alone have masks.
            ResetNeeded: before the first reset.
        """
        require_action_mask(self.simulation.view)
        if self._state is None:
            raise ResetNeeded("No episode has begun; call reset() before action_masks().")
        return self._observe()["action_mask"].astype(bool)

    def render(self) -> np.ndarray | None:
        """RGB uint8 ``[400, 400, 3]``: this moment of the episode, see :func:`hsal_env.rendering.draw_frame`.

        None without a render mode. None also with ``"human"``, since each step redraws the window by itself. For a figure of the
        whole episode give :meth:`trace` to :func:`hsal_env.rendering.draw_trace`.

        Raises:
            ResetNeeded: before the first reset.
        """
        if self.render_mode is None:
            return None
        if self._state is None:
            raise ResetNeeded("Nothing to draw yet; call reset() before render().")
        return None if self._window else self._picture()

    def trace(self) -> Trace:
        """The episode so far.

        Raises:
            ConfigError: there is no render mode; only with one, episodes are recorded.
            ResetNeeded: before the first reset.
        """
        if self.render_mode is None:
            raise ConfigError("Episodes are recorded with a render mode only; got None. Pass render_mode='rgb_array'.")
        if self._state is None or self._recorder is None:
            raise ResetNeeded("No episode has begun; call reset() before trace().")
        (trace,) = self.simulation.traces(self._recorder, self._state.example.canvas_index.numpy())
        return trace

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window:
            self._window.close()

    def _picture(self) -> np.ndarray:
        return draw_frame(self.trace())

    def _observe(self) -> dict[str, Any]:
        assert self._state is not None
        parts = self.simulation.view.observe(self._state, self._images)
        return {name: _unbatched(value) for name, value in parts.items()}

    def _info(self) -> dict[str, Any]:
        assert self._state is not None
        parts = self.simulation.info(self._state)
        if self._ended:
            parts |= self.simulation.episode_info(self._state)
        return {"source": self.simulation.examples.source} | {name: _unbatched(value) for name, value in parts.items()}


def _window() -> Window:
    from hsal_env.rendering.window import Window  # matplotlib is slow to import

    return Window("HSAL", 1 / HSALEnv.metadata["render_fps"])


def _batched(action: Any) -> Any:
    try:
        if isinstance(action, dict):
            return {name: np.asarray(value)[None] for name, value in action.items()}
        return np.asarray(action)[None]
    except (TypeError, ValueError) as error:
        raise ActionError(f"The action cannot be read as numbers: {action!r} ({error}).") from error


def _unbatched(value: torch.Tensor) -> Any:
    """Lane 0 as a numpy array of its own, or a numpy scalar."""
    return value.numpy()[0].copy()
