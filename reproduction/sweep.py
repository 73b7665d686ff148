# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
A sweep: the training runs of a table and their results.

Each run is an ordinary run of `scripts/train.py` in its own folder, with `--resume_from_checkpoint latest`. The lock,
the checkpoints and the comparison of settings of `scripts/train.py` make its command safe to repeat.
"""

import itertools
import json
import logging
import math
import os
import shlex
from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd
import yaml
from huggingface_hub.errors import StrictDataclassError

from jet_hf.analysis.cost import count_parameters, training_flops
from jet_hf.model.configuration_jet import JetConfig
from jet_hf.training import TrainArguments, parse_arguments
from jet_hf.training.checkpoints import changed_settings, list_checkpoints
from jet_hf.training.dry_run import release_images
from jet_hf.training.fine_tuning import find_config
from jet_hf.training.setup import count_steps
from jet_hf.utils.files import replace_text, strict_json
from jet_hf.utils.launch import launch
from jet_hf.utils.tables import markdown_table

from .arguments import SweepArguments
from .tables import FINISHED, Cell, Table, read_grid, read_table


logger = logging.getLogger(__name__)

STOP_CODES = (0, 130, 143)  # of an early end: after a checkpoint, or by SIGINT or SIGTERM before the first step


@dataclass(frozen=True)
class Run:
    """
    A training run: one cell with one seed.

    Args:
        cell: Cell of the table.
        seed: Seed of the weights, the channel permutations, the data order and the noise.
        folder: Output folder.
        flags: Command line of `scripts/train.py`.
        arguments: Arguments that it is parsed to.
        config: Configuration of the model.
    """

    cell: Cell
    seed: int
    folder: Path
    flags: list[str]
    arguments: TrainArguments
    config: JetConfig

    @property
    def is_complete(self) -> bool:
        """Whether the run has written its model, of which the configuration is the last file."""
        return (self.folder / "config.json").is_file()

    def launch_arguments(self, accelerate_config: str | None) -> list[str]:
        """Return the command line of `scripts/launch.py` that starts or resumes the run."""
        options = ["--config_file", accelerate_config] if accelerate_config else []
        return [*options, script("train.py"), *self.flags]


def run_sweep(arguments: SweepArguments, command: str) -> int:
    """
    Run a sweep, or list its runs or their commands.

    Args:
        arguments: Arguments of `scripts/sweep.py`.
        command: Command line of the sweep, for the report.

    Returns:
        The exit code: 0, or 1 if a run has no result.

    Raises:
        ValueError: for arguments that do not fit the table or the recipe, or a folder with a run of other settings.
    """
    axes = parse_assignments(arguments.axis or [], "axis")
    overrides = parse_assignments(arguments.override or [], "override")
    table = read_table(arguments.table, axes) if arguments.grid is None else read_grid(Path(arguments.grid))
    folder, recipe = Path(arguments.output_dir) / table.name, arguments.config or table.recipe
    runs = make_runs(table.cells, recipe, overrides, arguments.seeds or table.seeds, folder)
    for run in runs:
        check_settings(run)
    left = [run for run in runs if not run.is_complete]
    if arguments.dry_run:
        print(describe(table, collect_rows(table.name, runs)))
        return 0
    if arguments.print_commands:
        for run in left:
            print(shlex.join(["python", script("launch.py"), *run.launch_arguments(arguments.accelerate_config)]))
        return 0
    if not arguments.report_only:
        run_all(left, arguments.accelerate_config)
    rows = collect_rows(table.name, runs)
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "results.jsonl", "".join(strict_json(row) + "\n" for row in rows))
    print(mean_table(rows))
    if arguments.report:
        from .report import write_report  # the training machine needs neither SciPy nor matplotlib

        base = parse_arguments(["--config", recipe, *to_flags(overrides)])
        write_report(Path(arguments.report), command, table, rows, base)
        logger.info(f"wrote {arguments.report}")
    missing = [row for row in rows if row["status"] != FINISHED]
    for row in missing:
        logger.warning(f"{row['cell']}/seed_{row['seed']} has no result: {row['status']}.")
    return 1 if missing else 0


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


def to_flags(values: dict) -> list[str]:
    """Return the flags of `scripts/train.py` that set fields to these values."""
    flags = []
    for name, value in values.items():
        items = value if isinstance(value, list) else [value]
        flags += [f"--{name}={items[0]}"] if len(items) == 1 else [f"--{name}", *map(str, items)]
    return flags


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
    shared = ["--config", recipe, *to_flags(overrides)]
    base = parse_arguments(shared)
    if not base.eval_steps or base.eval_split == "none":
        raise ValueError("a sweep needs evaluations: `eval_steps` must be above 0 and `eval_split` must not be none.")
    draws_permutations = base.model_name_or_path is None and base.permutation_seed is None
    runs = []
    for seed, cell in itertools.product(seeds, cells):
        output = folder / cell.name / f"seed_{seed}"
        values = {"seed": seed, **({"permutation_seed": seed} if draws_permutations else {}), **cell.fields}
        values |= {"output_dir": output, "resume_from_checkpoint": "latest", "push_to_hub": False, "dry_run": False}
        flags = [*shared, *to_flags(values)]
        try:
            arguments = parse_arguments(flags)
            config = find_config(arguments)
            config.check_bits_per_dim()
            runs.append(Run(cell, seed, output, flags, arguments, config))
        except (ValueError, StrictDataclassError) as error:
            raise ValueError(f"the cell {cell.name} does not fit the recipe: {error}") from error
    return runs


def check_settings(run: Run) -> None:
    """
    Compare a run with the recipe in its folder.

    Raises:
        ValueError: if the folder holds a run with other settings.
    """
    recipe = run.folder / "recipe.yaml"
    if not recipe.is_file():
        return
    # The recipe may come from another release, with fields that this one lacks.
    known = {item.name for item in fields(TrainArguments)}
    earlier = {name: value for name, value in yaml.safe_load(recipe.read_text()).items() if name in known}
    before, now = decisive_settings(TrainArguments(**earlier)), decisive_settings(run.arguments)
    if changes := changed_settings(before, now):
        raise ValueError(
            f"{run.folder} holds a run with other settings: {'; '.join(changes.values())}. Give another "
            "`output_dir`, or move the folder away."
        )


def decisive_settings(arguments: TrainArguments) -> dict:
    """Return the settings on which the numbers of a run depend, with the defaults of the model filled in."""
    values = vars(arguments) | find_config(arguments).own_fields()
    return {item.name: values[item.name] for item in fields(arguments) if item.metadata["decides"]}


def run_all(runs: list[Run], accelerate_config: str | None) -> None:
    """
    Train the runs one after another.

    A failed run does not keep the others from starting. SIGINT and SIGTERM let the current run save a checkpoint, and
    end the sweep.
    """
    for number, run in enumerate(runs, 1):
        logger.info(f"run {number} of {len(runs)}: {run.folder}")
        code = launch(run.launch_arguments(accelerate_config))
        if not run.is_complete and code in STOP_CODES:
            logger.warning(f"{run.folder} was stopped by a signal. The same command resumes the sweep.")
            return
        if not run.is_complete:
            logger.warning(f"{run.folder} failed with exit code {code}.")


def describe(table: Table, rows: list[dict]) -> str:
    """Return the plan of a sweep: the axes of the table, and the status and the size of each run."""
    lines = [f"{table.title}. Paper: {table.setting}." if table.setting else f"{table.title}."]
    lines += [f"axis {name}: {', '.join(map(str, values))}" for name, values in table.axes.items()]
    frame = pd.DataFrame(rows)[["cell", "seed", "num_parameters", "training_flops", "status"]]
    frame = frame.astype({"training_flops": float})
    formatters = {"num_parameters": "{:,}".format}
    lines.append(frame.to_string(index=False, formatters=formatters, float_format="{:.3g}".format, na_rep="unknown"))
    left = frame["training_flops"][frame["status"] != FINISHED]
    total = "unknown" if left.hasnans else f"{left.sum():.3g}"
    lines.append(f"{len(left)} of {len(rows)} runs have no result; their training FLOPs: {total}.")
    return "\n".join(lines)


def mean_table(rows: list[dict]) -> str:
    """Return a table of the cells' bits per dimension: mean, standard deviation, and extremes over the seeds."""
    bits = pd.DataFrame(rows).astype({"bits_per_dim": float}).groupby("cell", sort=False)["bits_per_dim"]
    columns = {"bits per dimension": "mean", "standard deviation": "std", "lowest": "min", "highest": "max"}
    numbers = bits.agg(**columns).map(lambda value: "n/a" if math.isnan(value) else f"{value:.4f}")
    numbers["seeds"] = bits.count().astype(str)
    return markdown_table([["cell", *numbers], *map(list, numbers.itertuples(name=None))], left=1)


def read_run(run: Run) -> tuple[str, dict]:
    """Return the status of a run, and its last evaluation if the run is finished."""
    if not run.is_complete:
        if not (run.folder / "recipe.yaml").is_file():
            return "not started", {}
        checkpoints = list_checkpoints(run.folder)
        return f"unfinished; last checkpoint: {checkpoints[-1].name if checkpoints else 'none'}", {}
    path = run.folder / "evaluations.jsonl"
    if not path.is_file():
        return "finished without an evaluation, for want of held-out images", {}
    evaluation = json.loads(path.read_text().splitlines()[-1])
    bits = evaluation["bits_per_dim"]
    if bits is None or not math.isfinite(bits):  # null, or the NaN and Infinity of earlier releases
        return f"diverged: {bits} bits per dimension at the end", {}
    return FINISHED, evaluation


def collect_rows(table: str, runs: list[Run]) -> list[dict]:
    """
    Return a row for each run of a table. Unknown values are `None`.

    `training_flops` counts the FLOPs of `num_steps` batches from the configuration, without recomputed activations.
    """
    # Seeds do not change the size of a model.
    configs = {run.cell.name: run.config for run in runs}
    sizes = {name: (count_parameters(config), training_flops(config)) for name, config in configs.items()}
    rows = []
    for run in runs:
        status, evaluation = read_run(run)
        num_parameters, flops_per_image = sizes[run.cell.name]
        num_steps, num_images = evaluation.get("step"), release_images(run.arguments)
        if not num_steps and (run.arguments.max_steps or num_images):
            num_steps = count_steps(run.arguments, num_images)
        row = {
            "table": table,
            "cell": run.cell.name,
            "seed": run.seed,
            "status": status,
            "bits_per_dim": evaluation.get("bits_per_dim"),
            "standard_error": evaluation.get("standard_error"),
            "num_eval_images": evaluation.get("num_images"),
            "paper_bits_per_dim": run.cell.paper,
            "num_parameters": num_parameters,
            "training_flops": num_steps and float(flops_per_image * run.arguments.train_batch_size * num_steps),
            "num_steps": num_steps,
            "train_batch_size": run.arguments.train_batch_size,
            "learning_rate": run.arguments.learning_rate,
        }
        rows.append(row | run.config.own_fields() | run.cell.fields)
    return rows
