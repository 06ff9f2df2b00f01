"""Images with multisets of labels: glyph sources and the canvases composed from them."""

from hsal_env.data.canvases import CanvasBatch, CanvasConfig, Canvases
from hsal_env.data.glyphs import SOURCES, SPLITS, Glyphs, load_glyphs

__all__ = ["SOURCES", "SPLITS", "CanvasBatch", "CanvasConfig", "Canvases", "Glyphs", "load_glyphs"]
