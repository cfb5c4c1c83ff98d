"""HPSv3: the preference that a Qwen2-VL, finetuned with a head on one special token, predicts for a picture.

The reference (package `hpsv3`) was written for transformers 4.45, which differs from ours in three things that move
the score: names of modules, M-RoPE, and what becomes of rotary frequencies in a model that is cast to bfloat16.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from asymflow.metrics.arguments import check_pairs
from asymflow.metrics.templates import check_template, read_template
from asymflow.metrics.weights import MissingWeights, find, fit_weights

FILE = "HPSv3.safetensors"
PIXELS = 256 * 28 * 28
"""Of a resized picture, as nearly as multiples of 28 allow: the least and the most"""
SPECIAL = "<|Reward|>"
PROMPT = "{text_prompt}"
"""As in the reference's own text"""
FIELDS = (PROMPT, SPECIAL)
ORIGIN = "INSTRUCTION and prompt_with_special_token of the package hpsv3, one after the other"
_MOST = 8  # pictures in one forward
_BASE_FILES = ("*.json", "*.txt", "*.jinja")
# From the names in the checkpoint, of transformers 4.45 or 4.52, to those of Qwen2VLModel in 5; the first that fits.
_NAMES = (
    (r"^model\.(language_model|visual)\.", r"\1."),
    (r"^model\.(embed_tokens|layers|norm)\.", r"language_model.\1."),
)


def target_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) in multiples of 28, near PIXELS in all, rounded down from larger pictures and up from smaller.

    transformers' rule gives with these bounds what hpsv3's own gives. ValueError for sides more than 200 : 1.
    """
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    return smart_resize(height, width, factor=28, min_pixels=PIXELS, max_pixels=PIXELS)


def new_head(width: int) -> nn.Sequential:
    """Features (…, width) -> mean and spread (…, 2), in float32."""
    return nn.Sequential(
        nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    )


class HpsV3:
    """Of a `Qwen2VLModel`, a head (`new_head`), a Qwen2-VL processor, whose tokenizer gets the special token, and a
    template, the text that follows the picture: `{text_prompt}` and `<|Reward|>` once each.

    `round_frequencies` rounds the model's rotary frequencies to bfloat16 (in place): the reference casts the model
    with its buffers, in training as in inference, and position 400 times such a frequency is another angle. (It also
    rounds their products with the rows and columns of a picture's patches, to less than 0.05 from those here.)

    Raises:
        ValueError: the template lacks something, or the model's vocabulary is not the tokenizer's.
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
        """Weights from `source` (a file, a folder or MizzenAI/HPSv3); configuration and processor from `base` (a
        folder or Qwen/Qwen2-VL-7B-Instruct), of which no weights are needed; the text from the file `template`.

        bfloat16 on a GPU, as the reference; float32 on a CPU. The head is float32 always.

        Raises:
            MissingWeights: a model is not there.
            ValueError: there is no template, or weights do not fit the configuration, all of them and no others.
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
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        model = fit_weights(Qwen2VLModel, config, weights, dtype, f"{source} on {base}")
        identity = f"{found.identity} on {origin.identity}"
        return cls(model.to(device), head.to(device), processor, text, identity, round_frequencies)

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) float32, of uint8 images (B, 3, H, W), sRGB, and B prompts; higher is better.

        Raises:
            ValueError: images or prompts are something else, or a prompt holds one of the model's special tokens.
        """
        check_pairs(images, prompts)
        for prompt in prompts:
            for name in self.processor.tokenizer.get_added_vocab():
                if name in prompt:
                    raise ValueError(f"the prompt {prompt!r} holds the model's special token {name}")
        scores = [
            self._score(images[start : start + _MOST], prompts[start : start + _MOST])
            for start in range(0, len(images), _MOST)
        ]
        return torch.cat(scores) if scores else torch.zeros(0)

    def _score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        inputs = self.inputs(images, prompts).to(self.model.device)
        tokens = inputs["input_ids"]
        embedded = self.model.get_input_embeddings()(tokens)
        seen = self.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
        places = (tokens == self.model.config.image_token_id)[..., None].expand_as(embedded)
        embedded = embedded.masked_scatter(places, torch.cat(seen).to(embedded.dtype))
        # Qwen2VLModel would place the tokens of a picture by row and column; the reference counts them on as words.
        count = torch.arange(tokens.shape[1], device=tokens.device).expand(3, *tokens.shape)
        hidden = self.model.language_model(
            inputs_embeds=embedded, attention_mask=inputs["attention_mask"], position_ids=count, use_cache=False
        ).last_hidden_state
        return self.head(hidden[tokens == self.token].float())[:, 0].cpu()

    def inputs(self, images: Tensor, prompts: Sequence[str]) -> Any:
        """What the model sees: input_ids and attention_mask (B, T), pixel_values and image_grid_thw."""
        height, width = target_size(*images.shape[-2:])
        pictures = [
            Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).resize((width, height), Image.Resampling.BICUBIC)
            for image in images
        ]
        texts = [self._chat(self.template.replace(PROMPT, prompt)) for prompt in prompts]
        return self.processor(images=pictures, text=texts, padding=True, return_tensors="pt", do_resize=False)

    def _chat(self, text: str) -> str:
        from asymflow.models.captioner import chat_prompt

        return chat_prompt(self.processor, text)


def split_weights(checkpoint: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(of Qwen2VLModel, of the head), by their names in transformers 5; what predicts words is left out."""
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
