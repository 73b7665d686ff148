# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Command-line arguments of `scripts/sweep.py`."""

from dataclasses import dataclass, field

from .tables import TABLES


@dataclass
class SweepArguments:
    """
    All arguments of a sweep.

    Raises:
        ValueError: for seeds that are negative or repeated.
    """

    table: str = field(metadata={"help": "Table of the paper.", "choices": list(TABLES)})
    config: str = field(metadata={"help": "Recipe that every run starts from."})
    output_dir: str = field(
        default="runs/sweep",
        metadata={"help": "Output folder. A run writes to TABLE/CELL/seed_SEED, results go to TABLE/results.jsonl."},
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Seeds; each cell is run with each seed."})
    override: list[str] = field(
        default_factory=list,
        metadata={"help": "FIELD=VALUE, or FIELD=A,B for a list: replaces a field of the recipe."},
    )
    axis: list[str] = field(
        default_factory=list,
        metadata={"help": "NAME=A,B: replaces the paper's values on an axis of the table. --dry_run lists the axes."},
    )
    accelerate_config: str | None = field(
        default=None,
        metadata={"help": "Configuration file of `accelerate launch`, such as those in recipes/accelerate."},
    )
    dry_run: bool = field(default=False, metadata={"help": "List the runs with their status and size, and exit."})
    print_commands: bool = field(
        default=False, metadata={"help": "Print the command of each run that is not finished, one per line, and exit."}
    )
    report: str | None = field(
        default=None, metadata={"help": "Markdown file to write the report to; a plot goes beside it."}
    )
    report_only: bool = field(
        default=False, metadata={"help": "Start no run; collect the results and write the report."}
    )

    def __post_init__(self):
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"`seeds` must be distinct integers of at least 0, got {self.seeds}.")
