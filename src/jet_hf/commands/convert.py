# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""`jet-hf convert`."""

from dataclasses import asdict

from huggingface_hub.errors import StrictDataclassError

from ..arguments import ConvertArguments
from ..importers import convert_checkpoint


EXPECTED_ERRORS = (StrictDataclassError,)


def run(arguments: ConvertArguments) -> None:
    """Convert a checkpoint. See [`jet_hf.importers.convert_checkpoint`]."""
    known = asdict(arguments)
    source, checkpoint, output_dir = (known.pop(name) for name in ("source", "checkpoint", "output_dir"))
    print(f"wrote {convert_checkpoint(source, checkpoint, output_dir, **known)}")
