import pytest
import torch

from asymflow.models.jit import LAYOUT
from asymflow.oklab import RELEASED
from asymflow.srgb import SrgbSpace
from asymflow.subspace import Subspace
from pipelines.core.artifacts import Artifact
from pipelines.core.config import ConfigError, validate
from pipelines.core.step import identify
from pipelines.train.pretrain.config import PretrainSettings
from pipelines.train.pretrain.step import STEP, check, check_inputs, pca_of, size_of, title

INPUTS = {"curated": "c", "basis": "b"}


def test_a_size_may_be_changed_in_parts():
    network = {"size": "L", "depth": 3, "context_from": 1}
    settings = validate(PretrainSettings, {**INPUTS, "network": network, "classes": 7})
    assert (settings.jit.depth, settings.jit.width, settings.jit.classes) == (3, 1024, 7)
    assert STEP.shown(settings)["network"]["width"] == 1024


def test_run_names_distinguish_variants():
    makes = ({"rank": 8}, {"rank": 8, "kind": "random"}, {"rank": 0})
    names = [title(validate(PretrainSettings, {**INPUTS, "subspace": subspace})) for subspace in makes]
    assert names == ["r8", "random r8", "r0"]
    assert title(validate(PretrainSettings, {**INPUTS, "repa": {"encoder": "x"}})) == "r8 repa"


def test_content_of_the_encoder_is_hashed(tmp_path):
    settings = validate(PretrainSettings, {**INPUTS, "repa": {"encoder": str(tmp_path)}})
    plain = identify(STEP, validate(PretrainSettings, INPUTS), {})
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = identify(STEP, settings, {})
    moved = tmp_path.with_name("moved")
    tmp_path.rename(moved)
    there = validate(PretrainSettings, {**INPUTS, "repa": {"encoder": str(moved)}})
    assert identify(STEP, there, {}) == first != plain
    (moved / "model.safetensors").write_bytes(b"two")
    assert identify(STEP, there, {}) != first


def test_an_encoder_that_is_not_there_is_named_before_anything_starts(tmp_path):
    settings = validate(PretrainSettings, {"curated": "c", "basis": "b", "repa": {"encoder": str(tmp_path)}})
    with pytest.raises(ConfigError, match="repa.encoder: there is no DINOv2 in .*facebook/dinov2-base"):
        check(settings)


@pytest.mark.parametrize(
    ("curated", "basis", "message"),
    [
        ({"labels": ""}, {}, "curated: its images have no labels; curate them with labels=folder or labels=column"),
        ({"buckets": [[64, 64], [96, 64]]}, {}, "curated: has images of several sizes; curate with one bucket"),
        ({"buckets": [[64, 40]]}, {}, "network.patch_size=16: does not divide images of 64x40"),
        ({}, {"space": RELEASED}, "basis: it was made for Oklab; run the basis step with space=srgb"),
        ({}, {"A": torch.eye(768, 5)}, "basis: subspace.rank=8: the basis has rank 5; see its pca_rank"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(tmp_path, curated, basis, message):
    given = {"A": torch.eye(768, 32), "s": 1.0, "layout": LAYOUT, "space": SrgbSpace(), **basis}
    Subspace(**given).save(tmp_path / "pca.safetensors")
    inputs = {
        "curated": Artifact("c", {"config": {"labels": "folder", "buckets": [[64, 64]], **curated}}),
        "basis": Artifact(str(tmp_path), {"config": {"layout": LAYOUT}}),
    }
    with pytest.raises(ConfigError, match=message):
        check_inputs(validate(PretrainSettings, INPUTS), inputs)


def test_a_basis_of_the_other_layout_is_read_from_its_own_file(tmp_path):
    Subspace(torch.eye(768, 32), 1.0, LAYOUT, SrgbSpace()).save(tmp_path / f"pca_{LAYOUT}.safetensors")
    found = pca_of(
        validate(PretrainSettings, INPUTS),
        {"basis": Artifact(str(tmp_path), {"config": {"layout": "channel_first"}})},
    )
    assert found.layout == LAYOUT
    assert found.rank == 32


def test_the_size_of_the_images_is_height_and_width():
    assert size_of(Artifact("c", {"config": {"buckets": [[96, 64]]}})) == (64, 96)
