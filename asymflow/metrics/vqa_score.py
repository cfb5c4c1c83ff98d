"""VQAScore (Lin et al. 2024): the probability that CLIP-FlanT5 answers Yes to whether an image shows the prompt.

CLIP-FlanT5 is a T5 whose input has, in the place of one word, the projected patches of CLIP's vision tower.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from asymflow.devices import default_dtype
from asymflow.metrics.arguments import check_images
from asymflow.metrics.templates import check_template, read_template
from asymflow.metrics.weights import MissingWeights, find, find_tokenizer, fit_weights
from asymflow.text_files import read_json_object

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'
ANSWER = "Yes"
IMAGE_TOKEN = "<image>"
FIELDS = (IMAGE_TOKEN, "{question}")
ORIGIN = "the text around a question in t2v_metrics, `format_question` (t5_chat)"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of CLIP's images, in [0, 1]"""
_LAYER = -2  # of the vision tower: what the last but one puts out
_LONGEST = 2048  # tokens, one of them for the image: the reference cuts there
_MAX_BATCH = 8  # images per forward pass
_WEIGHT_FILES = ("*.json", "*.safetensors", "*.bin")
_TOKENIZER_FILES = ("config.json", "tokenizer*", "special_tokens_map.json", "spiece.model")
_SHARED = ("embed_tokens.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def new_projector(width: int, out: int) -> nn.Sequential:
    """Return a projector from patch features (..., width) to word embeddings (..., out).

    Args:
        width: Width of a feature.
        out: Width of an embedding.

    Returns:
        The projector, with random weights.
    """
    return nn.Sequential(nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))


def preprocess(image: Tensor, side: int) -> Tensor:
    """Return the input of CLIP for an image: padded to a square with CLIP's mean color, then resized by PIL's bicubic.

    Args:
        image: sRGB image, uint8 (3, H, W). It is centered in the square, half a pixel up or left for an odd margin.
        side: Side of the result in pixels.

    Returns:
        Normalized pixels (3, side, side), float32.
    """
    height, width = image.shape[1:]
    longest = max(height, width)
    square = torch.tensor([int(255 * value) for value in MEAN], dtype=torch.uint8).view(3, 1, 1)
    square = square.repeat(1, longest, longest)
    top, left = (longest - height) // 2, (longest - width) // 2
    square[:, top : top + height, left : left + width] = image
    pil = Image.fromarray(square.permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.BICUBIC)
    values = torch.frombuffer(bytearray(pil.tobytes()), dtype=torch.uint8).view(side, side, 3).permute(2, 0, 1) / 255
    return (values - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


class VqaScore:
    """Compute VQAScore.

    As in the reference, the text on each side of the image ends with the end token, and so does the answer, where it
    counts; rows of the vocabulary beyond the tokenizer's are dropped. (Its first versions, with "Is the image showing",
    also masked unknown tokens.) The authors' evaluation differs: it keeps all rows, resizes on the tensor (antialiased,
    clamped), and does not use autocast.

    Args:
        language: A T5ForConditionalGeneration.
        vision: A CLIPVisionModel.
        projector: The projector, as from `new_projector`.
        tokenizer: A T5 tokenizer.
        template: Text around image and question, with `<image>` and `{question}` once each.
        identity: Name of the weights in the protocol.

    Raises:
        ValueError: If the template lacks a field, or tokenizer and model do not fit.
    """

    def __init__(self, language: Any, vision: Any, projector: nn.Module, tokenizer: Any, template: str, identity: str):
        self.template = check_template(template, FIELDS, ORIGIN)
        self.language, self.vision, self.projector = language.eval(), vision.eval(), projector.eval()
        self.tokenizer = tokenizer
        self.answer = torch.tensor(tokenizer(ANSWER)["input_ids"], device=language.device)
        if self.answer[-1] != tokenizer.eos_token_id:
            raise ValueError("the tokenizer does not put its end token behind a text")
        if tokenizer.unk_token_id in self.answer:
            raise ValueError(f"the tokenizer does not know the word {ANSWER}")
        rows = language.lm_head.out_features
        if len(tokenizer) > rows:
            raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, the model {rows}")
        self.protocol: dict[str, Any] = {
            "metric": "vqa_score",
            "model": identity,
            "precision": str(language.dtype).removeprefix("torch."),
            "question": QUESTION,
            "answer": f"{ANSWER}, then the end",
            "pictures": f"square with the mean colour, PIL bicubic to {vision.config.image_size}",
            "features": f"patches of layer {_LAYER}",
            "vocabulary": len(tokenizer),
            "template": hashlib.sha256(template.encode()).hexdigest(),
        }

    @classmethod
    def load(
        cls,
        source: str,
        revision: str = "main",
        device: str = "cpu",
        vision: str = "",
        vision_revision: str = "main",
        tokenizer: str = "",
        tokenizer_revision: str = "main",
        template: str | Path = "",
    ) -> "VqaScore":
        """Load the model. Each source is a folder or repository.

        The model is bfloat16 on a GPU, as the reference, and float32 on a CPU.

        Args:
            source: CLIP-FlanT5, such as zhiqiulin/clip-flant5-xxl.
            revision: Revision of this repository.
            device: Device of the model.
            vision: CLIP's vision tower, such as openai/clip-vit-large-patch14-336; its weights are used only if
                `source` has none.
            vision_revision: Revision of this repository.
            tokenizer: The tokenizer, such as google/flan-t5-xxl.
            tokenizer_revision: Revision of this repository.
            template: File of the template.

        Returns:
            The metric.

        Raises:
            MissingWeights: If a model or the template is missing.
            ValueError: If the weights do not fit the configuration exactly.
        """
        text = read_template(template, FIELDS, ORIGIN)
        needed = "CLIP-FlanT5, zhiqiulin/clip-flant5-xxl"
        tower_needed = "CLIP's vision tower, openai/clip-vit-large-patch14-336"
        found = find(source, needed, revision=revision, patterns=_WEIGHT_FILES)
        tower = find(vision, tower_needed, revision=vision_revision, patterns=_WEIGHT_FILES)
        words_needed = "the tokenizer of google/flan-t5-xxl"
        words = find_tokenizer(tokenizer, words_needed, tokenizer_revision, _TOKENIZER_FILES)
        for one, what in ((found, needed), (tower, tower_needed)):
            if not (one.path / "config.json").is_file():
                raise MissingWeights(f"{one.path} has no config.json: needed is {what}")
        from transformers import AutoTokenizer, CLIPVisionConfig, CLIPVisionModel, T5Config, T5ForConditionalGeneration

        dtype = default_dtype(device)
        checkpoint = read_weights(found.path, needed)
        try:
            weights, seeing, projecting = split_weights(checkpoint)
        except ValueError as error:
            raise ValueError(f"{source} does not fit: {error}") from error
        # Its model_type is not transformers'; and where this is false, T5 does not scale what it puts out.
        described = read_json_object(found.path / "config.json")
        config = T5Config(**{name: value for name, value in described.items() if name != "model_type"})
        config.vocab_size = len(weights["shared.weight"])
        language = fit_weights(T5ForConditionalGeneration, config, weights, dtype, source).to(device, dtype)
        tower_config = CLIPVisionConfig.from_pretrained(tower.path, local_files_only=True)
        own = bool(seeing)
        if not own:
            seeing = tower_weights(read_weights(tower.path, tower_needed))
        eyes = fit_weights(CLIPVisionModel, tower_config, seeing, dtype, source if own else vision).to(device, dtype)
        projector = new_projector(tower_config.hidden_size, config.d_model)
        try:
            projector.load_state_dict(projecting)
            reader = AutoTokenizer.from_pretrained(words.path, local_files_only=True)
        except RuntimeError as error:
            raise ValueError(f"{source}: the projector's weights do not fit: {error}") from error
        except OSError as error:
            raise MissingWeights(f"{tokenizer}: {error}: needed is {words_needed}") from error
        identity = f"{found.identity}; tower {'its own' if own else tower.identity}; words {words.identity}"
        return cls(language, eyes, projector.to(device, dtype), reader, text, identity)

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the scores.

        Args:
            images: sRGB images, uint8 (B, 3, H, W).
            prompts: One prompt per image.

        Returns:
            Probabilities (B,) in (0, 1), float32; higher is better.

        Raises:
            ValueError: For other images, another number of prompts, or a prompt that is empty or too long.
        """
        check_images(images)
        if len(prompts) != len(images) or not all(prompt.strip() for prompt in prompts):
            raise ValueError(f"{len(images)} images need as many prompts, none of them empty; got {len(prompts)}")
        texts = [self._tokens(prompt) for prompt in prompts]
        scores = []
        # The reference casts the weights, and runs under autocast besides: norms and CLIP's residuals in float32.
        bfloat16 = self.language.dtype == torch.bfloat16
        with torch.autocast(self.language.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            for start in range(0, len(images), _MAX_BATCH):
                part = slice(start, start + _MAX_BATCH)
                scores.append(self._score(images[part], texts[part]))
        return torch.cat(scores) if scores else torch.zeros(0)

    def _tokens(self, prompt: str) -> list[Tensor]:
        """Return the tokens of the text before and after the image. A prompt may contain `<image>`, as words."""
        sides = [side.replace("{question}", QUESTION.format(prompt)) for side in self.template.split(IMAGE_TOKEN)]
        tokens = [torch.tensor(self.tokenizer(side)["input_ids"], device=self.language.device) for side in sides]
        length = sum(map(len, tokens)) + 1
        if length > _LONGEST:
            raise ValueError(f"the prompt {prompt[:50]!r}… makes {length} tokens; the model reads {_LONGEST}")
        return tokens

    def _score(self, images: Tensor, texts: Sequence[Sequence[Tensor]]) -> Tensor:
        device, dtype = self.language.device, self.language.dtype
        pixels = torch.stack([preprocess(image.cpu(), self.vision.config.image_size) for image in images])
        seen = self.vision(pixels.to(device, dtype), output_hidden_states=True).hidden_states[_LAYER][:, 1:]
        embed, rows, masks = self.language.get_input_embeddings(), [], []
        for patches, (before, behind) in zip(self.projector(seen).to(dtype), texts, strict=True):
            rows.append(torch.cat([embed(before), patches, embed(behind)]))
            masks.append(torch.ones(len(rows[-1]), dtype=torch.long, device=device))
        answer = self.answer.expand(len(rows), -1)
        logits = self.language(
            inputs_embeds=nn.utils.rnn.pad_sequence(rows, batch_first=True),
            attention_mask=nn.utils.rnn.pad_sequence(masks, batch_first=True),
            decoder_input_ids=self.language.prepare_decoder_input_ids_from_labels(answer),
            use_cache=False,
        ).logits
        odds = logits.float()[..., : len(self.tokenizer)].log_softmax(-1)
        return odds.gather(-1, answer[..., None]).mean((1, 2)).exp().cpu()


def read_weights(folder: Path, needed: str) -> dict[str, Tensor]:
    """Read all tensors of a model's folder, from safetensors or else from pickles of tensors only, in shards or not.

    Args:
        folder: The folder.
        needed: Description of the model and its origin, for errors.

    Returns:
        Tensors by name.

    Raises:
        MissingWeights: If a file is missing.
        ValueError: If a pickle contains more than tensors.
    """
    from safetensors.torch import load_file

    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if index.is_file():
            files = sorted(set(read_json_object(index)["weight_map"].values()))
        elif (folder / name).is_file():
            files = [name]
        else:
            continue
        weights: dict[str, Tensor] = {}
        for file in files:
            if not (folder / file).is_file():
                raise MissingWeights(f"{folder} has no {file}, which its index lists: needed is {needed}")
            if name.endswith(".safetensors"):
                weights |= load_file(folder / file)
                continue
            try:
                weights |= torch.load(folder / file, map_location="cpu", weights_only=True, mmap=True)
            except UnpicklingError as error:
                raise ValueError(f"{folder / file} contains more than tensors: {error}") from error
        return weights
    raise MissingWeights(f"{folder} has neither model.safetensors nor pytorch_model.bin: needed is {needed}")


def split_weights(checkpoint: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Split a checkpoint by module.

    Args:
        checkpoint: Tensors by name.

    Returns:
        Weights of T5, of the vision tower, and of the projector.

    Raises:
        ValueError: If word embeddings are missing or differ, or the output's are missing (transformers would tie them).
    """
    language, tower, projector = {}, {}, {}
    for name, value in checkpoint.items():
        if name.startswith("mm_projector."):
            projector[name.removeprefix("mm_projector.")] = value
        elif name.startswith("vision_tower.vision_tower."):
            tower[name.removeprefix("vision_tower.vision_tower.")] = value
        elif name not in _SHARED:
            language[name] = value
    for name in ("shared.weight", "lm_head.weight"):
        if name not in language:
            raise ValueError(f"there is no {name}")
    for name in _SHARED:  # the same once more
        if name in checkpoint and not torch.equal(checkpoint[name], language["shared.weight"]):
            raise ValueError(f"{name} is not shared.weight")
    return language, tower_weights(tower), projector


def tower_weights(checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of CLIP's vision tower by their names in transformers 5.

    Args:
        checkpoint: Tensors of a whole CLIP, or of the tower, by name.

    Returns:
        Weights by name.
    """
    left_out = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
    return {
        name.removeprefix("vision_model."): value
        for name, value in checkpoint.items()
        if not name.startswith(left_out) and not name.endswith("embeddings.position_ids")
    }
