"""DeepSpeed's engine in one process: skipping, clipping, saving and restoring at every ZeRO stage."""

import math
import os
import time

import deepspeed
import pytest
import torch
from engines import assert_equal, batch, copies, poisoned, train

from asymflow.ema import PowerEMA
from pipelines.train import engine as engine_module
from pipelines.train.engine import (
    backward_and_step,
    gradient_norm,
    make_optimizer,
    set_clip,
    set_learning_rates,
    was_skipped,
)
from pipelines.train.finetune.config import Optim
from pipelines.train.finetune.task import parameter_groups
from pipelines.train.state import copy_to_cpu

pytestmark = pytest.mark.usefixtures("alone")
KINDS = [("adam", 0), ("adam", 1), ("adam", 2), ("adam", 3), ("adam8bit", 0)]


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


@pytest.mark.parametrize(("optimizer", "stage"), KINDS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_without_a_finite_gradient_is_skipped_and_changes_nothing(make, optimizer, stage, value):
    engine, inner, _, state = make(optimizer, stage)
    train(engine, inner, [[batch(0)]])
    assert not was_skipped(engine)
    assert 0 < gradient_norm(engine) < math.inf
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

    assert rates(1) == pytest.approx([1e-5, 1e-4])
    assert rates(10) == rates(80) == pytest.approx([1e-4, 1e-3])
    assert rates(91) == pytest.approx([5e-5, 5e-4])
    assert rates(100) == pytest.approx([5e-6, 5e-5])


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


def parameters_after(make_one, gradients):
    """Return parameters after a step with each of the gradients."""
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5, 3), (7,))]
    optimizer = make_one([{"params": parameters, "lr": 1e-2}])
    for gradient in gradients:
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator) * gradient
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


OPTIM = Optim(clip=None, weight_decay=0.1)


def plain_adam(groups):
    return torch.optim.AdamW(groups, betas=OPTIM.betas, weight_decay=OPTIM.weight_decay, foreach=False)


@pytest.mark.parametrize("stage", [0, 1])
def test_the_optimizer_on_a_processor_equals_plain_adam_bit_by_bit(stage):
    ours = parameters_after(lambda groups: make_optimizer(groups, OPTIM, stage), [1, 3, 0.1])
    for mine, theirs in zip(ours, parameters_after(plain_adam, [1, 3, 0.1]), strict=True):
        assert torch.equal(mine, theirs)


def test_the_fused_optimizer_of_gpus_equals_it_up_to_rounding_and_skips_steps_by_itself():
    def fused(groups):
        return make_optimizer(groups, OPTIM, 0, fused=True)

    for mine, theirs in zip(parameters_after(fused, [1, 3]), parameters_after(plain_adam, [1, 3]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)
    for value in (math.nan, math.inf):
        for mine, theirs in zip(parameters_after(fused, [1, value]), parameters_after(fused, [1]), strict=True):
            assert torch.equal(mine, theirs)


def values_read(run) -> int:
    """Return how often the host reads a value of a tensor, for which it would wait for a GPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    reads = [event for event in profile.events() if event.name in ("aten::_local_scalar_dense", "aten::nonzero")]
    return sum("aten::_fused_adamw_" not in parents(event) for event in reads)  # the processor's kernel counts steps


def parents(event) -> list[str]:
    """Return the names of the operations that an operation is part of."""
    found = []
    while event.cpu_parent is not None:
        event = event.cpu_parent
        found.append(event.name)
    return found


@pytest.mark.parametrize("loss", [{"kind": "flow_matching"}, {"perceptual": None}], ids=["plain", "variance reduced"])
def test_a_step_with_the_fused_optimizer_reads_no_value_from_the_device(make, monkeypatch, loss):
    def run(engine, state):
        average = PowerEMA(state.values(), start_step=1)
        return lambda: (backward_and_step(engine, [batch(2), batch(3)]), average.update(2, state.values()))

    on_processor, inner, *_, state = make(accumulation=2, loss=loss)
    train(on_processor, inner, [[batch(0), batch(1)]])
    assert values_read(run(on_processor, state)) > 0  # whether the gradient is finite, before the update
    monkeypatch.setattr(engine_module, "make_optimizer", lambda *a, **_: make_optimizer(*a, fused=True))
    engine, inner, *_, state = make(accumulation=2, loss=loss)
    train(engine, inner, [[batch(0), batch(1)]])
    assert values_read(run(engine, state)) == 0
    assert not was_skipped(engine)
    train(engine, inner, [[batch(0), poisoned(math.nan)]])
    assert was_skipped(engine)
