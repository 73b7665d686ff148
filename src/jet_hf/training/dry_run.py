# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The size and cost of a run, from its arguments: `--dry_run`, and the refusal of runs that do not fit the memory."""

import os
import time

import psutil
import torch
from accelerate import Accelerator

from ..analysis.cost import (
    FLOAT32_BYTES,
    CostEstimate,
    count_parameters,
    estimate_cost,
    format_estimate,
    forward_flops,
)
from ..arguments import TrainArguments
from ..data import Batch, BatchSharding, PixelSplit, train_batches
from ..data.releases import RELEASES
from ..model.configuration_jet import JetConfig, level_dtype
from ..utils.xla import is_xla, memory_info
from .fine_tuning import adapt_model, find_config, make_model
from .launcher import Launcher
from .setup import (
    count_steps,
    enable_gradient_checkpointing,
    find_data,
    load_data,
    make_accelerator,
    make_processor,
)
from .trainer import Trainer


# A CPU takes some seconds for a step of this many FLOPs.
MEASURABLE_FLOPS = 5e11


def describe(arguments: TrainArguments, launcher: Launcher | None) -> str:
    """
    Return the sizes, steps, FLOPs, memory and time of a run as text, and write nothing.

    Raises:
        ValueError: for arguments or data that the run itself would refuse.
    """
    accelerator = make_accelerator(arguments, launcher)
    config = find_config(arguments)
    lines, pixels = [], None
    num_images = release_images(arguments)
    try:
        source = find_data(arguments, accelerator)
        data = load_data(arguments, source, make_processor(config, arguments), accelerator)
        pixels, num_images = data.train, data.num_train_images
    except (ValueError, OSError) as error:
        if num_images is None:
            raise
        lines.append(
            f"The data cannot be read here ({' '.join(str(error).split())}): the image count is that of the release."
        )
    estimate = estimate_run(arguments, config, accelerator, count_steps(arguments, num_images))
    lines += [
        f"{num_images or 'streamed'} training images, {estimate.num_steps} steps of {arguments.train_batch_size} "
        f"images: {accelerator.num_processes} process(es) x {accelerator.gradient_accumulation_steps} x "
        f"{estimate.micro_batch_size}.",
        format_estimate(estimate),
    ]
    if pixels is not None:
        lines.append(f"loader: {loader_throughput(arguments, pixels):.4g} images/s in one process (measured).")
    return "\n".join([*lines, describe_step(arguments, estimate, accelerator)])


def estimate_run(
    arguments: TrainArguments, config: JetConfig, accelerator: Accelerator, num_steps: int
) -> CostEstimate:
    """Estimate the cost of a run of a number of optimizer steps."""
    num_processes = accelerator.num_processes
    sharding = BatchSharding(arguments.train_batch_size, accelerator.gradient_accumulation_steps, 0, num_processes)
    return estimate_cost(
        config,
        batch_size=arguments.train_batch_size,
        micro_batch_size=sharding.size,
        num_steps=num_steps,
        mixed_precision=accelerator.mixed_precision,
        gradient_checkpointing=arguments.gradient_checkpointing,
        use_ema=arguments.use_ema,
        num_shards=num_processes if accelerator.is_fsdp2 else 1,
    )


def check_memory(arguments: TrainArguments, config: JetConfig, accelerator: Accelerator) -> None:
    """
    Check that the tensors of a training step fit into the memory of the device.

    Raises:
        ValueError: if they do not fit; the message names the arguments to change.
    """
    available = device_memory(accelerator)
    num_micro_batches = accelerator.gradient_accumulation_steps
    micro_batch_size = arguments.train_batch_size // num_micro_batches // accelerator.num_processes
    # The estimate takes a second, for which a run that fits by far need not wait.
    if available is None or most_memory(config, micro_batch_size) <= available:
        return
    estimate = estimate_run(arguments, config, accelerator, num_steps=1)
    needed = least_memory(estimate)
    if needed <= available:
        return
    device, activations = accelerator.device.type, estimate.memory["activation"] / 2**30
    advice = "choose a smaller model (`num_coupling_layers`, `hidden_size`, `num_hidden_layers`, `image_size`)"
    if estimate.total_bytes - estimate.memory["activation"] < available:
        advice = (
            f"lower `train_batch_size` ({arguments.train_batch_size}), raise `gradient_accumulation_steps` "
            f"({num_micro_batches}), set `gradient_checkpointing` true, or {advice}"
        )
    raise ValueError(
        f"a training step needs {needed / 2**30:,.1f} GiB in each process, {activations:,.1f} of them for "
        f"{estimate.micro_batch_size} images at a time, but the {device} has {available / 2**30:,.1f} GiB: {advice}; "
        "`dry_run` shows the parts."
    )


def least_memory(estimate: CostEstimate) -> int:
    """
    Return the bytes without which a process cannot take a step.

    The backward pass replaces activations by gradients, so that a step may need the larger of the two instead of their
    sum. The libraries of a process and the fragmentation of its allocator come on top.
    """
    return estimate.total_bytes - min(estimate.memory["gradient"], estimate.memory["activation"])


def most_memory(config: JetConfig, micro_batch_size: int) -> int:
    """
    Return a bound in bytes on the tensors of a training step, generous but quickly computed.

    A pass keeps 2 to 40 bytes for each operation divided by the width, from deep conditioners to empty ones.
    """
    activations = micro_batch_size * forward_flops(config) * 64 // config.hidden_size
    return 5 * FLOAT32_BYTES * count_parameters(config) + activations


def device_memory(accelerator: Accelerator) -> int | None:
    """Return the memory that one process can use: that of a GPU or TPU, or its share of a CPU's; or `None`."""
    if accelerator.device.type == "cuda":
        return torch.cuda.get_device_properties(accelerator.device).total_memory
    if is_xla(accelerator.device):
        return memory_info(accelerator.device).get("bytes_limit")
    if accelerator.device.type == "cpu":
        return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return None


def release_images(arguments: TrainArguments) -> int | None:
    """Return the number of training images of the release that the arguments name, if it is known."""
    release = RELEASES.get(arguments.dataset_release or "")
    if release is None or release.num_train_images is None or arguments.train_split != "train":
        return None
    return min(release.num_train_images, arguments.max_train_images or release.num_train_images)


def describe_step(arguments: TrainArguments, estimate: CostEstimate, accelerator: Accelerator) -> str:
    """Return the measured throughput of a training step on this machine and the time of the run, as text."""
    num_images = min(8, int(MEASURABLE_FLOPS // estimate.flops_per_image))
    available = psutil.virtual_memory().available
    if accelerator.device.type == "cuda":
        num_images, available = max(1, num_images), torch.cuda.mem_get_info()[0]
    elif is_xla(accelerator.device):
        num_images, available = max(1, num_images), device_memory(accelerator) or available
    if num_images == 0:
        return "step: not measured, since one image would take a CPU minutes."
    needed = estimate.total_bytes - estimate.memory["activation"] * (1 - num_images / estimate.micro_batch_size)
    if needed > 0.9 * available:
        return f"step: not measured, since it needs {needed / 2**30:.1f} GiB and {available / 2**30:.1f} are free."
    throughput = step_throughput(arguments, estimate.config, num_images, accelerator)
    hours = estimate.num_steps * arguments.train_batch_size / throughput / accelerator.num_processes / 3600
    return (
        f"step: {throughput:.4g} images/s on one {accelerator.device.type} (measured with {num_images} images at a "
        f"time): {hours:.3g} hours on {accelerator.num_processes}."
    )


def loader_throughput(arguments: TrainArguments, pixels: PixelSplit, seconds: float = 2.0) -> float:
    """Return the images per second that the loader delivers while nothing else runs."""
    sharding = BatchSharding(max(1, arguments.train_batch_size // (arguments.gradient_accumulation_steps or 1)))
    loader = train_batches(pixels.dataset, sharding, range(10**6), num_workers=arguments.dataloader_num_workers)
    batches = iter(loader)
    next(batches)
    count, start = 0, time.monotonic()
    while time.monotonic() - start < seconds:
        count += len(next(batches).pixels)
    return count / (time.monotonic() - start)


def step_throughput(arguments: TrainArguments, config: JetConfig, num_images: int, accelerator: Accelerator) -> float:
    """Return the images per second of a training step with `num_images` in this process, after those that compile."""
    model = adapt_model(make_model(arguments, config), config)
    if arguments.gradient_checkpointing:
        enable_gradient_checkpointing(model, accelerator.device)
    pixels = torch.randint(config.num_levels, (num_images, *config.image_shape))
    pixels = pixels.to(getattr(torch, level_dtype(config.num_levels)))
    labels = None if config.num_classes is None else torch.zeros(num_images, dtype=torch.int64)
    batch = Batch(pixels, torch.arange(num_images), labels)
    accelerator.gradient_accumulation_steps = 1
    trainer = Trainer(
        model, num_training_steps=100, accelerator=accelerator, noise_curriculum=arguments.noise_curriculum
    )
    # Under torch_xla, the first update and the first learning rate other than 0 have graphs of their own.
    for _ in range(3 if is_xla(accelerator.device) else 1):
        trainer.step([batch])
    start = time.monotonic()
    trainer.step([batch])  # returns when the device has finished, since it reads the loss
    return num_images / (time.monotonic() - start)
