# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that are complete or absent: drafted, listed with their checksums, synced to the disk, renamed."""

import hashlib
import json
import logging
import re
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from ..arguments import TrainArguments
from ..model.image_processing_jet import JetImageProcessor
from ..utils.files import publish_folder, strict_json
from ..utils.xla import to_host
from .monitor import MetricsWindow
from .trainer import Trainer


logger = logging.getLogger(__name__)

MANIFEST = "checkpoint.json"
# Folder of the weights without their moving average, beside the evaluated model.
TRAINING_WEIGHTS = "training_weights"
# Folder of the model with the best evaluation.
BEST = "best"
# The names of all folders that a run writes or deletes in part, and no others.
DRAFTS = re.compile(r"\.((checkpoint-\d+|best(-\d+)?)(\.draft|\.old|\.draft\.old)|model\.draft|push\.draft)")
# Entries of a trajectory that may change at a checkpoint, with `extend`.
EXTENDABLE = {"num_steps", "lr_scheduler_type", "cooldown_ratio", "spike_factor"}
# Entries that earlier releases did not record, with the values for what they did.
EARLIER_RELEASES = {
    "first_label": None,
    "lr_scheduler_type": "cosine",
    "cooldown_ratio": 0.2,
    "spike_factor": None,
    "noise_curriculum": 0.0,
    "noise_curriculum_ratio": 1.0,
    "random_flip": False,
    "mutation_rate": 0.0,
    "extended": None,
}


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message names it."""


class Checkpoint(NamedTuple):
    """
    A complete checkpoint; `None` and empty states stand for what earlier releases did not record.

    Args:
        path: Its folder.
        step: Number of optimizer steps completed.
        trajectory: Settings of its run.
        micro_batch_size: Images of a micro-batch of a process.
        guard, window: States of the update guard and the metrics window.
    """

    path: Path
    step: int
    trajectory: dict
    micro_batch_size: int | None
    guard: dict
    window: dict


@dataclass
class Checkpointer:
    """
    Save and load weights, moving average, optimizer and schedule; all processes call the methods.

    Args:
        trajectory: Settings that must match for a resumed run to be bit-identical.
        window: Metrics since the last row of `metrics.jsonl`.
        grace_seconds: Seconds after which the launcher kills a run that is still saving; `None` if it never does.
    """

    arguments: TrainArguments
    trainer: Trainer
    processor: JetImageProcessor
    trajectory: dict
    window: MetricsWindow
    grace_seconds: float | None

    def __post_init__(self) -> None:
        self.accelerator, self.output_dir = self.trainer.accelerator, Path(self.arguments.output_dir)
        self.accelerator.register_for_checkpointing(self.trainer.scheduler)
        # Outside FSDP, accelerate would save the names of the wrapped model; these hooks write one that loads.
        self.accelerator.register_save_state_pre_hook(self._write_weights)
        self.accelerator.register_load_state_pre_hook(self._read_weights)

    def load(self, checkpoint: Checkpoint) -> None:
        """Load the state of a run."""
        self.accelerator.load_state(str(checkpoint.path))
        self.accelerator.step = 0  # another number of accumulation steps must not start in the middle of a batch
        if self.trainer.ema:
            earlier, path = checkpoint.path / "ema", str(checkpoint.path)  # earlier releases kept the average apart
            reader = dcp.FileSystemReader(earlier) if earlier.exists() else dcp.HuggingFaceStorageReader(path)
            with warnings.catch_warnings():  # one process needs no group of processes
                warnings.filterwarnings("ignore", "torch.distributed is disabled")
                dcp.load(self.trainer.ema, storage_reader=reader)
        self.trainer.step_count = checkpoint.step

    def save(self) -> None:
        """
        Write `checkpoint-STEP`, and delete the oldest checkpoints beyond the limit.

        `from_pretrained` opens the model that is evaluated at this step: the moving average, where there is one.

        Raises:
            CheckpointError: if the checkpoint could not be written. Earlier checkpoints are untouched.
        """
        start, accelerator = time.monotonic(), self.accelerator
        final = self.output_dir / f"checkpoint-{self.trainer.step_count}"
        draft = self.output_dir / f".{final.name}.draft"
        with whole_or_absent(draft, final):
            if accelerator.is_main_process:
                shutil.rmtree(draft, ignore_errors=True)
                draft.mkdir(parents=True)
            accelerator.wait_for_everyone()
            with self.trainer.averaged_weights():
                self.trainer.save_model(draft)
            accelerator.step = 0  # as after loading, so that resumed runs write the same bytes
            accelerator.save_state(str(draft))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                self.processor.save_pretrained(draft)
                self._write_manifest(draft)
                publish_folder(draft, final)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self._check_grace(time.monotonic() - start)
            prune_checkpoints(self.output_dir, self.arguments.save_total_limit)

    def _write_manifest(self, draft: Path) -> None:
        files = sorted(path for path in draft.rglob("*") if path.is_file())
        num_shares = self.accelerator.num_processes * self.accelerator.gradient_accumulation_steps
        manifest = {
            "step": self.trainer.step_count,
            "trajectory": self.trajectory,
            "num_processes": self.accelerator.num_processes,
            "micro_batch_size": self.arguments.train_batch_size // num_shares,
            "guard": self.trainer.guard.state_dict(),
            "window": asdict(self.window),
            "files": {path.relative_to(draft).as_posix(): _checksum(path) for path in files},
        }
        (draft / MANIFEST).write_text(strict_json(manifest, indent=2) + "\n")

    def _write_weights(self, models: list[torch.nn.Module], weights: list[dict], folder: str) -> None:
        if weights and self.trainer.ema and self.accelerator.is_main_process:
            state_dict = to_host(self.trainer.base_model.state_dict())
            self.trainer.base_model.save_pretrained(Path(folder) / TRAINING_WEIGHTS, state_dict=state_dict)
            self.processor.save_pretrained(Path(folder) / TRAINING_WEIGHTS)
        weights.clear()

    def _read_weights(self, models: list[torch.nn.Module], folder: str) -> None:
        if models:
            weights = Path(folder) / TRAINING_WEIGHTS
            # Without an average, and in earlier releases, they are those of the checkpoint's model.
            path = (weights if weights.exists() else Path(folder)) / "model.safetensors"
            self.trainer.base_model.load_state_dict(load_file(path))
        models.clear()

    def _check_grace(self, seconds: float) -> None:
        """Warn once if the launcher might kill the run before a checkpoint after SIGTERM is complete."""
        if self.grace_seconds is not None and seconds > self.grace_seconds / 2:
            logger.warning(
                f"saving a checkpoint took {seconds:.0f} seconds, but the launcher kills its processes "
                f"{self.grace_seconds:.0f} seconds after SIGTERM or Ctrl-C: set TORCH_ELASTIC_SHUTDOWN_TIMEOUT to "
                f"more than {2 * seconds:.0f} before the launch, or the checkpoint may be lost."
            )
            self.grace_seconds = None


@contextmanager
def whole_or_absent(draft: Path, final: Path) -> Iterator[None]:
    """
    Delete the draft of a folder if the block fails.

    Raises:
        CheckpointError: for any error of the block; it names the folder and the free space.
    """
    try:
        yield
    # The writers of tensors raise errors of their own kinds for a full disk.
    except Exception as error:
        shutil.rmtree(draft, ignore_errors=True)
        kept = ", ".join(path.name for path in list_checkpoints(final.parent)) or "none"
        raise CheckpointError(
            f"{final} could not be written: {type(error).__name__}: {error} "
            f"({shutil.disk_usage(final.parent).free / 2**20:.0f} MiB are free). Earlier checkpoints are "
            f"untouched: {kept}."
        ) from error


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Return the folders `checkpoint-STEP` of a run, oldest first, complete or not."""
    found = [
        (int(match[1]), path)
        for path in output_dir.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(found)]


def read_manifest(checkpoint: Path) -> dict:
    """
    Return the manifest of a checkpoint after comparing every file with its checksum.

    Raises:
        CheckpointError: if the checkpoint does not exist or is incomplete.
    """
    if not checkpoint.exists():
        raise CheckpointError(f"the checkpoint {checkpoint} does not exist.")
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        for name, checksum in manifest["files"].items():
            if _checksum(checkpoint / name) != checksum:
                raise CheckpointError(f"{checkpoint} is damaged: the checksum of {name} does not match.")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint} is not a complete checkpoint: {error!r}.") from error
    return manifest


def find_checkpoint(output_dir: Path, wanted: str) -> Checkpoint | None:
    """
    Return the checkpoint to resume from; `None` if there is none.

    Args:
        output_dir: Folder of the run.
        wanted: Path of a checkpoint, or `latest` for the newest complete one, with a warning for each incomplete one.

    Raises:
        CheckpointError: if the checkpoint at the given path does not exist or is incomplete.
    """
    paths = reversed(list_checkpoints(output_dir)) if wanted == "latest" else [Path(wanted)]
    for path in paths:
        try:
            manifest = read_manifest(path)
            states = {name: manifest.get(name, {}) for name in ("guard", "window")}
            size = manifest.get("micro_batch_size")
            return Checkpoint(path, manifest["step"], manifest["trajectory"], size, **states)
        except CheckpointError as error:
            if wanted != "latest":
                raise
            logger.warning(f"skipping a checkpoint: {error}")
    return None


def with_defaults(trajectory: dict) -> dict:
    """Return the trajectory of a checkpoint, with the entries that earlier releases did not record."""
    model = {"num_levels": 256, "noise_std": None} | trajectory.get("model", {})
    return EARLIER_RELEASES | trajectory | {"model": model}


def _comparable(theirs: dict, ours: Mapping[str, Any]) -> tuple[dict, dict]:
    """Return the settings of two trajectories, an earlier one and ours, by flat names."""
    before, now = _flatten(with_defaults(theirs)), _flatten(dict(ours))
    if None in (before.get("eval_data"), now.get("eval_data")):
        now.pop("eval_data", None)  # the number of evaluations may change, also from or to none
    return before, now


def changed_settings(theirs: dict, ours: Mapping[str, Any]) -> dict[str, str]:
    """Return a sentence for each setting that two trajectories, an earlier one and ours, record differently."""
    before, now = _comparable(theirs, ours)
    changes = {
        name: f"`{name}` was {before[name]} and is now {now[name]}"
        for name in now
        if name in before and now[name] != before[name]
    }
    # Fingerprints mean nothing to a reader.
    for name, images in (("data", "training"), ("eval_data", "held-out")):
        if name in changes:
            changes[name] = f"the {images} images are not the same ones in the same order"
    return changes


def compare_trajectories(checkpoint: Checkpoint, trajectory: dict, extend: bool = False) -> None:
    """
    Make sure that a run can resume from a checkpoint.

    Args:
        checkpoint: Checkpoint to resume from.
        trajectory: Settings of this run that must match for a resumed run to be bit-identical.
        extend: Whether the settings in `EXTENDABLE` may differ.

    Raises:
        ValueError: if a setting differs from that of the checkpoint; the message names it.
    """
    theirs, ours = _comparable(checkpoint.trajectory, trajectory)
    if unknown := [name for name in ours if name not in theirs]:
        logger.warning(
            f"{checkpoint.path} was written by an earlier release, which did not record {', '.join(unknown)}: changes "
            "of these settings cannot be detected."
        )
    changes = changed_settings(checkpoint.trajectory, trajectory)
    if extend:
        changes = {name: sentence for name, sentence in changes.items() if name not in EXTENDABLE}
    if changes:
        hint = " To continue the run with another length or schedule, add --extend."
        raise ValueError(
            f"cannot resume from {checkpoint.path}: {'; '.join(changes.values())}. To start a new run from its "
            f"weights, give it as `model_name_or_path`.{hint if changes.keys() <= EXTENDABLE else ''}"
        )


def _flatten(settings: dict) -> dict:
    """Return nested settings as one level, with names such as `model.hidden_size`."""
    flat: dict = {}
    for name, value in settings.items():
        inner = _flatten(value) if isinstance(value, dict) else None
        flat |= {name: value} if inner is None else {f"{name}.{key}": item for key, item in inner.items()}
    return flat


def prune_checkpoints(output_dir: Path, limit: int | None) -> None:
    """Delete all but the newest `limit` checkpoints. Folders without a manifest, which cannot resume, do not count."""
    complete = [path for path in list_checkpoints(output_dir) if (path / MANIFEST).exists()]
    for path in complete[: -limit if limit else 0]:
        delete_folder(path)


def delete_folder(path: Path) -> None:
    """Delete a folder of a run, if it exists; it is hidden before its first file is deleted."""
    if path.exists():
        hidden = path.with_name(f".{path.name}.old")
        path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def clear_drafts(output_dir: Path) -> None:
    """
    Delete the folders that a killed run left partly written or partly deleted.

    A folder that it moved aside for a new version, and did not replace, is put back.
    """
    for path in output_dir.iterdir():
        if DRAFTS.fullmatch(path.name):
            final = output_dir / path.name.removeprefix(".").removesuffix(".draft.old")
            if path.name.endswith(".draft.old") and not final.exists():
                path.rename(final)
            else:
                shutil.rmtree(path, ignore_errors=True)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
