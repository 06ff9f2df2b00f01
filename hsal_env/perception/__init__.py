"""From pixels to activation volume and saliency map."""

from typing import Literal

Architecture = Literal["compact", "resnet18", "resnet34"]
"""Networks that an activation model may be, by name. Here, so that a command line can list them without loading torch."""
