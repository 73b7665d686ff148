# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Names of the parameters of a coupling layer's ViT, in this package and in other implementations.

A row of a table of modules maps a module of this package to a kind in `PARAMETERS` and to the prefixes of the arrays
that are concatenated to its parameters. `{block}` is the index of a transformer block.
"""

from collections.abc import Callable

import numpy as np


Row = tuple[str, ...]  # a kind or a layout, and one or more names

_BLOCK = "vit/encoderblock_{block}"
_ATTENTION = f"{_BLOCK}/MultiHeadDotProductAttention_0"
_QKV = tuple(f"{_ATTENTION}/{part}" for part in ("query", "key", "value"))
_CROSS = "MultiHeadDotProductAttention_0"

BIG_VISION: dict[str, Row] = {
    "in_proj": ("linear", "init_proj"),
    "position_embeddings": ("parameter", "posemb"),
    "layernorm": ("norm", "vit/encoder_norm"),
    "out_proj": ("linear", "final_proj"),
}
BIG_VISION_BLOCK: dict[str, Row] = {
    "layers.{block}.layernorm_before": ("norm", f"{_BLOCK}/LayerNorm_0"),
    "layers.{block}.attention.qkv_proj": ("into_heads", *_QKV),
    "layers.{block}.attention.o_proj": ("out_of_heads", f"{_ATTENTION}/out"),
    "layers.{block}.layernorm_after": ("norm", f"{_BLOCK}/LayerNorm_1"),
    "layers.{block}.mlp.fc1": ("linear", f"{_BLOCK}/MlpBlock_0/Dense_0"),
    "layers.{block}.mlp.fc2": ("linear", f"{_BLOCK}/MlpBlock_0/Dense_1"),
}
BIG_VISION_CONTEXT: dict[str, Row] = {
    "cross_attention.q_proj": ("into_heads", f"{_CROSS}/query"),
    "cross_attention.kv_proj": ("into_heads", f"{_CROSS}/key", f"{_CROSS}/value"),
    "cross_attention.o_proj": ("out_of_heads", f"{_CROSS}/out"),
}

JET_PYTORCH: dict[str, Row] = {
    "in_proj": ("torch", "init_proj."),
    "position_embeddings": ("parameter", "pos_emb"),
    "layernorm": ("torch", "encoder.ln."),
    "out_proj": ("torch", "final_proj."),
}
JET_PYTORCH_BLOCK: dict[str, Row] = {
    "layers.{block}.layernorm_before": ("torch", "encoder.blocks.{block}.ln1."),
    "layers.{block}.attention.qkv_proj": ("torch", "encoder.blocks.{block}.mha.in_proj_"),
    "layers.{block}.attention.o_proj": ("torch", "encoder.blocks.{block}.mha.out_proj."),
    "layers.{block}.layernorm_after": ("torch", "encoder.blocks.{block}.ln2."),
    "layers.{block}.mlp.fc1": ("torch", "encoder.blocks.{block}.mlp.in_proj."),
    "layers.{block}.mlp.fc2": ("torch", "encoder.blocks.{block}.mlp.out_proj."),
}

# The parameters of each kind of module, by suffix: the layout and the suffix of the other implementation.
PARAMETERS: dict[str, dict[str, tuple[str, str]]] = {
    "parameter": {"": ("as_is", "")},
    "torch": {".weight": ("as_is", "weight"), ".bias": ("as_is", "bias")},
    "norm": {".weight": ("as_is", "/scale"), ".bias": ("as_is", "/bias")},
    "linear": {".weight": ("linear", "/kernel"), ".bias": ("as_is", "/bias")},
    "into_heads": {".weight": ("into_heads", "/kernel"), ".bias": ("head_bias", "/bias")},
    "out_of_heads": {".weight": ("out_of_heads", "/kernel"), ".bias": ("as_is", "/bias")},
}

# Conversions to torch's (out, in). Flax has a separate axis for the heads: kernels are (in, heads, head_dim) and
# (heads, head_dim, out).
TO_TORCH: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as_is": lambda array: array,
    "linear": lambda array: array.T,
    "into_heads": lambda array: array.reshape(len(array), -1).T,
    "out_of_heads": lambda array: array.reshape(-1, array.shape[-1]).T,
    "head_bias": lambda array: array.reshape(-1),
}

# Axis of the heads in the array of a single layer, for the layouts that have one.
HEADS_AXIS = {"into_heads": 1, "out_of_heads": 0, "head_bias": 0}


def name_table(fixed: dict[str, Row], per_block: dict[str, Row], num_hidden_layers: int) -> dict[str, Row]:
    """
    Return the layout and the arrays of each parameter of a whole conditioner.

    Args:
        fixed: Modules outside the transformer blocks.
        per_block: Modules of each transformer block.
        num_hidden_layers: Number of transformer blocks.
    """
    modules = dict(fixed)
    for block in range(num_hidden_layers):
        for ours, row in per_block.items():
            modules[ours.format(block=block)] = tuple(name.format(block=block) for name in row)
    return {
        f"{ours}{suffix}": (layout, *(f"{name}{their_suffix}" for name in theirs))
        for ours, (kind, *theirs) in modules.items()
        for suffix, (layout, their_suffix) in PARAMETERS[kind].items()
    }
