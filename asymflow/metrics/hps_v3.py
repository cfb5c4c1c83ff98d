"""HPSv3 (Ma et al. 2025): the human preference that a finetuned Qwen2-VL predicts for an image.

The reference (package `hpsv3`) was written for transformers 4.45. Later versions differ in three ways that change the
score: names of modules, M-RoPE, and the rotary frequencies of a model that is cast to bfloat16.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from asymflow.devices import default_dtype
from asymflow.metrics.arguments import check_pairs
from asymflow.metrics.templates import check_template, read_template
from asymflow.metrics.weights import MissingWeights, find, fit_weights

FILE = "HPSv3.safetensors"
PIXELS = 256 * 28 * 28
"""Pixels of a resized image, as nearly as multiples of 28 allow"""
SPECIAL = "<|Reward|>"
PROMPT = "{text_prompt}"
"""Field of the prompt in the reference's template"""
FIELDS = (PROMPT, SPECIAL)
ORIGIN = "INSTRUCTION and prompt_with_special_token of the package hpsv3, one after the other"
_MAX_BATCH = 8  # images per forward pass
_BASE_FILES = ("*.json", "*.txt", "*.jinja")
# From the names in the checkpoint, of transformers 4.45 or 4.52, to those of Qwen2VLModel in 5; the first that fits.
_NAMES = (
    (r"^model\.(language_model|visual)\.", r"\1."),
    (r"^model\.(embed_tokens|layers|norm)\.", r"language_model.\1."),
)


def target_size(height: int, width: int) -> tuple[int, int]:
    """Return the size that images are resized to: multiples of 28, near PIXELS in all.

    Larger images are rounded down, smaller ones up. With these bounds, transformers' rule gives the same as hpsv3's
    own.

    Args:
        height: Height in pixels.
        width: Width in pixels.

    Returns:
        Height and width in pixels.

    Raises:
        ValueError: If the aspect ratio exceeds 200 : 1.
    """
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    return smart_resize(height, width, factor=28, min_pixels=PIXELS, max_pixels=PIXELS)


def new_head(width: int) -> nn.Sequential:
    """Return a head from features (..., width) to mean and spread (..., 2), float32.

    Args:
        width: Width of a feature.

    Returns:
        The head, with random weights.
    """
    return nn.Sequential(
        nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    )


class HpsV3:
    """Compute HPSv3.

    Args:
        model: A Qwen2VLModel.
        head: The head, as from `new_head`.
        processor: A Qwen2-VL processor; the special token is added to its tokenizer.
        template: Text after the image, with `{text_prompt}` and `<|Reward|>` once each.
        identity: Name of the weights in the protocol.
        round_frequencies: Round the model's rotary frequencies to bfloat16, in place. The reference casts the model
            with its buffers, in training and inference, which changes the angles at position 400. (It also rounds their
            products with the rows and columns of an image's patches, which differ by less than 0.05 from those here.)

    Raises:
        ValueError: If the template lacks a field, or the sizes of the model's and the tokenizer's vocabulary differ.
    """

    def __init__(
        self, model: Any, head: nn.Module, processor: Any, template: str, identity: str, round_frequencies: bool = True
    ):
        self.template = check_template(template, FIELDS, ORIGIN)
        self.model, self.head, self.processor = model.eval(), head.eval().float(), processor
        processor.tokenizer.padding_side = "right"  # so that real tokens' places, and what they attend to, stay
        processor.tokenizer.add_tokens([SPECIAL], special_tokens=True)
        self.token = processor.tokenizer.convert_tokens_to_ids(SPECIAL)
        rows, vocabulary = model.get_input_embeddings().num_embeddings, len(processor.tokenizer)
        if rows != vocabulary:
            raise ValueError(f"the model has {rows} tokens, its tokenizer {vocabulary} with {SPECIAL}")
        if round_frequencies:
            for rotary in (model.language_model.rotary_emb, model.visual.rotary_pos_emb):
                rotary.inv_freq = rotary.inv_freq.to(torch.bfloat16).float()
        self.protocol: dict[str, Any] = {
            "metric": "hps_v3",
            "model": identity,
            "precision": str(model.dtype).removeprefix("torch."),
            "head": "float32, output 0",
            "pictures": f"PIL bicubic to {PIXELS} pixels in multiples of 28",
            "positions": "one-dimensional",
            "frequencies": "bfloat16" if round_frequencies else "float32",
            "template": hashlib.sha256(template.encode()).hexdigest(),
            "chat_template": hashlib.sha256(self._chat(template).encode()).hexdigest(),
        }

    @classmethod
    def load(
        cls,
        source: str,
        revision: str = "main",
        device: str = "cpu",
        base: str = "",
        base_revision: str = "main",
        template: str | Path = "",
        round_frequencies: bool = True,
    ) -> "HpsV3":
        """Load the model, bfloat16 on a GPU, as the reference, and float32 on a CPU. The head is always float32.

        Args:
            source: File, folder or repository of the weights, such as MizzenAI/HPSv3.
            revision: Revision of the repository.
            device: Device of the model.
            base: Folder or repository of configuration and processor, such as Qwen/Qwen2-VL-7B-Instruct; its weights
                are not needed.
            base_revision: Revision of this repository.
            template: File of the template.
            round_frequencies: Round the model's rotary frequencies to bfloat16.

        Returns:
            The metric.

        Raises:
            MissingWeights: If a model or the template is missing.
            ValueError: If the weights do not fit the configuration exactly.
        """
        text = read_template(template, FIELDS, ORIGIN)
        found = find(source, f"{FILE} of MizzenAI/HPSv3", FILE, revision)
        needed = "the configuration and processor of Qwen/Qwen2-VL-7B-Instruct"
        origin = find(base, needed, revision=base_revision, patterns=_BASE_FILES)
        from safetensors.torch import load_file
        from transformers import AutoProcessor, Qwen2VLConfig, Qwen2VLModel

        if not (origin.path / "config.json").is_file():
            raise MissingWeights(f"{base} has no config.json: needed is {needed}")
        try:
            config = Qwen2VLConfig.from_pretrained(origin.path, local_files_only=True)
            processor = AutoProcessor.from_pretrained(origin.path, local_files_only=True)
        except OSError as error:
            raise MissingWeights(f"{base}: {error}: needed is {needed}") from error
        weights, head_weights = split_weights(load_file(found.path))
        if "language_model.embed_tokens.weight" in weights:  # it has one token more than the base
            config.text_config.vocab_size = len(weights["language_model.embed_tokens.weight"])
        head = new_head(config.text_config.hidden_size)
        try:
            head.load_state_dict(head_weights)
        except RuntimeError as error:
            raise ValueError(f"{source} does not fit {base}: {error}") from error
        dtype = default_dtype(device)
        model = fit_weights(Qwen2VLModel, config, weights, dtype, f"{source} on {base}")
        identity = f"{found.identity} on {origin.identity}"
        return cls(model.to(device), head.to(device), processor, text, identity, round_frequencies)

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the scores.

        Args:
            images: sRGB images, uint8 (B, 3, H, W).
            prompts: One prompt per image.

        Returns:
            Scores (B,), float32; higher is better.

        Raises:
            ValueError: For other images, another number of prompts, or a prompt that contains a special token of the
                model.
        """
        check_pairs(images, prompts)
        for prompt in prompts:
            for name in self.processor.tokenizer.get_added_vocab():
                if name in prompt:
                    raise ValueError(f"the prompt {prompt!r} contains the model's special token {name}")
        scores = [
            self._score(images[start : start + _MAX_BATCH], prompts[start : start + _MAX_BATCH])
            for start in range(0, len(images), _MAX_BATCH)
        ]
        return torch.cat(scores) if scores else torch.zeros(0)

    def _score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        inputs = self.inputs(images, prompts).to(self.model.device)
        tokens = inputs["input_ids"]
        embedded = self.model.get_input_embeddings()(tokens)
        seen = self.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
        places = (tokens == self.model.config.image_token_id)[..., None].expand_as(embedded)
        embedded = embedded.masked_scatter(places, torch.cat(seen).to(embedded.dtype))
        # Qwen2VLModel would position the tokens of an image by row and column; the reference counts them like words.
        count = torch.arange(tokens.shape[1], device=tokens.device).expand(3, *tokens.shape)
        hidden = self.model.language_model(
            inputs_embeds=embedded, attention_mask=inputs["attention_mask"], position_ids=count, use_cache=False
        ).last_hidden_state
        return self.head(hidden[tokens == self.token].float())[:, 0].cpu()

    def inputs(self, images: Tensor, prompts: Sequence[str]) -> Any:
        """Return the input of the model.

        Args:
            images: sRGB images, uint8 (B, 3, H, W).
            prompts: One prompt per image.

        Returns:
            input_ids and attention_mask (B, T), pixel_values and image_grid_thw.
        """
        height, width = target_size(*images.shape[-2:])
        resized = [
            Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).resize((width, height), Image.Resampling.BICUBIC)
            for image in images
        ]
        texts = [self._chat(self.template.replace(PROMPT, prompt)) for prompt in prompts]
        return self.processor(images=resized, text=texts, padding=True, return_tensors="pt", do_resize=False)

    def _chat(self, text: str) -> str:
        from asymflow.models.captioner import chat_prompt

        return chat_prompt(self.processor, text)


def split_weights(checkpoint: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a checkpoint into the model's and the head's weights; the output embeddings are left out.

    Args:
        checkpoint: Tensors by their names in transformers 4.45 or 4.52.

    Returns:
        Weights of Qwen2VLModel by their names in transformers 5, and weights of the head.
    """
    model, head = {}, {}
    for name, value in checkpoint.items():
        if name.startswith("rm_head."):
            head[name.removeprefix("rm_head.")] = value
        elif name != "lm_head.weight":
            for pattern, new in _NAMES:
                if re.match(pattern, name):
                    name = re.sub(pattern, new, name)
                    break
            model[name] = value
    return model, head
