"""Sources of text embeddings and latent tokens; those of stored files are tested with the encode step."""

from pathlib import Path

import pytest
import ray
import torch
from PIL import Image

from asymflow.models.latent import family_of
from pipelines.core.artifacts import Artifact
from pipelines.core.workers import ModelWorkers
from pipelines.data.datasets import decode_batch
from pipelines.data.embeddings import (
    EncodedLatents,
    EncodedText,
    RemoteLatents,
    StoredLatents,
    StoredText,
    are_latents_stored,
    is_stored,
    latent_actors,
    text_actors,
    text_length,
    text_padding,
)
from pipelines.data.images import encode_png


def encode_artifact(tmp_path: Path, text: str = "on_the_fly", latents: str = "on_the_fly") -> Artifact:
    return Artifact(str(tmp_path), {"config": {"text": text, "latents": latents, "max_text_tokens": 512}})


@pytest.mark.ray
def test_each_actor_gets_one_request_per_step(local_ray):
    class Actor:
        def __init__(self):
            self.encode, self.requests = self, []

        def remote(self, values):
            self.requests.append(values)
            return ray.put(list(values))

    actors = [Actor() for _ in range(3)]
    source = RemoteLatents(actors, first=1)
    assert source.request([1, 2, 3, 4, 5])() == [1, 2, 3, 4, 5]
    assert [actor.requests for actor in actors] == [[[5]], [[1, 2]], [[3, 4]]]


def test_stored_tensors_start_no_actor(tiny_base, tmp_path):
    stored, pool = encode_artifact(tmp_path, "stored", "stored"), ModelWorkers(workers=2)
    with text_actors(stored, str(tiny_base), pool, 1) as embedders, latent_actors(stored, "", pool, 1) as encoders:
        assert embedders == encoders == []
    assert are_latents_stored(stored)
    assert not are_latents_stored(encode_artifact(tmp_path))


@pytest.mark.parametrize("source", [StoredText(), StoredLatents()])
def test_stored_tensors_come_back_as_they_are(source):
    tensors = [torch.randn(2, 3), torch.randn(4, 3)]
    assert source.request(tensors)() is tensors


def test_captions_are_encoded_as_the_family_encodes_them_and_rounded(tiny_base):
    captions = ["picture 1", "picture 2, on red"]
    made = EncodedText(str(tiny_base), "cpu", 40).request(captions)()
    expected = family_of(tiny_base).load_text_encoder(str(tiny_base), "cpu", torch.float32, 40).encode(captions)
    for ours, theirs in zip(made, expected, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.float(), theirs, rtol=2**-8, atol=1e-5)


def test_images_are_encoded_in_batches_of_so_many_pixels(tiny_base, monkeypatch):
    monkeypatch.setattr("pipelines.data.embeddings.MAX_BATCH_PIXELS", 2 * 32 * 32)
    source, sizes = EncodedLatents(str(tiny_base), "cpu"), []
    encode = source.encoder.encode
    monkeypatch.setattr(source.encoder, "encode", lambda images: sizes.append(len(images)) or encode(images))
    images = [encode_png(Image.new("RGB", (32, 32), (40 * i, 0, 90))) for i in range(5)]
    made = torch.stack(list(source.request(images)()))
    assert sizes == [2, 2, 1]
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made.float(), encode(decode_batch(images)), rtol=2**-7, atol=1e-3)


def test_artifacts_of_older_versions_have_stored_latents_and_no_padding(tmp_path):
    old = Artifact(str(tmp_path), {"config": {"text": "stored", "max_text_tokens": 77}})
    assert is_stored(old)
    assert are_latents_stored(old)
    assert text_padding(old) == "none"
    assert text_length(old) == (77, "none")
