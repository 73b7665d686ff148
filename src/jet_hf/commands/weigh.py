# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""`jet-hf weigh`."""

import sys
from pathlib import Path

from ..analysis.codec.integer_flow import check_model
from ..analysis.codec.weighing import describe, weigh
from ..analysis.evaluation import check_writable, data_title
from ..arguments import WeighArguments
from ..data import load_pixels, split_to_score
from ..hub import load_config
from ..model.image_processing_jet import JetImageProcessor
from ..model.modeling_jet import JetForDensityEstimation
from ..utils.files import replace_file, strict_json
from .evaluate import EXPECTED_ERRORS as EXPECTED_ERRORS
from .evaluate import open_source, read_options


def run(arguments: WeighArguments) -> None:
    """Compress a dataset, print the sizes, and keep the file on request."""
    source = open_source(arguments)
    if arguments.output:
        source.check_output(arguments.output, "output", "dataset")
        check_writable(Path(arguments.output), "output")
    check_model(load_config(arguments.model, "model"))
    model = JetForDensityEstimation.from_pretrained(arguments.model).eval()
    processor = JetImageProcessor.from_pretrained(arguments.model)
    split = arguments.split or split_to_score(source)
    pixels = load_pixels(source, split, processor, read_options(arguments, model.config))
    data, result = weigh(model, pixels.dataset, arguments.batch_size, arguments.seed, progress=sys.stderr.isatty())
    if arguments.output:
        replace_file(Path(arguments.output), lambda draft: draft.write_bytes(data))
    print(strict_json({"model": arguments.model, "dataset": data_title(source), "split": split, **result}, indent=2))
    print(describe(result), file=sys.stderr)
