"""Perceptual distance of Eq. 20: LPIPS or EfficientNet features, with weights that must be present."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from asymflow.content import sha256_of
from asymflow.metrics import efficientnet, efficientnet_file
from asymflow.metrics.weights import MissingWeights
from pipelines.core.config import ConfigError
from pipelines.train.finetune.config import Perceptual

_PUBLISHED = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}


def check_perceptual(settings: Perceptual) -> None:
    """Raise ConfigError unless the weights can be loaded without a download during the job."""
    if settings.net == "efficientnet":
        if settings.weights not in ("published", "random"):
            raise ConfigError(
                f"loss.perceptual.weights={settings.weights!r}: net=efficientnet takes published or random"
            )
        try:
            efficientnet_file.weights_file()
        except MissingWeights as error:
            raise ConfigError(f"loss.perceptual.net=efficientnet: {error}") from None
    elif settings.weights == "published":
        file = Path(torch.hub.get_dir()) / "checkpoints" / _PUBLISHED[settings.net]
        if not file.is_file():
            raise ConfigError(
                f"loss.perceptual.weights=published: torchvision's ImageNet weights of {settings.net} are not at "
                f"{file}; put them there on every node (TORCH_HOME sets the folder)"
            )
        if not sha256_of(file).startswith(file.stem.rpartition("-")[2]):
            raise ConfigError(f"loss.perceptual.weights=published: {file} is damaged: its SHA-256 is not as named")
    elif settings.weights != "random" and not Path(settings.weights).is_file():
        raise ConfigError(
            f"loss.perceptual.weights={settings.weights!r}: no such file; allowed: published, random, or a "
            "safetensors file of the backbone's features"
        )


def load_perceptual(settings: Perceptual) -> nn.Module:
    """Return the frozen perceptual network.

    It maps two batches (B, 3, H, W) in [-1, 1] to distances per pixel, (B, 1, H, W).
    """
    published = settings.weights == "published"
    if settings.net == "efficientnet":
        return efficientnet.EfficientNetDistance(published)
    import lpips  # imports torchvision, which takes seconds: only training needs it

    torch.manual_seed(0)  # with weights=random: the same features on every worker
    model = lpips.LPIPS(
        net=settings.net, lpips=published, pnet_rand=not published, spatial=True, verbose=False, eval_mode=True
    )
    if not published and settings.weights != "random":
        features = load_file(settings.weights)
        slices = {f"slice{i}": getattr(model.net, f"slice{i}") for i in range(1, model.net.N_slices + 1)}
        for module in slices.values():  # lpips splits the backbone's `features` into slices and keeps their keys
            module.load_state_dict({k: features[k].float() for k in module.state_dict()})
    return model.requires_grad_(False)
