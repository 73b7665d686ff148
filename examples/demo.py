# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Trains a small Jet on crops of real photographs and shows what it learnt about others: `make demo`.

The data path is the one of every training: a folder of images, `datasets`, batches of bytes.
"""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
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
    """Everything the demo can be told."""

    output_dir: str = field(default="demo", metadata={"help": "Folder to write; an earlier demo there is replaced."})
    max_minutes: float = field(default=5.0, metadata={"help": "Bound on the time spent in training."})
    max_steps: int = field(default=900, metadata={"help": "Optimiser steps; fewer where the time allows no more."})
    image_size: int = field(default=32, metadata={"help": "Height and width of the crops, in pixels."})
    patch_size: int = field(default=4, metadata={"help": "Side of a patch, in pixels."})
    num_coupling_layers: int = field(default=12, metadata={"help": "Number of coupling layers."})
    hidden_size: int = field(default=128, metadata={"help": "Width of the ViT in a coupling layer."})
    num_hidden_layers: int = field(default=1, metadata={"help": "Transformer blocks of the ViT in a coupling layer."})
    train_batch_size: int = field(default=16, metadata={"help": "Crops in an optimiser step."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate."})
    num_train_crops: int = field(default=30000, metadata={"help": "Crops of the training photographs."})
    num_eval_crops: int = field(default=512, metadata={"help": "Crops of the held-out photographs."})
    seed: int = field(default=0, metadata={"help": "Seed of crops, weights, order and noise."})


def run_demo(arguments: DemoArguments) -> dict:
    """
    Trains, evaluates and writes everything to `output_dir`.

    Returns:
        The results, as `results.json` holds them.

    Raises:
        FileExistsError: if `output_dir` holds something that is not an earlier demo.
    """
    output_dir = Path(arguments.output_dir)
    with new_folder(output_dir, replaces="results.json") as folder:
        train_crops, eval_crops = make_crops(folder / "photographs", arguments)
        train_pixels, eval_pixels = (read_pixels(crops).numpy() for crops in (train_crops, eval_crops))

        set_seed(arguments.seed)
        model = JetForDensityEstimation(
            JetConfig(
                image_size=arguments.image_size,
                patch_size=arguments.patch_size,
                num_coupling_layers=arguments.num_coupling_layers,
                hidden_size=arguments.hidden_size,
                num_hidden_layers=arguments.num_hidden_layers,
                num_attention_heads=max(1, arguments.hidden_size // 32),
            )
        )
        print(f"A Jet of {model.num_parameters() / 1e6:.1f} M parameters, on {torch.get_num_threads()} CPU cores.")
        before = evaluate(model, eval_crops)
        history, held_out, seconds = train(model, train_crops, eval_crops, arguments)
        after = evaluate(model, eval_crops)

        processor = JetImageProcessor(size=arguments.image_size)
        model.save_pretrained(folder / "model")
        processor.save_pretrained(folder / "model")
        bytes_equal = draw_pictures(folder, model, processor, eval_pixels, history, held_out, arguments.seed)
        rows = {
            "Jet before training": before.bits_per_dim.numpy(),
            "Jet after training": after.bits_per_dim.numpy(),
            "PNG (Pillow)": codec_bits_per_dim(eval_pixels, "png"),
            "WebP lossless (Pillow)": codec_bits_per_dim(eval_pixels, "webp"),
            "histogram of pixel values": histogram_bits_per_dim(train_pixels, eval_pixels),
        }
        table = format_table(rows)
        results = {
            "arguments": asdict(arguments),
            "num_threads": torch.get_num_threads(),
            "num_parameters": model.num_parameters(),
            "steps": len(history),
            "training_seconds": seconds,
            "reconstructions_bytes_equal": bytes_equal,
            "bits_per_dim": {name: summary(bits) for name, bits in rows.items()},
        }
        (folder / "results.md").write_text(table + "\n")
        (folder / "results.json").write_text(strict_json(results, indent=2) + "\n")
    print(f"\n{table}\n\nTrained {len(history)} steps in {seconds:.0f} s.")
    print(f"Reconstructions are {'' if bytes_equal else 'NOT '}equal to the originals, byte for byte.")
    print(f"Wrote {output_dir}/: model/, samples.png, reconstructions.png, learning_curve.png, results.json")
    return results


def make_crops(folder: Path, arguments: DemoArguments):
    """Write the photographs as an image folder, and return crops of both splits as data sets of pixels."""
    source, processor = DataSource(path=str(write_photographs(folder))), JetImageProcessor(size=arguments.image_size)
    return [
        load_pixels(
            source,
            split,
            processor,
            ReadOptions(random_crops_per_image=total // len(SPLITS[split]), seed=arguments.seed),
            keep_in_memory=True,
        ).dataset
        for split, total in (("train", arguments.num_train_crops), ("validation", arguments.num_eval_crops))
    ]


def train(
    model: JetForDensityEstimation, train_crops, eval_crops, arguments: DemoArguments
) -> tuple[list[StepMetrics], list[tuple[int, float]], float]:
    """Trains with a progress bar; gives the steps' metrics, held-out bits per dimension by step, and the seconds."""
    few = eval_crops.select(range(0, len(eval_crops), 4))  # some of each photograph: they come in turn
    sharding = BatchSharding(arguments.train_batch_size)
    start = time.monotonic()
    (batch,) = train_batches(train_crops, sharding, range(1), seed=arguments.seed)
    num_steps = affordable_steps(model, batch, few, arguments)
    trainer = Trainer(model, num_steps, learning_rate=arguments.learning_rate, seed=arguments.seed)
    history: list[StepMetrics] = []
    held_out: list[tuple[int, float]] = []
    with tqdm(total=num_steps, unit="step", desc="training") as bar:
        for batch in train_batches(train_crops, sharding, range(num_steps), seed=arguments.seed):
            metrics = trainer.step([batch])
            history.append(metrics)
            if metrics.step % max(1, num_steps // 10) == 0:
                held_out.append((metrics.step, evaluate(model, few).mean))
            bar.update()
            recent = np.mean([entry.loss for entry in history[-20:]])
            shown = f", held out {held_out[-1][1]:.3f}" if held_out else ""
            bar.set_postfix_str(f"{recent:.3f} bits/dim{shown}")
            if time.monotonic() - start > 60 * arguments.max_minutes:
                break
    seconds = time.monotonic() - start
    if len(history) < num_steps:
        print(f"The machine became slower: stopped after {len(history)} of {num_steps} steps, at the time limit.")
        held_out.append((len(history), evaluate(model, few).mean))
    return history, held_out, seconds


def affordable_steps(model, batch: Batch, few, arguments: DemoArguments) -> int:
    """`max_steps`, or as many as fit `max_minutes` at the speed of a few steps that are thrown away."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trial = Trainer(model, num_training_steps=10**6)
    trial.step([batch])
    start = time.monotonic()
    for _ in range(5):
        trial.step([batch])
    seconds_per_step = (time.monotonic() - start) / 5
    model.load_state_dict(weights)
    start = time.monotonic()
    evaluate(model, few)
    seconds = 60 * arguments.max_minutes - 10 * (time.monotonic() - start) - 8 * seconds_per_step
    return max(1, min(arguments.max_steps, int(0.92 * seconds / seconds_per_step)))


@torch.no_grad()
def draw_pictures(folder: Path, model, processor, eval_pixels, history, held_out, seed: int) -> bool:
    """Writes the three pictures; gives whether the reconstructions equal their originals byte for byte."""
    model.eval()
    chosen = torch.from_numpy(eval_pixels[:: max(1, len(eval_pixels) // 16)][:16])
    originals = [Image.fromarray(pixels) for pixels in chosen.permute(0, 2, 3, 1).numpy()]
    samples, cooler = (sample_images(model, processor, 16, temperature, seed) for temperature in (1.0, 0.7))
    plot_image_rows(
        folder / "samples.png", {"held-out crops": originals, "samples": samples, "samples, temperature 0.7": cooler}
    )
    result = reconstruct(model, scale_bytes(chosen))
    plot_image_rows(
        folder / "reconstructions.png",
        {
            "held-out crops": originals,
            "latents": processor.post_process(result.latents / 3),
            "decoded from the latents": processor.post_process(result.pixel_values),
        },
    )
    plot_learning_curve(folder / "learning_curve.png", history, held_out)
    return result.bytes_equal


def summary(bits: np.ndarray) -> dict[str, float]:
    evaluation = Evaluation(torch.as_tensor(bits, dtype=torch.float64))
    return {"mean": evaluation.mean, "standard_error": evaluation.standard_error}


def format_table(rows: dict[str, np.ndarray]) -> str:
    """A Markdown table of bits per dimension: all held-out crops, and each photograph's."""
    names = SPLITS["validation"]
    header = ["bits per dimension of held-out crops", "all", *names]
    lines = [header, ["---", *["---:"] * (1 + len(names))]]
    for name, bits in rows.items():
        parts = [bits, *np.split(bits, len(names))]
        cells = [f"{summary(part)['mean']:.3f} ± {summary(part)['standard_error']:.3f}" for part in parts]
        lines.append([name, *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
