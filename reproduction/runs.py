# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
The training runs of a table.

Each run is an ordinary run of `scripts/train.py` in its own folder, with `--resume_from_checkpoint latest`. The lock,
the checkpoints and the comparison of settings of `scripts/train.py` make its command safe to repeat.
"""

import dataclasses
import inspect
import itertools
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub.errors import StrictDataclassError

from jet_hf.model.configuration_jet import JetConfig
from jet_hf.training import TrainArguments, parse_arguments
from jet_hf.training.fine_tuning import find_config
from jet_hf.utils.launch import launch

from .claims import Cell


logger = logging.getLogger(__name__)

STOP_CODES = (0, 130, 143)  # of an early end: after a checkpoint, or by SIGINT or SIGTERM before the first step


@dataclass(frozen=True)
class Run:
    """
    A training run: one cell with one seed.

    Args:
        cell: Cell of the table.
        seed: Seed of the weights, the channel permutations, the data order and the noise.
        flags: Command line of `scripts/train.py`.
        arguments: Arguments that it is parsed to.
        config: Configuration of the model.
    """

    cell: Cell
    seed: int
    flags: list[str]
    arguments: TrainArguments
    config: JetConfig

    @property
    def folder(self) -> Path:
        return Path(self.arguments.output_dir)

    @property
    def is_complete(self) -> bool:
        """Whether the run has written its model, of which the configuration is the last file."""
        return (self.folder / "config.json").is_file()

    def launch_arguments(self, accelerate_config: str | None) -> list[str]:
        """Return the command line of `scripts/launch.py` that starts or resumes the run."""
        options = ["--config_file", accelerate_config] if accelerate_config else []
        return [*options, script("train.py"), *self.flags]


def script(name: str) -> str:
    """Return the path of a script, relative to the working directory."""
    return os.path.relpath(Path(__file__).resolve().parents[1] / "scripts" / name)


def parse_assignments(texts: list[str], argument: str) -> dict[str, list[str]]:
    """Return the names and values of `NAME=A,B` texts, which come from the command-line argument `argument`."""
    values: dict[str, list[str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"`{argument}` must be NAME=VALUE, got {text!r}.")
        if name in values:
            raise ValueError(f"`{argument}` must set {name} only once, got {text!r} as well.")
        values[name] = value.split(",")
    return values


def to_flags(fields: dict) -> list[str]:
    """Return the flags of `scripts/train.py` that set these fields."""
    flags = []
    for name, value in fields.items():
        values = value if isinstance(value, list) else [value]
        flags += [f"--{name}={values[0]}"] if len(values) == 1 else [f"--{name}", *map(str, values)]
    return flags


def base_flags(recipe: str, overrides: dict[str, list[str]]) -> list[str]:
    """Return the flags of `scripts/train.py` that all runs share."""
    return ["--config", recipe, *to_flags(overrides)]


def make_runs(
    cells: list[Cell], recipe: str, overrides: dict[str, list[str]], seeds: list[int], folder: Path
) -> list[Run]:
    """
    Return a run for each cell and seed, all cells of the first seed first.

    Args:
        cells: Cells of the table.
        recipe: Recipe that all runs start from.
        overrides: Values that replace fields of the recipe.
        seeds: Seeds. Unless a recipe of a new model sets `permutation_seed`, they also draw the channel permutations.
        folder: Folder of the table. A run writes to `CELL/seed_SEED` in it.

    Raises:
        ValueError: for a recipe, an override, a seed or a cell that does not fit.
    """
    are_seeds = isinstance(seeds, list) and all(isinstance(seed, int) and seed >= 0 for seed in seeds)
    if not seeds or not are_seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"`seeds` must be distinct integers of at least 0, got {seeds}.")
    in_cells = {name for cell in cells for name in cell.fields}
    if clashes := sorted({"seed", "output_dir", "resume_from_checkpoint", "dry_run"} & (overrides.keys() | in_cells)):
        raise ValueError(f"the sweep itself sets {', '.join(clashes)}: use its arguments `seeds` and `output_dir`.")
    if clashes := sorted(overrides.keys() & in_cells):
        raise ValueError(f"`override` must not set {', '.join(clashes)}, in which the cells differ.")
    shared = base_flags(recipe, overrides)
    base = parse_arguments(shared)
    if not base.eval_steps or base.eval_split == "none":
        raise ValueError("a sweep needs evaluations: `eval_steps` must be above 0 and `eval_split` must not be none.")
    draws_permutations = base.model_name_or_path is None and base.permutation_seed is None
    runs = []
    for seed, cell in itertools.product(seeds, cells):
        permutations = {"permutation_seed": seed} if draws_permutations else {}
        output = {"output_dir": folder / cell.name / f"seed_{seed}", "resume_from_checkpoint": "latest"}
        fields = {"seed": seed, **permutations, **cell.fields, **output, "push_to_hub": False, "dry_run": False}
        flags = [*shared, *to_flags(fields)]
        try:
            arguments = parse_arguments(flags)
            config = find_config(arguments)
            config.check_bits_per_dim()
            runs.append(Run(cell, seed, flags, arguments, config))
        except (ValueError, StrictDataclassError) as error:
            raise ValueError(f"the cell {cell.name} does not fit the recipe: {error}") from error
    return runs


def check_settings(runs: list[Run]) -> None:
    """
    Compare the runs with the recipes in their folders.

    Raises:
        ValueError: if a folder holds a run with other settings.
    """
    known = {item.name for item in dataclasses.fields(TrainArguments)}
    for run in runs:
        recipe = run.folder / "recipe.yaml"
        if not recipe.is_file():
            continue
        fields = {name: value for name, value in yaml.safe_load(recipe.read_text()).items() if name in known}
        before, now = decisive_settings(TrainArguments(**fields)), decisive_settings(run.arguments)
        changes = [f"`{name}` was {before[name]} and is now {now[name]}" for name in now if before[name] != now[name]]
        if changes:
            raise ValueError(
                f"{run.folder} holds a run with other settings: {'; '.join(changes)}. Give another `output_dir`, or "
                "move the folder away."
            )


def decisive_settings(arguments: TrainArguments) -> dict:
    """Return the settings on which the numbers of a run depend, with the defaults of the model filled in."""
    config = find_config(arguments)
    values = vars(arguments) | {name: getattr(config, name) for name in inspect.get_annotations(JetConfig)}
    return {item.name: values[item.name] for item in dataclasses.fields(arguments) if item.metadata["decides"]}


def run_all(runs: list[Run], accelerate_config: str | None) -> None:
    """
    Train the runs one after another.

    A failed run does not keep the others from starting. SIGINT and SIGTERM let the current run save a checkpoint, and
    end the sweep.
    """
    for number, run in enumerate(runs, 1):
        logger.info(f"run {number} of {len(runs)}: {run.folder}")
        code = launch(run.launch_arguments(accelerate_config))
        if run.is_complete:
            continue
        if code in STOP_CODES:
            logger.warning(f"{run.folder} was stopped by a signal. The same command resumes the sweep.")
            return
        logger.warning(f"{run.folder} failed with exit code {code}.")
