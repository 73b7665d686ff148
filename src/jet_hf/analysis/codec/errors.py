# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Errors of the codec."""


class CodecError(ValueError):
    """A file that cannot be decoded: damaged, or made with another model, version or arithmetic."""


class CannotEncode(Exception):
    """Tiles have a value near a rounding boundary, or one that is too large or not finite."""
