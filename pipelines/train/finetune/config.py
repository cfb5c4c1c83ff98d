"""Settings of the finetune. The defaults are the paper's (Table 6, App. A.4 and B.2)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from asymflow.models.network import Quantization
from pipelines.core.base_models import read_geometry
from pipelines.core.config import ConfigError, Layout, OptionalUri, Settings, Uri, added
from pipelines.core.workers import ModelWorkers
from pipelines.train import config as train


class Pixels(Settings):
    """Requirements on the basis."""

    patch_size: int = Field(None, ge=1)  # type: ignore[assignment]
    """Empty: the base's own, which the validated settings contain; 16 if its files do not say"""
    layout: Layout = "channel_first"
    mean: tuple[float, float, float] | None = None
    """Oklab mean that the basis must have; empty: that of the color_stats artifact it was made with"""
    std: float | None = Field(None, gt=0)


class Lora(Settings):
    """Low-rank adapters of the transformer."""

    rank: int = Field(256, ge=1)
    alpha: int | None = None
    """Empty: equal to the rank, so that the adapter's scale is 1"""
    dropout: float = Field(0.05, ge=0, lt=1)


class Ddt(Settings):
    """The decoder head of `model: ddt`."""

    blocks: int = Field(2, ge=1)
    heads: int = Field(32, ge=1)
    head_width: int = Field(192, ge=8, multiple_of=8)
    """Dimensions per attention head"""


class L2p(Settings):
    """What `model: l2p` trains."""

    blocks: int = Field(3, ge=1)
    """Trained blocks at each end of the transformer"""
    channels: int = Field(64, ge=1)
    """Channels of the detailer at full resolution; each of its levels has twice as many, up to eight times"""


class Optim(train.Optim):
    """Optimizer settings of the finetune."""

    lr_proj_out: float | None = Field(1e-3, gt=0)
    """Learning rate of proj_out; empty: lr"""


class Time(Settings):
    """Noise levels in training: logit-normal, then the flow shift."""

    mean: float = 0.0
    std: float = Field(1.0, gt=0)
    shift: float = Field(17.0, gt=0)


class Perceptual(Settings):
    """LPIPS on the decoded images. `weights: published` are lpips' own, on torchvision's VGG."""

    net: Literal["vgg", "alex", "squeeze", "efficientnet"] = "vgg"
    """efficientnet has no linear layers; its published weights are a package, not a download"""
    weights: str = "published"
    """`published`, `random`, or a safetensors file of the backbone's features (then without lpips' linear layers)"""
    weight: float = Field(0.2, ge=0)
    """omega_P of Eq. 22"""


class Loss(Settings):
    """Training loss (Eq. 19 to 22)."""

    kind: Literal["variance_reduced", "flow_matching"] = "variance_reduced"
    granularity: Literal["patch", "patch_channel"] = "patch"
    """One lambda per patch (the paper), or per patch and color channel (the released code)"""
    kappa: float | None = 0.3
    """kappa of the fading in Eq. 21; empty: no fading"""
    perceptual: Perceptual | None = Perceptual()
    """Empty: no perceptual term"""
    loss_scale: float = Field(1.0, gt=0)
    sigma_floor: float = Field(5e-2, gt=0)
    """Floor of sigma in the weight 1 / sigma^2"""
    caption_dropout: float = Field(0.1, ge=0, le=1)
    """Share of captions replaced by the empty one, as classifier-free guidance requires"""


class Ema(Settings):
    """Moving average of the trained weights."""

    gamma: float = Field(7.0, gt=0)
    start_step: int = Field(100, ge=1)


class TextEncoders(ModelWorkers):
    """Actors that encode captions during training, one step ahead, if the encode step stored no embeddings."""

    workers: int = Field(1, ge=1)


class ImageEncoders(ModelWorkers):
    """Actors that encode images during training, if the encode step stored no latents."""

    workers: int = Field(1, ge=1)


class Resources(train.Resources):
    """Hardware of the training and of its encoders."""

    text_encoders: TextEncoders = TextEncoders()
    image_encoders: ImageEncoders = ImageEncoders()

    @property
    def demand(self) -> dict[str, float]:
        """Return the resources of the workers and all encoders together; encoders that are not needed are counted."""
        pools = (super().demand, self.text_encoders.demand, self.image_encoders.demand)
        return {name: sum(pool[name] for pool in pools) for name in ("CPU", "GPU")}


class Validation(Settings):
    """Images of the moving average beside the base's, for the first held-out captions.

    If no image is held out, as may happen in a small data set, they are for the first training captions.
    """

    every: int = Field(250, ge=1)
    pictures: int = Field(8, ge=1)
    """Maximum number of images, of edits and text-to-image rows together"""
    seed: int = 0
    steps: int = Field(32, ge=2)
    guidance: float = Field(4.0, ge=1)
    shift: float = Field(17.0, gt=0)
    latent_shift: float = Field(7.0, gt=0)
    """Of the base, and of `model: latent`"""
    orthogonal: float = added(1.0, ge=0, le=1)
    """Fraction of the guidance along the denoised image that is removed; 1: adaptive projected guidance (APG)"""


class Export(Settings):
    """Registration of the exported adapter in MLflow's model registry."""

    model_name: str = ""
    """Name in MLflow's model registry; empty: the experiment's"""
    alias: str = Field("newest", pattern=r"^[a-zA-Z][\w-]*$")
    """Alias set to the version that this run registers"""


class FinetuneSettings(train.TrainSettings):
    """Settings of the finetune step."""

    step: ClassVar[str] = "finetune"
    inputs = {"curated": "curate", "encoded": "encode", "basis": "basis"}
    curated: Uri
    """Artifact of the curate step: the images"""
    encoded: Uri
    """Artifact of the encode step: their latents and text embeddings"""
    basis: OptionalUri = ""
    """Artifact of the basis step; empty: the basis of `start_from`"""
    base: Uri
    """Folder of the latent model, a diffusers pipeline; its `transformer` is trained"""
    text_padding: Literal["none", "max_length"] = added("none")
    """How `encoded` must have been made: none, or max_length with padding that the model attends to, as the released
    model was trained. Samplers of the exported adapter use the same padding"""
    model: Literal["asymflow", "latent", "ddt", "l2p"] = "asymflow"
    """asymflow: the paper's model. Baselines: latent finetunes the latent model on the same data, ddt predicts u from
    pixels by a decoder head, l2p (arXiv:2605.12013) trains the outer blocks on pixels"""
    start_from: str = added("")
    """Adapter whose values training starts from: a folder, s3://... or OWNER/NAME on the hub. Its kind of model,
    transformer, LoRA rank and basis must be those of this training. Empty: the base alone"""
    edit_share: float | None = added(None, ge=0, le=1)
    """Share of the optimizer steps, spread evenly, whose batch holds edits (rows with reference images); the others
    hold text-to-image rows. Empty: all rows in epochs, so the share is that of the data"""
    pixels: Pixels = Pixels()
    lora: Lora | None = Lora()
    base_quantization: Quantization | None = added(None)
    """Store the frozen linear layers in fewer bits, for small GPUs. nf4: 4 bits (bitsandbytes). int8: 8 bits (LLM.int8,
    bitsandbytes). fp8: float8_e4m3fn (diffusers); it needs resources.gradient_checkpointing. The adapter has the same
    format and fits the unquantized base. All need resources.zero_stage below 3. Empty: not quantized"""
    ddt: Ddt = Ddt()
    l2p: L2p = added(L2p())
    optim: Optim = Optim()
    time: Time = Time()
    loss: Loss = Loss()
    ema: Ema = Ema()
    validation: Validation | None = Validation()
    """Empty: no validation"""
    export: Export = Export()
    resources: Resources = Resources()

    @model_validator(mode="before")
    @classmethod
    def _follow_base(cls, tree: Any) -> Any:
        """Fill in the base's patch size if none is given: identities and manifests contain the number."""
        if not isinstance(tree, Mapping) or not isinstance(tree.get("base"), str):
            return tree
        pixels = tree.get("pixels", {})
        pixels = pixels.model_dump() if isinstance(pixels, Pixels) else pixels
        if not isinstance(pixels, Mapping) or pixels.get("patch_size") is not None:
            return tree
        try:
            own = read_geometry(tree["base"]).pixels_per_token
        except ConfigError as error:
            raise ValueError(f"pixels.patch_size: not given, and {error}") from None
        return {**tree, "pixels": {**pixels, "patch_size": own}}

    @property
    def head_sizes(self) -> dict[str, int]:
        """Return the sizes of what replaces the last layer; empty for an ordinary last layer."""
        heads: dict[str, Settings] = {"ddt": self.ddt, "l2p": self.l2p}
        return heads[self.model].model_dump() if self.model in heads else {}

    @property
    def validates_every(self) -> int | None:
        """Return the steps between validations; None without validation."""
        return self.validation.every if self.validation else None

    @model_validator(mode="after")
    def _sound(self) -> "FinetuneSettings":
        if not self.basis and not self.start_from:
            raise ValueError("basis: missing; give the artifact of the basis step, or start_from to use its basis")
        if self.model != "asymflow" and self.loss.kind == "variance_reduced":
            raise ValueError(
                f"model={self.model} with loss.kind=variance_reduced: only AsymFlow's initialization has the frozen "
                "low-rank model; use loss.kind=flow_matching"
            )
        if self.model == "l2p" and self.lora:
            raise ValueError("model=l2p with lora: its blocks are trained whole; use lora=null")
        if self.base_quantization and self.resources.zero_stage == 3:
            raise ValueError(
                f"base_quantization={self.base_quantization} with resources.zero_stage=3: sharding would cut through "
                "the blocks of values that share a scale; use zero_stage=0, 1 or 2, which keep the quantized base on "
                "each worker, or base_quantization=null"
            )
        if self.base_quantization == "fp8" and not self.resources.gradient_checkpointing:
            raise ValueError(
                "base_quantization=fp8 with resources.gradient_checkpointing=false: the backward pass would keep all "
                "weights in full; use gradient_checkpointing=true, or base_quantization=int8"
            )
        return self
