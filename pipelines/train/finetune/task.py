"""Training task of the finetune."""

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from ray.train.torch import get_device
from torch import Tensor

from asymflow.ema import PowerEMA
from asymflow.models.adapted import AdaptedModel
from asymflow.objectives.finetune import FinetuneObjective
from asymflow.subspace import Subspace
from pipelines.core import storage
from pipelines.data.embeddings import RemoteLatents, RemoteText, Source, StoredLatents, StoredText
from pipelines.train.finetune.batches import Batch, BatchLoader, NoiseSettings
from pipelines.train.finetune.config import FinetuneSettings, Loss, Optim
from pipelines.train.finetune.flops import step_flops
from pipelines.train.finetune.model import build_model
from pipelines.train.finetune.perceptual import load_perceptual
from pipelines.train.finetune.validation import Validator
from pipelines.train.finetune.validation_prompts import Prompts
from pipelines.train.mixed_order import make_order
from pipelines.train.row_groups import list_row_groups
from pipelines.train.task import Tokens
from pipelines.viz.image_grid import join_vertically


class FinetuneTask:
    """Implements `pipelines.train.task.Task`; `config` holds `data` of `finetune.step.train`, and the settings."""

    def __init__(self, config: dict[str, Any], rank: int, workers: int):
        self.settings = FinetuneSettings.model_validate(config["settings"])
        subspace = storage.read_file(config["subspace"], Subspace.load)
        self.model = build_model(self.settings, subspace, get_device())
        self.objective = make_objective(self.model, self.settings.loss)
        self.data_loader = make_data_loader(self.settings, config, rank, workers)
        self.config, self.rank = config, rank
        self._validators: list[Validator] = []

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups; see `parameter_groups`."""
        return parameter_groups(self.model, self.settings.optim)

    def moving_average(self, values: Mapping[str, Tensor]) -> PowerEMA:
        """Return a moving average with a power profile."""
        return PowerEMA(values, self.settings.ema.gamma, self.settings.ema.start_step)

    def blank_batch(self, count: int) -> Batch:
        """Return a batch of the smallest images; see `blank_batch`."""
        return blank_batch(self.model, count)

    def step_flops(self, tokens: Tokens) -> float:
        """Return the model FLOPs of a step."""
        config = {"_class_name": self.model.backbone.transformer, **self.model.transformer.config}
        batch = self.settings.optim.batch
        return step_flops(self.settings, config, tokens.image, tokens.text, batch, tokens.reference)

    def sample_images(self, device: torch.device) -> Image.Image:
        """Return the validation's image grid of the present weights; a collective call."""
        settings, config = self.settings, self.config
        assert settings.validation
        if not self._validators:
            source, given = text_source(config, self.rank), (config["unconditional"], settings.base, device)
            kinds = Prompts.by_kind(config["held_out"], config["held_out_text"], settings.validation.pictures)
            self._validators = [Validator(settings.validation, self.model, p, source, *given) for p in kinds]
        return join_vertically([validator.sample_images() for validator in self._validators])


def make_objective(model: AdaptedModel, loss: Loss) -> FinetuneObjective:
    """Return the training loss of these settings, with its perceptual network loaded."""
    perceptual = loss.perceptual if loss.kind == "variance_reduced" else None
    return FinetuneObjective(
        model,
        loss.kind,
        load_perceptual(perceptual) if perceptual else None,
        perceptual.weight if perceptual else 0.0,
        loss.kappa,
        loss.sigma_floor,
        loss.granularity,
        loss.loss_scale,
    )


def make_data_loader(settings: FinetuneSettings, config: dict[str, Any], rank: int, workers: int) -> BatchLoader:
    """Return a worker's data loader.

    Args:
        settings: settings of the finetune.
        config: files of data, encoders and the unconditional embedding.
        rank: this worker.
        workers: number of workers.
    """
    groups = list_row_groups(config["curated"], config["latents"], config["text"])
    encoders = config["image_encoders"]
    law = settings.time
    return BatchLoader(
        make_order(groups, settings.seed, settings.shuffle_window, settings.edit_share),
        settings.optim.batch,
        rank,
        workers,
        text_source(config, rank),
        RemoteLatents(encoders, rank) if encoders else StoredLatents(),
        config["unconditional"],
        NoiseSettings(law.mean, law.std, law.shift, settings.loss.caption_dropout),
    )


def text_source(config: dict[str, Any], rank: int) -> Source:
    """Return the source of text embeddings: text encoder actors, or stored embeddings."""
    return RemoteText(config["text_encoders"], rank) if config["text_encoders"] else StoredText()


def parameter_groups(model: AdaptedModel, optim: Optim) -> list[dict[str, Any]]:
    """Return parameter groups; the last layer may have its own learning rate (App. B.2)."""
    named = model.trainable()
    last = {id(p) for p in model.last_layer.parameters()}
    rates = {False: optim.lr, True: optim.lr_proj_out or optim.lr}
    parts = {is_last: [p for p in named.values() if (id(p) in last) == is_last] for is_last in rates}
    return [{"params": p, "lr": rates[key], "peak": rates[key]} for key, p in parts.items() if p]


def blank_batch(model: AdaptedModel, count: int) -> Batch:
    """Return a batch of the smallest images that every part of the loss accepts.

    A perceptual network halves the resolution five times.
    """
    side = max(2, -(-64 // model.patch_size))
    shape = (count, 3, side * model.patch_size, side * model.patch_size)
    return Batch(
        images=torch.zeros(shape),
        z_0=torch.zeros(count, side * side, model.subspace.rank),
        text=torch.zeros(count, 1, model.text_width),
        text_mask=torch.ones(count, 1).bool(),
        noise=torch.zeros(shape),
        sigma=torch.full((count,), 0.5),
        weight=torch.ones(count),
        keys=[""] * count,
        key_sums=torch.zeros(count).double(),
    )
