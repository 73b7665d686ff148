# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Lossless compression of images at a model's rate, which needs the extra `codec`. docs/codec.md explains it."""

from .analysis.codec.api import Codec, compress, decompress, estimate
from .analysis.codec.encoder import Weight
from .analysis.codec.errors import CodecError


__all__ = ["Codec", "CodecError", "Weight", "compress", "decompress", "estimate"]
