# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Names of the parameters of a coupling layer's ViT, in this package and in other implementations.

A row maps a name of this package to the layout and the names of the arrays that are concatenated to it.
`{block}` is the index of a transformer block.
"""

from collections.abc import Callable

import numpy as np


Row = tuple[str, ...]  # a layout, and one or more names

_BLOCK = "vit/encoderblock_{block}"
_ATTENTION = f"{_BLOCK}/MultiHeadDotProductAttention_0"
_QKV = ("query", "key", "value")
_CROSS = "MultiHeadDotProductAttention_0"

BIG_VISION: dict[str, Row] = {
    "in_proj.weight": ("linear", "init_proj/kernel"),
    "in_proj.bias": ("as_is", "init_proj/bias"),
    "position_embeddings": ("as_is", "posemb"),
    "layernorm.weight": ("as_is", "vit/encoder_norm/scale"),
    "layernorm.bias": ("as_is", "vit/encoder_norm/bias"),
    "out_proj.weight": ("linear", "final_proj/kernel"),
    "out_proj.bias": ("as_is", "final_proj/bias"),
}
BIG_VISION_BLOCK: dict[str, Row] = {
    "layers.{block}.layernorm_before.weight": ("as_is", f"{_BLOCK}/LayerNorm_0/scale"),
    "layers.{block}.layernorm_before.bias": ("as_is", f"{_BLOCK}/LayerNorm_0/bias"),
    "layers.{block}.attention.qkv_proj.weight": ("into_heads", *(f"{_ATTENTION}/{part}/kernel" for part in _QKV)),
    "layers.{block}.attention.qkv_proj.bias": ("head_bias", *(f"{_ATTENTION}/{part}/bias" for part in _QKV)),
    "layers.{block}.attention.o_proj.weight": ("out_of_heads", f"{_ATTENTION}/out/kernel"),
    "layers.{block}.attention.o_proj.bias": ("as_is", f"{_ATTENTION}/out/bias"),
    "layers.{block}.layernorm_after.weight": ("as_is", f"{_BLOCK}/LayerNorm_1/scale"),
    "layers.{block}.layernorm_after.bias": ("as_is", f"{_BLOCK}/LayerNorm_1/bias"),
    "layers.{block}.mlp.fc1.weight": ("linear", f"{_BLOCK}/MlpBlock_0/Dense_0/kernel"),
    "layers.{block}.mlp.fc1.bias": ("as_is", f"{_BLOCK}/MlpBlock_0/Dense_0/bias"),
    "layers.{block}.mlp.fc2.weight": ("linear", f"{_BLOCK}/MlpBlock_0/Dense_1/kernel"),
    "layers.{block}.mlp.fc2.bias": ("as_is", f"{_BLOCK}/MlpBlock_0/Dense_1/bias"),
}
BIG_VISION_CONTEXT: dict[str, Row] = {
    "cross_attention.q_proj.weight": ("into_heads", f"{_CROSS}/query/kernel"),
    "cross_attention.q_proj.bias": ("head_bias", f"{_CROSS}/query/bias"),
    "cross_attention.kv_proj.weight": ("into_heads", f"{_CROSS}/key/kernel", f"{_CROSS}/value/kernel"),
    "cross_attention.kv_proj.bias": ("head_bias", f"{_CROSS}/key/bias", f"{_CROSS}/value/bias"),
    "cross_attention.o_proj.weight": ("out_of_heads", f"{_CROSS}/out/kernel"),
    "cross_attention.o_proj.bias": ("as_is", f"{_CROSS}/out/bias"),
}

JET_PYTORCH: dict[str, Row] = {
    "in_proj.weight": ("as_is", "init_proj.weight"),
    "in_proj.bias": ("as_is", "init_proj.bias"),
    "position_embeddings": ("as_is", "pos_emb"),
    "layernorm.weight": ("as_is", "encoder.ln.weight"),
    "layernorm.bias": ("as_is", "encoder.ln.bias"),
    "out_proj.weight": ("as_is", "final_proj.weight"),
    "out_proj.bias": ("as_is", "final_proj.bias"),
}
JET_PYTORCH_BLOCK: dict[str, Row] = {
    "layers.{block}.layernorm_before.weight": ("as_is", "encoder.blocks.{block}.ln1.weight"),
    "layers.{block}.layernorm_before.bias": ("as_is", "encoder.blocks.{block}.ln1.bias"),
    "layers.{block}.attention.qkv_proj.weight": ("as_is", "encoder.blocks.{block}.mha.in_proj_weight"),
    "layers.{block}.attention.qkv_proj.bias": ("as_is", "encoder.blocks.{block}.mha.in_proj_bias"),
    "layers.{block}.attention.o_proj.weight": ("as_is", "encoder.blocks.{block}.mha.out_proj.weight"),
    "layers.{block}.attention.o_proj.bias": ("as_is", "encoder.blocks.{block}.mha.out_proj.bias"),
    "layers.{block}.layernorm_after.weight": ("as_is", "encoder.blocks.{block}.ln2.weight"),
    "layers.{block}.layernorm_after.bias": ("as_is", "encoder.blocks.{block}.ln2.bias"),
    "layers.{block}.mlp.fc1.weight": ("as_is", "encoder.blocks.{block}.mlp.in_proj.weight"),
    "layers.{block}.mlp.fc1.bias": ("as_is", "encoder.blocks.{block}.mlp.in_proj.bias"),
    "layers.{block}.mlp.fc2.weight": ("as_is", "encoder.blocks.{block}.mlp.out_proj.weight"),
    "layers.{block}.mlp.fc2.bias": ("as_is", "encoder.blocks.{block}.mlp.out_proj.bias"),
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
    """Return the rows of a whole conditioner: `fixed`, and `per_block` for each transformer block."""
    table = dict(fixed)
    for block in range(num_hidden_layers):
        for ours, (layout, *theirs) in per_block.items():
            table[ours.format(block=block)] = (layout, *(name.format(block=block) for name in theirs))
    return table
