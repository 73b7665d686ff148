#!/usr/bin/env python
# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Downsamples a data set of images by area averaging, into parquet shards that `datasets.load_dataset` reads.

    python scripts/prepare_imagenet.py --dataset_name ILSVRC/imagenet-1k --split train --image_size 64 --num_proc 16 \\
        --dataset_release imagenet1k_area --output_dir imagenet64
    python scripts/prepare_imagenet.py --dataset_path photographs/ --image_size 32 --output_dir photographs32

Started again with the same arguments, it goes on where it was stopped; the shards come out the same.
"""

import argparse
from concurrent.futures.process import BrokenProcessPool

from transformers import HfArgumentParser

from jet_hf.data import UndecodableImagesError
from jet_hf.data.preparation import PreparationArguments, prepare
from jet_hf.utils.console import console


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of the description, and shows defaults."""


def main() -> None:
    parser = HfArgumentParser(PreparationArguments, description=__doc__, formatter_class=HelpFormatter)
    (arguments,) = parser.parse_args_into_dataclasses()
    result = prepare(arguments)
    print(
        f"{arguments.output_dir}: {result.num_images} images of {arguments.split} in {result.num_shards} shards, "
        f"{result.num_found} of which were there already; {result.num_skipped} undecodable ones were skipped."
    )


if __name__ == "__main__":
    with console(ValueError, OSError, UndecodableImagesError, BrokenProcessPool):
        main()
