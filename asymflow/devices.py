"""Number types of devices."""

import torch


def default_dtype(device: str | torch.device) -> torch.dtype:
    """Return the type that a model computes in: bfloat16 on a GPU, float32 elsewhere.

    A CPU without bfloat16 products emulates them, hundreds of times slower.

    Args:
        device: Device of the model.

    Returns:
        torch.bfloat16 or torch.float32.
    """
    return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
