# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Model cards and pushes to the Hub."""

from .card import HUB_ID, CardFacts, EvaluationRecord, add_evaluation, write_model_card
from .push import PushError, check_login, create_repository, full_repo_id, push_folder, retry


__all__ = [
    "HUB_ID",
    "CardFacts",
    "EvaluationRecord",
    "PushError",
    "add_evaluation",
    "check_login",
    "create_repository",
    "full_repo_id",
    "push_folder",
    "retry",
    "write_model_card",
]
