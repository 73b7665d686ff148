# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Position embeddings and spatial splits for another image size.

Shapes: N patches of an image, E hidden size.
"""

import math

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from .configuration_jet import JetConfig
from .flow_jet import JetCoupling, spatial_permutation


POSITIONS = "position_embeddings"


def resized_weights(model: PreTrainedModel, config: JetConfig) -> dict[str, torch.Tensor]:
    """
    Return the parameters and buffers of a model that depend on the image size, for the size of `config`, by name.

    Position embeddings are interpolated. Spatial splits are made for the new grid of patches. All other weights fit
    any size.

    Args:
        model: A Jet model.
        config: Its configuration, but for `image_size`.

    Raises:
        ValueError: for a model whose spatial splits are not those of its configuration, or offloaded weights.
    """
    old_shape, grid_shape = model.config.grid_shape, config.grid_shape
    weights: dict[str, torch.Tensor] = {}
    patterns = {"dequantizer": "channels"}  # the patches that tokens stand for, by the owner of the embeddings
    for name, module in model.named_modules():
        if not isinstance(module, JetCoupling):
            continue
        patterns[f"{name}.conditioner"] = "channels" if module.map.masking else module.pattern
        if module.spatial:
            if not torch.equal(module.permutation.cpu(), module.make_permutation()):
                raise ValueError(
                    f"`image_size` cannot be changed: `{name}.permutation` is not the split {module.pattern!r} of the "
                    "configuration."
                )
            weights[f"{name}.permutation"] = spatial_permutation(module.pattern, *grid_shape)
    parameters = dict(model.named_parameters())
    for owner, pattern in patterns.items():
        positions = parameters.get(f"{owner}.{POSITIONS}")
        if positions is None:  # the CNN has none
            continue
        if positions.is_meta:
            raise ValueError(f"`image_size` can be changed only for weights in memory, but `{owner}` is offloaded.")
        weights[f"{owner}.{POSITIONS}"] = resize_positions(positions.detach(), old_shape, grid_shape, pattern)
    return weights


def resize_positions(
    positions: torch.Tensor, old_shape: tuple[int, int], grid_shape: tuple[int, int], pattern: str
) -> torch.Tensor:
    """
    Interpolate the position embeddings of one conditioner bicubically.

    Args:
        positions: Tensor (1, N, E).
        old_shape, grid_shape: Numbers of rows and columns of patches in the old and in the new grid.
        pattern: Name of the spatial split whose first half the tokens are, or `"channels"` if they are all patches.

    Returns:
        Tensor (1, number of patches of the new grid, E), of the dtype and on the device of `positions`.
    """
    if old_shape == grid_shape:
        return positions

    def patches(shape: tuple[int, int]) -> torch.Tensor:
        number = math.prod(shape)
        return torch.arange(number) if pattern == "channels" else spatial_permutation(pattern, *shape)[: number // 2]

    # A patch of a half is cut into two tokens, see `split_indices`: they are channels of one grid here.
    values = positions.to("cpu", torch.promote_types(positions.dtype, torch.float32))
    values = values.view(len(patches(old_shape)), -1).T
    grid = values.new_zeros(len(values), math.prod(old_shape)).index_copy(1, patches(old_shape), values)
    known = values.new_zeros(1, math.prod(old_shape)).index_fill(1, patches(old_shape), 1)
    grid, known = (part.view(-1, 1, *old_shape) for part in (grid, known))
    # The patches of the other half get the mean of their neighbors, of which at least one is known.
    cross = values.new_tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]])[None, None]
    sums, counts = (nn.functional.conv2d(part, cross, padding=1) for part in (grid, known))
    grid = torch.where(known.bool(), grid, sums / counts)
    grid = nn.functional.interpolate(grid, grid_shape, mode="bicubic", align_corners=False, antialias=True)
    resized = grid.flatten(1)[:, patches(grid_shape)].T.reshape(1, math.prod(grid_shape), -1)
    return resized.to(positions)
