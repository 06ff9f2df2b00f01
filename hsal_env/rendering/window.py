"""A window on the screen, for ``render_mode="human"``."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from hsal_env.errors import ConfigError


class Window:
    """A window of matplotlib that shows one picture at a time. It opens with the first picture.

    Args:
        title: title of the window.
        pause_seconds: how long each picture is shown at least; the window responds to the mouse in this time.

    Raises:
        ConfigError: there is no display. This is not raised if ``$MPLBACKEND`` names a backend without a display.
    """

    def __init__(self, title: str, pause_seconds: float) -> None:
        from matplotlib import pyplot

        backend = pyplot.get_backend()
        if backend.lower() == "agg" and not os.environ.get(
            "MPLBACKEND"
        ):  # matplotlib falls back to it without a display
            raise ConfigError(
                f"render_mode='human' opens a window, but matplotlib finds no display here (its backend is {backend!r}). Use "
                "render_mode='rgb_array', or install a GUI toolkit such as PyQt6 and run where there is a display."
            )
        self._title, self._pause_seconds = title, pause_seconds
        self._pyplot: Any = pyplot
        self._figure: Any = None

    def show(self, picture: np.ndarray) -> None:
        """Show ``picture``, RGB uint8 ``[h, w, 3]``. If the window was closed, it opens again."""
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
        """Close the window. It may be closed already."""
        if self._figure is not None:
            self._pyplot.close(self._figure)
            self._figure = None
