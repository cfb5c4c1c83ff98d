import pytest
import torch
from tiny_families import make_sd3

from asymflow.oklab import RELEASED
from asymflow.srgb import SrgbSpace
from asymflow.subspace import Subspace
from pipelines.core.artifacts import Artifact
from pipelines.core.config import ConfigError, validate
from pipelines.train.finetune.config import FinetuneSettings
from pipelines.train.finetune.step import check_edits, check_inputs, shown, validation_files, with_absolute_paths

INPUTS = {"curated": "c", "encoded": "e", "basis": "b", "base": "m"}


def test_another_text_padding_is_refused(tmp_path):
    Subspace(torch.eye(768, 128), 1.0, "channel_first", RELEASED).save(tmp_path / "subspace.safetensors")
    inputs = {"curated": Artifact("c", {"id": "1"}), "basis": Artifact(str(tmp_path), {})}
    for made, asked in [({}, "max_length"), ({"text_padding": "max_length"}, "none")]:
        inputs["encoded"] = Artifact("e", {"inputs": {"curated": "1"}, "config": made})
        settings = validate(FinetuneSettings, {**INPUTS, "text_padding": asked})
        found = made.get("text_padding", "none")
        with pytest.raises(ConfigError, match=f"encoded: made with text_padding={found}, but text_padding={asked}"):
            check_inputs(settings, inputs)


@pytest.mark.parametrize(
    ("basis", "pixels", "message"),
    [
        ({"layout": "channel_last"}, {}, "basis: its patches are channel_last, but pixels.layout='channel_first'"),
        ({"A": torch.eye(48, 8)}, {}, "basis: patches of 48 values; pixels.patch_size=16 needs 768"),
        (
            {"space": SrgbSpace()},
            {},
            "basis: made for sRGB; a finetune needs Oklab: run the basis step with space=measu",
        ),
        ({}, {"mean": [0.5, 0.0, 0.0]}, "basis: made for an Oklab mean of .*, but pixels.mean="),
        ({}, {"std": 0.9}, "basis: made for an Oklab std of .*, but pixels.std=0.9"),
        ({}, {}, "encoded: made from another curated artifact than `curated`; run the encode step on it"),
    ],
)
def test_inputs_that_do_not_fit_each_other_are_refused(tmp_path, basis, pixels, message):
    given = {"A": torch.eye(768, 128), "s": 1.0, "layout": "channel_first", "space": RELEASED, **basis}
    Subspace(**given).save(tmp_path / "subspace.safetensors")
    inputs = {
        "curated": Artifact("c", {"id": "1"}),
        "basis": Artifact(str(tmp_path), {}),
        "encoded": Artifact("e", {"inputs": {"curated": "2"}, "config": {}}),
    }
    with pytest.raises(ConfigError, match=message):
        check_inputs(validate(FinetuneSettings, {**INPUTS, "pixels": pixels}), inputs)


def test_workers_get_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vgg.safetensors").write_bytes(b"")
    tree = {**INPUTS, "loss": {"perceptual": {"weights": "vgg.safetensors"}}}
    settings = with_absolute_paths(validate(FinetuneSettings, tree))
    assert settings.base == f"{tmp_path}/m"
    assert settings.loss.perceptual.weights == f"{tmp_path}/vgg.safetensors"
    published = with_absolute_paths(validate(FinetuneSettings, INPUTS))
    assert published.loss.perceptual.weights == "published"


@pytest.mark.parametrize(("tree", "is_shown"), [({"model": "ddt"}, True), ({"model": "latent"}, False)])
def test_the_head_is_logged_for_the_model_that_has_one(tree, is_shown):
    settings = validate(FinetuneSettings, {**INPUTS, **tree, "loss": {"kind": "flow_matching"}})
    assert ("ddt" in shown(settings)) == is_shown
    assert "l2p" not in shown(settings)


def artifact_of(*files):
    return Artifact("c", {"id": "1", "files": list(files)})


TEXT, EDITS = "train/64x64-00000.parquet", "train/64x64+1-00000.parquet"


@pytest.mark.parametrize(
    ("files", "share", "message"),
    [
        ([TEXT], 0.5, "edit_share=0.5: curated has no edits; curate some with columns.references"),
        ([TEXT, "held_out/64x64+1-00000.parquet"], 1, "edit_share=1: curated has no edits"),
        ([EDITS], 0.5, "edit_share=0.5: curated has only edits; add text-to-image rows, or set edit_share=1"),
    ],
)
def test_a_share_of_rows_that_do_not_exist_is_refused(files, share, message):
    settings = validate(FinetuneSettings, {**INPUTS, "edit_share": share})
    with pytest.raises(ConfigError, match=message) as error:
        check_edits(settings, artifact_of(*files))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("files", "share"), [([TEXT], None), ([TEXT], 0), ([EDITS], 1), ([TEXT, EDITS], 0.3)])
def test_shares_of_rows_that_exist(files, share, tiny_base):
    check_edits(
        validate(FinetuneSettings, {**INPUTS, "base": str(tiny_base), "edit_share": share}), artifact_of(*files)
    )


def test_edits_need_a_base_that_takes_references(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "sd3"
    make_sd3(folder)
    base = str(folder)
    settings = validate(FinetuneSettings, {**INPUTS, "base": base})
    with pytest.raises(ConfigError, match="curated: has edits, but a SD3Transformer2DModel takes no reference images"):
        check_edits(settings, artifact_of(TEXT, EDITS))
    check_edits(validate(FinetuneSettings, {**INPUTS, "base": base, "edit_share": 0}), artifact_of(TEXT, EDITS))


@pytest.mark.parametrize(("share", "expected"), [(None, 2), (0.5, 2), (0, 1)])
def test_edits_are_validated_on_if_they_are_trained_on(share, expected):
    settings = validate(FinetuneSettings, {**INPUTS, "edit_share": share})
    assert len(validation_files(settings, artifact_of(TEXT, EDITS), "train")) == expected
