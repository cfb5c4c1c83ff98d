"""Base class of the finetuned models: the transformer's call, its trained parts, precision, and the frozen teacher.

The forward pass is diffusers' own. The student and its frozen teacher share one copy of the base weights: the teacher
is the same transformer with its LoRA switched off and its three original modules in place.
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
# Blocks are recompiled for the student, the teacher, and each new size of image and text. Beyond torch's own limit
# of 8 they would run uncompiled, with only a warning.
RECOMPILE_LIMIT = 64


def pack_latents(latents: Tensor, side: int = 2) -> Tensor:
    """Pack latents into tokens: square cells, channel first, as FLUX.2 packs 2x2.

    Args:
        latents: Latents (B, C, H, W).
        side: Side of a cell; it divides H and W.

    Returns:
        Tokens (B, H W / side^2, side^2 C), row by row.
    """
    return F.pixel_unshuffle(latents, side).flatten(2).mT


def unpack_latents(tokens: Tensor, grid: tuple[int, int], side: int = 2) -> Tensor:
    """Unpack tokens into latents, the inverse of `pack_latents`.

    Args:
        tokens: Tokens (B, h w, side^2 C).
        grid: Rows and columns of tokens, (h, w).
        side: Side of a cell.

    Returns:
        Latents (B, C, side h, side w).
    """
    return F.pixel_shuffle(tokens.mT.unflatten(2, grid), side)


def image_positions(grid: tuple[int, int], device: torch.device | str | None = None, time: int = 0) -> Tensor:
    """Return the positions (time, row, column, 0) of the tokens on a grid.

    Args:
        grid: Rows and columns of tokens, (h, w).
        device: Device of the result.
        time: First coordinate of all tokens; it separates reference images.

    Returns:
        Positions (h w, 4), int64, row by row.
    """
    rows, columns = (torch.arange(side, device=device) for side in grid)
    one = torch.arange(1, device=device)
    return torch.cartesian_prod(one + time, rows, columns, one)


def text_positions(tokens: int, device: torch.device | str | None = None) -> Tensor:
    """Return the positions (0, 0, 0, index) of text tokens.

    Args:
        tokens: Number of tokens, T.
        device: Device of the result.

    Returns:
        Positions (T, 4), int64.
    """
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
    """Evaluate a FLUX.2 transformer once.

    Args:
        transformer: The transformer.
        tokens: Image tokens (B, N, C).
        sigma: Noise levels (B,) in [0, 1].
        encoder_hidden_states: Text embeddings (B, T, E).
        grid: Rows and columns of image tokens, (h, w) with h w = N.
        text_mask: True for valid text tokens (B, T); None: all are valid. Masked tokens are ignored, so each row of a
            batch equals the same row alone without padding.

    Returns:
        Output tokens (B, N, C').

    Raises:
        ValueError: If the tokens do not fill the grid.
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
    """Latent FLUX.2 with a frozen base, of which three modules (`TRAINED_MODULES`) and LoRA are trained.

    A subclass replaces the three modules by trained ones. The original ones are kept, frozen, in `latent_modules`, and
    put back by `teacher_view`.

    Args:
        transformer: The latent transformer. The model keeps and changes it.
        subspace: Subspace of the latent tokens, whose rank is the width of a token.

    Raises:
        ValueError: If the rank is not the width of the transformer's tokens, or the patches are not square.
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
            raise ValueError(f"a patch of {patch_dim} values is not a square of three color channels")
        self.transformer = transformer.requires_grad_(False)
        self.latent_modules = nn.ModuleDict({name: getattr(transformer, name) for name in TRAINED_MODULES})
        self.subspace = subspace
        self.s = float(subspace.s)
        self.register_buffer("A", subspace.A.float().clone(), persistent=False)
        self._replace_trained(norm_out=copy.deepcopy(transformer.norm_out))

    def _replace_trained(self, **modules: nn.Module) -> None:
        """Replace modules of the transformer by trained ones."""
        for name, module in modules.items():
            setattr(self.transformer, name, module.requires_grad_(True))
            self._keep_masters(module)

    def _keep_masters(self, module: nn.Module) -> None:
        make_masters(module)
        for parameter in module.parameters():
            parameter.data = parameter.data.to(torch.promote_types(self.dtype, torch.float32))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the frozen base, in which the network computes."""
        return self.transformer.context_embedder.weight.dtype

    def add_lora(self, rank: int = 256, alpha: int | None = None, dropout: float = 0.05) -> None:
        """Add LoRA to exactly the modules of App. B.2, through peft. B is zero at first, so the output does not change.

        Args:
            rank: Rank of each adapter.
            alpha: Numerator of the scale alpha / rank; None: the rank.
            dropout: Dropout of the adapters' inputs.
        """
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
            layer.cast_input_dtype_enabled = False  # master weights take the input's type, not the reverse
            self._keep_masters(layer.lora_A)
            self._keep_masters(layer.lora_B)
        self.train(self.training)  # new layers are in training mode, with dropout

    def set_precision(self, dtype: torch.dtype) -> None:
        """Cast the frozen base to the type of the computation; trained parameters stay in float32 (mixed precision).

        Call it after `add_lora` and before an optimizer is made.

        Args:
            dtype: Type of the computation; float32 changes nothing.
        """
        trained = torch.promote_types(dtype, torch.float32)
        for parameter in self.parameters():
            parameter.data = parameter.data.to(trained if parameter.requires_grad else dtype)

    def enable_gradient_checkpointing(self) -> None:
        """Store only the input of each block; recompute the rest in the backward pass, with the same dropout."""
        self.transformer.enable_gradient_checkpointing()

    def compile_blocks(self, **options: Any) -> None:
        """Compile each repeated block in place, at its first use.

        Args:
            **options: Options of torch.compile.
        """
        self.transformer.compile_repeated_blocks(**{"recompile_limit": RECOMPILE_LIMIT, **options})

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters.

        Returns:
            Parameters by name.
        """
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
        """Return the frozen model's x_0_low_hat from the paired noisy low-rank sample (Eq. 51), without gradient.

        It is evaluated in latent space: z_tau = (1 - tau) z_0 + tau A^T noise equals A^T (k x_t^L) exactly.

        Args:
            z_0: Latent tokens (B, N, d), or latents (B, C, H, W), which are packed.
            noise_tokens: Noise of the pixels as tokens (B, N, D).
            sigma: Pixel noise levels (B,).
            encoder_hidden_states: Text embeddings (B, T, E).
            grid: Rows and columns of tokens, (h, w); None: a square.
            text_mask: True for valid text tokens (B, T); None: all are valid.

        Returns:
            x_0_low_hat tokens (B, N, D), float32.

        Raises:
            ValueError: If the tokens do not fill the grid.
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
        """Make `self.transformer` the latent model inside a `with`: LoRA off, the three original modules in place.

        Yields:
            The transformer.
        """
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
        # A rounded to bfloat16 is not orthonormal (off by 7e-4): moving the model must not change its type
        A = self.A
        super()._apply(fn, recurse)
        self.A = A.to(self.A.device)
        return self


def square_grid(tokens: Tensor) -> tuple[int, int]:
    """Return the grid of tokens that fill a square.

    Args:
        tokens: Tokens (B, N, C).

    Returns:
        Rows and columns, (h, w).

    Raises:
        ValueError: If N is not a square number.
    """
    side = round(tokens.shape[1] ** 0.5)
    if side * side != tokens.shape[1]:
        raise ValueError(f"{tokens.shape[1]} tokens do not fill a square: give their `grid` (h, w)")
    return side, side
