"""Settings of the jobs that make the demo's images and its tiny models."""

from typing import ClassVar

from pydantic import Field

from pipelines.core.config import Settings, Uri


class DemoDataSettings(Settings):
    """Settings of the job that makes the demo's images."""

    step: ClassVar[str] = "make_demo_data"
    folder: Uri = "data/demo"
    """Where the shards are written, local or s3://"""
    photos: int = Field(1600, ge=0)
    """Crops of photographs"""
    edits: int = Field(0, ge=0, le=56)
    """Edits of each emoji, from one ground to another, with `on pink` and so on as the instruction: key.source.jpg
    beside key.jpg"""
    seed: int = 0


class Steps(Settings):
    """Optimizer steps of each part. The defaults are the shipped weights': about an hour and a quarter on two cores."""

    autoencoder: int = Field(1200, ge=1)
    text_encoder: int = Field(800, ge=1)
    flow_half_size: int = Field(1400, ge=1)
    """On images of half the side"""
    flow: int = Field(2000, ge=1)
    backbone: int = Field(2000, ge=1)


class ToyBaseSettings(Settings):
    """Settings of the job that trains the toy base model."""

    step: ClassVar[str] = "make_toy_base"
    data: Uri = "data/demo"
    """Folder written by make_demo_data"""
    work: str = Field("runs/toy_base", min_length=1)
    """Local folder of checkpoints, logs and samples"""
    out: str = Field("models/toy_klein", min_length=1)
    """The pipeline folder to write"""
    steps: Steps = Steps()


class ToyEncoderSettings(Settings):
    """Settings of the job that trains the toy DINOv2."""

    step: ClassVar[str] = "make_toy_encoder"
    data: Uri = "data/demo"
    """Folder written by make_demo_data"""
    work: str = Field("runs/toy_base", min_length=1)
    """Local folder of checkpoints and logs"""
    out: str = Field("models/toy_dinov2", min_length=1)
    """The folder to write"""
    steps: int = Field(3000, ge=1)
    """Optimizer steps"""
