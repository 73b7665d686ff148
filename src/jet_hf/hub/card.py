# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Model cards with evaluation results in the Hub's machine-readable form."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, RepoCard
from huggingface_hub.repocard_data import eval_results_to_model_index

from ..model.configuration_jet import JetConfig
from ..utils.files import replace_file
from ..utils.tables import markdown_table


TEMPLATE = Path(__file__).parent / "model_card_template.md"
TASK = "unconditional-image-generation"
TAGS = ["jet", "normalizing-flow", "density-estimation", "custom_code"]
# The form of a repository name on the Hub, which the Hub also requires in the metadata of a card.
HUB_ID = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*", re.ASCII)
# Names of `datasets` builders, which look like names of datasets on the Hub.
LOADERS = {"arrow", "csv", "imagefolder", "json", "parquet", "webdataset"}
# Comments around the section of a card that `add_samples` writes.
SAMPLES_SECTION = ("<!-- figures of samples -->", "<!-- end of figures of samples -->")
FIGURE_SIDES = (("samples", "standard_error"), ("real", "real_standard_error"))
FIGURE_TITLES = {
    "frechet_distance": "Fréchet distance, lower is better",
    "kernel_distance": "kernel distance (KID), lower is better",
    "precision": "precision, higher is better",
    "recall": "recall, higher is better",
    "nearest_neighbor_accuracy": "two-sample accuracy of a nearest neighbor, 0.5 is best",
    "seam_strength": "seam strength: mean step between pixels across borders of patches over that inside, 1 is best",
    "classifier_accuracy": "accuracy on held-out images of a classifier trained on these images, higher is better",
    "bayes_accuracy": "accuracy of argmax p(image given class) on held-out images, higher is better",
}


@dataclass(frozen=True)
class EvaluationRecord:
    """
    Score of a model on a dataset split.

    Args:
        dataset_name: Title of the dataset. For downsampled ImageNet it names one of the two incompatible releases.
        dataset_type: Name of the dataset on the Hub, or the loader of local files, such as "imagefolder".
        split: Name of the split.
        num_images: Number of images.
        bits_per_dim: Mean over the images, in bits per dimension.
        standard_error: Standard error of the mean, in bits per dimension. Not finite if it is unknown.
        num_noise_samples: Number of dequantization noise samples per image. More samples give a tighter bound.
    """

    dataset_name: str
    dataset_type: str
    split: str
    num_images: int
    bits_per_dim: float
    standard_error: float
    num_noise_samples: int = 1


@dataclass(frozen=True)
class SampleRecord:
    """
    Figures of a model's samples, in comparison with held-out images, and beside them those of other real images.

    Args:
        dataset_name, dataset_type, split: Held-out images, see [`EvaluationRecord`].
        real_split: Split of the real images that take the place of the samples.
        num_samples: Number of samples, and of these real images.
        num_held_out: Number of held-out images.
        features: Name of the feature extractor.
        options: Options of the sampling that are not the defaults, by name.
        figures: For each figure the value `samples`, its `standard_error`, and the same of the real images, `real` and
            `real_standard_error`, each a number or `None`.
    """

    dataset_name: str
    dataset_type: str
    split: str
    real_split: str
    num_samples: int
    num_held_out: int
    features: str
    options: Mapping[str, Any]
    figures: Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True)
class CardFacts:
    """
    Facts about a model for its card.

    Args:
        dataset_title: Title of the training data.
        dataset_note: Remarks on the comparability of the scores.
        training: Rows of the training table, including the hardware.
        command: Command line of the training.
        evaluations: Scores of the model.
        base_model: Fine-tuned model, as a name on the Hub or a folder.
        dataset_id: Name of the training dataset on the Hub.
        has_samples: Whether the folder is expected to contain `samples.png`.
    """

    dataset_title: str
    dataset_note: str
    training: dict[str, str | int | float]
    command: str
    evaluations: list[EvaluationRecord]
    base_model: str | None
    dataset_id: str | None
    has_samples: bool


def write_model_card(folder: str | os.PathLike, facts: CardFacts, model_id: str) -> None:
    """
    Write the `README.md` of a model folder. That of a model with `noise_std` says that it has no bits per dimension.

    Args:
        folder: Folder of a saved model.
        facts: Facts about the model.
        model_id: Name of the model on the Hub, for the examples.

    Raises:
        ValueError: for scores of a model with `noise_std`.
    """
    folder = Path(folder)
    config = _read_config(folder)
    if facts.evaluations and config is not None:
        config.check_bits_per_dim()
    base_model = facts.base_model if _is_hub_id(facts.base_model) else None
    results = [_eval_result(record) for record in facts.evaluations if math.isfinite(record.bits_per_dim)]
    metadata = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag=TASK,
        tags=TAGS,
        datasets=[facts.dataset_id] if facts.dataset_id and _is_hub_id(facts.dataset_id) else None,
        base_model=base_model,
        base_model_relation="finetune" if base_model else None,
        model_name=model_id if results else None,
        eval_results=results or None,
    )
    card = ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        name=model_id.split("/")[-1],
        model_id=model_id,
        dataset_title=facts.dataset_title,
        dataset_note=facts.dataset_note,
        # The card must not reveal the path of a local folder.
        base_model_title=facts.base_model and (base_model or Path(facts.base_model).name),
        shape=_describe_shape(config),
        num_classes=config and config.num_classes,
        noise_std=config and config.noise_std,
        noise_range=(config and config.noise_range) or [],
        num_levels=config.num_levels if config else 256,
        uniform_bits=f"{math.log2(config.num_levels if config else 256):.4g}",
        has_samples=facts.has_samples and (folder / "samples.png").is_file(),
        scores=[_score_row(record) for record in facts.evaluations],
        training=[[_cell(key), _cell(value)] for key, value in facts.training.items()],
        command=facts.command,
    )
    replace_file(folder / "README.md", card.save)


def add_evaluation(path: str | os.PathLike, record: EvaluationRecord) -> None:
    """
    Add a score to the metadata of a model card, replacing an earlier score of the same dataset and bound.

    Args:
        path: Model card, or the folder that contains it.
        record: Score to add.

    Raises:
        ValueError: If there is no card, its metadata is invalid, the score is not finite, or the model beside the card
            has a `noise_std`.
    """
    card_path = _find_card(path)
    if (config := _read_config(card_path.parent)) is not None:
        config.check_bits_per_dim()
    if not math.isfinite(record.bits_per_dim):
        raise ValueError(f"`bits_per_dim` must be a finite number, got {record.bits_per_dim}.")
    card = read_card(card_path)
    _add_results(card, card_path, [_eval_result(record)])
    replace_file(card_path, card.save)


def add_samples(path: str | os.PathLike, record: SampleRecord) -> None:
    """
    Add figures of samples to a model card: to its metadata, replacing earlier ones of the same dataset and settings,
    and as the table of its section on samples, which is replaced or else appended.

    Args:
        path: Model card, or the folder that contains it.
        record: Figures to add.

    Raises:
        ValueError: If there is no card, or its metadata is invalid.
    """
    card_path = _find_card(path)
    card = read_card(card_path)
    _add_results(card, card_path, _sample_results(record))
    start, end = SAMPLES_SECTION
    section = f"{start}\n\n{_describe_samples(record)}\n\n{end}"
    before, found, rest = card.text.partition(start)
    _, closed, after = rest.partition(end)
    if found and closed:
        card.text = before + section + after
    else:
        card.text = f"{card.text.rstrip()}\n\n{section}\n"
    replace_file(card_path, card.save)


def _find_card(path: str | os.PathLike) -> Path:
    path = Path(path)
    card_path = path / "README.md" if path.is_dir() else path
    if not card_path.is_file():
        raise ValueError(f"`path` must be a model card or its folder, got {path}: {card_path} does not exist.")
    return card_path


def _add_results(card: RepoCard, path: Path, added: list[EvalResult]) -> None:
    """Add results to the metadata of a card in memory; they replace earlier ones of the same dataset and metric."""
    try:
        index = card.data.get("model-index") or [{"name": path.resolve().parent.name, "results": []}]
        for entry in eval_results_to_model_index("", added)[0]["results"]:
            _add_result(index, entry)
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"the metadata of {path} is invalid: {type(error).__name__}: {error}") from error
    card.data["model-index"] = index


def _add_result(index: list[dict], entry: dict) -> None:
    results = [result for model in index for result in model["results"]]
    same_data = [result for result in results if _key(result["dataset"]) == _key(entry["dataset"])]
    metrics = [_key(metric) for metric in entry["metrics"]]
    for result in same_data:
        result["metrics"] = [other for other in result["metrics"] if _key(other) not in metrics]
    if same_data:
        same_data[0]["metrics"] += entry["metrics"]
    else:
        index[0]["results"].append(entry)
    for model in index:
        model["results"] = [result for result in model["results"] if result["metrics"]]


def read_card(path: Path) -> RepoCard:
    """Read a model card. Raises ValueError if its metadata are invalid."""
    try:
        # ModelCard would rewrite foreign results, and merge results that differ only in the dataset's name.
        return RepoCard.load(path)
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"the metadata of {path} is invalid: {type(error).__name__}: {error}") from error


def _eval_result(record: EvaluationRecord) -> EvalResult:
    arguments: dict[str, int | float] = {
        "num_images": int(record.num_images),
        "num_noise_samples": int(record.num_noise_samples),
    }
    if math.isfinite(record.standard_error):
        arguments["standard_error"] = float(record.standard_error)
    return EvalResult(
        **_dataset_fields(record),
        task_name="Density estimation of images",
        metric_type="bits_per_dim",
        metric_name="bits per dimension",
        metric_config=f"{record.num_noise_samples} noise sample{'s' if record.num_noise_samples > 1 else ''}",
        metric_value=float(record.bits_per_dim),
        metric_args=arguments,
    )


def _sample_results(record: SampleRecord) -> list[EvalResult]:
    settings = {
        "num_samples": record.num_samples,
        "num_held_out": record.num_held_out,
        "real_split": record.real_split,
    }
    return [
        EvalResult(
            **_dataset_fields(record),
            task_name="Generation of images",
            metric_type=name,
            metric_name=FIGURE_TITLES[name].split(",")[0],
            metric_config=", ".join(
                [f"{record.num_samples} samples", f"features {record.features}", *_options(record)]
            ),
            metric_value=values["samples"],
            metric_args=settings
            | {key: value for key, value in values.items() if key != "samples" and value is not None},
        )
        for name, values in record.figures.items()
        if values["samples"] is not None
    ]


def _dataset_fields(record: EvaluationRecord | SampleRecord) -> dict[str, Any]:
    dataset_type = record.dataset_type
    if not HUB_ID.fullmatch(dataset_type):
        dataset_type = re.sub(r"[^\w-]+", "-", Path(dataset_type).name, flags=re.ASCII).strip("-") or "dataset"
    return {
        "task_type": TASK,
        "dataset_type": dataset_type,
        "dataset_name": record.dataset_name,
        # The client merges results that differ only in the name, such as those of the two releases of downsampled
        # ImageNet when both are read from image folders.
        "dataset_config": record.dataset_name,
        "dataset_split": record.split,
    }


def figure_table(figures: Mapping[str, Mapping[str, float | None]]) -> str:
    """Return the Markdown table of figures in the form of [`SampleRecord`]."""
    lines = [["figure", "samples", "real images"]]
    for name, values in figures.items():
        cells = [_figure(values[side], values[error]) for side, error in FIGURE_SIDES]
        lines.append([FIGURE_TITLES[name], *cells])
    return markdown_table(lines, left=1)


def _figure(value: float | None, error: float | None) -> str:
    return "" if value is None else f"{value:.4g}" + ("" if error is None else f" ± {error:.2g}")


def _options(record: SampleRecord) -> list[str]:
    return [f"{name} {value}" for name, value in record.options.items()]


def _describe_samples(record: SampleRecord) -> str:
    options = f" ({', '.join(_options(record))})" if record.options else ""
    return f"""## Figures of samples

{record.num_samples:,} samples{options}, and as many real images of the split `{record.real_split}`, were compared with
the {record.num_held_out:,} images of {record.dataset_name}, split `{record.split}`. A sampler that repeats its
training images would reach the figures of the real images. Features: {record.features}. ± is the standard error over
images.

{figure_table(record.figures)}

Compare figures only if the features, the images and their numbers are the same."""


def _key(part: dict) -> tuple:
    """Return the fields that identify a dataset or a metric in a model index."""
    return tuple(part.get(name) for name in ("type", "config", "split"))


def _score_row(record: EvaluationRecord) -> list[str]:
    error = f" ± {record.standard_error:.4f}" if math.isfinite(record.standard_error) else ""
    cells = [record.dataset_name, record.split, f"{record.num_images:,}", f"{record.bits_per_dim:.4f}{error}"]
    return [_cell(cell) for cell in [*cells, str(record.num_noise_samples)]]


def _cell(value: str | int | float) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _read_config(folder: Path) -> JetConfig | None:
    path = folder / "config.json"
    return JetConfig.from_json_file(path) if path.is_file() else None


def _describe_shape(config: JetConfig | None) -> str | None:
    if config is None:
        return None
    channels, height, width = config.image_shape
    order = "" if height == width else " (height and width)"
    return (
        f"Images have {height} x {width} pixels{order} and {channels} channel{'s' if channels > 1 else ''}; the flow "
        f"has {config.num_coupling_layers} coupling layers."
    )


def _is_hub_id(name: str | None) -> bool:
    return name is not None and name not in LOADERS and bool(HUB_ID.fullmatch(name)) and not Path(name).exists()
