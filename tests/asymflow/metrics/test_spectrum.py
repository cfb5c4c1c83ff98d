import math

import pytest
import torch
import torch.nn.functional as F

from asymflow.metrics.spectrum import distance_of_spectra, high_frequency_power, radial_spectrum


def noise_images(seed, size=(32, 48), count=8):
    return 0.2 * torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def test_wave_lies_at_its_frequency():
    wave = torch.sin(2 * math.pi * 8 / 64 * torch.arange(64)).view(1, 1, 1, 64).expand(1, 3, 64, 64)
    spectrum = radial_spectrum(wave)
    assert spectrum.shape == (33,)
    assert spectrum.dtype == torch.float64
    assert int(spectrum.argmax()) == 8
    assert spectrum[20:].max() < 1e-6 * spectrum[8]  # the window stops leakage


def test_white_noise_is_flat_and_scale_is_the_variance():
    images = noise_images(0, count=64)
    luma = 0.2126 * images[:, 0] + 0.7152 * images[:, 1] + 0.0722 * images[:, 2]
    spectrum = radial_spectrum(images)[2:]
    assert torch.allclose(spectrum, torch.full_like(spectrum, float(luma.var())), rtol=0.15)


def test_distance():
    images = noise_images(0)
    plain, louder, lighter = map(radial_spectrum, (images, 10 * images, images + 0.5))
    assert distance_of_spectra(plain, plain) == 0
    # Ten times the amplitude is a hundred times the power at every radius.
    assert distance_of_spectra(louder, plain) == pytest.approx(2)
    assert distance_of_spectra(lighter, plain) == pytest.approx(0, abs=1e-4)  # DC does not count
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\)"):
        radial_spectrum(images[:, :1])


def test_high_frequency_power():
    real = noise_images(0)
    power, blurred = high_frequency_power(real), F.avg_pool2d(real, 3, stride=1, padding=1)
    assert high_frequency_power(2 * real) == pytest.approx(4 * power)
    assert high_frequency_power(blurred) < 0.2 * power
    assert high_frequency_power(noise_images(1)) == pytest.approx(power, rel=0.1)
    assert high_frequency_power(torch.zeros_like(real)) == 0
