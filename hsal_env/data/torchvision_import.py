"""Import torchvision even where its compiled operators do not match this build of torch.

A CPU build of torch beside a CUDA build of torchvision fails at import with "operator torchvision::nms does not exist",
since torchvision registers fake kernels for operators that its extension would have declared. Declaring the two
schemas is enough for everything that HSAL uses: data sets, models and transforms, not the operators themselves.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

_SCHEMAS = tuple(
    f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    for name in ("nms", "qnms")  # non-maximum suppression, plain and quantised
)
_library = None


def import_torchvision() -> ModuleType:
    """Return the torchvision module.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: it is installed, but broken in another way than described above.
    """
    global _library
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error) or _library is not None:
            raise
    import torch

    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # the half-imported package
    _library = torch.library.Library("torchvision", "FRAGMENT")  # the declarations live as long as this object
    for schema in _SCHEMAS:
        _library.define(schema)
    return importlib.import_module("torchvision")
