# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Scores a data set: bits per dimension with its standard error."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from .model.likelihood_jet import scale_bytes
from .model.modeling_jet import JetForDensityEstimation


@dataclass(frozen=True)
class Evaluation:
    """
    Scores of a data set.

    Args:
        bits_per_dim: Of each image, float64 (num_images,).
    """

    bits_per_dim: torch.Tensor

    @property
    def mean(self) -> float:
        return self.bits_per_dim.mean().item()

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over images."""
        return self.bits_per_dim.std().item() / math.sqrt(len(self.bits_per_dim))


@torch.no_grad()
def evaluate(model: JetForDensityEstimation, batches: Iterable[torch.Tensor], seed: int = 0) -> Evaluation:
    """
    Bits per dimension of every image, with one draw of dequantisation noise each.

    Args:
        model: Is left in the mode, training or evaluation, that it was in.
        batches: uint8 tensors (B, C, S, S).
        seed: Draws the noise; the same images in the same batches get the same scores.
    """
    was_training = model.training
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    scores = [
        model(scale_bytes(pixels.to(model.jet.input_device)), generator=generator).bits_per_dim.double().cpu()
        for pixels in batches
    ]
    model.train(was_training)
    return Evaluation(torch.cat(scores))
