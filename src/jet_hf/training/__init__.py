# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Training: the paper's optimiser, schedule and update."""

from .loop import NonFiniteLossError, StepMetrics, Trainer
from .optim import build_optimizer, build_scheduler


__all__ = ["NonFiniteLossError", "StepMetrics", "Trainer", "build_optimizer", "build_scheduler"]
