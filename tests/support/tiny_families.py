"""Pipeline folders of all families of base models: the real classes with random weights, small enough for a test."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ClassifierFreeGuidance,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    Flux3AutoBlocks,
    Flux3Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tiny_base import make_base
from tiny_flan_t5 import write_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    T5Config,
    T5EncoderModel,
)

from pipelines.toy.autoencoder import set_whitening
from pipelines.toy.text_encoder import CHAT_TEMPLATE, new_text_encoder, train_tokenizer


@dataclass(frozen=True)
class TinyFamily:
    """How to make a base of the family, and what the shared suite has to know about its tiny transformer."""

    make: Callable[[Path], Any]
    padding: str
    """That of the stock pipeline"""
    lora: frozenset[str]
    """Layers that LoRA adapts"""
    wholes: frozenset[str]
    """Parameters of the three trained modules"""
    published: tuple[str, ...]
    depths: dict[str, int]
    """Settings that are numbers of blocks, and the index of their kind in `Backbone.block_memory`"""
    cut: int = 5
    """`max_tokens` that cuts the second of the suite's captions"""
    unguided: dict[str, float] = field(default_factory=lambda: {"guidance_scale": 1.0})
    """Argument of the stock pipeline that switches guidance off"""
    stock: Callable[[str], Any] = DiffusionPipeline.from_pretrained
    """(folder): the stock pipeline, or what can be called as one"""
    wide: dict[str, Any] = field(
        default_factory=lambda: {
            "attention_head_dim": 32, "axes_dims_rope": (8, 8, 8, 8), "timestep_guidance_channels": 64
        }
    )  # fmt: skip
    """Settings of a transformer whose widths are multiples of 64, as quantization needs"""
    reconstruct: Callable[[Any, torch.Tensor], torch.Tensor] = lambda vae, images: (
        vae.decode(vae.encode(images).latent_dist.mode()).sample
    )
    """The autoencoder's own round trip"""


def bpe_tokenizer(specials: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([f"a picture of {i} red suns" for i in range(50)], trainer)
    return tokenizer


def flux2_autoencoder() -> AutoencoderKLFlux2:
    autoencoder = AutoencoderKLFlux2(
        block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=32, layers_per_block=1, norm_num_groups=4,
        sample_size=32,
    )  # fmt: skip
    set_whitening(autoencoder, torch.randint(0, 256, (256, 3, 32, 32), dtype=torch.uint8))
    return autoencoder


def shifted_autoencoder(scaling_factor: float, shift_factor: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=16, layers_per_block=1, norm_num_groups=4,
        sample_size=32, scaling_factor=scaling_factor, shift_factor=shift_factor, use_quant_conv=False,
        use_post_quant_conv=False,
    )  # fmt: skip


def make_dev(folder: Path) -> None:
    specials = ["<pad>", "<s>", "</s>", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "[SYSTEM_PROMPT]", "[INST]", "[/INST]"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe_tokenizer(specials), bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        additional_special_tokens=specials[3:], padding_side="left",
    )  # fmt: skip
    template = (
        "<s>{% for m in messages %}{% if m['role'] == 'system' %}[SYSTEM_PROMPT]{% else %}[INST]{% endif %}"
        "{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endfor %}[/INST]"
    )
    torch.manual_seed(0)
    text_config = {
        "model_type": "mistral", "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 31, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "max_position_embeddings": 1024,
    }  # fmt: skip
    vision_config = {
        "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "head_dim": 8, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    text_encoder = Mistral3ForConditionalGeneration(
        Mistral3Config(text_config=text_config, vision_config=vision_config, image_token_index=3)
    )
    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(
        in_channels=128, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=48, timestep_guidance_channels=16, mlp_ratio=1.0, axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=True,
    )  # fmt: skip
    Flux2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=flux2_autoencoder(),
        text_encoder=text_encoder,
        tokenizer=PixtralProcessor(
            PixtralImageProcessor(), tokenizer, patch_size=14, spatial_merge_size=2, chat_template=template
        ),
        transformer=transformer,
    ).save_pretrained(folder)


def make_z_image(folder: Path) -> None:
    tokenizer = train_tokenizer([f"picture {i}" for i in range(100)])
    # Qwen3's template adds an empty answer where thinking is switched off
    tokenizer.chat_template = (
        CHAT_TEMPLATE + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    )
    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        in_channels=16, dim=48, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=32,
        axes_dims=[8, 8, 8], axes_lens=[1536, 64, 64],
    )  # fmt: skip
    with torch.no_grad():
        transformer.x_pad_token.normal_()
        transformer.cap_pad_token.normal_()
    ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=shifted_autoencoder(0.3611, 0.1159),
        text_encoder=new_text_encoder(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=transformer,
    ).save_pretrained(folder)


def make_qwen_image(folder: Path) -> None:
    tokenizer = train_tokenizer([f"picture {i}" for i in range(100)])
    torch.manual_seed(0)
    text_config = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 1024,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    vision_config = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    text_encoder = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text_config, vision_config=vision_config)
    )
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=64, out_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKLQwenImage(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    ).save_pretrained(folder)


def make_sd3(folder: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz,"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {token: index for index, token in enumerate(tokens)}

    def clip(width: int) -> CLIPTextModelWithProjection:
        config = CLIPTextConfig(
            vocab_size=len(tokens), hidden_size=width, intermediate_size=32, projection_dim=width, num_hidden_layers=2,
            num_attention_heads=2, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )  # fmt: skip
        return CLIPTextModelWithProjection(config)

    torch.manual_seed(0)
    tokenizers = [
        CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=pad, model_max_length=77) for pad in ("<|endoftext|>", "a")
    ]
    t5_tokenizer = write_tokenizer(folder.parent / "t5")
    t5 = T5Config(vocab_size=len(t5_tokenizer), d_model=40, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, num_layers=3, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=40, caption_projection_dim=32, pooled_projection_dim=32, out_channels=16,
        pos_embed_max_size=12, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=shifted_autoencoder(1.5305, 0.0609),
        text_encoder=clip(12),
        tokenizer=tokenizers[0],
        text_encoder_2=clip(20),
        tokenizer_2=tokenizers[1],
        text_encoder_3=T5EncoderModel(t5),
        tokenizer_3=t5_tokenizer,
        transformer=transformer,
    ).save_pretrained(folder)


def make_flux3(folder: Path) -> None:
    tokenizer = train_tokenizer([f"picture {i}" for i in range(100)])
    torch.manual_seed(0)
    text_config = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 33,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 1024,
        "rope_scaling": {
            "rope_type": "default", "mrope_section": [2, 3, 3], "mrope_interleaved": True, "rope_theta": 10000.0
        },
    }  # fmt: skip
    vision_config = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
        "deepstack_visual_indexes": [0],
    }  # fmt: skip
    text_encoder = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text_config, vision_config=vision_config))
    torch.manual_seed(0)
    transformer = Flux3Transformer2DModel(
        num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=256,
        timestep_channels=16, mlp_ratio=1.0, axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip
    pipeline = Flux3AutoBlocks().init_pipeline()
    pipeline.update_components(
        vae=flux2_autoencoder(),
        text_encoder=text_encoder,
        tokenizer=Qwen3VLProcessor(
            Qwen2VLImageProcessor(), tokenizer, Qwen3VLVideoProcessor(), chat_template=tokenizer.chat_template
        ),
        transformer=transformer,
    )
    pipeline.save_pretrained(str(folder), overwrite_modular_index=True)


class Flux3Stock:
    """The modular pipeline of FLUX.3 behind the interface of the others, without guidance and the prompt upsampler."""

    def __init__(self, folder: str):
        blocks = Flux3AutoBlocks()
        blocks.sub_blocks.pop("prompt_upsampler")
        self.pipeline = blocks.init_pipeline(folder)
        self.pipeline.load_components(dtype=torch.float32)
        self.pipeline.update_components(guider=ClassifierFreeGuidance(enabled=False))
        self.set_progress_bar_config, self.vae = self.pipeline.set_progress_bar_config, self.pipeline.vae
        self.scheduler = self.pipeline.scheduler

    def prepare_latents(self, latents: torch.Tensor) -> torch.Tensor:
        return latents

    def __call__(self, generator: torch.Generator, height: int, width: int, **options: Any) -> SimpleNamespace:
        rows, columns = height // 16, width // 16
        tokens = self.prepare_latents(torch.randn(1, rows * columns, 128, generator=generator))
        latents = tokens.mT.unflatten(2, (rows, columns))
        images = self.pipeline(latents=latents, height=height, width=width, output="images", **options)
        return SimpleNamespace(images=images)


FLUX3_LORA = frozenset(
    {
        *(f"{block}.0.ff.linear_{end}" for block in ("mode_blocks.image", "txt_mode_blocks") for end in ("in", "out")),
        *(f"single_transformer_blocks.0.{layer}" for layer in ("attn.to_out.0", "ff.linear_out")),
        *(f"timestep_embedder.linear_{i}" for i in (1, 2)),
    }
)
FLUX3_WHOLES = frozenset({"x_embedders.image.weight", "norm_out.linear.weight", "proj_out.weight"})
SD3_LORA = frozenset(
    {
        *(f"transformer_blocks.{i}.ff.net.{layer}" for i in range(3) for layer in ("0.proj", "2")),
        *(f"transformer_blocks.{i}.ff_context.net.{layer}" for i in (0, 1) for layer in ("0.proj", "2")),
        *(f"transformer_blocks.{i}.attn.to_out.0" for i in range(3)),
        *(f"transformer_blocks.{i}.attn.to_add_out" for i in (0, 1)),
        "transformer_blocks.0.attn2.to_out.0",
        *(f"time_text_embed.timestep_embedder.linear_{i}" for i in (1, 2)),
    }
)
SD3_WHOLES = frozenset(
    f"{module}.{kind}" for module in ("pos_embed.proj", "norm_out.linear", "proj_out") for kind in ("weight", "bias")
)
QWEN_IMAGE_LORA = frozenset(
    {
        *(f"transformer_blocks.{i}.img_mlp.net.{layer}" for i in (0, 1) for layer in ("0.proj", "2")),
        *(f"transformer_blocks.0.txt_mlp.net.{layer}" for layer in ("0.proj", "2")),
        *(f"transformer_blocks.{i}.attn.to_out.0" for i in (0, 1)),
        "transformer_blocks.0.attn.to_add_out",
        *(f"time_text_embed.timestep_embedder.linear_{i}" for i in (1, 2)),
    }
)
QWEN_IMAGE_WHOLES = frozenset(
    f"{module}.{kind}" for module in ("img_in", "norm_out.linear", "proj_out") for kind in ("weight", "bias")
)
Z_IMAGE_LORA = frozenset(
    {
        *(f"{block}.feed_forward.w{i}" for block in ("layers.0", "layers.1", "noise_refiner.0", "context_refiner.0")
          for i in (1, 2, 3)),
        *(f"layers.{i}.attention.to_out.0" for i in (0, 1)),
        *(f"t_embedder.mlp.{i}" for i in (0, 2)),
    }
)  # fmt: skip
Z_IMAGE_WHOLES = frozenset(
    f"{module}.{kind}"
    for module in ("all_x_embedder.2-1", "all_final_layer.2-1.adaLN_modulation.1", "all_final_layer.2-1.linear")
    for kind in ("weight", "bias")
)
FLUX2_LORA = frozenset(
    {
        *(f"transformer_blocks.0.{ff}.linear_{end}" for ff in ("ff", "ff_context") for end in ("in", "out")),
        "single_transformer_blocks.0.attn.to_out",
        *(f"time_guidance_embed.timestep_embedder.linear_{i}" for i in (1, 2)),
    }
)
FLUX2_DEPTHS = {"num_layers": 0, "num_single_layers": 1}
FLUX2_WHOLES = frozenset({"x_embedder.weight", "norm_out.linear.weight", "proj_out.weight"})
FAMILIES = {
    "klein": TinyFamily(
        make_base,
        "max_length",
        FLUX2_LORA,
        FLUX2_WHOLES,
        ("FLUX.2-klein-base-9B", "FLUX.2-klein-base-4B"),
        FLUX2_DEPTHS,
    ),
    "flux2_dev": TinyFamily(make_dev, "max_length", FLUX2_LORA, FLUX2_WHOLES, ("FLUX.2-dev",), FLUX2_DEPTHS),
    "z_image": TinyFamily(
        make_z_image,
        "none",
        Z_IMAGE_LORA,
        Z_IMAGE_WHOLES,
        ("Z-Image",),
        {"n_layers": 2},
        unguided={"guidance_scale": 0.0},
        wide={"dim": 64, "axes_dims": [8, 12, 12]},
    ),
    "qwen_image": TinyFamily(
        make_qwen_image,
        "none",
        QWEN_IMAGE_LORA,
        QWEN_IMAGE_WHOLES,
        ("Qwen-Image",),
        {"num_layers": 0},
        unguided={"true_cfg_scale": 1.0},
        wide={"attention_head_dim": 32, "axes_dims_rope": (8, 12, 12)},
        reconstruct=lambda vae, images: vae.decode(vae.encode(images[:, :, None]).latent_dist.mode()).sample[:, :, 0],
    ),
    "sd3": TinyFamily(
        make_sd3,
        "max_length",
        SD3_LORA,
        SD3_WHOLES,
        ("stable-diffusion-3.5-medium", "stable-diffusion-3.5-large"),
        {"num_layers": 0},
        cut=80,
        # 512 tokens: one pooled, 77 of CLIP, the rest of T5
        unguided={"guidance_scale": 1.0, "max_sequence_length": 512 - 78},
        wide={"attention_head_dim": 32, "caption_projection_dim": 64},
    ),
    "flux3": TinyFamily(
        make_flux3,
        "none",
        FLUX3_LORA,
        FLUX3_WHOLES,
        ("flux-3-image-klein-base",),
        {"num_single_layers": 2},
        unguided={},
        stock=Flux3Stock,
        wide={"attention_head_dim": 32, "axes_dims_rope": (8, 8, 8, 8), "timestep_channels": 64},
    ),
}
