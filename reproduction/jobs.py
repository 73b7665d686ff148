# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Text that hands the runs of a sweep to a scheduler.

Each job is the sweep itself with `--runs` naming its one run, so that locks, failures and results are those of a sweep
on one machine, and a job that is started again goes on where it was.
"""

import shlex

from .plan import Run


STOP_SECONDS = 120  # between a scheduler's warning and its end


def slurm_script(
    command: list[str], runs: list[Run], name: str, num_parallel: int, options: list[str], setup: str | None
) -> str:
    """
    A job array for `sbatch`.

    Args:
        command: The sweep's own command line, without `--runs`, running locally.
        runs: One task each.
        name: Of the array.
        num_parallel: Tasks at a time.
        options: Of `sbatch`, such as `--gpus-per-node=8`.
        setup: Shell commands before it, such as one that enters an environment.
    """
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name={name}",
        f"#SBATCH --array=0-{len(runs) - 1}%{num_parallel}",
        "#SBATCH --nodes=1 --ntasks-per-node=1",
        f"#SBATCH --requeue --signal=TERM@{STOP_SECONDS}",
        *(f"#SBATCH {option}" for option in options),
        "set -euo pipefail",
        *([setup] if setup else []),
        "runs=(",
        *(f"  {shlex.quote(run.name)}" for run in runs),
        ")",
        f'exec srun {shlex.join(command)} --runs "${{runs[$SLURM_ARRAY_TASK_ID]}}"',
    ]
    return "\n".join(lines) + "\n"


def hf_jobs_script(
    command: list[str], runs: list[Run], name: str, image: str, options: list[str], setup: str | None
) -> str:
    """
    One `hf jobs run` for each run.

    Args:
        command: As of [`slurm_script`]; its paths are those inside the job.
        runs: One job each.
        name: Label of the jobs.
        image: Of the container.
        options: Of `hf jobs run`: `--flavor`, `--timeout`, and `--volume`, without which nothing outlives a job.
        setup: Shell commands before it, which bring the code.
    """
    lines = ["#!/bin/bash", "set -euo pipefail"]
    for run in runs:
        inner = " && ".join([*([setup] if setup else []), f"exec {shlex.join([*command, '--runs', run.name])}"])
        job = ["hf", "jobs", "run", "--detach", "--label", f"sweep={name}", *options, image, "bash", "-c", inner]
        lines.append(shlex.join(job))
    return "\n".join(lines) + "\n"
