import pytest
import torch
from transformers import Qwen3Config, Qwen3Model

from asymflow.models.hidden_states import HiddenStates, WindowedStates

WIDTH = 16


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=128, hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    return Qwen3Model(config).eval()


def tokenize(captions, length, padding):
    """One token per character, padded with 0 on the right."""
    ids = [[ord(c) for c in caption][:length] for caption in captions]
    longest = length if padding == "max_length" else max(map(len, ids))
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in ids]
    padded = [row + [0] * (longest - len(row)) for row in ids]
    return {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}


def test_embeddings_are_the_chosen_hidden_states_side_by_side(model):
    encoder = HiddenStates(model, tokenize, (1, -2), max_tokens=64)
    (found,) = encoder.encode(["a red sun"])
    states = model(**tokenize(["a red sun"], 64, True), output_hidden_states=True).hidden_states
    assert encoder.width == 2 * WIDTH
    assert found.shape == (9, 2 * WIDTH)
    torch.testing.assert_close(found, torch.cat([states[1][0], states[-2][0]], dim=-1))


def test_an_embedding_does_not_depend_on_the_other_captions(model):
    encoder, captions = HiddenStates(model, tokenize, (-1,), max_tokens=64), ["a long caption", "b", "sun"]
    for caption, together in zip(captions, encoder.encode(captions), strict=True):
        torch.testing.assert_close(together, encoder.encode([caption])[0], rtol=1e-5, atol=1e-5)


def test_tokens_of_the_template_are_left_out_beyond_the_limit(model):
    whole = HiddenStates(model, tokenize, (-1,), max_tokens=64).encode(["abcdefgh"])[0]
    (cut,) = HiddenStates(model, tokenize, (-1,), max_tokens=4, skipped=2).encode(["abcdefgh"])
    torch.testing.assert_close(cut, whole[2:6], rtol=1e-5, atol=1e-5)


def test_with_padding_all_embeddings_have_the_limit(model):
    encoder = HiddenStates(model, tokenize, (-1,), max_tokens=12, padding="max_length")
    assert [len(e) for e in encoder.encode(["a", "a red sun"])] == [12, 12]


def test_a_padding_that_the_family_does_not_allow_is_refused(model):
    with pytest.raises(ValueError, match="padding is 'max_length'; allowed: none"):
        HiddenStates(model, tokenize, (-1,), max_tokens=12, padding="max_length", paddings=("none",))


def windows(captions, length, padding):
    """As `tokenize`, padded to a multiple of 4."""
    longest = max(min(len(caption), length) for caption in captions)
    return tokenize(captions, min(-(-longest // 4) * 4, length), "max_length")


def test_padding_to_a_window_belongs_to_the_embedding_and_has_position_1(model):
    encoder, captions = WindowedStates(model, windows, (-1,), max_tokens=10, window=4), ["a long sun", "sun", "suns"]
    found = encoder.encode(captions)
    assert [len(embedding) for embedding in found] == [10, 4, 4]
    for caption, embedding in zip(captions, found, strict=True):
        torch.testing.assert_close(embedding, encoder.encode([caption])[0], rtol=1e-5, atol=1e-5)
    inputs = tokenize(["sun"], 4, "max_length")
    expected = model(**inputs, position_ids=torch.tensor([[0, 1, 2, 1]])).last_hidden_state[0]
    torch.testing.assert_close(found[1], expected, rtol=1e-5, atol=1e-5)
