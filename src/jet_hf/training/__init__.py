# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Train Jet models: the optimizer, the schedule, the optimizer step and whole runs of the paper."""

from ..arguments import TrainArguments, parse_arguments
from .checkpoints import CheckpointError
from .lock import RunLockedError
from .optim import build_optimizer, build_scheduler
from .run import EXPECTED_ERRORS, RunResult, TrainingRun, train
from .signals import RunInterrupted
from .trainer import DivergenceError, NonFiniteLossError, StepMetrics, Trainer, UpdateGuard


__all__ = [
    "EXPECTED_ERRORS",
    "CheckpointError",
    "DivergenceError",
    "NonFiniteLossError",
    "RunInterrupted",
    "RunLockedError",
    "RunResult",
    "StepMetrics",
    "TrainArguments",
    "Trainer",
    "TrainingRun",
    "UpdateGuard",
    "build_optimizer",
    "build_scheduler",
    "parse_arguments",
    "train",
]
