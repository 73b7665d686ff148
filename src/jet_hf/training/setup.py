# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""What a run starts from: processes and devices, model, data, number of steps."""

import hashlib
import logging
import os
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    set_seed,
)
from torch.distributed.fsdp import MixedPrecisionPolicy

from ..analysis.evaluation import check_processes
from ..data import (
    DataSource,
    PixelSplit,
    ReadOptions,
    UnknownSplitError,
    held_out_split,
    load_pixels,
    stream_fingerprint,
)
from ..model.configuration_jet import JetConfig
from ..model.image_processing_jet import JetImageProcessor
from ..model.modeling_jet import JetForDensityEstimation
from ..utils.precision import resolve_precision
from .arguments import TrainArguments


logger = logging.getLogger(__name__)


def make_accelerator(arguments: TrainArguments) -> Accelerator:
    """
    The accelerator of a run: precision and trackers of its arguments, processes and devices of the launcher.

    Raises:
        ValueError: for a precision other than `no` and `bf16`, a tracker that is unknown or not installed, or
            processes that do not see each other.
    """
    precision = resolve_precision(arguments.mixed_precision)
    installed = [str(tracker) for tracker in get_available_trackers()]
    for tracker in arguments.report_to or []:
        # accelerate passes over trackers that are not installed.
        if tracker != "all" and tracker not in installed:
            raise ValueError(f"`report_to` names {tracker}, but installed are {', '.join(installed) or 'none'}.")
    fsdp = None
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and precision == "bf16":
        # accelerate's own policy would narrow the images as well.
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        fsdp = FullyShardedDataParallelPlugin(mixed_precision_policy=policy)
    accelerator = Accelerator(
        fsdp_plugin=fsdp,
        mixed_precision=precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=arguments.gradient_accumulation_steps, adjust_scheduler=False, sync_with_dataloader=False
        ),
        log_with=arguments.report_to,
        project_dir=arguments.output_dir,
        # The only buffers are permutations, which never change.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )
    check_processes(accelerator)
    return accelerator


def make_model(arguments: TrainArguments) -> JetForDensityEstimation:
    """
    A new model, or the one to fine-tune, with float32 weights.

    Raises:
        ValueError: for a model with a context that data sets do not have.
    """
    if arguments.model_name_or_path is None:
        set_seed(arguments.seed)
        model = JetForDensityEstimation(JetConfig(**arguments.config_fields()))
    else:
        model = JetForDensityEstimation.from_pretrained(arguments.model_name_or_path, dtype="float32")
    if model.config.context_size is not None:
        raise ValueError(
            f"`context_size` is {model.config.context_size}, but data sets of images have no context tokens: a model "
            "with a context of its own is trained by calling it with one, as any model of PyTorch."
        )
    return model


def weights_digest(model: JetForDensityEstimation) -> str:
    """Return a SHA-256 of a model's weights and permutations, whatever file they come from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def make_processor(config: JetConfig, arguments: TrainArguments) -> JetImageProcessor:
    """The image processor that goes with a model and a way of cropping."""
    return JetImageProcessor(
        size=config.image_size, num_channels=config.num_channels, do_center_crop=arguments.center_crop
    )


@dataclass(frozen=True)
class RunData:
    """
    The images of a run.

    Args:
        source: Where they come from.
        train: Pixels to train on; `None` where they are streamed.
        eval: Held-out pixels, if there are any.
        eval_split: Their split.
        fingerprint: Short text that differs for other training images, wherever they lie.
    """

    source: DataSource
    train: PixelSplit | None
    eval: PixelSplit | None
    eval_split: str | None
    fingerprint: str

    @property
    def num_train_images(self) -> int | None:
        return None if self.train is None else len(self.train.dataset)


def load_data(
    arguments: TrainArguments,
    processor: JetImageProcessor,
    accelerator: Accelerator,
    num_classes: int | None = None,
) -> RunData:
    """Prepares the images, with classes if a number is given: the main process first; the others find its work."""
    source = DataSource.from_arguments(arguments)
    source.check_output(arguments.output_dir)
    options = ReadOptions(
        num_classes=num_classes,
        max_undecodable_share=arguments.max_undecodable_share,
        random_crops_per_image=arguments.random_crops_per_image,
        seed=arguments.seed,
    )
    num_proc = arguments.preprocessing_num_workers
    train = held_out = None
    with accelerator.main_process_first():
        eval_split = find_eval_split(source, arguments)
        if not arguments.streaming:
            train_options = replace(options, max_images=arguments.max_train_images)
            train = load_pixels(source, arguments.train_split, processor, train_options, num_proc=num_proc)
        if eval_split is not None:
            eval_options = replace(options, max_images=arguments.max_eval_images)
            held_out = load_pixels(source, eval_split, processor, eval_options, num_proc=num_proc)
    fingerprint = train.fingerprint if train else stream_fingerprint(source, arguments.train_split)
    return RunData(source, train, held_out, eval_split, fingerprint)


def find_eval_split(source: DataSource, arguments: TrainArguments) -> str | None:
    """Return the split to evaluate on: the one that is asked for, or validation, or test; `None` for none."""
    if not arguments.eval_steps or arguments.eval_split == "none":
        return None
    if arguments.eval_split is not None:
        return arguments.eval_split
    try:
        return held_out_split(source)
    except UnknownSplitError as error:
        logger.warning(f"no images are held out, so nothing is evaluated: {error}")
        return None


def count_steps(arguments: TrainArguments, num_train_images: int | None) -> int:
    """
    Optimiser steps of a run: images times epochs, over the batch size.

    Raises:
        ValueError: if neither `max_steps` nor the number of images is known, or there is not one step to do.
    """
    if arguments.max_steps is not None:
        return arguments.max_steps
    if num_train_images is None:
        raise ValueError("`streaming` needs `max_steps`: how many images a stream has is not known before its end.")
    steps = int(num_train_images * arguments.num_train_epochs // arguments.train_batch_size)
    if steps < 1:
        raise ValueError(
            f"`num_train_epochs` {arguments.num_train_epochs:g} of {num_train_images} images are less than one batch "
            f"of `train_batch_size` {arguments.train_batch_size}."
        )
    return steps
