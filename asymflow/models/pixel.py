"""Finished pixel model as one diffusers model, which a pipeline loads, saves, offloads, quantizes and compiles.

`asymflow.models.lifted.PixelModel` is the same model in training, beside its teacher. This one has its adapter merged,
uses the released names of all weights, and takes tokens packed channel first.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import Flux2Transformer2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin as ModelMixin  # diffusers' loader looks for it in this module
from torch import Tensor, nn

from asymflow.models.lifted import fused
from asymflow.parameterization import calibrated_velocity
from asymflow.subspace import Subspace

TRAINED_WEIGHTS = ("x_embedder.weight", "norm_out.linear.weight", "proj_out.weight")
ATTACHED = "asymflow"
"""Name of the LoRA of an adapter that is attached, not merged"""
_QUANTIZATION = (
    "hf_quantizer",
    "is_quantized",
    "quantization_method",
    "is_loaded_in_4bit",
    "is_loaded_in_8bit",
    "is_4bit_serializable",
    "is_8bit_serializable",
)
"""Attributes by which diffusers and peft know a quantized model"""


def quantizer_dtype(transformer: Any) -> torch.dtype | None:
    """Return the type that a transformer with weights quantized by diffusers computes in.

    Args:
        transformer: A model of diffusers; its own `dtype` is that of its first weight, which may be a float8.

    Returns:
        The `compute_dtype` of its quantizer; None if it has none.
    """
    return getattr(getattr(transformer, "hf_quantizer", None), "compute_dtype", None)


class AsymFlux2Transformer2DModel(Flux2Transformer2DModel):
    """FLUX.2 between pixel tokens, with the recovery of the full-rank velocity.

    The buffers `proj_buffer`, A (D, r), and `scale_buffer`, s, stay in float32 whatever the type of the rest: rounded
    to bfloat16, A is not orthonormal. The color space and the sampling defaults are part of the model; older files lack
    them.

    Args:
        in_channels: Color channels of a patch.
        patch_size: Side of a patch in pixels.
        base_rank: Rank of the subspace, r.
        num_layers: Number of double-stream blocks.
        num_single_layers: Number of single-stream blocks.
        attention_head_dim: Width of an attention head.
        num_attention_heads: Number of attention heads.
        joint_attention_dim: Width of a text embedding, E.
        timestep_guidance_channels: Width of the sinusoidal time embedding.
        mlp_ratio: Width of the MLP over the width of a block.
        axes_dims_rope: Widths of the four axes of the rotary embedding.
        rope_theta: Base of the rotary embedding.
        eps: Epsilon of the norms.
        guidance_embeds: Whether guidance is embedded.
        num_timesteps: Range of the noise levels, kept for the released config.json; it has no effect.
        sigma_min: `sigma_floor_sample`, the lower bound of sigma in the recovery.
        oklab_mean: Mean of the Oklab space.
        oklab_std: Standard deviation of the Oklab space.
        sampling: Fields of `asymflow.adapters.SamplingDefaults`.
    """

    _keep_in_fp32_modules = ["proj_buffer", "scale_buffer"]
    _cp_plan = None  # no context parallelism: the recovery needs all tokens of an image on one device

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        patch_size: int = 16,
        base_rank: int = 128,
        num_layers: int = 8,
        num_single_layers: int = 24,
        attention_head_dim: int = 128,
        num_attention_heads: int = 32,
        joint_attention_dim: int = 12288,
        timestep_guidance_channels: int = 256,
        mlp_ratio: float = 3.0,
        axes_dims_rope: tuple[int, ...] = (32, 32, 32, 32),
        rope_theta: int = 2000,
        eps: float = 1e-6,
        guidance_embeds: bool = False,
        num_timesteps: int = 1,
        sigma_min: float = 1e-4,
        oklab_mean: list[float] | None = None,
        oklab_std: float | list[float] | None = None,
        sampling: dict[str, Any] | None = None,
    ):
        own = dict(self.config)
        patch_dim = in_channels * patch_size**2
        super().__init__(
            patch_size=1,
            in_channels=patch_dim,
            num_layers=num_layers,
            num_single_layers=num_single_layers,
            attention_head_dim=attention_head_dim,
            num_attention_heads=num_attention_heads,
            joint_attention_dim=joint_attention_dim,
            timestep_guidance_channels=timestep_guidance_channels,
            mlp_ratio=mlp_ratio,
            axes_dims_rope=axes_dims_rope,
            rope_theta=rope_theta,
            eps=eps,
            guidance_embeds=guidance_embeds,
        )
        # the parent registered its own settings, in which a token is a channel
        self._internal_dict: dict[str, Any] = {}
        self.register_to_config(**own)
        self.proj_buffer: Tensor
        self.scale_buffer: Tensor
        self.register_buffer("proj_buffer", torch.zeros(patch_dim, base_rank))
        self.register_buffer("scale_buffer", torch.ones(()))

    @classmethod
    def from_latent(
        cls,
        transformer: Flux2Transformer2DModel,
        subspace: Subspace,
        sigma_floor_sample: float = 1e-4,
        trained: Mapping[str, Tensor] | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> "AsymFlux2Transformer2DModel":
        """Lift a latent transformer into pixel space (Eq. 6), or give it trained layers. Its other weights are shared.

        Args:
            transformer: The latent transformer.
            subspace: Subspace of the latent tokens, channel first.
            sigma_floor_sample: Lower bound of sigma in the recovery.
            trained: Weights named in TRAINED_WEIGHTS that replace the lifted ones.
            sampling: Fields of `asymflow.adapters.SamplingDefaults`.

        Returns:
            The model, in evaluation mode.
        """
        weights = dict(transformer.state_dict())
        dtype, device = transformer.context_embedder.weight.dtype, transformer.context_embedder.weight.device
        if trained is None:
            first = fused(weights["x_embedder.weight"], subspace.A, after=False).weight
            last = fused(weights["proj_out.weight"], subspace.A, after=True).weight
            trained = {"x_embedder.weight": first, "proj_out.weight": last}
        weights |= {name: tensor.detach().to(device, dtype) for name, tensor in trained.items()}
        weights["proj_buffer"] = subspace.A.detach().to(device, torch.float32)
        weights["scale_buffer"] = torch.tensor(subspace.s, device=device)
        model = cls._empty(transformer, subspace, sigma_floor_sample, sampling)
        model.load_state_dict(weights, assign=True)
        return model.eval()

    @classmethod
    def _empty(
        cls,
        transformer: Flux2Transformer2DModel,
        subspace: Subspace,
        sigma_floor_sample: float,
        sampling: Mapping[str, Any] | None,
    ) -> "AsymFlux2Transformer2DModel":
        """Return a model of the transformer's settings on the meta device."""
        known = {k: v for k, v in transformer.config.items() if k in cls._get_init_keys(cls)}
        settings = {**known, "in_channels": 3, "patch_size": subspace.patch_size, "base_rank": subspace.rank}
        settings |= {"oklab_mean": list(subspace.oklab.mean), "oklab_std": subspace.oklab.std}
        settings["sampling"] = dict(sampling) if sampling else None
        with torch.device("meta"):
            return cls(**settings, sigma_min=sigma_floor_sample)

    @classmethod
    def on_modules_of(
        cls,
        transformer: Flux2Transformer2DModel,
        subspace: Subspace,
        trained: Mapping[str, Tensor],
        sigma_floor_sample: float = 1e-4,
        sampling: Mapping[str, Any] | None = None,
    ) -> "AsymFlux2Transformer2DModel":
        """Give a latent transformer trained layers and share its other modules, with their quantization and hooks.

        Args:
            transformer: The latent transformer, quantized or not. The model keeps and changes it.
            subspace: Subspace of the latent tokens, channel first.
            trained: Weights named in TRAINED_WEIGHTS.
            sigma_floor_sample: Lower bound of sigma in the recovery.
            sampling: Fields of `asymflow.adapters.SamplingDefaults`.

        Returns:
            The model, in evaluation mode.
        """
        dtype, device = quantizer_dtype(transformer) or transformer.dtype, transformer.device
        model = cls._empty(transformer, subspace, sigma_floor_sample, sampling)
        for name, module in transformer.named_children():
            setattr(model, name, module)
        for name in TRAINED_WEIGHTS:
            value = trained[name].detach().to(device, dtype)
            layer = nn.Linear(value.shape[1], value.shape[0], bias=False, device="meta")
            layer.weight = nn.Parameter(value, requires_grad=False)
            model.set_submodule(name.removesuffix(".weight"), layer)
        model.proj_buffer = subspace.A.detach().to(device, torch.float32)
        model.scale_buffer = torch.tensor(subspace.s, device=device)
        for name in _QUANTIZATION:
            if hasattr(transformer, name):
                setattr(model, name, getattr(transformer, name))
        return model.eval()

    @property
    def dtype(self) -> torch.dtype:
        """Type of the computation, whatever the type of quantized weights."""
        return quantizer_dtype(self) or super().dtype

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save the model as every diffusers model is saved.

        Args:
            save_directory: Folder to write.
            *args: As in diffusers.
            **kwargs: As in diffusers.

        Raises:
            ValueError: If its adapter is attached and not merged: the file would lack the names that loading needs.
        """
        if ATTACHED in getattr(self, "peft_config", {}):
            raise ValueError(
                "the adapter of this pixel model is not merged, and can be saved only apart from its base: keep both "
                "as they are, or load the adapter with merge=True and save that"
            )
        super().save_pretrained(save_directory, *args, **kwargs)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        img_ids: Tensor,
        txt_ids: Tensor,
        guidance: Tensor | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        reference_hidden_states: Tensor | None = None,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Return the velocity of pixel tokens (Eq. 17).

        Args:
            hidden_states: Noisy tokens x_t (B, N, D), channel first.
            encoder_hidden_states: Text embeddings (B, T, E).
            timestep: Noise levels sigma (B,) in [0, 1].
            img_ids: Positions (N + M, 4) of the tokens, then of the references.
            txt_ids: Positions (T, 4) of the text tokens.
            guidance: As in Flux2Transformer2DModel.
            joint_attention_kwargs: As in Flux2Transformer2DModel.
            return_dict: Return a Transformer2DModelOutput instead of a tuple.
            reference_hidden_states: Tokens of clean reference images (B, M, D). They are divided by s, as x_t at noise
                level 0.

        Returns:
            u (B, N, D), float32.
        """
        dtype, count = self.dtype, hidden_states.shape[1]
        network = super().forward

        def u_a_cal(scaled: Tensor, tau: Tensor) -> Tensor:
            if reference_hidden_states is not None:
                scaled = torch.cat([scaled, reference_hidden_states.float() / self.scale_buffer], dim=1)
            out = network(
                hidden_states=scaled.to(dtype),
                encoder_hidden_states=encoder_hidden_states.to(dtype),
                timestep=tau,
                img_ids=img_ids,
                txt_ids=txt_ids,
                guidance=guidance,
                joint_attention_kwargs=joint_attention_kwargs,
                return_dict=False,
            )[0]
            return out[:, :count]

        A, s = self.proj_buffer, self.scale_buffer
        u = calibrated_velocity(u_a_cal, hidden_states.float(), timestep.float(), A, s, self.config.sigma_min)
        return Transformer2DModelOutput(sample=u) if return_dict else (u,)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        A, s = self.proj_buffer, self.scale_buffer  # moving the model must not change their type
        super()._apply(fn, recurse)
        self.proj_buffer, self.scale_buffer = A.to(self.proj_buffer.device), s.to(self.scale_buffer.device)
        return self
