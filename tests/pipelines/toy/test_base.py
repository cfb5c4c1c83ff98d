from pathlib import Path

import pytest
import torch
from diffusers import Flux2KleinPipeline

from asymflow.models.autoencoder import encode_images
from asymflow.models.klein_geometry import read_token_geometry
from asymflow.models.text import encode_captions, pad_embeddings

FOLDER = Path(__file__).parents[3] / "models" / "toy_klein"


@pytest.fixture(scope="module")
def toy() -> Flux2KleinPipeline:
    return Flux2KleinPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)


def test_it_is_a_stock_pipeline_and_ships_with_its_adapter_in_at_most_32_megabytes(toy):
    files = [f for folder in (FOLDER, FOLDER.with_name("toy_asymflow")) for f in folder.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 32_000_000
    assert read_token_geometry(FOLDER) == (4, 8)
    assert toy.transformer.config.in_channels == 8
    text = encode_captions(toy.text_encoder, toy.tokenizer, ["a photo of a red flower, close view", ""])
    arguments = dict(height=64, width=64, num_inference_steps=2, output_type="np")
    images = toy(prompt_embeds=text[0][None], negative_prompt_embeds=text[1][None], **arguments).images
    assert images.shape == (1, 64, 64, 3)


def test_latents_are_whitened_and_embeddings_do_not_depend_on_padding(toy):
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert encode_images(toy.vae, images).shape == (4, 256, 8)
    captions = ["an emoji of cat face on green", "a photo of the moon, wide view"]
    together = encode_captions(toy.text_encoder, toy.tokenizer, captions)
    for caption, embedding in zip(captions, together, strict=True):
        alone = encode_captions(toy.text_encoder, toy.tokenizer, [caption])[0]
        assert torch.allclose(embedding, alone, atol=1e-4)
    padded, mask = pad_embeddings(together)
    assert mask.sum(1).tolist() == [len(e) for e in together]
    assert not padded[~mask].any()
