"""Images to patch tokens and back: the only module that knows the packing order.

Two orders exist. "channel_first" packs a patch as (channel, row, column), as FLUX.2 latents and the released AsymFlow
weights do; "channel_last" packs (row, column, channel), as JiT does. A basis A fitted in one order is meaningless in
the other, and nothing fails; `Subspace` therefore stores the name of its layout.
"""

import torch

LAYOUTS = ("channel_first", "channel_last")


def check_layout(layout: str) -> None:
    """Check the name of a packing order.

    Args:
        layout: The name.

    Raises:
        ValueError: Unless it is one of `LAYOUTS`.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; allowed: {', '.join(LAYOUTS)}")


def _check_grid(height: int, width: int, patch_size: int) -> tuple[int, int]:
    if patch_size < 1:
        raise ValueError(f"patch_size is {patch_size}; it must be at least 1")
    if height % patch_size or width % patch_size:
        raise ValueError(f"image size {height}x{width} is not a multiple of patch_size {patch_size} on both sides")
    return height // patch_size, width // patch_size


def patchify(images: torch.Tensor, patch_size: int, layout: str = "channel_first") -> torch.Tensor:
    """Cut images into tokens, row by row over the grid of patches.

    Args:
        images: Images (B, C, H, W).
        patch_size: Side of a patch in pixels; it divides H and W.
        layout: Packing order, one of `LAYOUTS`.

    Returns:
        Tokens (B, N, C * patch_size**2).

    Raises:
        ValueError: For another number of dimensions, an unknown layout, or sides that the patch does not divide.
    """
    check_layout(layout)
    if images.dim() != 4:
        raise ValueError(f"images have shape {tuple(images.shape)}; expected (B, C, H, W)")
    batch, channels, height, width = images.shape
    rows, columns = _check_grid(height, width, patch_size)
    grid = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    order = (0, 2, 4, 1, 3, 5) if layout == "channel_first" else (0, 2, 4, 3, 5, 1)
    return grid.permute(order).reshape(batch, rows * columns, channels * patch_size * patch_size)


def take_patches(images: torch.Tensor, indices: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Return some of the tokens of `patchify(images, patch_size)`, without touching other patches.

    Args:
        images: Images (B, C, H, W).
        indices: Indices (B, n) of the patches in the grid, counted row by row.
        patch_size: Side of a patch in pixels; it divides H and W.

    Returns:
        Tokens (B, n, C * patch_size**2), channel first.

    Raises:
        ValueError: If the patch does not divide the sides.
    """
    batch, _, height, width = images.shape
    rows, columns = _check_grid(height, width, patch_size)
    grid = images.unflatten(3, (columns, patch_size)).unflatten(2, (rows, patch_size)).permute(0, 2, 4, 1, 3, 5)
    which = torch.arange(batch, device=images.device)[:, None]
    return grid[which, indices // columns, indices % columns].flatten(2)


def unpatchify(
    tokens: torch.Tensor,
    height: int,
    width: int,
    patch_size: int,
    channels: int = 3,
    layout: str = "channel_first",
) -> torch.Tensor:
    """Put tokens back into images, the exact inverse of `patchify`.

    Args:
        tokens: Tokens (B, N, channels * patch_size**2).
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        patch_size: Side of a patch in pixels.
        channels: Number of channels of the images.
        layout: Packing order, one of `LAYOUTS`.

    Returns:
        Images (B, channels, height, width).

    Raises:
        ValueError: If the number or the width of the tokens does not fit the image, or for an unknown layout.
    """
    check_layout(layout)
    if tokens.dim() != 3:
        raise ValueError(f"tokens have shape {tuple(tokens.shape)}; expected (B, N, D)")
    rows, columns = _check_grid(height, width, patch_size)
    batch, count, dim = tokens.shape
    if (count, dim) != (rows * columns, channels * patch_size * patch_size):
        raise ValueError(
            f"tokens have N={count}, D={dim}; a {height}x{width} image of {channels} channels at patch_size "
            f"{patch_size} needs N={rows * columns}, D={channels * patch_size * patch_size}"
        )
    if layout == "channel_first":
        grid = tokens.reshape(batch, rows, columns, channels, patch_size, patch_size).permute(0, 3, 1, 4, 2, 5)
    else:
        grid = tokens.reshape(batch, rows, columns, patch_size, patch_size, channels).permute(0, 5, 1, 3, 2, 4)
    return grid.reshape(batch, channels, height, width)


def layout_order(patch_size: int, source: str, target: str, channels: int = 3) -> torch.Tensor:
    """Return the permutation from one packing order to another: `target_token = source_token[order]`.

    Args:
        patch_size: Side of a patch in pixels.
        source: Packing order of the given tokens.
        target: Packing order of the wanted tokens.
        channels: Number of channels.

    Returns:
        Indices (D,), int64.

    Raises:
        ValueError: For an unknown layout.
    """
    indices = torch.arange(channels * patch_size**2)
    image = unpatchify(indices[None, None], patch_size, patch_size, patch_size, channels, source)
    return patchify(image, patch_size, target).flatten()
