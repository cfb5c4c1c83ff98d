"""Settings of the steps caption, color_stats and encode."""

from typing import ClassVar, Literal

from pydantic import Field

from pipelines.core.config import OptionalUri, Settings, StepSettings, Uri, added
from pipelines.core.workers import ModelWorkers, Workers

CAPTION_PROMPT = (
    "Describe this picture in one dense, factual paragraph of at most 150 words: the subjects and their attributes, "
    "how many there are, where they are in relation to each other, the background, any legible text in quotation "
    "marks, the style or medium, and the light. State only what can be seen. Begin with the subject itself, without "
    'an opening like "The image shows".'
)
MIN_CAPTION_PIXELS = 56 * 56
"""Qwen2.5-VL enlarges smaller images to this size"""


class CaptionWorkers(ModelWorkers):
    """Actors that each hold a captioning model."""

    batch_pixels: int = Field(16 << 20, ge=1)
    """Pixels per batch, counted at the vision tower's input; a batch has at least one image. Lower it if a GPU runs out
    of memory; finished batches are kept"""


class CaptionSettings(StepSettings):
    """Write captions of the curated images with Qwen2.5-VL."""

    step: ClassVar[str] = "caption"
    inputs = {"curated": "curate"}
    curated: Uri
    """Artifact of the curate step"""
    model: Uri
    """Local folder of a Qwen2.5-VL model"""
    backend: Literal["transformers", "vllm"] = "transformers"
    """vllm is much faster, needs whole GPUs, and is installed with `pip install 'asymflow[vllm]'`"""
    prompt: str = Field(CAPTION_PROMPT, min_length=1)
    """Instruction to the model, the same for every image"""
    max_new_tokens: int = Field(320, ge=1)
    """Token limit of a caption; a longer one is cut after its last complete sentence"""
    max_pixels: int = Field(1280 * 28 * 28, ge=MIN_CAPTION_PIXELS)
    """Larger images are downscaled for the vision tower; 28 x 28 pixels are one token"""
    resources: CaptionWorkers = CaptionWorkers()


class ColorStatsSettings(StepSettings):
    """Measure the Oklab mean and standard deviation of the curated images."""

    step: ClassVar[str] = "color_stats"
    inputs = {"curated": "curate"}
    curated: Uri
    """Artifact of the curate step"""
    resources: Workers = Workers()


class EncodeResources(Settings):
    """Two pools of actors, which run one after the other."""

    latents: ModelWorkers = ModelWorkers()
    text: ModelWorkers = ModelWorkers()


class EncodeSettings(StepSettings):
    """Encode the curated images to latent tokens and their captions to text embeddings."""

    step: ClassVar[str] = "encode"
    inputs = {"curated": "curate", "captions": "caption"}
    curated: Uri
    """Artifact of the curate step"""
    captions: OptionalUri = ""
    """Artifact of the caption step; empty: the captions in the curated artifact"""
    base: Uri
    """Folder of the latent model, a diffusers pipeline, whose image and text encoders are used"""
    max_text_tokens: int = Field(512, ge=1)
    """Longer captions are truncated"""
    text_padding: Literal["none", "max_length"] = added("none")
    """max_length: every caption is padded to max_text_tokens and the model attends to the padding, as FLUX.2 klein was
    trained; with text=stored this takes 12.6 MB per caption of the 9B model"""
    latents: Literal["stored", "on_the_fly"] = "stored"
    """on_the_fly: no latents are stored; the curated images are encoded during training"""
    text: Literal["stored", "on_the_fly"] = "stored"
    """on_the_fly: only captions are stored, and encoded during training; embeddings of 3M long ones take many
    terabytes"""
    resources: EncodeResources = EncodeResources()
