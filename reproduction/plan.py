# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The runs of a sweep: their settings, their folders, and how far each one is."""

import dataclasses
import inspect
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import yaml

from jet_hf.model.configuration_jet import JetConfig
from jet_hf.training import TrainArguments, parse_arguments
from jet_hf.utils.files import replace_text, strict_json

from .tables import Cell, Table


FINISHED, FAILED, UNFINISHED, NOT_STARTED = "finished", "failed", "unfinished", "not started"
SETTINGS_FILE, FAILURE_FILE, LOG_FILE = "sweep.yaml", "failure.json", "log.txt"


@dataclass(frozen=True)
class Run:
    """
    One cell with one seed.

    Args:
        cell, seed: Which.
        folder: Where `scripts/train.py` writes.
        arguments: What it is told; `None` where the cell's fields cannot go with the base recipe.
        problem: Why they cannot.
    """

    cell: Cell
    seed: int
    folder: Path
    arguments: TrainArguments | None
    problem: str = ""

    @property
    def name(self) -> str:
        """As `--runs` takes it."""
        return f"{self.cell.name}/seed_{self.seed}"

    @property
    def config(self) -> JetConfig:
        """The model's configuration."""
        return JetConfig(**self.arguments.config_fields())

    def write_settings(self) -> Path:
        """Writes the recipe of the run into its folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / SETTINGS_FILE
        replace_text(path, yaml.safe_dump(dataclasses.asdict(self.arguments), sort_keys=False))
        return path

    def write_failure(self, reason: str) -> None:
        """Notes why the run failed, so that it is not tried again unasked."""
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_text(self.folder / FAILURE_FILE, strict_json({"reason": reason}) + "\n")


@dataclass(frozen=True)
class State:
    """
    How far a run is.

    Args:
        status: One of this module's constants.
        reason: Why it failed.
        evaluation: The last evaluation of a finished run: its step, `bits_per_dim`, `standard_error`, `num_images`.
    """

    status: str
    reason: str = ""
    evaluation: dict | None = None


def base_arguments(recipe: str, overrides: list[str]) -> TrainArguments:
    """
    Reads a base recipe, with `FIELD=VALUE` in place of some of its fields; a list's values are separated by commas.

    Raises:
        ValueError: for a text that is no `FIELD=VALUE`, an unknown field, or what a recipe may not hold; a sweep needs
            evaluations too.
        SystemExit: from the parser of `scripts/train.py`, for a value of the wrong type.
    """
    flags = []
    for name, values in split_assignments(overrides).items():
        flags += [f"--{name}={values[0]}"] if len(values) == 1 else [f"--{name}", *values]
    arguments = parse_arguments(["--config", recipe, *flags])
    if arguments.model_name_or_path is not None:
        raise ValueError(f"{recipe} fine-tunes `model_name_or_path`, whose configuration a sweep cannot change.")
    if not arguments.eval_steps or arguments.eval_split == "none":
        raise ValueError("a sweep needs evaluations: `eval_steps` above 0 and an `eval_split`.")
    return dataclasses.replace(arguments, resume_from_checkpoint="latest", push_to_hub=False, dry_run=False)


def split_assignments(texts: list[str]) -> dict[str, list[str]]:
    """`NAME=A,B` as names and values."""
    found = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not name:
            raise ValueError(f"expected NAME=VALUE, got {text!r}.")
        if name in found:
            raise ValueError(f"{name} is given twice.")
        found[name] = values.split(",")
    return found


def make_runs(
    table: Table,
    cells: list[Cell],
    base: TrainArguments,
    overridden: set[str],
    seeds: list[int],
    output_dir: Path,
) -> list[Run]:
    """
    Each cell with each seed, the first seed of all cells first. A seed draws the channel permutations as well.

    Raises:
        ValueError: if an override names a field that the cells set, or every cell is impossible.
    """
    clashes = sorted(overridden & ({"seed", "output_dir"} | {name for cell in cells for name in cell.fields}))
    if clashes:
        raise ValueError(
            f"table {table.name} sets {', '.join(clashes)} itself: give --axis, --seeds or --output_dir instead of "
            "--override."
        )
    runs = []
    for seed in seeds:
        for cell in cells:
            folder = output_dir / table.name / cell.name / f"seed_{seed}"
            fields = {"seed": seed, "output_dir": str(folder), **cell.fields}
            if base.permutation_seed is None:
                fields["permutation_seed"] = seed
            try:
                arguments = dataclasses.replace(base, **fields)
                JetConfig(**arguments.config_fields())
                runs.append(Run(cell, seed, folder, arguments))
            # huggingface_hub's validation errors are no ValueErrors in every release.
            except Exception as error:
                runs.append(Run(cell, seed, folder, None, " ".join(str(error).split())))
    if runs and all(run.arguments is None for run in runs):
        raise ValueError(f"no cell of {table.name} goes with the recipe: {runs[0].cell.name}: {runs[0].problem}")
    return runs


def read_state(run: Run) -> State:
    """Looks into a run's folder."""
    if run.arguments is None:
        return State(FAILED, f"impossible: {run.problem}")
    # Of the files that a run writes, its model's configuration is the very last one.
    if (run.folder / "config.json").is_file():
        evaluations = read_lines(run.folder / "evaluations.jsonl")
        if not evaluations:
            return State(FAILED, "finished without an evaluation: there are no held-out images")
        bits = evaluations[-1]["bits_per_dim"]
        if bits is None or not math.isfinite(bits):  # null, or the NaN and Infinity of earlier releases
            return State(FAILED, f"diverged: {bits} bits per dimension at the end")
        return State(FINISHED, evaluation=evaluations[-1])
    if (run.folder / FAILURE_FILE).is_file():
        return State(FAILED, json.loads((run.folder / FAILURE_FILE).read_text())["reason"])
    return State(UNFINISHED if (run.folder / LOG_FILE).exists() else NOT_STARTED)


def read_lines(path: Path) -> list[dict]:
    """Rows of a file of JSON lines, but for one that a killed run left unfinished."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1] if line]


def changed_settings(run: Run) -> list[str]:
    """What a folder's run was told otherwise than this one is; each as "field was A, is B"."""
    if run.arguments is None:
        return []
    for name in ("recipe.yaml", SETTINGS_FILE):  # what it was told in the end, and what the sweep last asked for
        try:
            before = yaml.safe_load((run.folder / name).read_text())
        except (OSError, yaml.YAMLError):
            continue
        if isinstance(before, dict):
            old, new = _settings(before), _settings(dataclasses.asdict(run.arguments))
            return [f"{key} was {old.get(key)}, is {value}" for key, value in new.items() if old.get(key) != value]
    return []


def _settings(fields: dict) -> dict:
    """Return the fields that decide a run's numbers; a field of the model that was not given has its default."""
    known = {item.name: item.default for item in dataclasses.fields(TrainArguments) if item.metadata["decides"]}
    values = {name: fields.get(name, default) for name, default in known.items()}
    given = {name: fields[name] for name in inspect.get_annotations(JetConfig) if fields.get(name) is not None}
    config = JetConfig(**given)
    return values | {name: getattr(config, name) for name in inspect.get_annotations(JetConfig)}


def set_aside(folder: Path) -> Path:
    """Moves a run's folder away, to be run anew; gives its new place."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}_replaced_{number}")).exists():
        number += 1
    os.rename(folder, aside)
    return aside
