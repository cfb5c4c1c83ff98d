"""FLUX.2 klein pipeline folders of the real classes with random weights, in any geometry of tokens."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel

from pipelines.toy.autoencoder import set_whitening
from pipelines.toy.text_encoder import new_text_encoder, train_tokenizer


def make_transformer(text_width: int, token_width: int = 128, head_width: int = 16) -> Flux2Transformer2DModel:
    torch.manual_seed(0)
    axes = (head_width // 4,) * 4
    return Flux2Transformer2DModel(
        in_channels=token_width, num_layers=1, num_single_layers=1, attention_head_dim=head_width,
        num_attention_heads=2, joint_attention_dim=text_width, timestep_guidance_channels=16, mlp_ratio=1.0,
        axes_dims_rope=axes, guidance_embeds=False,
    )  # fmt: skip


def make_base(folder: Path, downsampling: int = 8, latent_channels: int = 32) -> Path:
    """By default of the published geometry: a token of 128 values for each 16 x 16 pixels."""
    tokenizer = train_tokenizer([f"picture {i}" for i in range(100)])
    transformer = make_transformer(96, 4 * latent_channels)
    levels = downsampling.bit_length()  # each but the first halves the sides
    autoencoder = AutoencoderKLFlux2(
        block_out_channels=(8,) * levels, down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels, latent_channels=latent_channels, layers_per_block=1,
        norm_num_groups=4, sample_size=32,
    )  # fmt: skip
    set_whitening(autoencoder, torch.randint(0, 256, (256, 3, 32, 32), dtype=torch.uint8))
    Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder,
        text_encoder=new_text_encoder(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=transformer,
    ).save_pretrained(folder)
    return folder
