#!/usr/bin/env python
# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Trains or fine-tunes a Jet on one or many devices.

    accelerate launch scripts/train.py --config recipes/cifar10.yaml --output_dir runs/cifar10
    accelerate launch scripts/train.py --dataset_path photographs/ --image_size 32 --patch_size 2 --max_steps 10000
    accelerate launch scripts/train.py --config recipes/cifar10.yaml --dry_run

Started again with --resume_from_checkpoint latest, a run that was killed goes on as if nothing had happened; SIGTERM
saves a checkpoint and ends it in order.
"""

import logging
import os
import sys

from huggingface_hub.errors import StrictDataclassError
from transformers.utils.logging import disable_progress_bar

from jet_hf.data import UndecodableImagesError
from jet_hf.training import CheckpointError, NonFiniteLossError, parse_arguments, train


ERRORS = (ValueError, OSError, StrictDataclassError, UndecodableImagesError, CheckpointError, NonFiniteLossError)


def main() -> None:
    rank = os.environ.get("RANK", "0")
    logging.basicConfig(
        format=f"%(asctime)s {'' if rank == '0' else f'[{rank}] '}%(levelname)s %(message)s",
        level=logging.WARNING,
        stream=sys.stderr,
    )
    logging.getLogger("jet_hf").setLevel(logging.INFO if rank == "0" else logging.WARNING)
    disable_progress_bar()  # of saving a model: the run has one of its own
    try:
        train(parse_arguments(sys.argv[1:], __doc__))
    except ERRORS as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
