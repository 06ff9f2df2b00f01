"""Rendering: frames of running episodes, pictures of episodes, of their steps and of saliency maps, animations, and a window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hsal_env.rendering.frame import draw_frame

if TYPE_CHECKING:
    from hsal_env.rendering.episodes import draw_trace, draw_traces, save_pdf, save_picture

__all__ = ["draw_frame", "draw_trace", "draw_traces", "save_pdf", "save_picture"]


def __getattr__(name: str) -> Any:
    """Import figures where they are asked for: matplotlib is slow to import, and frames do not need it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hsal_env.rendering import episodes

    return getattr(episodes, name)
