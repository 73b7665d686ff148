# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""GPUs that a Space borrows for the time of a call. Imported first: the package has to come before torch."""

try:
    from spaces import GPU as borrows_gpu
except ImportError:

    def borrows_gpu(function):
        """Where there is nothing to borrow, the function as it is."""
        return function


__all__ = ["borrows_gpu"]
