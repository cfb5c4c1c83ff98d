import hashlib

import numpy as np
import pytest
import torch

from asymflow.metrics.frechet import FrechetStatistics, frechet_distance
from asymflow.metrics.references import IMAGENET_TRAIN, load_reference

X = torch.randn(200, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cumsum(1) + 7
Y = X.flip(1) * 1.5
PICTURES = np.arange(5 * 4 * 6 * 3, dtype=np.uint8).reshape(5, 4, 6, 3)


def entries(x=X, **changed):
    x = x.numpy()
    pool = {"mu": x.mean(0), "sigma": np.cov(x, rowvar=False)}
    spatial = {"mu_s": x[:, :5].mean(0), "sigma_s": np.cov(x[:, :5], rowvar=False)}
    everything = {**pool, **spatial, "arr_0": PICTURES} | changed
    return {name: value for name, value in everything.items() if value is not None}


def write(folder, **arrays):
    path = folder / "reference.npz"
    np.savez(path, **arrays)
    return path


def statistics(x):
    return FrechetStatistics(x.shape[1]).update(x)


def test_distances_to_a_reference_file_are_those_to_its_features(tmp_path):
    path = write(tmp_path, **entries())
    reference = load_reference(path)
    assert reference.images is None
    assert reference.spatial is not None
    for part, width in ((reference.pool, 12), (reference.spatial, 5)):
        assert part.count == IMAGENET_TRAIN
        expected = frechet_distance(statistics(X[:, :width]), statistics(Y[:, :width]))
        assert frechet_distance(part, statistics(Y[:, :width])) == pytest.approx(expected, rel=1e-10)
    assert reference.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_images_are_read_on_request(tmp_path):
    assert np.array_equal(load_reference(write(tmp_path, **entries()), images=True).images, PICTURES)
    with pytest.raises(ValueError, match="has no arr_0, but mu, mu_s, sigma, sigma_s"):
        load_reference(write(tmp_path, **entries(arr_0=None)), images=True)


def test_the_count_only_bounds_the_rank(tmp_path):
    path = write(tmp_path, **entries())
    few, enough, many = (frechet_distance(load_reference(path, count=n).pool, statistics(Y)) for n in (5, 13, 10**6))
    assert enough == pytest.approx(many, rel=1e-9)
    assert few > enough * 1.0001


def test_spatial_statistics_are_optional(tmp_path):
    assert load_reference(write(tmp_path, **entries(mu_s=None, sigma_s=None))).spatial is None
    single = {name: value.astype(np.float32) for name, value in entries(arr_0=None).items()}
    assert load_reference(write(tmp_path, **single)).pool.cov.dtype == torch.float64


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"mu": None}, "has no mu,"),
        ({"sigma": None}, "has no sigma,"),
        ({"sigma_s": None}, "has no sigma_s,"),
        ({"mu": np.ones(11)}, "do not fit"),
        ({"mu": np.ones((12, 1))}, r"the mean is \(12, 1\)"),
        ({"mu_s": np.float64(1.0)}, r"the mean is \(\)"),
        ({"sigma": np.ones((12, 11))}, "do not fit"),
        ({"mu": np.full(12, np.nan)}, "NaN"),
        ({"sigma_s": np.full((5, 5), np.inf)}, "infinite"),
        ({"sigma": np.tri(12)}, "not symmetric"),
        ({"sigma": -np.eye(12)}, "negative variances"),
        ({"mu": np.array(["a"] * 12)}, "can't convert"),
        ({"mu": np.array([None] * 12)}, "reference.npz.*allow_pickle"),
        ({"arr_0": PICTURES.astype(np.float32)}, "expected uint8"),
        ({"arr_0": PICTURES.transpose(0, 3, 1, 2)}, "expected uint8"),
    ],
)
def test_invalid_references_are_refused(tmp_path, changed, named):
    with pytest.raises(ValueError, match=named):
        load_reference(write(tmp_path, **entries(**changed)), images=True)


def test_invalid_files_are_refused(tmp_path):
    path = tmp_path / "reference.npz"
    with pytest.raises(ValueError, match="reference.npz cannot be read"):
        load_reference(path)
    path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match="reference.npz cannot be read"):
        load_reference(path)
    np.save(tmp_path / "one.npy", X.numpy())
    with pytest.raises(ValueError, match=r"it is not an \.npz"):
        load_reference(tmp_path / "one.npy")
