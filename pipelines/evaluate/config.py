"""Settings of an evaluation."""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from pipelines.core.config import OptionalUri, Settings, StepSettings
from pipelines.core.workers import ModelWorkers
from pipelines.evaluate.scorers import Scorers
from pipelines.sample.parameters import SamplingParameterSettings

Model = Literal["latent", "lifted", "trained"]
SuiteName = Literal["demo", "classes", "coco10k", "hpsv3_benchmark", "dpg", "geneval", "imagenet50k"]
"""See `pipelines.evaluate.suites`"""


class PromptSource(Settings):
    file: OptionalUri = ""
    """The benchmark's own file (the suite says which)"""
    column: str = "prompt"
    """Where the file has several"""
    count: int | None = Field(None, ge=1)
    """Only the first of them; the results say so. Empty: all that the benchmark has"""


class Reference(Settings):
    """Real images that Fréchet distances, precision and recall compare with."""

    source: OptionalUri = ""
    """A folder of images, or an .npz of ADM's with their statistics"""


class Bootstrap(Settings):
    """Confidence intervals: prompts are drawn again, each with all its images."""

    resamples: int = Field(1000, ge=0)
    """For means over images; 0: no intervals"""
    set_resamples: int = Field(20, ge=0)
    """For distances between sets of images, which are dearer; their interval is that of a normal distribution"""
    level: float = Field(0.95, gt=0, lt=1)
    seed: int = 0


class Resources(ModelWorkers):
    """Those that draw the images."""

    workers: int = Field(1, ge=1)
    """Each holds the model"""
    batch: int = Field(4, ge=1)
    """Images sampled together"""


class EvaluateSettings(StepSettings):
    step: ClassVar[str] = "evaluate"
    inputs = {"curated": "curate", "basis": "basis", "finetuned": "finetune", "pretrained": "pretrain"}
    suite: SuiteName = "demo"
    """What is measured; classes and imagenet50k are of class-conditional models"""
    base: OptionalUri = ""
    """Folder of the latent model"""
    adapter: str = ""
    """What is evaluated: an adapter's folder, s3://... or OWNER/NAME on the hub"""
    finetuned: OptionalUri = ""
    """Or an artifact of the finetune step"""
    pretrained: OptionalUri = ""
    """Or an artifact of the pretrain step, for suites of classes"""
    pretrained_step: int | None = Field(None, ge=1)
    """Its moving average at a checkpoint that stands; empty: at the end"""
    registered: str = ""
    """Or NAME@ALIAS of MLflow's model registry"""
    pictures: OptionalUri = ""
    """Or a folder of images made elsewhere, whose names or images.csv tell which is of which prompt"""
    models: list[Model] | None = Field(None, min_length=1)
    """trained: what is evaluated; lifted: the same before training; latent: the base it was made from. Empty: as the
    suite has it"""
    curated: OptionalUri = ""
    """Artifact of the curate step: its held-out images and captions are the demo suite's"""
    basis: OptionalUri = ""
    """Artifact of the basis step, for lifted and latent models where no adapter brings its own"""
    prompts: PromptSource = PromptSource()
    images_per_prompt: int | None = Field(None, ge=1)
    """Empty: as the benchmark wants it"""
    sampling: SamplingParameterSettings = SamplingParameterSettings()
    """What is left empty is the suite's, or else the model's own"""
    reference: Reference = Reference()
    leave_out: list[str] = []
    """Scorers of the suite that are not wanted"""
    scorers: Scorers = Scorers()
    bootstrap: Bootstrap = Bootstrap()
    shown: int = Field(10, ge=1)
    """Rows of the images of images"""
    floors: dict[str, float] = {}
    """MODEL/METRIC: the job's exit status is 1 where a score is below"""
    ceilings: dict[str, float] = {}
    """The same for what should be small"""
    resources: Resources = Resources()

    @field_validator("models")
    @classmethod
    def _once(cls, value: list[Any] | None) -> list[Any] | None:
        if value and len(set(value)) != len(value):
            raise ValueError("one stands there twice")
        return value
