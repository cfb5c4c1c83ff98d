"""Settings of the export job, and the check of the names that a finetune exports under."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from asymflow.models.network import GgufType as GgufType
from pipelines.core.config import ConfigError, OptionalUri, Settings, validate
from pipelines.core.config_files import merge, read_config_file
from pipelines.core.yaml_values import ValidatedAs
from pipelines.train.finetune.config import FinetuneSettings

ExportFormat = Literal["released", "comfyui", "merged", "nf4", "fp8", "gguf"]
MERGED: tuple[str, ...] = ("merged", "nf4", "fp8", "gguf")
"""Formats that contain the base, with the adapter merged into it"""
ExportDtype = Literal["bfloat16", "float16", "float32"]

_RESERVED = re.compile(r"latest|v\d+", re.IGNORECASE)


class ExportSettings(Settings):
    """Export the moving average of a finetune as an adapter, or convert an adapter."""

    step: ClassVar[str] = "export"
    finetune: str = ""
    """Configuration file of the finetune to export; a running one is exported from a checkpoint"""
    changes: Annotated[dict[str, Any], ValidatedAs(FinetuneSettings)] = Field(default_factory=dict)
    """Settings of the finetune in place of its file's, such as its inputs"""
    checkpoint: int | None = Field(None, ge=0)
    """Step of the checkpoint to export; empty: the end of the training, or the newest checkpoint"""
    add_to_registry: bool = True
    """Register the adapter of a finetune in MLflow's model registry"""
    adapter: OptionalUri = ""
    """Adapter to convert instead, in the released format or ComfyUI's"""
    base: OptionalUri = ""
    """Folder of the latent model to merge `adapter` with; a finetune is merged with its own"""
    format: ExportFormat = "released"
    gguf: GgufType = "q8_0"
    """Type of the quantized weights with format=gguf"""
    dtype: ExportDtype | None = None
    """Data type in which base and adapter are merged; empty: the base's"""
    out: OptionalUri = ""
    """Folder to write; empty: with the run, in its storage"""

    @model_validator(mode="after")
    def _one_source(self) -> "ExportSettings":
        if bool(self.finetune) == bool(self.adapter):
            raise ValueError("give either finetune (the configuration file of a run) or adapter (a folder to convert)")
        given = {"changes": self.changes, "checkpoint": self.checkpoint is not None}
        if self.adapter and (unused := [name for name, is_given in given.items() if is_given]):
            raise ValueError(f"{unused[0]}: belongs to finetune; an adapter has none")
        if self.adapter and not self.out:
            raise ValueError("out: missing, the folder or s3:// URI to write to")
        if self.adapter and self.format in MERGED and not self.base:
            raise ValueError("base: missing, the folder of the latent model that the adapter was made for")
        return self

    def load_finetune(self) -> FinetuneSettings | None:
        """Return the settings of the finetune, or None for an adapter. Raises ConfigError."""
        if not self.finetune:
            return None
        tree = merge(read_config_file(self.finetune, FinetuneSettings.step), self.changes)
        try:
            return validate(FinetuneSettings, tree)
        except ConfigError as error:
            raise ConfigError(f"finetune={self.finetune!r} with changes: {error}") from None


def check_export(settings: FinetuneSettings) -> None:
    """Check names that MLflow would refuse after days of training. Raises ConfigError."""
    name, alias = model_name(settings), settings.export.alias
    if set("/:") & set(name):
        raise ConfigError(f"export.model_name={name!r}: a name in MLflow's registry has no '/' or ':'")
    if _RESERVED.fullmatch(alias):
        raise ConfigError(f"export.alias={alias!r}: MLflow reserves `latest` and `v1`, `v2`, ...; use another")


def model_name(settings: FinetuneSettings) -> str:
    """Return the model's name in MLflow's registry."""
    return settings.export.model_name or settings.run.experiment
