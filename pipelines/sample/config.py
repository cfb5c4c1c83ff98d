"""Settings of sampling."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from pipelines.core.config import Settings, StepSettings, Uri, added
from pipelines.core.workers import ModelWorkers
from pipelines.sample.parameters import SamplingParameterSettings


class Provenance(Settings):
    mark: bool = True
    """Say inside each PNG, as IPTC asks for, that a trained model made it"""


class Safety(Settings):
    """A classifier of finished images; what it flags is painted over in black, counted, and kept nowhere."""

    classifier: str = ""
    """Folder of a transformers image classifier; empty: none, since none is small enough to come with this"""
    label: str = "nsfw"
    """Of the classifier: what is not wanted"""
    threshold: float = Field(0.5, ge=0, le=1)
    """Probability of the label from which on an image is flagged"""


class DemoPageSettings(Settings):
    """A page in the browser to try a pixel model on."""

    step: ClassVar[str] = "demo_ui"
    base: Uri = "models/toy_klein"
    """Folder of the latent model, or of a merged pipeline"""
    adapter: str = Field("", validate_default=False)
    """The pixel model's: a folder, or OWNER/NAME on the hub; empty: the toy's on the toy, and none on another base"""
    device: Literal["cpu", "cuda"] = "cpu"
    host: str = "127.0.0.1"
    """Address to listen on; the default is reached from this machine only, and there is no login"""
    port: int = Field(7860, ge=0, le=65535)
    """0: any free one"""
    allowed_hosts: list[str] = []
    """Other names that the page is called by"""
    safety: Safety = Safety()

    @model_validator(mode="before")
    @classmethod
    def _adapt_the_toy(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and not tree.get("base") and not tree.get("adapter"):
            return {**tree, "adapter": "models/toy_asymflow"}
        return tree


class Resources(ModelWorkers):
    workers: int = Field(1, ge=1)
    """Each holds the model"""
    batch: int = Field(4, ge=1)
    """Images sampled together"""


class SampleSettings(StepSettings, SamplingParameterSettings):
    step: ClassVar[str] = "sample"
    base: Uri
    """Folder of the latent model, or of a merged pipeline"""
    adapter: str = ""
    """The pixel model's: a folder, s3://... or OWNER/NAME on the hub; empty: the base is merged already"""
    prompts: list[str] = Field([], validate_default=False)
    """One or a list"""
    prompt_file: str = ""
    """Instead of prompts: a .txt with one per line, or a .csv, .tsv, .json, .jsonl or .parquet"""
    prompt_column: str = added("prompt")
    """Where the file has several"""
    seeds: list[int] = Field([0], min_length=1)
    """An image a prompt and seed"""
    latent: bool = False
    """Beside each image that of the latent model, from the same noise"""
    shown: int = Field(8, ge=1)
    """Rows of the image of all"""
    provenance: Provenance = Provenance()
    safety: Safety = Safety()
    resources: Resources = Resources()

    @model_validator(mode="before")
    @classmethod
    def _read_prompts(cls, tree: Any) -> Any:
        """The prompts themselves decide what is made, wherever they were read from."""
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
            raise ValueError(f"seeds={self.seeds}: one stands there twice")
        return self

    def pairs(self) -> Sequence[tuple[int, int]]:
        """(place of the prompt, seed) of every image, in order."""
        return [(place, seed) for place in range(len(self.prompts)) for seed in self.seeds]
