# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Mixed precision of training and evaluation."""

import os


def resolve_precision(requested: str | None) -> str:
    """
    Return the mixed precision of the conditioners: the requested one, or the setting of accelerate.

    Raises:
        ValueError: if the precision is neither `no` nor `bf16`, whether it comes from an argument or from accelerate's
            command line, configuration file or environment variable.
    """
    precision, origin = requested, "the argument `mixed_precision`"
    if precision is None:
        # accelerate's launcher passes its flags and its configuration file on through this variable.
        precision, origin = os.environ.get("ACCELERATE_MIXED_PRECISION", "no"), "the settings of accelerate"
    if precision.lower() not in ("no", "bf16"):
        raise ValueError(
            f"the mixed precision must be 'no' or 'bf16', got {precision!r} from {origin}: activations overflow in "
            "float16 and float8."
        )
    return precision.lower()
