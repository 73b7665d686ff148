# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Importers of other implementations' checkpoints."""

from .big_vision import convert_big_vision
from .convert import convert_checkpoint
from .jet_pytorch import convert_jet_pytorch


__all__ = ["convert_big_vision", "convert_checkpoint", "convert_jet_pytorch"]
