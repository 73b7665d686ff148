# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""`jet-hf anomaly`."""

import csv
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from ..analysis.anomaly.detector import FILE, AnomalyDetector, Judgment, check_model, pixel_hash
from ..analysis.anomaly.metrics import METRICS, metrics_with_intervals
from ..analysis.anomaly.pictures import plot_heat_maps, plot_histograms
from ..analysis.evaluation import check_writable, describe_data, image_names
from ..arguments import AnomalyArguments
from ..data import DataSource, PixelImages, PixelSplit, label_column_of, load_pixels, open_split, split_to_score
from ..data.scan import name_some
from ..hub import load_config
from ..model.image_processing_jet import JetImageProcessor
from ..model.modeling_jet import JetForDensityEstimation, scale_bytes
from ..utils.files import check_is_free, new_folder, strict_json
from ..utils.tables import markdown_table
from .evaluate import EXPECTED_ERRORS as EXPECTED_ERRORS
from .evaluate import read_options


LEVEL = 0.05  # of p-values, in the report
REPORT, SCORES, HISTOGRAMS, WORST = "report.json", "scores.csv", "histograms.png", "worst.png"


def run(arguments: AnomalyArguments) -> None:
    """Score images, print the report, and write it with tables and pictures to a folder."""
    output = Path(arguments.output)
    sources = {
        name: DataSource.at(path, image_column=arguments.image_column)
        for name in ("images", "reference")
        if (path := getattr(arguments, name)) is not None
    }
    for name, source in sources.items():
        source.check_output(output, "output", name)
    check_outputs(arguments, output)
    check_model(load_config(arguments.model, "model"))
    with new_folder(output, replaces=REPORT) as folder:
        detector, report = write_report(arguments, sources, folder)
    if arguments.save_reference:
        detector.save_pretrained(arguments.model)
    print(strict_json(report, indent=2))
    print(format_report(report), file=sys.stderr)


def check_outputs(arguments: AnomalyArguments, output: Path) -> None:
    """
    Check before the scoring that its results can be written.

    Raises:
        FileExistsError: if the report would replace anything but an earlier report.
        ValueError: if the reference cannot be saved with the model.
    """
    check_is_free(output, replaces=REPORT)
    if output.is_dir():
        others = {file.name for file in output.iterdir()} - {REPORT, SCORES, HISTOGRAMS, WORST}
        if others:
            raise FileExistsError(f"{output} must hold nothing but an earlier report, got {min(others)}.")
    if arguments.save_reference:
        if not Path(arguments.model).is_dir():
            raise ValueError(f"`save_reference` needs a model in a folder, got `model` {arguments.model}.")
        check_writable(Path(arguments.model) / FILE, "save_reference")


def write_report(
    arguments: AnomalyArguments, sources: dict[str, DataSource], folder: Path
) -> tuple[AnomalyDetector, dict[str, Any]]:
    """Score images, write the files of the report to a folder, and return the fitted detector and the report."""
    background = load_background(arguments)
    if arguments.reference is None:
        detector = AnomalyDetector.from_pretrained(arguments.model, background, arguments.batch_size)
    else:
        detector = new_detector(arguments, background)
    score = score_of_worst(arguments, detector)
    for model in filter(None, (detector.model, background)):
        model.to("cuda" if torch.cuda.is_available() else "cpu")
    options = read_options(arguments, detector.model.config, num_classes=None)
    source = sources["images"]
    split = arguments.images_split or ("all" if "all" in source.layout.splits else split_to_score(source))
    pixels = load_pixels(source, split, detector.processor, options)
    is_normal = find_normal(arguments, source, split, pixels)
    report: dict[str, Any] = {"model": arguments.model, "background": arguments.background}
    if "reference" in sources:
        reference_split = arguments.reference_split or default_reference_split(sources["reference"])
        reference = load_pixels(sources["reference"], reference_split, detector.processor, options)
        report["reference"] = describe_data(sources["reference"], reference_split, reference)
        report["num_images_in_reference"] = count_copies(pixels, reference)
        detector.fit(PixelImages(reference.dataset), progress=sys.stderr.isatty())
    judgment = detector.judge(PixelImages(pixels.dataset), progress=sys.stderr.isatty())
    report |= {"images": describe_data(source, split, pixels), "normal_label": arguments.normal_label}
    report |= {"seed": detector.seed, "label": detector.label, "codecs": detector.codecs}
    report |= describe(detector, judgment, is_normal)
    names = image_names(source, pixels)
    write_scores(folder / SCORES, names, judgment, is_normal)
    groups = {"reference": detector.reference_scores}
    if is_normal is None:
        groups["images"] = judgment.scores
    else:
        for title, rows in (("normal images", is_normal), ("anomalies", ~is_normal)):
            groups[title] = {name: values[rows] for name, values in judgment.scores.items()}
    plot_histograms(folder / HISTOGRAMS, groups)
    order = np.argsort(-judgment.scores[score], kind="stable")[: arguments.num_heat_maps]
    draw_heat_maps(folder / WORST, detector, judgment, pixels, names, score, order)
    (folder / REPORT).write_text(strict_json(report, indent=2) + "\n", encoding="utf-8")
    return detector, report


def score_of_worst(arguments: AnomalyArguments, detector: AnomalyDetector) -> str:
    """
    Return the score that orders the heat maps.

    Raises:
        ValueError: for one that is not computed.
    """
    preferred = "complexity_corrected" if "complexity_corrected" in detector.scores else detector.scores[0]
    score = arguments.rank_by or preferred
    if score not in detector.scores:
        raise ValueError(f"`rank_by` must be one of {', '.join(detector.scores)}, which are computed, got {score}.")
    return score


def load_background(arguments: AnomalyArguments) -> JetForDensityEstimation | None:
    """Return the background model, if there is one."""
    if arguments.background is None:
        return None
    load_config(arguments.background, "background")
    return JetForDensityEstimation.from_pretrained(arguments.background).eval()


def new_detector(arguments: AnomalyArguments, background: JetForDensityEstimation | None) -> AnomalyDetector:
    """Return the detector to fit."""
    return AnomalyDetector(
        JetForDensityEstimation.from_pretrained(arguments.model).eval(),
        background,
        JetImageProcessor.from_pretrained(arguments.model),
        arguments.scores,
        arguments.label,
        arguments.batch_size,
        arguments.seed,
    )


def default_reference_split(source: DataSource) -> str:
    """
    Return the split of the reference images.

    Raises:
        ValueError: for data without one. A test split is none, since it may hold anomalies.
    """
    try:
        split = split_to_score(source)
    except ValueError as error:
        raise ValueError(f"`reference_split` must be given: {error}") from error
    if split == "test":
        raise ValueError(
            f"`reference_split` must be given, since {source.where} has no validation split, and its test split may "
            "hold anomalies. The images that the model was trained on look less strange than others."
        )
    return split


def count_copies(pixels: PixelSplit, reference: PixelSplit) -> int:
    """Return how many images are among the reference images, by their pixels."""
    known = set(map(pixel_hash, PixelImages(reference.dataset)))
    return sum(pixel_hash(image) in known for image in PixelImages(pixels.dataset))


def find_normal(arguments: AnomalyArguments, source: DataSource, split: str, pixels: PixelSplit) -> np.ndarray | None:
    """
    Return which images are normal, a boolean array (B,), or `None` without a `normal_label`.

    Raises:
        ValueError: for data or images without labels, and if the label is that of no image, of all or of a single one.
    """
    if arguments.normal_label is None:
        return None
    dataset = open_split(source, split)
    if isinstance(dataset, datasets.IterableDataset):
        raise ValueError("`normal_label` needs images whose labels can be read by index, not a stream.")
    column = arguments.label_column or label_column_of(source, dataset.features)
    if column not in dataset.column_names:
        raise ValueError(f"`label_column` must be one of {', '.join(dataset.column_names)}, got {column!r}.")
    rows = np.arange(len(pixels.dataset)) if pixels.rows is None else pixels.rows
    values, feature = dataset.select_columns([column])[:][column], dataset.features[column]
    if isinstance(feature, datasets.ClassLabel):
        values = [feature.names[value] if value is not None and value >= 0 else None for value in values]
    if missing := [row for row in rows if values[row] in (None, "")]:
        name = image_names(source, pixels)[list(rows).index(missing[0])]
        raise ValueError(
            f"`normal_label` needs a label of every image in the column {column!r}, but {len(missing)} of {len(rows)} "
            f"have none, such as {name}."
        )
    labels = np.array([str(values[row]) for row in rows])
    is_normal = labels == arguments.normal_label
    if min(is_normal.sum(), (~is_normal).sum()) < 2:
        found = sorted(set(labels))
        raise ValueError(
            f"`normal_label` must be the label of at least two images, and at least two must have another one: got "
            f"{arguments.normal_label!r} for {is_normal.sum()} of {len(labels)} images with the labels "
            f"{name_some(found, len(found))}."
        )
    return is_normal


def describe(detector: AnomalyDetector, judgment: Judgment, is_normal: np.ndarray | None) -> dict[str, Any]:
    """Return the results, ready for JSON."""
    reference = detector.reference_scores
    scores: dict[str, dict[str, Any]] = {}
    for name, values in judgment.scores.items():
        scores[name] = {
            "reference_mean": float(reference[name].mean()),
            "mean": float(values.mean()),
            "share_of_p_values_up_to_0.05": float((judgment.p_values[name] <= LEVEL).mean()),
        }
        if is_normal is not None:
            scores[name] |= metrics_with_intervals(values[is_normal], values[~is_normal], detector.seed)
    return {
        "num_reference_images": detector.num_reference_images,
        "num_images": len(values),
        "batch_test": None if judgment.batch is None else judgment.batch._asdict(),
        "scores": scores,
        "versions": {name: version(name) for name in ("scikit-learn", "scipy", "pillow")},
    }


def write_scores(path: Path, names: list[str], judgment: Judgment, is_normal: np.ndarray | None) -> None:
    """Write a CSV file with the name, the scores and the p-values of each image, in full precision."""
    columns: dict[str, Any] = {"file": names}
    if is_normal is not None:
        columns["normal"] = is_normal.astype(int)
    columns |= {name: values.tolist() for name, values in judgment.scores.items()}
    columns |= {f"p_value_{name}": values.tolist() for name, values in judgment.p_values.items()}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def draw_heat_maps(
    path: Path,
    detector: AnomalyDetector,
    judgment: Judgment,
    pixels: PixelSplit,
    names: list[str],
    score: str,
    rows: np.ndarray,
) -> None:
    """Draw heat maps over the images of these rows, with their values of a score."""
    images = PixelImages(pixels.dataset)
    levels = torch.from_numpy(np.stack([images[int(i)] for i in rows]).transpose(0, 3, 1, 2))
    shown = detector.processor.post_process(scale_bytes(levels, detector.model.config.num_levels), dequantized=False)
    titles = [
        f"{Path(names[i]).name[-24:]}\n{judgment.scores[score][i]:.3g}, p {judgment.p_values[score][i]:.2g}"
        for i in rows
    ]
    plot_heat_maps(path, shown, judgment.heat_maps[rows], titles)


def format_report(report: dict[str, Any]) -> str:
    """Return a table of the scores, a line on several images as a batch, and what limits the p-values."""
    scores = report["scores"]
    metrics = [name for name in METRICS if name in next(iter(scores.values()))]
    titles = ["reference", "images", "share p <= 0.05", *(METRICS[name] for name in metrics)]
    lines = [["score (larger is stranger)", *titles]]
    for name, row in scores.items():
        cells = [f"{row['reference_mean']:.3f}", f"{row['mean']:.3f}", f"{row['share_of_p_values_up_to_0.05']:.3f}"]
        cells += ["{value:.3f} ({low:.3f} to {high:.3f})".format(**row[metric]) for metric in metrics]
        lines.append([name, *cells])
    parts, batch = [markdown_table(lines, left=1)], report["batch_test"]
    if batch is not None:
        verdict = "an untypical" if batch["distance"] > batch["threshold"] else "a typical"
        parts.append(
            f"As a batch, the {report['num_images']} images are {verdict} one: their mean is "
            f"{batch['distance']:.3f} bits per dimension from that of the reference, and 99 % of batches of normal "
            f"images are within {batch['threshold']:.3f} (p = {batch['p_value']:.2g})."
        )
    smallest = 1 / (report["num_reference_images"] + 1)
    if smallest > LEVEL:
        parts.append(
            f"With {report['num_reference_images']} reference images, no image has a p-value below {smallest:.2g}: "
            f"{LEVEL} takes at least {round(1 / LEVEL) - 1}."
        )
    if copies := report.get("num_images_in_reference"):
        parts.append(
            f"{copies} of {report['num_images']} images are reference images themselves, which makes their p-values, "
            "and that of the batch, too large."
        )
    return "\n\n".join(parts)
