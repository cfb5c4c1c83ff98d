"""Build the model to train from scratch, and load a pretrained one."""

import torch

from asymflow.models.jit import LAYOUT, PixelJiT
from asymflow.srgb import SrgbSpace
from asymflow.subspace import RECOMMENDED, Subspace, random_basis
from pipelines.core import storage
from pipelines.core.artifacts import Artifact
from pipelines.train.config import config_to_load
from pipelines.train.devices import precision
from pipelines.train.ema import read_average
from pipelines.train.pretrain.config import PretrainSettings

SUBSPACE, SUMMARY = "subspace.safetensors", "summary.json"


def make_subspace(settings: PretrainSettings, pca: Subspace | None) -> Subspace:
    """Return the subspace of `settings.subspace`.

    Args:
        settings: settings of the training.
        pca: the basis step's PCA, channel last; not needed for rank 0, full rank or a random subspace.

    Raises:
        ValueError: the PCA is missing, or its rank is too small.
    """
    chosen, patch_dim = settings.subspace, settings.jit.patch_dim
    rank = _recommended(pca) if chosen.rank == "auto" else chosen.rank
    origin = {"method": chosen.kind, "rank": rank}
    if chosen.kind == "random":
        A = random_basis(patch_dim, rank, chosen.seed)
    elif rank in (0, patch_dim):
        A = torch.eye(patch_dim, rank)
    elif pca is None or pca.rank < rank:
        requested = f"subspace.rank={chosen.rank}" + (f", which is {rank}" if chosen.rank == "auto" else "")
        raise ValueError(f"{requested}: the basis has rank {pca.rank if pca else 'none'}; see its pca_rank")
    else:
        A, origin = pca.A[:, :rank], {**pca.provenance, **origin}
    return Subspace(A.float().contiguous(), 1.0, LAYOUT, SrgbSpace(), origin)


def _recommended(pca: Subspace | None) -> int:
    """Return the rank that the basis step recommends. Raises ValueError if there is none."""
    if pca is None or RECOMMENDED not in pca.provenance:
        raise ValueError("subspace.rank=auto: the basis recommends no rank; run the basis step again")
    return int(pca.provenance[RECOMMENDED])


def build_model(settings: PretrainSettings, subspace: Subspace, features: int | None = None) -> PixelJiT:
    """Return the model to train, on the CPU, the same on every worker.

    Args:
        settings: settings of the training.
        subspace: subspace of the noise.
        features: feature dimension of REPA's encoder.
    """
    torch.manual_seed(settings.seed)
    model = PixelJiT(settings.jit, subspace, noise_scale=settings.network.noise_scale)
    if settings.repa and features:
        model.add_projector(settings.repa.block, features, settings.repa.width)
    model.set_precision(precision(settings.resources))
    model.network.checkpointing = settings.resources.gradient_checkpointing
    if settings.resources.compile:
        for block in model.network.blocks:
            block.compile()
    return model.train()


def read_pretrain_settings(pretrained: Artifact) -> PretrainSettings:
    """Return the settings of a pretrain artifact, without its inputs and resources."""
    return PretrainSettings.model_validate(config_to_load(pretrained.manifest["config"], basis="given"))


def load_pretrained(artifact: Artifact, step: int | None = None) -> PixelJiT:
    """Return the moving average of a pretrain artifact, in float32 and evaluation mode.

    Args:
        artifact: artifact of the pretrain step.
        step: checkpoint; None for the end.
    """
    settings = read_pretrain_settings(artifact)
    subspace = storage.read_file(artifact.file(SUBSPACE), Subspace.load)
    model = PixelJiT(settings.jit, subspace, noise_scale=settings.network.noise_scale)
    average = read_average(artifact.uri, step, "pretrain").values
    with torch.no_grad():
        for key, parameter in model.trainable().items():
            parameter.copy_(average[key])
    return model.eval()
