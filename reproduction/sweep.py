# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""A sweep over a table of the paper: its runs, results and report."""

import logging
from pathlib import Path

from jet_hf.training import parse_arguments
from jet_hf.utils.files import replace_text, strict_json

from .arguments import SweepArguments
from .results import FINISHED, collect_rows
from .runs import base_flags, check_settings, make_runs, parse_assignments, run_all
from .tables import TABLES, Table


logger = logging.getLogger(__name__)


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
    table = TABLES[arguments.table]
    cells = table.cells(parse_assignments(arguments.axis, "axis"))
    folder = Path(arguments.output_dir) / arguments.table
    overrides = parse_assignments(arguments.override, "override")
    runs = make_runs(cells, arguments.config, overrides, arguments.seeds, folder)
    check_settings(runs)
    left = [run for run in runs if not run.is_complete]
    if arguments.dry_run:
        print(describe(table, collect_rows(arguments.table, runs)))
        return 0
    if arguments.print_commands:
        for run in left:
            print(run.command(arguments.accelerate_config))
        return 0
    if not arguments.report_only:
        run_all(left, arguments.accelerate_config)
    rows = collect_rows(arguments.table, runs)
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "results.jsonl", "".join(strict_json(row) + "\n" for row in rows))
    if arguments.report:
        from .report import write_report  # the training machine needs no pandas, SciPy or matplotlib

        base = parse_arguments(base_flags(arguments.config, overrides))
        write_report(Path(arguments.report), command, table, cells, rows, base)
        logger.info(f"wrote {arguments.report}")
    missing = [row for row in rows if row["status"] != FINISHED]
    for row in missing:
        logger.warning(f"{row['cell']}/seed_{row['seed']} has no result: {row['reason']}.")
    return 1 if missing else 0


def describe(table: Table, rows: list[dict]) -> str:
    """Return the plan of a sweep: the axes of the table, and the status and the size of each run."""
    lines = [f"{table.title}. Paper: {table.setting}."]
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
