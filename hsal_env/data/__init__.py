"""Images with multisets of labels: canvases of digits, synthetic house numbers, SVHN, and images of your own."""

from hsal_env.data.canvases import CanvasBatch, CanvasConfig, Canvases
from hsal_env.data.custom import LabelledImages
from hsal_env.data.glyphs import SPLITS, Glyphs, load_glyphs
from hsal_env.data.house_numbers import HouseNumbers

__all__ = [
    "SPLITS", "CanvasBatch", "CanvasConfig", "Canvases", "Glyphs", "HouseNumbers", "LabelledImages", "load_glyphs",
]  # fmt: skip
