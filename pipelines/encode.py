"""Encode: curated pictures to latent tokens and text embeddings, row for row, so that training loads no encoder.

Each output file has the name, the rows and the order of a curated file. Numbers are bf16, stored as raw bytes;
text embeddings are stored without padding.
"""

from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import torch
from diffusers import AutoencoderKLFlux2
from pydantic import Field
from safetensors.torch import load, save
from torch import Tensor
from transformers import AutoTokenizer, Qwen3ForCausalLM

from asymflow.models.autoencoder import encode_images
from asymflow.models.text import encode_captions
from pipelines import storage
from pipelines.artifacts import Artifact
from pipelines.config import Uri
from pipelines.datasets import RowWriter, read_images
from pipelines.models import check_base
from pipelines.shards import ModelWorkers, by_name, map_items
from pipelines.steps import Context, Step, StepSettings

SCHEMA = pa.schema({"key": pa.string(), "latents": pa.binary(), "text": pa.binary(), "text_tokens": pa.int32()})
UNCONDITIONAL = "unconditional.safetensors"


class EncodeSettings(StepSettings):
    curated: Uri
    """Artifact of the curate step"""
    base: Uri
    """Folder of the latent model, a diffusers pipeline; its vae, text_encoder and tokenizer are used"""
    max_text_tokens: int = Field(512, ge=1)
    resources: ModelWorkers = ModelWorkers()


def check(settings: EncodeSettings) -> None:
    check_base(settings.base, ("vae", "text_encoder", "tokenizer"))


def to_bf16_bytes(values: Tensor) -> bytes:
    return values.to(torch.bfloat16).contiguous().cpu().view(torch.uint8).numpy().tobytes()


def from_bf16_bytes(data: bytes, width: int) -> Tensor:
    """(N, width) float32."""
    return torch.frombuffer(bytearray(data), dtype=torch.bfloat16).view(-1, width).float()


class ShardEncoder:
    """One curated file to `SPLIT/NAME.parquet`; see `map_items`."""

    def __init__(self, settings: EncodeSettings, folder: str):
        self.settings, self.folder = settings, folder
        self.device = settings.resources.device
        self.autoencoder = AutoencoderKLFlux2.from_pretrained(settings.base, subfolder="vae").to(self.device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(settings.base, subfolder="tokenizer")
        text_encoder = Qwen3ForCausalLM.from_pretrained(settings.base, subfolder="text_encoder", dtype=torch.float32)
        self.text_encoder = text_encoder.to(self.device).eval()

    def encode_text(self, captions: list[str]) -> list[Tensor]:
        return encode_captions(self.text_encoder, self.tokenizer, captions, self.settings.max_text_tokens)

    def __call__(self, shard: str) -> dict[str, Any]:
        path = PurePosixPath(shard)
        counts = {"rows": 0, "text_tokens": 0}

        def write(local) -> None:
            with RowWriter(local, SCHEMA) as writer:
                for rows in read_images(shard):
                    latents = encode_images(self.autoencoder, rows.images.to(self.device))
                    text = self.encode_text(rows.captions)
                    for key, z_0, embedding in zip(rows.keys, latents, text, strict=True):
                        writer.add(
                            {
                                "key": key,
                                "latents": to_bf16_bytes(z_0),
                                "text": to_bf16_bytes(embedding),
                                "text_tokens": len(embedding),
                            }
                        )
                        counts["rows"] += 1
                        counts["text_tokens"] += len(embedding)

        storage.write_file(storage.join(self.folder, path.parent.name, path.name), write)
        unconditional = storage.join(self.folder, UNCONDITIONAL)
        if not storage.exists(unconditional):  # every actor would write the same
            empty = self.encode_text([""])[0].cpu().contiguous()
            latent_width = torch.tensor(4 * self.autoencoder.config.latent_channels)
            storage.write_bytes(unconditional, save({"text": empty, "latent_width": latent_width}))
        return counts


def build(settings: EncodeSettings, context: Context) -> dict[str, float]:
    curated = context.inputs["curated"]
    files = by_name(curated.files("train", ".parquet") + curated.files("held_out", ".parquet"))
    make_worker = partial(ShardEncoder, settings, context.folder)
    rows = tokens = 0
    for summary in map_items(files, make_worker, context.folder, settings.resources):
        rows, tokens = rows + summary["rows"], tokens + summary["text_tokens"]
    return {"pictures": rows, "text_tokens_mean": tokens / rows}


def load_unconditional(artifact: Artifact) -> tuple[Tensor, int]:
    """The embedding (T, E) of the empty caption, and the width of a latent token."""
    tensors = load(storage.read_bytes(artifact.file(UNCONDITIONAL)))
    return tensors["text"].float(), int(tensors["latent_width"])


STEP = Step("encode", EncodeSettings, build, inputs={"curated": "curate"}, check=check, contents=("base",))
