# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""`jet-hf average`."""

from huggingface_hub.errors import StrictDataclassError

from ..analysis.averaging import average_models
from ..arguments import AverageArguments
from ..utils.files import new_folder


EXPECTED_ERRORS = (StrictDataclassError,)


def run(arguments: AverageArguments) -> None:
    """Write the average of models, with the image processor of the first one, to a new folder."""
    with new_folder(arguments.output_dir) as folder:
        model, processor = average_models(arguments.models)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    print(f"wrote the average of {len(arguments.models)} models to {arguments.output_dir}")
