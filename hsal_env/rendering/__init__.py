"""Rendering: pictures of episodes, of their steps and of saliency maps, animations, and a window."""

from hsal_env.rendering.episodes import draw_trace, draw_traces, save_pdf, save_picture

__all__ = ["draw_trace", "draw_traces", "save_pdf", "save_picture"]
