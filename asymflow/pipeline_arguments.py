"""Checks of a pipeline's arguments before any work; each error begins with the argument's name."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from asymflow.oklab import RELEASED, OklabSpace

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_count(name: str, value: Any) -> None:
    """Check a count.

    Args:
        name: Name of the argument.
        value: Its value.

    Raises:
        ValueError: Unless it is an integer of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be an integer of at least 1")


def check_fraction(name: str, value: Any) -> None:
    """Check a fraction.

    Args:
        name: Name of the argument.
        value: Its value.

    Raises:
        ValueError: Unless it is a number in [0, 1]; True is 1, False is 0.
    """
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} is {value!r}; it must be a number in [0, 1]")


def check_sigmas(sigmas: Any) -> None:
    """Check noise levels that were given instead of a number of steps; `sampling_sigmas` checks their values.

    Args:
        sigmas: A list of numbers, or None.

    Raises:
        ValueError: For anything else.
    """
    if sigmas is None:
        return
    numbers = isinstance(sigmas, list | tuple) and all(isinstance(value, int | float) for value in sigmas)
    if not numbers or not sigmas:
        raise ValueError(f"sigmas is {_shown(sigmas)}; it must be a list of numbers, one per step")


def check_choices(flags: dict[str, Any], output_type: Any, interval: Any, generator: Any) -> None:
    """Check flags, output type, guidance interval and generator.

    Args:
        flags: Booleans by name.
        output_type: One of OUTPUT_TYPES.
        interval: Two numbers.
        generator: A torch.Generator, a list, or None.

    Raises:
        ValueError: If one has another type or value.
    """
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}; it must be True or False")
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type is {output_type!r}; allowed: {', '.join(OUTPUT_TYPES)}")
    numbers = interval if isinstance(interval, list | tuple) else ()
    if len(numbers) != 2 or not all(isinstance(value, int | float) for value in numbers):
        raise ValueError(f"guidance_interval is {interval!r}; it must be two numbers")
    for one in generator if isinstance(generator, list) else [generator]:
        if not isinstance(one, torch.Generator) and (one is not None or isinstance(generator, list)):
            raise ValueError(f"generator is {generator!r}; it must be a torch.Generator, or a list of one per image")


def check_references(image: Any, name: str = "image") -> None:
    """Check reference images.

    Args:
        image: A PIL image, a list of at least one, or None.
        name: Name of the argument.

    Raises:
        ValueError: For anything else.
    """
    if image is None or isinstance(image, Image.Image):
        return
    if not isinstance(image, list) or not image:
        raise ValueError(f"{name} is {_shown(image)}; it must be a PIL image, or a list of at least one")
    for place, one in enumerate(image):
        if not isinstance(one, Image.Image):
            raise ValueError(f"{name}[{place}] is {_shown(one)}; it must be a PIL image")


def choose_size(
    height: int | None, width: int | None, reference: Sequence[int] | None, default: Sequence[int], patch_size: int
) -> tuple[int, int]:
    """Return the size of the images: as given, else the reference image's, else the default.

    Args:
        height: Height in pixels, or None.
        width: Width in pixels, or None.
        reference: Height and width of the first reference image, or None.
        default: Default height and width.
        patch_size: Side of a patch in pixels.

    Returns:
        Height and width in pixels.

    Raises:
        ValueError: If a side is not a multiple of the patch size, or only one side is given beside a reference image.
    """
    given = {"height": height, "width": width}
    for name, side in given.items():
        if side is not None:
            check_count(name, side)
    missing = [name for name, side in given.items() if side is None]
    if reference and len(missing) == 1:
        raise ValueError(f"{missing[0]} is missing: with a reference image give both height and width, or neither")
    fallback = reference or default
    found = (fallback[0] if height is None else height, fallback[1] if width is None else width)
    if any(side % patch_size for side in found):
        size = f"{found[0]}x{found[1]}"
        raise ValueError(f"height, width: the size {size} is not a multiple of {patch_size} on both sides")
    return found


def choose_space(config: Any, mean: Sequence[float] | None, std: float | Sequence[float] | None) -> OklabSpace:
    """Return the transformer's color space; if an older file has none, the given one or the released one.

    Args:
        config: The transformer's configuration.
        mean: Mean of the Oklab space, or None.
        std: Standard deviation of the Oklab space, or None.

    Returns:
        The color space.

    Raises:
        ValueError: If another one than the transformer's is given.
    """

    def space(mean: Sequence[float], std: float | Sequence[float]) -> OklabSpace:
        return OklabSpace(tuple(mean), std if isinstance(std, int | float) else tuple(std))  # type: ignore[arg-type]

    if config.oklab_mean is None:
        return space(RELEASED.mean if mean is None else mean, RELEASED.std if std is None else std)
    own = space(config.oklab_mean, config.oklab_std)
    given = space(own.mean if mean is None else mean, own.std if std is None else std)
    if given != own:
        raise ValueError(f"oklab_mean, oklab_std: the transformer was made for {own}, not for {given}")
    return own


def choose_texts(texts: Any, embeddings: Any, name: str, embedding_dim: int) -> list[str] | list[Tensor]:
    """Return the texts, or else their embeddings.

    Args:
        texts: One text, several, or None.
        embeddings: Embeddings (B, T, E), a list of (T_i, E), or None.
        name: Name of the argument of the texts; that of the embeddings is NAME_embeds.
        embedding_dim: E.

    Returns:
        One text or embedding (T_i, E) per entry.

    Raises:
        ValueError: If both or neither are given, there are none, an entry is not a text, or a shape does not fit.
    """
    if (texts is None) == (embeddings is None):
        raise ValueError(f"{name}: give either {name} or {name}_embeds")
    if embeddings is not None:
        return _check_embeddings(embeddings, f"{name}_embeds", embedding_dim)
    return check_texts(texts, name)


def check_texts(texts: Any, name: str) -> list[str]:
    """Return one text or several as a list.

    Args:
        texts: One text, or a list.
        name: Name of the argument.

    Returns:
        The texts.

    Raises:
        ValueError: If there are none, or an entry is not a text.
    """
    found = [texts] if isinstance(texts, str) else texts
    if not isinstance(found, list | tuple):
        raise ValueError(f"{name} is {_shown(texts)}; it must be a text, or a list of texts")
    if not found:
        raise ValueError(f"{name} is empty")
    for place, one in enumerate(found):
        if not isinstance(one, str):
            raise ValueError(f"{name}[{place}] is {_shown(one)}; it must be a text")
    return list(found)


def _check_embeddings(embeddings: Any, name: str, embedding_dim: int) -> list[Tensor]:
    expected = f"(B, T, {embedding_dim}), or a list of (T, {embedding_dim})"
    if isinstance(embeddings, Tensor):
        if embeddings.ndim != 3:
            raise ValueError(f"{name} is {_shown(embeddings)}; it must be {expected}: one text's is {name}[None]")
    elif not isinstance(embeddings, list | tuple):
        raise ValueError(f"{name} is {_shown(embeddings)}; it must be {expected}")
    found = list(embeddings)
    if not found:
        raise ValueError(f"{name} is empty")
    for place, one in enumerate(found):
        if not isinstance(one, Tensor) or one.ndim != 2 or one.shape[1] != embedding_dim or not len(one):
            raise ValueError(f"{name}[{place}] is {_shown(one)}; it must be (T, {embedding_dim})")
    return found


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    return repr(value) if value is None or isinstance(value, int | float | str | list) else f"a {type(value).__name__}"
