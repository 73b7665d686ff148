# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Jet, the transformer-based normalizing flow, as a transformers model."""

import sys


__version__ = "0.1.0"

__all__ = ["JetConfig", "JetForDensityEstimation", "JetImageProcessor", "JetModel"]

# Commands parse their arguments before they import torch: `jet-hf`, which imports jet_hf_cli first, and `python -m
# jet_hf.train`, for which Python sets the first argument to "-m" while it imports this package.
_module = sys.orig_argv[sys.orig_argv.index("-m") + 1] if sys.argv[:1] == ["-m"] and "-m" in sys.orig_argv else None
_starts_command = "jet_hf_cli" in sys.modules or _module == "jet_hf.train"
if not _starts_command:
    from .auto import JetConfig, JetForDensityEstimation, JetImageProcessor, JetModel


def __getattr__(name: str) -> type:
    """Import a public name on its first use in a command."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import auto

    return getattr(auto, name)
