# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Arguments of the commands. This module imports no torch, so that `--help` answers at once."""

import ast
import dataclasses
import difflib
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .utils.arguments import BoundedArguments, CommandParser, argument
from .utils.precision import resolve_precision


logger = logging.getLogger(__name__)

# A checkpoint's trajectory records the settings that must not change when a run is resumed. Each training argument
# declares in `decides` the entry that depends on it: one that several arguments determine together, an entry with the
# argument's own name and value, or None if it changes the numbers of a run by rounding at most.
JOINT_ENTRIES = ("model", "initial_weights", "data", "num_steps", "mixed_precision")
OWN_VALUE = "own value"
# Learning rate schedules, see `jet_hf.training.build_scheduler`.
SCHEDULES = ("cosine", "constant", "wsd")
# The generators of PyTorch take no larger seed.
LAST_SEED = 2**63 - 1
# The run of `train` without a recipe: the model of recipes/photographs.yaml, for a folder of photographs on a CPU. It
# replaces JetConfig's defaults, the paper's model, unless a size of the model is given.
SMALL_RUN = {
    "image_size": 32,
    "patch_size": 4,
    "num_coupling_layers": 12,
    "hidden_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "train_batch_size": 16,
    "learning_rate": 2e-3,
    "num_train_epochs": 80.0,
    "save_steps": 100,
    "logging_steps": 10,
    "eval_steps": 100,
    "sample_steps": 100,
}
# Figures of `evaluate --samples`, see `jet_hf.analysis.sample_quality`. Those of labels need a model with classes.
LABEL_FIGURES = ("classifier_accuracy", "bayes_accuracy")
FIGURES = (
    *("frechet_distance", "kernel_distance", "precision", "recall", "nearest_neighbor_accuracy", "seam_strength"),
    *LABEL_FIGURES,
)
MIN_SAMPLES = 10
# Scores of `jet_hf.anomaly`, by the names of their functions.
ANOMALY_SCORES = (
    *("negative_log_likelihood", "complexity_corrected", "typicality", "latent_norm", "gradient_norm"),
    *("likelihood_ratio", "largest_patch"),
)
SIZES = ("num_coupling_layers", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def check_declarations(arguments: type) -> None:
    """Raise TypeError if a field of a dataclass does not declare which entry of the trajectory it decides."""
    for item in dataclasses.fields(arguments):
        declared = item.metadata.get("decides", "nothing")
        if declared not in (None, OWN_VALUE, *JOINT_ENTRIES):
            raise TypeError(
                f"the field `{item.name}` must declare in `decides` the entry of the trajectory that depends on it: "
                f"one of {', '.join(JOINT_ENTRIES)}, OWN_VALUE or None, got {declared}."
            )


def _model_arguments() -> Any:
    """Return a dataclass with the fields of JetConfig, each `None` by default, read from JetConfig's docstring."""
    source = (Path(__file__).parent / "model" / "configuration_jet.py").read_text(encoding="utf-8")
    classes = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    documentation = ast.get_docstring(next(node for node in classes if node.name == "JetConfig")) or ""
    types: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": bool, "tuple[str, ...]": list[str]}
    types["int | tuple[int, int]"] = int | list[int]
    types["float | tuple[float, float]"] = float | list[float]
    entry = r"^    (\w+) \(`([^`]+)`, \*optional\*(?:, defaults to ([^\n]*))?\):\n((?:^ {8}.*\n?)+)"
    fields = []
    for name, kind, default, text in re.findall(entry, documentation, re.MULTILINE):
        help = " ".join(text.split()) + (
            f" (default: {default.lower() if kind == 'bool' else default})" if default else ""
        )
        fields.append((name, types[kind] | None, argument(help.replace("`", ""), None, decides="model")))
    return dataclasses.make_dataclass("ModelArguments", fields)


ModelArguments: Any = _model_arguments()


@dataclass
class PretrainedArguments(ModelArguments):
    model_name_or_path: str | None = argument(
        "Model to fine-tune: a folder, or a name on the Hub. Of its fields, only image_size and num_classes can "
        "change: position embeddings are interpolated, and other classes get a new embedding.",
        None,
        decides="initial_weights",
    )


@dataclass
class DatasetArguments:
    dataset_config: str | None = argument("Configuration of the dataset on the Hub.", None, decides="data")
    dataset_release: str | None = argument(
        "Release of a known dataset, such as imagenet1k_vandenoord. It is checked against the number of images and "
        "reported with every score, because scores on different releases are not comparable.",
        None,
        decides="data",
    )
    image_column: str | None = argument("Column of the images; detected if only one qualifies.", None, decides="data")
    label_column: str | None = argument(
        "Column of the classes; detected if only one column qualifies.", None, decides="data"
    )
    max_undecodable_share: float = argument(
        "Fraction of undecodable images above which the command stops.",
        0.001,
        decides=None,
        at_least=0,
        at_most=1,
    )
    first_label: int | None = argument(
        "Smallest class in the data; by default 1 for Chrabaszcz's batches, and 0 otherwise.",
        None,
        decides=OWN_VALUE,
        at_least=0,
    )


@dataclass
class SourceArguments(DatasetArguments):
    dataset_name: str | None = argument(
        "Dataset on the Hub, such as uoft-cs/cifar10. Cannot be combined with dataset_path.", None, decides="data"
    )
    dataset_path: str | None = argument(
        "Dataset on disk: a folder of images, parquet shards, webdataset tars, or Chrabaszcz's npz or pickle batches; "
        "or a single such file. Cannot be combined with dataset_name.",
        None,
        decides="data",
    )
    center_crop: bool = argument(
        "Crop to the aspect ratio of the model's images before downsampling; false squeezes the image.",
        True,
        decides=OWN_VALUE,
    )


@dataclass
class DataArguments(SourceArguments):
    train_split: str = argument(
        "Split or slice to train on, such as train[:98%]; 'all' takes a whole folder.", "train", decides=OWN_VALUE
    )
    eval_split: str | None = argument(
        "Split to evaluate on, or 'none'; by default validation, or else test, or else 5% of the training images (at "
        "most 5,000), which are held out.",
        None,
        decides=OWN_VALUE,
    )
    streaming: bool = argument("Decode the images during training instead of before it.", False, decides=OWN_VALUE)
    shuffle_buffer_size: int = argument(
        "Images in the shuffle buffer of a stream.", 10_000, decides=OWN_VALUE, at_least=1
    )
    random_crops_per_image: int | None = argument(
        "Random crops at full resolution per image, instead of downsampling.", None, decides=OWN_VALUE, at_least=1
    )
    random_flip: bool = argument(
        "Mirror each training image horizontally with probability 1/2, drawn anew in each epoch.",
        False,
        decides=OWN_VALUE,
    )
    mutation_rate: float = argument(
        "Probability with which each number of a training image is replaced by a random gray level, drawn anew in "
        "each epoch: for the background model of jet-hf anomaly. Evaluations see the images as they are.",
        0.0,
        decides=OWN_VALUE,
        at_least=0,
        at_most=1,
    )
    max_train_images: int | None = argument("Train on the first images only.", None, decides=OWN_VALUE, at_least=1)
    max_eval_images: int | None = argument("Evaluate on the first images only.", None, decides=OWN_VALUE, at_least=1)
    preprocessing_num_workers: int | None = argument(
        "Processes that decode images before training.", None, decides=None, at_least=1
    )
    dataloader_num_workers: int = argument(
        "Number of processes that load batches, for each training process.", 0, decides=None, at_least=0
    )


@dataclass
class OptimizationArguments:
    train_batch_size: int = argument(
        "Images per optimizer step, over all processes together.", 1024, decides=OWN_VALUE, at_least=1
    )
    gradient_accumulation_steps: int | None = argument(
        "Micro-batches into which a process splits its share of a batch; by default 1, or in a resumed run as many as "
        "keep micro-batches from growing when the number of processes changes.",
        None,
        decides=None,
        at_least=1,
    )
    num_train_epochs: float = argument(
        "Passes over the data, unless max_steps is given.", 200.0, decides="num_steps", above=0
    )
    max_steps: int | None = argument(
        "Number of optimizer steps; overrides num_train_epochs.", None, decides="num_steps", at_least=1
    )
    learning_rate: float = argument("Peak learning rate of Adam.", 3e-4, decides=OWN_VALUE, above=0)
    weight_decay: float = argument(
        "Decay per step, scaled by the schedule but not by the learning rate.", 1e-5, decides=OWN_VALUE, at_least=0
    )
    warmup_ratio: float = argument(
        "Fraction of steps with linear warm-up from 0.", 0.1, decides=OWN_VALUE, at_least=0, below=1
    )
    lr_scheduler_type: str = argument(
        "Learning rate after the warm-up: cosine falls to 0; constant stays; wsd stays, and falls to 0 as 1 - sqrt in "
        "a cool-down at the end.",
        "cosine",
        decides=OWN_VALUE,
        choices=SCHEDULES,
    )
    cooldown_ratio: float = argument(
        "Fraction of steps in the cool-down of wsd.", 0.2, decides=OWN_VALUE, above=0, at_most=1
    )
    max_grad_norm: float = argument("Global norm for gradient clipping.", 1.0, decides=OWN_VALUE, above=0)
    max_skipped_steps: int = argument(
        "Steps in a row that may be skipped because the loss or the gradient is not finite, or the gradient spikes; "
        "the next one ends the run. A skipped step changes no weights, moments or averages, but data and schedule "
        "advance.",
        0,
        decides=None,
        at_least=0,
    )
    spike_factor: float | None = argument(
        "Skip steps whose gradient norm exceeds this multiple of its running mean, from the 101st update on. Needs "
        "max_skipped_steps.",
        None,
        decides=OWN_VALUE,
        above=1,
    )
    use_ema: bool = argument(
        "Evaluate, sample and save an exponential moving average of the weights.", False, decides=OWN_VALUE
    )
    ema_decay: float = argument("Decay of the moving average per step.", 0.9999, decides=OWN_VALUE, above=0, below=1)
    mixed_precision: str | None = argument(
        "Precision of the conditioners: no or bf16; by default accelerate's setting.", None, decides="mixed_precision"
    )
    gradient_checkpointing: bool = argument(
        "Recompute activations in the backward pass to save memory.", False, decides=None
    )
    torch_compile: bool = argument("Compile the coupling layers.", False, decides=None)
    noise_curriculum: float = argument(
        "Standard deviation of the Gaussian noise on training images at step 0, in gray levels of 8-bit images; 64 in "
        "JetFormer. It falls to 0 by a half cosine; until then, the training loss is that of noisy images.",
        0.0,
        decides=OWN_VALUE,
        at_least=0,
        at_most=255,
    )
    noise_curriculum_ratio: float = argument(
        "Fraction of steps after which the noise of noise_curriculum is 0.", 1.0, decides=OWN_VALUE, above=0, at_most=1
    )
    label_dropout: float = argument(
        "Probability of a step without labels, for guidance.", 0.1, decides=OWN_VALUE, at_least=0, at_most=1
    )
    seed: int = argument(
        "Seed of the weights, the data order and the noise.",
        0,
        decides=OWN_VALUE,
        at_least=0,
        at_most=LAST_SEED,
    )


@dataclass
class RunArguments:
    output_dir: str = argument(
        "Folder of the run: the finished model, checkpoints, metrics.jsonl.", "runs/jet", decides=None
    )
    resume_from_checkpoint: str | None = argument(
        "Checkpoint to resume from, or 'latest' for the newest one, if any.", None, decides=None
    )
    extend: bool = argument(
        "Continue from the checkpoint to another number of steps, or with another lr_scheduler_type, cooldown_ratio "
        "or spike_factor. The warm-up and the noise curriculum keep their lengths.",
        False,
        decides=None,
    )
    save_steps: int = argument(
        "Optimizer steps between checkpoints; 0 saves at the end only.", 1000, decides=None, at_least=0
    )
    save_total_limit: int | None = argument(
        "Number of checkpoints to keep, the newest ones.", 3, decides=None, at_least=1
    )
    save_best: bool = argument(
        "Keep the model with the best evaluation so far in output_dir/best, in addition to the last one.",
        False,
        decides=None,
    )
    logging_steps: int = argument(
        "Optimizer steps between lines of metrics.jsonl, each with the means of these steps.",
        50,
        decides=None,
        at_least=1,
    )
    eval_steps: int = argument(
        "Optimizer steps between evaluations, from step 0 on; 0 disables them.", 5000, decides=None, at_least=0
    )
    eval_batch_size: int = argument("Images per evaluation batch of a process.", 64, decides=None, at_least=1)
    sample_steps: int = argument(
        "Optimizer steps between sample and reconstruction grids; 0 disables them.", 5000, decides=None, at_least=0
    )
    num_samples: int = argument(
        "Number of images in a grid; their latents stay the same during a run.", 16, decides=None, at_least=1
    )
    report_to: list[str] | None = argument(  # noqa: RUF009
        "Trackers: tensorboard, trackio, wandb or others of accelerate; 'all' for every installed one, or 'none'.",
        None,
        decides=None,
    )
    project: str = argument("Project of the run in its trackers.", "jet", decides=None)
    run_name: str | None = argument(
        "Name of the run in its trackers; by default the name of output_dir.", None, decides=None
    )
    dry_run: bool = argument(
        "Print the sizes, steps, FLOPs, memory and time of the run, and exit.", False, decides=None
    )


@dataclass
class HubArguments:
    push_to_hub: bool = argument(
        "Push the model with its code, card, log and samples at each save and at the end.", False, decides=None
    )
    hub_model_id: str | None = argument(
        "Repository to push to; by default the name of output_dir in your account.", None, decides=None
    )
    hub_private_repo: bool | None = argument(
        "Whether a new repository is private; by default the setting of your account.", None, decides=None
    )


# Headings of `--help`.
GROUPS = {
    "model": PretrainedArguments,
    "data": DataArguments,
    "optimization": OptimizationArguments,
    "run": RunArguments,
    "sharing": HubArguments,
}


@dataclass
class TrainArguments(
    HubArguments, RunArguments, OptimizationArguments, DataArguments, PretrainedArguments, BoundedArguments
):
    """
    Train or fine-tune a Jet on one or many devices.

        jet-hf train --config recipes/cifar10.yaml --output_dir runs/cifar10
        jet-hf train --dataset_path photographs/ --image_size 32 --patch_size 2
        accelerate launch -m jet_hf.train --config recipes/cifar10.yaml --output_dir runs/cifar10
        jet-hf train --config recipes/cifar10.yaml --dry_run

    Without a recipe and without a size of the model, such as --hidden_size, other defaults apply than those below: the
    small model of recipes/photographs.yaml, which suits a folder of photographs on a CPU, in batches of 16 for 80
    epochs, with a learning rate of 2e-3, and with checkpoints, evaluations and samples every 100 steps.

    With --resume_from_checkpoint latest, a killed run continues as if it had not been interrupted. SIGTERM and Ctrl-C
    save a checkpoint and end the run with exit code 0, or with 143 and 130 if there is nothing to save.
    """

    def __post_init__(self):
        super().__post_init__()
        resolve_precision(self.mixed_precision)
        if "none" in (self.report_to or []) and len(self.report_to or []) > 1:
            raise ValueError(f"`report_to` must be none alone or name trackers, got {' '.join(self.report_to or [])}.")
        if not re.fullmatch(r"[\w-][\w.-]*", self.project):  # tensorboard's folder has this name
            raise ValueError(f"`project` must consist of letters, digits, `-`, `_` and `.`, got {self.project!r}.")
        if self.streaming and self.random_crops_per_image:
            raise ValueError("`random_crops_per_image` cannot be combined with `streaming`.")
        if self.extend and self.resume_from_checkpoint is None:
            raise ValueError("`extend` must be given with `resume_from_checkpoint`, the checkpoint to continue from.")
        if self.spike_factor is not None and not self.max_skipped_steps:
            raise ValueError(
                "`spike_factor` must be given with `max_skipped_steps`, the number of steps in a row that may be "
                "skipped, of at least 1, got 0."
            )

    def config_fields(self) -> dict[str, Any]:
        """Return the given fields of JetConfig."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(ModelArguments)}
        return {name: value for name, value in values.items() if value is not None}

    def own_trajectory(self) -> dict[str, Any]:
        """Return the values of the fields that are themselves entries of a checkpoint's trajectory."""
        own = [item.name for item in dataclasses.fields(self) if item.metadata["decides"] == OWN_VALUE]
        return {name: getattr(self, name) for name in own}


check_declarations(TrainArguments)


def read_recipe(path: str) -> dict[str, Any]:
    """
    Read the fields of a YAML recipe.

    Raises:
        ValueError: for a file that is not a mapping, or an unknown field; the message names it.
    """
    with open(path, encoding="utf-8") as file:
        try:
            recipe = yaml.safe_load(file) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{path} must be a YAML file: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} must hold `field: value` lines, got a {type(recipe).__name__}.")
    known = [item.name for item in dataclasses.fields(TrainArguments)]
    for name in recipe:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            raise ValueError(
                f"{path} has the unknown field `{name}`{f', did you mean `{close[0]}`?' if close else '.'}"
            )
    return recipe


def small_run(values: dict[str, Any]) -> dict[str, Any]:
    """
    Return the fields of the small run, or none if the arguments name a model or one of its sizes.

    A run that resumes takes the values that its own recipe recorded, which may come from another release.
    """
    if any(values[name] is not None for name in ("model_name_or_path", *SIZES)):
        return {}
    recipe = Path(values["output_dir"]) / "recipe.yaml"
    if values["resume_from_checkpoint"] is not None and recipe.is_file():
        recorded = read_recipe(str(recipe))
        return {name: recorded.get(name) for name in SMALL_RUN}
    logger.info(
        "no recipe: training the small model of recipes/photographs.yaml, with "
        f"{SMALL_RUN['num_coupling_layers']} coupling layers of width {SMALL_RUN['hidden_size']}. Give --config "
        "recipes/NAME.yaml for a model of the paper, or sizes such as --hidden_size."
    )
    return SMALL_RUN


def parse_arguments(argv: list[str], prog: str = "jet-hf train") -> TrainArguments:
    """
    Parse `--config` and flags, which override the fields of the recipe; check every value against its field's type.

    Without a recipe, flags override [`small_run`].

    Raises:
        ValueError: see [`CommandParser.parse`], [`read_recipe`] and [`TrainArguments`].
    """
    parser = CommandParser(TrainArguments, prog, GROUPS)
    parser.add_argument("--config", metavar="YAML", help="Recipe with fields and values, which flags override.")
    values = parser.parse(argv)
    recipe = read_recipe(values["config"]) if values["config"] else small_run(values)
    from_recipe = []
    for name, value in recipe.items():
        if value is not None:
            from_recipe += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    values = parser.parse([*from_recipe, *argv])
    del values["config"]
    return TrainArguments(**values)


@dataclass
class SamplingArguments:
    temperature: float = argument("Standard deviation of the latents; the model's is 1.", 1.0, at_least=0)
    guidance_scale: list[float] | None = argument(  # noqa: RUF009
        "Scale of classifier-free guidance; 1 disables it. Two numbers are those of the coupling layers next to the "
        "latents and next to the image.",
        None,
    )
    guidance: str = argument(
        "Rule of the guidance: linear, or variance_aware, which never widens a distribution.",
        "linear",
        choices=("linear", "variance_aware"),
    )
    attention_temperature: float | None = argument(
        "Temperature of the unguided prediction's attention, which guides models without classes.", None, above=0
    )
    denoise: bool | None = argument(
        "Remove the noise of the samples; by default for models that were trained with noise_std.", None
    )
    denoising_steps: int = argument(
        "Number of denoising steps, for models that were trained with a range of noise_std.", 1, at_least=1
    )
    stochastic: bool = argument("Add new noise in each denoising step but the last.", False)
    noise_std: float | None = argument(
        "Noise level of the samples before denoising, for models with a range of noise_std; by default the largest.",
        None,
        above=0,
    )

    def sampling_options(self) -> dict[str, Any]:
        """Return the options of drawing samples, by name."""
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(SamplingArguments)}


@dataclass
class EvaluateArguments(SamplingArguments, DatasetArguments, BoundedArguments):
    """
    Score a split of a dataset in bits per dimension, and compare samples of the model with it.

        jet-hf evaluate --model runs/cifar10 --dataset uoft-cs/cifar10
        accelerate launch scripts/evaluate.py --model runs/imagenet64 --dataset valid_64x64.tar --num_noise_samples 16
        jet-hf evaluate --model runs/cifar10 --dataset uoft-cs/cifar10 --samples 10000 --features inception

    Stdout receives JSON and stderr a table. With --samples, each figure of the samples stands beside that of as many
    real images.
    """

    model: str = argument("Folder of a saved model, or a name on the Hub.")
    dataset: str = argument("Path of images (a folder, parquet, tar or npz), or a name on the Hub.")
    split: str | None = argument(
        "Split to score; by default validation, or else test, or else the images that training holds out.", None
    )
    batch_size: int = argument("Images per batch of a process.", 64, at_least=1)
    num_noise_samples: int = argument(
        "Number of noise draws per image; more draws give a tighter bound.", 1, at_least=1
    )
    max_images: int | None = argument("Score the first images only.", None, at_least=1)
    random_crops_per_image: int | None = argument(
        "Number of crops at full resolution to score per image, instead of the downsampled image.", None, at_least=1
    )
    seed: int = argument(
        "Seed of the crops and the noise; scores do not depend on the batch size.", 0, at_least=0, at_most=LAST_SEED
    )
    mixed_precision: str = argument("Precision of the conditioners: no or bf16.", "no")
    scores_file: str | None = argument(
        "CSV file for the name and the score of each image; a name that ends in .json gives JSON without names.", None
    )
    write_model_card: bool = argument("Add the results to the card in the folder --model.", False)
    samples: int | None = argument(
        "Number of samples to compare with the scored images. For models of noisy images, only the samples are "
        "evaluated.",
        None,
        at_least=MIN_SAMPLES,
    )
    features: str = argument(
        "Feature extractor of the figures of samples: pixels (64 principal components of the scored images), "
        "inception, or the folder or Hub name of an image model of transformers, such as facebook/dinov2-small.",
        "pixels",
    )
    figures: list[str] | None = argument(  # noqa: RUF009
        "Figures of samples to compute; by default all, those of labels only for models with classes.",
        None,
        choices=FIGURES,
    )
    real_split: str | None = argument(
        "Split from which as many random real images as samples are taken to stand beside them; by default train, or "
        "the images of train that are not held out.",
        None,
    )
    bayes_noise_samples: int = argument(
        "Number of noise draws per image for the classifier argmax p(image | class).", 8, at_least=1
    )

    def __post_init__(self):
        super().__post_init__()
        of_samples = ["features", "figures", "real_split", "bayes_noise_samples", *self.sampling_options()]
        if self.samples is None and (changed := self.changed(of_samples)):
            raise ValueError(f"`{changed[0]}` must be given with `samples`, the number of samples to evaluate.")


@dataclass
class SampleArguments(SamplingArguments, BoundedArguments):
    """
    Draw images from a Jet, reconstruct images, or interpolate between two images in latent space.

        jet-hf sample --model demo/model --num_images 16 --output_dir samples
        jet-hf sample --model demo/model --reconstruct a.png b.png --output_dir reconstructions
        jet-hf sample --model demo/model --interpolate a.png b.png --output_dir interpolation
    """

    model: str = argument("Folder of a saved model, or a name on the Hub.")
    output_dir: str = argument("New folder for grid.png and one PNG per image.", "samples")
    num_images: int = argument("Number of samples, or of steps with --interpolate.", 16, at_least=1)
    seed: int = argument(
        "Seed of the latents; samples do not depend on the batch size.", 0, at_least=0, at_most=LAST_SEED
    )
    batch_size: int = argument("Images to decode at a time.", 64, at_least=1)
    label: int | None = argument("Class of the samples; by default all classes in turn.", None)
    columns: int = argument("Images in a row of the grid.", 8, at_least=1)
    reconstruct: list[str] | None = argument("Images to encode and decode.", None)  # noqa: RUF009
    interpolate: list[str] | None = argument("Two images to interpolate between.", None)  # noqa: RUF009

    def __post_init__(self):
        super().__post_init__()
        if self.reconstruct and self.interpolate:
            raise ValueError("`reconstruct` and `interpolate` exclude each other, got both.")
        if self.interpolate and len(self.interpolate) != 2:
            raise ValueError(f"`interpolate` takes two images, got {len(self.interpolate)}.")
        of_samples = ["label", *self.sampling_options(), *(["num_images"] if self.reconstruct else [])]
        if (self.reconstruct or self.interpolate) and (changed := self.changed(of_samples)):
            raise ValueError(
                f"`{changed[0]}` is for samples and cannot be combined with `reconstruct` or `interpolate`."
            )


@dataclass
class CodecArguments(BoundedArguments):
    model: str = argument("Folder of a saved model, or a name on the Hub.")
    batch_size: int = argument(
        "Tiles that a conditioner takes at a time; it changes speed and memory, but no file.", 8, at_least=1
    )
    num_proc: int = argument("Number of processes, each of which holds the model.", 1, at_least=1)


@dataclass
class CompressArguments(CodecArguments):
    """
    Compress images into one file without loss, at the rate of a model.

        jet-hf compress a.png b.png -o pictures.jet --model runs/photos

    The file holds the pixels and the names of the images. It needs the same model to be decompressed.
    """

    files: list[str] = argument("Images: gray, RGB or palette, 8 bits.", positional=True)  # noqa: RUF009
    output: str = argument("File to write.", short="-o")
    label: int | None = argument("Class of all images, for a class-conditional model; by default unknown.", None)
    allow_webp: bool = argument("Store plain WebP images if they are smaller than the model's.", True)
    verify: bool = argument("Decompress the result and compare, which takes as long again.", True)


@dataclass
class DecompressArguments(CodecArguments):
    """
    Decompress a file of `jet-hf compress` into PNG images.

        jet-hf decompress pictures.jet -o pictures --model runs/photos
    """

    file: str = argument("File to read.", positional=True)
    output: str = argument("New or empty folder.", short="-o")


@dataclass
class WeighArguments(DatasetArguments, BoundedArguments):
    """
    Compress a split of a dataset and compare the size with the model's bits per dimension and with other codecs.

        jet-hf weigh --model runs/cifar10 --dataset uoft-cs/cifar10 --max_images 1000

    Stdout receives JSON and stderr a table. JPEG-LS and JPEG XL need the package imagecodecs.
    """

    model: str = argument("Folder of a saved model, or a name on the Hub.")
    dataset: str = argument("Path of images (a folder, parquet, tar or npz), or a name on the Hub.")
    split: str | None = argument(
        "Split to weigh; by default validation, or else test, or else the images that training holds out.", None
    )
    batch_size: int = argument("Images that a conditioner takes at a time.", 8, at_least=1)
    max_images: int | None = argument("Weigh the first images only.", None, at_least=1)
    random_crops_per_image: int | None = argument(
        "Number of crops at full resolution to weigh per image, instead of the downsampled image.", None, at_least=1
    )
    seed: int = argument("Seed of the crops, and of the noise of the model's score.", 0, at_least=0, at_most=LAST_SEED)
    output: str | None = argument("File to keep the compressed images in.", None, short="-o")


@dataclass
class AnomalyArguments(BoundedArguments):
    """
    Score how strange images are under a model, compared with reference images that count as normal.

        jet-hf anomaly --model runs/photos --reference photos/ --images new_photos/ -o report
        jet-hf anomaly --model runs/bottles --reference bottles/ --images bottles/test --normal_label good -o report

    The folder gets scores.csv (file, scores, p-values), report.json, histograms.png and worst.png, heat maps over the
    strangest images; with --normal_label, both the report and stderr have AUROC, AUPR and FPR at 95 % TPR. Reference
    images must not be training images. Images of other sizes are cropped and resized as for jet-hf evaluate.
    """

    model: str = argument("Folder of a saved model, or a name on the Hub.")
    images: str = argument("Images to score: a folder, parquet, tar or npz, or a name on the Hub.")
    images_split: str | None = argument(
        "Split of the images; by default all of a folder, or else validation or test.", None
    )
    reference: str | None = argument(
        "Reference images, of the same kinds; by default those of anomaly.json, which --save_reference wrote.", None
    )
    reference_split: str | None = argument(
        "Split of the reference; by default validation, or else test, or else the images that training holds out.",
        None,
    )
    output: str = argument(
        "New folder to write, or one of an earlier report, which is replaced.", "anomaly", short="-o"
    )
    background: str | None = argument("Model for the likelihood ratio, trained with mutation_rate.", None)
    scores: list[str] | None = argument(  # noqa: RUF009
        "Scores to compute; by default all that the model has.", None, choices=ANOMALY_SCORES
    )
    rank_by: str | None = argument(
        "Score that orders the heat maps; by default complexity_corrected if it is computed, or else the first one.",
        None,
        choices=ANOMALY_SCORES,
    )
    label: int | None = argument(
        "Class of all images, for a class-conditional model; by default the mixture of all classes.", None, at_least=0
    )
    normal_label: str | None = argument(
        "Label of normal images, such as the name of their folder; all other labels are anomalies.", None
    )
    label_column: str | None = argument("Column of the labels; detected if only one qualifies.", None)
    image_column: str | None = argument("Column of the images; detected if only one qualifies.", None)
    max_images: int | None = argument(
        "Read the first images only, of the reference and of the images.", None, at_least=1
    )
    random_crops_per_image: int | None = argument(
        "Number of crops at full resolution per image, of the reference and of the images, instead of resizing.",
        None,
        at_least=1,
    )
    max_undecodable_share: float = argument(
        "Fraction of undecodable images above which the command stops.", 0.001, at_least=0, at_most=1
    )
    num_heat_maps: int = argument("Number of images in worst.png.", 8, at_least=1)
    batch_size: int = argument("Images per batch.", 64, at_least=1)
    seed: int = argument(
        "Seed of the crops and of the noise; scores do not depend on the batch size.", 0, at_least=0, at_most=LAST_SEED
    )
    save_reference: bool = argument(
        "Write the scores of the reference to anomaly.json in the folder --model, for calls without --reference.",
        False,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.reference is None and (
            changed := self.changed(("reference_split", "save_reference", "scores", "label"))
        ):
            raise ValueError(f"`{changed[0]}` must be given with `reference`, the images to fit the detector to.")
        if self.scores is not None and self.rank_by not in (None, *self.scores):
            raise ValueError(f"`rank_by` must be one of `scores` {' '.join(self.scores)}, got {self.rank_by}.")
        if self.label_column is not None and self.normal_label is None:
            raise ValueError("`label_column` must be given with `normal_label`, the label of normal images.")


@dataclass
class ConvertArguments(BoundedArguments):
    """
    Convert a checkpoint of another implementation to a folder for from_pretrained.

        jet-hf convert big_vision jet.npz jet-i21k-64
        jet-hf convert jet_pytorch model.safetensors jet-64 --num-attention-heads 8

    Flags supply the fields of the model that the file does not show, and must agree with those that it shows.
    """

    source: str = argument(
        "Implementation that wrote the checkpoint: big_vision (.npz) or jet_pytorch (.safetensors).",
        positional=True,
        choices=("big_vision", "jet_pytorch"),
    )
    checkpoint: str = argument("File of the checkpoint.", positional=True)
    output_dir: str = argument("New or empty folder.", positional=True)
    num_channels: int | None = argument("Number of image channels; 3 by default.", None)
    scale_factor: float | None = argument("Upper bound of the scales; 2.0 by default.", None)
    image_size: int | None = argument("Height and width of an image; checked against the file.", None)
    num_attention_heads: int | None = argument(
        "Number of attention heads, which files of jet-pytorch do not show.", None
    )
    coupling_kinds: list[str] | None = argument(  # noqa: RUF009
        "Cycle of splits, which files of jet-pytorch do not show.", None, choices=("channels", "spatial")
    )


@dataclass
class AverageArguments(BoundedArguments):
    """
    Average the weights of models with the same configuration, such as several checkpoints of a run.

        jet-hf average runs/jet/checkpoint-9000 runs/jet/checkpoint-10000 --output_dir averaged

    The result is a folder for from_pretrained.
    """

    models: list[str] = argument("Two or more folders of saved models.", positional=True)  # noqa: RUF009
    output_dir: str = argument("New or empty folder.")


@dataclass
class PreparationArguments(SourceArguments, BoundedArguments):
    """
    Downsample a dataset of images by area averaging into parquet shards for `datasets.load_dataset`.

        jet-hf prepare --dataset_name ILSVRC/imagenet-1k --split train --image_size 64 --num_proc 16 \\
            --dataset_release imagenet1k_area --output_dir imagenet64
        jet-hf prepare --dataset_path photographs/ --image_size 32 --output_dir photographs32

    Repeating the command continues after an interruption; the shards come out the same.
    """

    output_dir: str = argument("Folder for the shards; one folder takes several splits, one after another.")
    split: str = argument("Split to prepare; it keeps its name.", "train")
    streaming: bool = argument("Read the source as a stream, with at most one shard per source file.", False)
    image_size: int | list[int] = argument(  # noqa: RUF009
        "Side of the square result, or its height and width, in pixels.", 64
    )
    num_channels: int = argument("Channels of the result: 3, or 1 for gray images.", 3, choices=(1, 3))
    num_levels: int = argument(
        "Number of gray levels. Unless it is 256, the images hold levels below it, which are not scaled.",
        256,
        at_least=2,
        at_most=2**16,
    )
    num_shards: int = argument("Number of parquet files of the split.", 64, at_least=1)
    num_proc: int = argument("Number of decoding processes; the result does not depend on it.", 1, at_least=1)
