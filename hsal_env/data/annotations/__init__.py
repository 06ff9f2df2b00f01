"""What a folder says of its images, in the layouts that people and tools write: which labels, which boxes, which part.

:mod:`hsal_env.data.annotations.reading` finds out which layout a folder has. No reader decodes an image. What is malformed in a
file of annotations is an error that names the file and the entry; an image that cannot be used is left out and counted.
"""

from hsal_env.data.annotations.entries import Annotations
from hsal_env.data.annotations.reading import ImagesFormat, read_annotations

__all__ = ["Annotations", "ImagesFormat", "read_annotations"]
