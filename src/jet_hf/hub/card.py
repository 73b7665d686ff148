# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Model cards with evaluation results in the Hub's machine-readable form."""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, RepoCard
from huggingface_hub.repocard_data import eval_results_to_model_index

from ..model.configuration_jet import JetConfig
from ..utils.files import replace_file


TEMPLATE = Path(__file__).parent / "model_card_template.md"
TASK = "unconditional-image-generation"
TAGS = ["jet", "normalizing-flow", "density-estimation", "custom_code"]
# The form of a repository name on the Hub, which the Hub also requires in the metadata of a card.
HUB_ID = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*", re.ASCII)
# Names of `datasets` builders, which look like names of datasets on the Hub.
LOADERS = {"arrow", "csv", "imagefolder", "json", "parquet", "webdataset"}


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
    path = Path(path)
    card_path = path / "README.md" if path.is_dir() else path
    if not card_path.is_file():
        raise ValueError(f"`path` must be a model card or its folder, got {path}: {card_path} does not exist.")
    if (config := _read_config(card_path.parent)) is not None:
        config.check_bits_per_dim()
    if not math.isfinite(record.bits_per_dim):
        raise ValueError(f"`bits_per_dim` must be a finite number, got {record.bits_per_dim}.")
    card = read_card(card_path)
    try:
        index = card.data.get("model-index") or [{"name": card_path.resolve().parent.name, "results": []}]
        (entry,) = eval_results_to_model_index("", [_eval_result(record)])[0]["results"]
        (metric,) = entry["metrics"]
        results = [result for model in index for result in model["results"]]
        same_data = [result for result in results if _key(result["dataset"]) == _key(entry["dataset"])]
        for result in same_data:
            result["metrics"] = [other for other in result["metrics"] if _key(other) != _key(metric)]
        if same_data:
            same_data[0]["metrics"].append(metric)
        else:
            index[0]["results"].append(entry)
        for model in index:
            model["results"] = [result for result in model["results"] if result["metrics"]]
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"the metadata of {card_path} is invalid: {type(error).__name__}: {error}") from error
    card.data["model-index"] = index
    replace_file(card_path, card.save)


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
    dataset_type = record.dataset_type
    if not HUB_ID.fullmatch(dataset_type):
        dataset_type = re.sub(r"[^\w-]+", "-", Path(dataset_type).name, flags=re.ASCII).strip("-") or "dataset"
    return EvalResult(
        task_type=TASK,
        task_name="Density estimation of images",
        dataset_type=dataset_type,
        dataset_name=record.dataset_name,
        # The client merges results that differ only in the name, such as those of the two releases of downsampled
        # ImageNet when both are read from image folders.
        dataset_config=record.dataset_name,
        dataset_split=record.split,
        metric_type="bits_per_dim",
        metric_name="bits per dimension",
        metric_config=f"{record.num_noise_samples} noise sample{'s' if record.num_noise_samples > 1 else ''}",
        metric_value=float(record.bits_per_dim),
        metric_args=arguments,
    )


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
    size, channels, layers = (getattr(config, name) for name in ("image_size", "num_channels", "num_coupling_layers"))
    return f"Images have {size} x {size} pixels and {channels} channels; the flow has {layers} coupling layers."


def _is_hub_id(name: str | None) -> bool:
    return name is not None and name not in LOADERS and bool(HUB_ID.fullmatch(name)) and not Path(name).exists()
