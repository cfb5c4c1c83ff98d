"""What the finetuned models share: the transformer's call, its trained parts, precision, and the frozen teacher.

Nothing of diffusers' forward is repeated here. The student and its frozen teacher share one copy of the base
weights: the teacher is the same transformer with its LoRA switched off and its three original modules in place.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import Flux2Transformer2DModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from asymflow.models.geometry import LORA_TARGETS as LORA_TARGETS
from asymflow.models.masters import make_masters
from asymflow.schedule import calibrate
from asymflow.subspace import Subspace

TRAINED_MODULES = ("x_embedder", "norm_out", "proj_out")
# Blocks are compiled anew for the student and the teacher, and as pictures and texts of other sizes turn up. Past
# torch's own limit of 8 they would run uncompiled, with no more than a warning.
RECOMPILE_LIMIT = 64


def pack_latents(latents: Tensor, side: int = 2) -> Tensor:
    """(B, C, H, W) latents -> (B, HW/side^2, side^2 C) tokens: square cells, channel first, as FLUX.2 packs 2x2."""
    return F.pixel_unshuffle(latents, side).flatten(2).mT


def unpack_latents(tokens: Tensor, grid: tuple[int, int], side: int = 2) -> Tensor:
    """(B, hw, side^2 C) tokens on a grid (h, w) -> (B, C, side h, side w) latents."""
    return F.pixel_shuffle(tokens.mT.unflatten(2, grid), side)


def image_positions(grid: tuple[int, int], device: torch.device | str | None = None, time: int = 0) -> Tensor:
    """(hw, 4) positions (time, row, column, 0) of the tokens on a grid (h, w), row by row."""
    rows, columns = (torch.arange(side, device=device) for side in grid)
    one = torch.arange(1, device=device)
    return torch.cartesian_prod(one + time, rows, columns, one)


def text_positions(tokens: int, device: torch.device | str | None = None) -> Tensor:
    """(T, 4) positions (0, 0, 0, place) of a text's tokens."""
    one = torch.arange(1, device=device)
    return torch.cartesian_prod(one, one, one, torch.arange(tokens, device=device))


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
    attention = {}
    if text_mask is not None:
        image_mask = text_mask.new_ones(tokens.shape[:2])
        attention["attention_mask"] = torch.cat([text_mask, image_mask], dim=1)[:, None, None, :]
    return transformer(
        hidden_states=tokens,
        encoder_hidden_states=encoder_hidden_states,
        timestep=sigma,
        img_ids=image_positions(grid, tokens.device),
        txt_ids=text_positions(encoder_hidden_states.shape[1], tokens.device),
        joint_attention_kwargs=attention,
        return_dict=False,
    )[0]


class AdaptedFlux2(nn.Module):
    """A latent FLUX.2 with a frozen base, of which three modules (`TRAINED_MODULES`) and LoRA are trained.

    The transformer is taken over and changed. Its own three modules are kept, frozen, in `latent_modules`: with
    them it is the latent model again (`teacher_view`). A subclass puts trained ones in their place.

    Raises:
        ValueError: the subspace's rank is not the transformer's token width, or its patches are not square.
    """

    A: Tensor

    def __init__(self, transformer: Flux2Transformer2DModel, subspace: Subspace):
        super().__init__()
        patch_dim, rank = subspace.A.shape
        if rank != transformer.config.in_channels:
            raise ValueError(
                f"the basis has rank {rank}, the transformer's tokens have {transformer.config.in_channels} values: "
                "compute a Procrustes basis with this model's own autoencoder"
            )
        self.patch_size = subspace.patch_size
        if 3 * self.patch_size**2 != patch_dim:
            raise ValueError(f"a patch of {patch_dim} values is no square of three colours")
        self.transformer = transformer.requires_grad_(False)
        self.latent_modules = nn.ModuleDict({name: getattr(transformer, name) for name in TRAINED_MODULES})
        self.subspace = subspace
        self.s = float(subspace.s)
        self.register_buffer("A", subspace.A.float().clone(), persistent=False)
        self._train_instead(norm_out=copy.deepcopy(transformer.norm_out))

    def _train_instead(self, **modules: nn.Module) -> None:
        """Put trained modules in the place of the transformer's."""
        for name, module in modules.items():
            setattr(self.transformer, name, module.requires_grad_(True))
            self._keep_masters(module)

    def _keep_masters(self, module: nn.Module) -> None:
        make_masters(module)
        for parameter in module.parameters():
            parameter.data = parameter.data.to(torch.promote_types(self.dtype, torch.float32))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the frozen base, in which the network computes."""
        return self.transformer.context_embedder.weight.dtype

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
        for layer in self._lora_layers():
            layer.cast_input_dtype_enabled = False  # the masters take the input's type, not the other way round
            self._keep_masters(layer.lora_A)
            self._keep_masters(layer.lora_B)
        self.train(self.training)  # new layers come in training mode, with their dropout on

    def set_precision(self, dtype: torch.dtype) -> None:
        """Compute in `dtype`: the frozen base is cast to it; what is trained stays in float32 (see `masters`).

        Call it after `add_lora` and before an optimizer is made. With float32 nothing changes.
        """
        master = torch.promote_types(dtype, torch.float32)
        for parameter in self.parameters():
            parameter.data = parameter.data.to(master if parameter.requires_grad else dtype)

    def enable_gradient_checkpointing(self) -> None:
        """Keep only what enters each block, and compute the rest anew in the backward pass, with the same dropout."""
        self.transformer.enable_gradient_checkpointing()

    def compile_blocks(self, **options: Any) -> None:
        """Compile each repeated block in place, at its first use; `options` are those of torch.compile."""
        self.transformer.compile_repeated_blocks(**{"recompile_limit": RECOMPILE_LIMIT, **options})

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

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
            side = math.isqrt(self.A.shape[1] // z_0.shape[1])
            grid = (z_0.shape[2] // side, z_0.shape[3] // side)
            z_0 = pack_latents(z_0, side)
        tau, _ = calibrate(sigma.float(), self.s)
        tau = tau[:, None, None]
        z_tau = (1 - tau) * z_0.float() + tau * (noise_tokens.float() @ self.A)
        with self.teacher_view():
            u_z = self._run(z_tau, tau.flatten(), encoder_hidden_states, grid or square_grid(z_0), text_mask)
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
        for layer in self._lora_layers():
            layer.enable_adapters(enabled)

    def _lora_layers(self) -> list[LoraLayer]:
        return [module for module in self.transformer.modules() if isinstance(module, LoraLayer)]

    def _run(self, tokens: Tensor, sigma: Tensor, text: Tensor, grid: tuple[int, int], mask: Tensor | None) -> Tensor:
        return run_transformer(self.transformer, tokens.to(self.dtype), sigma, text.to(self.dtype), grid, mask)

    def _grid(self, images: Tensor) -> tuple[int, int]:
        return images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # A rounded to bf16 is no longer orthonormal (off by 7e-4): moving the model may not change its type
        A = self.A
        super()._apply(fn, recurse)
        self.A = A.to(self.A.device)
        return self


def square_grid(tokens: Tensor) -> tuple[int, int]:
    """The grid (h, w) that tokens (B, N, C) fill when they are a square; ValueError when they are none."""
    side = round(tokens.shape[1] ** 0.5)
    if side * side != tokens.shape[1]:
        raise ValueError(f"{tokens.shape[1]} tokens are no square: say which `grid` (h, w) they fill")
    return side, side
