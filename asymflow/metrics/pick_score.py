"""PickScore (Kirstain et al. 2023): human preference by CLIP ViT-H/14, finetuned on pairs of images."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from asymflow.metrics.arguments import check_pairs, to_pil_images
from asymflow.metrics.image_questions import load_pretrained
from asymflow.metrics.weights import MissingWeights, find, find_tokenizer

NEEDED = "yuvalkirstain/PickScore_v1"
PROCESSOR_NEEDED = "the tokenizer and image processor of laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
_PROCESSOR_FILES = ("*.json", "*.txt")


class PickScore:
    """Compute the scaled cosine of image and prompt features, before the softmax over images of one prompt.

    Args:
        model: A CLIPModel.
        processor: Its CLIPProcessor; prompts longer than the model's context are cut.
        identity: Name of the weights in the protocol.
    """

    def __init__(self, model: Any, processor: Any, identity: str):
        self.model, self.processor = model.eval(), processor
        self.protocol: dict[str, Any] = {
            "metric": "pick_score",
            "model": identity,
            "score": "scaled cosine",
            "precision": str(model.dtype).removeprefix("torch."),
            "pictures": type(processor.image_processor).__name__,
        }

    @classmethod
    def load(
        cls,
        source: str,
        revision: str = "main",
        device: str = "cpu",
        processor: str = "",
        processor_revision: str = "main",
    ) -> "PickScore":
        """Load the model in float32.

        Args:
            source: Folder or repository of the weights, such as yuvalkirstain/PickScore_v1.
            revision: Revision of this repository.
            device: Device of the model.
            processor: Folder or repository of tokenizer and image processor; the weights' repository has none.
            processor_revision: Revision of this repository.

        Returns:
            The metric.

        Raises:
            MissingWeights: If the model or its processor is missing.
        """
        found = find(source, NEEDED, revision=revision)
        files = find_tokenizer(processor, PROCESSOR_NEEDED, processor_revision, _PROCESSOR_FILES)
        from transformers import CLIPModel, CLIPProcessor

        try:
            model = load_pretrained(CLIPModel, found.path, torch.float32)
            reader = CLIPProcessor.from_pretrained(files.path, local_files_only=True)
        except (OSError, ValueError) as error:
            raise MissingWeights(f"{source}, {processor}: {str(error).splitlines()[0]}; needed is {NEEDED}") from error
        return cls(model.to(device), reader, f"{found.identity}; processor {files.identity}")

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the scores.

        Args:
            images: sRGB images, uint8 (B, 3, H, W).
            prompts: One prompt per image.

        Returns:
            Scores (B,), float32, about 20 for published models; higher is better.

        Raises:
            ValueError: For other images, or another number of prompts.
        """
        check_pairs(images, prompts)
        if not len(images):
            return torch.zeros(0)
        pil_images = to_pil_images(images)
        pixels = self.processor.image_processor(images=pil_images, return_tensors="pt").to(self.model.device)
        tokens = self.processor.tokenizer(
            list(prompts),
            padding=True,
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.model.device)
        seen = F.normalize(self.model.get_image_features(**pixels).pooler_output, dim=-1)
        read = F.normalize(self.model.get_text_features(**tokens).pooler_output, dim=-1)
        return (self.model.logit_scale.exp() * (seen * read).sum(-1)).cpu()
