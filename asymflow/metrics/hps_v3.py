"""HPSv3: what people prefer, by a Qwen2-VL whose head was trained on their choices."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from asymflow.metrics.open_clip_model import check_images
from asymflow.metrics.templates import Template
from asymflow.metrics.weights import MissingWeights, find

FILE, BASE = "HPSv3.safetensors", "Qwen/Qwen2-VL-7B-Instruct"
NEEDED, BASE_NEEDED = f"{FILE} of MizzenAI/HPSv3", f"the configuration and tokenizer of {BASE}"
BASE_FILES = ("*.json", "*.txt", "*.jinja")
PROMPT, REWARD, IMAGE = "{text_prompt}", "<|Reward|>", "<|image_pad|>"
ORIGIN = "which the package hpsv3 has as INSTRUCTION and prompt_with_special_token, one after the other"
PIXELS, FACTOR = 256 * 28 * 28, 28


class HpsV3:
    """The first output of the head at the reward token.

    The language model is given plain positions 0, 1, 2, ..., as the reference does: transformers' own forward would
    count rows and columns of the picture (M-RoPE), and the score would be another.
    """

    def __init__(self, model: Any, head: nn.Module, tokenizer: Any, processor: Any, template: Template, identity: str):
        """`model` is a Qwen2VLModel, `processor` a Qwen2VLImageProcessor; the tokenizer knows the reward token."""
        self.model, self.head, self.tokenizer = model.eval(), head.float().eval(), tokenizer
        self.processor, self.template = processor, template
        self.image_id, self.reward_id = (tokenizer.convert_tokens_to_ids(token) for token in (IMAGE, REWARD))
        self.protocol: dict[str, Any] = {
            "metric": "hpsv3",
            "model": identity,
            "resize": f"Pillow bicubic to {PIXELS} pixels, sides multiples of {FACTOR}",
            "positions": "plain",
            "precision": f"{str(model.dtype).removeprefix('torch.')}, head float32",
            **template.protocol,
        }

    @classmethod
    def load(
        cls, source: str, revision: str = "main", device: str = "cpu", base: str = BASE, template: str = ""
    ) -> "HpsV3":
        """The checkpoint, the folder or repository of the model that it was made from (no weights of which are read),
        and the template's file. In bfloat16 on a GPU, in float32 on a CPU.

        Raises:
            ValueError: one is missing (`MissingWeights`), or does not fit.
        """
        from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLImageProcessor, Qwen2VLModel

        text = read_template(template)
        found, folder = find(source, NEEDED, FILE, revision), find(base, BASE_NEEDED, patterns=BASE_FILES)
        weights, head = read_checkpoint(found.path)
        tokenizer = AutoTokenizer.from_pretrained(folder.path)
        tokenizer.add_special_tokens({"extra_special_tokens": [REWARD]}, replace_extra_special_tokens=False)
        config = Qwen2VLConfig.from_pretrained(folder.path)
        config.text_config.vocab_size = len(weights["language_model.embed_tokens.weight"])  # with the reward token
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        try:
            model, loading = Qwen2VLModel.from_pretrained(
                None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
            )
        except RuntimeError as error:
            raise MissingWeights(f"{found.path} does not fit {base}: {error}") from error
        wrong = sorted({*loading["missing_keys"], *loading["unexpected_keys"]})
        if wrong:
            raise MissingWeights(f"{found.path} does not fit {base}: missing or unknown are {', '.join(wrong[:5])}")
        processor = Qwen2VLImageProcessor.from_pretrained(folder.path)
        return cls(model.to(device), head.to(device), tokenizer, processor, text, found.identity)

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) float32, of uint8 images (B, 3, H, W) and their prompts."""
        check_images(images)
        if len(images) != len(prompts):
            raise ValueError(f"there are {len(images)} pictures and {len(prompts)} prompts")
        device = self.model.device
        pixels = self.processor(images=[resized(image) for image in images], do_resize=False, return_tensors="pt")
        grid = pixels["image_grid_thw"]
        tokens = (grid.prod(-1) // self.processor.merge_size**2).tolist()
        ids = [torch.tensor(self._ids(p, n)) for p, n in zip(prompts, tokens, strict=True)]
        # Padding stands on the right of a causal model: no token sees it.
        input_ids = pad_sequence(ids, batch_first=True, padding_value=self.tokenizer.pad_token_id).to(device)
        mask = pad_sequence([torch.ones_like(one) for one in ids], batch_first=True).to(device)
        embeddings = self.model.get_input_embeddings()(input_ids)
        found = self.model.get_image_features(pixels["pixel_values"].to(device), grid.to(device)).pooler_output
        place = (input_ids == self.image_id)[:, :, None]
        embeddings = embeddings.masked_scatter(place, torch.cat(list(found)).to(embeddings))
        positions = torch.arange(input_ids.shape[1], device=device).expand(3, len(ids), -1)
        hidden = self.model.language_model(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        return self.head(hidden[input_ids == self.reward_id].float())[:, 0].cpu()

    def _ids(self, prompt: str, image_tokens: int) -> list[int]:
        text = self.template.fill(PROMPT, prompt)
        content = [{"type": "image"}, {"type": "text", "text": text}]
        messages = [{"role": "user", "content": content}]
        chat = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(chat.replace(IMAGE, IMAGE * image_tokens, 1)).input_ids
        if ids.count(self.reward_id) != 1 or ids.count(self.image_id) != image_tokens:
            raise ValueError(f"the prompt {prompt!r} holds {REWARD} or {IMAGE}, which the model takes for its own")
        return ids


def read_template(path: str) -> Template:
    """Raises MissingWeights."""
    return Template(path, (PROMPT, REWARD), ORIGIN)


def resized(image: Tensor) -> Image.Image:
    """uint8 (3, H, W) -> the picture at the size that the model was trained with."""
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    height, width = smart_resize(picture.height, picture.width)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def smart_resize(height: int, width: int, factor: int = FACTOR, pixels: int = PIXELS) -> tuple[int, int]:
    """(height, width), multiples of `factor` with about the same aspect: no more than `pixels`, or no less where
    rounding alone would leave fewer. Raises ValueError above an aspect of 200."""
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"a picture of {height}x{width} is too long")
    sides = [max(factor, round(side / factor) * factor) for side in (height, width)]
    scale = (height * width / pixels) ** 0.5
    if sides[0] * sides[1] > pixels:
        sides = [max(factor, int(side / scale / factor) * factor) for side in (height, width)]
    elif sides[0] * sides[1] < pixels:
        sides = [-int(-side / scale // factor) * factor for side in (height, width)]
    return sides[0], sides[1]


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], nn.Module]:
    """Weights of a Qwen2VLModel, whichever of transformers' two layouts they stand in, and the head.

    Raises MissingWeights for a file without the head's layers.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise MissingWeights(f"{path} cannot be read as weights: {error}") from None
    head = {name.removeprefix("rm_head."): t for name, t in tensors.items() if name.startswith("rm_head.")}
    rest = {name: t for name, t in tensors.items() if not name.startswith(("rm_head.", "lm_head."))}
    weights = {own_name(name): tensor for name, tensor in rest.items()}
    if "language_model.embed_tokens.weight" not in weights:
        raise MissingWeights(f"{path} has no weights of a Qwen2-VL: needed is {NEEDED}")
    return weights, make_head(head, path)


def own_name(name: str) -> str:
    """`model.layers...` and `visual...` as of old, `model.language_model...` and `model.visual...` as of now."""
    if name.startswith("visual."):
        return name
    name = name.removeprefix("model.")
    return name if name.startswith(("language_model.", "visual.")) else f"language_model.{name}"


def make_head(weights: Mapping[str, Tensor], path: Path | str = "") -> nn.Module:
    """Two outputs of which the first is the score. Raises MissingWeights."""
    if weights.get("0.weight") is None:
        raise MissingWeights(f"{path} has no head (rm_head.0.weight): needed is {NEEDED}")
    width, first = weights["0.weight"].shape[1], len(weights["0.weight"])
    second = len(weights.get("3.weight", ()))
    head = nn.Sequential(
        nn.Linear(width, first), nn.ReLU(), nn.Dropout(0.05), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 2)
    )
    try:
        head.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise MissingWeights(f"{path} has another head than HPSv3's: {error}") from error
    return head
