"""Number types and GPU peaks, for precision and model FLOPs utilization."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipelines.train.config import Resources

if TYPE_CHECKING:
    import torch

BYTES = {"bfloat16": 2, "float32": 4}
"""Bytes per number, by the name of its type"""
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Device files of GPUs: NVIDIA natively, under WSL, and AMD"""


def precision(resources: Resources) -> "torch.dtype":
    """Return the number type of the frozen base and of matrix products."""
    import torch  # a --dry-run does without

    return getattr(torch, precision_name(resources))


def precision_name(resources: Resources) -> str:
    """Return the name of the number type, for plans and for a step's identity.

    Processors without native bfloat16 emulate it, hundreds of times slower.
    """
    if resources.precision == "auto":
        return "bfloat16" if resources.use_gpu else "float32"
    return resources.precision


class Device(NamedTuple):
    """The hardware of one worker."""

    name: str
    tflops: float | None
    """Peak of dense bfloat16 products with float32 accumulation; None if unknown"""
    gib: float | None = None
    """Memory in GiB"""


GPUS = (  # by a part of torch.cuda.get_device_name; peaks from the vendors' data sheets
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
    """Return the dense bfloat16 peak of a GPU by its name, in TFLOP/s; None if it is not in the table."""
    return next((device.tflops for device in GPUS if _is_part(device.name, device_name)), None)


def _is_part(name: str, device_name: str) -> bool:
    """Return whether `name` is in `device_name` as whole words, or as in A100-SXM4."""
    words, part = device_name.replace("-", " ").split(), name.split()
    return any(words[i : i + len(part)] == part for i in range(len(words)))


def torch_finds_a_gpu() -> bool:
    """Return whether torch can use a GPU of this machine."""
    import torch  # takes 1.5 s, which machines without a GPU driver save

    return torch.cuda.is_available()


def device_of(resources: Resources) -> Device:
    """Return the GPU of the settings, else this machine's; without one, an H100 as the assumed GPU of the cluster."""
    known, gib = resources.peak_tflops, resources.gpu_memory
    if not resources.use_gpu:
        return Device("this CPU", known)
    if any(Path(driver).exists() for driver in _DRIVERS) and torch_finds_a_gpu():
        import torch

        name = torch.cuda.get_device_name()
        own = torch.cuda.get_device_properties(0).total_memory / 2**30
        return Device(name, known or peak_tflops(name), gib or own)
    if known or gib:
        return Device("the planned GPU" if gib else "resources.peak_tflops", known, gib)
    return PLANNED_FOR
