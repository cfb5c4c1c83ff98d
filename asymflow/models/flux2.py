"""A latent FLUX.2 lifted into pixel space: the same transformer, with other first and last layers (Sec. 5.1).

Nothing of diffusers' forward is repeated here. The student and its frozen teacher share one copy of the base
weights: the teacher is the same transformer with its LoRA switched off and its three original modules in place.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers import Flux2Transformer2DModel
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from asymflow.parameterization import recover_u
from asymflow.patches import patchify, unpatchify
from asymflow.schedule import calibrate
from asymflow.subspace import Subspace

TRAINED_MODULES = ("x_embedder", "norm_out", "proj_out")
LORA_TARGETS = (  # appendix B.2
    r"transformer_blocks\.\d+\.(ff|ff_context)\.linear_(in|out)"
    r"|time_guidance_embed\.timestep_embedder\.linear_[12]"
    r"|single_transformer_blocks\.\d+\.attn\.to_out"
)


def pack_latents(latents: Tensor) -> Tensor:
    """(B, C, H, W) latents -> (B, HW/4, 4C) tokens: 2x2 cells, channel first, as FLUX.2 packs them."""
    return F.pixel_unshuffle(latents, 2).flatten(2).mT


def unpack_latents(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, hw, 4C) tokens on a grid (h, w) -> (B, C, 2h, 2w) latents."""
    return F.pixel_shuffle(tokens.mT.unflatten(2, grid), 2)


def run_transformer(
    transformer: Flux2Transformer2DModel,
    tokens: Tensor,
    sigma: Tensor,
    encoder_hidden_states: Tensor,
    grid: tuple[int, int],
    text_mask: Tensor | None = None,
) -> Tensor:
    """One evaluation on image tokens (B, N, C) of a grid (h, w) at noise level sigma (B,) -> (B, N, C').

    `encoder_hidden_states` is (B, T, E). `text_mask` (B, T), True for real tokens, makes padding invisible: each
    row of a batch then equals the same row alone without padding.
    """
    height, width = grid
    if height * width != tokens.shape[1]:
        raise ValueError(f"{tokens.shape[1]} tokens do not fill a grid of {height} x {width}")
    device, one = tokens.device, torch.arange(1, device=tokens.device)
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    image_ids = torch.cartesian_prod(one, rows, columns, one)
    text_ids = torch.cartesian_prod(one, one, one, torch.arange(encoder_hidden_states.shape[1], device=device))
    attention = {}
    if text_mask is not None:
        image_mask = text_mask.new_ones(tokens.shape[:2])
        attention["attention_mask"] = torch.cat([text_mask, image_mask], dim=1)[:, None, None, :]
    return transformer(
        hidden_states=tokens,
        encoder_hidden_states=encoder_hidden_states,
        timestep=sigma,
        img_ids=image_ids,
        txt_ids=text_ids,
        joint_attention_kwargs=attention,
        return_dict=False,
    )[0]


class PixelFlux2(nn.Module):
    """G_theta with the recovery of the full-rank velocity: normalised Oklab images in, velocity out.

    Build one with `from_latent`. `student` below means the pixel model, `teacher` the latent one it came from.
    """

    A: Tensor

    def __init__(
        self,
        transformer: Flux2Transformer2DModel,
        latent_modules: nn.ModuleDict,
        subspace: Subspace,
        patch_size: int,
        sigma_floor_sample: float = 1e-4,
        sigma_floor_train: float = 1e-6,
    ):
        super().__init__()
        self.transformer = transformer
        self.latent_modules = latent_modules
        self.subspace = subspace
        self.s = float(subspace.s)
        self.patch_size = patch_size
        self.sigma_floor_sample = sigma_floor_sample
        self.sigma_floor_train = sigma_floor_train
        self.register_buffer("A", subspace.A.float().clone(), persistent=False)

    @classmethod
    def from_latent(
        cls, transformer: Flux2Transformer2DModel, subspace: Subspace, sigma_floor_sample: float = 1e-4
    ) -> "PixelFlux2":
        """Lift a latent transformer: fuse A^T into its `x_embedder` and A into its `proj_out` (Eq. 6).

        The transformer is taken over and changed. Its base is frozen; the three trained modules are not.

        Raises:
            ValueError: the subspace's rank is not the transformer's token width, or its patches are not square.
        """
        patch_dim, rank = subspace.A.shape
        if rank != transformer.config.in_channels:
            raise ValueError(
                f"the basis has rank {rank}, the transformer's tokens have {transformer.config.in_channels} values: "
                "compute a Procrustes basis with this model's own autoencoder"
            )
        patch_size = round((patch_dim / 3) ** 0.5)
        if 3 * patch_size**2 != patch_dim:
            raise ValueError(f"a patch of {patch_dim} values is no square of three colours")
        transformer.requires_grad_(False)
        latent_modules = nn.ModuleDict({name: getattr(transformer, name) for name in TRAINED_MODULES})
        transformer.x_embedder = _fused(transformer.x_embedder.weight, subspace.A, after=False)
        transformer.proj_out = _fused(transformer.proj_out.weight, subspace.A, after=True)
        transformer.norm_out = copy.deepcopy(latent_modules["norm_out"]).requires_grad_(True)
        return cls(transformer, latent_modules, subspace, patch_size, sigma_floor_sample)

    def add_lora(self, rank: int = 256, alpha: int | None = None, dropout: float = 0.05) -> None:
        """Add LoRA to exactly the modules of appendix B.2, through peft. B starts at zero: nothing changes yet."""
        config = LoraConfig(
            r=rank,
            lora_alpha=rank if alpha is None else alpha,
            lora_dropout=dropout,
            init_lora_weights="gaussian",
            target_modules=LORA_TARGETS,
        )
        self.transformer.add_adapter(config)
        for name in TRAINED_MODULES:  # peft freezes all but the adapters
            getattr(self.transformer, name).requires_grad_(True)
        self.train(self.training)  # new layers come in training mode, with their dropout on

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def forward(
        self, x_t: Tensor, sigma: Tensor, encoder_hidden_states: Tensor, text_mask: Tensor | None = None
    ) -> Tensor:
        """x_t (B, 3, H, W) normalised Oklab at sigma (B,) -> velocity u of the same shape (Eqs. 13-17).

        H and W are multiples of the patch size. The recovery runs in float32 whatever the network's type.
        """
        tokens = patchify(x_t.float(), self.patch_size, self.subspace.layout)
        tau, k = calibrate(sigma.float(), self.s)
        u_a_cal = self._run(k[:, None, None] * tokens, tau, encoder_hidden_states, self._grid(x_t), text_mask)
        sigma_floor = self.sigma_floor_train if self.training else self.sigma_floor_sample
        u = recover_u(u_a_cal.float(), tokens, sigma.float(), self.A, self.s, sigma_floor)
        height, width = x_t.shape[-2:]
        return unpatchify(u, height, width, self.patch_size, layout=self.subspace.layout)

    @torch.no_grad()
    def teacher_x_0_low(
        self,
        z_0: Tensor,
        noise_tokens: Tensor,
        sigma: Tensor,
        encoder_hidden_states: Tensor,
        grid: tuple[int, int] | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """The frozen model's x_0_low_hat tokens (B, N, D) from the paired noisy low-rank sample (Eq. 51).

        It is evaluated in latent space: z_tau = (1 - tau) z_0 + tau A^T noise is A^T(k x_t^L) exactly.
        z_0 is (B, N, d) tokens, or (B, C, H, W) latents to be packed. Tokens need their `grid` (h, w) unless it
        is square. noise_tokens is (B, N, D), sigma (B,).
        """
        if z_0.ndim == 4:
            grid = (z_0.shape[2] // 2, z_0.shape[3] // 2)
            z_0 = pack_latents(z_0)
        if grid is None:
            side = round(z_0.shape[1] ** 0.5)
            if side * side != z_0.shape[1]:
                raise ValueError(f"{z_0.shape[1]} tokens are no square: say which `grid` (h, w) they fill")
            grid = (side, side)
        tau, _ = calibrate(sigma.float(), self.s)
        tau = tau[:, None, None]
        z_tau = (1 - tau) * z_0.float() + tau * (noise_tokens.float() @ self.A)
        with self.teacher_view():
            u_z = self._run(z_tau, tau.flatten(), encoder_hidden_states, grid, text_mask)
        z_0_hat = z_tau - tau * u_z.float()
        return self.s * (z_0_hat @ self.A.mT)

    @contextmanager
    def teacher_view(self) -> Iterator[Flux2Transformer2DModel]:
        """Inside, `self.transformer` is the latent model again: adapters off, the three original modules in place."""
        student_modules = {name: getattr(self.transformer, name) for name in TRAINED_MODULES}
        self._set_adapters(False)
        for name, module in self.latent_modules.items():
            setattr(self.transformer, name, module)
        try:
            yield self.transformer
        finally:
            for name, module in student_modules.items():
                setattr(self.transformer, name, module)
            self._set_adapters(True)

    def _set_adapters(self, enabled: bool) -> None:
        for module in self.transformer.modules():
            if isinstance(module, BaseTunerLayer):
                module.enable_adapters(enabled)

    def _run(self, tokens: Tensor, sigma: Tensor, text: Tensor, grid: tuple[int, int], mask: Tensor | None) -> Tensor:
        dtype = self.transformer.context_embedder.weight.dtype
        return run_transformer(self.transformer, tokens.to(dtype), sigma, text.to(dtype), grid, mask)

    def _grid(self, images: Tensor) -> tuple[int, int]:
        return images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size

    def _apply(self, fn, recurse=True):
        # A rounded to bf16 is no longer orthonormal (off by 7e-4): moving the model may not change its type
        A = self.A
        super()._apply(fn, recurse)
        self.A = A.to(self.A.device)
        return self


def _fused(weight: Tensor, A: Tensor, after: bool) -> nn.Linear:
    """The pixel layer of a latent one: W A^T before the blocks, A W after them; multiplied in float64."""
    product = A.double() @ weight.double() if after else weight.double() @ A.double().mT
    layer = nn.Linear(product.shape[1], product.shape[0], bias=False, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(product)
    return layer
