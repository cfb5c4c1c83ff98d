"""Settings of sampling."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from pipelines.core.config import Settings, StepSettings, Uri, added
from pipelines.core.workers import ModelWorkers
from pipelines.sample.parameters import SamplingParameterSettings


class Provenance(Settings):
    """Statement about an image's origin."""

    mark: bool = True
    """Write into each PNG, in IPTC's terms, that a trained model generated it"""


class Safety(Settings):
    """A classifier of sampled images; flagged images are replaced by black ones, counted, and not stored."""

    classifier: str = ""
    """Folder of a transformers image classifier; empty: none, as none is small enough to be included"""
    label: str = "nsfw"
    """Label of the classifier that is not allowed"""
    threshold: float = Field(0.5, ge=0, le=1)
    """Probability of the label from which on an image is flagged"""


class Hires(Settings):
    """Two stages: sample at a lower resolution, upscale, and finish by image-to-image."""

    upscale: float = Field(1.0, ge=1, allow_inf_nan=False)
    """Ratio of the sizes of result and first stage; 1: one stage"""
    strength: float = Field(0.3, ge=0, le=1)
    """Fraction of the steps, the last ones, that the second stage runs"""


class DemoPageSettings(Settings):
    """Web page to try a pixel model."""

    step: ClassVar[str] = "demo_ui"
    base: Uri = "models/toy_klein"
    """Folder of the latent model, or of a merged pipeline"""
    adapter: str = Field("", validate_default=False)
    """The pixel model's: a folder, or OWNER/NAME on the hub; empty: the toy's for the toy base, none for another
    base"""
    device: Literal["cpu", "cuda"] = "cpu"
    host: str = "127.0.0.1"
    """Address to listen on; the default is reachable from this machine only, as there is no login"""
    port: int = Field(7860, ge=0, le=65535)
    """0: any free port"""
    allowed_hosts: list[str] = []
    """Other host names of the page"""
    safety: Safety = Safety()

    @model_validator(mode="before")
    @classmethod
    def _adapt_the_toy(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and not tree.get("base") and not tree.get("adapter"):
            return {**tree, "adapter": "models/toy_asymflow"}
        return tree


class Resources(ModelWorkers):
    """Workers that sample the images."""

    workers: int = Field(1, ge=1)
    """Each loads the model"""
    batch: int = Field(4, ge=1)
    """Images sampled together"""


class SampleSettings(StepSettings, SamplingParameterSettings):
    """Settings of the sample step."""

    step: ClassVar[str] = "sample"
    base: Uri
    """Folder of the latent model, or of a merged pipeline"""
    adapter: str = ""
    """The pixel model's: a folder, s3://... or OWNER/NAME on the hub; empty: the base is merged, or with latent=true
    sampled alone"""
    prompts: list[str] = Field([], validate_default=False)
    """One prompt or a list"""
    prompt_file: str = ""
    """Instead of prompts: a .txt with one per line, a .csv, .tsv, .json, .jsonl or .parquet, or a folder of .parquet,
    such as `train` of a curate artifact"""
    prompt_column: str = added("prompt")
    """Column of the prompts, for files with columns"""
    seeds: list[int] = Field([0], min_length=1)
    """One image per prompt and seed"""
    latent: bool = False
    """Also sample the latent model, from the same noise; without an adapter, only the latent model"""
    text_padding: Literal["none", "max_length"] = added("max_length")
    """Padding of prompts for a base alone; adapters and merged models record their own"""
    hires: Hires = added(Hires())
    """Two stages of the pixel model, for sizes above the training's; height and width are the result's"""
    shown: int = Field(8, ge=1)
    """Rows of the image grid"""
    provenance: Provenance = Provenance()
    safety: Safety = Safety()
    resources: Resources = Resources()

    @model_validator(mode="before")
    @classmethod
    def _read_prompts(cls, tree: Any) -> Any:
        """Read the prompt file: the prompts themselves determine the artifact's ID."""
        if not isinstance(tree, dict) or not tree.get("prompt_file"):
            return tree
        if tree.get("prompts"):
            raise ValueError("prompts and prompt_file are both given: leave one")
        from pipelines.data.prompt_files import read_prompt_file  # pyarrow, for this alone

        uri = str(tree["prompt_file"])
        try:
            prompts = read_prompt_file(uri, str(tree.get("prompt_column", "prompt")))
        except ValueError as error:
            raise ValueError(f"prompt_file={uri!r}: {error}") from None
        rest = {name: value for name, value in tree.items() if name not in ("prompt_file", "prompt_column")}
        return {**rest, "prompts": prompts}

    @field_validator("prompts", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("prompts")
    @classmethod
    def _some(cls, value: list[str]) -> list[str]:
        if not all(prompt.strip() for prompt in value):
            raise ValueError("must not be empty")
        return value

    @model_validator(mode="after")
    def _has_prompts(self) -> "SampleSettings":
        if not self.prompts:
            raise ValueError("prompts: missing; give prompts='a red fox', prompts='[one, another]' or prompt_file=FILE")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds={self.seeds}: a seed is given twice")
        if self.hires.upscale > 1 and not (self.height and self.width):
            raise ValueError("hires: give height and width, the size of the result")
        return self

    def pairs(self) -> Sequence[tuple[int, int]]:
        """Return (index of the prompt, seed) of every image, in order."""
        return [(place, seed) for place in range(len(self.prompts)) for seed in self.seeds]
