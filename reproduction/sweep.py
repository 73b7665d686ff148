# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""A whole sweep: what is to be run, running it or handing it to a scheduler, results and report."""

import logging
import shlex
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from jet_hf.training import TrainArguments

from .jobs import hf_jobs_script, slurm_script
from .plan import (
    FAILED,
    FINISHED,
    Run,
    State,
    base_arguments,
    changed_settings,
    make_runs,
    read_state,
    set_aside,
    split_assignments,
)
from .report import report_text, write_report
from .results import by_cell, result_row, write_results
from .runner import LocalRunner, is_at_work
from .tables import TABLES, Cell, Table


logger = logging.getLogger(__name__)


class SweepError(RuntimeError):
    """A sweep cannot start; the message says what is to be decided first."""


@dataclass
class SweepArguments:
    """Everything a sweep can be told."""

    table: Literal[tuple(TABLES)] = field(metadata={"help": "Table of the paper."})
    config: str = field(metadata={"help": "Recipe that every run starts from."})
    output_dir: str = field(
        default="runs/sweep", metadata={"help": "Folder; a run is in TABLE/CELL/seed_SEED, results in TABLE."}
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Each cell is run with each of these."})
    override: list[str] = field(
        default_factory=list,
        metadata={"help": "FIELD=VALUE in place of the recipe's; lists as FIELD=A,B. See scripts/train.py --help."},
    )
    axis: list[str] = field(
        default_factory=list,
        metadata={"help": "NAME=A,B: other values on an axis of the table than the paper's; --dry_run names them."},
    )
    runs: list[str] | None = field(
        default=None, metadata={"help": "Run these only, each CELL or CELL/seed_SEED; results and report have all."}
    )
    launcher: Literal["local", "slurm", "hf_jobs", "none"] = field(
        default="local",
        metadata={"help": "Run here, print a job array or `hf jobs run` lines, or only collect what there is."},
    )
    num_parallel: int = field(default=1, metadata={"help": "Runs at a time."})
    accelerate_config: str | None = field(
        default=None,
        metadata={"help": "Configuration file of `accelerate launch`, such as those in recipes/accelerate."},
    )
    retry_failed: bool = field(default=False, metadata={"help": "Run failed runs again, from their last checkpoint."})
    rerun_changed: bool = field(
        default=False, metadata={"help": "Move runs of other settings aside and run them anew; else they are refused."}
    )
    dry_run: bool = field(default=False, metadata={"help": "List runs, sizes and what is missing, and exit."})
    report: str | None = field(
        default=None, metadata={"help": "Markdown file to write; a plot of its name beside it."}
    )
    job_options: str = field(
        default="", metadata={"help": "Options of sbatch or `hf jobs run`, as one text: '--flavor a100-large …'."}
    )
    job_setup: str | None = field(default=None, metadata={"help": "Shell commands that a job starts with."})
    job_image: str = field(default="python:3.11", metadata={"help": "Container image of `hf jobs run`."})

    def __post_init__(self):
        if self.num_parallel < 1:
            raise ValueError(f"`num_parallel` must be at least 1, got {self.num_parallel}.")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"`seeds` must be different numbers from 0 on, got {self.seeds}.")
        if self.launcher == "hf_jobs" and not self.job_setup:
            raise ValueError(
                "`job_setup` must bring the code into a job's container, such as 'git clone URL jet && cd jet && pip "
                "install -c constraints.txt .[train]'."
            )

    def command(self, **changes) -> list[str]:
        """The command line that says the same, with other values for some fields; what is a default is left out."""
        words = ["python", "scripts/sweep.py"]
        for item in fields(self):
            value = changes.get(item.name, getattr(self, item.name))
            default = item.default_factory() if callable(item.default_factory) else item.default
            if value is None or value is False or value == default:
                continue
            values = [] if value is True else value if isinstance(value, list) else [value]
            # As one word where it might start with a dash.
            words += (
                [f"--{item.name}={value}"] if item.name == "job_options" else [f"--{item.name}", *map(str, values)]
            )
        return words


def run_sweep(arguments: SweepArguments, train_script: Path) -> int:
    """
    Does what `scripts/sweep.py` is told.

    Args:
        arguments: All that it is told.
        train_script: `scripts/train.py`, which runs are started by.

    Returns:
        Its exit code: 0 if all runs that were asked for are finished (or handed on, listed, collected), 1 if some are
        not, 128 and the signal's number if it was stopped.

    Raises:
        ValueError: for arguments that do not fit the table or the recipe.
        SweepError: if there are runs of other settings in the folder.
    """
    table = TABLES[arguments.table]
    base = base_arguments(arguments.config, arguments.override)
    cells = table.cells(split_assignments(arguments.axis))
    overridden = set(split_assignments(arguments.override))
    folder = Path(arguments.output_dir)
    runs = make_runs(table, cells, base, overridden, arguments.seeds, folder)
    chosen = choose(runs, arguments.runs)
    states = {run.name: read_state(run) for run in runs}
    pending = [run for run in chosen if run.arguments and is_pending(states[run.name], arguments.retry_failed)]
    if arguments.dry_run:
        print(describe(table, runs, chosen, states))
        return 0
    settle_changed(runs, chosen, pending, arguments.rerun_changed and arguments.launcher == "local")
    if arguments.launcher in ("slurm", "hf_jobs"):
        print(job_script(arguments, pending), end="")
        return 0
    stopped_by = None
    if arguments.launcher == "local":
        stopped_by = run_locally(arguments, pending, train_script)
    states = {run.name: read_state(run) for run in runs}
    rows = [result_row(table.name, run, states[run.name]) for run in runs]
    path = write_results(folder / table.name, rows)
    logger.info(f"wrote {path}")
    if arguments.report:
        report(arguments, table, cells, rows, base)
    left = [run for run in chosen if states[run.name].status != FINISHED]
    for run in left:
        logger.warning(f"{run.name}: {states[run.name].status}. {states[run.name].reason}".rstrip())
    if stopped_by:
        return 128 + stopped_by
    return 1 if left and arguments.launcher == "local" else 0


def choose(runs: list[Run], names: list[str] | None) -> list[Run]:
    """
    The runs with these names, each of a cell or of a cell and a seed.

    Raises:
        ValueError: for a name that there is not.
    """
    if names is None:
        return runs
    for name in names:
        if not any(name in (run.name, run.cell.name) for run in runs):
            cells = ", ".join(dict.fromkeys(run.cell.name for run in runs))
            raise ValueError(f"`runs` names {name}, but there are {cells}, each as CELL or CELL/seed_SEED.")
    return [run for run in runs if run.name in names or run.cell.name in names]


def is_pending(state: State, retry_failed: bool) -> bool:
    """Whether a run has something left to do."""
    return state.status != FINISHED and (state.status != FAILED or retry_failed)


def settle_changed(runs: list[Run], chosen: list[Run], pending: list[Run], rerun: bool) -> None:
    """
    Refuses runs that were made with other settings, or moves those among `chosen` aside and adds them to `pending`.

    Raises:
        SweepError: naming them, and the first few differences.
    """
    changed = {run.name: differences for run in runs if (differences := changed_settings(run))}
    for run in chosen if rerun else []:
        if run.name in changed:
            if is_at_work(run.folder):
                raise SweepError(f"{run.name} of other settings is still at work: stop it first.")
            logger.warning(f"{run.name} had other settings: moved to {set_aside(run.folder)}.")
            del changed[run.name]
            if run not in pending:
                pending.append(run)
    if changed:
        name, differences = next(iter(changed.items()))
        raise SweepError(
            f"{len(changed)} runs in {runs[0].folder.parent.parent} were made with other settings, such as {name}: "
            f"{'; '.join(differences[:4])}{' …' if len(differences) > 4 else ''}. Give another --output_dir, or "
            "--rerun_changed to move them aside and run them anew."
        )


def run_locally(arguments: SweepArguments, pending: list[Run], train_script: Path) -> int | None:
    """Works off the runs here; gives the number of the signal that stopped it, if one did."""
    done = 0

    def notify(run: Run, state: State) -> None:
        nonlocal done
        done += 1
        result = f": {state.evaluation['bits_per_dim']:.4f} bits per dimension" if state.evaluation else ""
        logger.info(
            f"[{done}/{len(pending)}] {run.name} {state.status}{result}{': ' * bool(state.reason)}{state.reason}"
        )

    runner = LocalRunner(train_script, arguments.num_parallel, arguments.accelerate_config, notify)
    runner.work_off(pending)
    if runner.stopped_by:
        logger.warning(f"stopped by {runner.stopped_by.name}; the same command goes on.")
    return runner.stopped_by


def job_script(arguments: SweepArguments, pending: list[Run]) -> str:
    """The runs as text for a scheduler."""
    if not pending:
        return "# nothing is left to run\n"
    # The report is for when all have come to their ends.
    options = {"launcher": "local", "num_parallel": 1, "report": None, "runs": None, "rerun_changed": False}
    options |= {"job_options": "", "job_setup": None, "job_image": "python:3.11"}
    command = arguments.command(**options)
    name, job_options = f"jet-{arguments.table}", shlex.split(arguments.job_options)
    if arguments.launcher == "slurm":
        return slurm_script(command, pending, name, arguments.num_parallel, job_options, arguments.job_setup)
    return hf_jobs_script(command, pending, name, arguments.job_image, job_options, arguments.job_setup)


def describe(table: Table, runs: list[Run], chosen: list[Run], states: dict[str, State]) -> str:
    """`--dry_run`: the table's axes and its runs."""
    lines = [f"{table.name}: {table.title}. The paper: {table.setting}."]
    lines += [f"axis {name}: {', '.join(map(str, values))}" for name, values in table.axes.items()]
    total = 0.0
    for run in chosen:
        row, state = result_row(table.name, run, states[run.name]), states[run.name]
        size = f"{row['num_parameters']:,} parameters" if row["num_parameters"] else ""
        flops = f", {row['training_flops']:.3g} FLOPs" if row["training_flops"] else ""
        if state.status != FINISHED:
            total += row["training_flops"] or 0.0
        changed = " (other settings!)" if changed_settings(run) else ""
        lines.append(f"{run.name}: {state.status}{changed} {state.reason or size + flops}".rstrip())
    finished = sum(states[run.name].status == FINISHED for run in runs)
    known = "" if total else ", as far as the number of steps is known"
    lines.append(f"{len(runs)} runs, {finished} finished; {total:.3g} FLOPs left{known}.")
    return "\n".join(lines)


def report(arguments: SweepArguments, table: Table, cells: list[Cell], rows: list[dict], base: TrainArguments) -> None:
    """Writes the report, and the plot where matplotlib is installed."""
    path = Path(arguments.report)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = None
    try:
        from .figure import plot_compute
    except ModuleNotFoundError as error:
        logger.warning(f"no plot: {error}.")
    else:
        picture = path.with_suffix(".png")
        plot_compute(picture, table.title, by_cell(cells, rows))
    command = shlex.join(arguments.command(launcher="local", runs=None, retry_failed=False, rerun_changed=False))
    name = picture.name if picture else None
    write_report(path, report_text(command, table, cells, rows, base, arguments.override, name))
    logger.info(f"wrote {path}{f' and {picture}' if picture else ''}")
