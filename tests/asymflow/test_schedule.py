from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asymflow.schedule import (
    calibrate,
    expand_sigma,
    sample_sigma,
    sampling_shift,
    sampling_sigmas,
    shift_sigma,
)

ORACLES = Path(__file__).parents[1] / "data/oracles"
SIGMA = torch.tensor([1e-3, 0.05, 0.37, 0.9, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("name", ["velocity", "velocity_small", "velocity_rank0", "velocity_full_rank"])
def test_calibration_matches_reference_values(name):
    reference = load_file(ORACLES / f"{name}.safetensors")
    tau, k = calibrate(reference["sigma"], float(reference["s"]))
    assert torch.allclose(tau, reference["tau"], rtol=1e-5)
    assert torch.allclose(k, reference["k"], rtol=1e-5)


@pytest.mark.parametrize("s", [0.3, 1.0, 2.5])
def test_calibration_keeps_the_signal_to_noise_ratio(s):
    tau, k = calibrate(SIGMA, s)
    assert torch.allclose((1 - tau) / tau, s * (1 - SIGMA) / SIGMA, rtol=1e-12)
    assert torch.allclose(tau, SIGMA / (s * (1 - SIGMA) + SIGMA), rtol=1e-12)


@pytest.mark.parametrize("s", [0.3, 1.0, 2.5])
def test_calibration_gives_the_noise_its_size(s):
    tau, k = calibrate(SIGMA, s)
    assert torch.allclose(k * SIGMA, tau, rtol=1e-12)
    assert torch.allclose(k * s * (1 - SIGMA), 1 - tau, rtol=1e-9)
    with pytest.raises(ValueError, match="scale s is 0"):
        calibrate(SIGMA, 0)


def test_shift():
    assert torch.equal(shift_sigma(SIGMA, 1.0), SIGMA)
    assert float(shift_sigma(torch.tensor(1.0), 17.0)) == 1
    shifted = shift_sigma(SIGMA[:-1], 17.0)
    # Shifting divides the signal-to-noise ratio by the shift.
    assert torch.allclose((1 - shifted) / shifted * 17, (1 - SIGMA[:-1]) / SIGMA[:-1])
    with pytest.raises(ValueError, match="shift is 0"):
        shift_sigma(SIGMA, 0.0)


def test_sampling_shift():
    assert sampling_shift(1024 * 1024) == 17
    assert sampling_shift(2048 * 2048) == 34
    assert sampling_shift(1536 * 1536) == pytest.approx(25.5)
    assert sampling_shift(256 * 256) == 17
    assert sampling_shift(4096 * 4096) == 34
    reference = load_file(ORACLES / "unipc_dynamic.safetensors")
    assert sampling_shift(960 * 1280) == pytest.approx(float(reference["shift"]), rel=1e-6)
    assert sampling_shift(2048 * 2048, base=3.0, law="constant") == 3
    with pytest.raises(ValueError, match="'log'; allowed: sqrt, constant, extrapolated"):
        sampling_shift(10, law="log")


def test_the_extrapolated_shift_is_one_line_at_every_size():
    shifts = [sampling_shift(side * side, law="extrapolated") for side in (512, 1024, 1536, 2048, 4096)]
    assert shifts == pytest.approx([8.5, 17, 25.5, 34, 68])
    with pytest.raises(ValueError, match="^the extrapolated shift at 4 pixels is -.*; give a shift above 0"):
        sampling_shift(4, base=1.0, max=3.0, law="extrapolated")


def test_strength_leaves_the_last_steps():
    plain = sampling_sigmas(100, 3.0)
    for strength, left in [(1.0, 100), (0.29, 29), (0.291, 30), (0.001, 1), (0.0, 0)]:
        assert torch.equal(sampling_sigmas(100, 3.0, strength), plain[100 - left :]), strength
    with pytest.raises(ValueError, match="^strength is 1.2"):
        sampling_sigmas(100, 3.0, 1.2)


def test_given_levels_are_shifted():
    spaced = [1 - i / 7 for i in range(7)]
    assert torch.allclose(sampling_sigmas(7, 3.0, levels=spaced), sampling_sigmas(7, 3.0))
    assert all(sampling_sigmas(2, shift)[0] == 1 for shift in (0.3, 0.221875, 3.55, 17.1))
    assert sampling_sigmas(3, levels=[1.0, 0.6, 0.1], strength=0.5).tolist() == [0.6, 0.1, 0]


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([1.0, 0.5], "^sigmas has 2 noise levels; expected 3, without the final 0"),
        ([1.0, 0.5, 0.0], "^sigmas is .*must fall within"),
        ([1.0, 1.0, 0.5], "^sigmas is .*must fall within"),
        ([1.1, 1.0, 0.5], "^sigmas is .*must fall within"),
        ([float("nan"), 1.0, 0.5], "^sigmas is .*must fall within"),
    ],
)
def test_levels_that_do_not_fall_are_refused(levels, message):
    with pytest.raises(ValueError, match=message):
        sampling_sigmas(3, levels=levels)


@pytest.mark.parametrize("name", ["unipc_shift17", "unipc_dynamic"])
def test_sampling_sigmas_match_reference_values(name):
    reference = load_file(ORACLES / f"{name}.safetensors")
    sigmas = sampling_sigmas(int(reference["steps"]), float(reference["shift"]))
    assert (sigmas - reference["sigmas"]).abs().max() < 1e-6


def test_sample_sigma():
    drawn = sample_sigma(20000, shift=17.0, mean=-0.4, std=0.8, generator=torch.Generator().manual_seed(1))
    again = sample_sigma(20000, shift=17.0, mean=-0.4, std=0.8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(drawn, again)
    assert drawn.shape == (20000,)
    assert 0 < drawn.min()
    assert drawn.max() < 1
    # A shift adds its logarithm to the logit.
    logit = torch.logit(drawn.double())
    assert float(logit.mean()) == pytest.approx(-0.4 + 2.8332, abs=0.03)
    assert float(logit.std()) == pytest.approx(0.8, abs=0.03)


def test_expand_sigma():
    assert expand_sigma(SIGMA, torch.zeros(5, 2, 3)).shape == (5, 1, 1)
    assert expand_sigma(0.5, torch.zeros(5, 2, 3)).shape == ()
    with pytest.raises(ValueError, match=r"\(5,\); expected \(4,\)"):
        expand_sigma(SIGMA, torch.zeros(4, 2))
