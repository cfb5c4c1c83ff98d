"""Settings of the finetune. The defaults are the paper's (Table 6 and appendices A.4, B.2)."""

from typing import Literal

from pydantic import Field, model_validator

from pipelines.config import Layout, Settings, Uri
from pipelines.shards import ModelWorkers
from pipelines.steps import StepSettings


class Pixels(Settings):
    """What the basis must have been made for."""

    patch_size: int = Field(16, ge=1)
    layout: Layout = "channel_first"
    mean: tuple[float, float, float] | None = None
    """Oklab mean the basis must have; empty: that of the color_stats artifact the basis was made with"""
    std: float | None = Field(None, gt=0)


class Lora(Settings):
    rank: int = Field(256, ge=1)
    alpha: int | None = None
    """Empty: equal to the rank, so that the adapter's scale is 1"""
    dropout: float = Field(0.05, ge=0, lt=1)


class Optim(Settings):
    lr: float = Field(1e-4, gt=0)
    lr_proj_out: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.0, ge=0)
    batch: int = Field(256, ge=1)
    """Pictures a step, over all workers and accumulated micro-batches"""
    steps: int = Field(15_000, ge=1)
    warmup_steps: int = Field(100, ge=0)
    cooldown_steps: int = Field(0, ge=0)
    """Last steps over which the rates fall to zero; the paper keeps them, short runs end cleaner with it"""
    clip: float = Field(200.0, gt=0)
    """Limit of the gradient norm"""


class Time(Settings):
    """Noise levels in training: logit-normal, then the flow shift."""

    mean: float = 0.0
    std: float = Field(1.0, gt=0)
    shift: float = Field(17.0, gt=0)


class Perceptual(Settings):
    """LPIPS on the decoded pictures. `weights: published` are lpips' own, on torchvision's VGG."""

    net: Literal["vgg", "alex", "squeeze"] = "vgg"
    weights: str = "published"
    """`published`, `random`, or a safetensors file of the backbone's features (then without lpips' linear layers)"""
    weight: float = Field(0.2, ge=0)
    """omega_P of Eq. 22"""


class Loss(Settings):
    kind: Literal["variance_reduced", "flow_matching"] = "variance_reduced"
    granularity: Literal["patch", "patch_channel"] = "patch"
    """One lambda a patch (the paper) or a patch and colour channel (the released code)"""
    kappa: float | None = 0.3
    """Fading of Eq. 21; empty: none"""
    perceptual: Perceptual | None = Perceptual()
    """Empty: no perceptual term"""
    loss_scale: float = Field(1.0, gt=0)
    sigma_floor: float = Field(5e-2, gt=0)
    """Floor of sigma in the weight 1 / sigma^2"""
    caption_dropout: float = Field(0.1, ge=0, le=1)
    """Share of captions replaced by the empty one, so that guidance keeps working"""


class Ema(Settings):
    gamma: float = Field(7.0, gt=0)
    start_step: int = Field(100, ge=1)


class TextEncoders(ModelWorkers):
    """Actors beside the training's workers that encode captions a step ahead, where the encode step left it to them."""

    workers: int = Field(1, ge=1)


class Resources(Settings):
    """On what the training runs. Another choice gives the same run."""

    workers: int = Field(1, ge=1)
    cpus_per_worker: float = Field(1, gt=0)
    use_gpu: bool = False
    zero_stage: Literal[0, 2, 3] = 2
    micro_batch: int | None = Field(None, ge=1)
    """Pictures a worker holds at once; empty: its whole share of the batch"""
    max_failures: int = Field(3, ge=0)
    """Restarts after a worker is lost"""
    text_encoders: TextEncoders = TextEncoders()


class FinetuneSettings(StepSettings):
    curated: Uri
    """Artifact of the curate step: the pictures"""
    encoded: Uri
    """Artifact of the encode step: their latents and text embeddings"""
    basis: Uri
    """Artifact of the basis step"""
    base: Uri
    """Folder of the latent model, a diffusers pipeline; its `transformer` is trained"""
    seed: int = 0
    pixels: Pixels = Pixels()
    lora: Lora | None = Lora()
    optim: Optim = Optim()
    time: Time = Time()
    loss: Loss = Loss()
    ema: Ema = Ema()
    shuffle_window: int = Field(64, ge=1)
    """Row groups (of 64 pictures) that are read and shuffled together"""
    checkpoint_every: int = Field(250, ge=1)
    """Steps between checkpoints"""
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _batch_divides(self) -> "FinetuneSettings":
        share, rest = divmod(self.optim.batch, self.resources.workers)
        if rest:
            raise ValueError(f"optim.batch={self.optim.batch} does not divide by {self.resources.workers} workers")
        if self.resources.micro_batch and share % self.resources.micro_batch:
            raise ValueError(
                f"resources.micro_batch={self.resources.micro_batch} does not divide a worker's share of {share}"
            )
        return self
