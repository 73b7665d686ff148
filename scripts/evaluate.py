#!/usr/bin/env python
# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Score a split of a dataset in bits per dimension: JSON on stdout, a table on stderr.
    python scripts/evaluate.py --model runs/cifar10 --dataset uoft-cs/cifar10
    accelerate launch scripts/evaluate.py --model runs/imagenet64 --dataset valid_64x64.tar --num_noise_samples 16
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser

from jet_hf import JetForDensityEstimation, JetImageProcessor
from jet_hf.analysis.evaluation import describe_evaluation, evaluate, evaluation_record, write_scores
from jet_hf.data import DataSource, ReadOptions, UndecodableImagesError, held_out_split, load_pixels
from jet_hf.hub import add_evaluation
from jet_hf.utils.console import console
from jet_hf.utils.files import strict_json
from jet_hf.utils.precision import resolve_precision


@dataclass
class EvaluateArguments:
    model: str = field(metadata={"help": "Folder of a saved model, or its name on the Hub."})
    dataset: str = field(metadata={"help": "Path of images (folder, parquet, tar, npz), or a name on the Hub."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    split: str | None = field(default=None, metadata={"help": "By default validation, or else test."})
    image_column: str | None = field(default=None, metadata={"help": "By default it is found."})
    label_column: str | None = field(default=None, metadata={"help": "Of a class-conditional model; likewise."})
    dataset_release: str | None = field(default=None, metadata={"help": "Key of RELEASES: which data these are."})
    batch_size: int = field(default=64, metadata={"help": "Images that a process scores at a time."})
    num_noise_samples: int = field(default=1, metadata={"help": "Draws of noise; more give a tighter bound."})
    max_images: int | None = field(default=None, metadata={"help": "Scores the first images only."})
    random_crops_per_image: int | None = field(default=None, metadata={"help": "Crops of full size that are scored."})
    seed: int = field(default=0, metadata={"help": "Draws crops, and the noise of each image, in any batches alike."})
    mixed_precision: str = field(default="no", metadata={"help": "Of the conditioners: no or bf16."})
    scores_file: str | None = field(default=None, metadata={"help": "JSON file to write each image's score to."})
    write_model_card: bool = field(default=False, metadata={"help": "Add the score to the card in --model."})


def main() -> None:
    (arguments,) = HfArgumentParser(EvaluateArguments, description=__doc__).parse_args_into_dataclasses()
    if arguments.write_model_card and not (card := Path(arguments.model) / "README.md").is_file():
        raise ValueError(f"--write_model_card needs a folder with a card, there is no {card}.")
    accelerator = Accelerator(mixed_precision=resolve_precision(arguments.mixed_precision))
    model = JetForDensityEstimation.from_pretrained(arguments.model)
    processor = JetImageProcessor.from_pretrained(arguments.model)
    columns = {name: getattr(arguments, name) for name in ("image_column", "label_column")}
    source = DataSource.at(arguments.dataset, arguments.dataset_config, release=arguments.dataset_release, **columns)
    wanted = {name: getattr(arguments, name) for name in ("max_images", "random_crops_per_image", "seed")}
    with accelerator.main_process_first():
        split = arguments.split or held_out_split(source)
        pixels = load_pixels(source, split, processor, ReadOptions(num_classes=model.config.num_classes, **wanted))
    # Every process has the whole model, whatever the launcher's configuration does in training.
    model = accelerator.prepare_model(model, device_placement=True, evaluation_mode=True)
    start, settings = time.monotonic(), (arguments.batch_size, arguments.num_noise_samples, arguments.seed)
    evaluation = evaluate(model, pixels.dataset, *settings, accelerator, progress=sys.stderr.isatty())
    speed = len(pixels.dataset) / (time.monotonic() - start)
    if accelerator.is_main_process:
        if arguments.write_model_card:
            add_evaluation(arguments.model, evaluation_record(evaluation, source, split))
        if arguments.scores_file:
            write_scores(arguments.scores_file, evaluation, source, split)
        result = {"model": arguments.model, **describe_evaluation(evaluation, source, split, pixels)}
        result |= {name: getattr(arguments, name) for name in ("seed", "mixed_precision")}
        result |= {"num_processes": accelerator.num_processes, "images_per_second": speed}
        print(strict_json(result, indent=2))
        print(*(f"{name:20} {value}" for name, value in result.items()), sep="\n", file=sys.stderr)
    accelerator.end_training()


if __name__ == "__main__":
    with console(ValueError, OSError, StrictDataclassError, UndecodableImagesError):
        main()
