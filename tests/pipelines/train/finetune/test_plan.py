import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from finetune_settings import KINDS, TINY, settings_of

from pipelines.core.config import ConfigError, load_config
from pipelines.core.storage import StorageError
from pipelines.train.finetune.config import FinetuneSettings
from pipelines.train.finetune.plan import Plan, plan

CONFIGS = Path(__file__).parents[4] / "jobs/configs/finetune"


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
    assert str(base) in planned.table()
    assert "ASSUMED" not in planned.table()


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
    assert planned.metrics["memory_gib"] > 20
    assert planned.metrics["tflop_a_step"] > 1000
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


def test_eight_bits_take_a_quarter_of_the_optimizer(papers):
    def optimizer(kind: str) -> float:
        settings = settings_of(optim={"optimizer": kind}, resources={"zero_stage": 0})
        return replace(papers, settings=settings).memory["optimizer"]

    assert optimizer("adam") == 8 * 353_435_648
    assert 0.25 < optimizer("adam8bit") / optimizer("adam") < 0.26


def test_batches_that_do_not_divide_are_padded(papers):
    settings = settings_of(optim={"batch": 100}, resources={"workers": 8, "micro_batch": 4})
    assert "8 workers x 4 micro-batches of 4, 28 of them padding" in replace(papers, settings=settings).table()


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


def test_settings_that_a_bases_file_leaves_out_are_the_classs(tmp_path):
    (tmp_path / "transformer").mkdir()
    few = {name: value for name, value in TINY.items() if name != "mlp_ratio"}
    (tmp_path / "transformer/config.json").write_text(json.dumps(few))
    assert plan(settings_of().model_copy(update={"base": str(tmp_path)})).config["mlp_ratio"] == 3.0


def test_the_shipped_bases_shapes_are_read():
    base = Path(__file__).parents[4] / "models" / "toy_klein"
    planned = plan(settings_of().model_copy(update={"base": str(base)}))
    assert planned.geometry.startswith(str(base))
    assert planned.values.base < 10_000_000
