import pytest

from asymflow.adapters import WEIGHTS
from pipelines.core.artifacts import Artifact
from pipelines.core.config import ConfigError, validate
from pipelines.evaluate.config import EvaluateSettings
from pipelines.evaluate.selection import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    column_of,
    hash_overrides,
    measures_of,
    models_of,
    read_prompts,
    repeats_of,
    scorers_of,
    suite_of,
)
from pipelines.evaluate.suites import SUITES


def test_the_file_of_an_adapter_is_the_librarys():
    assert ADAPTER_WEIGHTS == f"{ADAPTER}/{WEIGHTS}"


def settings_of(**tree):
    return validate(EvaluateSettings, tree)


@pytest.mark.parametrize(
    ("tree", "models"),
    [
        ({}, ["latent", "lifted", "trained"]),
        ({"suite": "coco10k"}, ["trained"]),
        ({"models": ["lifted"]}, ["lifted"]),
        ({"models": ["lifted"], "pictures": "found"}, ["trained"]),
    ],
)
def test_models_are_given_or_the_suites(tree, models):
    assert models_of(settings_of(**tree)) == models


def test_images_per_prompt_are_given_or_the_suites():
    assert repeats_of(settings_of(suite="dpg")) == 4
    assert repeats_of(settings_of(suite="dpg", images_per_prompt=2)) == 2


def test_measures_go_with_the_scorers_that_they_read():
    settings = settings_of(leave_out=["efficientnet"])
    assert scorers_of(settings) == ["spectrum"]
    names = {measure.names for measure in suite_of(settings).measures} - {m.names for m in measures_of(settings)}
    assert names == {("imagenet_frechet",)}


@pytest.mark.parametrize(("suite", "column"), [("demo", "caption"), ("classes", "label")])
def test_prompts_of_held_out_images_are_captions_or_classes(suite, column):
    assert column_of(SUITES[suite]) == column


def test_prompts_are_the_first_of_the_benchmark(tmp_path):
    file = tmp_path / "captions.txt"
    file.write_text("a cat\na dog\na bus\n")
    settings = settings_of(suite="coco10k", prompts={"file": str(file), "count": 2})
    assert [prompt.text for prompt in read_prompts(settings, None)] == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({}, "prompts.file: missing; the captions of Lakonik/t2i-prompts-coco-10k"),
        ({"file": True}, "prompts.file=.*: has 1 prompts, coco10k has 10000; prompts.count=N takes the first N"),
        ({"file": True, "count": 2}, "prompts.count=2: there are only 1"),
    ],
)
def test_too_few_prompts_are_refused(tmp_path, prompts, message):
    (tmp_path / "captions.txt").write_text("a cat\n")
    if "file" in prompts:
        prompts = {**prompts, "file": str(tmp_path / "captions.txt")}
    with pytest.raises(ConfigError, match=message):
        read_prompts(settings_of(suite="coco10k", prompts=prompts), None)


def test_a_suite_on_held_out_images_has_no_prompts_without_them():
    with pytest.raises(ConfigError, match="prompts.count=None: there are only 0"):
        read_prompts(settings_of(), None)


def test_the_precision_decides_where_images_are_sampled():
    on_gpu = {"resources": {"gpus_per_worker": 1}}
    assert hash_overrides(settings_of(), {})["resources.precision"] == "float32"
    assert hash_overrides(settings_of(**on_gpu), {})["resources.precision"] == "bfloat16"
    assert "resources.precision" not in hash_overrides(settings_of(pictures="found", **on_gpu), {})


def test_a_finetune_decides_by_its_adapter():
    def of(sha256):
        files = {"adapter/diffusion_pytorch_model.safetensors": {"sha256": sha256}}
        return hash_overrides(settings_of(), {"finetuned": Artifact("f", {"files": files})})["finetuned"]

    assert (of("a"), of("b")) == ("a", "b")
