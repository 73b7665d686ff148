# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The results of a sweep: one row a run, in a file that `datasets.load_dataset("json", data_files=...)` opens."""

import inspect
import json
import statistics
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jet_hf.analysis import cost
from jet_hf.model.configuration_jet import JetConfig
from jet_hf.training.dry_run import release_images
from jet_hf.training.setup import count_steps
from jet_hf.utils.files import replace_text, strict_json

from .plan import FAILED, FINISHED, Run, State
from .tables import Cell


RESULTS_FILE = "results.jsonl"


def result_row(table: str, run: Run, state: State) -> dict:
    """
    What is known of a run. Every row has the same keys; what does not apply is `None`.

    Training operations are those of the configuration, `num_steps` x `train_batch_size` images; what gradient
    checkpointing computes anew is not counted.
    """
    evaluation = state.evaluation or {}
    row = {
        "table": table,
        "cell": run.cell.name,
        "seed": run.seed,
        "status": state.status,
        "reason": state.reason or None,
        "bits_per_dim": evaluation.get("bits_per_dim"),
        "standard_error": evaluation.get("standard_error"),
        "num_eval_images": evaluation.get("num_images"),
        "paper_bits_per_dim": run.cell.paper,
        "num_parameters": None,
        "training_flops": None,
        "num_steps": None,
        "train_batch_size": None,
        "learning_rate": None,
    }
    fields = inspect.get_annotations(JetConfig)
    if run.arguments is None:
        return row | dict.fromkeys(fields)
    config, batch_size = run.config, run.arguments.train_batch_size
    num_steps = evaluation.get("step") or planned_steps(run)
    num_parameters, flops_per_image = count_model(config)
    return {
        **row,
        "num_parameters": num_parameters,
        "training_flops": num_steps and float(flops_per_image * batch_size * num_steps),
        "num_steps": num_steps,
        "train_batch_size": batch_size,
        "learning_rate": run.arguments.learning_rate,
        **{name: getattr(config, name) for name in fields},
    }


def planned_steps(run: Run) -> int | None:
    """Optimiser steps of a run that is not finished, where its recipe or the release of its data tells them."""
    if run.arguments.max_steps is None and release_images(run.arguments) is None:
        return None
    return count_steps(run.arguments, release_images(run.arguments))


def count_model(config: JetConfig) -> tuple[int, int]:
    """Parameters, and training operations of one image; counted once for all seeds."""
    fields = {name: getattr(config, name) for name in inspect.get_annotations(JetConfig)}
    return _count_fields(strict_json(fields | {"permutation_seed": 0}))


@cache
def _count_fields(fields: str) -> tuple[int, int]:
    config = JetConfig(**json.loads(fields))
    return cost.count_parameters(config), cost.training_flops(config)


def write_results(folder: Path, rows: list[dict]) -> Path:
    """Writes the rows of a table."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / RESULTS_FILE, "".join(strict_json(row) + "\n" for row in rows))
    return folder / RESULTS_FILE


@dataclass(frozen=True)
class CellResult:
    """
    A cell over its seeds.

    Args:
        cell: Which.
        bits: Bits per dimension of finished runs, by seed.
        failures: Reasons of failed ones, by seed.
        num_parameters, flops: Of a run; `None` where unknown.
        num_runs: Seeds that were asked for.
    """

    cell: Cell
    bits: dict[int, float]
    failures: dict[int, str]
    num_parameters: int | None
    flops: float | None
    num_runs: int

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.bits.values())

    @property
    def standard_error(self) -> float | None:
        """Of the mean over seeds; `None` for fewer than two."""
        if len(self.bits) < 2:
            return None
        return statistics.stdev(self.bits.values()) / len(self.bits) ** 0.5


def by_cell(cells: list[Cell], rows: list[dict]) -> list[CellResult]:
    """Rows put together by cell."""
    found = []
    for cell in cells:
        own = [row for row in rows if row["cell"] == cell.name]
        flops = [row["training_flops"] for row in own if row["training_flops"] is not None]
        sizes = [row["num_parameters"] for row in own if row["num_parameters"] is not None]
        found.append(
            CellResult(
                cell,
                {row["seed"]: row["bits_per_dim"] for row in own if row["status"] == FINISHED},
                {row["seed"]: row["reason"] for row in own if row["status"] == FAILED},
                sizes[0] if sizes else None,
                flops[0] if flops else None,
                len(own),
            )
        )
    return found


def pareto_front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of points (operations, bits per dimension), those that no other one undercuts in both, cheapest first."""
    front: list[tuple[float, float]] = []
    for point in sorted(set(points)):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front
