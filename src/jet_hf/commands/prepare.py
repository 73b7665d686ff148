# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""`jet-hf prepare`."""

from concurrent.futures.process import BrokenProcessPool

from ..arguments import PreparationArguments
from ..data import UndecodableImagesError
from ..data.preparation import prepare


EXPECTED_ERRORS = (UndecodableImagesError, BrokenProcessPool)


def run(arguments: PreparationArguments) -> None:
    """Prepare a split of a dataset. See [`jet_hf.data.preparation.prepare`]."""
    result = prepare(arguments)
    print(
        f"{arguments.output_dir}: {result.num_images} images of {arguments.split} in {result.num_shards} shards, "
        f"{result.num_found} of which already existed; {result.num_skipped} undecodable images were skipped."
    )
