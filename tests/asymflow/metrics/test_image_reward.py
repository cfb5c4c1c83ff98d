"""ImageReward against the networks of its paper, written out in torch under the checkpoint's names."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from tiny_image_reward import ARCHITECTURE, new_weights, write_image_reward

from asymflow.metrics.image_reward import MEAN, STD, ImageReward
from asymflow.metrics.weights import MissingWeights

PROMPTS = ["a cat", "two dogs", "a cat two dogs a bird"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("reward")
    write_image_reward(root)
    return root


def load(folder, **change):
    given = {"tokenizer": str(folder / "tokenizer"), "architecture": str(folder / "architecture.json")}
    return ImageReward.load(str(folder), **{**given, **change})


@pytest.fixture(scope="module")
def metric(folder):
    return load(folder)


def images(count):
    noise = torch.randint(0, 256, (count, 3, 40, 56), generator=torch.Generator().manual_seed(3))
    return noise.to(torch.uint8)


class Published:
    """A pre-norm vision transformer, and a post-norm BERT with cross-attention."""

    def __init__(self):
        self.weights = new_weights()

    def linear(self, x, name):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, x, name, eps):
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], eps)

    def attend(self, query, key, value, heads, mask=None):
        query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
        logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if mask is not None:
            logits = logits.masked_fill(mask[:, None, None] == 0, -torch.inf)
        return (logits.softmax(-1) @ value).transpose(1, 2).flatten(2)

    def see(self, pixels):
        name = "blip.visual_encoder"
        kernel, bias = (self.weights[f"{name}.patch_embed.proj.{part}"] for part in ("weight", "bias"))
        patches = F.conv2d(pixels, kernel, bias, stride=16).flatten(2).transpose(1, 2)
        first = self.weights[f"{name}.cls_token"].expand(len(pixels), -1, -1)
        x = torch.cat([first, patches], 1) + self.weights[f"{name}.pos_embed"]
        for i in range(2):
            block = f"{name}.blocks.{i}"
            mixed = self.linear(self.norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, -1)
            x = x + self.linear(self.attend(*mixed, heads=3), f"{block}.attn.proj")
            inner = F.gelu(self.linear(self.norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1"))
            x = x + self.linear(inner, f"{block}.mlp.fc2")
        return self.norm(x, f"{name}.norm", 1e-6)

    def read(self, tokens, mask, seen):
        name = "blip.text_encoder"
        x = self.weights[f"{name}.embeddings.word_embeddings.weight"][tokens]
        x = x + self.weights[f"{name}.embeddings.position_embeddings.weight"][: tokens.shape[1]]
        x = self.norm(x, f"{name}.embeddings.LayerNorm", 1e-12)
        for i in range(2):
            layer = f"{name}.encoder.layer.{i}"
            for kind, source, hidden in (("attention", None, mask), ("crossattention", seen, None)):
                source = x if source is None else source
                query = self.linear(x, f"{layer}.{kind}.self.query")
                key, value = (self.linear(source, f"{layer}.{kind}.self.{part}") for part in ("key", "value"))
                found = self.linear(self.attend(query, key, value, 2, hidden), f"{layer}.{kind}.output.dense")
                x = self.norm(found + x, f"{layer}.{kind}.output.LayerNorm", 1e-12)
            inner = F.gelu(self.linear(x, f"{layer}.intermediate.dense"))
            x = self.norm(self.linear(inner, f"{layer}.output.dense") + x, f"{layer}.output.LayerNorm", 1e-12)
        return x

    def score(self, pixels, tokens):
        x = self.read(tokens["input_ids"], tokens["attention_mask"], self.see(pixels))[:, 0]
        return (self.linear(self.linear(x, "mlp.layers.0"), "mlp.layers.2")[:, 0] - MEAN) / STD


def test_scores_are_those_of_the_published_networks(metric):
    from PIL import Image

    pil_images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images(3)]
    pixels = torch.stack([metric.transform(image) for image in pil_images])
    tokens = metric.tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    found = metric(images(3), PROMPTS)
    assert torch.allclose(found, Published().score(pixels, tokens), atol=1e-4)
    assert len({round(value, 3) for value in found.tolist()}) == 3
    swapped = metric(images(3), PROMPTS[::-1])  # the prompt matters
    assert not torch.allclose(found[[0, 2]], swapped[[0, 2]], atol=1e-3)


def test_a_score_does_not_depend_on_the_batch(metric):
    alone = torch.cat([metric(images(3)[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    assert torch.allclose(metric(images(3), PROMPTS), alone, atol=1e-5)
    assert metric(images(0), []).shape == (0,)


def test_weights_that_are_missing_or_of_another_model(folder, tmp_path):
    with pytest.raises(MissingWeights, match="no model was named: needed is ImageReward.pt of THUDM"):
        ImageReward.load("")
    with pytest.raises(MissingWeights, match="needed is the tokenizer of google-bert/bert-base-uncased"):
        load(folder, tokenizer="")
    with pytest.raises(MissingWeights, match="has no tokenizer.json"):
        load(folder, tokenizer=str(tmp_path))
    (tmp_path / "deeper.json").write_text(
        json.dumps({**ARCHITECTURE, "text": {**ARCHITECTURE["text"], "num_hidden_layers": 3}})
    )
    with pytest.raises(MissingWeights, match=r"does not fit: .*encoder.layer.2.*; needed is ImageReward.pt"):
        load(folder, architecture=str(tmp_path / "deeper.json"))
