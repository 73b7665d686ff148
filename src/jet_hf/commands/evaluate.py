# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""`jet-hf evaluate`."""

import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from huggingface_hub.errors import StrictDataclassError

from ..analysis.evaluation import (
    Evaluation,
    check_scores_file,
    check_writable,
    dataset_fields,
    describe_data,
    describe_evaluation,
    evaluate,
    evaluation_record,
    write_scores,
)
from ..analysis.inference import prepared_for_inference
from ..arguments import AnomalyArguments, EvaluateArguments, WeighArguments
from ..data import (
    HELD_OUT,
    KEPT,
    DataSource,
    PixelSplit,
    ReadOptions,
    UndecodableImagesError,
    UnknownSplitError,
    load_pixels,
    split_to_score,
)
from ..hub import SampleRecord, add_evaluation, add_samples, figure_table, load_config, read_card
from ..model.configuration_jet import JetConfig
from ..model.image_processing_jet import JetImageProcessor
from ..model.modeling_jet import JetForDensityEstimation
from ..utils.files import strict_json
from ..utils.precision import resolve_precision
from ..utils.xla import check_device


EXPECTED_ERRORS = (StrictDataclassError, UndecodableImagesError)


def run(arguments: EvaluateArguments) -> None:
    """Score a dataset and compare samples with it; print the results, and write them to the requested files."""
    source = open_source(arguments)
    check_outputs(arguments, source)
    accelerator = Accelerator(mixed_precision=resolve_precision(arguments.mixed_precision))
    check_device(accelerator.device, accelerator.mixed_precision)
    check_results(arguments, load_config(arguments.model, "model"))
    model = JetForDensityEstimation.from_pretrained(arguments.model)
    processor = JetImageProcessor.from_pretrained(arguments.model)
    with accelerator.main_process_first():
        split = arguments.split or split_to_score(source)
        pixels = load_pixels(source, split, processor, read_options(arguments, model.config))
        real = load_real_images(arguments, source, split, processor, model.config)
    # Every process holds the whole model, whichever sharding the launcher configures for training.
    model = accelerator.prepare_model(model, device_placement=True, evaluation_mode=True)
    samples = None if real is None else evaluate_samples(arguments, model, processor, pixels, real, accelerator)
    scores = None if model.config.noise_std is not None else score(arguments, model, pixels, accelerator)
    if accelerator.is_main_process:
        result = {"model": arguments.model}
        if scores is None:
            result |= describe_data(source, split, pixels)
        else:
            evaluation, throughput = scores
            result |= describe_evaluation(evaluation, source, split, pixels) | {"images_per_second": throughput}
            if arguments.scores_file:
                write_scores(arguments.scores_file, evaluation, source, split, pixels)
            if arguments.write_model_card:
                add_evaluation(arguments.model, evaluation_record(source, split, result))
        if samples is not None and arguments.write_model_card:
            add_samples(arguments.model, sample_record(arguments, source, split, samples))
        result |= {name: getattr(arguments, name) for name in ("seed", "mixed_precision")}
        result |= {"num_processes": accelerator.num_processes}
        print(strict_json(result if samples is None else result | {"samples": samples}, indent=2))
        print(*(f"{name:20} {value}" for name, value in result.items()), sep="\n", file=sys.stderr)
        if samples is not None:
            print(f"\n{figure_table(samples['figures'])}", file=sys.stderr)
    accelerator.end_training()


def open_source(arguments: EvaluateArguments | WeighArguments) -> DataSource:
    """Return the dataset of a command."""
    columns = {name: getattr(arguments, name) for name in ("image_column", "label_column", "first_label")}
    return DataSource.at(arguments.dataset, arguments.dataset_config, release=arguments.dataset_release, **columns)


def read_options(
    arguments: EvaluateArguments | WeighArguments | AnomalyArguments, config: JetConfig, **options: Any
) -> ReadOptions:
    """Return the options of reading images for a model."""
    names = ("max_images", "max_undecodable_share", "random_crops_per_image", "seed")
    values = {name: getattr(arguments, name) for name in names}
    return ReadOptions(**{"num_classes": config.num_classes} | values | options)


def score(
    arguments: EvaluateArguments, model: JetForDensityEstimation, pixels: PixelSplit, accelerator: Accelerator
) -> tuple[Evaluation, float]:
    """Return the bits per dimension, and the number of images scored per second."""
    settings = (arguments.batch_size, arguments.num_noise_samples, arguments.seed)
    start = time.monotonic()
    with prepared_for_inference(model):
        evaluation = evaluate(model, pixels.dataset, *settings, accelerator, progress=sys.stderr.isatty())
    return evaluation, len(pixels.dataset) / (time.monotonic() - start)


def load_real_images(
    arguments: EvaluateArguments, source: DataSource, split: str, processor: JetImageProcessor, config: JetConfig
) -> tuple[str, PixelSplit] | None:
    """Return the split of the real images to compare with samples, and its images; `None` without samples."""
    if arguments.samples is None:
        return None
    kept = split.replace(HELD_OUT, KEPT) if split.endswith(HELD_OUT) else "train"
    real_split = arguments.real_split or kept
    try:
        if source.layout.resolve(real_split) == source.layout.resolve(split):
            raise ValueError(
                f"`real_split` must have other images than the split {split!r} that samples are compared with, got "
                f"{real_split!r}."
            )
    except UnknownSplitError as error:
        raise ValueError(
            f"`real_split` must be a split of real images that stand beside the samples: {error}"
        ) from error
    # As many images as samples are chosen at random, since the first ones of a split may be of one class.
    return real_split, load_pixels(source, real_split, processor, read_options(arguments, config, max_images=None))


def evaluate_samples(
    arguments: EvaluateArguments,
    model: JetForDensityEstimation,
    processor: JetImageProcessor,
    pixels: PixelSplit,
    real: tuple[str, PixelSplit],
    accelerator: Accelerator,
) -> dict[str, Any] | None:
    """Return the figures of samples and their settings, ready for JSON; `None` on all but the main process."""
    from ..analysis import sample_quality

    sampling = arguments.sampling_options()
    options = sample_quality.SampleOptions(
        num_samples=arguments.samples or 0,
        features=arguments.features,
        figures=arguments.figures,
        num_noise_samples=arguments.bayes_noise_samples,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        sampling=sampling,
    )
    real_split, real_pixels = real
    sets = (pixels.dataset, real_pixels.dataset)
    report = sample_quality.evaluate_samples(
        model, processor, *sets, options, accelerator, progress=sys.stderr.isatty()
    )
    if report is None:
        return None
    return {
        "num_samples": report.num_samples,
        "num_held_out": report.num_held_out,
        "real_split": real_split,
        "features": arguments.features,
        "num_features": report.num_features,
        "bayes_noise_samples": arguments.bayes_noise_samples,
        **sampling,
        "figures": sample_quality.describe_samples(report),
        "versions": {name: version(name) for name in ("scikit-learn", "torchmetrics")},
    }


def sample_record(
    arguments: EvaluateArguments, source: DataSource, split: str, samples: dict[str, Any]
) -> SampleRecord:
    """Return the record of figures in the form of [`evaluate_samples`] for the card, without paths."""
    return SampleRecord(
        **dataset_fields(source, split),
        **{name: samples[name] for name in ("real_split", "num_samples", "num_held_out", "figures")},
        features=Path(samples["features"]).name if Path(samples["features"]).exists() else samples["features"],
        options={name: samples[name] for name in arguments.changed(arguments.sampling_options())},
    )


def check_results(arguments: EvaluateArguments, config: JetConfig) -> None:
    """Raise ValueError before the data are read if the model or this environment cannot give the requested results."""
    if arguments.samples is None:
        config.check_bits_per_dim()
        return
    try:
        from ..analysis.sample_quality import figures_of
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("jet_hf"):
            raise
        raise ValueError(
            f"`samples` needs the package {error.name}, which is not installed: it comes with the extra `samples`."
        ) from error
    figures_of(config, arguments.figures)
    if arguments.scores_file and config.noise_std is not None:
        raise ValueError(
            "`scores_file` is for bits per dimension, which a model of noisy images does not have, got `noise_std` "
            f"{config.noise_std}."
        )


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
