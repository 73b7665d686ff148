# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""A model as the prior of image restoration. docs/prior.md explains it."""

from .analysis.prior.inference import Posterior, Restoration
from .analysis.prior.jet_prior import JetPrior
from .analysis.prior.operators import LinearOperator, blur, downsample, identity, mask


__all__ = ["JetPrior", "LinearOperator", "Posterior", "Restoration", "blur", "downsample", "identity", "mask"]
