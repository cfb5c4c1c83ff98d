from dataclasses import replace

import pytest
import torch

from asymflow.models.jit import SIZES, JiT, JiTConfig
from pipelines.core.config import validate
from pipelines.train.pretrain.config import PretrainSettings
from pipelines.train.pretrain.plan import memory_of, plan, print_plan

SMALL = JiTConfig(width=32, depth=4, heads=2, bottleneck=24, context_from=1, context_tokens=5, patch_size=4)


def settings(**changes):
    return validate(PretrainSettings, {"curated": "nowhere", "basis": "nowhere", **changes})


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, context_tokens=0, classes=3), *SIZES.values()])
def test_parameters_by_shapes_are_those_of_the_network(config):
    with torch.device("meta"):
        assert config.parameters == sum(p.numel() for p in JiT(config).parameters())


def test_the_plan_of_the_papers_run(capsys):
    numbers = print_plan(settings(resources={"workers": 64, "use_gpu": True, "micro_batch": 16, "zero_stage": 1}))
    assert round(numbers["parameters"] / 1e6) == 953
    assert int(numbers["gflop_forward"]) == 363
    assert numbers["epochs"] == pytest.approx(600, rel=1e-3)
    assert 300 < numbers["worker_hours"] < 1750  # at the assumed utilization, which is above the paper's
    told = capsys.readouterr().out
    assert "JiT-H/16" in told
    assert "the paper: about 1,750 H100 hours" in told
    assert "ASSUMED, as ImageNet" in told


def test_memory_is_counted_as_the_parts_are_held():
    changes = {"workers": 4, "use_gpu": True, "micro_batch": 2}
    by_stage = [memory_of(settings(resources={**changes, "zero_stage": stage}), 10**9, 256) for stage in (0, 1, 2)]
    assert [m["moments"] for m in by_stage] == [8e9, 2e9, 2e9]
    assert [m["gradients"] for m in by_stage] == [4e9, 4e9, 1e9]
    kept = [m["activations of 2"] for m in by_stage]
    lean = memory_of(settings(resources={**changes, "gradient_checkpointing": True}), 10**9, 256)
    assert len(set(kept)) == 1
    assert lean["activations of 2"] < 0.2 * kept[0]


def test_an_unknown_peak_is_reported():
    numbers, rows = plan(settings())
    assert "worker_hours" not in numbers
    assert "set resources.peak_tflops" in rows[-1][-1]


def test_alignment_is_counted():
    rows = plan(settings(repa={"encoder": "models/dinov2"}))[1]
    assert ["REPA", "not counted", "a forward pass of models/dinov2, and the projector"] in rows
    assert not any(row[0] == "REPA" for row in plan(settings())[1])
