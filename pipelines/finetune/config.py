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


class Ddt(Settings):
    """The decoder head of `model: ddt`."""

    blocks: int = Field(2, ge=1)
    heads: int = Field(32, ge=1)
    head_width: int = Field(192, ge=8, multiple_of=8)
    """Values a head"""


class Optim(Settings):
    optimizer: Literal["adam", "adam8bit"] = "adam"
    """adam8bit keeps its moments in 8 bits (bitsandbytes), whole on every worker: it needs resources.zero_stage=0"""
    lr: float = Field(1e-4, gt=0)
    lr_proj_out: float | None = Field(1e-3, gt=0)
    """Rate of proj_out; empty: the same as the others'"""
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
    clip_from: int = Field(100, ge=0)
    """First step at which it holds"""


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


class ImageEncoders(ModelWorkers):
    """The same for pictures, where the encode step left the latents to them."""

    workers: int = Field(1, ge=1)


class Resources(Settings):
    """On what the training runs. Another choice gives the same run, but for rounding."""

    workers: int = Field(1, ge=1)
    cpus_per_worker: float = Field(1, gt=0)
    use_gpu: bool = False
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of the frozen base and of the products; what is trained is float32. auto: bfloat16 on GPUs, float32 elsewhere"""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What DeepSpeed shards over the workers: nothing, optimizer state, gradients too, weights too"""
    micro_batch: int | None = Field(None, ge=1)
    """Pictures a worker holds at once; empty: its whole share of the batch"""
    gradient_checkpointing: bool = False
    """Compute each block again in the backward pass instead of keeping its activations"""
    compile: bool = False
    """torch.compile each block: minutes at the start, faster steps after"""
    peak_tflops: float | None = Field(None, gt=0)
    """Of one worker, for the share of it that is used (MFU); empty: known for common GPUs, else not logged"""
    max_failures: int = Field(3, ge=0)
    """Restarts after a worker is lost; those that a preemption takes are not counted"""
    text_encoders: TextEncoders = TextEncoders()
    image_encoders: ImageEncoders = ImageEncoders()


class Checkpoints(Settings):
    every: int = Field(250, ge=1)
    """Steps between checkpoints; one more is written when the job is asked to stop"""
    keep_last: int = Field(2, ge=1)
    keep_every: int | None = Field(None, ge=1)
    """Keep those of multiples of this step for good"""


class Validation(Settings):
    """Pictures of the moving average, and the base's beside them, of the first held-out captions."""

    every: int = Field(250, ge=1)
    pictures: int = Field(8, ge=1)
    seed: int = 0
    steps: int = Field(32, ge=2)
    guidance: float = Field(4.0, ge=1)
    shift: float = Field(17.0, gt=0)
    latent_shift: float = Field(7.0, gt=0)
    """Of the base, and of `model: latent`"""


class Watch(Settings):
    """When to skip, to warn and to give up."""

    skips: int = Field(10, ge=1)
    """Stop after so many steps in a row whose loss or gradient is not finite; each of them is skipped"""
    spike: float = Field(5.0, gt=1)
    """Log a loss that is so many times the median of the last hundred"""
    hang_minutes: float = Field(30.0, gt=0)
    """A step that takes longer ends the worker, with the stacks of its threads in the log"""


class Export(Settings):
    model_name: str = ""
    """Name in MLflow's model registry; empty: the experiment's"""
    alias: str = Field("newest", pattern=r"^[a-zA-Z][\w-]*$")
    """Points to the version that this run registers"""


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
    model: Literal["asymflow", "latent", "ddt"] = "asymflow"
    """asymflow: the paper's. Baselines: latent trains the latent model on the same data, ddt predicts u from pixels by
    a decoder head"""
    pixels: Pixels = Pixels()
    lora: Lora | None = Lora()
    ddt: Ddt = Ddt()
    optim: Optim = Optim()
    time: Time = Time()
    loss: Loss = Loss()
    ema: Ema = Ema()
    shuffle_window: int = Field(64, ge=1)
    """Row groups (of 64 pictures) of one size that are read and shuffled together, shared out over the workers"""
    checkpoints: Checkpoints = Checkpoints()
    validation: Validation | None = Validation()
    """Empty: none"""
    watch: Watch = Watch()
    export: Export = Export()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _sound(self) -> "FinetuneSettings":
        stage = self.resources.zero_stage
        if self.optim.optimizer == "adam8bit" and stage:
            raise ValueError(
                f"optim.optimizer=adam8bit with resources.zero_stage={stage}: sharding cuts through the blocks of "
                "values that share a scale, and no other number of workers could read the state; take zero_stage=0 "
                "(its state is 2 bytes a trained value) or optimizer=adam"
            )
        if self.model != "asymflow" and self.loss.kind == "variance_reduced":
            raise ValueError(
                f"model={self.model} with loss.kind=variance_reduced: the frozen low-rank model is AsymFlow's own "
                "initialization; take loss.kind=flow_matching"
            )
        return self
