"""Settings of training from scratch. The defaults are the paper's (Sec. 6.1, App. B.1; Table 9 of JiT)."""

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from asymflow.models.jit_config import SIZES, JiTConfig
from pipelines.core.config import OptionalUri, Rank, RunSettings, Settings, Uri, added
from pipelines.train import config as train


class Network(Settings):
    """A JiT: a published size, and changes to it."""

    size: Literal["B", "L", "H", "G"] = "H"
    width: int | None = Field(None, ge=4)
    """Empty, here and below: that of the size"""
    depth: int | None = Field(None, ge=1)
    heads: int | None = Field(None, ge=1)
    bottleneck: int | None = Field(None, ge=1)
    context_from: int | None = Field(None, ge=0)
    """First block with class tokens"""
    context_tokens: int | None = Field(None, ge=0)
    dropout: float | None = Field(None, ge=0, lt=1)
    patch_size: int = Field(16, ge=1)
    attention_float32: bool = True
    """Compute attention in float32, whatever the precision of other products"""
    noise_scale: float = added(1.0, gt=0)
    """Standard deviation of the network's input noise; images' noise has 1 and is rescaled. 2 for JiT at 512 pixels"""

    def config(self, classes: int) -> JiTConfig:
        """Return the network's shapes. Raises ValueError for shapes that do not fit."""
        own = self.model_dump(exclude={"size", "noise_scale"}, exclude_none=True)
        return replace(SIZES[self.size], classes=classes, **own)


class Basis(Settings):
    """The subspace of the predicted noise."""

    rank: Rank = 8
    """0: x_0-prediction, which is JiT; the patch's dimension: u-prediction; auto: what the basis artifact recommends"""
    kind: Literal["pca", "random"] = "pca"
    """pca: the first directions of the basis artifact; random: uniformly random directions (an ablation)"""
    seed: int = 0
    """Of a random subspace"""


class Optim(train.Optim):
    """Optimizer settings of training from scratch."""

    lr: float = Field(2e-4, gt=0)
    batch: int = Field(1024, ge=1)
    steps: int = Field(751_200, ge=1)
    """600 epochs of ImageNet's 1,281,167 images"""
    warmup_steps: int = Field(6_260, ge=0)
    """5 epochs"""
    clip: float | None = Field(None, gt=0)
    clip_from: int = Field(0, ge=0)


class Time(Settings):
    """Noise levels: sigma = sigmoid(mean + std n), n normal; a mean above 0 favors noise.

    JiT counts time from noise to data, and its mean is -0.8.
    """

    mean: float = 0.8
    std: float = Field(0.8, gt=0)


class Loss(Settings):
    """Training loss."""

    sigma_floor: float = Field(5e-2, gt=0)
    """Floor of sigma in the division of the error outside the subspace"""
    class_dropout: float = Field(0.1, ge=0, le=1)
    """Share of labels dropped, as classifier-free guidance requires"""


class Repa(Settings):
    """Alignment of a block's tokens with a frozen encoder's (Sec. 6.1, App. B.1)."""

    encoder: Uri
    """Folder of a transformers DINOv2: facebook/dinov2-base"""
    block: int = Field(8, ge=1)
    """Block whose output tokens are aligned, counted from 1"""
    weight: float = Field(0.5, gt=0)
    width: int = Field(2048, ge=1)
    """Hidden width of the projector"""


class Ema(Settings):
    """Moving average of the trained weights."""

    decay: float = Field(0.9999, ge=0, lt=1)


class Validation(Settings):
    """Images of the moving average, of the first classes in turn; also the model's default sampling parameters."""

    every: int = Field(5_000, ge=1)
    pictures: int = Field(16, ge=1)
    seed: int = 0
    steps: int = Field(50, ge=2)
    """Steps of Heun's method"""
    guidance: float = Field(2.3, ge=1)
    guidance_interval: tuple[float, float] = (0.0, 0.88)
    """Noise levels with guidance"""
    sigma_floor: float = Field(4e-2, ge=0)
    """Floor of sigma in the division of the network's output"""


class Resources(train.Resources):
    """Hardware of the training."""

    zero_stage: Literal[0, 1, 2] = 2
    """What DeepSpeed shards over the workers: 0 nothing, 1 optimizer state, 2 also gradients"""


class PretrainSettings(train.TrainSettings):
    """Settings of the pretrain step."""

    step: ClassVar[str] = "pretrain"
    inputs = {"curated": "curate", "basis": "basis"}
    curated: Uri
    """Artifact of the curate step, with labels"""
    basis: OptionalUri = ""
    """Artifact of the basis step, made with space=srgb; not needed for rank 0, full rank, or a random subspace"""
    network: Network = Network()
    subspace: Basis = Basis()
    classes: int = Field(1000, ge=1)
    """Labels are 0 to classes - 1"""
    optim: Optim = Optim()
    time: Time = Time()
    loss: Loss = Loss()
    repa: Repa | None = None
    """Empty: no alignment"""
    flip: bool = True
    """Mirror each image with probability 1/2"""
    ema: Ema = Ema()
    shuffle_window: int = Field(1024, ge=1)
    """Row groups (of 64 images) that are read and shuffled together: they mix the classes of class-sorted data"""
    validation: Validation | None = Validation()
    """Empty: no validation"""
    resources: Resources = Resources()

    @property
    def validates_every(self) -> int | None:
        """Return the steps between validations; None without validation."""
        return self.validation.every if self.validation else None

    @property
    def jit(self) -> JiTConfig:
        """Return the network's shapes."""
        return self.network.config(self.classes)

    @model_validator(mode="after")
    def _fits(self) -> "PretrainSettings":
        config, rank = self.jit, self.subspace.rank
        if rank == "auto" and self.subspace.kind != "pca":
            raise ValueError("subspace.rank=auto: only a PCA recommends a rank; subspace.kind=random needs a number")
        if rank != "auto" and rank > config.patch_dim:
            raise ValueError(f"subspace.rank={rank}: a patch has {config.patch_dim} values")
        if self.repa and self.repa.block > config.depth:
            raise ValueError(f"repa.block={self.repa.block}: the network has {config.depth} blocks")
        if self.needs_basis and not self.basis:
            raise ValueError(
                f"basis: missing; subspace.rank={rank} of a PCA needs the artifact of a basis step with space=srgb"
            )
        return self

    @property
    def needs_basis(self) -> bool:
        """Return whether the subspace is a part of the basis step's PCA."""
        rank = self.subspace.rank
        return self.subspace.kind == "pca" and (rank == "auto" or 0 < rank < self.jit.patch_dim)


class ImportJitSettings(Settings):
    """Settings of the job that makes a published checkpoint an artifact of the pretrain step."""

    step: ClassVar[str] = "import_jit"
    checkpoint: str = Field(min_length=1)
    """JiT's checkpoint-last.pth, or a .safetensors file of JiT or AsymFlow-ImageNet"""
    entry: str = "model_ema1"
    """Entry of a .pth file with several sets of weights"""
    context_from: int | None = Field(None, ge=0)
    """First block that sees the class tokens, which no file stores; empty: as the published size has it"""
    noise_scale: float | None = Field(None, gt=0)
    """Standard deviation of the noise that the network was trained with; empty: as published, 2 for JiT of 32 x 32
    patches, else 1"""
    steps: int = Field(50, ge=2)
    """Steps of Heun's method, by default"""
    guidance: float = Field(2.3, ge=1)
    """Guidance scale, by default"""
    run: RunSettings = RunSettings()
