"""Settings of experiments over many steps: workflow, sweeps, rank sweep, time to quality, peers and report."""

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from pipelines.core.config import OptionalUri, RunSettings, Settings, Uri
from pipelines.core.yaml_values import ValidatedAs
from pipelines.data.basis.config import BasisSettings
from pipelines.data.config import CaptionSettings, ColorStatsSettings, EncodeSettings
from pipelines.data.curate.config import CurateSettings
from pipelines.evaluate.config import EvaluateSettings
from pipelines.sample.config import DemoPageSettings, SampleSettings
from pipelines.toy.config import DemoDataSettings, ToyBaseSettings, ToyEncoderSettings
from pipelines.train.finetune.config import FinetuneSettings
from pipelines.train.finetune.export_config import ExportSettings
from pipelines.train.pretrain.config import ImportJitSettings, PretrainSettings, Repa


class WorkflowSettings(Settings):
    """One section per step, with its settings except `run`, `base` and its inputs, which are filled in.

    The inputs make the sections a graph: independent steps run at the same time, as far as the cluster has the
    resources that they declare.
    """

    step: ClassVar[str] = "workflow"
    name: str = "workflow"
    run: RunSettings = RunSettings()
    base: Uri
    """Folder of the latent model, a diffusers pipeline"""
    curate: Annotated[dict[str, Any], ValidatedAs(CurateSettings)] = Field(default_factory=dict)
    caption: Annotated[dict[str, Any] | None, ValidatedAs(CaptionSettings)] = None
    """Skipped unless given: the images keep the captions of the shards"""
    color_stats: Annotated[dict[str, Any] | None, ValidatedAs(ColorStatsSettings)] = Field(default_factory=dict)
    """null skips it, for a basis whose color space is not measured"""
    basis: Annotated[dict[str, Any], ValidatedAs(BasisSettings)] = Field(default_factory=dict)
    encode: Annotated[dict[str, Any], ValidatedAs(EncodeSettings)] = Field(default_factory=dict)
    finetune: Annotated[dict[str, Any], ValidatedAs(FinetuneSettings)] = Field(default_factory=dict)
    evaluate: Annotated[dict[str, Any], ValidatedAs(EvaluateSettings)] = Field(default_factory=dict)
    evaluations: dict[Annotated[str, Field(pattern=r"^\w+$")], dict[str, Any]] = {}
    """{name: settings} of further evaluations of the same finetune, such as other suites"""


class Search(Settings):
    """Coarse-to-fine search of the guidance's scale and interval.

    A grid with wide steps is followed by moves from its best point to better neighbors; steps are halved if there is
    none.
    """

    scale: tuple[float, float] = (1.0, 4.0)
    """Minimum and maximum"""
    low: tuple[float, float] = (0.0, 0.4)
    """Lower end of the interval, minimum and maximum"""
    high: tuple[float, float] = (0.6, 1.0)
    """Upper end of the interval, minimum and maximum"""
    coarse: int = Field(8, ge=1)
    """First step, in units of 0.1 of scale and 0.02 of noise level"""

    @model_validator(mode="after")
    def _ordered(self) -> "Search":
        for name in ("scale", "low", "high"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"{name}={(low, high)}: must be two numbers, the lower one first")
        if self.scale[0] < 1 or self.high[1] > 1:
            raise ValueError("scale must not be below 1, nor high above 1")
        return self


class SweepSettings(Settings):
    """Settings of a sweep of evaluations."""

    step: ClassVar[str] = "sweep"
    run: RunSettings = RunSettings()
    evaluate: Annotated[dict[str, Any], ValidatedAs(EvaluateSettings)]
    """Settings of the evaluation, except `run`"""
    metric: str
    """MODEL/METRIC that determines the best point"""
    grid: dict[str, list[Any]] = {}
    """{dotted.key of the evaluation: its values}: every combination is evaluated"""
    search: Search | None = None
    """Or a search for the best guidance"""

    @model_validator(mode="after")
    def _one_of_two(self) -> "SweepSettings":
        if bool(self.grid) == (self.search is not None):
            raise ValueError("grid, search: give one of the two")
        empty = [key for key, values in self.grid.items() if not values]
        if empty:
            raise ValueError(f"grid.{empty[0]}: has no values")
        return self


class Repas(Settings):
    """Representation alignment (REPA), compared with the same ranks without."""

    ranks: list[int] = Field([8], min_length=1)
    settings: Repa


class Curve(Settings):
    """Figure 6: earlier checkpoints, which `pretrain.checkpoints.keep_every` must keep."""

    ranks: list[int] = [0, 8]
    steps: list[int] = Field([], min_length=0)


class Floors(Settings):
    """Table 1: floors of sigma in sampling."""

    ranks: list[int] = [0, 8]
    floors: list[float] = [0.04, 0.0]
    changes: dict[str, Any] = {}
    """{dotted.key: value} of the evaluation, for all floors"""


class RankSweepSettings(Settings):
    """Settings of the rank sweep (Sec. 6.1)."""

    step: ClassVar[str] = "rank_sweep"
    run: RunSettings = RunSettings()
    pretrain: Annotated[dict[str, Any], ValidatedAs(PretrainSettings)]
    """Settings of the training, except `run`, `seed` and `subspace`"""
    evaluate: Annotated[dict[str, Any], ValidatedAs(EvaluateSettings)]
    """Settings of the evaluation, except `run` and `pretrained`"""
    metric: str = "frechet"
    """Metric of the suite to plot"""
    ranks: list[int] = Field([0, 2, 4, 8, 16, 32, 768], min_length=1)
    random_ranks: list[int] = [8]
    """Ranks of random subspaces"""
    repa: Repas | None = None
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    floors: Floors = Floors()
    curve: Curve = Curve()
    guidance: dict[int, tuple[float, float, float]] = {}
    """{rank: scale, and both ends of the interval} if they differ from the evaluation's (Table 5)"""
    random_guidance: dict[int, tuple[float, float, float]] = {}
    """The same for random subspaces"""

    @model_validator(mode="after")
    def _within(self) -> "RankSweepSettings":
        for name, ranks in {"floors": self.floors.ranks, "curve": self.curve.ranks}.items():
            if odd := sorted(set(ranks) - set(self.ranks)):
                raise ValueError(f"{name}.ranks={ranks}: {odd[0]} is not among `ranks`")
        return self


class TimeToQualitySettings(Settings):
    """Settings of the time-to-quality experiment."""

    step: ClassVar[str] = "time_to_quality"
    run: RunSettings = RunSettings()
    finetuned: dict[str, Uri] = Field(min_length=1)
    """{label: artifact of the finetune step}; `checkpoints.keep_every` keeps the checkpoints to evaluate"""
    evaluate: Annotated[dict[str, Any], ValidatedAs(EvaluateSettings)]
    """Settings of the evaluations, except `run`, `adapter` and `models`; `base` defaults to the finetune's"""
    metrics: list[str] = Field(
        ["sliced_wasserstein", "sliced_wasserstein_high_pass", "spectrum", "imagenet_frechet"], min_length=1
    )
    """Distances of the suite"""


class PeerMethod(Settings):
    """One of the compared trainings."""

    config: str
    """Configuration file of its finetune"""
    changes: dict[str, Any] = {}
    """Sections and settings that replace those of the file, and of the experiment's `changes`"""


class PeersSettings(Settings):
    """Settings of a comparison of finetunes of several kinds."""

    step: ClassVar[str] = "peers"
    run: RunSettings = RunSettings()
    methods: dict[str, PeerMethod] = Field(min_length=2)
    """{label: training}; the others are compared with the first"""
    changes: dict[str, Any] = {}
    """Sections and settings of the finetune that replace those of all files. `checkpoints.keep_every` keeps the
    checkpoints among which that of equal time is selected"""
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    """Seeds of the trainings"""
    evaluate: Annotated[dict[str, Any], ValidatedAs(EvaluateSettings)]
    """Settings of the evaluations, except `run`, `adapter` and `models`; `base` and `basis` default to those of the
    finetune"""
    metrics: list[str] = Field(
        ["sliced_wasserstein", "sliced_wasserstein_high_pass", "spectrum", "imagenet_frechet"], min_length=1
    )
    """Distances of the suite"""


class ReportSettings(Settings):
    """Compare evaluations on one self-contained HTML page, with the paper's Tables 3 and 4 marked as quoted."""

    step: ClassVar[str] = "report"
    out: Uri
    """HTML file to write"""
    evaluations: dict[str, Uri] = Field(min_length=1)
    """{label: artifact of the evaluate step, or the ID of its MLflow run}"""
    workflow: OptionalUri = ""
    """ID of a workflow's MLflow run, or its folder in the storage: the page shows its steps with their times"""
    tracking_uri: str = ""
    """MLflow server or database of the runs; empty: MLFLOW_TRACKING_URI"""


SETTINGS: dict[str, type[Settings]] = {
    settings.step: settings
    for settings in (
        CurateSettings, CaptionSettings, ColorStatsSettings, BasisSettings, EncodeSettings, FinetuneSettings,
        PretrainSettings, SampleSettings, EvaluateSettings, WorkflowSettings, SweepSettings, RankSweepSettings,
        TimeToQualitySettings, PeersSettings, ReportSettings, ExportSettings, DemoPageSettings, ImportJitSettings,
        DemoDataSettings, ToyBaseSettings, ToyEncoderSettings,
    )
}  # fmt: skip
"""By step: all jobs that read a configuration file"""
