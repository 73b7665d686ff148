# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Anomaly scores of images, their p-values and heat maps. docs/anomaly.md compares the scores."""

from .analysis.anomaly.detector import AnomalyDetector, BatchTest, Judgment
from .analysis.anomaly.scores import (
    bits_of_images,
    complexity_corrected,
    gradient_norm,
    largest_patch,
    latent_norm,
    likelihood_ratio,
    negative_log_likelihood,
    patch_bits_per_dim,
    typicality,
)


__all__ = [
    "AnomalyDetector",
    "BatchTest",
    "Judgment",
    "bits_of_images",
    "complexity_corrected",
    "gradient_norm",
    "largest_patch",
    "latent_norm",
    "likelihood_ratio",
    "negative_log_likelihood",
    "patch_bits_per_dim",
    "typicality",
]
