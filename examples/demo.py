# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Train a small Jet on crops of photographs, then score, sample and reconstruct held-out photographs: `make demo`.

The photographs take the path of any data set: a folder of images, `datasets`, batches of 8-bit pixels.
"""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from datasets import Dataset
from PIL import Image
from tqdm.auto import tqdm

from jet_hf import JetConfig, JetForDensityEstimation, JetImageProcessor
from jet_hf.analysis.baselines import codec_bits_per_dim, histogram_bits_per_dim
from jet_hf.analysis.evaluation import Evaluation, evaluate
from jet_hf.analysis.sampling import reconstruct, sample_images
from jet_hf.data import Batch, BatchSharding, DataSource, ReadOptions, load_pixels, read_pixels, train_batches
from jet_hf.model.modeling_jet import scale_bytes
from jet_hf.training import StepMetrics, Trainer
from jet_hf.utils.files import new_folder, strict_json

from .photographs import SPLITS, write_photographs
from .plots import plot_image_rows, plot_learning_curve


@dataclass
class DemoArguments:
    """Arguments of the demo; the `help` of each field describes it."""

    output_dir: str = field(default="demo", metadata={"help": "Folder to write; an earlier demo there is replaced."})
    max_minutes: float = field(default=5.0, metadata={"help": "Time limit of the training."})
    max_steps: int = field(default=900, metadata={"help": "Optimizer steps; fewer if the time limit requires it."})
    image_size: int = field(default=32, metadata={"help": "Height and width of the crops, in pixels."})
    patch_size: int = field(default=4, metadata={"help": "Side of a patch, in pixels."})
    num_coupling_layers: int = field(default=12, metadata={"help": "Number of coupling layers."})
    hidden_size: int = field(default=128, metadata={"help": "Width of the ViT in a coupling layer."})
    num_hidden_layers: int = field(default=1, metadata={"help": "Transformer blocks of the ViT in a coupling layer."})
    train_batch_size: int = field(default=16, metadata={"help": "Crops in an optimizer step."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate."})
    num_train_crops: int = field(default=30000, metadata={"help": "Crops of the training photographs."})
    num_eval_crops: int = field(default=512, metadata={"help": "Crops of the held-out photographs."})
    seed: int = field(default=0, metadata={"help": "Seed of crops, weights, order and noise."})


def run_demo(arguments: DemoArguments) -> dict:
    """
    Train a model, evaluate it, and write the model, the pictures and the results to `output_dir`.

    Returns:
        The content of `results.json`.

    Raises:
        FileExistsError: If `output_dir` holds anything but an earlier demo.
        StrictDataclassError: If no model can have the sizes.
    """
    config = JetConfig(
        image_size=arguments.image_size,
        patch_size=arguments.patch_size,
        num_coupling_layers=arguments.num_coupling_layers,
        hidden_size=arguments.hidden_size,
        num_hidden_layers=arguments.num_hidden_layers,
        num_attention_heads=max(1, arguments.hidden_size // 32),
    )
    processor = JetImageProcessor(size=arguments.image_size)
    with new_folder(arguments.output_dir, replaces="results.json") as folder:
        train_crops, eval_crops = make_crops(folder / "photographs", processor, arguments)
        train_pixels, eval_pixels = (read_pixels(crops).numpy() for crops in (train_crops, eval_crops))

        set_seed(arguments.seed)
        model = JetForDensityEstimation(config)
        print(f"Training a Jet of {model.num_parameters() / 1e6:.1f} M parameters on {torch.get_num_threads()} cores.")
        before = evaluate(model, eval_crops)
        start = time.monotonic()
        history, held_out = train(model, train_crops, eval_crops, arguments)
        seconds = time.monotonic() - start
        after = evaluate(model, eval_crops)

        model.save_pretrained(folder / "model")
        processor.save_pretrained(folder / "model")
        plot_learning_curve(folder / "learning_curve.png", history, held_out)
        bytes_equal = draw_pictures(folder, model, processor, eval_pixels, arguments.seed)
        scores = {
            "Jet before training": before.bits_per_dim.numpy(),
            "Jet after training": after.bits_per_dim.numpy(),
            "PNG (Pillow)": codec_bits_per_dim(eval_pixels, "png"),
            "WebP lossless (Pillow)": codec_bits_per_dim(eval_pixels, "webp"),
            "histogram of pixel values": histogram_bits_per_dim(train_pixels, eval_pixels),
        }
        table = format_table(scores)
        results = {
            "arguments": asdict(arguments),
            "num_threads": torch.get_num_threads(),
            "num_parameters": model.num_parameters(),
            "steps": len(history),
            "training_seconds": seconds,
            "reconstructions_bytes_equal": bytes_equal,
            "bits_per_dim": {name: summarize(bits) for name, bits in scores.items()},
        }
        (folder / "results.md").write_text(table + "\n")
        (folder / "results.json").write_text(strict_json(results, indent=2) + "\n")
    print(f"\n{table}\n\nThe training took {len(history)} steps and {seconds:.0f} s.")
    print(f"The reconstructions are {'' if bytes_equal else 'NOT '}equal to the originals, byte for byte.")
    print(f"The model, the pictures and the results are in {arguments.output_dir}/.")
    return results


def make_crops(folder: Path, processor: JetImageProcessor, arguments: DemoArguments) -> list[Dataset]:
    """Write the photographs to an image folder, and return data sets of random crops for training and validation."""
    source = DataSource(path=str(write_photographs(folder)))
    return [
        load_pixels(
            source,
            split,
            processor,
            ReadOptions(random_crops_per_image=num_crops // len(SPLITS[split]), seed=arguments.seed),
            keep_in_memory=True,
        ).dataset
        for split, num_crops in (("train", arguments.num_train_crops), ("validation", arguments.num_eval_crops))
    ]


def train(
    model: JetForDensityEstimation, train_crops: Dataset, eval_crops: Dataset, arguments: DemoArguments
) -> tuple[list[StepMetrics], list[tuple[int, float]]]:
    """
    Train a model with a progress bar, for at most `max_minutes`.

    Returns:
        The metrics of each step, and pairs of a step and the bits per dimension of held-out crops after it.
    """
    start = time.monotonic()
    few_crops = eval_crops.select(range(0, len(eval_crops), 4))  # a fourth of each photograph's crops
    sharding = BatchSharding(arguments.train_batch_size)
    (batch,) = train_batches(train_crops, sharding, range(1), seed=arguments.seed)
    num_steps = affordable_steps(model, batch, few_crops, arguments)
    trainer = Trainer(model, num_steps, learning_rate=arguments.learning_rate, seed=arguments.seed)
    history: list[StepMetrics] = []
    held_out: list[tuple[int, float]] = []
    with tqdm(total=num_steps, unit="step", desc="training") as bar:
        for batch in train_batches(train_crops, sharding, range(num_steps), seed=arguments.seed):
            history.append(trainer.step([batch]))
            if len(history) % max(1, num_steps // 10) == 0:
                held_out.append((len(history), evaluate(model, few_crops).mean))
            recent_loss = np.mean([metrics.loss for metrics in history[-20:]])
            held_out_loss = f", held out {held_out[-1][1]:.3f}" if held_out else ""
            bar.set_postfix_str(f"{recent_loss:.3f} bits/dim{held_out_loss}", refresh=False)
            bar.update()
            if time.monotonic() - start > 60 * arguments.max_minutes:
                break
    if len(history) < num_steps:
        print(f"The time limit stopped the training after {len(history)} of {num_steps} steps.")
        held_out.append((len(history), evaluate(model, few_crops).mean))
    return history, held_out


def affordable_steps(
    model: JetForDensityEstimation, batch: Batch, few_crops: Dataset, arguments: DemoArguments
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
    evaluate(model, few_crops)
    seconds_per_evaluation = time.monotonic() - start
    # Ten evaluations of held-out crops, and the trial; 8 % are kept in reserve.
    seconds = 60 * arguments.max_minutes - 10 * seconds_per_evaluation - 8 * seconds_per_step
    return max(1, min(arguments.max_steps, int(0.92 * seconds / seconds_per_step)))


@torch.no_grad()
def draw_pictures(
    folder: Path, model: JetForDensityEstimation, processor: JetImageProcessor, eval_pixels: np.ndarray, seed: int
) -> bool:
    """Draw samples and reconstructions; return whether the reconstructions equal their originals byte for byte."""
    model.eval()
    chosen = torch.from_numpy(eval_pixels[:: max(1, len(eval_pixels) // 16)][:16])
    originals = [Image.fromarray(pixels) for pixels in chosen.permute(0, 2, 3, 1).numpy()]
    plot_image_rows(
        folder / "samples.png",
        {
            "held-out crops": originals,
            "samples": sample_images(model, processor, 16, temperature=1.0, seed=seed),
            "samples, temperature 0.7": sample_images(model, processor, 16, temperature=0.7, seed=seed),
        },
    )
    reconstruction = reconstruct(model, scale_bytes(chosen))
    plot_image_rows(
        folder / "reconstructions.png",
        {
            "held-out crops": originals,
            "latents": processor.post_process(reconstruction.latents / 3),  # three standard deviations fill the range
            "decoded from the latents": processor.post_process(reconstruction.pixel_values),
        },
    )
    return reconstruction.bytes_equal


def summarize(bits: np.ndarray) -> dict[str, float]:
    """Return the mean and the standard error of the bits per dimension of images."""
    evaluation = Evaluation(torch.as_tensor(bits, dtype=torch.float64))
    return {"mean": evaluation.mean, "standard_error": evaluation.standard_error}


def format_table(scores: dict[str, np.ndarray]) -> str:
    """Format bits per dimension, of all held-out crops and of each photograph, as an aligned Markdown table."""
    photographs = SPLITS["validation"]
    lines = [
        ["bits per dimension of held-out crops", "all", *photographs],
        ["---", "---:", *["---:"] * len(photographs)],
    ]
    for name, bits in scores.items():
        summaries = map(summarize, [bits, *np.split(bits, len(photographs))])
        lines.append([name, *(f"{part['mean']:.3f} ± {part['standard_error']:.3f}" for part in summaries)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
