# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Reads checkpoints of other implementations of Jet and writes them as `from_pretrained` folders."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..model.configuration_jet import SPATIAL_COUPLINGS, JetConfig
from ..model.flow_jet import spatial_permutation
from ..model.image_processing_jet import JetImageProcessor
from ..model.modeling_jet import JetForDensityEstimation
from ..utils.files import check_is_free, new_folder
from . import names


CHANNEL_MASKS, SPATIAL_MASKS = "channel_coupling_masks-FREEZE_ME", "spatial_coupling_masks-FREEZE_ME"


class CheckpointError(ValueError):
    """A file is not a checkpoint of the named kind, lacks arrays, or contradicts what was said of it."""


def read_big_vision(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """
    The parameters in a checkpoint of big_vision's Jet (`.npz`): those under `params/`, `opt/target/` or at the root,
    with that prefix taken off, as float32.
    """
    try:
        with open(path, "rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # there is no end to what the readers of a damaged archive raise
        raise CheckpointError(f"{path} is not a whole NumPy .npz file: {error}") from error
    for prefix in ("params/", "opt/target/", ""):
        if f"{prefix}couplings/dnn/init_proj/kernel" in arrays:
            return {
                name.removeprefix(prefix): _as_float32(path, name, array)
                for name, array in arrays.items()
                if name.startswith(prefix)
                and (prefix or name.split("/")[0] in ("couplings", CHANNEL_MASKS, SPATIAL_MASKS))
            }
    raise CheckpointError(
        f"{path} is not a checkpoint of big_vision's Jet: it has no array couplings/dnn/init_proj/kernel under "
        f"params/, opt/target/ or at its root. It has {_some(arrays)}."
    )


def _as_float32(path: str | os.PathLike, name: str, array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    # NumPy has no bfloat16 and stores it as 2-byte void.
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if array.dtype.kind not in "biuf":
        raise CheckpointError(f"{path}: {name} must hold numbers, got {array.dtype}.")
    return array.astype(np.float32)


def _some(names_: dict | set) -> str:
    shown = sorted(names_)[:5]
    return ", ".join(shown) + (f" and {len(names_) - 5} more" if len(names_) > 5 else "") if names_ else "no arrays"


class _Checkpoint:
    """Arrays by name, which remembers what was taken, so that nothing in a file is passed over in silence."""

    def __init__(self, path: str | os.PathLike, arrays: dict[str, np.ndarray]):
        self.path = path
        self.arrays = arrays
        self.taken: set[str] = set()

    def take(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            raise CheckpointError(f"{self.path} lacks the array {name}.")
        self.taken.add(name)
        return self.arrays[name]

    def check_all_taken(self) -> None:
        if left := self.arrays.keys() - self.taken:
            raise CheckpointError(f"{self.path} has arrays that a Jet of this shape does not have: {_some(left)}.")

    def count(self, template: str) -> int:
        """How many of the groups of arrays that begin with `template`, with `{i}` = 0, 1, ..., there are."""
        number = 0
        while any(name.startswith(template.format(i=number)) for name in self.arrays):
            number += 1
        return number


def convert_big_vision(path: str | os.PathLike, **known) -> tuple[JetConfig, dict[str, torch.Tensor]]:
    """
    Configuration and weights of a checkpoint of big_vision's Jet.

    Args:
        path: The `.npz` file.
        known: Fields of [`JetConfig`]. Those that the file shows are checked against it; `num_channels` (3 unless
            given) and `scale_factor` (2.0) are not shown.

    Raises:
        CheckpointError: naming what is missing, unexpected or contradicted.
    """
    checkpoint = _Checkpoint(path, read_big_vision(path))
    num_layers = len(np.atleast_1d(checkpoint.take("couplings/dnn/init_proj/kernel")))
    if num_layers == 0:
        raise CheckpointError(f"{path} has no coupling layers: couplings/dnn/init_proj/kernel is empty.")
    permutations = []
    channel_masks, spatial_masks = checkpoint.take(CHANNEL_MASKS), checkpoint.take(SPATIAL_MASKS)
    for name, masks in ((CHANNEL_MASKS, channel_masks), (SPATIAL_MASKS, spatial_masks)):
        if masks.ndim != 3 or len(masks) != num_layers or masks.shape[1] != masks.shape[2]:
            raise CheckpointError(f"{path}: {name} must hold {num_layers} square matrices, got shape {masks.shape}.")
    for layer, (channel_mask, spatial_mask) in enumerate(zip(channel_masks, spatial_masks, strict=True)):
        if channel_mask.any() == spatial_mask.any():
            raise CheckpointError(f"{path}: coupling layer {layer} must have one mask, channel or spatial.")
        kind = "channels" if channel_mask.any() else "spatial"
        permutations.append((kind, _read_permutation(path, channel_mask if kind == "channels" else spatial_mask)))

    num_blocks = checkpoint.count("couplings/dnn/vit/encoderblock_{i}/")
    has_context = checkpoint.count("couplings/dnn/MultiHeadDotProductAttention_{i}/") > 0
    fixed = names.BIG_VISION | (names.BIG_VISION_CONTEXT if has_context else {})
    table = names.name_table(fixed, names.BIG_VISION_BLOCK, num_blocks)

    def take(layer: int, name: str) -> np.ndarray:
        array = checkpoint.take(f"couplings/dnn/{name}")
        if array.ndim == 0 or len(array) != num_layers:
            raise CheckpointError(
                f"{path}: couplings/dnn/{name} must have a first axis of {num_layers} layers, got {array.shape}."
            )
        return array[layer]

    return _assemble(checkpoint, take, table, num_blocks, permutations, {}, known)


def convert_jet_pytorch(path: str | os.PathLike, **known) -> tuple[JetConfig, dict[str, torch.Tensor]]:
    """
    Configuration and weights of a checkpoint of the jet-pytorch package (`.safetensors`).

    Args:
        path: The file.
        known: Fields of [`JetConfig`]. Those that the file shows are checked against it. `num_attention_heads` is not
            shown and must be given; nor are `coupling_kinds` (four channels, one spatial, unless given),
            `num_channels` (3) and `scale_factor` (2.0).

    Raises:
        CheckpointError: naming what is missing, unexpected or contradicted.
    """
    try:
        checkpoint = _Checkpoint(path, {name: array.float().numpy() for name, array in load_file(path).items()})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error
    num_layers = checkpoint.count("blocks.{i}.")
    if "blocks.0.dnn.init_proj.weight" not in checkpoint.arrays:
        raise CheckpointError(
            f"{path} is not a checkpoint of jet-pytorch: it has no array blocks.0.dnn.init_proj.weight. "
            f"It has {_some(checkpoint.arrays)}."
        )
    if known.get("num_attention_heads") is None:
        raise CheckpointError(f"{path} does not show the number of attention heads: give num_attention_heads.")
    cycle = known.get("coupling_kinds") or JetConfig.coupling_kinds
    kinds = [cycle[i % len(cycle)] for i in range(num_layers)]
    matrices = {
        "channels": list(np.atleast_1d(checkpoint.take("channel_projections"))),
        "spatial": list(np.atleast_1d(checkpoint.take("spatial_projections"))),
    }
    for kind, found in matrices.items():
        if kinds.count(kind) != len(found):
            raise CheckpointError(
                f"{path} has {len(found)} {kind} couplings, but coupling_kinds {list(cycle)} over its {num_layers} "
                f"layers make {kinds.count(kind)}: give the coupling_kinds that it was trained with."
            )
    permutations = [(kind, _read_permutation(path, matrices[kind].pop(0))) for kind in kinds]
    num_blocks = checkpoint.count("blocks.0.dnn.encoder.blocks.{i}.")
    table = names.name_table(names.JET_PYTORCH, names.JET_PYTORCH_BLOCK, num_blocks)
    # The package departs from the paper's code in these two.
    shown = {"hidden_act": "gelu", "layer_norm_eps": 1e-5}

    def take(layer: int, name: str) -> np.ndarray:
        return checkpoint.take(f"blocks.{layer}.dnn.{name}")

    return _assemble(checkpoint, take, table, num_blocks, permutations, shown, known)


def _read_permutation(path: str | os.PathLike, matrix: np.ndarray) -> torch.Tensor:
    """The order that a one-hot matrix (from, to) puts things in: element `to` comes from `from`."""
    is_square = matrix.ndim == 2 and 0 < matrix.shape[0] == matrix.shape[1]
    order = matrix.argmax(axis=0) if is_square else np.arange(0)
    if not is_square or not np.array_equal(matrix, np.eye(len(matrix))[:, order]) or len(set(order)) != len(order):
        raise CheckpointError(f"{path}: a coupling mask of shape {matrix.shape} is not a permutation matrix.")
    return torch.from_numpy(order.astype(np.int64))


def _shortest_cycle(values: list[str]) -> list[str]:
    """The shortest list that gives `values` when it is cycled."""
    for length in range(1, len(values)):
        if all(value == values[i % length] for i, value in enumerate(values)):
            return values[:length]
    return values


def _spatial_pattern(path: str | os.PathLike, layer: int, permutation: torch.Tensor) -> str:
    grid_size = math.isqrt(len(permutation))
    for pattern in SPATIAL_COUPLINGS:
        if grid_size**2 == len(permutation) and torch.equal(permutation, spatial_permutation(pattern, grid_size)):
            return pattern
    raise CheckpointError(
        f"{path}: the spatial split of coupling layer {layer} is none of {list(SPATIAL_COUPLINGS)} on a square grid."
    )


def _read_layers(
    path: str | os.PathLike,
    take: Callable[[int, str], np.ndarray],
    table: dict[str, names.Row],
    permutations: list[tuple[str, torch.Tensor]],
) -> tuple[dict[str, torch.Tensor], set[int]]:
    """The weights of all layers under this package's names, and the numbers of heads that their shapes show."""
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
                raise CheckpointError(message) from error
    return state_dict, heads


def _assemble(
    checkpoint: _Checkpoint,
    take: Callable[[int, str], np.ndarray],
    table: dict[str, names.Row],
    num_blocks: int,
    permutations: list[tuple[str, torch.Tensor]],
    shown: dict,
    known: dict,
) -> tuple[JetConfig, dict[str, torch.Tensor]]:
    """Configuration from what the file shows and what is known of it, and weights under this package's names."""
    path = checkpoint.path
    state_dict, heads = _read_layers(path, take, table, permutations)
    checkpoint.check_all_taken()
    conditioner = "jet.couplings.0.conditioner"
    in_shape = state_dict[f"{conditioner}.in_proj.weight"].shape
    position_shape = state_dict[f"{conditioner}.position_embeddings"].shape
    if len(in_shape) != 2 or len(position_shape) != 3 or 0 in (*in_shape, *position_shape):
        raise CheckpointError(
            f"{path} has an input projection of shape {tuple(in_shape)} and position embeddings of shape "
            f"{tuple(position_shape)} in a layer, expected a matrix and (1, patches, width)."
        )
    if len(heads) > 1:
        raise CheckpointError(f"{path} has attentions of different numbers of heads, {sorted(heads)}.")
    (hidden_size, half_dim), num_patches = in_shape, position_shape[1]
    num_channels = known.get("num_channels") or JetConfig.num_channels
    patch_size, grid_size = math.isqrt(max(0, 2 * half_dim // num_channels)), math.isqrt(num_patches)
    if num_channels * patch_size**2 != 2 * half_dim:
        raise CheckpointError(
            f"{path} has patches of {2 * half_dim} numbers, which {num_channels} channels do not fill with a square: "
            "give the num_channels that it was trained with."
        )
    if grid_size**2 != num_patches:
        raise CheckpointError(f"{path} has {num_patches} patches, which are not those of a square image.")
    spatial = [_spatial_pattern(path, i, order) for i, (kind, order) in enumerate(permutations) if kind == "spatial"]
    shown = shown | {
        "image_size": grid_size * patch_size,
        "patch_size": patch_size,
        "num_coupling_layers": len(permutations),
        "coupling_kinds": _shortest_cycle([kind for kind, _ in permutations]),
        "hidden_size": hidden_size,
        "num_hidden_layers": num_blocks,
        "context_size": None,
    }
    if "cross_attention.kv_proj.weight" in table:
        shown["context_size"] = state_dict[f"{conditioner}.cross_attention.kv_proj.weight"].shape[-1]
    if heads:
        shown["num_attention_heads"] = heads.pop()
    if num_blocks:
        shown["intermediate_size"] = state_dict[f"{conditioner}.layers.0.mlp.fc1.weight"].shape[0]
    if spatial:
        shown["spatial_couplings"] = _shortest_cycle(spatial)
    known = {field: value for field, value in known.items() if value is not None}
    lengths = {"coupling_kinds": len(permutations), "spatial_couplings": len(spatial)}
    for field, value in known.items():
        given = _shortest_cycle(_cycle(value, lengths[field])) if field in lengths and value else value
        if field in shown and given != shown[field]:
            raise CheckpointError(f"{path} shows {field}={shown[field]}, which contradicts the given {value}.")
    try:
        config = JetConfig(**(known | shown))
    except StrictDataclassError as error:
        raise CheckpointError(f"{path} does not make a configuration: {error}") from error
    _check_shapes(path, config, state_dict)
    return config, state_dict


def _cycle(values, length: int) -> list[str]:
    return [values[i % len(values)] for i in range(length)]


def _check_shapes(path: str | os.PathLike, config: JetConfig, state_dict: dict[str, torch.Tensor]) -> None:
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in JetForDensityEstimation(config).state_dict().items()}
    for name, shape in expected.items():
        if state_dict[name].shape != shape:
            raise CheckpointError(
                f"{path}: {name} would be of shape {tuple(state_dict[name].shape)}, where a Jet like this has "
                f"{tuple(shape)}."
            )


CONVERTERS = {"big_vision": convert_big_vision, "jet_pytorch": convert_jet_pytorch}


def convert_checkpoint(source: str, path: str | os.PathLike, output_dir: str | os.PathLike, **known) -> Path:
    """
    Writes a checkpoint of another implementation as a folder for [`JetForDensityEstimation.from_pretrained`].

    Args:
        source: `"big_vision"` or `"jet_pytorch"`.
        path: The checkpoint.
        output_dir: Folder to make; it appears only when it is whole.
        known: Fields of [`JetConfig`] that the file does not show.

    Raises:
        CheckpointError: see [`convert_big_vision`] and [`convert_jet_pytorch`].
        FileExistsError: if `output_dir` exists and is not empty.
    """
    if source not in CONVERTERS:
        raise ValueError(f"`source` must be one of {list(CONVERTERS)}, got {source!r}.")
    check_is_free(output_dir)
    config, state_dict = CONVERTERS[source](path, **known)
    model = JetForDensityEstimation(config)
    model.load_state_dict(state_dict)
    with new_folder(output_dir) as folder:
        model.save_pretrained(folder)
        JetImageProcessor(size=config.image_size, num_channels=config.num_channels).save_pretrained(folder)
    return Path(output_dir)
