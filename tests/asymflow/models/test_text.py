import pytest
import torch

from asymflow.models.text import encode_by_length, encode_captions, pad_embeddings


def test_embeddings_are_padded_on_the_right_and_masked():
    embeddings = [torch.ones(2, 4), 2 * torch.ones(3, 4)]
    padded, mask = pad_embeddings(embeddings)
    assert mask.tolist() == [[True, True, False], [True, True, True]]
    assert padded[..., 0].tolist() == [[1, 1, 0], [2, 2, 2]]


@pytest.mark.parametrize("count", [0, 1, 16, 17, 40])
def test_captions_of_similar_length_are_encoded_together_and_come_back_in_order(count):
    captions, batches = [f"{i:02}" + "x" * (i * 7 % 40) for i in range(count)], []

    def encode(some):
        batches.append([len(caption) for caption in some])
        return [torch.tensor(float(caption[:2])) for caption in some]

    assert [int(e) for e in encode_by_length(captions, encode)] == list(range(count))
    assert max(map(len, batches), default=0) <= 16
    assert sum(batches, []) == sorted(map(len, captions))


def test_an_unknown_padding_is_refused():
    with pytest.raises(ValueError, match="padding is 'left'; allowed: max_length, none"):
        encode_captions(None, None, ["a"], padding="left")
