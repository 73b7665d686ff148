# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Importer of checkpoints of the jet-pytorch package."""

import os

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..model.configuration_jet import JetConfig
from . import names
from .assembly import Checkpoint, assemble, name_some, read_permutation


def convert_jet_pytorch(path: str | os.PathLike, **known) -> tuple[JetConfig, dict[str, torch.Tensor]]:
    """
    Return the configuration and the weights of a checkpoint of the jet-pytorch package.

    Args:
        path: The `.safetensors` file.
        known: Fields of [`JetConfig`]. Fields that the file shows are checked against it. It does not show
            `num_attention_heads`, which is required, `coupling_kinds` (default: four channels, one spatial),
            `num_channels` (default 3) and `scale_factor` (default 2.0).

    Raises:
        ValueError: naming the array or field that is missing, unexpected or contradicted.
    """
    try:
        checkpoint = Checkpoint(path, {name: array.float().numpy() for name, array in load_file(path).items()})
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    if "blocks.0.dnn.init_proj.weight" not in checkpoint.arrays:
        raise ValueError(
            f"{path} is not a checkpoint of jet-pytorch: it has no array blocks.0.dnn.init_proj.weight. "
            f"It has {name_some(checkpoint.arrays)}."
        )
    if known.get("num_attention_heads") is None:
        raise ValueError(f"{path} does not show the number of attention heads: pass num_attention_heads.")
    permutations = _read_permutations(checkpoint, known.get("coupling_kinds") or JetConfig.coupling_kinds)
    num_blocks = checkpoint.count("blocks.0.dnn.encoder.blocks.{i}.")
    table = names.name_table(names.JET_PYTORCH, names.JET_PYTORCH_BLOCK, num_blocks)
    # The package deviates from the paper's code in the activation and in the epsilon.
    shown = {"num_hidden_layers": num_blocks, "hidden_act": "gelu", "layer_norm_eps": 1e-5}

    def take(layer: int, name: str) -> np.ndarray:
        return checkpoint.take(f"blocks.{layer}.dnn.{name}")

    return assemble(checkpoint, take, table, permutations, shown, known)


def _read_permutations(checkpoint: Checkpoint, cycle: tuple[str, ...] | list[str]) -> list[tuple[str, torch.Tensor]]:
    """Return the kind and the permutation of each layer. The file stores the permutations of each kind in order."""
    path, num_layers = checkpoint.path, checkpoint.count("blocks.{i}.")
    kinds = [cycle[i % len(cycle)] for i in range(num_layers)]
    stored = {
        "channels": list(np.atleast_1d(checkpoint.take("channel_projections"))),
        "spatial": list(np.atleast_1d(checkpoint.take("spatial_projections"))),
    }
    for kind, found in stored.items():
        if kinds.count(kind) != len(found):
            raise ValueError(
                f"{path} has {len(found)} {kind} couplings, but coupling_kinds {list(cycle)} over its {num_layers} "
                f"layers give {kinds.count(kind)}: pass the coupling_kinds that it was trained with."
            )
    return [(kind, read_permutation(path, stored[kind].pop(0))) for kind in kinds]
