# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Trackers of a training run, such as tensorboard, trackio and wandb."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from PIL import Image

from ..arguments import TrainArguments
from ..hub import check_login
from ..utils.files import replace_text, strict_json
from .processes import on_main_process


TRACKERS_DIR = "trackers"


def check_installed(trackers: list[str] | None) -> None:
    """Raise ValueError for a tracker that is unknown or not installed, which accelerate would skip silently."""
    installed = [str(tracker) for tracker in get_available_trackers()]
    for tracker in trackers or []:
        if tracker != "all" and tracker not in installed:
            raise ValueError(
                f"`report_to` must name installed trackers ({', '.join(installed) or 'none is'}), got {tracker}."
            )


def check_logins(trackers: list[str]) -> None:
    """
    Log in to trackers that need it. In a terminal, wandb asks for the key.

    Raises:
        ValueError: for a missing login; the message says what to do.
    """
    if "wandb" in trackers:
        import wandb

        try:
            wandb.login()
        except wandb.Error as error:
            raise ValueError(
                f"`report_to` wandb needs a login ({error}): run `wandb login`, set WANDB_API_KEY, or set "
                "WANDB_MODE=offline to log to files."
            ) from error
    if "trackio" in trackers and os.environ.get("TRACKIO_SPACE_ID") and (problem := check_login()):
        raise ValueError(f"`report_to` trackio needs a login for the Space TRACKIO_SPACE_ID: {problem}")


class Trackers:
    """
    Trackers of a run. The main process logs; the others have none.

    The names of the run in its trackers are kept in `output_dir`, so that every start continues in the same run of
    each tracker, unless `project` or `run_name` changes. A start repeats the steps after its checkpoint: tensorboard
    then drops the earlier rows of these steps, and the other trackers do not receive them again. All files of the
    trackers lie in `output_dir`, unless the environment names another folder.

    Args:
        arguments: Arguments of the run, which the trackers show.
        accelerator: Accelerator with the trackers.
        start_step: Optimizer steps already completed when resuming.
        is_extended: Whether the steps after the checkpoint are no repetition, so that all trackers receive them.

    Raises:
        ConnectionError: if a tracker cannot be started.
    """

    def __init__(self, arguments: TrainArguments, accelerator: Accelerator, start_step: int, is_extended: bool):
        self.arguments, self.accelerator, self.is_extended = arguments, accelerator, is_extended
        self.folder = Path(arguments.output_dir) / TRACKERS_DIR
        self.runs: dict[str, str] = {}  # names or ids that trackers gave this run at an earlier start
        on_main_process(lambda: self._start(start_step))

    def log(self, kind: str, row: dict, is_repeated: bool = False) -> None:
        """
        Log a row as `kind/name` values.

        Args:
            kind: Prefix of the names.
            row: Values by name; `step` is among them.
            is_repeated: Whether an earlier start of the run has logged this row.
        """
        values = {f"{kind}/{name}": value for name, value in row.items() if value is not None}
        for tracker in self._recipients(is_repeated):
            if tracker.name == "wandb":
                tracker.log(values | {"step": row["step"]})
            else:
                tracker.log(values, step=row["step"])

    def log_image(self, name: str, step: int, image: Image.Image, is_repeated: bool = False) -> None:
        """Show an image of a step in the trackers that take images; see [`log`]."""
        pixels = np.asarray(image).reshape(image.height, image.width, -1)
        for tracker in self._recipients(is_repeated):
            if tracker.name == "tensorboard":
                tracker.log_images({name: pixels[None]}, step=step, dataformats="NHWC")
            elif tracker.name == "wandb":
                tracker.log({"step": step}, commit=False)
                tracker.log_images({name: [pixels]})
            elif hasattr(tracker, "log_images"):
                tracker.log_images({name: [pixels]}, step=step)

    def _recipients(self, is_repeated: bool) -> list:
        """Return the trackers that a row or an image goes to."""
        kept = self.runs.keys() - {"tensorboard"} if is_repeated and not self.is_extended else ()
        return [tracker for tracker in self.accelerator.trackers if tracker.name not in kept]

    def _start(self, start_step: int) -> None:
        if not self.accelerator.log_with:
            return
        arguments, path = self.arguments, self.folder / "runs.json"
        identity = {"project": arguments.project, "run_name": arguments.run_name}
        if path.exists():
            saved = json.loads(path.read_text())
            if saved["identity"] == identity:
                self.runs = saved["runs"]
        self.folder.mkdir(exist_ok=True)
        os.environ.setdefault("TRACKIO_DIR", str(self.folder.absolute() / "trackio"))  # read when trackio is imported
        name = arguments.run_name or Path(arguments.output_dir).resolve().name
        options = {
            # A new run evaluates step 0.
            "tensorboard": {"purge_step": start_step + 1 if start_step else 0},
            "trackio": {
                "name": self.runs.get("trackio", name),
                "resume": "allow" if "trackio" in self.runs else "never",
            },
            "wandb": {
                "name": name,
                "id": self.runs.get("wandb"),
                "resume": "allow",
                "dir": os.environ.get("WANDB_DIR", str(self.folder)),
            },
        }
        try:
            self.accelerator.init_trackers(arguments.project, init_kwargs=options)
        except Exception as error:
            names = ", ".join(map(str, self.accelerator.log_with))
            raise ConnectionError(
                f"`report_to` {names} could not be started: {type(error).__name__}: {error}"
            ) from error
        settings = {name: value for name, value in asdict(arguments).items() if isinstance(value, int | float | str)}
        for tracker in self.accelerator.trackers:
            # tensorboard would show another column of hyperparameters for each start.
            if tracker.name != "tensorboard" or "tensorboard" not in self.runs:
                tracker.store_init_configuration(settings)
            if tracker.name == "wandb":
                # The steps of wandb only grow, but a resumed run may evaluate a step after later ones were logged.
                tracker.tracker.define_metric("*", step_metric="step")
        replace_text(path, strict_json({"identity": identity, "runs": self.runs | self._names()}, indent=2) + "\n")

    def _names(self) -> dict[str, str]:
        """Return the names by which trackers find this run again."""
        found = {
            "tensorboard": lambda tracker: tracker.run_name,
            "trackio": lambda tracker: tracker.tracker.name,
            "wandb": lambda tracker: tracker.tracker.id,
        }
        return {item.name: found[item.name](item) for item in self.accelerator.trackers if item.name in found}
