# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Images as the flow's state, and how a coupling layer splits it in two halves and merges them again (paper, section
2.5).

Shapes: B batch, N patches of an image, D numbers of a patch. The state is (B, N, D); a half is always (B, N, D/2), so
that one shape of conditioner serves both kinds of split. Values are moved by index and never enter a matrix product,
which on accelerators may round them to TF32 or bfloat16 (paper, "Numerical precision considerations").
"""

import hashlib
from functools import lru_cache

import torch

from .configuration_jet import JetConfig


def patchify(images: torch.Tensor, config: JetConfig) -> torch.Tensor:
    """(B, C, S, S) -> (B, N, D); the channel is the fastest axis of a patch, then its columns, then its rows."""
    p, grid = config.patch_size, config.grid_size
    patches = images.reshape(-1, config.num_channels, grid, p, grid, p).permute(0, 2, 4, 3, 5, 1)
    return patches.reshape(-1, config.num_patches, config.patch_dim)


def unpatchify(state: torch.Tensor, config: JetConfig) -> torch.Tensor:
    """(B, N, D) -> (B, C, S, S), the inverse of [`patchify`]."""
    p, grid = config.patch_size, config.grid_size
    images = state.reshape(-1, grid, grid, p, p, config.num_channels).permute(0, 5, 1, 3, 2, 4)
    return images.reshape(-1, config.num_channels, config.image_size, config.image_size)


@lru_cache(maxsize=1024)
def _channel_order(seed: int, layer_index: int, size: int) -> tuple[int, ...]:
    # Sorting by a hash is a uniform shuffle that no release of a random number library can change.
    def key(index: int) -> bytes:
        return hashlib.sha256(f"{seed}/{layer_index}/{index}".encode()).digest()

    return tuple(sorted(range(size), key=key))


def channel_permutation(seed: int, layer_index: int, size: int) -> torch.Tensor:
    """
    Random order of the numbers of a patch; the first half of the order is the half that the conditioner sees.

    Args:
        seed: Draws the permutation, together with `layer_index`.
        layer_index: Position of the coupling layer in the flow.
        size: Number of dimensions D of a patch.

    Returns:
        int64 tensor of shape (D,) on the CPU.
    """
    return torch.tensor(_channel_order(seed, layer_index, size), dtype=torch.int64, device="cpu")


def spatial_permutation(pattern: str, grid_size: int) -> torch.Tensor:
    """
    Order of the patches of an image that lists one half, in raster order, before the other.

    Args:
        pattern: `"checkerboard"` (even row + column first), `"vstripes"` (even columns first) or `"hstripes"` (even
            rows first), or one of these with `"-inv"` (the other half first).
        grid_size: Number of patches along one side.

    Returns:
        int64 tensor of shape (N,) on the CPU.
    """
    rows = torch.arange(grid_size, device="cpu")[:, None].expand(grid_size, grid_size)
    columns = rows.T
    parity = {"checkerboard": rows + columns, "vstripes": columns, "hstripes": rows}[pattern.removesuffix("-inv")] % 2
    if pattern.endswith("-inv"):
        parity = 1 - parity
    return torch.argsort(parity.flatten(), stable=True)


def half_places(permutation: torch.Tensor, num_patches: int, patch_dim: int, spatial: bool) -> torch.Tensor:
    """
    Where the numbers of both halves are in a flattened state: one map of indices for both kinds of split.

    Args:
        permutation: Integer tensor of shape (N,) for a spatial split, else (D,).
        num_patches: N.
        patch_dim: D.
        spatial: Whether patches are split, rather than the numbers of each patch. The N/2 patches of a half are cut in
            two, "n (s c) -> (n s) c" with s = 2, which leaves them where they are in a flattened half.

    Returns:
        int64 tensor of shape (2, N * D/2).
    """
    if spatial:
        numbers = torch.arange(patch_dim, device=permutation.device)
        return (patch_dim * permutation[:, None] + numbers).view(2, -1)
    patches = torch.arange(num_patches, device=permutation.device)
    return (patch_dim * patches[:, None] + permutation.view(2, 1, -1)).flatten(1)


def split(state: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Splits a state (B, N, D) in two halves of shape (B, N, D/2), with the `places` of [`half_places`]."""
    half_shape = (*state.shape[:2], state.shape[2] // 2)
    first, second = (state.flatten(1).index_select(1, half).view(half_shape) for half in places)
    return first, second


def merge(first: torch.Tensor, second: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Puts two halves of shape (B, N, D/2) back to where [`split`] took them from, giving a state (B, N, D)."""
    halves = torch.cat([first.flatten(1), second.flatten(1)], dim=1)
    state = torch.empty_like(halves).index_copy(1, places.flatten(), halves)
    return state.view(*first.shape[:2], 2 * first.shape[2])


def replace_second(state: torch.Tensor, second: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """[`merge`] of the first half that [`split`] takes from a state (B, N, D), and another second half."""
    return state.flatten(1).index_copy(1, places[1], second.flatten(1)).view(state.shape)
