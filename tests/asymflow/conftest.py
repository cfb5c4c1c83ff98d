import pytest
import torch
from captioner_fixture import write_captioner
from lift_oracle import REFERENCE
from safetensors.torch import load_file
from toy_pipeline import ADAPTER, BASE

from asymflow.diffusers_pipeline import AsymFlux2KleinPipeline


@pytest.fixture(scope="session")
def toy():
    pipeline = AsymFlux2KleinPipeline.from_pretrained(BASE, adapter=ADAPTER)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipe(toy, monkeypatch):
    """The toy; what a test changes of it is undone."""
    monkeypatch.setattr(toy, "scheduler", toy.scheduler)
    return toy


@pytest.fixture(scope="session")
def reference() -> dict[str, torch.Tensor]:
    """Tensors of the reference lift; see `lift_oracle`."""
    return load_file(REFERENCE)


@pytest.fixture(scope="session")
def captioner_folder(tmp_path_factory):
    """A tiny Qwen2.5-VL of the real classes."""
    return str(write_captioner(tmp_path_factory.mktemp("models") / "qwen"))


@pytest.fixture(scope="session")
def dinov2(tmp_path_factory):
    """A folder with a tiny DINOv2 of the real class."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder") / "dinov2"
    config = Dinov2Config(hidden_size=20, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    return str(folder)
