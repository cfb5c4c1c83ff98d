"""Base class of the finetuned models: the transformer's call, its trained parts, precision, and the frozen teacher.

The forward pass is diffusers' own. The student and its frozen teacher share one copy of the base weights: the teacher
is the same transformer with its LoRA switched off and its three original modules in place.
"""

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from asymflow.models.backbone import Backbone
from asymflow.models.latent import backbone_of
from asymflow.models.mixed_precision import use_master_weights
from asymflow.models.network import NF4_BLOCK, Quantization
from asymflow.models.quantized import quantize_linears
from asymflow.parameterization import interpolate, teacher_x_0_low_hat
from asymflow.patches import patchify
from asymflow.schedule import calibrate
from asymflow.subspace import Subspace

# Blocks are recompiled for the student, the teacher, and each new size of image and text. Beyond torch's own limit
# of 8 they would run uncompiled, with only a warning.
RECOMPILE_LIMIT = 64


class AdaptedModel(nn.Module):
    """Latent model with a frozen base, of which three modules (`Backbone.trained`) and LoRA are trained.

    A subclass replaces the three modules, and others that it names, by trained ones. The original ones are kept,
    frozen, in `latent_modules`, and put back by `teacher_view`.

    Args:
        transformer: The latent transformer. The model keeps and changes it.
        subspace: Subspace of the latent tokens, whose rank is the width of a token.
        others: Names of other modules that the subclass replaces.

    Raises:
        ValueError: If no family has such a transformer, the rank is not the width of the transformer's tokens, or the
            patches are not square.
    """

    A: Tensor

    def __init__(self, transformer: Any, subspace: Subspace, others: Sequence[str] = ()):
        super().__init__()
        self.backbone: Backbone = backbone_of(transformer)
        patch_dim, rank = subspace.A.shape
        if rank != (width := self.backbone.token_width(transformer.config)):
            raise ValueError(
                f"the basis has rank {rank}, the transformer's tokens have {width} values: "
                "compute a Procrustes basis with this model's own autoencoder"
            )
        self.patch_size = subspace.patch_size
        if 3 * self.patch_size**2 != patch_dim:
            raise ValueError(f"a patch of {patch_dim} values is not a square of three color channels")
        self.transformer = self.backbone.prepare(transformer).requires_grad_(False)
        self.replaced = (*self.backbone.trained, *others)
        originals = {_key(name): transformer.get_submodule(name) for name in self.replaced}
        self.latent_modules = nn.ModuleDict(originals)
        self.subspace = subspace
        self.s = float(subspace.s)
        self.register_buffer("A", subspace.A.float().clone(), persistent=False)
        last_norm = self.backbone.last_norm
        self._replace_trained({last_norm: copy.deepcopy(transformer.get_submodule(last_norm))})

    def _replace_trained(self, modules: Mapping[str, nn.Module]) -> None:
        """Replace modules of the transformer by trained ones."""
        for name, module in modules.items():
            _set_module(self.transformer, name, module.requires_grad_(True))
            self._use_master_weights(module)

    def _use_master_weights(self, module: nn.Module) -> None:
        use_master_weights(module)
        for parameter in module.parameters():
            parameter.data = parameter.data.to(torch.promote_types(self.dtype, torch.float32))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the frozen base, in which the network computes."""
        return self.transformer.get_submodule(self.backbone.text_input).weight.dtype

    @property
    def text_width(self) -> int:
        """Width of a text embedding, E."""
        return self.transformer.get_submodule(self.backbone.text_input).in_features

    @property
    def head_sizes(self) -> dict[str, int]:
        """Sizes of what replaces the last layer, arguments of `from_latent`; empty for an ordinary last layer."""
        return {}

    def latent_layer(self, name: str) -> Any:
        """Return an original module, as the teacher has it.

        Args:
            name: Name in the transformer of a replaced module.

        Returns:
            The module.
        """
        return self.latent_modules[_key(name)]

    @property
    def last_layer(self) -> nn.Module:
        """The trained last layer."""
        return self.transformer.get_submodule(self.backbone.last)

    def frozen_linears(self) -> list[str]:
        """Return the layers that `quantize_base` quantizes: the transformer's frozen linear layers but the text input.

        The text input keeps its type because this is the type of the computation. Left out are also the layers of
        `Backbone.unquantized`, and those whose rows are not whole blocks of values, which no published model has.

        Returns:
            Names in the transformer.
        """
        return [
            name
            for name, module in self.transformer.named_modules()
            if isinstance(module, nn.Linear)
            and not module.weight.requires_grad
            and name != self.backbone.text_input
            and not re.fullmatch(self.backbone.unquantized, name)
            and module.in_features % NF4_BLOCK == 0
        ]

    def quantize_base(self, device: torch.device | str | None = None, scheme: Quantization = "nf4") -> None:
        """Store the weights of `frozen_linears` in 4 or 8 bits, for the student and its teacher, which share them.

        Call it after `set_precision`. The trained parts, the three original modules and norms keep their types, and
        biases except with fp8.

        Args:
            device: Device on which weights are quantized and stay; None: where they are.
            scheme: How they are stored; see `asymflow.models.quantized`.
        """
        quantize_linears(self.transformer, self.frozen_linears(), device, scheme)

    def add_lora(self, rank: int = 256, alpha: int | None = None, dropout: float = 0.05) -> None:
        """Add LoRA to exactly `Backbone.lora_targets`, through peft. B is zero at first, so the output does not change.

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
            target_modules=self.backbone.lora_targets(self.transformer.config),
        )
        self.transformer.add_adapter(config)
        for name in self.replaced:  # peft freezes all but the adapters
            self.transformer.get_submodule(name).requires_grad_(True)
        for layer in self._lora_layers():
            layer.cast_input_dtype_enabled = False  # master weights take the input's type, not the reverse
            self._use_master_weights(layer.lora_A)
            self._use_master_weights(layer.lora_B)
        self.train(self.training)  # new layers are in training mode, with dropout

    def set_precision(self, dtype: torch.dtype) -> None:
        """Cast the frozen base to the type of the computation; trained parameters stay in float32 (mixed precision).

        Call it after `add_lora` and before an optimizer is made.

        Args:
            dtype: Type of the computation; float32 changes nothing.
        """
        trained = torch.promote_types(dtype, torch.float32)
        for parameter in self.parameters():
            if parameter.is_floating_point():  # quantized weights have their own format
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
        references: Tensor | None = None,
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
            references: Latent tokens of R reference images per image (B, R, N, d); None: there are none.

        Returns:
            x_0_low_hat tokens (B, N, D), float32.

        Raises:
            ValueError: If the tokens do not fill the grid.
        """
        if z_0.ndim == 4:
            side = math.isqrt(self.A.shape[1] // z_0.shape[1])
            grid = (z_0.shape[2] // side, z_0.shape[3] // side)
            z_0 = self.backbone.pack(z_0, side)
        tau, _ = calibrate(sigma.float(), self.s)
        z_tau = interpolate(z_0.float(), noise_tokens.float() @ self.A, tau)
        with self.teacher_view():
            u_z_hat = self._run(z_tau, tau, encoder_hidden_states, grid or square_grid(z_0), text_mask, references)
        return teacher_x_0_low_hat(u_z_hat.float(), z_tau, tau, self.A, self.s)

    @contextmanager
    def teacher_view(self) -> Iterator[Any]:
        """Make `self.transformer` the latent model inside a `with`: LoRA off, the original modules in place.

        Yields:
            The transformer.
        """
        student_modules = {name: self.transformer.get_submodule(name) for name in self.replaced}
        self._set_adapters(False)
        for name in self.replaced:
            _set_module(self.transformer, name, self.latent_layer(name))
        try:
            yield self.transformer
        finally:
            for name, module in student_modules.items():
                _set_module(self.transformer, name, module)
            self._set_adapters(True)

    def _set_adapters(self, enabled: bool) -> None:
        for layer in self._lora_layers():
            layer.enable_adapters(enabled)

    def _lora_layers(self) -> list[LoraLayer]:
        return [module for module in self.transformer.modules() if isinstance(module, LoraLayer)]

    def _run(
        self,
        tokens: Tensor,
        sigma: Tensor,
        text: Tensor,
        grid: tuple[int, int],
        mask: Tensor | None,
        references: Tensor | None = None,
    ) -> Tensor:
        given = () if references is None else (references.to(self.dtype),)
        return self.backbone.run(
            self.transformer, tokens.to(self.dtype), sigma, text.to(self.dtype), grid, mask, *given
        )

    def _reference_tokens(self, references: Tensor | None, scale: float) -> Tensor | None:
        """Return pixel tokens of clean images (B, R, 3, H, W) in the scale of x_t at noise level 0 (Eq. 13).

        Args:
            references: The images, or None.
            scale: s for models that calibrate x_t, 1 for others.
        """
        if references is None:
            return None
        tokens = patchify(references.float().flatten(0, 1), self.patch_size, self.subspace.layout)
        return tokens.unflatten(0, references.shape[:2]) / scale

    def _grid(self, images: Tensor) -> tuple[int, int]:
        return images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # A rounded to bfloat16 is not orthonormal (off by 7e-4): moving the model must not change its type
        A = self.A
        super()._apply(fn, recurse)
        self.A = A.to(self.A.device)
        return self


def _key(name: str) -> str:
    """Return the name of a module as a key of nn.ModuleDict, which has no dots."""
    return name.replace(".", "_")


def _set_module(parent: nn.Module, name: str, module: nn.Module) -> None:
    """Set a submodule by its dotted name."""
    path, _, leaf = name.rpartition(".")
    setattr(parent.get_submodule(path), leaf, module)


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
