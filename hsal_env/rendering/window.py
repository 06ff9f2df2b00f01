"""A window on the screen, for ``render_mode="human"``."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from hsal_env.errors import ConfigError


class Window:
    """Shows one picture at a time, in whatever window matplotlib has here; it opens with the first picture.

    Args:
        title: of the window.
        pause_seconds: how long each picture stays at least; meanwhile the window answers to the mouse.

    Raises:
        ConfigError: there is no display. Where ``$MPLBACKEND`` names a backend without one, that is taken as meant.
    """

    def __init__(self, title: str, pause_seconds: float) -> None:
        from matplotlib import pyplot

        backend = pyplot.get_backend()
        if backend.lower() == "agg" and not os.environ.get("MPLBACKEND"):  # what matplotlib falls back to
            raise ConfigError(
                f"render_mode='human' opens a window, and matplotlib finds no display here (its backend is {backend!r}). Use "
                "render_mode='rgb_array', or install a GUI toolkit such as PyQt6 and run where there is a display."
            )
        self._title, self._pause_seconds = title, pause_seconds
        self._pyplot: Any = pyplot
        self._figure: Any = None

    def show(self, picture: np.ndarray) -> None:
        """Replace what is shown by ``picture``, RGB uint8 ``[h, w, 3]``; a window that was closed opens again."""
        if self._figure is None or not self._pyplot.fignum_exists(self._figure.number):
            height, width = picture.shape[:2]
            with self._pyplot.rc_context({"toolbar": "None"}):
                self._figure = self._pyplot.figure(
                    self._title, figsize=(width / 100, height / 100), dpi=100, clear=True
                )
            self._image = self._figure.add_axes((0, 0, 1, 1), frameon=False, xticks=[], yticks=[]).imshow(picture)
            if self._figure.canvas.required_interactive_framework:
                self._figure.show()
        self._image.set_data(picture)
        self._figure.canvas.draw_idle()
        self._figure.canvas.start_event_loop(self._pause_seconds)

    def close(self) -> None:
        """Close it; closing twice does no harm."""
        if self._figure is not None:
            self._pyplot.close(self._figure)
            self._figure = None
