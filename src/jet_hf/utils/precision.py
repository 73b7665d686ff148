# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The mixed precision of training and evaluation."""

import os


def resolve_precision(requested: str | None) -> str:
    """
    Return the mixed precision of the conditioners: the requested one, or else the one that accelerate is set to.

    Raises:
        ValueError: for any other than `no` and `bf16`, whether from an argument, a configuration file of accelerate,
            its command line or its environment variable.
    """
    # accelerate's launcher hands on its flags and its configuration file by this variable.
    precision, origin = requested, "the argument `mixed_precision`"
    if requested is None:
        precision, origin = os.environ.get("ACCELERATE_MIXED_PRECISION", "no"), "the settings of accelerate"
    if precision.lower() not in ("no", "bf16"):
        raise ValueError(
            f"the mixed precision must be 'no' or 'bf16', got {precision!r} from {origin}: activations overflow in "
            "float16 and float8."
        )
    return precision.lower()
