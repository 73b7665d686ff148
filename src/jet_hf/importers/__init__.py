# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Converters of other implementations' checkpoints."""

from .checkpoints import CheckpointError, convert_big_vision, convert_checkpoint, convert_jet_pytorch


__all__ = ["CheckpointError", "convert_big_vision", "convert_checkpoint", "convert_jet_pytorch"]
