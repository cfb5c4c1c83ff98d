"""Sampling parameters: the settings, and their resolved values for one model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from pipelines.core.config import ConfigError, Settings, added

if TYPE_CHECKING:
    from torch import Tensor

    from asymflow.adapters import SamplingDefaults


@dataclass(frozen=True)
class SamplingParameters:
    """Resolved sampling parameters."""

    height: int
    width: int
    steps: int
    guidance: float
    shift: float
    latent_shift: float | None = None
    """Of the latent model; None: its noise levels match the pixel model's"""
    negative_prompt: str = ""
    interval: tuple[float, float] = (0.0, 1.0)
    orthogonal: float = True
    """Fraction of the guidance along the denoised image that is removed; True and False, as stored, are 1 and 0"""
    clamp: bool = True
    solver: str = "unipc"
    sigma_floor: float | None = None
    """Of class-conditional models; None: the model's default"""

    def noise(self, seeds: list[int]) -> "Tensor":
        """Return noise (B, 3, H, W), from a CPU generator per seed, whatever the device of the model."""
        import torch  # settings are read without torch

        shape = (3, self.height, self.width)
        return torch.stack([torch.randn(shape, generator=torch.Generator("cpu").manual_seed(s)) for s in seeds])


class SamplingParameterSettings(Settings):
    """Sampling parameters; empty ones are the model's defaults."""

    negative_prompt: str = ""
    height: int | None = Field(None, ge=1)
    """Empty, here and below: the model's default"""
    width: int | None = Field(None, ge=1)
    steps: int | None = Field(None, ge=1)
    guidance: float | None = Field(None, ge=1)
    shift: float | None = Field(None, gt=0)
    shift_law: Literal["sqrt", "extrapolated", "constant"] = added("sqrt")
    """Shift by size, if `shift` is empty: `sqrt` grows with the side from one to four megapixels, `extrapolated` also
    below and above, `constant` does not"""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Noise levels with guidance, within [0, 1]"""
    orthogonal: float | None = Field(None, ge=0, le=1)
    """Fraction of the guidance along the denoised image that is removed; 1: adaptive projected guidance (APG)"""
    clamp: bool = True
    """Clamp each denoised image to the sRGB gamut"""
    solver: Literal["unipc", "euler", "heun", "dpmsolver", "deis"] = "unipc"
    latent_shift: float | None = Field(None, gt=0)
    """Of the latent model; empty: its noise levels match the pixel model's"""
    sigma_floor: float | None = Field(None, ge=0)
    """Floor of sigma in the division of a class-conditional model's output; empty: the model's default"""

    @field_validator("guidance_interval")
    @classmethod
    def _within(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] <= value[1] <= 1:
            raise ValueError("must be two numbers within [0, 1], the lower one first")
        return value

    def check_size(self, patch_size: int, section: str = "") -> None:
        """Check that height and width are multiples of the patch size. Raises ConfigError."""
        for name in ("height", "width"):
            side = getattr(self, name)
            if side is not None and side % patch_size:
                raise ConfigError(f"{section}{name}={side}: must be a multiple of {patch_size}, the side of a patch")

    def resolve(self, defaults: "SamplingDefaults") -> SamplingParameters:
        """Return the parameters with a model's defaults filled in."""
        height, width = self.height or defaults.height, self.width or defaults.width
        orthogonal = defaults.orthogonal_guidance if self.orthogonal is None else self.orthogonal
        return SamplingParameters(
            height=height,
            width=width,
            steps=self.steps or defaults.num_inference_steps,
            guidance=self.guidance or defaults.guidance_scale,
            shift=self.shift or defaults.shift_at(height, width, self.shift_law),
            latent_shift=self.latent_shift,
            negative_prompt=self.negative_prompt,
            interval=self.guidance_interval,
            orthogonal=bool(orthogonal) if orthogonal in (0, 1) else orthogonal,  # the protocols' older form
            clamp=self.clamp,
            solver=self.solver,
            sigma_floor=self.sigma_floor,
        )
