# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Model cards, with evaluation results in the Hub's machine-readable form."""

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, RepoCard
from huggingface_hub.repocard_data import eval_results_to_model_index

from ..utils.files import replace_file


TEMPLATE = Path(__file__).parent / "model_card_template.md"
TASK = "unconditional-image-generation"
TAGS = ["jet", "normalizing-flow", "density-estimation", "custom_code"]
# The form of a repository name on the Hub, also in the metadata of a card.
HUB_ID = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*", re.ASCII)
# Builders of `datasets`, which are no data sets of the Hub.
LOADERS = {"arrow", "csv", "imagefolder", "json", "parquet", "webdataset"}


@dataclass(frozen=True)
class EvaluationRecord:
    """
    Bits per dimension of a data set.

    Args:
        dataset_name: Title for people; for downsampled ImageNet it says which of the two incompatible releases.
        dataset_type: Name on the Hub, or the loader of local files, such as "imagefolder".
        split: Split of the data set.
        num_images: Number of images scored.
        bits_per_dim: Mean over the images.
        standard_error: Of that mean; not a finite number where a single image leaves it open.
        num_noise_samples: Draws of the dequantisation noise an image; more than one make the tighter bound.
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
    What a model card says about one model.

    Args:
        dataset_title: Data that the model was trained on.
        dataset_note: What its figures may be compared with; lossy sources.
        training: Rows of the table of how it was trained, hardware included.
        command: Command line of the training.
        evaluations: Scores.
        base_model: Model that was fine-tuned, a name on the Hub or a folder.
        dataset_id: Name of the data set on the Hub.
        has_samples: Whether the folder holds a picture `samples.png`.
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
    Writes `README.md` of a model's folder.

    Args:
        folder: A folder with a saved model.
        facts: What is said.
        model_id: Name of the model on the Hub, for the examples.
    """
    folder = Path(folder)
    evaluations = [_eval_result(record) for record in facts.evaluations if math.isfinite(record.bits_per_dim)]
    base_model = facts.base_model if _is_hub_id(facts.base_model) else None
    metadata = {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": TASK,
        "tags": TAGS,
        "datasets": [facts.dataset_id] if _is_hub_id(facts.dataset_id) else None,
        "base_model": base_model,
        "base_model_relation": "finetune" if base_model else None,
    }
    if evaluations:
        metadata |= {"model_name": model_id, "eval_results": evaluations}
    card = ModelCard.from_template(
        ModelCardData(**metadata),
        template_path=str(TEMPLATE),
        name=model_id.split("/")[-1],
        model_id=model_id,
        dataset_title=facts.dataset_title,
        dataset_note=facts.dataset_note,
        # The path of a folder is no one else's business.
        base_model_title=facts.base_model and (base_model or Path(facts.base_model).name),
        shape=_describe(folder / "config.json"),
        has_samples=facts.has_samples and (folder / "samples.png").is_file(),
        scores=[_score_row(record) for record in facts.evaluations],
        training=[[_cell(key), _cell(value)] for key, value in facts.training.items()],
        command=facts.command,
    )
    replace_file(folder / "README.md", card.save)


def add_evaluation(path: str | os.PathLike, record: EvaluationRecord) -> None:
    """
    Puts a score into the metadata of an existing card, in place of an earlier one of the same data and bound.

    Args:
        path: The card, or the folder that it lies in.
        record: The score.

    Raises:
        ValueError: if there is no card, its metadata cannot be read, or the score is not a finite number.
    """
    path = Path(path)
    card_path = path / "README.md" if path.is_dir() else path
    if not card_path.is_file():
        raise ValueError(f"there is no model card {card_path} to write the score to.")
    if not math.isfinite(record.bits_per_dim):
        raise ValueError(f"`bits_per_dim` has to be a finite number, got {record.bits_per_dim}.")
    try:
        # Not ModelCard, which would set other people's results anew, and mix up those that differ in name alone.
        card = RepoCard.load(card_path)
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
        raise ValueError(f"the metadata of {card_path} cannot be read: {type(error).__name__}: {error}") from error
    card.data["model-index"] = index
    replace_file(card_path, card.save)


def _eval_result(record: EvaluationRecord) -> EvalResult:
    arguments = {"num_images": int(record.num_images), "num_noise_samples": int(record.num_noise_samples)}
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
        # Results that differ in the name alone are one to the client, which then keeps one of the names: the two
        # releases of downsampled ImageNet, say, both read from image folders.
        dataset_config=record.dataset_name,
        dataset_split=record.split,
        metric_type="bits_per_dim",
        metric_name="bits per dimension",
        metric_config=f"{record.num_noise_samples} noise sample{'s'[: record.num_noise_samples > 1]}",
        metric_value=float(record.bits_per_dim),
        metric_args=arguments,
    )


def _key(part: dict) -> tuple:
    """What tells data sets, or metrics, of a model-index apart."""
    return tuple(part.get(name) for name in ("type", "config", "split"))


def _score_row(record: EvaluationRecord) -> list[str]:
    error = f" ± {record.standard_error:.4f}" if math.isfinite(record.standard_error) else ""
    cells = [record.dataset_name, record.split, f"{record.num_images:,}", f"{record.bits_per_dim:.4f}{error}"]
    return [_cell(cell) for cell in [*cells, record.num_noise_samples]]


def _cell(value) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _describe(config_path: Path) -> str | None:
    if not config_path.is_file():
        return None
    config = json.loads(config_path.read_text(encoding="utf-8"))
    size, channels, layers = (config.get(name) for name in ("image_size", "num_channels", "num_coupling_layers"))
    return f"Images have {size} x {size} pixels and {channels} channels; the flow has {layers} coupling layers."


def _is_hub_id(name: str | None) -> bool:
    return bool(name) and name not in LOADERS and HUB_ID.fullmatch(name) is not None and not Path(name).exists()
