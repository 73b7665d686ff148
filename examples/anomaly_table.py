# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Compare anomaly scores: the photographs model of `space/` against other images, and digits with one class left out.

    python -m examples.anomaly_table --output_dir anomaly_table

It writes two tables, heat maps and `results.json`. The tables in `docs/anomaly.md` are those of the defaults.
"""

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from PIL import Image, ImageFilter
from scipy.stats import bootstrap
from sklearn.datasets import load_digits
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from tqdm.auto import tqdm

from jet_hf import JetConfig, JetForDensityEstimation, JetImageProcessor
from jet_hf.analysis.anomaly.metrics import metrics_with_intervals
from jet_hf.analysis.anomaly.pictures import plot_heat_maps
from jet_hf.anomaly import AnomalyDetector
from jet_hf.data import BatchSharding, DataSource, PixelImages, ReadOptions, load_pixels, read_pixels, train_batches
from jet_hf.training import Trainer
from jet_hf.utils.files import new_folder, strict_json
from jet_hf.utils.tables import markdown_table

from .demo import read_digits
from .digits import NUM_CLASSES, NUM_LEVELS
from .photographs import SPLITS, write_photographs


ROOT = Path(__file__).parent.parent
SIDE = 32
REDUCTIONS = (1, 2, 4)  # of the photographs that the model was trained on
# Images of scikit-image that are neither in the training nor in the held-out photographs.
OTHERS = {
    "micrographs and a retina": ("immunohistochemistry", "retina"),
    "gray photographs": ("camera", "coins", "moon"),
    "gray textures": ("brick", "grass", "gravel"),
    "pages of text": ("page", "text"),
}
BATCH = 8  # images of the typicality test of a batch
TITLES = {
    "negative_log_likelihood": "likelihood",
    "complexity_corrected": "complexity-corrected",
    "typicality": "typicality",
    "latent_norm": "latent norm",
    "gradient_norm": "gradient norm",
    "likelihood_ratio": "likelihood ratio",
    "largest_patch": "largest patch",
}


def fine_tune(
    model: JetForDensityEstimation, pixels: Dataset, num_steps: int, batch_size: int, seed: int, **settings
) -> JetForDensityEstimation:
    """Train a model in place and return it, in evaluation mode."""
    trainer = Trainer(model, num_steps, seed=seed, **settings)
    for batch in train_batches(pixels, BatchSharding(batch_size), range(num_steps), seed=seed):
        trainer.step([batch])
    return model.eval()


# Photographs


def compare_on_photographs(folder: Path, arguments: argparse.Namespace) -> dict:
    """Return the results of the photographs model, and draw heat maps over images with defects."""
    model = JetForDensityEstimation.from_pretrained(arguments.model).eval()
    processor = JetImageProcessor.from_pretrained(arguments.model)
    photographs = DataSource(path=str(write_photographs(folder / "data" / "photographs", REDUCTIONS)))
    background = train_background(model, photographs, processor, arguments)
    detector = AnomalyDetector(model, background, processor, seed=arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    reference, normal = (crops_of(photographs, "validation", arguments.num_normal, rng, processor) for _ in range(2))
    detector.fit(reference)
    judged = detector.judge(normal)
    results: dict = {"normal crops": {"share of p-values up to 0.05": shares(judged.p_values)}}
    for title, images in tqdm(odd_images(photographs, normal, arguments.num_odd, rng, processor).items()):
        scores = detector.score(images)
        results[title] = {
            name: metrics_with_intervals(judged.scores[name], values, arguments.seed)
            for name, values in scores.items()
        }
        results[title]["p of a batch"] = detector.batch_test(images[:BATCH]).p_value
    contrasts = np.argsort([image.std() for image in normal])
    some = contrasts[len(normal) // 2 :: len(normal) // 8][: 2 * len(DEFECTS)]
    draw_defects(folder / "heat_maps.png", detector, [normal[int(i)] for i in some])
    return results


def train_background(
    model: JetForDensityEstimation,
    photographs: DataSource,
    processor: JetImageProcessor,
    arguments: argparse.Namespace,
) -> JetForDensityEstimation:
    """Return a copy of a model, trained further on mutated crops of its training photographs."""
    options = ReadOptions(random_crops_per_image=150, seed=arguments.seed)
    crops = load_pixels(photographs, "train", processor, options, keep_in_memory=True).dataset
    return fine_tune(
        copy.deepcopy(model),
        crops,
        arguments.background_steps,
        batch_size=16,
        seed=arguments.seed,
        learning_rate=5e-4,
        mutation_rate=arguments.mutation_rate,
    )


def shares(p_values: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the share of p-values up to 0.05 for each score."""
    return {name: float((values <= 0.05).mean()) for name, values in p_values.items()}


def crops_of(
    photographs: DataSource, split: str, count: int, rng: np.random.Generator, processor: JetImageProcessor
) -> list[np.ndarray]:
    """Return random crops of the photographs of a split, uint8 arrays (32, 32, 3)."""
    per_image = -(-count // (len(SPLITS[split]) * len(REDUCTIONS)))
    options = ReadOptions(random_crops_per_image=per_image, seed=int(rng.integers(2**31)))
    crops = PixelImages(load_pixels(photographs, split, processor, options, keep_in_memory=True).dataset)
    return [crops[int(i)] for i in rng.permutation(len(crops))[:count]]


def odd_images(
    photographs: DataSource,
    normal: list[np.ndarray],
    count: int,
    rng: np.random.Generator,
    processor: JetImageProcessor,
) -> dict[str, list[np.ndarray]]:
    """Return sets of images to tell from normal crops, by title."""
    some = normal[:count]
    shape = (count, SIDE, SIDE, 3)
    digits = rng.choice(load_digits().images, count, replace=False)
    enlarge = (Image.fromarray((255 / 16 * digit).astype(np.uint8)).resize((SIDE, SIDE)) for digit in digits)
    sets = {
        "constant colors": list(np.broadcast_to(rng.integers(0, 256, (count, 1, 1, 3), np.uint8), shape)),
        "uniform noise": list(rng.integers(0, 256, shape, np.uint8)),
        "blurred, radius 1": [blur(image, 1) for image in some],
        "blurred, radius 2": [blur(image, 2) for image in some],
        "upscaled digits": [np.asarray(digit.convert("RGB")) for digit in enlarge],
        "upside down": [image[::-1] for image in some],
        "mirrored": [image[:, ::-1] for image in some],
        "rotated by 90 degrees": [np.rot90(image) for image in some],
    }
    sets |= {f"with {title}": [defect(image, rng) for image in some] for title, defect in DEFECTS.items()}
    sets |= {title: other_crops(names, count, rng) for title, names in OTHERS.items()}
    sets["training photographs"] = crops_of(photographs, "train", count, rng, processor)
    return sets


def blur(image: np.ndarray, radius: float) -> np.ndarray:
    """Return an image after a Gaussian blur."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def other_crops(names: tuple[str, ...], count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return random crops of images of scikit-image, which are reduced by 2."""
    from skimage import data

    images = [np.asarray(Image.fromarray(getattr(data, name)()).convert("RGB").reduce(2)) for name in names]
    crops = []
    for i in range(count):
        image = images[i % len(images)]
        y, x = rng.integers(0, np.subtract(image.shape[:2], SIDE - 1))
        crops.append(image[y : y + SIDE, x : x + SIDE])
    return crops


def add_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return an image with a square of 8 x 8 pixels of uniform noise."""
    return paste(image, rng.integers(0, 256, (8, 8, 3), np.uint8), rng)


def add_hole(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return an image with a square of 12 x 12 pixels in its mean color."""
    return paste(image, np.broadcast_to(image.mean((0, 1)).astype(np.uint8), (12, 12, 3)), rng)


def paste(image: np.ndarray, piece: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return an image with a piece at a random position."""
    (y, x), side = rng.integers(0, SIDE - len(piece) + 1, 2), len(piece)
    image = image.copy()
    image[y : y + side, x : x + side] = piece
    return image


DEFECTS = {"a noisy square": add_noise, "a flat square": add_hole}


def draw_defects(path: Path, detector: AnomalyDetector, images: list[np.ndarray]) -> None:
    """Draw heat maps over images with and without a defect."""
    rng, shown, titles = np.random.default_rng(0), [], []
    for i, (title, defect) in enumerate(DEFECTS.items()):
        for image in images[2 * i : 2 * i + 2]:
            shown += [image, defect(image, rng)]
            titles += ["as it is", title]
    plot_heat_maps(path, [Image.fromarray(image) for image in shown], detector.heat_map(shown), titles)


def format_photographs(results: dict) -> str:
    """Return the table of the photographs model."""
    lines = [["images", *TITLES.values(), f"p of {BATCH}"]]
    for title, row in results.items():
        if title == "normal crops":
            cells = [f"{row['share of p-values up to 0.05'][name]:.3f}" for name in TITLES]
            lines.append(["*normal crops, share of p <= 0.05*", *cells, ""])
            continue
        cells = ["{value:.2f} ({low:.2f} to {high:.2f})".format(**row[name]["auroc"]) for name in TITLES]
        lines.append([title, *cells, f"{row['p of a batch']:.4f}"])
    return markdown_table(lines, left=1)


# Digits


def compare_on_digits(folder: Path, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Return the AUROC of each score and baseline for each digit that is left out of the training."""
    data = read_digits(folder / "data" / "digits")
    results: dict[str, list[float]] = {}
    for digit in tqdm(range(NUM_CLASSES), unit="digit"):
        scores = scores_without_digit(digit, data.train, data.held_out, data.processor, arguments)
        for name, (normal, anomalous) in scores.items():
            truth = np.repeat([0, 1], [len(normal), len(anomalous)])
            results.setdefault(name, []).append(float(roc_auc_score(truth, np.concatenate([normal, anomalous]))))
    return results


def scores_without_digit(
    digit: int, train: Dataset, held_out: Dataset, processor: JetImageProcessor, arguments: argparse.Namespace
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the scores of held-out images of the other digits, and of all images of this one."""
    labels, test_labels = np.array(train["label"]), np.array(held_out["label"])
    rows = np.random.default_rng(arguments.seed).permutation(np.flatnonzero(labels != digit))
    fitted, reference = train.select(rows[len(rows) // 5 :]), train.select(rows[: len(rows) // 5])
    parts = [train.select(np.flatnonzero(labels == digit)), held_out.select(np.flatnonzero(test_labels == digit))]
    anomalous = [image for part in parts for image in list_images(part)]
    normal = list_images(held_out.select(np.flatnonzero(test_labels != digit)))
    torch.manual_seed(arguments.seed)
    config = JetConfig(
        image_size=8,
        num_channels=1,
        num_levels=NUM_LEVELS,
        num_coupling_layers=12,
        coupling_kinds=("channels", "channels", "spatial"),
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    fine_tuned = fine_tune(
        JetForDensityEstimation(config),
        fitted.remove_columns("label"),
        arguments.digits_steps,
        batch_size=64,
        seed=arguments.seed,
        learning_rate=2e-3,
    )
    detector = AnomalyDetector(fine_tuned, processor=processor, batch_size=128, seed=arguments.seed)
    detector.fit(list_images(reference))
    found = [detector.score(images) for images in (normal, anomalous)]
    scores = {TITLES[name]: (found[0][name], found[1][name]) for name in detector.scores}
    training, *tests = (
        np.stack(images).reshape(len(images), -1) / 16.0 for images in (list_images(fitted), normal, anomalous)
    )
    for name, estimator in baselines(arguments.seed).items():
        estimator.fit(training)
        scores[name] = tuple(-estimator.score_samples(test) for test in tests)
    return scores


def list_images(pixels: Dataset) -> list[np.ndarray]:
    """Return the images of a dataset of pixels."""
    return list(read_pixels(pixels).permute(0, 2, 3, 1).numpy())


def baselines(seed: int) -> dict:
    """Return scikit-learn's density models and outlier detector, for pixels in [0, 1]."""
    bandwidths = {"bandwidth": np.geomspace(0.03, 1, 12)}
    components = {"n_components": [5, 10, 20]}
    mixture = GaussianMixture(reg_covar=1e-3, random_state=seed)
    return {
        "KDE of pixels": GridSearchCV(KernelDensity(), bandwidths),
        "GMM of pixels": GridSearchCV(mixture, components, cv=3),
        "IsolationForest of pixels": IsolationForest(n_estimators=200, random_state=seed),
    }


def format_digits(results: dict[str, list[float]], seed: int) -> str:
    """Return the table of digits, with the mean over them and its 95 % bootstrap interval."""
    lines = [["score", "mean of all digits", *map(str, range(NUM_CLASSES))]]
    for name, values in results.items():
        ends = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(seed)).confidence_interval
        mean = f"{np.mean(values):.2f} ({ends.low:.2f} to {ends.high:.2f})"
        lines.append([name, mean, *(f"{value:.2f}" for value in values)])
    return markdown_table(lines, left=1)


def write_tables(arguments: argparse.Namespace) -> None:
    """Make both comparisons, and write and print the tables."""
    results, tables = {}, []
    with new_folder(arguments.output_dir, replaces="results.json") as folder:
        if "photographs" in arguments.parts:
            start = time.monotonic()
            results["photographs"] = compare_on_photographs(folder, arguments)
            tables.append(format_photographs(results["photographs"]))
            print(f"photographs took {time.monotonic() - start:.0f} s")
        if "digits" in arguments.parts:
            start = time.monotonic()
            results["digits"] = compare_on_digits(folder, arguments)
            tables.append(format_digits(results["digits"], arguments.seed))
            print(f"digits took {time.monotonic() - start:.0f} s")
        (folder / "tables.md").write_text("\n\n".join(tables) + "\n")
        (folder / "results.json").write_text(strict_json(vars(arguments) | results, indent=2) + "\n")
    print(*tables, sep="\n\n")


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Compare anomaly scores on photographs and on digits.")
    parser.add_argument("--output_dir", default="anomaly_table", help="folder to write; an earlier one is replaced")
    parser.add_argument(
        "--model", default=str(ROOT / "space" / "model"), help="model of photographs of 32 x 32 pixels"
    )
    parser.add_argument("--parts", nargs="+", default=["photographs", "digits"], choices=["photographs", "digits"])
    for name, default, text in (
        ("num_normal", 240, "held-out crops in the reference, and as many to tell from others"),
        ("num_odd", 120, "images of each kind of odd ones"),
        ("background_steps", 150, "optimizer steps of the background model"),
        ("digits_steps", 300, "optimizer steps of each model of digits"),
        ("seed", 0, "seed of crops, weights and noise"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument("--mutation_rate", type=float, default=0.2, help="mutation rate of the background model")
    write_tables(parser.parse_args(argv))


if __name__ == "__main__":
    main()
