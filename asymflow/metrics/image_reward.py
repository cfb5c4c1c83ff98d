"""ImageReward (Xu et al. 2023): human preference by BLIP, whose text encoder attends to the image, and linear layers.

The checkpoint has the names of BLIP's own code; transformers' classes are the same networks under other names.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asymflow.metrics.aesthetic import build_head
from asymflow.metrics.arguments import check_pairs, to_pil_images
from asymflow.metrics.open_clip_model import read_weights
from asymflow.metrics.weights import MissingWeights, find, find_tokenizer
from asymflow.text_files import read_json_object

FILE = "ImageReward.pt"
NEEDED = f"{FILE} of THUDM/ImageReward"
TOKENIZER_NEEDED = "the tokenizer of google-bert/bert-base-uncased"
VISION: Mapping[str, Any] = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 16, "layer_norm_eps": 1e-6,
}  # fmt: skip
"""ViT-L/16 of BLIP"""
TEXT: Mapping[str, Any] = {"encoder_hidden_size": 1024, "num_attention_heads": 12}
"""BERT base of BLIP, other values as in transformers"""
MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the layers' output over the authors' data"""
_LONGEST = 35  # tokens; prompts are padded or cut to this number
_TOKENIZER_FILES = ("*.json", "vocab.txt")
# From the names in the checkpoint to those of BlipVisionModel.
_VISION_NAMES = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.", "encoder.layers."),
)


class ImageReward:
    """Compute ImageReward.

    The shorter side is resized to the model's by Pillow's bicubic, then the image is center-cropped.

    Args:
        vision: A BlipVisionModel.
        text: A BlipTextModel with cross-attention.
        head: The layers on the text's first token, as from `build_head`.
        tokenizer: A BERT tokenizer.
        identity: Name of the weights in the protocol.
    """

    def __init__(self, vision: Any, text: Any, head: nn.Module, tokenizer: Any, identity: str):
        from open_clip import image_transform

        self.vision, self.text, self.head, self.tokenizer = vision.eval(), text.eval(), head.eval(), tokenizer
        self.transform = image_transform(vision.config.image_size, is_train=False)  # with OpenAI's normalization
        self.protocol: dict[str, Any] = {
            "metric": "image_reward",
            "model": identity,
            "resize": f"Pillow bicubic, shorter side to {vision.config.image_size}, center crop",
            "prompt": f"padded or cut to {_LONGEST} tokens",
            "precision": "float32",
        }

    @classmethod
    def load(
        cls,
        source: str,
        revision: str = "main",
        device: str = "cpu",
        tokenizer: str = "",
        tokenizer_revision: str = "main",
        architecture: str | Path = "",
    ) -> "ImageReward":
        """Load the model in float32.

        Args:
            source: File, folder or repository of the weights, such as THUDM/ImageReward.
            revision: Revision of this repository.
            device: Device of the model.
            tokenizer: Folder or repository of the tokenizer, such as google-bert/bert-base-uncased.
            tokenizer_revision: Revision of this repository.
            architecture: JSON file {vision, text} of transformers' settings; empty: VISION and TEXT.

        Returns:
            The metric.

        Raises:
            MissingWeights: If weights or tokenizer are missing, or the weights are of another architecture.
        """
        found = find(source, NEEDED, FILE, revision)
        words = find_tokenizer(tokenizer, TOKENIZER_NEEDED, tokenizer_revision, _TOKENIZER_FILES)
        from transformers import AutoTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        described = read_json_object(architecture) if architecture else {"vision": VISION, "text": TEXT}
        vision = BlipVisionModel(BlipVisionConfig(**described["vision"]))
        text = BlipTextModel(BlipTextConfig(**described["text"]), add_pooling_layer=False)
        try:
            vision_weights, text_weights, head_weights = split_weights(read_weights(found.path))
            vision.load_state_dict(vision_weights)
            text.load_state_dict(text_weights)
            head = build_head(head_weights)
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise MissingWeights(f"{source} does not fit: {reason}; needed is {NEEDED}") from error
        reader = AutoTokenizer.from_pretrained(words.path, local_files_only=True)
        identity = f"{found.identity}; words {words.identity}"
        return cls(vision.to(device), text.to(device), head.to(device), reader, identity)

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the scores.

        Args:
            images: sRGB images, uint8 (B, 3, H, W).
            prompts: One prompt per image.

        Returns:
            Scores (B,), float32, with mean 0 and deviation 1 over the authors' data; higher is better.

        Raises:
            ValueError: For other images, or another number of prompts.
        """
        check_pairs(images, prompts)
        if not len(images):
            return torch.zeros(0)
        pil_images = to_pil_images(images)
        pixels = torch.stack([self.transform(image) for image in pil_images]).to(self.vision.device)
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=_LONGEST, return_tensors="pt"
        ).to(self.vision.device)
        read = self.text(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            encoder_hidden_states=self.vision(pixel_values=pixels).last_hidden_state,
        ).last_hidden_state
        return ((self.head(read[:, 0])[:, 0] - MEAN) / STD).cpu()


def split_weights(
    checkpoint: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Split a checkpoint by module.

    Args:
        checkpoint: Tensors by their names in the reference.

    Returns:
        Weights of BlipVisionModel and BlipTextModel by their names in transformers, and of the linear layers.
    """
    vision, text, head = {}, {}, {}
    for name, value in checkpoint.items():
        if name.startswith("blip.visual_encoder."):
            own = name.removeprefix("blip.visual_encoder.")
            pattern, new = next((pair for pair in _VISION_NAMES if re.match(pair[0], own)), ("^", ""))
            vision[re.sub(pattern, new, own)] = value
        elif name.startswith("blip.text_encoder.") and not name.endswith("embeddings.position_ids"):
            text[name.removeprefix("blip.text_encoder.")] = value
        elif name.startswith("mlp."):
            head[name.removeprefix("mlp.")] = value
    return vision, text, head
