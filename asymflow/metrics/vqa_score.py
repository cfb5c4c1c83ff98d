"""VQAScore: how likely CLIP-FlanT5 is to answer yes, asked whether a picture shows its prompt."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from asymflow.metrics.open_clip_model import check_images
from asymflow.metrics.templates import Template
from asymflow.metrics.weights import MissingWeights, find

NEEDED = "zhiqiulin/clip-flant5-xxl: its configuration, tokenizer and weights"
VISION, VISION_NEEDED = "openai/clip-vit-large-patch14-336", "CLIP ViT-L/14-336 of transformers, with its processor"
FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "*.bin")  # the last are read as tensors alone
QUESTION, ANSWER = 'Does this figure show "{}"? Please answer yes or no.', "Yes"
PICTURE, PLACE = "<image>", "{question}"
ORIGIN = "which the package t2v_metrics has as SYSTEM_MSG and format_question (t5_chat)"
LAYER = -2
"""Of the vision model's hidden states: the last but one"""


class VqaScore:
    """exp of the mean log-probability of the answer's tokens, the end of text among them.

    `vision` is a CLIPVisionModel, `projector` two layers with a GELU between, `t5` a T5ForConditionalGeneration. The
    features of a picture's patches stand in the question where the template says so. The two texts around them are
    tokenized apart, each with its own end of text, as in the model's training.
    """

    def __init__(
        self, t5: Any, projector: nn.Module, vision: Any, processor: Any, tokenizer: Any, template: Template,
        identity: str,
    ):  # fmt: skip
        self.t5, self.projector, self.vision = t5.eval(), projector.eval(), vision.eval()
        self.processor, self.tokenizer, self.template = processor, tokenizer, template
        self.answer = tokenizer(ANSWER, return_tensors="pt").input_ids
        self.protocol: dict[str, Any] = {
            "metric": "vqa_score",
            "model": identity,
            "question": QUESTION,
            "answer": ANSWER,
            "resize": "square with the mean colour around, then the processor's",
            "vision_layer": LAYER,
            "precision": str(t5.dtype).removeprefix("torch."),
            **template.protocol,
        }

    @classmethod
    def load(
        cls, source: str, revision: str = "main", device: str = "cpu", vision: str = VISION, template: str = ""
    ) -> "VqaScore":
        """Folders or repositories of CLIP-FlanT5 and of its vision model, and the template's file. In bfloat16 on a
        GPU, in float32 on a CPU.

        Raises:
            ValueError: one is missing (`MissingWeights`), or does not fit.
        """
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPVisionModel

        text = read_template(template)
        found = find(source, NEEDED, revision=revision, patterns=FILES)
        eye = find(vision, VISION_NEEDED, patterns=FILES)
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        model = _load_t5(found.path, dtype)
        tower = CLIPVisionModel.from_pretrained(eye.path, dtype=dtype)
        if model.mm_projector[0].in_features != tower.config.hidden_size:
            raise MissingWeights(f"{vision} gives {tower.config.hidden_size} values a patch, {source} wants others")
        return cls(
            model.to(device),
            model.mm_projector.to(device),
            tower.to(device),
            CLIPImageProcessor.from_pretrained(eye.path),
            AutoTokenizer.from_pretrained(found.path),
            text,
            f"{found.identity} {eye.identity}",
        )

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) float32 in (0, 1], of uint8 images (B, 3, H, W) and their prompts."""
        check_images(images)
        if len(images) != len(prompts):
            raise ValueError(f"there are {len(images)} pictures and {len(prompts)} prompts")
        features = self.features(images)
        asked = [self._asked(prompt, own) for prompt, own in zip(prompts, features, strict=True)]
        longest = max(len(one) for one in asked)
        embeddings = torch.stack([F.pad(one, (0, 0, 0, longest - len(one))) for one in asked])
        lengths = torch.tensor([len(one) for one in asked], device=embeddings.device)
        mask = (torch.arange(longest, device=embeddings.device) < lengths[:, None]).long()
        labels = self.answer.to(embeddings.device).repeat(len(images), 1)
        logits = self.t5(inputs_embeds=embeddings, attention_mask=mask, labels=labels).logits.float()
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return (-loss.view_as(labels).mean(1)).exp().cpu()

    def features(self, images: Tensor) -> Tensor:
        """(B, patches, T5's width)."""
        pixels = self.processor(images=[squared(i, self.processor.image_mean) for i in images], return_tensors="pt")
        pixels = pixels["pixel_values"].to(self.vision.device, self.vision.dtype)
        hidden = self.vision(pixels, output_hidden_states=True).hidden_states[LAYER]
        return self.projector(hidden[:, 1:])  # without the class token

    def _asked(self, prompt: str, features: Tensor) -> Tensor:
        """(tokens, width) of one question, the picture in it."""
        before, after = self.template.text.split(PICTURE)
        question = QUESTION.format(prompt)
        texts = [part.replace(PLACE, question) for part in (before, after)]
        embed = self.t5.get_input_embeddings()
        ids = [torch.tensor(self.tokenizer(text).input_ids, device=features.device) for text in texts]
        return torch.cat([embed(ids[0]), features, embed(ids[1])])


def read_template(path: str) -> Template:
    """Raises MissingWeights."""
    return Template(path, (PICTURE, PLACE), ORIGIN)


def squared(image: Tensor, mean: Sequence[float]) -> Image.Image:
    """uint8 (3, H, W) in the middle of a square of the mean colour."""
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    side = max(picture.size)
    square = Image.new("RGB", (side, side), tuple(int(255 * value) for value in mean))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def _load_t5(folder: Path, dtype: torch.dtype) -> Any:
    """A T5 with the projector beside, all of whose weights stand in the folder. Raises MissingWeights."""
    from transformers import T5Config, T5ForConditionalGeneration

    config_file = folder / "config.json"
    if not config_file.is_file():
        raise MissingWeights(f"{folder} has no config.json: needed is {NEEDED}")
    settings = json.loads(config_file.read_text("utf-8"))
    if "mm_hidden_size" not in settings:
        raise MissingWeights(f"{config_file} knows no mm_hidden_size, so it is no CLIP-FlanT5: needed is {NEEDED}")

    class ClipT5(T5ForConditionalGeneration):
        def __init__(self, config: Any):
            super().__init__(config)
            width = config.d_model
            layers = nn.Linear(config.mm_hidden_size, width), nn.GELU(), nn.Linear(width, width)
            self.mm_projector = nn.Sequential(*layers)

    # "clip_t5", which the file is of, is none of transformers' kinds
    config = T5Config.from_dict({name: value for name, value in settings.items() if name != "model_type"})
    try:
        model, loading = ClipT5.from_pretrained(
            folder, config=config, dtype=dtype, weights_only=True, output_loading_info=True
        )
    except (OSError, RuntimeError) as error:
        raise MissingWeights(f"{folder} cannot be read: {error}") from error
    missing = sorted(loading["missing_keys"])
    unknown = sorted(name for name in loading["unexpected_keys"] if not name.startswith("vision_tower."))
    if missing or unknown:
        shown = ", ".join([*missing, *unknown][:5])
        raise MissingWeights(f"{folder} does not fit its configuration: missing or unknown are {shown}")
    return model
