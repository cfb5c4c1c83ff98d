from itertools import product

import pytest
import torch
from engines import assert_equal, batch, copies, train

from pipelines.train.engine import create_optimizer_state
from pipelines.train.finetune.task import blank_batch
from pipelines.train.state import copy_to_cpu

pytestmark = pytest.mark.usefixtures("alone")


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
