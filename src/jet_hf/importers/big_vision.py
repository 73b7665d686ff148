# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Importer of checkpoints of big_vision's Jet, the reference implementation."""

import os

import numpy as np
import torch

from ..model.configuration_jet import JetConfig
from . import names
from .assembly import Checkpoint, assemble, name_some, read_permutation


MASKS = {"channels": "channel_coupling_masks-FREEZE_ME", "spatial": "spatial_coupling_masks-FREEZE_ME"}


def read_big_vision(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """
    Read the parameters in a checkpoint of big_vision's Jet (`.npz`), as float32.

    Returns:
        Arrays by name, without the prefix `params/` or `opt/target/`.

    Raises:
        ValueError: if the file is damaged or not such a checkpoint.
    """
    try:
        with open(path, "rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # the readers of a damaged archive raise all kinds of errors
        raise ValueError(f"{path} is not a whole NumPy .npz file: {error}") from error
    for prefix in ("params/", "opt/target/", ""):
        if f"{prefix}couplings/dnn/init_proj/kernel" in arrays:
            return {
                name.removeprefix(prefix): _as_float32(path, name, array)
                for name, array in arrays.items()
                if name.startswith(prefix) and (prefix or name.split("/")[0] in ("couplings", *MASKS.values()))
            }
    raise ValueError(
        f"{path} is not a checkpoint of big_vision's Jet: it has no array couplings/dnn/init_proj/kernel under "
        f"params/, opt/target/ or at its root. It has {name_some(arrays)}."
    )


def _as_float32(path: str | os.PathLike, name: str, array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    # NumPy has no bfloat16 and stores it as 2-byte void.
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path}: {name} must hold numbers, got {array.dtype}.")
    return array.astype(np.float32)


def convert_big_vision(path: str | os.PathLike, **known) -> tuple[JetConfig, dict[str, torch.Tensor]]:
    """
    Return the configuration and the weights of a checkpoint of big_vision's Jet.

    Args:
        path: The `.npz` file.
        known: Fields of [`JetConfig`]. Fields that the file shows are checked against it; it does not show
            `num_channels` (default 3) and `scale_factor` (default 2.0).

    Raises:
        ValueError: naming the array or field that is missing, unexpected or contradicted.
    """
    checkpoint = Checkpoint(path, read_big_vision(path))
    num_layers = len(np.atleast_1d(checkpoint.take("couplings/dnn/init_proj/kernel")))
    if num_layers == 0:
        raise ValueError(f"{path} has no coupling layers: couplings/dnn/init_proj/kernel is empty.")
    num_blocks = checkpoint.count("couplings/dnn/vit/encoderblock_{i}/")
    has_context = checkpoint.count("couplings/dnn/MultiHeadDotProductAttention_{i}/") > 0
    fixed = names.BIG_VISION | (names.BIG_VISION_CONTEXT if has_context else {})
    table = names.name_table(fixed, names.BIG_VISION_BLOCK, num_blocks)

    def take(layer: int, name: str) -> np.ndarray:
        array = checkpoint.take(f"couplings/dnn/{name}")
        if array.ndim == 0 or len(array) != num_layers:
            raise ValueError(
                f"{path}: couplings/dnn/{name} must have a first axis of {num_layers} layers, got {array.shape}."
            )
        return array[layer]

    permutations = _read_permutations(checkpoint, num_layers)
    return assemble(checkpoint, take, table, permutations, {"num_hidden_layers": num_blocks}, known)


def _read_permutations(checkpoint: Checkpoint, num_layers: int) -> list[tuple[str, torch.Tensor]]:
    """Return the kind and the permutation of each layer, of whose two masks one is zero."""
    path, masks = checkpoint.path, {kind: checkpoint.take(name) for kind, name in MASKS.items()}
    for kind, array in masks.items():
        if array.ndim != 3 or len(array) != num_layers or array.shape[1] != array.shape[2]:
            raise ValueError(f"{path}: {MASKS[kind]} must hold {num_layers} square matrices, got shape {array.shape}.")
    permutations = []
    for layer in range(num_layers):
        kinds = [kind for kind in masks if masks[kind][layer].any()]
        if len(kinds) != 1:
            raise ValueError(f"{path}: coupling layer {layer} must have one mask, channel or spatial.")
        permutations.append((kinds[0], read_permutation(path, masks[kinds[0]][layer])))
    return permutations
