"""The released adapter's file format: what finetuning changed of a transformer, without its base.

Trained values are float16, the subspace bfloat16. There are no alphas: a LoRA whose scale alpha / rank is not 1 has it
multiplied into `lora_B`. Patches are packed channel first; those of other models are reordered when written and read.
The baselines, and other families than FLUX.2, have files of the same form under class names of ours; the latent
baseline has no subspace.
"""

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from asymflow.adapters.basis import LAYOUT, differing_buffer
from asymflow.adapters.defaults import SamplingDefaults
from asymflow.adapters.files import read_adapter, write_adapter
from asymflow.models.backbone import Backbone, Kind
from asymflow.models.latent import backbone_of_config, families
from asymflow.patches import layout_order
from asymflow.subspace import Subspace

if TYPE_CHECKING:  # models load diffusers, which reading an adapter's files does without
    from asymflow.models.adapted import AdaptedModel

SAMPLING_KEYS = ("sigma_min",)
"""Keys of config.json that need not match the model"""
_SHARED_AXES = {
    "proj_buffer": 0,
    "head.embed.weight": 1,
    "head.proj_out.weight": 0,
    "head.proj_out.bias": 0,
}
"""Axes of the values of a patch, in the tensors that all models with a subspace may have"""
_SHOWN = 8


def model_classes() -> dict[Kind, type["AdaptedModel"]]:
    """Return the class of each kind of model.

    Returns:
        Classes by kind.
    """
    from asymflow.models.ddt import DdtFlux2
    from asymflow.models.l2p import L2pModel
    from asymflow.models.lifted import LatentModel, PixelModel

    return {"asymflow": PixelModel, "latent": LatentModel, "ddt": DdtFlux2, "l2p": L2pModel}


def kind_of_model(model: "AdaptedModel") -> Kind:
    """Return the kind of a model.

    Args:
        model: The model.

    Returns:
        Its kind.
    """
    return next(kind for kind, cls in model_classes().items() if isinstance(model, cls))


def save_adapter(model: "AdaptedModel", folder: str | os.PathLike, defaults: SamplingDefaults | None = None) -> None:
    """Write a model's trained values in the released format. Equal values give equal bytes.

    Args:
        model: The model.
        folder: Folder to write; it is created.
        defaults: Sampling defaults; None: none are written.

    Raises:
        ValueError: If float16 cannot represent a value.
    """
    subspace = _subspace_of(model)
    tensors = to_released(model.trainable(), subspace, _lora_scale(model))
    write_adapter(folder, tensors, _config_of(model), subspace, defaults)


@torch.no_grad()
def load_adapter(model: "AdaptedModel", folder: str | os.PathLike) -> None:
    """Set a model's trained values; its A and s stay in float32.

    Args:
        model: The model, with its LoRA already added; on an error it is unchanged.
        folder: Folder of the adapter.

    Raises:
        ValueError: If files are missing, or were made for another model or basis.
    """
    tensors, config = read_adapter(folder)
    try:
        check_config(config, _config_of(model))
        trainable = model.trainable()
        values = from_released(tensors, trainable, _subspace_of(model), _lora_scale(model))
    except ValueError as error:
        raise ValueError(f"the adapter in {folder} does not fit the model: {error}") from None
    for name, parameter in trainable.items():
        parameter.copy_(values[name])


def released_name(name: str) -> str:
    """Return the name of a parameter in the released file.

    Args:
        name: Name in `trainable()`.

    Returns:
        The name without the prefix of the transformer and without `.default`.
    """
    return name.removeprefix("transformer.").replace(".default.", ".")


def to_released(values: Mapping[str, Tensor], subspace: Subspace | None, lora_scale: float = 1.0) -> dict[str, Tensor]:
    """Return the tensors of the released file.

    Args:
        values: Values named as in `trainable()`.
        subspace: Subspace of the model; None: the latent baseline, which has none.
        lora_scale: alpha / rank.

    Returns:
        Tensors by their names in the file, float16, the subspace bfloat16.

    Raises:
        ValueError: If float16 cannot represent a value.
    """
    tensors = {}
    for own_name, value in values.items():
        name = released_name(own_name)
        scale = lora_scale if ".lora_B." in name else 1.0
        tensors[name] = _half(name, value.detach().float() * scale)
    if subspace is not None:
        tensors |= _buffers(subspace)
        if subspace.layout != LAYOUT:
            tensors = _repacked(tensors, subspace, subspace.layout, LAYOUT)
    return tensors


def from_released(
    tensors: Mapping[str, Tensor], like: Mapping[str, Tensor], subspace: Subspace | None, lora_scale: float = 1.0
) -> dict[str, Tensor]:
    """Return the values of the released file, the inverse of `to_released`.

    Args:
        tensors: Tensors by their names in the file.
        like: A model's `trainable()`, for names and shapes.
        subspace: Subspace of the model; None: the latent baseline, which has none.
        lora_scale: alpha / rank.

    Returns:
        Values named and shaped as `like`, float32.

    Raises:
        ValueError: If tensors are missing or unknown, have another shape, are not finite, or belong to another basis.
    """
    own_names = {released_name(name): name for name in like}
    buffers = {} if subspace is None else _buffers(subspace)
    shapes = {name: like[own].shape for name, own in own_names.items()} | {n: b.shape for n, b in buffers.items()}
    check_shapes({name: tensor.shape for name, tensor in tensors.items()}, shapes)
    check_finite(tensors)
    if subspace is not None:
        if subspace.layout != LAYOUT:
            tensors = _repacked(tensors, subspace, LAYOUT, subspace.layout)
        if name := differing_buffer(subspace, tensors):
            raise ValueError(f"its {name} belongs to another basis than the model's: load it with its own")
    return {own: tensors[name].float() / (lora_scale if ".lora_B." in name else 1.0) for name, own in own_names.items()}


def adapter_config(
    kind: Kind,
    base: Mapping[str, Any],
    subspace: Subspace | None,
    sigma_min: float = 1e-4,
    head: Mapping[str, int] | None = None,
    backbone: Backbone | None = None,
) -> dict[str, Any]:
    """Return the content of config.json.

    Args:
        kind: Kind of the model.
        base: Settings of the latent transformer; missing ones have diffusers' defaults.
        subspace: Subspace of the model; None: the latent baseline, which has none.
        sigma_min: `sigma_floor_sample`, the lower bound of sigma in the recovery.
        head: Sizes of what replaces the last layer (`AdaptedModel.head_sizes`); empty or None for an ordinary one.
        backbone: Family's transformer; None: that of the settings (`asymflow.models.latent.backbone_of_config`).

    Returns:
        The content.
    """
    backbone = backbone or backbone_of_config(base)
    known = backbone.complete(base)
    config: dict[str, Any] = {"_class_name": backbone.adapter_classes[kind]}
    if subspace is None:
        config |= {name: known[name] for name in ("in_channels", "patch_size") if name in known}
    else:
        config |= {"in_channels": 3, "patch_size": subspace.patch_size, "base_rank": subspace.rank}
    config |= {name: known[name] for name in backbone.adapter_keys} | dict(backbone.adapter_constants)
    config = {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}
    if kind == "asymflow":
        config["sigma_min"] = sigma_min
    if head:
        config["head"] = dict(head)
    return config


def _config_of(model: "AdaptedModel") -> dict[str, Any]:
    kind = kind_of_model(model)
    subspace, base = _subspace_of(model), model.transformer.config
    sigma_min = getattr(model, "sigma_floor_sample", 0.0)
    return adapter_config(kind, base, subspace, sigma_min, model.head_sizes, model.backbone)


def _subspace_of(model: "AdaptedModel") -> Subspace | None:
    """Return the subspace that the model computes with; the latent baseline's belongs only to its teacher."""
    return None if kind_of_model(model) == "latent" else model.subspace


def _lora_scale(model: "AdaptedModel") -> float:
    adapters = getattr(model.transformer, "peft_config", {})
    return adapters["default"].lora_alpha / adapters["default"].r if adapters else 1.0


def _buffers(subspace: Subspace) -> dict[str, Tensor]:
    """Return A (D, r) in the subspace's own layout and s (), as stored in the file."""
    A = subspace.A.detach().to("cpu", torch.float32)
    return {"proj_buffer": A.bfloat16(), "scale_buffer": torch.tensor(subspace.s, dtype=torch.bfloat16)}


def _repacked(tensors: Mapping[str, Tensor], subspace: Subspace, source: str, target: str) -> dict[str, Tensor]:
    """Return the tensors with their patches reordered from the layout `source` to `target`."""
    order, axes = layout_order(subspace.patch_size, source, target), _patch_axes()
    return {
        name: tensor.index_select(axes[name], order.to(tensor.device)) if name in axes else tensor
        for name, tensor in tensors.items()
    }


def _patch_axes() -> dict[str, int]:
    """Return the axis of the values of a patch in each tensor that has one, by its name in the file of any family."""
    axes = dict(_SHARED_AXES)
    for backbone in (family.backbone for family in families()):
        axes |= {f"{backbone.first}.weight": 1, f"{backbone.last}.weight": 0, f"{backbone.last}.bias": 0}
    return axes


def _half(name: str, value: Tensor) -> Tensor:
    """Return the value rounded to float16; a meta tensor, which has no values, is not checked."""
    rounded = value.to(torch.float16)
    if not value.is_meta and not torch.isfinite(rounded).all():
        largest = float(value.abs().max())
        raise ValueError(f"{name} has values that float16 cannot represent; the largest is {largest:g}")
    return rounded


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Check that tensors are finite; meta tensors are not checked.

    Args:
        tensors: Tensors by name.

    Raises:
        ValueError: If some contain NaN or infinity; it gives their names.
    """
    broken = [name for name, tensor in tensors.items() if not tensor.is_meta and not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"{_some(broken)} hold NaN or infinite values")


def check_config(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Check that an adapter's config.json fits a model, up to SAMPLING_KEYS.

    Args:
        found: Content of the adapter's config.json.
        expected: That of the model.

    Raises:
        ValueError: If a value differs; it gives the names and values.
    """
    wrong = [
        f"{name} is {found.get(name)!r}, the model's {value!r}"
        for name, value in expected.items()
        if name not in SAMPLING_KEYS and found.get(name) != value
    ]
    if wrong:
        raise ValueError(f"it was made for another model: {_some(wrong, '; ')}")


def check_shapes(found: Mapping[str, torch.Size], expected: Mapping[str, torch.Size]) -> None:
    """Check names and shapes of tensors.

    Args:
        found: Shapes of an adapter's tensors.
        expected: Shapes that fit the model.

    Raises:
        ValueError: If any differ; one error gives their number and the first few.
    """
    wrong = [
        f"{name} is {list(found[name])}, not {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    parts = {
        "missing": sorted(expected.keys() - found.keys()),
        "not the model's": sorted(found.keys() - expected.keys()),
        "of another shape": wrong,
    }
    problems = [f"{len(names)} tensors are {what}: {_some(names)}" for what, names in parts.items() if names]
    if any(".lora_" in name for name in found) and not any(".lora_" in name for name in expected):
        problems.append("the model has no LoRA: call add_lora first")
    if problems:
        raise ValueError("; ".join(problems))


def _some(items: Iterable[str], separator: str = ", ") -> str:
    listed = list(items)
    return separator.join([*listed[:_SHOWN], *(["..."] if len(listed) > _SHOWN else [])])
