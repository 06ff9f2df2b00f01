"""Perception: from the pixels of an image to its activation volume and its saliency map."""

from typing import Literal

Architecture = Literal["compact", "resnet18", "resnet34"]
"""Names of the networks that a model file may hold. They stand here so that a command line can list them without torch."""
Padding = Literal["zeros", "replicate"]
"""What the convolutions of a compact network see beyond the edge of the map."""
