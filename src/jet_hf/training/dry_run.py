# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""`--dry_run`: what a run will be and cost, from its arguments and a few seconds of measuring."""

import time

import psutil
import torch
from accelerate import Accelerator

from ..analysis.cost import CostEstimate, estimate_cost, format_estimate
from ..data import BatchSharding, train_batches
from ..data.releases import RELEASES
from ..model.configuration_jet import JetConfig
from .arguments import TrainArguments
from .setup import RunData, count_steps, load_data, make_accelerator, make_model, make_processor
from .trainer import Batch, Trainer


# A step of so many takes a CPU some seconds.
MEASURABLE_FLOPS = 5e11


def describe(arguments: TrainArguments) -> str:
    """
    Sizes, steps, FLOPs, memory and time of a run; nothing is written.

    Raises:
        ValueError: for arguments or data that do not fit, as the run itself would.
    """
    accelerator = make_accelerator(arguments)
    if arguments.model_name_or_path:
        config = JetConfig.from_pretrained(arguments.model_name_or_path)
    else:
        config = JetConfig(**arguments.config_fields())
    shares = BatchSharding(
        arguments.train_batch_size, arguments.gradient_accumulation_steps, 0, accelerator.num_processes
    )
    lines, data = [], None
    num_images = release_images(arguments)
    try:
        data = load_data(arguments, make_processor(config, arguments), accelerator)
        num_images = data.num_train_images
    except (ValueError, OSError) as error:
        if num_images is None:
            raise
        lines.append(f"The data cannot be read here ({' '.join(str(error).split())}); counted as the release has it.")
    num_steps = count_steps(arguments, num_images)
    estimate = estimate_cost(
        config,
        batch_size=arguments.train_batch_size,
        micro_batch_size=shares.size,
        num_steps=num_steps,
        mixed_precision=accelerator.mixed_precision,
        gradient_checkpointing=arguments.gradient_checkpointing,
        use_ema=arguments.use_ema,
        num_shards=accelerator.num_processes if accelerator.is_fsdp2 else 1,
    )
    lines += [
        f"{num_images or 'streamed'} training images, {num_steps} steps of {arguments.train_batch_size} images: "
        f"{accelerator.num_processes} process(es) x {arguments.gradient_accumulation_steps} x {shares.size}.",
        format_estimate(estimate),
        *measure(arguments, estimate, data, accelerator),
    ]
    return "\n".join(lines)


def release_images(arguments: TrainArguments) -> int | None:
    """Training images of the release that the arguments name, if its number is known."""
    release = RELEASES.get(arguments.dataset_release)
    if release is None or release.num_train_images is None or arguments.train_split != "train":
        return None
    return min(release.num_train_images, arguments.max_train_images or release.num_train_images)


def measure(
    arguments: TrainArguments,
    estimate: CostEstimate,
    data: RunData | None,
    accelerator: Accelerator,
) -> list[str]:
    """Images a second of the loader and of a training step on this machine, and the run's time at that."""
    lines = []
    if data is not None and data.train is not None:
        lines.append(f"loader: {loader_speed(arguments, data):.4g} images/s in one process (measured).")
    available = psutil.virtual_memory().available
    if accelerator.device.type == "cuda":
        available = torch.cuda.mem_get_info()[0]
    num_images = min(8, int(MEASURABLE_FLOPS // estimate.flops_per_image))
    if accelerator.device.type == "cuda":
        num_images = max(1, num_images)
    if num_images == 0:
        return [*lines, "step: not measured, one image would take a CPU minutes."]
    needed = estimate.total_bytes - estimate.activation_bytes * (1 - num_images / estimate.micro_batch_size)
    if needed > 0.9 * available:
        return [*lines, f"step: not measured, it needs {needed / 2**30:.1f} GiB and {available / 2**30:.1f} are free."]
    speed = step_speed(arguments, num_images, accelerator)
    hours = estimate.num_steps * arguments.train_batch_size / speed / accelerator.num_processes / 3600
    lines.append(
        f"step: {speed:.4g} images/s on one {accelerator.device.type} (measured, {num_images} images at a time): "
        f"{hours:.3g} hours with {accelerator.num_processes} of them."
    )
    return lines


def loader_speed(arguments: TrainArguments, data: RunData, seconds: float = 2.0) -> float:
    """Images a second that the loader delivers when nobody else works."""
    size = max(1, arguments.train_batch_size // arguments.gradient_accumulation_steps)
    loader = train_batches(
        data.train.dataset, BatchSharding(size), range(10**6), num_workers=arguments.dataloader_num_workers
    )
    batches = iter(loader)
    next(batches)
    count, start = 0, time.monotonic()
    while time.monotonic() - start < seconds:
        count += len(next(batches).pixels)
    return count / (time.monotonic() - start)


def step_speed(arguments: TrainArguments, num_images: int, accelerator: Accelerator) -> float:
    """Images a second of a training step of `num_images` in this process, the first step left out."""
    model = make_model(arguments)
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    config = model.config
    pixels = torch.randint(256, (num_images, config.num_channels, config.image_size, config.image_size)).to(
        torch.uint8
    )
    labels = None if config.num_classes is None else torch.zeros(num_images, dtype=torch.int64)
    batch = Batch(pixels, torch.arange(num_images), labels)
    accelerator.gradient_accumulation_steps = 1
    trainer = Trainer(model, num_training_steps=100, accelerator=accelerator)
    trainer.step([batch])
    start = time.monotonic()
    trainer.step([batch])  # reads its loss, so all of it is done
    return num_images / (time.monotonic() - start)
