"""Power spectra: too little power at high frequency is blur, too much is noise, peaks are patch seams.

Images are sRGB (B, 3, H, W) in [-1, 1]. The spectrum is that of the luma, with its mean removed and under a Hann window
on each axis: without a window the jump between opposite borders spreads power along both axes of the spectrum.
"""

import torch

_LUMA = (0.2126, 0.7152, 0.0722)  # Rec. 709 weights, on gamma-coded values: luma, not luminance


def _power(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean power over the batch, float64 (H, W), and each entry's frequency in cycles per pixel."""
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images have shape {tuple(images.shape)}; expected (B, 3, H, W)")
    height, width = images.shape[2:]
    dtype, device = torch.float64, images.device
    window = torch.outer(
        torch.hann_window(height, dtype=dtype, device=device),
        torch.hann_window(width, dtype=dtype, device=device),
    )
    # A window of unit mean square keeps the power independent of the image size.
    window = window / window.square().mean().sqrt()
    power = torch.zeros(height, width, dtype=dtype, device=device)
    for part in images.split(16):  # bounded memory
        red, green, blue = part.double().unbind(1)
        luma = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
        luma = luma - luma.mean(dim=(1, 2), keepdim=True)
        power += torch.fft.fft2(luma * window, norm="ortho").abs().square().sum(0)
    vertical = torch.fft.fftfreq(height, dtype=dtype, device=device)
    horizontal = torch.fft.fftfreq(width, dtype=dtype, device=device)
    return power / images.shape[0], torch.hypot(vertical.view(-1, 1), horizontal.view(1, -1))


@torch.no_grad()
def radial_spectrum(images: torch.Tensor) -> torch.Tensor:
    """Return the mean power of the luma by radius.

    Args:
        images: sRGB images (B, 3, H, W) in [-1, 1].

    Returns:
        Power, float64 (n + 1,), n = min(H, W) // 2. Entry i is the mean over the batch and over all frequencies that
        round to i / min(H, W) cycles per pixel; entry 0 is DC, entry n is Nyquist. Corners beyond Nyquist are left out.
    """
    power, frequency = _power(images)
    side = min(images.shape[2:])
    radius = (frequency * side).round().long().flatten()
    inside = radius <= side // 2
    sums = torch.zeros(side // 2 + 1, dtype=torch.float64, device=images.device)
    counts = sums.clone()
    sums.index_add_(0, radius[inside], power.flatten()[inside])
    counts.index_add_(0, radius[inside], torch.ones_like(power.flatten()[inside]))
    return sums / counts


def distance_of_spectra(fake: torch.Tensor, real: torch.Tensor) -> float:
    """Return the root mean square difference of log10 radial power between two spectra, without DC.

    Args:
        fake: Result of `radial_spectrum`, or a mean of several.
        real: Likewise, of the same length.

    Returns:
        The distance; lower is better.
    """
    # The floor is for images of one color; it is far below the rounding noise of 8-bit images.
    logs = [spectrum[1:].clamp_min(1e-12).log10() for spectrum in (fake, real)]
    return float((logs[0] - logs[1]).square().mean().sqrt())


@torch.no_grad()
def high_frequency_power(images: torch.Tensor) -> float:
    """Return the mean power above half the Nyquist frequency, corners included.

    Args:
        images: sRGB images (B, 3, H, W) in [-1, 1].

    Returns:
        The power.
    """
    power, frequency = _power(images)
    return float(power[frequency > 0.25].mean())
