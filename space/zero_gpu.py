# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""ZeroGPU support. Import this module first: the package `spaces` must be imported before torch."""

try:
    from spaces import GPU as borrows_gpu
except ImportError:

    def borrows_gpu(function):
        """Return the function unchanged, because this machine has no GPUs to borrow."""
        return function


__all__ = ["borrows_gpu"]
