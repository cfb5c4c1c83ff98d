"""Interface of a family's latent transformer: the roles of its layers, its call, and its shapes.

Importable without torch. `asymflow.models.latent` finds the description that belongs to a transformer.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from asymflow.models.network import BlockMemory, Network

if TYPE_CHECKING:
    from torch import Tensor


Kind = Literal["asymflow", "latent", "ddt", "l2p"]
"""Kind of a finetuned model: the paper's, one of its two baselines, or L2P"""


class TokenGeometry(NamedTuple):
    """Geometry of a latent token."""

    pixels_per_token: int
    """Side in pixels of the square that a token covers: the pixel model's patch size"""
    token_width: int
    """Width of a token, d"""


class PublishedModel(NamedTuple):
    """Published model of a family, for plans without its files."""

    name: str
    """Name for people"""
    config: Mapping[str, Any]
    """Settings of its transformer"""
    geometry: TokenGeometry
    """Geometry of its tokens"""


@dataclass(frozen=True)
class Backbone:
    """Latent transformer of a family, a model class of diffusers.

    Three modules are trained whole: the first layer, the modulation of the last norm, and the last layer. The first and
    the last are nn.Linear with or without bias; `asymflow.models.lifted.PixelModel` fuses A^T and A into them (Eq. 6).
    """

    transformer: str
    """Name of the class in diffusers, `_class_name` in transformer/config.json"""
    first: str
    """Name of the layer that embeds image tokens"""
    last_norm: str
    """Name of the module that modulates the last norm"""
    last: str
    """Name of the layer that returns image tokens"""
    text_input: str
    """Name of the layer that embeds text; it stays frozen, and its type is the type of the computation"""
    lora_targets: Callable[[Mapping[str, Any]], str]
    """(settings of the transformer): pattern of the whole names of the layers that LoRA adapts, by the roles of
    App. B.2: feed-forward, time embedding, attention output"""
    run: "Callable[..., Tensor]"
    """(transformer, tokens (B, N, C), sigma (B,), text (B, T, E), grid (h, w), mask (B, T) or None): evaluates the
    transformer once and returns the velocity tokens noise - x_0, (B, N, C'). Masked text tokens are ignored. Raises
    ValueError if the tokens do not fill the grid. Everything that the family's call does differently is in here: the
    direction of time, the sign of the output, the embedded guidance"""
    pack: "Callable[[Tensor, int], Tensor]"
    """(latents (B, C, H, W), side): tokens (B, H W / side^2, side^2 C), in the order that the transformer was trained
    on"""
    token_width: Callable[[Mapping[str, Any]], int]
    """(settings of the transformer): width of a token, d"""
    network: Callable[..., Network]
    """(settings, patch_dim=None, lora_rank=0, head=False): matrices; see `asymflow.models.geometry.network`"""
    block_memory: Callable[[Mapping[str, Any], bool, bool], tuple[BlockMemory, ...]]
    """(settings, LoRA, its dropout): memory of the blocks by kind"""
    block_names: Mapping[str, str]
    """Names for people of the lists of blocks, by their names in the transformer"""
    image_blocks: tuple[str, ...]
    """Names of the lists of blocks that image tokens pass, in order"""
    image_free: str
    """Pattern of whole names: layers whose input does not depend on the image, those of conditions and those that text
    passes before it meets the image. Without LoRA on them, no gradient passes them"""
    adapter_classes: Mapping[Kind, str]
    """`_class_name` in an adapter's config.json, by kind of the model; a kind that is missing is not supported"""
    adapter_keys: tuple[str, ...]
    """Settings of the transformer that an adapter's config.json repeats"""
    unused: Callable[[Mapping[str, Any]], str] = lambda config: r"(?!)"
    """(settings of the transformer): pattern of the whole names of layers whose output no image depends on: those of
    the text in the last block"""
    unquantized: str = r"(?!)"
    """Pattern of whole names: layers besides `text_input` that are not quantized, as the class reads the type of their
    weights"""
    prepare: Callable[[Any], Any] = lambda transformer: transformer
    """(transformer): the same transformer, changed in place to the layers that the other entries describe. Applying it
    twice is as applying it once"""
    adapter_constants: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of an adapter's config.json"""
    takes_references: bool = False
    """Whether `run` takes a seventh argument, tokens of R reference images per image (B, R, N, C) on the same grid"""
    has_comfyui_names: bool = False
    """Whether `asymflow.adapters.comfyui` names its tensors as ComfyUI does"""

    @property
    def trained(self) -> tuple[str, str, str]:
        """Names of the three modules that are trained whole."""
        return (self.first, self.last_norm, self.last)

    def end_blocks(self, config: Mapping[str, Any], count: int) -> tuple[str, ...]:
        """Return the first and the last blocks that image tokens pass.

        Args:
            config: Settings of the transformer.
            count: Number of blocks at each end.

        Returns:
            Names of 2 count blocks, in order.

        Raises:
            ValueError: If the transformer has fewer blocks.
        """
        lists = "|".join(re.escape(name) for name in self.image_blocks)
        found = (re.match(rf"({lists})\.\d+(?=\.)", layer.name) for layer in self.network(config).linears)
        blocks = list(dict.fromkeys(match[0] for match in found if match))
        if 2 * count > len(blocks):
            raise ValueError(f"the transformer has {len(blocks)} blocks; allowed at each end: {len(blocks) // 2}")
        return (*blocks[:count], *blocks[-count:])

    def complete(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings of the transformer with the class's defaults for missing ones; saved models have them all.

        Args:
            config: The settings.

        Returns:
            All settings, and `_class_name`.
        """
        from inspect import signature

        import diffusers

        parameters = signature(getattr(diffusers, self.transformer).__init__).parameters
        defaults = {name: p.default for name, p in parameters.items() if name != "self"}
        return {"_class_name": self.transformer, **{name: config.get(name, value) for name, value in defaults.items()}}


def check_grid(tokens: "Tensor", grid: tuple[int, int]) -> None:
    """Check that the image tokens fill their grid.

    Args:
        tokens: Image tokens (B, N, C).
        grid: Rows and columns of image tokens, (h, w).

    Raises:
        ValueError: If h w is not N.
    """
    if grid[0] * grid[1] != tokens.shape[1]:
        raise ValueError(f"{tokens.shape[1]} tokens do not fill a grid of {grid[0]} x {grid[1]}")


def run_each(
    run: "Callable[..., Tensor]",
    transformer: Any,
    tokens: "Tensor",
    sigma: "Tensor",
    text: "Tensor",
    grid: tuple[int, int],
    mask: "Tensor",
) -> "Tensor":
    """Evaluate a transformer that has no mask of text tokens on each image and its valid text tokens alone.

    Args:
        run: As `Backbone.run`.
        transformer: The transformer.
        tokens: Image tokens (B, N, C).
        sigma: Noise levels (B,).
        text: Text embeddings (B, T, E).
        grid: Rows and columns of image tokens, (h, w).
        mask: True for valid text tokens (B, T).

    Returns:
        Velocity tokens (B, N, C').
    """
    import torch

    rows = zip(tokens, sigma, text, mask, strict=True)
    return torch.cat([run(transformer, x[None], t[None], caption[valid][None], grid) for x, t, caption, valid in rows])
