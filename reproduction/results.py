# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Results of the runs: one row per run."""

import inspect
import json
import math

from jet_hf.analysis.cost import count_parameters, training_flops
from jet_hf.model.configuration_jet import JetConfig
from jet_hf.training import TrainArguments
from jet_hf.training.checkpoints import list_checkpoints
from jet_hf.training.dry_run import release_images
from jet_hf.training.setup import count_steps

from .runs import Run


FINISHED, FAILED, UNFINISHED, NOT_STARTED = "finished", "failed", "unfinished", "not started"


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
            }
        )
    return rows
