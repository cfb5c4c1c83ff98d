"""Scorers of human preference and aesthetics."""

from asymflow.metrics.protocol import Protocol
from pipelines.evaluate.scorer import OPEN_CLIP, ModelScorer, Score, as_rows


class PickScorer(ModelScorer):
    """PickScore."""

    processor: str = ""
    """Its tokenizer and image processor"""
    needed = {
        "model": ("yuvalkirstain/PickScore_v1", ""),
        "processor": ("the tokenizer and image processor of laion/CLIP-ViT-H-14-laion2B-s32B-b79K", ""),
    }

    def load(self, device: str) -> tuple[Score, Protocol]:
        """Return the scoring function and its protocol."""
        from asymflow.metrics.pick_score import PickScore

        metric = PickScore.load(self.model, device=device, processor=self.processor)
        return as_rows(metric), metric.protocol


class AestheticScorer(ModelScorer):
    """LAION's aesthetic predictor."""

    clip: str = ""
    """OpenAI's CLIP ViT-L-14"""
    architecture: str = "ViT-L-14-quickgelu"
    """Of CLIP"""
    needed = {
        "model": (
            "a file, sa_0_4_vit_l_14_linear.pth of LAION-AI/aesthetic-predictor or sac+logos+ava1-l14-linearMSE.pth of "
            "christophschuhmann/improved-aesthetic-predictor on GitHub",
            "sa_0_4_vit_l_14_linear.pth",
        ),
        "clip": ("timm/vit_large_patch14_clip_224.openai", OPEN_CLIP),
    }
    files = ("architecture",)

    def load(self, device: str) -> tuple[Score, Protocol]:
        """Return the scoring function and its protocol."""
        from asymflow.metrics.aesthetic import Aesthetic

        metric = Aesthetic.load(self.model, device=device, clip=self.clip, architecture=self.architecture)
        return as_rows(metric), metric.protocol


class ImageRewardScorer(ModelScorer):
    """ImageReward."""

    tokenizer: str = ""
    """BERT's tokenizer"""
    architecture: str = ""
    """A JSON file {vision, text} with BLIP's sizes; empty: the published model's"""
    needed = {
        "model": ("THUDM/ImageReward", "ImageReward.pt"),
        "tokenizer": ("google-bert/bert-base-uncased", ""),
    }
    files = ("architecture",)

    def load(self, device: str) -> tuple[Score, Protocol]:
        """Return the scoring function and its protocol."""
        from asymflow.metrics.image_reward import ImageReward

        metric = ImageReward.load(self.model, device=device, tokenizer=self.tokenizer, architecture=self.architecture)
        return as_rows(metric), metric.protocol
