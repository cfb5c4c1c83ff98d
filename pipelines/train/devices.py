"""What a worker trains on: the number type, and what its GPU can do, for the share of it that is used."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipelines.train.config import Resources

if TYPE_CHECKING:
    import torch

BYTES = {"bfloat16": 2, "float32": 4}
"""Of a number, by the name of its type"""
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Of GPUs: natively, under WSL, and AMD's"""


def precision(resources: Resources) -> "torch.dtype":
    """Return the number type of the frozen base and of the products."""
    import torch  # a --dry-run does without

    return getattr(torch, precision_name(resources))


def precision_name(resources: Resources) -> str:
    """Return the same in words, for plans and for a step's identity.

    Processors without bfloat16 products emulate them, hundreds of times slower.
    """
    if resources.precision == "auto":
        return "bfloat16" if resources.use_gpu else "float32"
    return resources.precision


class Device(NamedTuple):
    """What one worker runs on."""

    name: str
    tflops: float | None
    """Peak of bfloat16 products without sparsity, summed in float32; None where it is not known"""
    gib: float | None = None
    """Memory"""


GPUS = (  # by a part of their name in torch.cuda.get_device_name; peaks of their makers' data sheets
    Device("GB200", 2500),
    Device("B200", 2250),
    Device("H200 NVL", 835),
    Device("H200", 989),
    Device("GH200", 989),
    Device("H100 PCIe", 756),
    Device("H100 NVL", 835),
    Device("H100", 989),
    Device("H800", 989),
    Device("H20", 148),
    Device("A100", 312),
    Device("A800", 312),
    Device("A40", 150),
    Device("RTX A6000", 155),
    Device("A10G", 70),
    Device("A10", 125),
    Device("L40S", 362),
    Device("L40", 181),
    Device("L4", 121),
    Device("RTX 6000 Ada", 364),
    Device("RTX 5090", 210),
    Device("RTX 4090", 165),
    Device("RTX 3090", 71),
)
PLANNED_FOR = Device("an H100, as no GPU is here", 989, 79.6)


def peak_tflops(device_name: str) -> float | None:
    """Dense bfloat16 peak of a GPU by its name, in TFLOP/s; None for one that is not in the table."""
    return next((device.tflops for device in GPUS if _is_part(device.name, device_name)), None)


def _is_part(name: str, device_name: str) -> bool:
    """Whole words, or such as A100-SXM4."""
    words, wanted = device_name.replace("-", " ").split(), name.split()
    return any(words[i : i + len(wanted)] == wanted for i in range(len(words)))


def torch_finds_a_gpu() -> bool:
    """Return whether torch can use a GPU of this machine."""
    import torch  # a second and a half, which a machine without a GPU's driver need not wait

    return torch.cuda.is_available()


def device_of(resources: Resources) -> Device:
    """This machine's GPU; where it has none, an H100 stands for those of the cluster."""
    known = resources.peak_tflops
    if not resources.use_gpu:
        return Device("this CPU", known)
    if any(Path(driver).exists() for driver in _DRIVERS) and torch_finds_a_gpu():
        import torch

        name = torch.cuda.get_device_name()
        return Device(name, known or peak_tflops(name), torch.cuda.get_device_properties(0).total_memory / 2**30)
    return Device("resources.peak_tflops", known) if known else PLANNED_FOR
