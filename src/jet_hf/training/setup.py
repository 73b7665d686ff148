# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Build the accelerator, the image processor, the datasets and the step count of a training run."""

import hashlib
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
)
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers.modeling_layers import GradientCheckpointingLayer

from ..analysis.evaluation import check_processes
from ..arguments import TrainArguments
from ..data import (
    HELD_OUT,
    KEPT,
    Batch,
    BatchSharding,
    DataSource,
    PixelSplit,
    ReadOptions,
    UnknownSplitError,
    can_hold_out,
    held_out_split,
    load_pixels,
    stream_batches,
    stream_fingerprint,
    train_batches,
)
from ..model.configuration_jet import JetConfig
from ..model.image_processing_jet import JetImageProcessor
from ..model.modeling_jet import JetForDensityEstimation
from ..utils.precision import resolve_precision
from ..utils.xla import check_device, checkpoint_function, is_xla
from .checkpoints import Checkpoint, find_checkpoint, list_checkpoints
from .launcher import Launcher, killable_join
from .lock import LOCK_FILE
from .processes import on_main_process
from .trackers import check_installed, check_logins


logger = logging.getLogger(__name__)


def make_accelerator(arguments: TrainArguments, launcher: Launcher | None = None) -> Accelerator:
    """
    Build the accelerator of a run, which joins the processes of the launcher.

    Raises:
        ValueError: for a precision other than `no` and `bf16`, a tracker that is unknown, not installed or needs a
            login, processes that do not see each other, a device that [`check_device`] refuses, `torch_compile`
            under torch_xla, or a name that no repository can have.
        ConnectionError: if the launcher has ended.
    """
    precision = resolve_precision(arguments.mixed_precision)
    trackers = None if arguments.report_to == ["none"] else arguments.report_to
    check_installed(trackers)
    check_repository_name(arguments)
    fsdp = None
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and precision == "bf16":
        # accelerate's own policy would cast the images to bfloat16 as well.
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        fsdp = FullyShardedDataParallelPlugin(mixed_precision_policy=policy)
    with killable_join(launcher):
        accelerator = Accelerator(
            fsdp_plugin=fsdp,
            mixed_precision=precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=arguments.gradient_accumulation_steps or 1,
                adjust_scheduler=False,
                sync_with_dataloader=False,
            ),
            log_with=trackers,
            project_dir=arguments.output_dir,
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
    check_device(accelerator.device, accelerator.mixed_precision)
    if arguments.torch_compile and is_xla(accelerator.device):
        raise ValueError("`torch_compile` must be false under torch_xla, which compiles every step itself, got True.")
    check_processes(accelerator)
    warn_of_lone_process(accelerator)
    on_main_process(lambda: check_logins([str(tracker) for tracker in accelerator.log_with]))
    return accelerator


def repository_name(arguments: TrainArguments) -> str:
    """Return the name of the model's repository on the Hub, possibly without a namespace."""
    return arguments.hub_model_id or Path(arguments.output_dir).resolve().name


def check_repository_name(arguments: TrainArguments) -> None:
    """Raise ValueError if the Hub would refuse the name of the repository of the model."""
    if not arguments.push_to_hub:
        return
    try:
        validate_repo_id(repository_name(arguments))
    except HFValidationError as error:
        raise ValueError(f"`hub_model_id`, by default the name of `output_dir`, cannot be used: {error}") from error


def warn_of_lone_process(accelerator: Accelerator) -> None:
    """Warn if `accelerate launch` was asked for several processes and silently started one, as it does on CPUs."""
    # It sets MASTER_PORT only if asked for several processes, and WORLD_SIZE only if it starts them.
    variables = os.environ.keys()
    asked_for_several = {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= variables and "WORLD_SIZE" not in variables
    if asked_for_several and accelerator.num_processes == 1:
        logger.warning(
            "`accelerate launch` was asked for several processes, but has started one. To start several on CPUs, set "
            "ACCELERATE_USE_CPU=true and pass `--config_file recipes/accelerate/ddp.yaml --mixed_precision no`."
        )


def weights_digest(model: JetForDensityEstimation) -> str:
    """Return the SHA-256 of a model's weights and permutations, whatever the format of their file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def make_processor(config: JetConfig, arguments: TrainArguments) -> JetImageProcessor:
    """Build the image processor of a model and a run's way of cropping."""
    return JetImageProcessor(
        size=config.image_size,
        num_channels=config.num_channels,
        num_levels=config.num_levels,
        do_center_crop=arguments.center_crop,
    )


@dataclass(frozen=True)
class RunData:
    """
    Images of a run.

    Args:
        source: Source of the images.
        options: Options of reading the training images.
        train: Pixels to train on; `None` if they are streamed.
        train_split: Name of the split to train on.
        eval: Held-out pixels, if there are any.
        eval_split: Name of the held-out split.
        fingerprint: Short text that identifies the training images and their order, wherever they are stored.
    """

    source: DataSource
    options: ReadOptions
    train: PixelSplit | None
    train_split: str
    eval: PixelSplit | None
    eval_split: str | None
    fingerprint: str | None

    @property
    def num_train_images(self) -> int | None:
        return None if self.train is None else len(self.train.dataset)


def find_data(arguments: TrainArguments, accelerator: Accelerator) -> DataSource:
    """
    Find the dataset of a run, in the main process before the others, without reading images.

    Raises:
        ValueError: if there is no such dataset or split.
    """
    source = DataSource.from_arguments(arguments)
    source.check_output(arguments.output_dir)
    with accelerator.main_process_first():
        source.layout.resolve(arguments.train_split)
    return source


def load_data(
    arguments: TrainArguments,
    source: DataSource,
    processor: JetImageProcessor,
    accelerator: Accelerator,
    num_classes: int | None = None,
    start: Checkpoint | None = None,
) -> RunData:
    """
    Prepare the images, with labels for a class-conditional model, in the main process before the others.

    Args:
        arguments: Arguments of the run.
        source: Dataset, from [`find_data`].
        processor: Image processor of the model.
        accelerator: Accelerator of the run.
        num_classes: Number of classes, if the model has any.
        start: Checkpoint that the run resumes from.
    """
    options = ReadOptions(
        num_classes=num_classes,
        max_images=arguments.max_train_images,
        max_undecodable_share=arguments.max_undecodable_share,
        random_crops_per_image=arguments.random_crops_per_image,
        seed=arguments.seed,
    )
    num_proc = arguments.preprocessing_num_workers
    train = held_out = None
    with accelerator.main_process_first():
        train_split, eval_split = find_splits(source, arguments, start)
        if not arguments.streaming:
            train = load_pixels(source, train_split, processor, options, num_proc=num_proc)
        if eval_split is not None:
            eval_options = replace(options, max_images=arguments.max_eval_images)
            held_out = load_pixels(source, eval_split, processor, eval_options, num_proc=num_proc)
    fingerprint = train.fingerprint if train else stream_fingerprint(source, train_split)
    return RunData(source, options, train, train_split, held_out, eval_split, fingerprint)


def find_splits(source: DataSource, arguments: TrainArguments, start: Checkpoint | None) -> tuple[str, str | None]:
    """
    Return the split to train on, and the one to evaluate on or `None`.

    By default the latter is the validation or test split. A dataset without them is divided, unless the run resumes
    from a checkpoint of a run that was not. An `eval_split` of `train[held_out]` divides any dataset.
    """
    train, held_out = arguments.train_split, arguments.eval_split
    divided, part = f"train{KEPT}", f"train{HELD_OUT}"
    if (train, held_out) == ("train", part):
        train = divided
    began_divided = start is not None and start.trajectory.get("train_split") == divided
    if held_out == "none" or not (arguments.eval_steps or began_divided):
        return train, None
    if held_out is None:
        try:
            held_out = held_out_split(source)
        except UnknownSplitError:
            may_divide = began_divided if start is not None else can_hold_out(source)
            if train not in ("train", divided) or not may_divide:
                logger.warning(
                    f"no images are held out, so nothing is evaluated: {source.where} has no validation or test "
                    "split, and only a whole split `train` of at least 16 images that is no stream is divided."
                )
                return train, None
            train, held_out = divided, part
            logger.info(
                f"{source.where} has no validation or test split, so {part} is evaluated and not trained on; "
                "`eval_split` none trains on all images."
            )
    return train, held_out if arguments.eval_steps else None


def count_steps(arguments: TrainArguments, num_train_images: int | None) -> int:
    """
    Return the number of optimizer steps of a run, by default images times epochs over the batch size.

    Raises:
        ValueError: if neither `max_steps` nor the number of images is known, or the run would have no step.
    """
    if arguments.max_steps is not None:
        return arguments.max_steps
    if num_train_images is None:
        raise ValueError("`max_steps` must be given with `streaming`: a stream does not tell its number of images.")
    steps = int(num_train_images * arguments.num_train_epochs // arguments.train_batch_size)
    if steps < 1:
        raise ValueError(
            "`num_train_epochs` times the number of images must be at least `train_batch_size`, got "
            f"{arguments.num_train_epochs:g} times {num_train_images} for {arguments.train_batch_size}."
        )
    return steps


def count_micro_batches(arguments: TrainArguments, start: Checkpoint | None, num_processes: int) -> int:
    """
    Return the number of micro-batches into which a process splits its share of a batch.

    Unless the arguments give it, a resumed run takes the smallest number whose micro-batches have no more images than
    those of the checkpoint, which may come from another number of processes.
    """
    given = arguments.gradient_accumulation_steps
    if start is None or start.micro_batch_size is None:  # earlier releases did not record it
        return given or 1
    images, limit = arguments.train_batch_size // num_processes, start.micro_batch_size
    number = given or next((n for n in range(1, images + 1) if images % n == 0 and images // n <= limit), 1)
    if images // number > limit:
        logger.warning(
            f"micro-batches have {images // number} images, but had {limit} in {start.path}: if memory is short, "
            "raise `gradient_accumulation_steps`, or leave it out to choose it automatically."
        )
    elif given is None and number > 1:
        logger.info(
            f"`gradient_accumulation_steps` is {number} on {num_processes} process(es), so that micro-batches have "
            f"{images // number} images, no more than the {limit} in {start.path}."
        )
    return number


def enable_gradient_checkpointing(model: JetForDensityEstimation, device: torch.device) -> None:
    """Recompute the coupling layers of a model in the backward pass on a device."""
    model.gradient_checkpointing_enable()
    if is_xla(device):
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module._gradient_checkpointing_func = checkpoint_function()


def make_batches(
    arguments: TrainArguments,
    data: RunData,
    processor: JetImageProcessor,
    sharding: BatchSharding,
    steps: range,
    device: torch.device,
) -> Iterable[Batch]:
    """Return the micro-batches of this process for the optimizer steps of a range."""
    pin_memory = device.type == "cuda"
    if data.train is not None:
        return train_batches(
            data.train.dataset,
            sharding,
            steps,
            seed=arguments.seed,
            num_workers=arguments.dataloader_num_workers,
            pin_memory=pin_memory,
        )
    return stream_batches(
        data.source,
        data.train_split,
        processor,
        data.options,
        sharding,
        steps,
        shuffle_buffer_size=arguments.shuffle_buffer_size,
        pin_memory=pin_memory,
    )


def find_start(output_dir: Path, resume_from_checkpoint: str | None, extend: bool = False) -> Checkpoint | None:
    """
    Return the checkpoint that a run starts from; `None` for a new run.

    Raises:
        ValueError: if the folder holds another run, or files that are not those of a run, or there is no checkpoint
            to extend, or none of a run that started from that of another folder.
        CheckpointError: if the checkpoint at the given path does not exist or is incomplete.
    """
    checkpoints, found = list_checkpoints(output_dir), None
    if resume_from_checkpoint is not None:
        found = find_checkpoint(output_dir, resume_from_checkpoint)
        if found is None and (origin := recorded_origin(output_dir / "recipe.yaml")):
            raise ValueError(
                f"`resume_from_checkpoint` must be {origin}, from which the run in {output_dir} started, or another "
                f"checkpoint, got {resume_from_checkpoint}: the run was stopped before it saved one of its own."
            )
        if found is None and extend:
            raise ValueError(f"`extend` needs a checkpoint to continue from, but {output_dir} has no complete one.")
        if found is None:
            logger.info(f"{output_dir} has no complete checkpoint yet: starting from scratch.")
    if resume_from_checkpoint != "latest" and (found is None or found.path.resolve().parent != output_dir.resolve()):
        check_holds_no_run(output_dir, resume_from_checkpoint)
    # A run that was killed at its start may have left nothing but its own hidden files.
    others = sorted(path.name for path in output_dir.iterdir() if path.name not in (LOCK_FILE, ".recipe.yaml"))
    # A run that was killed before its first step has a recipe; a sweep writes one before it starts the run.
    recipes = [output_dir / "recipe.yaml", output_dir / "sweep.yaml"]
    is_run = checkpoints or (output_dir / "metrics.jsonl").exists() or any(map(is_recipe, recipes))
    if others and not is_run:
        raise ValueError(
            f"`output_dir` {output_dir} must be empty or the folder of a run, but it holds other files "
            f"({', '.join(others[:3])}{', …' if len(others) > 3 else ''}): choose another folder."
        )
    return found


def check_holds_no_run(output_dir: Path, origin: str | None) -> None:
    """
    Raise ValueError if a folder holds a run, unless that started from the checkpoint `origin` of another folder and
    was stopped before it saved one of its own.
    """
    was_stopped = origin is not None and recorded_origin(output_dir / "recipe.yaml") == origin
    names = ["config.json"] if was_stopped else ["metrics.jsonl", "config.json"]
    results = [name for name in names if (output_dir / name).exists()]
    results += [path.name for path in list_checkpoints(output_dir)]
    if results:
        raise ValueError(
            f"`output_dir` {output_dir} already holds a run ({', '.join(results)}): resume it with "
            "`resume_from_checkpoint` latest, or choose another folder."
        )


def is_recipe(path: Path) -> bool:
    """Return whether a file is the recipe of a run, of this release or an earlier one."""
    return {"output_dir", "train_batch_size", "max_steps", "seed"} <= _fields_of(path).keys()


def recorded_origin(recipe: Path) -> str | None:
    """Return the path of the checkpoint from which the last start of a run resumed; `None` for its own latest one."""
    origin = _fields_of(recipe).get("resume_from_checkpoint")
    return None if origin == "latest" else origin


def _fields_of(recipe: Path) -> dict:
    """Return the fields of a recipe, or none if it is missing or unreadable."""
    try:
        fields = yaml.safe_load(recipe.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return fields if isinstance(fields, dict) else {}
