# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Model cards, saved models, and pushes to the Hub."""

from .card import (
    HUB_ID,
    CardFacts,
    EvaluationRecord,
    SampleRecord,
    add_evaluation,
    add_samples,
    figure_table,
    read_card,
    write_model_card,
)
from .pretrained import load_config
from .push import PushError, check_login, create_repository, full_repo_id, push_folder, retry


__all__ = [
    "HUB_ID",
    "CardFacts",
    "EvaluationRecord",
    "PushError",
    "SampleRecord",
    "add_evaluation",
    "add_samples",
    "check_login",
    "create_repository",
    "figure_table",
    "full_repo_id",
    "load_config",
    "push_folder",
    "read_card",
    "retry",
    "write_model_card",
]
