import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from asymflow.moments import PatchMoments
from asymflow.oklab import RELEASED, OklabSpace, srgb_to_oklab
from asymflow.patches import patchify
from asymflow.srgb import SrgbSpace
from asymflow.subspace import Subspace, captured_energy, fit_scale, pca_basis, procrustes_basis
from pipelines.core import artifacts, storage
from pipelines.core.base_models import load_image_encoder
from pipelines.core.config import ConfigError, RunSettings, validate
from pipelines.core.step import Context, run_step
from pipelines.core.workers import ModelWorkers
from pipelines.data.basis.config import BasisSettings
from pipelines.data.basis.moments import PieceMoments, in_space
from pipelines.data.basis.step import STEP, load_subspace, space_for, write_bases
from pipelines.data.config import EncodeSettings
from pipelines.data.datasets import cut_into_pieces, read_images
from pipelines.data.tensors import open_writer, tensor_field, to_tensor_array


def latents_of(base, images):
    return load_image_encoder(str(base), "cpu").encode(images)


@pytest.fixture(scope="module")
def pairs(curated, tiny_base):
    """All training patches (n, 768) in Oklab, float64, not normalised, and their latent tokens (n, 128)."""
    patches, latents = [], []
    for file in curated.files("train", ".parquet"):
        for rows in read_images(file):
            patches.append(patchify(srgb_to_oklab(rows.pixels.double() / 127.5 - 1), 16).flatten(0, 1))
            latents.append(latents_of(tiny_base, rows.images).flatten(0, 1).double())
    return torch.cat(patches), torch.cat(latents)


def settings_for(curated, root, **more):
    return BasisSettings(
        curated=curated.uri, run=RunSettings(storage=str(root)), pca_rank=16, patches_per_image="all", **more
    )


@pytest.fixture(scope="module")
def artifact(curated, tiny_base, local_ray, tmp_path_factory):
    return run_step(STEP, settings_for(curated, tmp_path_factory.mktemp("runs"), base=str(tiny_base))).artifact


def contents(artifact):
    return json.loads(storage.read_bytes(artifact.file("basis.json")))


def normalised(patches, space):
    return (patches - torch.tensor(space.mean).double().repeat_interleave(256)) / space.std


@pytest.mark.ray
def test_equals_a_direct_computation(artifact, pairs):
    """One pass in a fixed space, brought into that of the data, against everything at once in float64."""
    patches, latents = pairs
    channels = patches.view(-1, 3, 256).transpose(0, 1).flatten(1)
    mean, std = channels.mean(1), channels.var(1, correction=0).mean().sqrt()
    subspace = load_subspace(artifact)
    assert torch.allclose(torch.tensor(subspace.space.mean).double(), mean, atol=1e-7)
    assert subspace.space.std == pytest.approx(float(std), rel=1e-6)
    X = normalised(patches, OklabSpace(tuple(mean.tolist()), float(std)))
    A = procrustes_basis(X.T @ latents)
    s = fit_scale(A, X.T @ X, latents.square().sum())
    assert (subspace.A - A).abs().max() < 1e-4
    assert subspace.s == pytest.approx(s, rel=1e-5)
    pca = load_subspace(artifact, "pca")
    expected = pca_basis(X.T @ X, 16)
    assert (pca.A.double().T @ expected).square().sum() / 16 == pytest.approx(1, abs=1e-5)
    found = contents(artifact)
    residual = (X - s * latents @ A.T).square().sum() / X.square().sum()
    assert found["residual"] == pytest.approx(float(residual), rel=1e-5)
    assert found["captured_procrustes"] == pytest.approx(captured_energy(A, X.T @ X), rel=1e-5)
    assert found["patches"] == len(X)
    assert found["pictures"] == 344


@pytest.mark.ray
def test_both_layouts_hold_one_subspace(artifact, pairs):
    image = torch.rand(1, 3, 16, 16)
    for name in ("subspace", "pca"):
        first, last = load_subspace(artifact, name), load_subspace(artifact, f"{name}_channel_last")
        assert (first.layout, last.layout) == ("channel_first", "channel_last")
        codes = patchify(image, 16, "channel_first") @ first.A, patchify(image, 16, "channel_last") @ last.A
        assert torch.allclose(*codes, atol=1e-5)
        assert first.s == last.s


@pytest.mark.ray
def test_number_of_workers_and_layout_change_no_bit(artifact, curated, tiny_base, tmp_path):
    resources = ModelWorkers(workers=1)
    alone = run_step(STEP, settings_for(curated, tmp_path, base=str(tiny_base), resources=resources)).artifact
    assert alone.id == artifact.id
    assert alone.manifest["files"] == artifact.manifest["files"]


@pytest.mark.ray
def test_a_lost_task_is_repeated_bit_for_bit(artifact, curated, tiny_base):
    folder = Path(artifact.uri)
    (folder / "manifest.json").unlink()
    lost = sorted((folder / ".done").glob("*.json"))[3]
    lost.unlink()
    (folder / "partial" / f"{lost.stem}.safetensors").write_bytes(b"half")
    (folder / "subspace.safetensors").unlink()
    again = run_step(STEP, settings_for(curated, folder.parents[1], base=str(tiny_base)))
    assert not again.reused
    assert again.artifact.manifest["files"] == artifact.manifest["files"]


@pytest.mark.ray
def test_errors_and_convergence_are_reported(artifact):
    found = contents(artifact)
    errors = found["standard_errors"]
    assert set(errors) == {"captured_pca", "scale", "residual", "captured_procrustes"}
    assert all(0 < e < 0.1 for e in errors.values())
    shares = [row["share"] for row in found["convergence"]]
    assert shares == sorted(shares)
    assert shares[-1] >= 0.5
    assert len(shares) >= 3
    overlaps = [row["subspace"] for row in found["convergence"]]
    assert overlaps == sorted(overlaps)
    assert 0.3 < overlaps[0] < overlaps[-1] <= 1
    pictures = {p.name for p in Path(artifact.uri).parents[1].rglob("pictures/*.png")}
    assert pictures == {"basis_pca.png", "basis_subspace.png", "spectrum.png", "convergence.png"}


@pytest.fixture(scope="module")
def encoded(curated, pairs, tiny_base, tmp_path_factory):
    """The latents of an encode artifact, as that step writes them."""
    folder = storage.absolute(str(tmp_path_factory.mktemp("encoded")))
    for file in curated.files("train", ".parquet"):

        def write(path, file=file):
            import pyarrow as pa

            schema = pa.schema([("key", pa.string()), tensor_field("latents", (6, 128))])
            with open_writer(path, schema) as writer:
                for rows in read_images(file):
                    z_0 = latents_of(tiny_base, rows.images)
                    writer.write_table(pa.table([rows.keys, to_tensor_array(z_0)], schema=schema))

        storage.write_file(storage.join(folder, "latents", "train", file.rpartition("/")[2]), write)
    config = EncodeSettings(curated=curated.uri, base=str(tiny_base))
    return artifacts.write_manifest(folder, "encode", "456", config, {"curated": "123"}, {})


@pytest.mark.ray
def test_stored_latents_give_the_same_basis(artifact, curated, encoded, tmp_path):
    stored = run_step(STEP, settings_for(curated, tmp_path, encoded=encoded.uri)).artifact
    a, b = load_subspace(artifact), load_subspace(stored)
    assert float((a.A.T @ b.A).square().sum() / 128) > 0.99  # bfloat16 rounds them, and a random encoder
    assert a.s == pytest.approx(b.s, rel=1e-3)
    assert a.space == b.space


def test_latents_of_other_images_are_refused(curated, encoded, tmp_path):
    other = artifacts.Artifact(encoded.uri, {**encoded.manifest, "inputs": {"curated": "789"}})
    with pytest.raises(ConfigError, match="encoded: made from another curated artifact"):
        STEP.check_inputs(settings_for(curated, tmp_path), {"curated": curated, "encoded": other})
    path = Path(encoded.uri) / "latents/train/a-48x32.parquet"
    kept = path.read_bytes()
    path.write_bytes((path.parent / "b-48x32.parquet").read_bytes())
    worker = PieceMoments(settings_for(curated, tmp_path), encoded.uri, str(tmp_path))
    pieces = [p for p in cut_into_pieces(curated.files("train", ".parquet")) if p.uri.endswith("/a-48x32.parquet")]
    with pytest.raises(ValueError, match="its rows are not those of .*; encode the curated artifact again"):
        worker(pieces[0].to_json())
    path.write_bytes(kept)


@pytest.mark.ray
def test_without_a_latent_model_there_is_a_pca(curated, local_ray, tmp_path):
    artifact = run_step(STEP, settings_for(curated, tmp_path)).artifact
    assert load_subspace(artifact, "pca").rank == 16
    assert "scale" not in artifact.manifest["metrics"]
    with pytest.raises(ValueError, match="there is no subspace file"):
        load_subspace(artifact)


def test_space_of_the_released_weights(curated, moments_of, tmp_path):
    """The basis that a finetune with their constants asks for; and what the groups hold of it."""
    settings = settings_for(curated, tmp_path, space="released")
    groups = moments_of(patches_per_image="all")
    assert space_for(settings, None, groups) == RELEASED
    assert torch.allclose(in_space(groups[0], RELEASED).pixel_gram, groups[0].pixel_gram)
    with pytest.raises(ConfigError, match="space='released': its constants are fixed; remove color_stats"):
        STEP.check(settings.model_copy(update={"color_stats": "somewhere"}))


def test_rank_beyond_the_patch(curated, tmp_path):
    with pytest.raises(ConfigError, match="pca_rank=769: must be at most the patch dimension, 768"):
        STEP.check(settings_for(curated, tmp_path).model_copy(update={"pca_rank": 769}))


@pytest.mark.parametrize(("asked", "rank"), [(5, 5), ("auto", 3)])
def test_captured_energy_by_rank_is_reported_and_a_rank_recommended(tmp_path, asked, rank):
    """Patches of 4 x 4 whose energy along the first directions is known."""
    axes = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    shares = torch.tensor([0.5, 0.25, 0.125, *([0.125 / 45] * 45)], dtype=torch.float64)
    group = PatchMoments(48)
    group.update((shares.sqrt()[:, None] * axes.T).repeat(4, 1))
    tree = {"curated": "c", "patch_size": 4, "pca_rank": asked, "energy": 0.87, "space": "srgb"}
    figures: dict = {}
    tracker = SimpleNamespace(log_image=figures.__setitem__, log_figure=figures.__setitem__)
    context = Context(str(tmp_path), {}, tracker)  # type: ignore[arg-type]
    metrics = write_bases(validate(BasisSettings, tree), context, [group], SrgbSpace(), 4)
    assert metrics["recommended_rank"] == 3
    known = {1: 0.5, 2: 0.75, 4: 0.875 + 0.125 / 45, 8: 0.875 + 5 * 0.125 / 45, 48: 1.0}
    assert {r: metrics[f"captured_at_{r}"] for r in known} == pytest.approx(known)
    found = json.loads((tmp_path / "basis.json").read_text())
    assert len(found["captured_by_rank"]) == 49
    assert found["captured_by_rank"][3] == pytest.approx(0.875)
    pca = Subspace.load(tmp_path / "pca.safetensors")
    assert pca.rank == rank
    assert pca.provenance["recommended_rank"] == 3
    assert pca.provenance["energy"] == 0.87
    (label,) = (line.get_label() for line in figures["spectrum"].axes[1].lines if not line.get_label().startswith("_"))
    assert label == "87%: rank 3 of 48"


def test_invalid_ranks_are_refused(tmp_path):
    for rank, message in ((0, "pca_rank=0: must be auto, or at least 1"), (-1, "pca_rank=-1: must be auto")):
        with pytest.raises(ConfigError, match=message):
            STEP.check(validate(BasisSettings, {"curated": "c", "pca_rank": rank}))
