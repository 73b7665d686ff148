# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""ZeroGPU support. Import this module first: the package `spaces` must be imported before torch."""

try:
    from spaces import GPU as borrows_gpu

    MUST_BORROW = True
except ImportError:
    MUST_BORROW = False

    def borrows_gpu(function):
        """Return the function unchanged, because this machine has no GPUs to borrow."""
        return function


__all__ = ["MUST_BORROW", "borrows_gpu"]
