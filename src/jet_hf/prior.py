# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""A model as the prior of image restoration. docs/prior.md explains it."""

from .analysis.prior.inference import Posterior, Restoration
from .analysis.prior.jet_prior import JetPrior
from .analysis.prior.operators import LinearOperator, blur, downsample, identity, mask


__all__ = ["JetPrior", "LinearOperator", "Posterior", "Restoration", "blur", "downsample", "identity", "mask"]


def __getattr__(name: str) -> type:
    """Import the adapters for deepinv on their first use."""
    if name not in ("DeepinvDenoiser", "DeepinvPrior"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .analysis.prior import deepinv_adapter
    except ImportError as error:
        raise ImportError(f"`{name}` needs the extra `deepinv`: {error}") from error
    return getattr(deepinv_adapter, name)
