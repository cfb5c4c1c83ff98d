import pytest
import torch
from diffusers import Flux2KleinPipeline

from asymflow.models import klein
from asymflow.models.autoencoder import decode_latents, encode_images
from asymflow.models.latent import family_of
from asymflow.models.text import encode_captions

CAPTIONS = ["picture 1", "picture 1 of a picture, and of more than one", ""]


@pytest.fixture(scope="module")
def images_encoder(tiny_base):
    return family_of(tiny_base).load_image_encoder(str(tiny_base), "cpu", torch.float32)


@pytest.fixture(scope="module")
def text_encoder(tiny_base):
    return family_of(tiny_base).load_text_encoder(str(tiny_base), "cpu", torch.float32, 512)


def test_images_become_one_token_a_square_and_images_again(images_encoder, tiny_base):
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    side = images_encoder.pixels_per_token
    assert (side, images_encoder.token_width) == klein.FAMILY.read_geometry(tiny_base) == (16, 128)
    tokens = images_encoder.encode(images)
    assert tokens.shape == (2, (32 // side) * (48 // side), images_encoder.token_width)
    assert torch.equal(tokens, encode_images(images_encoder.autoencoder, images))
    decoded = images_encoder.decode(tokens, (2, 3))
    assert decoded.shape == images.shape
    assert decoded.abs().max() <= 1
    assert torch.equal(decoded, decode_latents(images_encoder.autoencoder, tokens, (2, 3)))


def test_half_precision_comes_near(tiny_base, images_encoder):
    half = family_of(tiny_base).load_image_encoder(str(tiny_base), "cpu", torch.bfloat16)
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens, expected = half.encode(images), images_encoder.encode(images)
    assert tokens.dtype == torch.bfloat16
    assert half.decode(tokens, (2, 2)).dtype == torch.float32
    assert (tokens.float() - expected).norm() < 0.1 * expected.norm()


def test_an_embedding_is_its_captions_alone_but_for_rounding(text_encoder):
    together = text_encoder.encode(CAPTIONS)
    assert [e.shape[1] for e in together] == 3 * [text_encoder.width]
    assert len({len(e) for e in together}) == 3
    for caption, embedding in zip(CAPTIONS, together, strict=True):
        torch.testing.assert_close(embedding, text_encoder.encode([caption])[0], rtol=1e-4, atol=1e-4)
        alone = encode_captions(text_encoder.text_encoder, text_encoder.tokenizer, [caption])[0]
        torch.testing.assert_close(embedding, alone, rtol=1e-4, atol=1e-4)


def test_many_captions_come_back_in_their_order(text_encoder):
    captions = [f"picture {'x ' * (i * 7 % 40)}" for i in range(18)]  # more than are encoded at once
    for caption, embedding in zip(captions, text_encoder.encode(captions), strict=True):
        torch.testing.assert_close(embedding, text_encoder.encode([caption])[0], rtol=1e-4, atol=1e-4)


def test_longer_captions_are_cut(tiny_base, text_encoder):
    short = family_of(tiny_base).load_text_encoder(str(tiny_base), "cpu", torch.float32, 5)
    cut, whole = short.encode(CAPTIONS[1:2])[0], text_encoder.encode(CAPTIONS[1:2])[0]
    assert len(cut) == 5 < len(whole)
    torch.testing.assert_close(cut, whole[:5], atol=1e-4, rtol=1e-4)  # it reads from left to right


def test_padding_that_the_model_sees_is_embedded_as_flux2_klein_does(tiny_base, text_encoder):
    padded = family_of(tiny_base).load_text_encoder(str(tiny_base), "cpu", torch.float32, 40, "max_length")
    found = padded.encode(CAPTIONS)
    expected = Flux2KleinPipeline._get_qwen3_prompt_embeds(
        padded.text_encoder, padded.tokenizer, list(CAPTIONS), max_sequence_length=40
    )
    assert [len(e) for e in found] == [40] * len(CAPTIONS)
    torch.testing.assert_close(torch.stack(found), expected, rtol=1e-4, atol=1e-4)
    for embedding, alone in zip(found, text_encoder.encode(CAPTIONS), strict=True):
        torch.testing.assert_close(embedding[: len(alone)], alone[:40], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="padding is 'left'; allowed: max_length, none"):
        encode_captions(padded.text_encoder, padded.tokenizer, ["a"], padding="left")
