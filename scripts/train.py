#!/usr/bin/env python
# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Train or fine-tune a Jet on one or many devices.

    accelerate launch scripts/train.py --config recipes/cifar10.yaml --output_dir runs/cifar10
    accelerate launch scripts/train.py --dataset_path photographs/ --image_size 32 --patch_size 2 --max_steps 10000
    accelerate launch scripts/train.py --config recipes/cifar10.yaml --dry_run

Started again with --resume_from_checkpoint latest, a run that was killed continues as if nothing had happened. SIGTERM
and Ctrl-C save a checkpoint and end the run with exit code 0, or with 143 and 130 where there is nothing to save.
"""

import logging
import os
import signal
import sys


RANK = os.environ.get("RANK", "0")


def end_at_once(number: int, frame) -> None:
    """Handle a signal outside of the run itself, whose imports take seconds."""
    if RANK == "0":
        os.write(2, f"stopped by {signal.Signals(number).name}.\n".encode())
    os._exit(128 + number)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end_at_once)

    from huggingface_hub.errors import StrictDataclassError
    from transformers.utils.logging import disable_progress_bar

    from jet_hf.training import EXPECTED_ERRORS, RunInterrupted, parse_arguments, train

    logging.basicConfig(
        format=f"%(asctime)s {'' if RANK == '0' else f'[{RANK}] '}%(levelname)s %(message)s",
        level=logging.WARNING,
        stream=sys.stderr,
    )
    logging.getLogger("jet_hf").setLevel(logging.INFO if RANK == "0" else logging.WARNING)
    disable_progress_bar()  # of saving a model: the run has one of its own
    try:
        train(parse_arguments(sys.argv[1:], __doc__))
    except (*EXPECTED_ERRORS, StrictDataclassError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except RunInterrupted as stop:
        if RANK == "0":
            print(" ".join(str(stop).split()), file=sys.stderr, flush=True)
        os._exit(stop.exit_code)  # a push in another thread may wait for the network


if __name__ == "__main__":
    main()
