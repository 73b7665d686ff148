# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Train three small Jets, then score, sample and reconstruct images that they have never seen: `make demo`.

- Digits with labels and Gaussian noise, for samples by class.
- Crops of photographs with uniform dequantization, for bits per dimension.
- Crops of photographs with Gaussian noise, smaller patches and a CNN, for samples without seams between patches.

All images take the path of any data set: a folder of images, `datasets`, batches of gray levels.
"""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from datasets import Dataset
from PIL import Image
from tqdm.auto import tqdm

from jet_hf import JetConfig, JetForDensityEstimation, JetImageProcessor
from jet_hf.analysis.baselines import codec_bits_per_dim, histogram_bits_per_dim
from jet_hf.analysis.evaluation import Evaluation, evaluate, score_images
from jet_hf.analysis.sample_quality import SampleOptions, describe_samples, evaluate_samples
from jet_hf.analysis.sampling import reconstruct, sample_images
from jet_hf.data import Batch, BatchSharding, DataSource, ReadOptions, load_pixels, read_pixels, train_batches
from jet_hf.hub import figure_table
from jet_hf.model.modeling_jet import scale_bytes
from jet_hf.training import StepMetrics, Trainer
from jet_hf.utils.files import new_folder, strict_json
from jet_hf.utils.tables import markdown_table

from .digits import NUM_CLASSES, NUM_LEVELS, write_digits
from .photographs import SPLITS, write_photographs
from .plots import plot_image_rows, plot_learning_curve


# In the order of training. The time limit is divided by these shares.
TIME_SHARES = {"digits": 0.17, "photographs": 0.68, "noisy_photographs": 0.15}
BATCH_SIZES = {"digits": 64, "photographs": 16, "noisy_photographs": 16}
COLUMNS = NUM_CLASSES  # of the grids of images
PHOTOGRAPH_FIGURES = ["nearest_neighbor_accuracy", "seam_strength"]


@dataclass
class DemoArguments:
    """Arguments of the demo; the `help` of each field describes it."""

    output_dir: str = field(default="demo", metadata={"help": "Folder to write; an earlier demo there is replaced."})
    max_minutes: float = field(default=6.0, metadata={"help": "Time limit of the three trainings together."})
    digits_steps: int = field(default=550, metadata={"help": "Steps on digits; fewer if the time limit requires it."})
    photographs_steps: int = field(default=900, metadata={"help": "Steps on photographs, for bits per dimension."})
    noisy_photographs_steps: int = field(default=180, metadata={"help": "Steps on photographs with noise."})
    image_size: int = field(default=32, metadata={"help": "Height and width of the crops of photographs, in pixels."})
    num_coupling_layers: int = field(default=12, metadata={"help": "Number of coupling layers."})
    hidden_size: int = field(
        default=128, metadata={"help": "Width of the conditioners for photographs; half of it for digits."}
    )
    num_train_crops: int = field(default=30000, metadata={"help": "Crops of the training photographs."})
    num_eval_crops: int = field(default=512, metadata={"help": "Crops of the held-out photographs."})
    num_samples: int = field(default=1000, metadata={"help": "Samples of digits to compute figures of."})
    seed: int = field(default=0, metadata={"help": "Seed of crops, weights, order and noise."})


@dataclass(frozen=True)
class TrainingData:
    """Images of a task, as pixels from [`load_pixels`], and the image processor that reads them."""

    processor: JetImageProcessor
    train: Dataset
    held_out: Dataset


@dataclass(frozen=True)
class TrainingSettings:
    """Length, time limit, step and noise of a training."""

    max_steps: int
    max_minutes: float
    batch_size: int
    seed: int
    learning_rate: float = 2e-3
    noise_curriculum: float = 0.0
    noise_curriculum_ratio: float = 1.0


@dataclass(frozen=True)
class TrainingHistory:
    """Metrics of each step, pairs of a step and the loss of held-out images after it, and the duration."""

    steps: list[StepMetrics]
    held_out: list[tuple[int, float]]
    seconds: float


def model_configs(arguments: DemoArguments) -> dict[str, JetConfig]:
    """
    Return the configuration of each model.

    Raises:
        StrictDataclassError: if no model can have the sizes.
    """
    photographs = {
        "image_size": arguments.image_size,
        "num_coupling_layers": arguments.num_coupling_layers,
        "hidden_size": arguments.hidden_size,
        "num_hidden_layers": 1,
    }
    digits = {"image_size": 8, "num_channels": 1, "num_classes": NUM_CLASSES, "num_levels": NUM_LEVELS}
    digits |= {"hidden_size": arguments.hidden_size // 2, "num_attention_heads": 2}
    # More spatial couplings than in the paper bind patches to each other sooner.
    kinds = ("channels", "channels", "spatial")
    return {
        "digits": JetConfig(**photographs | digits, coupling_kinds=kinds, noise_std=0.2),
        "photographs": JetConfig(**photographs, num_attention_heads=max(1, arguments.hidden_size // 32)),
        "noisy_photographs": JetConfig(
            **photographs, patch_size=2, coupling_kinds=kinds, backbone="cnn", num_groups=8, noise_std=0.1
        ),
    }


def run_demo(arguments: DemoArguments) -> dict:
    """
    Train the models, evaluate them, and write the models, the pictures and the results to `output_dir`.

    Returns:
        The content of `results.json`.

    Raises:
        FileExistsError: if `output_dir` holds anything but an earlier demo.
        StrictDataclassError: if no model can have the sizes.
    """
    configs = model_configs(arguments)
    with new_folder(arguments.output_dir, replaces="results.json") as folder:
        digits = read_digits(folder / "data" / "digits")
        crops = read_crops(folder / "data" / "photographs", arguments)
        data = {"digits": digits, "photographs": crops, "noisy_photographs": crops}
        models, histories = {}, {}
        for name, config in configs.items():
            settings = TrainingSettings(
                max_steps=getattr(arguments, f"{name}_steps"),
                max_minutes=TIME_SHARES[name] * arguments.max_minutes,
                batch_size=BATCH_SIZES[name],
                seed=arguments.seed,
            )
            set_seed(arguments.seed)
            models[name] = JetForDensityEstimation(config)
            if name == "photographs":
                before = evaluate(models[name], crops.held_out)
            histories[name] = train(name, models[name], data[name], settings)
            models[name].eval().save_pretrained(folder / "models" / name)
            data[name].processor.save_pretrained(folder / "models" / name)
        plot_learning_curve(
            folder / "learning_curve.png", histories["photographs"].steps, histories["photographs"].held_out
        )
        draw_samples(folder / "samples.png", models, data, arguments.seed)
        bytes_equal = draw_reconstructions(folder / "reconstructions.png", models["photographs"], crops)
        scores = {"Jet before training": before.bits_per_dim.numpy()}
        scores |= score_photographs(models["photographs"], crops)
        figures = {
            "digits": figures_of_samples(models["digits"], digits, arguments.num_samples, arguments.seed),
            "noisy_photographs": figures_of_samples(
                models["noisy_photographs"], crops, arguments.num_eval_crops, arguments.seed, PHOTOGRAPH_FIGURES
            ),
        }
        results = {
            "arguments": asdict(arguments),
            "num_threads": torch.get_num_threads(),
            "num_parameters": {name: model.num_parameters() for name, model in models.items()},
            "steps": {name: len(history.steps) for name, history in histories.items()},
            "training_seconds": {name: history.seconds for name, history in histories.items()},
            "reconstructions_bytes_equal": bytes_equal,
            "bits_per_dim": {name: summarize(bits) for name, bits in scores.items()},
            "figures": figures,
        }
        report = "\n\n".join(
            [
                "Digits: samples and digits of the training data, compared with held-out digits",
                figure_table(figures["digits"]),
                "Photographs, with noise: samples and crops of the training photographs, compared with held-out crops",
                figure_table(figures["noisy_photographs"]),
                format_table(scores),
            ]
        )
        (folder / "results.md").write_text(report + "\n")
        (folder / "results.json").write_text(strict_json(results, indent=2) + "\n")
    print(f"\n{report}\n\nThe trainings took {sum(history.seconds for history in histories.values()):.0f} s.")
    print(f"The reconstructions are {'' if bytes_equal else 'NOT '}equal to the originals, byte for byte.")
    print(f"The models, the pictures and the results are in {arguments.output_dir}/.")
    return results


def read_digits(folder: Path) -> TrainingData:
    """Write the digits to an image folder, and read them with their classes."""
    source = DataSource(path=str(write_digits(folder)))
    processor = JetImageProcessor(size=8, num_channels=1, num_levels=NUM_LEVELS)
    options = ReadOptions(num_classes=NUM_CLASSES)
    splits = [load_pixels(source, split, processor, options, keep_in_memory=True) for split in ("train", "test")]
    return TrainingData(processor, *(split.dataset for split in splits))


def read_crops(folder: Path, arguments: DemoArguments) -> TrainingData:
    """Write the photographs to an image folder, and read random crops of them."""
    source = DataSource(path=str(write_photographs(folder)))
    processor = JetImageProcessor(size=arguments.image_size)
    parts = []
    for split, num_crops in (("train", arguments.num_train_crops), ("validation", arguments.num_eval_crops)):
        options = ReadOptions(random_crops_per_image=num_crops // len(SPLITS[split]), seed=arguments.seed)
        parts.append(load_pixels(source, split, processor, options, keep_in_memory=True).dataset)
    return TrainingData(processor, *parts)


def train(
    name: str, model: JetForDensityEstimation, data: TrainingData, settings: TrainingSettings
) -> TrainingHistory:
    """Train a model with a progress bar, for at most `max_minutes`."""
    start = time.monotonic()
    few_images = data.held_out.select(range(0, len(data.held_out), 4))  # a fourth of each photograph or class
    sharding = BatchSharding(settings.batch_size)
    (batch,) = train_batches(data.train, sharding, range(1), seed=settings.seed)
    num_steps = affordable_steps(model, batch, few_images, settings)
    trainer = Trainer(
        model,
        num_steps,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
        noise_curriculum=settings.noise_curriculum,
        noise_curriculum_ratio=settings.noise_curriculum_ratio,
    )
    steps: list[StepMetrics] = []
    held_out: list[tuple[int, float]] = []
    with tqdm(total=num_steps, unit="step", desc=name) as bar:
        for batch in train_batches(data.train, sharding, range(num_steps), seed=settings.seed):
            steps.append(trainer.step([batch]))
            if len(steps) % max(1, num_steps // 10) == 0:
                held_out.append((len(steps), score_images(model, few_images).mean().item()))
            unit = "bits/dim" if model.config.noise_std is None else "nats/dim"
            recent_loss = np.mean([metrics.loss for metrics in steps[-20:]])
            held_out_loss = f", held out {held_out[-1][1]:.3f}" if held_out else ""
            bar.set_postfix_str(f"{recent_loss:.3f} {unit}{held_out_loss}", refresh=False)
            bar.update()
            if time.monotonic() - start > 60 * settings.max_minutes:
                break
    if len(steps) < num_steps:
        print(f"The time limit stopped the training on {name} after {len(steps)} of {num_steps} steps.")
        held_out.append((len(steps), score_images(model, few_images).mean().item()))
    return TrainingHistory(steps, held_out, time.monotonic() - start)


def affordable_steps(
    model: JetForDensityEstimation, batch: Batch, few_images: Dataset, settings: TrainingSettings
) -> int:
    """Return `max_steps`, or the number of steps that fit in `max_minutes`, estimated by five trial steps."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trial = Trainer(model, num_training_steps=10**6)
    trial.step([batch])
    start = time.monotonic()
    for _ in range(5):
        trial.step([batch])
    seconds_per_step = (time.monotonic() - start) / 5
    model.load_state_dict(weights)
    start = time.monotonic()
    score_images(model, few_images)
    seconds_per_evaluation = time.monotonic() - start
    # Ten evaluations of held-out images, and the trial; 8 % are kept in reserve.
    seconds = 60 * settings.max_minutes - 10 * seconds_per_evaluation - 8 * seconds_per_step
    return max(1, min(settings.max_steps, int(0.92 * seconds / seconds_per_step)))


def draw_samples(
    path: Path, models: dict[str, JetForDensityEstimation], data: dict[str, TrainingData], seed: int
) -> None:
    """Draw samples of digits and of photographs, each below as many held-out images."""
    labels = np.asarray(data["digits"].held_out["label"])
    first_of_class = np.array([np.argmax(labels == digit) for digit in range(NUM_CLASSES)])
    some_crops = np.linspace(0, len(data["photographs"].held_out) - 1, COLUMNS, dtype=int)
    samples = {
        name: sample_images(models[name], data[name].processor, number, seed=seed)
        for name, number in (("digits", 3 * COLUMNS), ("noisy_photographs", 2 * COLUMNS))
    }
    rows = {
        "held-out digits": to_images(data["digits"], first_of_class),
        "samples, by class": samples["digits"],
        "crops of held-out photographs": to_images(data["photographs"], some_crops),
        "samples": samples["noisy_photographs"],
    }
    plot_image_rows(path, rows, COLUMNS)


def to_images(data: TrainingData, indices: np.ndarray) -> list[Image.Image]:
    """Return held-out images as a person sees them."""
    pixel_values = scale_bytes(read_pixels(data.held_out.select(indices)), data.processor.num_levels)
    return data.processor.post_process(pixel_values, dequantized=False)


@torch.no_grad()
def draw_reconstructions(path: Path, model: JetForDensityEstimation, crops: TrainingData) -> bool:
    """Draw reconstructions of held-out crops; return whether they equal their originals byte for byte."""
    indices = np.linspace(0, len(crops.held_out) - 1, COLUMNS, dtype=int)
    reconstruction = reconstruct(model, scale_bytes(read_pixels(crops.held_out.select(indices))))
    plot_image_rows(
        path,
        {
            "held-out crops": to_images(crops, indices),
            # Three standard deviations fill the range.
            "latents": crops.processor.post_process(reconstruction.latents / 3),
            "decoded from the latents": crops.processor.post_process(reconstruction.pixel_values),
        },
        COLUMNS,
    )
    return reconstruction.bytes_equal


def score_photographs(model: JetForDensityEstimation, crops: TrainingData) -> dict[str, np.ndarray]:
    """Return the bits per dimension of the held-out crops under the model, two codecs and a histogram."""
    train_pixels, held_out_pixels = (read_pixels(part).numpy() for part in (crops.train, crops.held_out))
    return {
        "Jet after training": evaluate(model, crops.held_out).bits_per_dim.numpy(),
        "PNG (Pillow)": codec_bits_per_dim(held_out_pixels, "png"),
        "WebP lossless (Pillow)": codec_bits_per_dim(held_out_pixels, "webp"),
        "histogram of pixel values": histogram_bits_per_dim(train_pixels, held_out_pixels),
    }


def figures_of_samples(
    model: JetForDensityEstimation,
    data: TrainingData,
    num_samples: int,
    seed: int,
    figures: list[str] | None = None,
    **sampling: Any,
) -> dict[str, dict[str, float | None]]:
    """Return figures of samples beside those of real images of the training data, by default all."""
    options = SampleOptions(num_samples, figures=figures, batch_size=256, seed=seed, sampling=sampling)
    report = evaluate_samples(model, data.processor, data.held_out, data.train, options)
    assert report is not None
    return describe_samples(report)


def summarize(bits: np.ndarray) -> dict[str, float]:
    """Return the mean and the standard error of the bits per dimension of images."""
    evaluation = Evaluation(torch.as_tensor(bits, dtype=torch.float64))
    return {"mean": evaluation.mean, "standard_error": evaluation.standard_error}


def format_table(scores: dict[str, np.ndarray]) -> str:
    """Format bits per dimension, of all held-out crops and of each photograph, as a Markdown table."""
    photographs = SPLITS["validation"]
    lines = [["bits per dimension of held-out crops", "all", *photographs]]
    for name, bits in scores.items():
        summaries = map(summarize, [bits, *np.split(bits, len(photographs))])
        lines.append([name, *(f"{part['mean']:.3f} ± {part['standard_error']:.3f}" for part in summaries)])
    return markdown_table(lines, left=1)
