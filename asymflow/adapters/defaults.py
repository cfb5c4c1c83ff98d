"""Sampling defaults of a model: from its files, or the released model's where they have none."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from asymflow.models.text import PADDINGS
from asymflow.schedule import sampling_shift

KEY = "asymflow"
"""Key in the metadata of a safetensors file; its tensors stay exactly the released file's"""


@dataclass(frozen=True)
class SamplingDefaults:
    """Default sampling parameters of a model; those of AsymFLUX.2 klein 9B unless given.

    Raises:
        ValueError: On construction, for a value that cannot be sampled with.
    """

    height: int = 1024
    """Height in pixels"""
    width: int = 1024
    """Width in pixels"""
    num_inference_steps: int = 32
    """Number of steps"""
    guidance_scale: float = 4.0
    """Guidance scale; 1: no guidance"""
    shift: float = 17.0
    """Shift at one megapixel and below; twice that from four megapixels on (`asymflow.schedule.sampling_shift`)"""
    text_padding: str = "max_length"
    """max_length: prompts are padded and the padding is attended to, as in FLUX.2 klein's training; none: no padding"""
    orthogonal_guidance: float = 1.0
    """Fraction, in [0, 1], of the guidance along the denoised image that is removed (`asymflow.guidance.guide`)"""

    def __post_init__(self) -> None:
        if self.text_padding not in PADDINGS:
            raise ValueError(f"text_padding is {self.text_padding!r}; allowed: {', '.join(PADDINGS)}")
        for name in ("height", "width", "num_inference_steps", "guidance_scale", "shift"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not 0 <= self.orthogonal_guidance <= 1:
            raise ValueError(f"orthogonal_guidance is {self.orthogonal_guidance}; it must be in [0, 1]")

    def shift_at(self, height: int, width: int, law: str = "sqrt") -> float:
        """Return the shift for an image size.

        Args:
            height: Height in pixels.
            width: Width in pixels.
            law: One of `asymflow.schedule.SHIFT_LAWS`.

        Returns:
            The shift for `asymflow.schedule.shift_sigma`.
        """
        return sampling_shift(height * width, base=self.shift, max=2 * self.shift, law=law)

    def to_metadata(self) -> dict[str, str]:
        """Return the defaults as metadata of a safetensors file.

        Returns:
            One entry, JSON by KEY.
        """
        return {KEY: json.dumps(asdict(self), sort_keys=True)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "SamplingDefaults":
        """Read the defaults from metadata of a safetensors file; unknown names, of newer versions, are ignored.

        Args:
            metadata: The file's metadata.

        Returns:
            The defaults; those of the released model if the metadata has none.

        Raises:
            ValueError: If the entry is not a JSON object, or a value is invalid.
        """
        found = json.loads(metadata.get(KEY, "{}"))
        if not isinstance(found, dict):
            raise ValueError(f"its metadata {KEY!r} is not a JSON object")
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in found.items() if name in known})
