"""Settings of the steps that are one module each: caption, color_stats and encode."""

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
"""What Qwen2.5-VL enlarges smaller pictures to"""


class CaptionWorkers(ModelWorkers):
    batch_pixels: int = Field(16 << 20, ge=1)
    """Pixels of the pictures captioned together, as the vision tower sees them, and one picture at least; lower it
    where a GPU runs out of memory: what is finished stays"""


class CaptionSettings(StepSettings):
    step: ClassVar[str] = "caption"
    inputs = {"curated": "curate"}
    curated: Uri
    """Artifact of the curate step"""
    model: Uri
    """Local folder of a Qwen2.5-VL model"""
    backend: Literal["transformers", "vllm"] = "transformers"
    """vllm is much faster, needs whole GPUs, and is installed with `pip install 'asymflow[vllm]'`"""
    prompt: str = Field(CAPTION_PROMPT, min_length=1)
    """What is asked about each picture"""
    max_new_tokens: int = Field(320, ge=1)
    """A longer caption is cut after its last whole sentence"""
    max_pixels: int = Field(1280 * 28 * 28, ge=MIN_CAPTION_PIXELS)
    """Larger pictures are made smaller for the vision tower; 28 x 28 pixels are one token"""
    resources: CaptionWorkers = CaptionWorkers()


class ColorStatsSettings(StepSettings):
    step: ClassVar[str] = "color_stats"
    inputs = {"curated": "curate"}
    curated: Uri
    """Artifact of the curate step"""
    resources: Workers = Workers()


class EncodeResources(Settings):
    """Two pools, one after the other."""

    latents: ModelWorkers = ModelWorkers()
    text: ModelWorkers = ModelWorkers()


class EncodeSettings(StepSettings):
    step: ClassVar[str] = "encode"
    inputs = {"curated": "curate", "captions": "caption"}
    curated: Uri
    """Artifact of the curate step"""
    captions: OptionalUri = ""
    """Artifact of the caption step; empty: the captions of the curated pictures"""
    base: Uri
    """Folder of the latent model, a diffusers pipeline; its encoders of pictures and captions are used"""
    max_text_tokens: int = Field(512, ge=1)
    """Longer captions are cut"""
    text_padding: Literal["none", "max_length"] = added("none")
    """max_length: every text has max_text_tokens, and the model sees the padding, as FLUX.2 klein was trained; with
    text=stored that is 12.6 MB per caption of the 9B model"""
    latents: Literal["stored", "on_the_fly"] = "stored"
    """on_the_fly: none are stored; the curated pictures are encoded while training"""
    text: Literal["stored", "on_the_fly"] = "stored"
    """on_the_fly: only captions are stored, and encoded while training: 3M long ones would fill many terabytes"""
    resources: EncodeResources = EncodeResources()
