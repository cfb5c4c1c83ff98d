"""Safety filter: a classifier of sampled images; flagged images are replaced by black ones."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from pipelines.core.config import ConfigError, read_json_setting
from pipelines.sample.config import Safety


class SafetyFilter:
    """Classifies images, if the settings name a classifier.

    Raises ConfigError for a folder without a classifier, or a label that it does not have.
    """

    def __init__(self, settings: Safety, device: str):
        self.threshold, self.device = settings.threshold, device
        self.model = self.processor = None
        if not settings.classifier:
            return
        check_safety(settings)
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        self.processor = AutoImageProcessor.from_pretrained(settings.classifier)
        self.model = AutoModelForImageClassification.from_pretrained(settings.classifier).to(device).eval()
        self.label = self.model.config.label2id[settings.label]

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> tuple[list[Image.Image], list[bool]]:
        """Return the images with flagged ones black, and which were flagged."""
        if self.model is None or self.processor is None:
            return list(images), [False] * len(images)
        inputs = self.processor(images=list(images), return_tensors="pt").to(self.device)
        flagged = (self.model(**inputs).logits.softmax(-1)[:, self.label] >= self.threshold).tolist()
        black = [Image.new("RGB", p.size) if is_flagged else p for p, is_flagged in zip(images, flagged, strict=True)]
        return black, flagged


def check_safety(settings: Safety) -> None:
    """Check classifier and label without loading the model. Raises ConfigError."""
    if not settings.classifier:
        return
    config = Path(settings.classifier) / "config.json"
    if not config.is_file():
        raise ConfigError(f"safety.classifier={settings.classifier!r}: not a folder of a transformers image classifier")
    labels = read_json_setting(config, f"safety.classifier={settings.classifier!r}").get("label2id", {})
    if settings.label not in labels:
        raise ConfigError(f"safety.label={settings.label!r}: the classifier has {', '.join(labels) or 'no labels'}")
