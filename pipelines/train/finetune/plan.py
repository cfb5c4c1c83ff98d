"""Plan of a finetune: trained values, memory and time from shapes alone, without weights, data, Ray or GPU."""

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from asymflow.models.latent import backbone_of_config, published_model
from pipelines.core.artifacts import MissingArtifact, load_artifact
from pipelines.core.config import ConfigError, read_json_setting
from pipelines.core.storage import StorageError
from pipelines.train.devices import BYTES, Device, device_of, precision_name
from pipelines.train.finetune.config import FinetuneSettings
from pipelines.train.finetune.flops import ImageFlops, check_model, image_flops
from pipelines.train.finetune.memory import (
    FLOAT32,
    QUANTIZED_BYTES,
    Values,
    activation_memory,
    plan_values,
    static_memory,
)
from pipelines.train.sample_order import slots_per_worker

GIB = 2**30
BUCKETS, TEXT_TOKENS = [(1024, 1024)], 512
"""Sizes (width, height) and text tokens of the paper, for inputs that cannot be read"""
UTILIZATION = 0.45
PAPER = "the paper: 1,100 H100 hours, 15,000 steps of 256"
READING_SECONDS = 10
"""Time limit for reading an input's manifest"""


@dataclass(frozen=True)
class Plan:
    """Computes a finetune's size, memory and time; see `table` and `metrics`."""

    settings: FinetuneSettings
    geometry: str
    """Source of the transformer's shapes"""
    config: Mapping[str, Any]
    values: Values
    basis: int
    """Numbers in A and s, which the adapter's file also contains"""
    buckets: list[tuple[int, int]]
    buckets_from: str
    text_tokens: int
    text_from: str
    device: Device

    @property
    def image_tokens(self) -> int:
        """Return the image tokens of the largest bucket, for which memory and time are computed."""
        side = self.settings.pixels.patch_size
        return max(width // side * (height // side) for width, height in self.buckets)

    @property
    def slots(self) -> int:
        """Return the images per worker and step."""
        return slots_per_worker(self.settings.optim.batch, self.settings.resources.workers, self.micro_batch)

    @property
    def micro_batch(self) -> int:
        """Return the images per worker and forward pass."""
        resources = self.settings.resources
        return resources.micro_batch or -(-self.settings.optim.batch // resources.workers)

    @cached_property
    def memory(self) -> dict[str, float]:
        """Return the bytes of one worker, by part."""
        shapes = (self.image_tokens, self.text_tokens, self.micro_batch)
        return {
            **static_memory(self.settings, self.values),
            **activation_memory(self.settings, self.config, self.values, *shapes),
        }

    @cached_property
    def flops(self) -> ImageFlops:
        """Return the FLOPs per image."""
        return image_flops(self.settings, self.config, self.image_tokens, self.text_tokens)

    @property
    def seconds_per_step(self) -> float | None:
        """Return the seconds per step at UTILIZATION; None if the device's peak is unknown."""
        if self.device.tflops is None:
            return None
        return self.slots * self.flops.model / (1e12 * self.device.tflops * UTILIZATION)

    @property
    def metrics(self) -> dict[str, float]:
        """Return the numbers for the command's JSON line."""
        batch, seconds = self.settings.optim.batch, self.seconds_per_step
        return {
            "trained_values": self.values.total_trained,
            "adapter_values": self.values.total_trained + self.basis,
            "memory_gib": sum(self.memory.values()) / GIB,
            "tflop_a_step": batch * self.flops.model / 1e12,
            "tokens_a_step": batch * (self.image_tokens + self.text_tokens),
            **({} if seconds is None else {"seconds_a_step": seconds}),
        }

    def table(self) -> str:
        """Return the plan as a table for the terminal."""
        sections = [self._model(), self._data(), self._memory(), self._compute()]
        return "\n\n".join("\n".join(_line(*row) for row in section) for section in sections)

    def _model(self) -> list[tuple[str, str, str]]:
        values, groups = self.values, trained_groups(self.values, self.config)
        size = 8 * BYTES[precision_name(self.settings.resources)]
        total = values.total_trained + self.basis
        note = f"{total / 1e6:,.1f}M, with A and s as in the adapter's file: {total:,}" if self.basis else ""
        return [
            (f"model: {self.settings.model}, loss: {self.settings.loss.kind}", "values", ""),
            ("shapes", "", self.geometry),
            ("frozen base", f"{values.base:,}", self._stored(size)),
            ("original first and last layers", f"{values.original:,}", f"in {size} bits, for the frozen teacher"),
            *((f"trained: {name}", f"{number:,}", "") for name, number in groups.items()),
            ("trained in total", f"{values.total_trained:,}", note),
            ("checkpoint", f"{4 * FLOAT32 * values.total_trained / GIB:.2f} GiB", "values, average and two moments")
            if self.settings.optim.optimizer == "adam"
            else ("checkpoint", f"{10 * values.total_trained / GIB:.2f} GiB", "values, average and 8-bit moments"),
        ]

    def _stored(self, size: int) -> str:
        if not (scheme := self.settings.base_quantization):
            return f"in {size} bits"
        quantized, base = self.values.quantizable, self.values.base
        bits = f"{8 * QUANTIZED_BYTES[scheme]:.2f} bits per value" + (" with scales" if scheme == "nf4" else "")
        return f"{quantized:,} in {scheme.upper()}, {bits}; {base - quantized:,} in {size} bits"

    def _data(self) -> list[tuple[str, str, str]]:
        settings, resources = self.settings, self.settings.resources
        side = settings.pixels.patch_size
        sizes = ", ".join(f"{w}x{h}: {w // side * (h // side):,}" for w, h in self.buckets)
        padding = resources.workers * self.slots - settings.optim.batch
        return [
            ("data", "", ""),
            ("image tokens", f"{self.image_tokens:,}", f"{sizes}; {self.buckets_from}"),
            ("text tokens, at most", f"{self.text_tokens:,}", self.text_from),
            ("tokens per step", f"{self.metrics['tokens_a_step']:,}", ""),
            (
                "images per step",
                f"{settings.optim.batch:,}",
                f"{resources.workers} workers x {self.slots // self.micro_batch} micro-batches of {self.micro_batch}"
                + (f", {padding} of them padding" if padding else ", no padding"),
            ),
        ]

    def _memory(self) -> list[tuple[str, str, str]]:
        resources, total = self.settings.resources, sum(self.memory.values())
        scheme = self.settings.base_quantization
        checkpointed = "gradient checkpointing: block inputs and one block"
        kept = checkpointed if resources.gradient_checkpointing else "all blocks"
        notes = {
            "base weights": f"frozen linear layers in {scheme.upper()}" if scheme else "",
            "optimizer": "8-bit moments" if self.settings.optim.optimizer == "adam8bit" else "float32 moments",
            "activations of the transformer": f"{self.micro_batch} at once; {kept}; uncompiled",
            "buckets of gradients": "5e8 values each, DeepSpeed's default; float32",
            "moving average": "whole on each worker",
        }
        rows = [
            (f"memory of a worker, ZeRO {resources.zero_stage}", "GiB", ""),
            *((name, f"{size / GIB:.2f}", notes.get(name, "")) for name, size in self.memory.items()),
            ("total", f"{total / GIB:.2f}", "activations estimated, not yet measured on a GPU"),
            ("not counted", "", "CUDA context, workspaces, fragmentation"),
        ]
        if not self.device.gib:
            return rows
        left = self.device.gib - total / GIB
        fits = "fits" if left > 0 else "DOES NOT FIT"
        return [*rows, ("left", f"{left:.2f}", f"{fits} in {self.device.gib:.0f} GiB: {self.device.name}")]

    def _compute(self) -> list[tuple[str, str, str]]:
        flops, settings = self.flops, self.settings
        batch, workers = settings.optim.batch, settings.resources.workers
        executed = workers * self.slots * flops.executed
        parts = {
            "student, forward": flops.student.forward,
            "student, backward": flops.student.backward,
            "teacher, forward": flops.teacher,
            "perceptual network": flops.perceptual,
        }
        rows = [
            ("operations", "TFLOP", ""),
            *((f"per image: {name}", f"{n / 1e12:,.1f}", "") for name, n in parts.items() if n),
            ("per step, for MFU", f"{batch * flops.model / 1e12:,.0f}", "operations of the method"),
            ("per step, executed (HFU)", f"{executed / 1e12:,.0f}", "with recomputation and padding"),
        ]
        seconds, steps = self.seconds_per_step, settings.optim.steps
        if seconds is None:
            note = f"the peak of {self.device.name} is unknown; set resources.peak_tflops"
            return [*rows, ("seconds per step", "?", note)]
        at = f"at {UTILIZATION:.0%} MFU of {self.device.tflops:,.0f} TFLOP/s ({self.device.name}), assumed"
        hours = seconds * steps / 3600
        return [
            *rows,
            ("seconds per step", f"{seconds:,.2f}", at),
            (f"hours, {steps:,} steps", f"{hours:,.1f}", f"{hours * workers:,.0f} worker hours; {PAPER}"),
        ]


def plan(settings: FinetuneSettings) -> Plan:
    """Return the plan of these settings.

    Raises:
        ConfigError: the base's transformer cannot be read, or does not fit the settings.
    """
    config, geometry = _geometry(settings.base)
    backbone = backbone_of_config(config)
    check_model(settings, config)
    patch_dim, rank = 3 * settings.pixels.patch_size**2, backbone.token_width(config)
    if rank > patch_dim:
        raise ConfigError(f"pixels.patch_size={settings.pixels.patch_size}: {patch_dim} values, fewer than {rank}")
    curated, buckets_from = _manifest(settings.curated, "curate")
    encoded, text_from = _manifest(settings.encoded, "encode")
    return Plan(
        settings=settings,
        geometry=geometry,
        config=config,
        values=plan_values(settings, config),
        basis=patch_dim * rank + 1 if settings.model == "asymflow" else 0,
        buckets=[tuple(size) for size in curated["buckets"]] if curated else BUCKETS,  # type: ignore[misc]
        buckets_from=buckets_from,
        text_tokens=encoded["max_text_tokens"] if encoded else TEXT_TOKENS,
        text_from=text_from,
        device=device_of(settings.resources),
    )


def print_plan(settings: FinetuneSettings) -> dict[str, float]:
    """Print the table. Returns the numbers."""
    planned = plan(settings)
    print(planned.table())
    return planned.metrics


def trained_groups(values: Values, config: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of trained values by part of the model; `config` is that of the latent transformer."""
    block_names = backbone_of_config(config).block_names
    groups: dict[str, int] = {}
    for name, number in values.trained.items():
        group = _group(name, block_names)
        groups[group] = groups.get(group, 0) + number
    return groups


def _group(name: str, block_names: Mapping[str, str]) -> str:
    name = name.removeprefix("transformer.")
    part = name.split(".")[0]
    if ".lora_" in name:
        return f"LoRA, {block_names.get(part, 'time embedding')}"
    return {"head": "DDT head", **block_names}.get(part, part)


def _geometry(base: str) -> tuple[dict[str, Any], str]:
    file = Path(base) / "transformer" / "config.json"
    if not Path(base).is_dir():
        published = published_model(base)
        return dict(published.config), f"published shapes of {published.name}: {base} does not exist"
    if not file.is_file():
        raise ConfigError(f"base={base!r}: no transformer/config.json: it is not a complete diffusers pipeline")
    config = read_json_setting(file, f"base={base!r}")
    try:
        backbone = backbone_of_config(config)
    except ValueError as error:
        raise ConfigError(f"base={base!r}: {error}") from None
    if any(name not in config for name in ("in_channels", *backbone.adapter_keys)):
        config = backbone.complete(config)  # only hand-written configurations leave keys out
    return config, str(file)


def _manifest(uri: str, step: str) -> tuple[dict[str, Any] | None, str]:
    """Return the settings of an artifact if it can be read, and a note on their source."""
    found: list[dict[str, Any]] = []

    def read() -> None:
        with suppress(MissingArtifact, StorageError, OSError):  # the plan notes what it assumes instead
            found.append(load_artifact(uri, step).manifest["config"])

    thread = threading.Thread(target=read, daemon=True)  # does not block the end of the process
    thread.start()
    thread.join(READING_SECONDS)
    return (found[0], f"from {uri}") if found else (None, f"ASSUMED: {uri} cannot be read")


def _line(name: str, number: str, note: str) -> str:
    return f"{name:37}{number:>15}   {note}".rstrip()
