"""Training task of training from scratch."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from asymflow.ema import ConstantEMA
from asymflow.models.dinov2 import DinoFeatures
from asymflow.models.jit import PixelJiT
from asymflow.objectives.pretrain import PretrainObjective
from asymflow.sampling import pixel_noise
from asymflow.subspace import Subspace
from pipelines.core import storage
from pipelines.train.pretrain.batches import Batch, BatchLoader
from pipelines.train.pretrain.config import Loss, PretrainSettings, Repa
from pipelines.train.pretrain.flops import training_flops
from pipelines.train.pretrain.model import build_model
from pipelines.train.pretrain.sampling import sample_classes
from pipelines.train.row_groups import list_row_groups
from pipelines.train.sample_order import SampleOrder
from pipelines.train.task import Tokens
from pipelines.viz.image_grid import grid_of, to_pil_images


class PretrainTask:
    """Implements `pipelines.train.task.Task`."""

    def __init__(self, config: dict[str, Any], rank: int, workers: int):
        self.settings = settings = PretrainSettings.model_validate(config["settings"])
        encoder = DinoFeatures(settings.repa.encoder) if settings.repa else None
        subspace = storage.read_file(config["subspace"], Subspace.load)
        self.model = build_model(settings, subspace, encoder.width if encoder else None)
        self.objective = make_objective(self.model, settings.loss, settings.repa, encoder)
        files = config["curated"]
        order = SampleOrder(list_row_groups(files, [], [""] * len(files)), settings.seed, settings.shuffle_window)
        self.data_loader = BatchLoader(settings, order, rank, workers)
        self.size: tuple[int, int] = config["size"]
        self.rank, self.workers = rank, workers

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's parameter group."""
        lr = self.settings.optim.lr
        return [{"params": list(self.model.trainable().values()), "lr": lr, "peak": lr}]

    def moving_average(self, values: Mapping[str, Tensor]) -> ConstantEMA:
        """Return a moving average of constant decay."""
        return ConstantEMA(values, self.settings.ema.decay)

    def blank_batch(self, count: int) -> Batch:
        """Return a batch of images of one patch."""
        side = self.model.patch_size
        return Batch(
            images=torch.zeros(count, 3, side, side),
            noise=torch.zeros(count, 3, side, side),
            sigma=torch.full((count,), 0.5),
            weight=torch.ones(count),
            keys=[""] * count,
            key_sums=torch.zeros(count).double(),
            labels=torch.zeros(count).long(),
            patch_size=side,
        )

    def step_flops(self, tokens: Tokens) -> float:
        """Return the model FLOPs of a step."""
        return self.settings.optim.batch * training_flops(self.settings.jit, tokens.image)

    def sample_images(self, device: torch.device) -> Image.Image:
        """Return a grid of images of the first classes in turn; each rank samples an equal part."""
        settings = self.settings.validation
        assert settings
        each = -(-settings.pictures // self.workers)
        mine = [(self.rank * each + i) % settings.pictures for i in range(each)]
        noise = pixel_noise(settings.seed, mine, *self.size).to(device)
        labels = torch.tensor(mine, device=device) % self.settings.classes
        images = sample_classes(self.model, noise, labels, settings)
        everyone = [torch.empty_like(images) for _ in range(self.workers)]
        dist.all_gather(everyone, images)
        grid = to_pil_images(torch.cat(everyone)[: settings.pictures].cpu())
        return grid_of(grid, columns=min(8, len(grid)))


def make_objective(
    model: PixelJiT, loss: Loss, repa: Repa | None = None, encoder: DinoFeatures | None = None
) -> PretrainObjective:
    """Return the training loss of these settings."""
    return PretrainObjective(model, loss.sigma_floor, encoder if repa else None, repa.weight if repa else 0.0)
