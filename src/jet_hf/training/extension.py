# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""`--extend`: continue from a checkpoint to another number of steps, or with another schedule."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..arguments import TrainArguments
from .checkpoints import EXTENDABLE, MANIFEST, Checkpoint, changed_settings, list_checkpoints, with_defaults


def extension_of(start: Checkpoint, trajectory: Mapping[str, Any]) -> dict[str, Any] | None:
    """
    Return the record of all extensions of a run, for the entry `extended` of its trajectory; `None` if there are none.

    It holds the steps at which the run was extended, and the numbers of steps of the warm-up and of the noise
    curriculum, which follow from the first length of the run. If nothing differs from the checkpoint, the run was
    extended before, and this resumes it.

    Raises:
        ValueError: if no step would be left, or none after the warm-up.
    """
    before = with_defaults(start.trajectory)
    if all(before[name] == trajectory[name] for name in EXTENDABLE):
        return before["extended"]
    if trajectory["num_steps"] <= start.step:
        raise ValueError(
            f"`max_steps` must be above the {start.step} steps of {start.path} to extend its run, got "
            f"{trajectory['num_steps']}."
        )
    extended = {
        "at_steps": [],
        "warmup_steps": round(before["warmup_ratio"] * before["num_steps"]),
        "noise_curriculum_steps": max(1, round(before["noise_curriculum_ratio"] * before["num_steps"])),
        **(before["extended"] or {}),
    }
    if trajectory["num_steps"] <= extended["warmup_steps"]:
        raise ValueError(
            f"`max_steps` must be above the {extended['warmup_steps']} steps of warm-up of the run of {start.path}, "
            f"which an extension keeps, got {trajectory['num_steps']}."
        )
    return extended | {"at_steps": [*extended["at_steps"], start.step]}


def schedule_ratios(arguments: TrainArguments, extended: Mapping[str, Any] | None, num_steps: int) -> dict[str, float]:
    """Return the fractions of steps in the warm-up and in the noise curriculum, both of which extensions keep."""
    ratios = {"warmup_ratio": arguments.warmup_ratio, "noise_curriculum_ratio": arguments.noise_curriculum_ratio}
    if extended is not None:
        ratios["warmup_ratio"] = extended["warmup_steps"] / num_steps
        # Earlier releases did not record the curriculum, since they had none.
        ratios["noise_curriculum_ratio"] = min(1.0, extended.get("noise_curriculum_steps", num_steps) / num_steps)
    return ratios


def check_later_checkpoints(output_dir: Path, start: Checkpoint, trajectory: Mapping[str, Any]) -> None:
    """
    Make sure that all checkpoints after the one to resume from belong to the same course of training.

    Otherwise, `latest` could find one of another course after an interruption.

    Raises:
        ValueError: if some do not; the message names them.
    """
    others = []
    for path in list_checkpoints(output_dir):
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            if manifest["step"] > start.step and changed_settings(manifest["trajectory"], trajectory):
                others.append(path.name)
        except (OSError, ValueError, KeyError):
            continue  # it is incomplete, and no run resumes from it
    if others:
        raise ValueError(
            f"{output_dir} must not hold later checkpoints with other settings than the run that resumes from "
            f"{start.path}: move {', '.join(others)} away, or choose another `output_dir`."
        )
