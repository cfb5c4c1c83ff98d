from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from asymflow.moments import PatchMoments
from asymflow.oklab import RELEASED, OklabSpace
from asymflow.srgb import SrgbSpace
from asymflow.subspace import (
    Subspace,
    captured_by_rank,
    captured_energy,
    fit_scale,
    pca_basis,
    procrustes_basis,
    project,
    random_basis,
    residual_ratio,
    smallest_rank,
)

REFERENCE = load_file(Path(__file__).parents[1] / "data/oracles/subspace.safetensors")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def reference_moments():
    moments = PatchMoments(48, 12)
    moments.update(REFERENCE["pixel_tokens"], REFERENCE["latent_tokens"])
    return moments


def orthonormal(rows, columns):
    return torch.linalg.qr(torch.randn(rows, columns, dtype=torch.float64)).Q.contiguous()


def test_pca_matches_reference_values():
    gram, rank = reference_moments().pixel_gram, int(REFERENCE["pca_rank"])
    A = pca_basis(gram, rank)
    assert A.shape == (48, rank)
    assert A.dtype == torch.float64
    assert torch.allclose(A @ A.T, REFERENCE["pca_projector"], atol=1e-9)
    largest = REFERENCE["eigenvalues"].flip(0)
    assert torch.allclose((A.T @ gram @ A).diagonal(), largest[:rank], rtol=1e-9)
    assert captured_energy(A, gram) == pytest.approx(float(largest[:rank].sum() / largest.sum()))
    for column in A.T:
        assert column[column.abs().argmax()] > 0


def test_procrustes_and_scale_match_reference_values():
    moments = reference_moments()
    A = procrustes_basis(moments.cross_gram)
    assert torch.allclose(A, REFERENCE["procrustes_A"], atol=1e-9)
    s = fit_scale(A, moments.pixel_gram, moments.latent_norm_sq)
    assert s == pytest.approx(float(REFERENCE["scale"]), rel=1e-9)


def test_procrustes_is_optimal():
    pixels, latents = REFERENCE["pixel_tokens"], REFERENCE["latent_tokens"]
    A = procrustes_basis(reference_moments().cross_gram)
    best = (pixels - latents @ A.T).square().sum()
    for size in (1e-3, 1e-1, 10.0):
        other = torch.linalg.qr(A + size * torch.randn_like(A))
        other = other.Q * other.R.diagonal().sign()
        assert (pixels - latents @ other.T).square().sum() > best


def test_scale_gives_lift_and_low_rank_pixels_one_norm():
    moments = reference_moments()
    A = procrustes_basis(moments.cross_gram)
    s = fit_scale(A, moments.pixel_gram, moments.latent_norm_sq)
    low_rank = project(REFERENCE["pixel_tokens"], A).norm()
    assert (s * REFERENCE["latent_tokens"] @ A.T).norm() == pytest.approx(float(low_rank))


def test_residual_ratio_from_moments():
    moments = reference_moments()
    A = procrustes_basis(moments.cross_gram)
    pixels, latents = REFERENCE["pixel_tokens"], REFERENCE["latent_tokens"]
    direct = (pixels - 0.7 * latents @ A.T).square().sum() / pixels.square().sum()
    ratio = residual_ratio(A, 0.7, moments.pixel_gram, moments.cross_gram, moments.latent_norm_sq)
    assert ratio == pytest.approx(float(direct))


@pytest.mark.parametrize("rank", [0, 5, 12])
def test_projector_properties(rank):
    tokens = torch.randn(50, 12, dtype=torch.float64)
    A = pca_basis(tokens.T @ tokens, rank)
    assert torch.allclose(A.T @ A, torch.eye(rank, dtype=torch.float64), atol=1e-12)
    once = project(tokens, A)
    assert torch.allclose(project(once, A), once, atol=1e-12)
    assert project(tokens - once, A).abs().max() < 1e-12
    if rank == 0:
        assert not once.any()
    if rank == 12:
        assert torch.allclose(once, tokens, atol=1e-12)


def test_projected_noise_stays_standard_normal():
    A = orthonormal(48, 6)
    noise = torch.randn(40000, 48, dtype=torch.float64) @ A
    assert (noise.T @ noise / len(noise) - torch.eye(6, dtype=torch.float64)).abs().max() < 0.05


def test_bad_moments_are_refused():
    with pytest.raises(ValueError, match="rank is 13; allowed: 0 to 12"):
        pca_basis(torch.eye(12), 13)
    with pytest.raises(ValueError, match="square"):
        pca_basis(torch.zeros(3, 4), 1)
    with pytest.raises(ValueError, match="NaN"):
        pca_basis(torch.full((3, 3), float("nan")), 1)
    with pytest.raises(ValueError, match="rank 2 of 4"):
        procrustes_basis(torch.randn(9, 2).double() @ torch.randn(2, 4).double())
    with pytest.raises(ValueError, match="may not exceed"):
        procrustes_basis(torch.randn(3, 4))
    with pytest.raises(ValueError, match="latent_norm_sq is 0.0"):
        fit_scale(torch.eye(4)[:, :2], torch.eye(4), 0.0)


def test_save_and_load(tmp_path):
    A = orthonormal(48, 6).float()
    subspace = Subspace(A, 0.83, "channel_first", RELEASED, {"method": "procrustes", "images": 1000})
    path = tmp_path / "basis" / "subspace.safetensors"
    subspace.save(path)
    subspace.save(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing temporary stays
    loaded = Subspace.load(path)
    assert torch.equal(loaded.A, A)
    assert loaded.s == pytest.approx(0.83)
    assert (loaded.layout, loaded.space) == ("channel_first", RELEASED)
    assert loaded.provenance == {"method": "procrustes", "images": 1000}
    assert (loaded.patch_dim, loaded.rank) == (48, 6)


def test_failed_save_leaves_nothing(tmp_path):
    subspace = Subspace(orthonormal(8, 2), 1.0, "channel_first", RELEASED, {"bad": object()})
    with pytest.raises(TypeError):
        subspace.save(tmp_path / "subspace.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"A": lambda A: A.bfloat16().float() * 1.001}, "not orthonormal"),
        ({"A": lambda A: A / 0}, "NaN or infinite"),
        ({"A": lambda A: A.T.contiguous()}, "rank <= patch_dim"),
        ({"s": lambda s: -s}, "must be finite and above 0"),
        ({"s": lambda s: s.repeat(2)}, "expected one number"),
        ({"s": None}, "lacks s"),
        ({"layout": None}, "lacks metadata 'layout'"),
        ({"layout": lambda _: "rows"}, "'rows'; allowed"),
        ({"space": lambda _: '{"name": "linear"}'}, "'linear'; allowed: oklab, srgb"),
        ({"space": lambda _: '{"name": "oklab", "mean": [0, 0, 0]}'}, "no valid subspace"),
        ({"provenance": lambda _: "{"}, "no valid subspace"),
    ],
)
def test_load_names_the_problem(tmp_path, change, words):
    tensors = {"A": orthonormal(48, 6).float(), "s": torch.tensor(0.8)}
    metadata = {"layout": "channel_first", "provenance": "{}"}
    metadata["space"] = '{"name": "oklab", "mean": [0.5, 0, 0], "std": 0.2}'
    for name, function in change.items():
        holder = tensors if name in tensors else metadata
        holder[name] = None if function is None else function(holder[name])
        if holder[name] is None:
            del holder[name]
    save_file(tensors, tmp_path / "subspace.safetensors", metadata)
    with pytest.raises(ValueError, match=words) as error:
        Subspace.load(tmp_path / "subspace.safetensors")
    assert "jobs/basis.py" in str(error.value)


def test_load_refuses_a_truncated_file(tmp_path):
    path = tmp_path / "subspace.safetensors"
    with pytest.raises(ValueError, match="there is no subspace file"):
        Subspace.load(path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        Subspace.load(path)


def test_same_subspace_is_the_same_bytes(tmp_path):
    A = torch.linalg.qr(torch.randn(12, 4, dtype=torch.float64)).Q.float()
    for number in range(8):
        provenance = {"method": "pca", "note": "ä"}
        Subspace(A, 1.5, "channel_last", OklabSpace((0.5, 0, 0), 0.2), provenance).save(tmp_path / str(number))
    assert len({(tmp_path / str(number)).read_bytes() for number in range(8)}) == 1
    assert Subspace.load(tmp_path / "0").provenance == provenance


def test_random_subspaces_are_orthonormal_and_even():
    A = random_basis(48, 6, seed=1)
    torch.testing.assert_close(A.T @ A, torch.eye(6, dtype=torch.float64))
    assert torch.equal(A, random_basis(48, 6, seed=1))
    assert not torch.allclose(A, random_basis(48, 6, seed=2))
    mean = sum(project(torch.eye(48, dtype=torch.float64), random_basis(48, 6, seed=s)) for s in range(400)) / 400
    assert (mean - torch.eye(48) * 6 / 48).abs().max() < 0.05  # no direction is preferred
    assert random_basis(48, 0).shape == (48, 0)
    with pytest.raises(ValueError, match="rank is 49; allowed: 0 to 48"):
        random_basis(48, 49)


def test_a_subspace_of_srgb_keeps_its_space_and_is_not_taken_for_oklab(tmp_path):
    subspace = Subspace(orthonormal(48, 6).float(), 1.0, "channel_last", SrgbSpace())
    subspace.save(tmp_path / "s.safetensors")
    assert Subspace.load(tmp_path / "s.safetensors").space == SrgbSpace()
    with pytest.raises(ValueError, match="made for sRGB"):
        _ = subspace.oklab


def test_captured_by_rank_is_that_of_each_pca():
    gram = reference_moments().pixel_gram
    captured = captured_by_rank(gram)
    assert captured.shape == (49,)
    assert captured[0] == 0
    assert captured[-1] == 1
    for rank in (1, 5, 20, 48):
        assert float(captured[rank]) == pytest.approx(captured_energy(pca_basis(gram, rank), gram), rel=1e-9)


def test_the_smallest_rank_that_captures_enough():
    values = torch.tensor([6.0, 2.0, 1.0, 1.0], dtype=torch.float64)  # 0.6, 0.8, 0.9, 1
    rotation = orthonormal(4, 4)
    captured = captured_by_rank(rotation @ values.diag() @ rotation.T)
    found = {energy: smallest_rank(captured, energy) for energy in (0.0, 0.5, 0.6, 0.61, 0.8, 0.85, 0.95, 1.0)}
    assert found == {0.0: 0, 0.5: 1, 0.6: 1, 0.61: 2, 0.8: 2, 0.85: 3, 0.95: 4, 1.0: 4}
