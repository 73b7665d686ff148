# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""A sweep: the runs of a table, their results and the report."""

import inspect
import json
import logging
import math
import shlex
from pathlib import Path

import pandas as pd

from jet_hf.analysis.cost import count_parameters, training_flops
from jet_hf.model.configuration_jet import JetConfig
from jet_hf.training import TrainArguments, parse_arguments
from jet_hf.training.checkpoints import list_checkpoints
from jet_hf.training.dry_run import release_images
from jet_hf.training.setup import count_steps
from jet_hf.utils.files import replace_text, strict_json
from jet_hf.utils.tables import markdown_table

from .arguments import SweepArguments
from .runs import Run, base_flags, check_settings, make_runs, parse_assignments, run_all, script
from .tables import TABLES, Table, read_grid


logger = logging.getLogger(__name__)

FINISHED, FAILED, UNFINISHED, NOT_STARTED = "finished", "failed", "unfinished", "not started"


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
    if arguments.grid is not None:
        name, (table, recipe, seeds) = Path(arguments.grid).stem, read_grid(arguments.grid)
    else:
        name, table, recipe, seeds = arguments.table, TABLES[arguments.table], "", [0]
    recipe, seeds = arguments.config or recipe, arguments.seeds or seeds
    cells = table.cells(parse_assignments(arguments.axis or [], "axis"))
    folder, overrides = Path(arguments.output_dir) / name, parse_assignments(arguments.override or [], "override")
    runs = make_runs(cells, recipe, overrides, seeds, folder)
    check_settings(runs)
    left = [run for run in runs if not run.is_complete]
    if arguments.dry_run:
        print(describe(table, collect_rows(name, runs)))
        return 0
    if arguments.print_commands:
        for run in left:
            print(shlex.join(["python", script("launch.py"), *run.launch_arguments(arguments.accelerate_config)]))
        return 0
    if not arguments.report_only:
        run_all(left, arguments.accelerate_config)
    rows = collect_rows(name, runs)
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "results.jsonl", "".join(strict_json(row) + "\n" for row in rows))
    print(mean_table(rows))
    if arguments.report:
        from .report import write_report  # the training machine needs neither SciPy nor matplotlib

        base = parse_arguments(base_flags(recipe, overrides))
        write_report(Path(arguments.report), command, table, cells, rows, base)
        logger.info(f"wrote {arguments.report}")
    missing = [row for row in rows if row["status"] != FINISHED]
    for row in missing:
        logger.warning(f"{row['cell']}/seed_{row['seed']} has no result: {row['reason']}.")
    return 1 if missing else 0


def describe(table: Table, rows: list[dict]) -> str:
    """Return the plan of a sweep: the axes of the table, and the status and the size of each run."""
    lines = [f"{table.title}. Paper: {table.setting}." if table.setting else f"{table.title}."]
    lines += [f"axis {name}: {', '.join(map(str, values))}" for name, values in table.axes.items()]
    for row in rows:
        flops = f"{row['training_flops']:.3g}" if row["training_flops"] else "unknown"
        lines.append(
            f"{row['cell']}/seed_{row['seed']}: {row['status']}, {row['num_parameters']:,} parameters, "
            f"{flops} training FLOPs"
        )
    left = [row["training_flops"] for row in rows if row["status"] != FINISHED]
    total = "unknown" if None in left else f"{sum(left):.3g}"
    lines.append(f"{len(left)} of {len(rows)} runs have no result; their training FLOPs: {total}.")
    return "\n".join(lines)


def mean_table(rows: list[dict]) -> str:
    """Return a table of the cells' bits per dimension: mean, standard deviation, and extremes over the seeds."""
    bits = pd.DataFrame(rows).astype({"bits_per_dim": float}).groupby("cell", sort=False)["bits_per_dim"]
    lines = [["cell", "bits per dimension", "standard deviation", "lowest", "highest", "seeds"]]
    for cell, values in bits.agg(["mean", "std", "min", "max", "count"]).iterrows():
        numbers = [
            "n/a" if math.isnan(values[name]) else f"{values[name]:.4f}" for name in ("mean", "std", "min", "max")
        ]
        lines.append([str(cell), *numbers, f"{values['count']:.0f}"])
    return markdown_table(lines, left=1)


def read_run(run: Run) -> tuple[str, str | None, dict]:
    """Return the status of a run, the reason if it has no result, and its last evaluation."""
    if not run.is_complete:
        if not (run.folder / "recipe.yaml").is_file():
            return NOT_STARTED, "not started", {}
        checkpoints = list_checkpoints(run.folder)
        last = checkpoints[-1].name if checkpoints else "none"
        return UNFINISHED, f"running, stopped or failed; last checkpoint: {last}", {}
    path = run.folder / "evaluations.jsonl"
    if not path.is_file():
        return FAILED, "finished without an evaluation, for want of held-out images", {}
    evaluation = json.loads(path.read_text().splitlines()[-1])
    bits = evaluation["bits_per_dim"]
    if bits is None or not math.isfinite(bits):  # null, or the NaN and Infinity of earlier releases
        return FAILED, f"diverged: {bits} bits per dimension at the end", {}
    return FINISHED, None, evaluation


def planned_steps(arguments: TrainArguments) -> int | None:
    """Return the number of optimizer steps, if the recipe or the release of the dataset determines it."""
    num_images = release_images(arguments)
    if arguments.max_steps is None and num_images is None:
        return None
    return count_steps(arguments, num_images)


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
        status, reason, evaluation = read_run(run)
        num_parameters, flops_per_image = sizes[run.cell.name]
        arguments = run.arguments
        num_steps = evaluation.get("step") or planned_steps(arguments)
        rows.append(
            {
                "table": table,
                "cell": run.cell.name,
                "seed": run.seed,
                "status": status,
                "reason": reason,
                "bits_per_dim": evaluation.get("bits_per_dim"),
                "standard_error": evaluation.get("standard_error"),
                "num_eval_images": evaluation.get("num_images"),
                "paper_bits_per_dim": run.cell.paper,
                "num_parameters": num_parameters,
                "training_flops": num_steps and float(flops_per_image * arguments.train_batch_size * num_steps),
                "num_steps": num_steps,
                "train_batch_size": arguments.train_batch_size,
                "learning_rate": arguments.learning_rate,
                **{name: getattr(run.config, name) for name in inspect.get_annotations(JetConfig)},
                **run.cell.fields,
            }
        )
    return rows
