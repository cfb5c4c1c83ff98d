import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from asymflow.models.geometry import KLEIN_9B
from asymflow.oklab import RELEASED
from asymflow.subspace import Subspace
from pipelines.core.config import ConfigError, load_config
from pipelines.core.storage import StorageError
from pipelines.train.devices import peak_tflops, precision
from pipelines.train.finetune.batches import Batch
from pipelines.train.finetune.config import FinetuneSettings, Perceptual
from pipelines.train.finetune.flops import PERCEPTUAL_COSTS, ImageFlops, image_flops, step_flops
from pipelines.train.finetune.memory import count_values, plan_values, static_memory
from pipelines.train.finetune.model import adapt
from pipelines.train.finetune.perceptual import load_perceptual
from pipelines.train.finetune.plan import Plan, plan, trained_groups
from pipelines.train.finetune.task import make_objective

TINY = {
    **KLEIN_9B,
    "num_layers": 2,
    "num_single_layers": 3,
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "joint_attention_dim": 48,
    "timestep_guidance_channels": 32,
    "axes_dims_rope": (8, 8, 8, 8),
}
CONFIGS = Path(__file__).parents[4] / "jobs/configs/finetune"
KINDS = [("asymflow", "variance_reduced"), *((m, "flow_matching") for m in ("asymflow", "latent", "ddt"))]


def settings_of(model: str = "asymflow", loss_kind: str = "variance_reduced", **sections) -> FinetuneSettings:
    """Return the paper's training on 32 GPUs with missing inputs, and changes to it."""
    given = {
        "resources": {"workers": 32, "use_gpu": True, "micro_batch": 1, **sections.pop("resources", {})},
        "loss": {"kind": loss_kind, **sections.pop("loss", {})},
    }
    nowhere = {name: f"/nowhere/{name}" for name in ("curated", "encoded", "basis", "base")}
    return FinetuneSettings.model_validate({**nowhere, "model": model, **given, **sections})


@pytest.fixture(scope="module")
def papers() -> Plan:
    return plan(settings_of())


def test_the_papers_run():
    started = time.monotonic()
    planned = plan(settings_of())
    text, metrics = planned.table(), planned.metrics
    assert time.monotonic() - started < 10
    assert metrics["trained_values"] == 353_435_648
    assert metrics["adapter_values"] == 353_533_953
    assert metrics["tokens_a_step"] == 256 * (4096 + 512)
    for shown in (
        "353,435,648",
        "353.5M",
        "353,533,953",
        "published shapes of FLUX.2 klein Base 9B",
        "ASSUMED",
        "45% MFU",
    ):
        assert shown in text
    # base matrices and attention of 32 blocks, as multiply-adds, times three: forward of student and teacher, backward
    estimate = 3 * (2 * 8.1e9 * 4608 + 32 * 4 * 4096 * 4608**2)
    assert metrics["tflop_a_step"] == pytest.approx(256 * estimate / 1e12, rel=0.1)
    assert metrics["seconds_a_step"] == pytest.approx(metrics["tflop_a_step"] / (32 * 989 * 0.45))


def test_shapes_and_sizes_of_inputs_that_are_here(tmp_path):
    base = tmp_path / "base" / "transformer"
    base.mkdir(parents=True)
    (base / "config.json").write_text(json.dumps({"_class_name": "Flux2Transformer2DModel", **TINY}))
    for step, config in {"curate": {"buckets": [[64, 64], [96, 64]]}, "encode": {"max_text_tokens": 40}}.items():
        (tmp_path / step).mkdir()
        (tmp_path / step / "manifest.json").write_text(json.dumps({"step": step, "id": "0", "config": config}))
    inputs = {"base": str(base.parent), "curated": str(tmp_path / "curate"), "encoded": str(tmp_path / "encode")}
    planned = plan(settings_of().model_copy(update=inputs))
    assert planned.config["num_layers"] == TINY["num_layers"]
    assert (planned.image_tokens, planned.text_tokens) == (24, 40)
    assert str(base) in planned.table() and "ASSUMED" not in planned.table()


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_unreachable_store_gives_an_assumed_size(monkeypatch):
    def refuse(uri, step):
        raise StorageError(f"{uri}: access denied")

    monkeypatch.setattr("pipelines.train.finetune.plan.load_artifact", refuse)
    assert plan(settings_of()).table().count("ASSUMED: /nowhere/") == 2


def test_a_base_without_a_transformer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="config.json"):
        plan(settings_of().model_copy(update={"base": str(tmp_path)}))


@pytest.mark.parametrize("kind", KINDS)
def test_every_model_and_loss_has_a_plan(kind):
    planned = plan(settings_of(*kind))
    text = planned.table()
    assert planned.metrics["memory_gib"] > 20 and planned.metrics["tflop_a_step"] > 1000
    assert ("teacher, forward" in text) == ("perceptual network" in text) == (kind[1] == "variance_reduced")
    assert ("DDT head" in text) == (kind[0] == "ddt")


def test_memory_grows_with_its_settings(papers):
    def memory_of(**resources) -> dict[str, float]:
        return replace(papers, settings=settings_of(resources=resources)).memory

    base = sum(memory_of().values())
    assert base < sum(memory_of(precision="float32").values())
    assert base < sum(memory_of(micro_batch=2).values())
    assert base > sum(memory_of(gradient_checkpointing=True).values())
    by_stage = []
    for stage in (0, 1, 2, 3):
        memory = memory_of(zero_stage=stage)
        by_stage.append(sum(n for name, n in memory.items() if name != "buckets of gradients"))
    assert by_stage == sorted(by_stage, reverse=True)
    assert sum(memory_of(zero_stage=3).values()) < base / 1.4


def test_objectives_that_take_more_and_less_operations():
    def flops_of(*kind: str, **resources) -> ImageFlops:
        return image_flops(settings_of(*kind, resources=resources), KLEIN_9B, 4096, 512)

    reduced, flow_matching, latent, ddt = (flops_of(*kind) for kind in KINDS)
    assert latent.model < flow_matching.model < ddt.model
    assert flow_matching.model < reduced.model == reduced.executed
    checkpointed = flops_of(gradient_checkpointing=True)
    assert checkpointed.model == reduced.model
    assert 1.25 < checkpointed.executed / checkpointed.model < 4 / 3


def test_eight_bits_take_a_quarter_of_the_optimizer(papers):
    def optimizer(kind: str) -> float:
        settings = settings_of(optim={"optimizer": kind}, resources={"zero_stage": 0})
        return replace(papers, settings=settings).memory["optimizer"]

    assert optimizer("adam") == 8 * 353_435_648
    assert 0.25 < optimizer("adam8bit") / optimizer("adam") < 0.26


def test_batches_that_do_not_divide_are_padded(papers):
    settings = settings_of(optim={"batch": 100}, resources={"workers": 8, "micro_batch": 4})
    assert "8 workers x 4 micro-batches of 4, 28 of them padding" in replace(papers, settings=settings).table()


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
def test_what_a_quantized_base_holds_is_what_its_tensors_take(kind, type_):
    resources = {"workers": 1, "precision": type_, "zero_stage": 0}
    settings = settings_of(*kind, resources=resources, lora={"rank": 8}, ddt={"heads": 4, "head_width": 16})
    subspace = Subspace(torch.eye(768, 128), 1.0, "channel_first", RELEASED, {})
    model = adapt(settings, Flux2Transformer2DModel(**TINY), subspace)
    model.set_precision(precision(settings.resources))
    names = model.frozen_linears()
    model.quantize_base()
    states = [model.transformer.get_submodule(name).weight.quant_state for name in names]
    scales = sum(state.absmax.nbytes + state.state2.absmax.nbytes for state in states)
    other = sum(p.nbytes for p in (*model.latent_modules.parameters(), *model.trainable().values()))
    quantized = settings.model_copy(update={"base_quantization": "nf4"})
    values = plan_values(settings, TINY)
    held = static_memory(quantized, values)
    # a matrix of less than 256 blocks also has a whole float32 scale of its scales
    assert held["base weights"] == pytest.approx(sum(p.nbytes for p in model.parameters()) - other + scales, rel=1e-3)
    plain = static_memory(settings, values)
    assert {**held, "base weights": 0} == {**plain, "base weights": 0}
    assert held["base weights"] < plain["base weights"] / (3 if type_ == "bfloat16" else 5)


def test_the_4b_model_fits_24_gb_and_the_plan_shows_how():
    settings = load_config(FinetuneSettings, str(CONFIGS / "klein_4b.yaml"), [])
    planned = plan(settings)
    text, memory = planned.table(), planned.memory
    for shown in (
        "3,832,283,136 in NF4, 4.13 bits per value with scales; 23,600,640 in 16 bits",
        "gradient checkpointing",
        "8-bit moments",
        "1 workers x 256 micro-batches of 1",
        "activations estimated, not yet measured on a GPU",
        "fits in 24 GiB: the planned GPU",
    ):
        assert shown in text
    assert planned.metrics["memory_gib"] < 10
    in_16_bits = plan(settings.model_copy(update={"base_quantization": None})).memory
    assert memory["base weights"] < in_16_bits["base weights"] / 3.5
    assert memory["largest matrix, dequantized"] == 2 * 3072 * (3 * 3072 + 2 * 9216)
    small = settings.resources.model_copy(update={"gpu_memory": 6})
    assert "DOES NOT FIT in 6 GiB" in plan(settings.model_copy(update={"resources": small})).table()


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


def test_settings_that_a_bases_file_leaves_out_are_the_classs(tmp_path):
    (tmp_path / "transformer").mkdir()
    few = {name: value for name, value in TINY.items() if name != "mlp_ratio"}
    (tmp_path / "transformer/config.json").write_text(json.dumps(few))
    assert plan(settings_of().model_copy(update={"base": str(tmp_path)})).config["mlp_ratio"] == 3.0


@pytest.mark.parametrize("net", PERCEPTUAL_COSTS)
def test_cost_of_a_perceptual_network(net):
    perceptual = load_perceptual(Perceptual(net=net, weights="random")).to("meta")
    assert sum(p.numel() for p in perceptual.parameters()) == PERCEPTUAL_COSTS[net].values
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    picture = torch.zeros(1, 3, 1024, 1024, device="meta")
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        perceptual(picture.clone().requires_grad_(), picture).sum().backward()
    own = {p.untyped_storage()._cdata for p in perceptual.parameters()}
    kept_bytes = sum(storage.nbytes() for place, storage in kept.items() if place not in own)
    assert counter.get_total_flops() / 1024**2 == pytest.approx(PERCEPTUAL_COSTS[net].flops_per_pixel, rel=0.01)
    assert kept_bytes / 1024**2 == pytest.approx(PERCEPTUAL_COSTS[net].bytes_per_pixel, rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_operations_of_a_step_are_those_that_torch_counts(kind):
    loss = {"perceptual": {"net": "squeeze", "weights": "random"}} if kind[1] == "variance_reduced" else {}
    config = {**TINY, "num_attention_heads": 8, "attention_head_dim": 64, "axes_dims_rope": (16, 16, 16, 16)}
    settings = settings_of(*kind, loss=loss, lora={"rank": 8, "dropout": 0.0}, ddt={"heads": 4, "head_width": 48})
    subspace = Subspace(torch.eye(768, 128), 2.0, "channel_first", RELEASED, {})
    objective = make_objective(adapt(settings, Flux2Transformer2DModel(**config), subspace).train(), settings.loss)
    batch = Batch(
        images=torch.rand(2, 3, 128, 128) * 2 - 1,
        z_0=torch.randn(2, 64, 128),
        text=torch.randn(2, 32, TINY["joint_attention_dim"]),
        text_mask=torch.ones(2, 32).bool(),
        noise=torch.randn(2, 3, 128, 128),
        sigma=torch.rand(2),
        weight=torch.ones(2),
        keys=["a", "b"],
        key_sums=torch.ones(2).double(),
    )
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        objective(**batch.inputs())[0].backward()
    assert counter.get_total_flops() == pytest.approx(step_flops(settings, config, 64, 32, images=2), rel=0.01)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H200", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA A100X", None),
        ("Quadro P400", None),
    ],
)
def test_peaks_of_common_gpus(name, tflops):
    assert peak_tflops(name) == tflops


def test_the_shipped_bases_shapes_are_read():
    base = Path(__file__).parents[4] / "models" / "toy_klein"
    planned = plan(settings_of().model_copy(update={"base": str(base)}))
    assert planned.geometry.startswith(str(base)) and planned.values.base < 10_000_000
