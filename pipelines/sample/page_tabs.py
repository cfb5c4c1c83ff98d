"""Tabs of the demo page: which images each one takes, and how a form becomes settings and an edit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.core.config import ConfigError, validate
from pipelines.sample.config import SampleSettings
from pipelines.sample.edits import Edit
from pipelines.sample.page_uploads import read_mask, read_references, read_upload, sampled_size
from pipelines.sample.parameters import SamplingParameters
from pipelines.sample.sampler import PairSampler, PipelineSampler
from pipelines.sample.step import check

MAX_PROMPT = 2000
"""Characters; a prompt of 512 tokens, the model's maximum, hardly has more"""


@dataclass(frozen=True)
class Tab:
    """A tab of the page."""

    name: str
    """Prefix of its elements"""
    title: str
    about: str
    images: tuple[str, ...] = ()
    """Images of its form: `image`, `mask`, `references`"""
    strength: float | None = None
    """Default strength; None: the sample starts from noise"""


TABS = (
    Tab("text", "Text to image", "Both models sample from the same noise."),
    Tab(
        "image",
        "Image to image",
        "The image is noised and denoised under the prompt. Without an autoencoder, nothing else changes it.",
        images=("image",),
        strength=0.6,
    ),
    Tab(
        "inpaint",
        "Inpaint",
        "Upload an image, and paint over the part to change. All other pixels of the result are exactly the upload's.",
        images=("image", "mask"),
        strength=0.8,
    ),
    Tab(
        "references",
        "Edit with references",
        "The images condition the sample under the prompt, as in FLUX.2.",
        images=("references",),
    ),
)


@dataclass(frozen=True)
class Request:
    """A valid form."""

    tab: Tab
    settings: SampleSettings
    parameters: SamplingParameters
    edit: Edit


def tabs_of(sampler: PairSampler) -> tuple[Tab, ...]:
    """Return the tabs of a model: edits need the diffusers pipelines."""
    return TABS if isinstance(sampler, PipelineSampler) else TABS[:1]


def parameter_limits(sampler: PairSampler) -> dict[str, tuple[float, float]]:
    """Return (minimum, maximum) of the parameters that determine the sampling time."""
    defaults, side = sampler.defaults, sampler.patch_size
    return {
        "steps": (1, 2 * defaults.num_inference_steps),
        "guidance": (1, max(10, defaults.guidance_scale)),
        "width": (side, 2 * defaults.width),
        "height": (side, 2 * defaults.height),
    }


def read_form(sampler: PairSampler, tab: Tab, form: Mapping[str, Any]) -> Request:
    """Check a form: requests need not keep to the page's limits.

    Args:
        sampler: the models.
        tab: the form's tab.
        form: values of its fields; images as paths, the mask as a PNG.

    Returns:
        The request.

    Raises:
        ConfigError: a value is missing or not allowed.
    """
    fields = dict(form)
    if not (fields.get("prompt") or "").strip():
        raise ConfigError("prompt: missing; describe an image")
    for name in ("prompt", "negative_prompt"):
        if len(fields.get(name) or "") > MAX_PROMPT:
            raise ConfigError(f"{name}: has {len(fields[name])} characters; at most {MAX_PROMPT} are allowed")
    given = {name: fields.pop(name, None) for name in ("image", "mask", "references", "strength")}
    edit = _read_edit(sampler, tab, given)
    if edit.image is not None:
        height, width = sampled_size(edit.image, _area(sampler), sampler.patch_size)
        fields |= {"height": height, "width": width}
    source = {"base": sampler.base, "adapter": sampler.adapter}
    texts = {"prompts": fields.pop("prompt"), "seeds": [fields.pop("seed", 0)]}
    settings = validate(SampleSettings, {**source, **texts, **fields})
    parameters = settings.resolve(sampler.defaults)
    checked = ("steps", "guidance") if edit.image is not None else tuple(parameter_limits(sampler))
    for name, (low, high) in parameter_limits(sampler).items():
        if name in checked and not low <= getattr(parameters, name) <= high:
            raise ConfigError(f"{name}={getattr(parameters, name)}: must be from {low} to {high}")
    check(settings)
    return Request(tab, settings, parameters, edit)


def _read_edit(sampler: PairSampler, tab: Tab, given: Mapping[str, Any]) -> Edit:
    image = read_upload(given["image"], "image") if "image" in tab.images else None
    mask = read_mask(given["mask"], image.size) if image is not None and "mask" in tab.images else None
    references = read_references(given["references"], _area(sampler)) if "references" in tab.images else ()
    strength = 1.0 if tab.strength is None else given["strength"]
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 < strength <= 1:
        raise ConfigError(f"strength={strength!r}: must be above 0 and at most 1")
    return Edit(image, mask, references, strength)


def _area(sampler: PairSampler) -> int:
    """Return the pixels of the model's own size."""
    return sampler.defaults.height * sampler.defaults.width
