# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Construction of a configuration and weights from the arrays of another implementation's checkpoint."""

import math
import os
from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError

from ..model.configuration_jet import SPATIAL_COUPLINGS, JetConfig
from ..model.flow_jet import spatial_permutation
from ..model.modeling_jet import JetForDensityEstimation
from . import names


class Checkpoint:
    """
    Arrays of a checkpoint, which must all be taken, so that none is ignored silently.

    Args:
        path: Path of the file, for messages.
        arrays: Arrays by name.
    """

    def __init__(self, path: str | os.PathLike, arrays: dict[str, np.ndarray]):
        self.path = path
        self.arrays = arrays
        self.taken: set[str] = set()

    def take(self, name: str) -> np.ndarray:
        """Return an array."""
        if name not in self.arrays:
            raise ValueError(f"{self.path} lacks the array {name}.")
        self.taken.add(name)
        return self.arrays[name]

    def check_all_taken(self) -> None:
        """Raise an error if there are arrays that were not taken."""
        if left := self.arrays.keys() - self.taken:
            raise ValueError(f"{self.path} has arrays that a Jet of this shape does not have: {name_some(left)}.")

    def count(self, template: str) -> int:
        """Return the number of consecutive groups of arrays that begin with `template`, with `{i}` = 0, 1, ..."""
        number = 0
        while any(name.startswith(template.format(i=number)) for name in self.arrays):
            number += 1
        return number


def name_some(arrays: Collection[str]) -> str:
    """Return the first five of some names of arrays, for messages."""
    more = f" and {len(arrays) - 5} more" if len(arrays) > 5 else ""
    return ", ".join(sorted(arrays)[:5]) + more or "no arrays"


def read_permutation(path: str | os.PathLike, matrix: np.ndarray) -> torch.Tensor:
    """Return the order, int64, that a one-hot matrix (from, to) sorts into: element `to` comes from `from`."""
    is_square = matrix.ndim == 2 and 0 < matrix.shape[0] == matrix.shape[1]
    order = matrix.argmax(axis=0) if is_square else np.arange(0)
    if not is_square or not np.array_equal(matrix, np.eye(len(matrix))[:, order]) or len(set(order)) != len(order):
        raise ValueError(f"{path}: a coupling mask of shape {matrix.shape} is not a permutation matrix.")
    return torch.from_numpy(order.astype(np.int64))


def assemble(
    checkpoint: Checkpoint,
    take: Callable[[int, str], np.ndarray],
    table: dict[str, names.Row],
    permutations: list[tuple[str, torch.Tensor]],
    shown: dict,
    known: dict,
) -> tuple[JetConfig, dict[str, torch.Tensor]]:
    """
    Return the configuration and the weights, under this package's names.

    Args:
        checkpoint: Checkpoint to read.
        take: Function from a coupling layer and a name in `table` to the array of this layer.
        table: Names of the parameters of one conditioner, see [`names`].
        permutations: Kind and permutation of each coupling layer.
        shown: Fields of [`JetConfig`] that the caller derived from the file.
        known: Fields that the user provided, which must not contradict the file.

    Raises:
        ValueError: naming the array or field that is missing, unexpected or contradicted.
    """
    path = checkpoint.path
    known = {field: value for field, value in known.items() if value is not None}
    state_dict, heads = _read_layers(path, take, table, permutations)
    checkpoint.check_all_taken()
    if len(heads) > 1:
        raise ValueError(f"{path} has attentions of different numbers of heads, {sorted(heads)}.")
    conditioner = "jet.couplings.0.conditioner"
    num_channels = known.get("num_channels") or JetConfig.num_channels
    shown = shown | _read_sizes(path, state_dict, conditioner, num_channels)
    shown["num_coupling_layers"] = len(permutations)
    shown["coupling_kinds"] = _shortest_cycle([kind for kind, _ in permutations])
    shown["context_size"] = None
    if "cross_attention.kv_proj.weight" in table:
        shown["context_size"] = state_dict[f"{conditioner}.cross_attention.kv_proj.weight"].shape[-1]
    if heads:
        shown["num_attention_heads"] = heads.pop()
    if shown["num_hidden_layers"]:
        shown["intermediate_size"] = state_dict[f"{conditioner}.layers.0.mlp.fc1.weight"].shape[0]
    spatial = [_spatial_pattern(path, i, order) for i, (kind, order) in enumerate(permutations) if kind == "spatial"]
    if spatial:
        shown["spatial_couplings"] = _shortest_cycle(spatial)
    lengths = {"coupling_kinds": len(permutations), "spatial_couplings": len(spatial)}
    for field, value in known.items():
        given = _shortest_cycle(_cycle(value, lengths[field])) if field in lengths and value else value
        if field in shown and given != shown[field]:
            raise ValueError(f"{path} shows {field}={shown[field]}, which contradicts the given {value}.")
    try:
        config = JetConfig(**(known | shown))
    except StrictDataclassError as error:
        raise ValueError(f"{path} does not make a configuration: {error}") from error
    _check_shapes(path, config, state_dict)
    return config, state_dict


def _read_layers(
    path: str | os.PathLike,
    take: Callable[[int, str], np.ndarray],
    table: dict[str, names.Row],
    permutations: list[tuple[str, torch.Tensor]],
) -> tuple[dict[str, torch.Tensor], set[int]]:
    """Return the weights of all layers, and the numbers of heads that their shapes show."""
    state_dict, heads = {}, set()
    for layer, (_, permutation) in enumerate(permutations):
        prefix = f"jet.couplings.{layer}"
        state_dict[f"{prefix}.permutation"] = permutation
        for ours, (layout, *theirs) in table.items():
            arrays = [take(layer, name) for name in theirs]
            try:
                if layout in names.HEADS_AXIS:
                    heads |= {array.shape[names.HEADS_AXIS[layout]] for array in arrays}
                parts = [names.TO_TORCH[layout](array) for array in arrays]
                state_dict[f"{prefix}.conditioner.{ours}"] = torch.from_numpy(np.concatenate(parts).copy()).float()
            except (ValueError, IndexError) as error:
                shapes = ", ".join(f"{name} {array.shape}" for name, array in zip(theirs, arrays, strict=True))
                message = f"{path}: coupling layer {layer} has arrays of shapes that do not fit together: {shapes}."
                raise ValueError(message) from error
    return state_dict, heads


def _read_sizes(path: str | os.PathLike, state_dict: dict, conditioner: str, num_channels: int) -> dict[str, int]:
    """Return the sizes of the image, the patches and the hidden states."""
    in_shape = tuple(state_dict[f"{conditioner}.in_proj.weight"].shape)
    position_shape = tuple(state_dict[f"{conditioner}.position_embeddings"].shape)
    if len(in_shape) != 2 or len(position_shape) != 3 or 0 in (*in_shape, *position_shape):
        raise ValueError(
            f"{path} has an input projection of shape {in_shape} and position embeddings of shape {position_shape} in "
            "a layer, expected a matrix and (1, patches, width)."
        )
    (hidden_size, half_dim), num_patches = in_shape, position_shape[1]
    patch_size, grid_size = math.isqrt(max(0, 2 * half_dim // num_channels)), math.isqrt(num_patches)
    if num_channels * patch_size**2 != 2 * half_dim:
        raise ValueError(
            f"{path} has patches of {2 * half_dim} numbers, which {num_channels} channels do not fill with a square: "
            "pass the num_channels that it was trained with."
        )
    if grid_size**2 != num_patches:
        raise ValueError(f"{path} has {num_patches} patches, which do not form a square image.")
    return {"image_size": grid_size * patch_size, "patch_size": patch_size, "hidden_size": hidden_size}


def _shortest_cycle(values: list[str]) -> list[str]:
    """Return the shortest list that gives `values` when it is cycled."""
    lengths = range(1, len(values))
    return next((values[:length] for length in lengths if _cycle(values[:length], len(values)) == values), values)


def _cycle(values: Sequence[str], length: int) -> list[str]:
    return [values[i % len(values)] for i in range(length)]


def _spatial_pattern(path: str | os.PathLike, layer: int, permutation: torch.Tensor) -> str:
    side = math.isqrt(len(permutation))
    for pattern in SPATIAL_COUPLINGS:
        if side**2 == len(permutation) and torch.equal(permutation, spatial_permutation(pattern, side, side)):
            return pattern
    raise ValueError(
        f"{path}: the spatial split of coupling layer {layer} is none of {list(SPATIAL_COUPLINGS)} on a square grid."
    )


def _check_shapes(path: str | os.PathLike, config: JetConfig, state_dict: dict[str, torch.Tensor]) -> None:
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in JetForDensityEstimation(config).state_dict().items()}
    for name, shape in expected.items():
        if (found := tuple(state_dict[name].shape)) != shape:
            raise ValueError(f"{path}: {name} would be of shape {found}, but a Jet of this shape has {shape}.")
