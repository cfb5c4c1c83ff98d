import json
from dataclasses import replace

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from finetune_settings import KINDS, TINY, settings_of

from asymflow.oklab import RELEASED
from asymflow.subspace import Subspace
from pipelines.train.devices import precision
from pipelines.train.finetune.memory import count_values, plan_values, static_memory
from pipelines.train.finetune.model import adapt
from pipelines.train.finetune.plan import plan, trained_groups


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("type_", ["bfloat16", "float32"])
def test_planned_memory_equals_the_tensors(kind, type_, tmp_path):
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(TINY))
    resources = {"workers": 1, "precision": type_, "zero_stage": 0}
    settings = settings_of(*kind, resources=resources, lora={"rank": 8}, ddt={"heads": 4, "head_width": 16})
    settings = settings.model_copy(update={"base": str(tmp_path)})
    subspace = Subspace(torch.eye(768, 128), 1.0, "channel_first", RELEASED, {})
    model = adapt(settings, Flux2Transformer2DModel(**TINY), subspace)
    model.set_precision(precision(settings.resources))
    for p in model.trainable().values():
        p.grad = torch.ones_like(p)
    optimizer = torch.optim.AdamW(model.trainable().values())
    optimizer.step()
    original = sum(p.nbytes for p in model.latent_modules.parameters())
    trained = sum(p.nbytes for p in model.trainable().values())
    memory = static_memory(settings, plan(settings).values)
    memory.pop("perceptual network", None)
    assert memory == {
        "base weights": sum(p.nbytes for p in model.parameters()) - original - trained,
        "original first and last layers": original,
        "trained values": trained,
        "gradients": sum(p.grad.nbytes for p in model.trainable().values()),
        "optimizer": sum(m.nbytes for state in optimizer.state.values() for m in state.values() if m.ndim),
        "moving average": trained,
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("type_", ["bfloat16", "float32"])
@pytest.mark.parametrize("scheme", ["nf4", "int8", "fp8"])
def test_what_a_quantized_base_holds_is_what_its_tensors_take(kind, type_, scheme):
    resources = {"workers": 1, "precision": type_, "zero_stage": 0}
    settings = settings_of(*kind, resources=resources, lora={"rank": 8}, ddt={"heads": 4, "head_width": 16})
    subspace = Subspace(torch.eye(768, 128), 1.0, "channel_first", RELEASED, {})
    model = adapt(settings, Flux2Transformer2DModel(**TINY), subspace)
    model.set_precision(precision(settings.resources))
    names = model.frozen_linears()
    model.quantize_base(scheme=scheme)
    states = [model.transformer.get_submodule(name).weight.quant_state for name in names] if scheme == "nf4" else []
    scales = sum(state.absmax.nbytes + state.state2.absmax.nbytes for state in states)
    other = sum(p.nbytes for p in (*model.latent_modules.parameters(), *model.trainable().values()))
    quantized = settings.model_copy(update={"base_quantization": scheme})
    values = plan_values(settings, TINY)
    held = static_memory(quantized, values)
    # a matrix of less than 256 blocks also has a whole float32 scale of its scales
    assert held["base weights"] == pytest.approx(sum(p.nbytes for p in model.parameters()) - other + scales, rel=1e-3)
    plain = static_memory(settings, values)
    assert {**held, "base weights": 0} == {**plain, "base weights": 0}
    least = {"nf4": {"bfloat16": 3, "float32": 5}}.get(scheme, {"bfloat16": 1.8, "float32": 3})[type_]
    assert held["base weights"] < plain["base weights"] / least


@pytest.mark.parametrize("lora", [{"rank": 8}, None])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_values_by_shapes_are_those_of_the_model(kind, guided, lora):
    settings = settings_of(*kind, lora=lora, ddt={"blocks": 3, "heads": 4, "head_width": 16})
    config = {**TINY, "guidance_embeds": guided}
    with torch.device("meta"):
        transformer = Flux2Transformer2DModel(**config)
    subspace = Subspace(torch.eye(768, 128), 1.0, "channel_first", RELEASED, {})
    with torch.device("meta"):
        counted = count_values(adapt(settings, transformer, subspace))
    planned = plan_values(settings, config)
    assert trained_groups(planned, config) == trained_groups(counted, config)
    assert replace(planned, trained={}) == replace(counted, trained={})
