# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""`jet-hf evaluate`."""

import sys
import time
from pathlib import Path

from accelerate import Accelerator
from huggingface_hub.errors import StrictDataclassError

from ..analysis.evaluation import (
    check_scores_file,
    check_writable,
    describe_evaluation,
    evaluate,
    evaluation_record,
    write_scores,
)
from ..analysis.inference import prepared_for_inference
from ..arguments import EvaluateArguments
from ..data import DataSource, ReadOptions, UndecodableImagesError, load_pixels, split_to_score
from ..hub import add_evaluation, load_config, read_card
from ..model.image_processing_jet import JetImageProcessor
from ..model.modeling_jet import JetForDensityEstimation
from ..utils.files import strict_json
from ..utils.precision import resolve_precision


EXPECTED_ERRORS = (StrictDataclassError, UndecodableImagesError)


def run(arguments: EvaluateArguments) -> None:
    """Score a dataset; print the result, and write it to the requested files."""
    columns = {name: getattr(arguments, name) for name in ("image_column", "label_column", "first_label")}
    source = DataSource.at(arguments.dataset, arguments.dataset_config, release=arguments.dataset_release, **columns)
    check_outputs(arguments, source)
    accelerator = Accelerator(mixed_precision=resolve_precision(arguments.mixed_precision))
    load_config(arguments.model, "model").check_bits_per_dim()
    model = JetForDensityEstimation.from_pretrained(arguments.model)
    processor = JetImageProcessor.from_pretrained(arguments.model)
    selection = ("max_images", "max_undecodable_share", "random_crops_per_image", "seed")
    options = ReadOptions(num_classes=model.config.num_classes, **{n: getattr(arguments, n) for n in selection})
    with accelerator.main_process_first():
        split = arguments.split or split_to_score(source)
        pixels = load_pixels(source, split, processor, options)
    # Every process holds the whole model, whichever sharding the launcher configures for training.
    model = accelerator.prepare_model(model, device_placement=True, evaluation_mode=True)
    settings = (arguments.batch_size, arguments.num_noise_samples, arguments.seed)
    start = time.monotonic()
    with prepared_for_inference(model):
        evaluation = evaluate(model, pixels.dataset, *settings, accelerator, progress=sys.stderr.isatty())
    throughput = len(pixels.dataset) / (time.monotonic() - start)
    if accelerator.is_main_process:
        result = {"model": arguments.model, **describe_evaluation(evaluation, source, split, pixels)}
        if arguments.scores_file:
            write_scores(arguments.scores_file, evaluation, source, split, pixels)
        if arguments.write_model_card:
            add_evaluation(arguments.model, evaluation_record(source, split, result))
        result |= {name: getattr(arguments, name) for name in ("seed", "mixed_precision")}
        result |= {"num_processes": accelerator.num_processes, "images_per_second": throughput}
        print(strict_json(result, indent=2))
        print(*(f"{name:20} {value}" for name, value in result.items()), sep="\n", file=sys.stderr)
    accelerator.end_training()


def check_outputs(arguments: EvaluateArguments, source: DataSource) -> None:
    """Raise ValueError before the scoring if its results could not be written."""
    card = Path(arguments.model) / "README.md"
    if arguments.write_model_card and not card.is_file():
        raise ValueError(f"`write_model_card` needs a folder with a card, but there is no {card}.")
    if arguments.write_model_card:
        check_writable(card, "write_model_card")
        read_card(card)
    if arguments.scores_file:
        check_scores_file(arguments.scores_file, source)
