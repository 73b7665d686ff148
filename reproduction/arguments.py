# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Command-line arguments of `scripts/sweep.py`."""

from collections.abc import Sequence
from dataclasses import dataclass

from jet_hf.utils.arguments import BoundedArguments, argument

from .tables import TABLES


@dataclass
class SweepArguments(BoundedArguments):
    """
    Run a grid of trainings over any fields and seeds, or a table of the paper, and compare the results.

        python scripts/sweep.py --grid recipes/sweeps/rates_and_widths.yaml --dry_run
        python scripts/sweep.py --grid recipes/sweeps/rates_and_widths.yaml \\
            --accelerate_config recipes/accelerate/cpu.yaml
        python scripts/sweep.py --table glow_parts --config recipes/sweeps/photographs.yaml --seeds 0 1 2 \\
            --accelerate_config recipes/accelerate/cpu.yaml --report docs/sweeps/glow_parts.md
        python scripts/sweep.py --table coupling_layouts --config recipes/sweeps/imagenet1k_64.yaml \\
            --accelerate_config recipes/accelerate/ddp.yaml --print_commands > commands.txt

    The same command resumes a sweep that was stopped or killed: finished runs are kept, and the others continue from
    their last checkpoint. On a cluster, run the printed commands, one per job; see docs/sweeps/README.md.
    """

    grid: str | None = argument("YAML file with a recipe (config), values of fields (grid) and seeds.", None)
    table: str | None = argument("Table of the paper, instead of a grid.", None, choices=TABLES)
    config: str | None = argument("Recipe that every run starts from; by default that of the grid.", None)
    output_dir: str = argument("Folder for TABLE/CELL/seed_SEED and TABLE/results.jsonl.", "runs/sweep")
    seeds: Sequence[int] | None = argument("Seeds to run each cell with; by default those of the grid, or 0.", None)
    override: Sequence[str] | None = argument("FIELD=VALUE, or FIELD=A,B: replaces a field of the recipe.", None)
    axis: Sequence[str] | None = argument("NAME=A,B: replaces the paper's values on an axis; see --dry_run.", None)
    accelerate_config: str | None = argument("Configuration file of accelerate; see recipes/accelerate.", None)
    dry_run: bool = argument("List the axes, and the runs with their status and size, and exit.", False)
    print_commands: bool = argument("Print the commands of unfinished runs, one per line, and exit.", False)
    report: str | None = argument("Markdown file to write the report to; a plot goes beside it.", None)
    report_only: bool = argument("Start no run; collect the results and write the report.", False)

    def __post_init__(self):
        super().__post_init__()
        if (self.grid is None) == (self.table is None):
            raise ValueError(f"one of `grid` and `table` must be given, got {'neither' if not self.grid else 'both'}.")
        if self.table is not None and self.config is None:
            raise ValueError("`config` must be given with `table`.")
        if self.grid is not None and self.axis:
            raise ValueError("`axis` is for a table of the paper and cannot be combined with `grid`.")
