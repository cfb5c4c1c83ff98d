"""DeepSpeed's engine in one process: skipping, clipping, saving and restoring at every ZeRO stage."""

import math
import os
import time
from dataclasses import replace
from itertools import product

import deepspeed
import pytest
import torch

from asymflow.ema import PowerEMA
from asymflow.models.flux2 import PixelFlux2
from asymflow.oklab import RELEASED
from asymflow.subspace import Subspace
from pipelines.train.engine import (
    backward_and_step,
    create_optimizer_state,
    gradient_norm,
    make_engine,
    set_clip,
    set_learning_rates,
    was_skipped,
)
from pipelines.train.finetune.batches import Batch
from pipelines.train.finetune.config import FinetuneSettings, Optim
from pipelines.train.finetune.task import blank_batch, make_objective, parameter_groups
from pipelines.train.state import TrainableState, copy_to_cpu

pytestmark = pytest.mark.usefixtures("alone")
KINDS = [("adam", 0), ("adam", 1), ("adam", 2), ("adam", 3), ("adam8bit", 0)]


@pytest.fixture
def make(tiny_transformer):
    """Return a function of optimizer and ZeRO stage: (engine, optimizer, model, its state), from the same weights."""
    engines = []

    def make(optimizer: str = "adam", zero_stage: int = 0, clip: float = 200.0, accumulation: int = 1):
        settings = FinetuneSettings.model_validate(
            {
                **{name: "x" for name in ("curated", "encoded", "basis", "base")},
                "loss": {"kind": "flow_matching"},
                "optim": {"optimizer": optimizer, "clip": clip},
                "resources": {"zero_stage": zero_stage},
            }
        )
        torch.manual_seed(0)
        A = torch.linalg.qr(torch.randn(768, 128)).Q
        model = PixelFlux2.from_latent(tiny_transformer(8), Subspace(A, 1.7, "channel_first", RELEASED, {}))
        model.add_lora(rank=16, dropout=0.0)
        engine, inner = make_engine(
            make_objective(model, settings.loss), parameter_groups(model, settings.optim), settings, 2, accumulation
        )
        engines.append(engine)
        return engine, inner, model, TrainableState(engine, model.trainable())

    yield make
    for engine in engines:
        engine.destroy()  # free its buffers: with gigabytes of addresses each, the process could not fork any more


@pytest.mark.slow
def test_the_lock_of_a_killed_build_is_removed(make, tmp_path, monkeypatch):
    lock = tmp_path / "py311_cpu/deepspeed_shm_comm/lock"
    lock.parent.mkdir(parents=True)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))

    def initialize(**options):
        raise RuntimeError("young" if lock.exists() else "gone")

    monkeypatch.setattr(deepspeed, "initialize", initialize)
    for age, found in ((10, "young"), (3600, "gone")):
        lock.touch()
        os.utime(lock, (time.time() - age,) * 2)
        with pytest.raises(RuntimeError, match=found):
            make()


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        images=torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1,
        z_0=torch.randn(2, 4, 128, generator=generator),
        text=torch.randn(2, 3, 8, generator=generator),
        text_mask=torch.ones(2, 3).bool(),
        noise=torch.randn(2, 3, 32, 32, generator=generator),
        sigma=torch.tensor([0.3, 0.8]),
        weight=torch.ones(2),
        keys=["a", "b"],
        key_sums=torch.ones(2).double(),
    )


def poisoned(value: float) -> Batch:
    good = batch(99)
    images = good.images.clone()
    images[1, 0, 3, 3] = value
    return replace(good, images=images)


def train(engine, optimizer, batches, rate: float = 1e-3) -> list[float]:
    losses = []
    for micro_batches in batches:
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses.append(sum(float(part["loss"].mean()) for part in backward_and_step(engine, micro_batches)))
    return losses


def copies(state) -> tuple[dict, dict]:
    return copy_to_cpu(state.values()), {kind: copy_to_cpu(tensors) for kind, tensors in state.moments().items()}


def assert_equal(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(("optimizer", "stage"), KINDS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_without_a_finite_gradient_is_skipped_and_changes_nothing(make, optimizer, stage, value):
    engine, inner, _, state = make(optimizer, stage)
    train(engine, inner, [[batch(0)]])
    assert not was_skipped(engine) and 0 < gradient_norm(engine) < math.inf
    values, moments = copies(state)
    train(engine, inner, [[poisoned(value)]])
    assert was_skipped(engine)
    after = copies(state)
    assert_equal(after[0], values)
    for kind in moments:
        assert_equal(after[1][kind], moments[kind])
    (with_it,) = train(engine, inner, [[batch(1)]])
    assert not was_skipped(engine)

    undisturbed, inner, *_, other = make(optimizer, stage)
    without = train(undisturbed, inner, [[batch(0)], [batch(1)]])
    assert with_it == without[1]
    assert_equal(copies(state)[0], copies(other)[0])


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_one_bad_micro_batch_skips_the_whole_step(make, stage):
    engine, inner, _, state = make("adam", stage, accumulation=2)
    values = copy_to_cpu(state.values())
    train(engine, inner, [[batch(0), poisoned(math.nan)]])
    assert was_skipped(engine)
    assert_equal(copy_to_cpu(state.values()), values)
    train(engine, inner, [[batch(0), batch(1)]])
    assert not was_skipped(engine)


@pytest.mark.parametrize(
    ("written", "read"), [*product(range(4), range(4)), ("adam8bit", "adam8bit")], ids=lambda kind: str(kind)
)
def test_state_goes_from_any_stage_to_any_other(make, written, read):
    """State is set into another engine after a step of zero length; both then take the same steps."""
    first, second = (("adam8bit", 0) if kind == "adam8bit" else ("adam", kind) for kind in (written, read))
    engine, inner, _, state = make(*first)
    train(engine, inner, [[batch(i)] for i in range(3)])
    values, moments = copies(state)
    other, other_inner, model, other_state = make(*second)
    train(other, other_inner, [[batch(50)]])  # values to be overwritten
    create_optimizer_state(other, other_inner, blank_batch(model, 2))
    other_state.restore({"trainable": values, **moments}, applied=3)
    assert_equal(copies(other_state)[0], values)
    steps = [[batch(i)] for i in range(3, 6)]
    assert train(engine, inner, steps) == pytest.approx(train(other, other_inner, steps), rel=1e-5)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_opening_the_optimizer_moves_nothing(make, stage):
    engine, inner, model, state = make("adam", stage, accumulation=2)
    values = copy_to_cpu(state.values())
    create_optimizer_state(engine, inner, blank_batch(model, 2))
    assert_equal(copies(state)[0], values)
    assert all(not tensor.any() for kind in state.moments().values() for tensor in kind.values())


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_checkpoint_of_another_shape_is_refused(make, stage):
    engine, inner, model, state = make("adam", stage)
    create_optimizer_state(engine, inner, blank_batch(model, 2))
    values, moments = copies(state)
    name = "transformer.x_embedder.weight"
    with pytest.raises(ValueError, match=f"trainable of {name} is .* in the checkpoint"):
        state.restore({"trainable": values | {name: values[name][:, :5]}, **moments}, applied=1)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_swapped_values_are_used_and_restored(make, stage):
    engine, inner, model, state = make("adam", stage)
    train(engine, inner, [[batch(0)]])
    values, _ = copies(state)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in values.items()}
    data = batch(1)
    plain = model.eval()(data.noise, data.sigma, data.text).detach()
    with state.swapped(zeros):
        # the network's output is then 0, and only the recovery from x_t remains
        swapped = model(data.noise, data.sigma, data.text).detach()
    assert not torch.allclose(swapped, plain)
    torch.testing.assert_close(model(data.noise, data.sigma, data.text).detach(), plain, rtol=0, atol=0)
    assert_equal(copies(state)[0], values)
    model.train()
    (after,) = train(engine, inner, [[batch(1)]])
    other, inner, *_ = make("adam", stage)
    assert after == train(other, inner, [[batch(0)], [batch(1)]])[1]


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_gradient_is_clipped_and_its_norm_is_that_before(make, stage):
    engine, inner, *_ = make("adam", stage)
    train(engine, inner, [[batch(0)]])
    norm = gradient_norm(engine)
    clipped, inner, _, state = make("adam", stage, clip=norm / 10)
    train(clipped, inner, [[batch(0)]])
    assert gradient_norm(clipped) == pytest.approx(norm, rel=1e-5)
    first_moments = torch.cat([tensor.flatten() for tensor in state.moments()["exp_avg"].values()])
    assert float(first_moments.norm()) == pytest.approx(0.1 * norm / 10, rel=1e-3)  # 1 - beta of the clipped gradient


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_clipping_starts_at_its_step_and_nan_is_skipped_before(make, stage):
    engine, inner, _, state = make("adam", stage, clip=1e-3)
    optim = Optim(clip=1e-3, clip_from=3)
    set_clip(engine, 2, optim)
    train(engine, inner, [[batch(0)]])
    free = torch.cat([tensor.flatten() for tensor in state.moments()["exp_avg"].values()])
    assert float(free.norm()) == pytest.approx(0.1 * gradient_norm(engine), rel=1e-3)
    train(engine, inner, [[poisoned(math.nan)]])
    assert was_skipped(engine)
    set_clip(engine, 3, optim)
    train(engine, inner, [[batch(1)]])
    clipped = torch.cat([tensor.flatten() for tensor in state.moments()["exp_avg"].values()]) - 0.9 * free
    assert float(clipped.norm()) == pytest.approx(1e-4, rel=1e-2)


def test_rates_are_a_function_of_the_step(make):
    _, inner, *_ = make()
    optim = Optim(steps=100, warmup_steps=10, cooldown_steps=20)

    def rates(step: int) -> list[float]:
        set_learning_rates(inner, step, optim)
        return [group["lr"] for group in inner.param_groups]

    assert rates(1) == pytest.approx([1e-5, 1e-4]) and rates(10) == rates(80) == pytest.approx([1e-4, 1e-3])
    assert rates(91) == pytest.approx([5e-5, 5e-4]) and rates(100) == pytest.approx([5e-6, 5e-5])


def test_proj_out_alone_has_a_rate_of_its_own_and_one_rate_is_one_group(make):
    _, _, model, _ = make()
    others, last = parameter_groups(model, Optim())
    assert (others["lr"], last["lr"]) == (1e-4, 1e-3)
    assert [p is model.transformer.proj_out.weight for p in last["params"]] == [True]
    assert {group["lr"] for group in parameter_groups(model, Optim(lr_proj_out=None))} == {1e-4}


def test_the_released_schedule_is_whole_for_the_first_time_at_step_101(make):
    """Linear from 0.001 of the rate at the first step; clipping and averaging start after the warm-up."""
    engine, inner, model, _ = make()
    optim = Optim(warmup_steps=100, warmup_ratio=0.001, clip_from=101)

    def share(step: int) -> float:
        set_learning_rates(inner, step, optim)
        return inner.param_groups[0]["lr"] / optim.lr

    shares = [share(step) for step in (1, 51, 100, 101, 102)]
    assert shares == pytest.approx([0.001, 0.5005, 0.99001, 1.0, 1.0])
    limits = []
    for step in (100, 101):
        set_clip(engine, step, optim)
        limits.append(engine.optimizer.clip_grad)
    assert limits == [math.inf, 200.0]
    average = PowerEMA(model.trainable(), gamma=7.0, start_step=101)
    assert [average.decay_at(step) for step in (100, 101, 102)] == pytest.approx([0, 0, 0.5**8])
