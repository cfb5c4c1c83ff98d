"""Training on a frozen base in 4 or 8 bits: the worker's own path from the settings to the adapter, in one process."""

import json
from types import SimpleNamespace

import pytest
import torch
from gguf_files import write_base
from tiny_base import make_transformer
from trained_adapter import make_subspace, velocities

from asymflow.adapters import load_adapter, load_merged, save_adapter
from asymflow.models.latent import load_transformer
from pipelines.core.config import ConfigError, validate
from pipelines.train.engine import backward_and_step, create_optimizer_state, make_engine
from pipelines.train.finetune.batches import Batch
from pipelines.train.finetune.config import FinetuneSettings
from pipelines.train.finetune.model import adapt, build_model
from pipelines.train.finetune.step import check
from pipelines.train.finetune.task import blank_batch, make_objective, parameter_groups
from pipelines.train.finetune.validation import Validator
from pipelines.train.state import TrainableState, copy_to_cpu

TEXT_WIDTH = 96
STORED = {"nf4": torch.uint8, "int8": torch.int8, "fp8": torch.float8_e4m3fn}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """A folder with a transformer whose layers can be quantized."""
    folder = tmp_path_factory.mktemp("base")
    make_transformer(TEXT_WIDTH, head_width=32).save_pretrained(folder / "transformer")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Flux2KleinPipeline"}))
    return str(folder)


def settings_of(base: str, optimizer: str = "adam8bit", zero_stage: int = 0, **changes) -> FinetuneSettings:
    tree = {
        **{name: "x" for name in ("curated", "encoded", "basis")},
        "base": base,
        "base_quantization": "nf4",
        "lora": {"rank": 16, "dropout": 0.1},
        "loss": {"perceptual": None},
        "optim": {"optimizer": optimizer},
        "validation": {"pictures": 2, "steps": 2},
        "resources": {"zero_stage": zero_stage, "gradient_checkpointing": True},
        **changes,
    }
    return validate(FinetuneSettings, tree)


class Worker:
    """A worker's model, engine and state, made as the training loop makes them."""

    def __init__(self, settings: FinetuneSettings):
        self.settings = settings
        self.model = build_model(settings, make_subspace(), "cpu")
        groups = parameter_groups(self.model, settings.optim)
        self.engine, self.optimizer = make_engine(make_objective(self.model, settings.loss), groups, settings, 2, 1)
        self.state = TrainableState(self.engine, self.model.trainable())

    def train(self, steps: range) -> list[float]:
        losses = []
        for step in steps:
            torch.manual_seed(step)  # dropout
            for group in self.optimizer.param_groups:
                group["lr"] = 1e-3
            (part,) = backward_and_step(self.engine, [batch(step)])
            losses.append(float(part["loss"].mean()))
        return losses

    def validate(self):
        generator = torch.Generator().manual_seed(0)
        text = [torch.randn(length, TEXT_WIDTH, generator=generator) for length in (3, 5)]
        prompts = SimpleNamespace(
            captions=lambda: ["a", "b"],
            images=lambda: iter([torch.zeros(2, 3, 32, 32)]),
            embeddings=lambda source: text,
            references=lambda: None,
        )
        validator = Validator(
            self.settings.validation, self.model, prompts, None, text[0][:1], self.settings.base, self.engine.device
        )
        return validator.sample_images()

    def copies(self) -> dict[str, dict[str, torch.Tensor]]:
        moments = {kind: copy_to_cpu(tensors) for kind, tensors in self.state.moments().items()}
        return {"trainable": copy_to_cpu(self.state.values()), **moments}

    def frozen(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters() if not p.requires_grad}


@pytest.fixture
def make_worker(alone):
    engines = []

    def make(settings: FinetuneSettings) -> Worker:
        worker = Worker(settings)
        engines.append(worker.engine)
        return worker

    yield make
    for engine in engines:
        engine.destroy()


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        images=torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1,
        z_0=torch.randn(2, 4, 128, generator=generator),
        text=torch.randn(2, 3, TEXT_WIDTH, generator=generator),
        text_mask=torch.ones(2, 3).bool(),
        noise=torch.randn(2, 3, 32, 32, generator=generator),
        sigma=torch.tensor([0.3, 0.8]),
        weight=torch.ones(2),
        keys=["a", "b"],
        key_sums=torch.ones(2).double(),
    )


@pytest.mark.parametrize(
    ("scheme", "optimizer", "stage"),
    [
        ("nf4", "adam8bit", 0), ("nf4", "adam", 0), ("nf4", "adam", 1), ("nf4", "adam", 2), ("int8", "adam8bit", 0),
        ("int8", "adam", 2), ("fp8", "adam8bit", 0), ("fp8", "adam", 2),
    ],
)  # fmt: skip
def test_a_resumed_training_equals_an_uninterrupted_one(make_worker, base, scheme, optimizer, stage):
    settings = settings_of(base, optimizer, stage, base_quantization=scheme)
    worker = make_worker(settings)
    frozen = worker.frozen()
    assert {p.dtype for p in frozen.values()} == {torch.float32, STORED[scheme]}
    first = worker.train(range(3))
    saved = worker.copies()
    image = worker.validate()
    assert image.getextrema() != ((0, 0), (0, 0), (0, 0))
    rest = worker.train(range(3, 6))

    resumed = make_worker(settings)
    create_optimizer_state(resumed.engine, resumed.optimizer, blank_batch(resumed.model, 2))
    resumed.state.restore(saved, applied=3)
    assert resumed.validate().tobytes() == image.tobytes()
    assert resumed.train(range(3, 6)) == pytest.approx(rest, rel=1e-6)
    values, again = worker.copies()["trainable"], resumed.copies()["trainable"]
    for name, value in values.items():
        torch.testing.assert_close(again[name], value, rtol=1e-5, atol=1e-7)
        assert not torch.equal(value, saved["trainable"][name]), name
    assert all(torch.equal(worker.frozen()[name], value) for name, value in frozen.items())
    assert all(torch.isfinite(torch.tensor(first + rest)))


def test_the_adapter_fits_the_full_base_and_merges_into_it(make_worker, base, tmp_path):
    settings = settings_of(base)
    worker = make_worker(settings)
    worker.train(range(3))
    save_adapter(worker.model, tmp_path)
    full = adapt(settings, load_transformer(base, torch.float32), make_subspace()).eval()
    assert all(p.is_floating_point() for p in full.parameters())
    load_adapter(full, tmp_path)
    merged, _ = load_merged(load_transformer(base, torch.float32), tmp_path)
    expected, found = velocities(full, merged)
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()
    trained, _ = velocities(worker.model.eval(), merged)
    assert 1e-3 < (trained - expected).norm() / expected.norm() < 0.2


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_without_bitsandbytes_it_is_refused_before_anything_starts(base, scheme, monkeypatch):
    settings = settings_of(base, "adam", lora=None, base_quantization=scheme)
    check(settings)
    monkeypatch.setattr("pipelines.train.config.PathFinder.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"^base_quantization={scheme}: needs bitsandbytes: pip install"):
        check(settings)
    check(settings_of(base, "adam", lora=None, base_quantization="fp8"))


@pytest.mark.parametrize("stage", [0, 2])
def test_a_gguf_base_is_trained_on_and_keeps_its_weights(make_worker, base, tmp_path, stage):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "Flux2KleinPipeline"}))
    write_base(make_transformer(TEXT_WIDTH, head_width=32), tmp_path / "transformer")
    settings = settings_of(str(tmp_path), "adam", stage, base_quantization=None)
    check(settings)
    worker = make_worker(settings)
    before, frozen = copy_to_cpu(worker.state.values()), worker.frozen()
    assert {p.dtype for p in frozen.values()} == {torch.float32, torch.uint8}
    assert all(torch.isfinite(torch.tensor(worker.train(range(2)))))
    assert all(torch.equal(value.data, frozen[name].data) for name, value in worker.frozen().items())
    assert not any(torch.equal(value, before[name]) for name, value in copy_to_cpu(worker.state.values()).items())
    save_adapter(worker.model, tmp_path / "adapter")
    load_merged(load_transformer(base, torch.float32), tmp_path / "adapter")
