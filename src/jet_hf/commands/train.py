# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""`jet-hf train`."""

from huggingface_hub.errors import StrictDataclassError
from transformers.utils.logging import disable_progress_bar

from ..arguments import TrainArguments
from ..training import EXPECTED_ERRORS as TRAINING_ERRORS
from ..training import train


EXPECTED_ERRORS = (*TRAINING_ERRORS, StrictDataclassError)


def run(arguments: TrainArguments) -> None:
    """Train a model. See [`jet_hf.training.train`]."""
    disable_progress_bar()  # of saving a model: the run has its own
    train(arguments)
