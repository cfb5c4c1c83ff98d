"""The model that is trained from scratch, and the one that training gave."""

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
    """That of `settings.subspace`. `pca` is the basis step's, channel last, of at least the rank; ValueError if not."""
    wanted, patch_dim = settings.subspace, settings.jit.patch_dim
    rank = _recommended(pca) if wanted.rank == "auto" else wanted.rank
    origin = {"method": wanted.kind, "rank": rank}
    if wanted.kind == "random":
        A = random_basis(patch_dim, rank, wanted.seed)
    elif rank in (0, patch_dim):
        A = torch.eye(patch_dim, rank)
    elif pca is None or pca.rank < rank:
        asked = f"subspace.rank={wanted.rank}" + (f", which is {rank}" if wanted.rank == "auto" else "")
        raise ValueError(f"{asked}: the basis has {pca.rank if pca else 'none'}; see its pca_rank")
    else:
        A, origin = pca.A[:, :rank], {**pca.provenance, **origin}
    return Subspace(A.float().contiguous(), 1.0, LAYOUT, SrgbSpace(), origin)


def _recommended(pca: Subspace | None) -> int:
    """Return the rank that the basis step recommends. Raises ValueError where it does not."""
    if pca is None or RECOMMENDED not in pca.provenance:
        raise ValueError("subspace.rank=auto: the basis recommends no rank; run the basis step again")
    return int(pca.provenance[RECOMMENDED])


def build_model(settings: PretrainSettings, subspace: Subspace, features: int | None = None) -> PixelJiT:
    """Ready to be trained, on the CPU, the same on every worker; `features` are those of REPA's encoder."""
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


def settings_of(pretrained: Artifact) -> PretrainSettings:
    """Return the settings of a pretrain artifact, without its inputs and resources."""
    return PretrainSettings.model_validate(config_to_load(pretrained.manifest["config"], basis="given"))


def load_pretrained(artifact: Artifact, step: int | None = None) -> PixelJiT:
    """The moving average of a pretrain artifact, at the end or a checkpoint, in float32, ready to sample from."""
    settings = settings_of(artifact)
    subspace = storage.read_file(artifact.file(SUBSPACE), Subspace.load)
    model = PixelJiT(settings.jit, subspace, noise_scale=settings.network.noise_scale)
    average = read_average(artifact.uri, step, "pretrain").values
    with torch.no_grad():
        for key, parameter in model.trainable().items():
            parameter.copy_(average[key])
    return model.eval()
