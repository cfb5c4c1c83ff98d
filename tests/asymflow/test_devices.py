import torch

from asymflow.devices import default_dtype


def test_models_are_bfloat16_on_gpus_alone():
    types = {device: default_dtype(device) for device in ("cpu", "cuda", "cuda:1", "mps")}
    assert types == {"cpu": torch.float32, "cuda": torch.bfloat16, "cuda:1": torch.bfloat16, "mps": torch.float32}
    assert default_dtype(torch.device("cuda", 0)) == torch.bfloat16
