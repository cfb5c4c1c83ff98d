"""Settings of an evaluation."""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from pipelines.core.config import OptionalUri, Settings, StepSettings
from pipelines.core.workers import ModelWorkers
from pipelines.evaluate.scorers import Scorers
from pipelines.sample.parameters import SamplingParameterSettings

Model = Literal["latent", "lifted", "trained"]
SuiteName = Literal[
    "demo", "classes", "coco10k", "hpsv3_benchmark", "dpg", "geneval", "imagenet50k",
    "geneval2", "questions", "preference", "longtext_en", "longtext_zh", "unigenbench", "oneig_alignment",
]  # fmt: skip
"""See `pipelines.evaluate.suites`"""


class PromptSource(Settings):
    """File of a suite's prompts."""

    file: OptionalUri = ""
    """The benchmark's own file (the suite says which)"""
    column: str = "prompt"
    """Column of the prompts, for files with columns"""
    count: int | None = Field(None, ge=1)
    """Use only the first prompts, which the results note. Empty: all of the benchmark"""


class Reference(Settings):
    """Real images for Fréchet distances, precision and recall."""

    source: OptionalUri = ""
    """A folder of images, or an .npz of ADM's with their statistics"""


class Bootstrap(Settings):
    """Confidence intervals: prompts are resampled with replacement, each with all its images."""

    resamples: int = Field(1000, ge=0)
    """For means over images; 0: no intervals"""
    set_resamples: int = Field(20, ge=0)
    """For distances between sets of images, which are more expensive; their interval assumes a normal distribution"""
    level: float = Field(0.95, gt=0, lt=1)
    seed: int = 0


class Resources(ModelWorkers):
    """Workers that sample the images."""

    workers: int = Field(1, ge=1)
    """Each loads the model"""
    batch: int = Field(4, ge=1)
    """Images sampled together"""


class EvaluateSettings(StepSettings):
    """Settings of the evaluate step."""

    step: ClassVar[str] = "evaluate"
    inputs = {"curated": "curate", "basis": "basis", "finetuned": "finetune", "pretrained": "pretrain"}
    suite: SuiteName = "demo"
    """Suite to evaluate; classes and imagenet50k are for class-conditional models"""
    base: OptionalUri = ""
    """Folder of the latent model"""
    adapter: str = ""
    """Evaluated adapter: a folder, s3://... or OWNER/NAME on the hub"""
    finetuned: OptionalUri = ""
    """Or an artifact of the finetune step"""
    pretrained: OptionalUri = ""
    """Or an artifact of the pretrain step, for class-conditional suites"""
    pretrained_step: int | None = Field(None, ge=1)
    """Its moving average at a checkpoint; empty: at the end"""
    registered: str = ""
    """Or NAME@ALIAS in MLflow's model registry"""
    pictures: OptionalUri = ""
    """Or a folder of images made elsewhere, matched with prompts by file names or images.csv"""
    models: list[Model] | None = Field(None, min_length=1)
    """trained: the evaluated model; lifted: the same before training; latent: its base. Empty: the suite's default"""
    curated: OptionalUri = ""
    """Artifact of the curate step, for suites on held-out images and captions"""
    basis: OptionalUri = ""
    """Artifact of the basis step, for lifted and latent models whose adapter has no subspace"""
    prompts: PromptSource = PromptSource()
    images_per_prompt: int | None = Field(None, ge=1)
    """Empty: the benchmark's default"""
    sampling: SamplingParameterSettings = SamplingParameterSettings()
    """Empty values are the suite's, or else the model's defaults"""
    reference: Reference = Reference()
    leave_out: list[str] = []
    """Scorers of the suite to skip"""
    scorers: Scorers = Scorers()
    bootstrap: Bootstrap = Bootstrap()
    shown: int = Field(10, ge=1)
    """Rows of the image grids"""
    floors: dict[str, float] = {}
    """MODEL/METRIC: the job fails with exit status 1 if a score is below"""
    ceilings: dict[str, float] = {}
    """The same for scores that should be small"""
    resources: Resources = Resources()

    @field_validator("models")
    @classmethod
    def _once(cls, value: list[Any] | None) -> list[Any] | None:
        if value and len(set(value)) != len(value):
            raise ValueError("a model is given twice")
        return value
