# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Hash of a model, by which files that belong to it recognize it."""

import hashlib
import json

import torch

from ..model.configuration_jet import JetConfig
from ..model.modeling_jet import JetForDensityEstimation


def fingerprint(model: JetForDensityEstimation) -> bytes:
    """Return 8 bytes that change with the weights, or with a field of the configuration."""
    config = model.config
    # Only fields that differ from their defaults count, so that fields of later versions change no fingerprint.
    fields = {name: value for name, value in config.own_fields().items() if value != getattr(JetConfig, name)}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True, default=list, allow_nan=False).encode())
    weights = dict(model.jet.state_dict())
    if model.dequantizer is not None:
        weights |= model.dequantizer.state_dict(prefix="dequantizer.")
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        # Every narrower dtype fits into float32, so that a model in another dtype with the same weights is the same.
        if tensor.is_floating_point():
            tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.digest()[:8]
