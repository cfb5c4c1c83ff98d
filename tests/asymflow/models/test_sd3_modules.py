import pytest
import torch
from diffusers.models.embeddings import PatchEmbed
from tiny_families import make_sd3

from asymflow.models.sd3 import FAMILY
from asymflow.models.sd3_modules import LEAST_TOKENS, CellEmbedding, PooledCaptions
from asymflow.models.shifted_latents import pack


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd3") / "base"
    make_sd3(folder)
    return str(folder)


def load(folder, max_tokens=120, padding="none"):
    return PooledCaptions.load(folder, "cpu", torch.float32, max_tokens, padding)


def patches(size=6):
    torch.manual_seed(0)
    return PatchEmbed(8, 8, patch_size=2, in_channels=3, embed_dim=16, pos_embed_max_size=size)


def test_a_layer_over_tokens_has_the_values_of_the_convolution_over_cells():
    stock, latents = patches(), torch.randn(2, 3, 4, 10)
    embedding = CellEmbedding(stock)
    with torch.no_grad():
        torch.testing.assert_close(embedding(latents), stock(latents))
    assert embedding.proj.weight.shape == (16, 12)
    positions = embedding(latents) - embedding.proj(pack(latents, 2))
    assert positions.abs().max() > 0.1
    torch.testing.assert_close(positions[0], positions[1])


def test_an_image_larger_than_the_table_of_positions_is_refused():
    with pytest.raises(ValueError, match="a grid of 2 x 7 tokens is too large; allowed: 6 x 6"):
        CellEmbedding(patches())(torch.randn(1, 3, 4, 14))


@pytest.mark.parametrize("padding", ["none", "max_length"])
def test_an_embedding_is_a_pooled_one_then_clips_then_t5s(folder, padding):
    encoder = load(folder, padding=padding)
    (embedding,) = encoder.encode(["red sun"])
    clip, t5 = (77, 120 - 78) if padding == "max_length" else (8, 9)  # CLIP has two ends, T5 two spaces and one end
    assert embedding.shape == (1 + clip + t5, 40)
    assert embedding[0].abs().min(0).values == 0
    assert (embedding[: 1 + clip, 32:] == 0).all()
    assert (embedding[1 : 1 + clip, :32] != 0).all()
    assert (embedding[1 + clip :] != 0).all()


def test_without_padding_clips_tokens_are_the_same_and_t5_reads_the_caption_alone(folder):
    (short,), (whole,) = (load(folder, padding=padding).encode(["red sun"]) for padding in ("none", "max_length"))
    torch.testing.assert_close(short[:9], whole[:9])
    assert (short[9:] - whole[78:87]).abs().max() > 1e-3  # T5 attends to its padding there


def test_t5_has_the_tokens_that_are_left(folder):
    caption = "a long caption of a red sun " * 8
    assert len(load(folder, 100).encode([caption])[0]) == 100


def test_arguments_are_checked(folder):
    assert FAMILY.least_text_tokens == LEAST_TOKENS
    with pytest.raises(ValueError, match="max_tokens is 78; allowed: 79 or more"):
        load(folder, 78)
    with pytest.raises(ValueError, match="padding is 'longest'; allowed: max_length, none"):
        load(folder, padding="longest")
