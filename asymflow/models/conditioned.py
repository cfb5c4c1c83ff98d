"""Velocity of images by the pixel transformer, conditioned on prompts and reference images."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
from PIL import Image
from torch import Tensor

from asymflow.models.flux2 import REFERENCE_TIME, image_positions, text_positions
from asymflow.models.pixel import AsymFlux2Transformer2DModel
from asymflow.models.text import MAX_TOKENS, encode_captions, pad_embeddings
from asymflow.patches import patchify, unpatchify

MAX_REFERENCE_PIXELS = 1024 * 1024


def encode_prompts(
    text_encoder: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    padding: str,
    device: torch.device | str | None = None,
    max_tokens: int = MAX_TOKENS,
) -> list[Tensor]:
    """Return one embedding per prompt; see `encode_captions`.

    Args:
        text_encoder: A Qwen3ForCausalLM.
        tokenizer: Its tokenizer.
        prompts: The prompts.
        padding: One of `asymflow.models.text.PADDINGS`.
        device: Device of the embeddings; None: the encoder's.
        max_tokens: Longer prompts are cut.

    Returns:
        Embeddings (T_i, E).

    Raises:
        ValueError: For another padding.
    """
    device = device or text_encoder.device
    return [e.to(device) for e in encode_captions(text_encoder, tokenizer, prompts, max_tokens, padding)]


class TextVelocity:
    """Velocity for a sampler, from (x_t (B, 3, H, W) normalized Oklab, sigma (B,)) to u.

    The padding of shorter prompts is masked, so an image is the same in any batch.

    Args:
        transformer: The pixel transformer.
        size: Height and width of the images in pixels.
        text: One embedding (T_i, E) per image.
        references: Clean reference images (3, H_i, W_i) in normalized Oklab, shared by all images of the batch.
        attention_kwargs: Further `joint_attention_kwargs` of the transformer.
        branch: Name of the transformer's cache context.
    """

    def __init__(
        self,
        transformer: AsymFlux2Transformer2DModel,
        size: tuple[int, int],
        text: Sequence[Tensor],
        references: Sequence[Tensor] = (),
        attention_kwargs: Mapping[str, Any] | None = None,
        branch: str = "cond",
    ):
        self.transformer, self.size, self.branch = transformer, size, branch
        self.attention_kwargs = dict(attention_kwargs or {})
        patch, device = transformer.config.patch_size, text[0].device
        self.references = None
        if references:
            self.references = torch.cat([patchify(image[None], patch) for image in references], dim=1)
        self.positions = torch.cat(
            [
                image_positions((height // patch, width // patch), device, REFERENCE_TIME * i)
                for i, (height, width) in enumerate([size, *(image.shape[-2:] for image in references)])
            ]
        )
        self.text, mask = pad_embeddings(text)
        self.text_positions = text_positions(self.text.shape[1], device)
        if not mask.all():
            seen = mask.new_ones(len(text), len(self.positions))
            self.attention_kwargs["attention_mask"] = torch.cat([mask, seen], dim=1)[:, None, None, :].to(device)

    def __call__(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """Return the velocity of images.

        Args:
            x_t: Noisy images (B, 3, H, W) in normalized Oklab.
            sigma: Noise levels (B,).

        Returns:
            u (B, 3, H, W), float32.
        """
        patch, references = self.transformer.config.patch_size, self.references
        with self.transformer.cache_context(self.branch):
            u = self.transformer(
                hidden_states=patchify(x_t, patch),
                encoder_hidden_states=self.text,
                timestep=sigma,
                img_ids=self.positions,
                txt_ids=self.text_positions,
                joint_attention_kwargs=self.attention_kwargs,
                return_dict=False,
                reference_hidden_states=None if references is None else references.expand(len(x_t), -1, -1),
            )[0]
        return unpatchify(u, *self.size, patch)


def prepare_references(images: Image.Image | list[Image.Image] | None, patch_size: int) -> list[Tensor]:
    """Return reference images as FLUX.2 takes them: at most a megapixel, cropped to multiples of the patch.

    Args:
        images: One PIL image, a list, or None.
        patch_size: Side of a patch in pixels.

    Returns:
        sRGB images (1, 3, H, W) in [-1, 1].

    Raises:
        ValueError: If one is not an image, too small, or too elongated.
    """
    processor = Flux2ImageProcessor(vae_scale_factor=patch_size)
    prepared = []
    for image in [] if images is None else images if isinstance(images, list) else [images]:
        processor.check_image_input(image)
        image = processor._resize_if_exceeds_area(image, MAX_REFERENCE_PIXELS)
        height, width = (side // patch_size * patch_size for side in (image.height, image.width))
        prepared.append(processor.preprocess(image, height, width, resize_mode="crop"))
    return prepared
