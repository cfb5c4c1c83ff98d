"""How a model wants to be sampled: what its files say, or the released model's numbers where they say nothing."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from asymflow.models.text import PADDINGS
from asymflow.schedule import sampling_shift

KEY = "asymflow"
"""In the metadata of a safetensors file, beside its tensors, which stay exactly the released file's"""


@dataclass(frozen=True)
class SamplingDefaults:
    """Those of AsymFLUX.2 klein 9B unless given. ValueError for a value that cannot be sampled with."""

    height: int = 1024
    width: int = 1024
    num_inference_steps: int = 32
    guidance_scale: float = 4.0
    shift: float = 17.0
    """At one megapixel and below; twice that from four megapixels on (`asymflow.schedule.sampling_shift`)"""
    text_padding: str = "max_length"
    """max_length: prompts are padded and the padding is seen, as FLUX.2 klein was trained. none: it is not there"""

    def __post_init__(self) -> None:
        if self.text_padding not in PADDINGS:
            raise ValueError(f"text_padding is {self.text_padding!r}; allowed: {', '.join(PADDINGS)}")
        for name in ("height", "width", "num_inference_steps", "guidance_scale", "shift"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")

    def shift_at(self, height: int, width: int) -> float:
        return sampling_shift(height * width, base=self.shift, max=2 * self.shift)

    def to_metadata(self) -> dict[str, str]:
        return {KEY: json.dumps(asdict(self), sort_keys=True)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "SamplingDefaults":
        """Names of newer versions are passed over. Raises ValueError for what is no JSON object or a bad value."""
        found = json.loads(metadata.get(KEY, "{}"))
        if not isinstance(found, dict):
            raise ValueError(f"its metadata {KEY!r} is no JSON object")
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in found.items() if name in known})
