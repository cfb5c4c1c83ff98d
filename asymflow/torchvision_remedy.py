"""Makes `import torchvision` work where its compiled operators cannot be loaded.

The torchvision wheel carries CUDA operators. Beside a CPU build of torch they do not load, and then torchvision,
lpips, open_clip and parts of transformers and diffusers fail with "operator torchvision::nms does not exist".
Declaring the two missing schemas is enough for everything this project uses. Where the operators load, nothing
is done.
"""

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library = None  # a Library undeclares its schemas when it is collected


def apply() -> bool:
    """Declare the schemas if they are needed; returns whether they were. Call before torchvision is imported."""
    global _library
    if _library is not None:
        return True
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _operators_load(Path(spec.origin).parent):
        return False
    _library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        _library.define(schema)
    return True


def _operators_load(package: Path) -> bool:
    for extension in package.glob("_C*.so"):
        try:
            torch.ops.load_library(extension)
        except OSError:
            continue
        return True
    return False
