# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Everything a training run can be told, from a YAML recipe, the command line, or both."""

import argparse
import dataclasses
import difflib
import inspect
import re
from dataclasses import dataclass, field
from typing import get_args

import yaml
from transformers import HfArgumentParser

from ..model.configuration_jet import JetConfig
from ..utils.precision import resolve_precision


# Entries of a checkpoint's trajectory that several arguments decide together; see [`TrainingRun`].
JOINT_ENTRIES = ("model", "initial_weights", "data", "num_steps", "mixed_precision")
OWN_VALUE = "own value"


def _field(default, help: str, *, decides: str | None):
    """
    Return a dataclass field with its line in `--help` and its declaration.

    Args:
        default: Default value.
        help: Line in `--help`.
        decides: The entry of a checkpoint's trajectory, which must not change when a run is resumed, that the field
            decides: one of `JOINT_ENTRIES`, or `OWN_VALUE` for an entry of the field's name and value. `None` for a
            field on which no number of a run depends by more than rounding.
    """
    return field(default=default, metadata={"help": help, "decides": decides})


def check_declarations(arguments: type) -> None:
    """Raise TypeError if a field of a dataclass does not declare which numbers of a run it decides."""
    for item in dataclasses.fields(arguments):
        declared = item.metadata.get("decides", "nothing")
        if declared not in (None, OWN_VALUE, *JOINT_ENTRIES):
            raise TypeError(
                f"the field `{item.name}` must declare by `decides` which numbers of a run it decides, one of "
                f"{', '.join(JOINT_ENTRIES)}, OWN_VALUE or None, got {declared}."
            )


def _model_arguments() -> type:
    """JetConfig's own fields with their documentation, each `None` unless given."""
    documentation = inspect.cleandoc("\n" + JetConfig.__doc__)
    texts = dict(re.findall(r"^    (\w+) \(`[^\n]*:\n((?:^ {8}.*\n?)+)", documentation, re.MULTILINE))
    fields = []
    for name, annotation in inspect.get_annotations(JetConfig).items():
        default = getattr(JetConfig, name, None)
        kind = list[str] if isinstance(default, tuple) else float if isinstance(default, float) else None
        kind = kind or next(part for part in get_args(annotation) or (annotation,) if part is not type(None))
        text = " ".join(texts[name].split()).replace("`", "")
        shown = " ".join(default) if isinstance(default, tuple) else default
        fields.append((name, kind | None, _field(None, f"{text} (default: {shown})", decides="model")))
    return dataclasses.make_dataclass("ModelArguments", fields)


@dataclass
class PretrainedArguments(_model_arguments()):
    _argument_group_name = "model"

    model_name_or_path: str | None = _field(
        None,
        "Model to fine-tune: a folder, or its name on the Hub. Takes the place of the model's other fields.",
        decides="initial_weights",
    )


@dataclass
class DataArguments:
    _argument_group_name = "data"

    dataset_name: str | None = _field(
        None, "Data set on the Hub, such as uoft-cs/cifar10. This or dataset_path.", decides="data"
    )
    dataset_config: str | None = _field(None, "Configuration of the data set on the Hub.", decides="data")
    dataset_path: str | None = _field(
        None,
        "Data set on disk: a folder of images, parquet shards, webdataset tars or Chrabaszcz's npz or pickle batches, "
        "or one such file. This or dataset_name.",
        decides="data",
    )
    dataset_release: str | None = _field(
        None,
        "Which release of a known data set this is, such as imagenet1k_vandenoord: checked by its number of "
        "validation images and said beside every figure, since figures of two releases cannot be compared.",
        decides="data",
    )
    train_split: str = _field(
        "train",
        "Split to train on, or a slice such as train[:98%%]; 'all': every picture of a folder, whatever its folders.",
        decides=OWN_VALUE,
    )
    eval_split: str | None = _field(
        None,
        "Split to evaluate on; by default validation or test, whichever there is under any of their usual names, such "
        "as val, dev or eval. 'none': no evaluation.",
        decides=OWN_VALUE,
    )
    image_column: str | None = _field(
        None, "Column of the images; found by itself where only one can be meant.", decides="data"
    )
    label_column: str | None = _field(
        None,
        "Column of the classes, for a model with num_classes; found by itself where only one can be meant.",
        decides="data",
    )
    streaming: bool = _field(
        False, "Read the data while training instead of preparing all of it first.", decides=OWN_VALUE
    )
    shuffle_buffer_size: int = _field(10_000, "Images that streaming draws the next one from.", decides=OWN_VALUE)
    center_crop: bool = _field(
        True,
        "Crop images to their central square before they are averaged down; false squeezes the whole image.",
        decides=OWN_VALUE,
    )
    random_crops_per_image: int | None = _field(
        None,
        "Cut this many crops of full resolution at random places out of each image, in place of averaging down.",
        decides=OWN_VALUE,
    )
    max_train_images: int | None = _field(None, "Train on the first images only.", decides=OWN_VALUE)
    max_eval_images: int | None = _field(None, "Evaluate on the first images only.", decides=OWN_VALUE)
    max_undecodable_share: float = _field(
        0.001, "Share of undecodable images above which the run stops.", decides=None
    )
    preprocessing_num_workers: int | None = _field(None, "Processes that decode images before training.", decides=None)
    dataloader_num_workers: int = _field(0, "Processes that read batches, for each training process.", decides=None)


@dataclass
class OptimizationArguments:
    _argument_group_name = "optimisation"

    train_batch_size: int = _field(
        1024, "Images of an optimiser step, over all processes and accumulation steps together.", decides=OWN_VALUE
    )
    gradient_accumulation_steps: int = _field(
        1, "Parts in which a process works off its share of a batch.", decides=None
    )
    num_train_epochs: float = _field(200.0, "Passes over the data, unless max_steps is given.", decides="num_steps")
    max_steps: int | None = _field(None, "Optimiser steps; takes the place of num_train_epochs.", decides="num_steps")
    learning_rate: float = _field(3e-4, "Peak learning rate of Adam.", decides=OWN_VALUE)
    weight_decay: float = _field(
        1e-5, "Decay of all weights a step, scaled by the schedule, not by the learning rate.", decides=OWN_VALUE
    )
    warmup_ratio: float = _field(
        0.1, "Share of the steps in which the learning rate rises; a half cosine follows.", decides=OWN_VALUE
    )
    max_grad_norm: float = _field(1.0, "Global norm that gradients are clipped to.", decides=OWN_VALUE)
    use_ema: bool = _field(
        False, "Evaluate, sample and save an exponential moving average of the weights.", decides=OWN_VALUE
    )
    ema_decay: float = _field(0.9999, "Decay of that average a step.", decides=OWN_VALUE)
    mixed_precision: str | None = _field(
        None,
        "Precision of the conditioners, no or bf16; the flow's state is always float32. By default what accelerate is "
        "set to.",
        decides="mixed_precision",
    )
    gradient_checkpointing: bool = _field(
        False, "Compute activations anew in the backward pass, to save memory.", decides=None
    )
    torch_compile: bool = _field(False, "Compile the coupling layers.", decides=None)
    label_dropout: float = _field(
        0.1,
        "Probability that a step of a class-conditional model goes without labels, which guidance needs.",
        decides=OWN_VALUE,
    )
    seed: int = _field(0, "Draws weights, data order and dequantisation noise.", decides=OWN_VALUE)


@dataclass
class RunArguments:
    _argument_group_name = "run"

    output_dir: str = _field(
        "runs/jet", "Folder of the run: the finished model, its checkpoints, metrics.jsonl.", decides=None
    )
    resume_from_checkpoint: str | None = _field(
        None,
        "'latest' (the newest whole checkpoint in output_dir, or from scratch if there is none) or a checkpoint.",
        decides=None,
    )
    save_steps: int = _field(1000, "Optimiser steps between checkpoints; 0: only at the end.", decides=None)
    save_total_limit: int | None = _field(3, "Checkpoints that are kept, the newest ones.", decides=None)
    logging_steps: int = _field(50, "Optimiser steps between lines of metrics.jsonl.", decides=None)
    eval_steps: int = _field(
        5000, "Optimiser steps between evaluations, step 0 and the last among them; 0: none.", decides=None
    )
    eval_batch_size: int = _field(64, "Images a process evaluates at a time.", decides=None)
    sample_steps: int = _field(
        5000, "Optimiser steps between grids of samples and reconstructions; 0: none.", decides=None
    )
    num_samples: int = _field(16, "Images in such a grid; their noise stays the same.", decides=None)
    report_to: list[str] | None = _field(  # noqa: RUF009
        None, "Trackers: tensorboard, trackio, wandb …; 'all' that are installed.", decides=None
    )
    dry_run: bool = _field(False, "Print sizes, steps, FLOPs, memory and time, and exit.", decides=None)


@dataclass
class HubArguments:
    _argument_group_name = "sharing"

    push_to_hub: bool = _field(
        False, "Push the model with code, card, log and samples at each save and at the end.", decides=None
    )
    hub_model_id: str | None = _field(
        None, "Repository to push to; by default named as output_dir, in your account.", decides=None
    )
    hub_private_repo: bool | None = _field(
        None, "Whether a new repository is private; your account's default if not given.", decides=None
    )


GROUPS = (PretrainedArguments, DataArguments, OptimizationArguments, RunArguments, HubArguments)


@dataclass
class TrainArguments(HubArguments, RunArguments, OptimizationArguments, DataArguments, PretrainedArguments):
    """
    All arguments of a training run.

    Raises:
        ValueError: for a number out of range, or fields that exclude each other; the message names them.
    """

    def __post_init__(self):
        for name, low, excluded in (
            ("train_batch_size", 1, False),
            ("gradient_accumulation_steps", 1, False),
            ("num_train_epochs", 0, True),
            ("max_steps", 1, False),
            ("learning_rate", 0, True),
            ("weight_decay", 0, False),
            ("warmup_ratio", 0, False),
            ("max_grad_norm", 0, True),
            ("save_steps", 0, False),
            ("save_total_limit", 1, False),
            ("logging_steps", 1, False),
            ("eval_steps", 0, False),
            ("eval_batch_size", 1, False),
            ("sample_steps", 0, False),
            ("num_samples", 1, False),
            ("seed", 0, False),
            ("shuffle_buffer_size", 1, False),
            ("random_crops_per_image", 1, False),
            ("max_train_images", 1, False),
            ("max_eval_images", 1, False),
            ("max_undecodable_share", 0, False),
            ("preprocessing_num_workers", 1, False),
            ("dataloader_num_workers", 0, False),
        ):
            value = getattr(self, name)
            if value is not None and not (low < value if excluded else low <= value):
                raise ValueError(f"`{name}` must be {'above' if excluded else 'at least'} {low}, got {value}.")
        if not self.warmup_ratio < 1:
            raise ValueError(f"`warmup_ratio` must be below 1, got {self.warmup_ratio}.")
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"`label_dropout` must lie in [0, 1], got {self.label_dropout}.")
        resolve_precision(self.mixed_precision)
        if not 0 < self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must lie between 0 and 1, got {self.ema_decay}.")
        if self.streaming and self.random_crops_per_image:
            raise ValueError("`random_crops_per_image` cannot be combined with `streaming`.")
        if self.model_name_or_path and self.config_fields():
            raise ValueError(
                f"`model_name_or_path` brings the model's fields with it, but {', '.join(self.config_fields())} "
                "were given too."
            )

    def config_fields(self) -> dict:
        """The fields of JetConfig that were given."""
        values = {name: getattr(self, name) for name in inspect.get_annotations(JetConfig)}
        return {name: value for name, value in values.items() if value is not None}

    def own_trajectory(self) -> dict:
        """Return the values of the fields that are entries of a checkpoint's trajectory themselves."""
        own = [item.name for item in dataclasses.fields(self) if item.metadata["decides"] == OWN_VALUE]
        return {name: getattr(self, name) for name in own}


check_declarations(TrainArguments)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows defaults, where there are any, after the texts."""

    def _get_help_string(self, action: argparse.Action) -> str:
        shown = action.default is not None and action.dest != "help"
        return f"{action.help} (default: %(default)s)" if shown else action.help


def _without_declarations(group: type) -> type:
    """Return a copy of a dataclass for HfArgumentParser, which hands all metadata on to argparse."""
    fields = [
        (item.name, item.type, field(default=item.default, metadata={"help": item.metadata["help"]}))
        for item in dataclasses.fields(group)
    ]
    return dataclasses.make_dataclass(
        group.__name__, fields, namespace={"_argument_group_name": group._argument_group_name}
    )


def build_parser(description: str) -> HfArgumentParser:
    """Return the parser of `scripts/train.py`, with its fields in groups."""
    groups = [_without_declarations(group) for group in GROUPS]
    parser = HfArgumentParser(groups, description=description, formatter_class=_HelpFormatter, allow_abbrev=False)
    parser.add_argument("--config", metavar="YAML", help="Recipe: fields and values; flags win over it.")
    for action in parser._actions:
        if action.metavar is None and action.type is not None and not action.choices:
            action.metavar = {"string_to_bool": "BOOL"}.get(action.type.__name__, action.type.__name__.upper())
    return parser


def read_recipe(path: str) -> dict:
    """
    The fields of a YAML recipe.

    Raises:
        ValueError: for a file that is not a table of fields, or a field that there is not; the message names it.
    """
    with open(path) as file:
        try:
            recipe = yaml.safe_load(file) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} must hold `field: value` lines, got a {type(recipe).__name__}.")
    known = [item.name for item in dataclasses.fields(TrainArguments)]
    for name in recipe:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            raise ValueError(f"{path} has the unknown field `{name}`{f'; `{close[0]}`?' if close else '.'}")
    return recipe


def parse_arguments(argv: list[str], description: str = "") -> TrainArguments:
    """
    Reads `--config` and flags; every value, from wherever it comes, is checked against its field's type.

    Raises:
        ValueError: see [`read_recipe`] and [`TrainArguments`].
        SystemExit: from argparse, for an unknown flag or a value of the wrong type.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    config, flags = first.parse_known_args(argv)
    recipe = read_recipe(config.config) if config.config else {}
    from_recipe = []
    for name, value in recipe.items():
        if value is not None:
            from_recipe += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    values = {}
    for group in build_parser(description).parse_args_into_dataclasses([*from_recipe, *flags])[: len(GROUPS)]:
        values.update(vars(group))
    return TrainArguments(**values)
