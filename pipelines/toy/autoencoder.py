"""The toy's autoencoder: a small AutoencoderKLFlux2 (2x down, 2 channels, batch-norm whitening of 2x2 cells)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2
from torch import Tensor

from pipelines.toy.training import adamw, train

KL_WEIGHT = 1e-6  # per value; larger ones pull the latents away from the pixels and make the lift worse
CROP = 32  # of images in training: without attention, a crop is a training example like a whole image


def new_autoencoder() -> AutoencoderKLFlux2:
    """Return the untrained autoencoder."""
    torch.manual_seed(0)
    return AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        latent_channels=2,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
    )


def to_unit(images: Tensor) -> Tensor:
    """Convert images (B, 3, H, W) from uint8 to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def psnr(a: Tensor, b: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of images in [-1, 1], the mean over images."""
    mse = ((a - b) / 2).square().flatten(1).mean(1)
    return float((-10 * mse.log10()).mean())


def train_autoencoder(train_images: Tensor, held_out: Tensor, folder: Path, steps: int) -> AutoencoderKLFlux2:
    """Train on images (N, 3, 64, 64) uint8, then measure the batch-norm statistics on all their latents."""
    model = new_autoencoder().to(memory_format=torch.channels_last)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(train_images), (16,), generator=generator)
        top, left = (4 * torch.randint((64 - CROP) // 4 + 1, (2,), generator=generator)).tolist()
        x = to_unit(train_images[index][:, :, top : top + CROP, left : left + CROP])
        x = torch.where(torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5, x, x.flip(-1))
        x = x.contiguous(memory_format=torch.channels_last)
        posterior = model.encode(x).latent_dist
        z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        x_hat = model.decode(z).sample
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return F.mse_loss(x_hat, x) + 0.05 * F.l1_loss(x_hat, x) + KL_WEIGHT * kl

    @torch.no_grad()
    def report() -> dict[str, float]:
        x = to_unit(held_out[:256])
        return {"psnr": psnr(model.decode(model.encode(x).latent_dist.mode()).sample.clamp(-1, 1), x)}

    optimizers = [adamw(model.parameters(), lr=4e-3)]
    model = train("autoencoder", model, loss_of, folder, steps, optimizers, report, ema=0.995)
    set_whitening(model, train_images)
    return model


@torch.no_grad()
def set_whitening(model: AutoencoderKLFlux2, images: Tensor) -> None:
    """Set the batch-norm mean and variance to those of the packed latents of `images`, summed in float64."""
    total = torch.zeros(model.bn.num_features, dtype=torch.float64)
    square, count = torch.zeros_like(total), 0
    for batch in images.split(256):
        z = F.pixel_unshuffle(model.encode(to_unit(batch)).latent_dist.mode(), 2).double()
        total, square = total + z.sum((0, 2, 3)), square + z.square().sum((0, 2, 3))
        count += z.shape[0] * z.shape[2] * z.shape[3]
    mean = total / count
    model.bn.running_mean.copy_(mean)
    model.bn.running_var.copy_(square / count - mean.square())
