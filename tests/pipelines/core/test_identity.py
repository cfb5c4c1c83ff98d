"""An artifact's ID changes with all that decides what is in it, wherever it lies, and with nothing else."""

from types import SimpleNamespace

import pytest
from safetensors.torch import save_file
from torch import zeros

from asymflow import hub
from pipelines.core import storage
from pipelines.core.artifacts import Artifact
from pipelines.core.config import ConfigError, validate
from pipelines.core.identity import identify, pin_repositories
from pipelines.data import caption, encode
from pipelines.data.basis import step as basis
from pipelines.data.curate import step as curate
from pipelines.evaluate import step as evaluate
from pipelines.sample.step import STEP as SAMPLE
from pipelines.train.finetune import step as finetune
from pipelines.train.pretrain import step as pretrain

COMMIT, OTHER = "a" * 40, "b" * 40
ENCODED = Artifact("encoded", {"id": "1", "config": {"text": "stored", "latents": "stored"}})
LIVE = Artifact("encoded", {"id": "1", "config": {"text": "on_the_fly", "latents": "on_the_fly"}})
FINETUNE = {"curated": "c", "encoded": "e", "basis": "b", "base": "base"}


def name_of(step, tree, inputs=None):
    return identify(step, validate(step.settings, tree), inputs or {})


def sampled(**changes):
    return name_of(SAMPLE, {"base": "base", "prompts": "a fox", **changes})


def test_an_overwritten_adapter_on_s3_changes_the_id(s3):
    storage.write_bytes(f"{s3}/adapter/weights", b"one")
    first = sampled(adapter=f"{s3}/adapter")
    assert sampled(adapter=f"{s3}/adapter") == sampled(adapter=f"{s3}/adapter/") == first
    storage.write_bytes(f"{s3}/adapter/weights", b"two")
    assert sampled(adapter=f"{s3}/adapter") != first
    storage.write_bytes(f"{s3}/copy/weights", b"one")
    assert sampled(adapter=f"{s3}/copy") == first


def test_a_grown_source_on_s3_changes_the_id(s3):
    storage.write_bytes(f"{s3}/crawl/00000.tar", b"one")
    first = name_of(curate.STEP, {"source": f"{s3}/crawl"})
    storage.write_bytes(f"{s3}/crawl/.unfinished", b"x")
    storage.write_bytes(f"{s3}/crawl/00001.tar.partial", b"x")
    assert name_of(curate.STEP, {"source": f"{s3}/crawl"}) == first
    storage.write_bytes(f"{s3}/crawl/00001.tar", b"two")
    assert name_of(curate.STEP, {"source": f"{s3}/crawl"}) != first


def test_identity_of_a_file_on_s3_is_its_checksum(s3):
    tree = {"suite": "coco10k", "base": "base", "prompts": {"file": f"{s3}/prompts.csv"}}
    absent = name_of(evaluate.STEP, tree)
    storage.write_bytes(f"{s3}/prompts.csv", b"prompt\na\n")
    first = name_of(evaluate.STEP, tree)
    storage.write_bytes(f"{s3}/prompts.csv", b"prompt\nb\n")
    assert len({absent, first, name_of(evaluate.STEP, tree)}) == 3


def test_a_repository_is_known_by_its_commit_and_used_at_it(monkeypatch):
    said = {"commit": COMMIT}
    api = SimpleNamespace(model_info=lambda name, revision, timeout: SimpleNamespace(sha=said["commit"]))
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    for step, tree in ((SAMPLE, {"base": "base", "prompts": "a"}), (evaluate.STEP, {"base": "base"})):
        settings = validate(step.settings, {**tree, "adapter": "owner/name"})
        said["commit"] = COMMIT
        pinned = pin_repositories(step, settings)
        assert pinned.adapter == f"owner/name@{COMMIT}"
        said["commit"] = OTHER  # it moved
        moved = pin_repositories(step, settings)
        assert identify(step, pinned, {}) != identify(step, moved, {})
        assert pin_repositories(step, pinned) == pinned


def test_an_unknown_repository_is_a_one_line_error(monkeypatch, tmp_path):
    def fail(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr(hub, "HfApi", lambda: SimpleNamespace(model_info=fail))
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    settings = validate(SAMPLE.settings, {"base": "base", "prompts": "a", "adapter": "owner/name"})
    with pytest.raises(ConfigError, match="^adapter='owner/name': .*owner/name .main. cannot be resolved.*no network"):
        pin_repositories(SAMPLE, settings)


def test_changed_weights_change_the_id(tmp_path):
    judge, nsfw = tmp_path / "vgg.safetensors", tmp_path / "nsfw"
    nsfw.mkdir()

    def names():
        perceptual = {"loss": {"perceptual": {"weights": str(judge)}}}
        yield name_of(finetune.STEP, {**FINETUNE, **perceptual}, {"encoded": ENCODED})
        yield sampled(safety={"classifier": str(nsfw)})

    found = []
    for value in (0.0, 1.0):
        save_file({"features.0.weight": zeros(3) + value}, judge)
        (nsfw / "model.safetensors").write_bytes(bytes([int(value)]))
        found.append(list(names()))
    assert not set(found[0]) & set(found[1])
    judge.rename(tmp_path / "moved.safetensors")
    judge = tmp_path / "moved.safetensors"
    assert list(names()) == found[1]


@pytest.mark.parametrize(
    ("step", "tree", "on_gpu"),
    [
        (SAMPLE, {"base": "base", "prompts": "a"}, {"resources": {"gpus_per_worker": 1}}),
        (caption.STEP, {"curated": "c", "model": "m"}, {"resources": {"gpus_per_worker": 1}}),
        (encode.STEP, {"curated": "c", "base": "b"}, {"resources": {"latents": {"gpus_per_worker": 1}}}),
        (encode.STEP, {"curated": "c", "base": "b"}, {"resources": {"text": {"gpus_per_worker": 0.5}}}),
        (basis.STEP, {"curated": "c", "base": "b"}, {"resources": {"gpus_per_worker": 1}}),
        (finetune.STEP, FINETUNE, {"resources": {"use_gpu": True}}),
        (finetune.STEP, FINETUNE, {"resources": {"precision": "bfloat16"}}),
        (pretrain.STEP, {"curated": "c", "subspace": {"rank": 0}}, {"resources": {"use_gpu": True}}),
        (evaluate.STEP, {"base": "base"}, {"resources": {"gpus_per_worker": 1}}),
    ],
)
def test_precision_is_hashed(step, tree, on_gpu):
    inputs = {"encoded": ENCODED} if "encoded" in tree else {}
    assert name_of(step, tree | on_gpu, inputs) != name_of(step, tree, inputs)


def test_other_resources_are_not_hashed(tmp_path):
    for tree in ({"workers": 8}, {"use_gpu": True, "precision": "float32"}, {"text_encoders": {"gpus_per_worker": 1}}):
        changed = name_of(finetune.STEP, FINETUNE | {"resources": tree}, {"encoded": ENCODED})
        assert changed == name_of(finetune.STEP, FINETUNE, {"encoded": ENCODED})
    assert sampled(resources={"workers": 8, "batch": 2}) == sampled()
    latents = {"resources": {"latents": {"gpus_per_worker": 1}}, "latents": "on_the_fly"}
    tree = {"curated": "c", "base": "b"}
    assert name_of(encode.STEP, tree | latents) == name_of(encode.STEP, tree | {"latents": "on_the_fly"})


def test_encoders_beside_a_training_count_where_they_encode():
    for pool in ("text_encoders", "image_encoders"):
        tree = FINETUNE | {"resources": {pool: {"gpus_per_worker": 1}}}
        assert name_of(finetune.STEP, tree, {"encoded": LIVE}) != name_of(finetune.STEP, FINETUNE, {"encoded": LIVE})


def test_scorers_count_by_their_models_and_only_where_they_are_used(tmp_path):
    file = tmp_path / "perceptual_squeeze.safetensors"

    def name(**scorers):
        settings = {"squeeze": {"model": str(file)}, **scorers}
        return name_of(evaluate.STEP, {"suite": "classes", "scorers": settings})

    file.write_bytes(b"one")
    first = name()
    assert name(clip_score={"model": "elsewhere"}) == name(squeeze={"model": str(tmp_path)}) == first
    file.write_bytes(b"two")
    assert name() != first


def test_sampling_defaults_of_an_adapter_are_hashed():
    def name(sha256):
        files = {"adapter/diffusion_pytorch_model.safetensors": {"sha256": sha256}}
        return name_of(
            evaluate.STEP, {"base": "base", "finetuned": "f"}, {"finetuned": Artifact("f", {"id": "1", "files": files})}
        )

    assert name("a") == name("a") != name("b")
