"""Names and shapes of the published weights of JiT and AsymFlow-ImageNet, and their conversion to `JiT` and back.

Where the files differ in more than names:

- the patch embedding is a convolution, whose weights are ordered channel first;
- JiT predicts x_0; the network here predicts u_A, which is -x_0 at rank 0 (Eq. 31): the last layer changes its sign;
- AsymFlow's network is given sigma, the network here 1 - sigma (as JiT's): `reflection` maps one encoding of the time
  to the other, and the first time layer absorbs it.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from asymflow.models.jit import SIZES, JiT, JiTConfig
from asymflow.models.jit_positions import wave_frequencies

Kind = Literal["jit", "asymflow"]
"""jit: given 1 - sigma, predicts x_0; asymflow: given sigma, predicts u_A"""
BASIS, SCALE = "proj_buffer", "scale_buffer"
"""AsymFlow's buffers: A (D, r), and s (), which is 1"""
_MODULES = {
    "to_bottleneck": "x_embedder.proj1",
    "from_bottleneck": "x_embedder.proj2",
    "time.0": "t_embedder.mlp.0",
    "time.2": "t_embedder.mlp.2",
    "label": "y_embedder.embedding_table",
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.qkv": "attn.qkv",
    "attention.q_norm": "attn.q_norm",
    "attention.k_norm": "attn.k_norm",
    "attention.proj": "attn.proj",
    "mlp.gate_and_value": "mlp.w12",
    "mlp.out": "mlp.w3",
    "modulation.linear": "adaLN_modulation.1",
    "output.norm": "final_layer.norm_final",
    "output.modulation.linear": "final_layer.adaLN_modulation.1",
    "output.linear": "final_layer.linear",
}
_CONTEXT = {"context_positions": "in_context_posemb"}
_TIME, _LAST = "time.0.weight", ("output.linear.weight", "output.linear.bias")
_COMPUTED = re.compile(r"(x_embedder\.)?pos_embed|feat_rope(_incontext)?\..*")
"""Constants that some files store and the network here computes"""
_SHAPE_TENSORS = {
    "x_embedder.proj1.weight": 4,
    "t_embedder.mlp.2.weight": 2,
    "y_embedder.embedding_table.weight": 2,
    "blocks.0.attn.q_norm.weight": 1,
    "blocks.0.mlp.w3.weight": 2,
}
"""Tensors whose shapes tell the network's, with their numbers of dimensions"""
_SHOWN = 3


def published_name(name: str) -> str:
    """Return the published name of a parameter of `JiT`.

    Args:
        name: Its name in `JiT`.

    Returns:
        Its name in the files.
    """
    if name in _CONTEXT:
        return _CONTEXT[name]
    block, rest = re.fullmatch(r"(blocks\.\d+\.)?(.+)", name).groups("")  # type: ignore[union-attr]
    module, _, leaf = rest.rpartition(".")
    return f"{block}{_MODULES[module]}.{leaf}"


def own_shapes(config: JiTConfig) -> dict[str, torch.Size]:
    """Return the shapes of the parameters of a `JiT`, without building one.

    Args:
        config: Shapes of the network.

    Returns:
        Shapes by name.
    """
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in JiT(config).named_parameters()}


def published_shapes(config: JiTConfig) -> dict[str, torch.Size]:
    """Return the shapes of the tensors of a published file.

    Args:
        config: Shapes of the network.

    Returns:
        Shapes by published name, without the constants that some files store.
    """
    return {published_name(name): _published_shape(name, shape, config) for name, shape in own_shapes(config).items()}


def _published_shape(name: str, shape: torch.Size, config: JiTConfig) -> torch.Size:
    if name == "to_bottleneck.weight":
        return torch.Size([config.bottleneck, 3, config.patch_size, config.patch_size])
    if name == "from_bottleneck.weight":
        return torch.Size([*shape, 1, 1])
    return torch.Size([1, *shape]) if name in _CONTEXT else shape


def infer_config(tensors: Mapping[str, Tensor], context_from: int | None = None) -> JiTConfig:
    """Return the shapes of the network that a file's tensors belong to.

    Args:
        tensors: Tensors by published name.
        context_from: First block whose tokens include the class tokens; None: that of the published size.

    Returns:
        The shapes. Dropout, which no tensor tells, is the published size's, else 0.

    Raises:
        ValueError: If tensors are missing, or `context_from` is needed and not given.
    """
    if missing := [name for name in _SHAPE_TENSORS if name not in tensors]:
        raise ValueError(f"it lacks {_some(missing)}")
    for name, dimensions in {**_SHAPE_TENSORS, "in_context_posemb": 3}.items():
        if name in tensors and (tensors[name].ndim != dimensions or not tensors[name].numel()):
            raise ValueError(f"{name} has shape {list(tensors[name].shape)}; expected {dimensions} dimensions")
    first, time, labels, head, mlp = (tensors[name].shape for name in _SHAPE_TENSORS)
    blocks = {int(name.split(".")[1]) for name in tensors if re.match(r"blocks\.\d+\.", name)}
    context = tensors["in_context_posemb"].shape[1] if "in_context_posemb" in tensors else 0
    width, depth = time[0], max(blocks) + 1
    size = next((size for size in SIZES.values() if (size.width, size.depth) == (width, depth)), None)
    if context_from is None:
        if context and size is None:
            raise ValueError(
                f"width {width} with {depth} blocks is not a published size, and the file does not store where the "
                "class tokens enter: give context_from, in_context_start in JiT's code"
            )
        context_from = size.context_from if size else 0
    return JiTConfig(
        width=width,
        depth=depth,
        heads=width // head[0],
        bottleneck=first[0],
        context_from=context_from,
        context_tokens=context,
        dropout=size.dropout if size else 0.0,
        patch_size=first[-1],
        classes=labels[0] - 1,
        mlp_ratio=_mlp_ratio(width, mlp[1]),
    )


def _mlp_ratio(width: int, hidden: int) -> float:
    """Return the ratio that gives this many hidden values: 4, as published, or the one in the middle of its range."""
    return 4.0 if int(4.0 * width * 2 / 3) == hidden else (hidden + 0.5) * 3 / (2 * width)


def reflection(dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the matrix R of wave(1 - t) = R wave(t), symmetric and orthogonal, so its own inverse.

    By the addition theorems cos(f - f t) = cos f cos(f t) + sin f sin(f t) and
    sin(f - f t) = sin f cos(f t) - cos f sin(f t), for each frequency f of `asymflow.models.jit_positions.wave`.

    Args:
        dtype: Type of the result.

    Returns:
        R (256, 256).
    """
    frequencies = wave_frequencies(torch.device("cpu"), torch.float64)
    cos, sin = torch.diag(frequencies.cos()), torch.diag(frequencies.sin())
    return torch.cat([torch.cat([cos, sin], dim=1), torch.cat([sin, -cos], dim=1)]).to(dtype)


def from_published(tensors: Mapping[str, Tensor], config: JiTConfig, kind: Kind) -> dict[str, Tensor]:
    """Return the parameters of a `JiT` that computes u_A as the published network does.

    Args:
        tensors: Tensors by published name, of any float type. Constants that the network computes are ignored.
        config: Shapes of the network.
        kind: jit: the file's network is given 1 - sigma and predicts x_0; asymflow: it is given sigma and predicts u_A.

    Returns:
        Parameters by their names in `JiT`, in at least float32.

    Raises:
        ValueError: If tensors are missing or unknown, have another shape, or are not finite.
    """
    _check_shapes(tensors, published_shapes(config), kind)
    values = {}
    for name, shape in own_shapes(config).items():
        value = tensors[published_name(name)]
        if not torch.isfinite(value).all():
            raise ValueError(f"{published_name(name)} holds NaN or infinite values")
        if name == "to_bottleneck.weight":
            value = value.permute(0, 2, 3, 1)
        value = value.reshape(shape).to(torch.promote_types(value.dtype, torch.float32))
        values[name] = _convert(name, value, kind).contiguous()
    return values


def to_published(values: Mapping[str, Tensor], config: JiTConfig, kind: Kind) -> dict[str, Tensor]:
    """Return a published file's tensors, the inverse of `from_published`.

    Args:
        values: Parameters by their names in `JiT`.
        config: Shapes of the network.
        kind: As in `from_published`.

    Returns:
        Tensors by published name, in the type of the parameters. A file of AsymFlow also needs `proj_buffer` (D, r) and
        `scale_buffer` ().
    """
    tensors = {}
    for name, own in values.items():
        value = _convert(name, own.detach(), kind)
        if name == "to_bottleneck.weight":
            value = value.unflatten(1, (config.patch_size, config.patch_size, 3)).permute(0, 3, 1, 2)
        shape = _published_shape(name, own.shape, config)
        tensors[published_name(name)] = value.reshape(shape).contiguous()
    return tensors


def _convert(name: str, value: Tensor, kind: Kind) -> Tensor:
    """Change the parametrization, in either direction: both changes are their own inverses."""
    if kind == "jit":
        return -value if name in _LAST else value
    return (value.double() @ reflection().to(value.device)).to(value.dtype) if name == _TIME else value


def _check_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, torch.Size], kind: Kind) -> None:
    buffers = {BASIS, SCALE} if kind == "asymflow" else set()
    found = {name: tensor.shape for name, tensor in tensors.items() if not _COMPUTED.fullmatch(name)}
    wrong = [
        f"{name} is {list(found[name])}, not {list(shape)}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    parts = {
        "missing": sorted(expected.keys() - found.keys()),
        "unknown": sorted(found.keys() - expected.keys() - buffers),
        "of another shape": wrong,
    }
    if problems := [f"{len(names)} tensors are {what}: {_some(names)}" for what, names in parts.items() if names]:
        raise ValueError("; ".join(problems))


def _some(items: Iterable[str]) -> str:
    listed = list(items)
    return ", ".join([*listed[:_SHOWN], *(["..."] if len(listed) > _SHOWN else [])])
