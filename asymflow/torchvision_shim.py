"""Workaround that makes `import torchvision` succeed if its compiled operators cannot be loaded.

The torchvision wheel contains CUDA operators. With a CPU build of torch they do not load, and torchvision, lpips,
open_clip and parts of transformers and diffusers fail with "operator torchvision::nms does not exist". Declaring the
two missing schemas is enough for everything that this project uses. If the operators load, nothing is changed.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: Any = None  # a Library undeclares its schemas when it is collected


class _AtImport(MetaPathFinder):
    """Import hook that applies the workaround when torchvision is imported, so that torch is not loaded before."""

    was_applied = False

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == "torchvision" and not self.was_applied:
            self.was_applied = True
            apply()
        return None


def apply_at_import() -> None:
    """Call `apply` when torchvision is imported, if ever."""
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _AtImport())


def apply() -> bool:
    """Declare the schemas if they are needed. Call it before torchvision is imported.

    Returns:
        True if they were needed.
    """
    import torch

    global _library
    spec = importlib.util.find_spec("torchvision")
    if _library is not None:  # find_spec itself may have declared them
        return True
    if spec is None or spec.origin is None or _operators_load(Path(spec.origin).parent):
        return False
    _library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        _library.define(schema)
    return True


def _operators_load(package: Path) -> bool:
    import torch

    for extension in package.glob("_C*.so"):
        try:
            torch.ops.load_library(extension)
        except OSError:
            continue
        return True
    return False
