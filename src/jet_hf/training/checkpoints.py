# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that are whole or not there: written aside, listed with their checksums, synced, renamed."""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator

from ..utils.files import publish_folder, strict_json


logger = logging.getLogger(__name__)

MANIFEST = "checkpoint.json"
# Every name that a run gives to a folder while it writes or deletes it, and no other.
DRAFTS = re.compile(r"\.(checkpoint-\d+(\.draft|\.old|\.draft\.old)|model\.draft|push\.draft)")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message names it, and says what is left."""


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The folders `checkpoint-STEP` of a run, oldest first, whole or not."""
    found = [
        (int(match[1]), path)
        for path in output_dir.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(found)]


def read_manifest(checkpoint: Path) -> dict:
    """
    What a checkpoint says of itself, after every file was compared with its checksum.

    Raises:
        CheckpointError: if the checkpoint is not whole.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        for name, checksum in manifest["files"].items():
            if _checksum(checkpoint / name) != checksum:
                raise CheckpointError(f"{checkpoint} is damaged: {name} is not what was written.")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint} is not a whole checkpoint: {error!r}.") from error
    return manifest


def find_checkpoint(output_dir: Path, wanted: str) -> tuple[Path, dict] | None:
    """
    The checkpoint to resume from, and its manifest.

    Args:
        output_dir: Folder of the run.
        wanted: `latest` skips checkpoints that are not whole, with a warning, and gives `None` where none is left; or
            the path of one.

    Raises:
        CheckpointError: if the checkpoint that was named is not whole.
    """
    if wanted != "latest":
        return Path(wanted), read_manifest(Path(wanted))
    for checkpoint in reversed(list_checkpoints(output_dir)):
        try:
            return checkpoint, read_manifest(checkpoint)
        except CheckpointError as error:
            logger.warning(f"skipping a checkpoint: {error}")
    return None


def compare_trajectories(checkpoint: Path, manifest: dict, ours: dict) -> None:
    """
    Make sure that a checkpoint belongs to this run.

    Args:
        checkpoint, manifest: See [`find_checkpoint`].
        ours: Settings of this run that must match for a resumed run to be bit-identical.

    Raises:
        ValueError: if a setting is not that of the checkpoint; the message names it.
    """
    ours, theirs = _flat(ours), _flat(manifest["trajectory"])
    if unknown := [name for name in ours if name not in theirs]:
        logger.warning(
            f"{checkpoint} was written by an earlier release, which did not record {', '.join(unknown)}: whether they "
            "have changed since cannot be checked."
        )
    if changed := [name for name in ours if name in theirs and ours[name] != theirs[name]]:
        changes = {name: f"`{name}` was {theirs[name]} and is now {ours[name]}" for name in changed}
        # Fingerprints say nothing to a reader.
        for name, images in (("data", "training"), ("eval_data", "held-out")):
            if name in changes:
                changes[name] = f"the {images} images are not the same ones in the same order"
        listed = "; ".join(changes.values())
        raise ValueError(
            f"cannot resume from {checkpoint}: {listed}. To start a new run from its weights, give it as "
            "`model_name_or_path`."
        )


def _flat(settings: dict) -> dict:
    """Return nested settings as one level, with names such as `model.hidden_size`."""
    flat = {}
    for name, value in settings.items():
        inner = _flat(value) if isinstance(value, dict) else None
        flat |= {name: value} if inner is None else {f"{name}.{key}": item for key, item in inner.items()}
    return flat


def save_checkpoint(
    output_dir: Path, step: int, about: dict, write: Callable[[Path], None], accelerator: Accelerator
) -> Path:
    """
    Writes `checkpoint-STEP`; all processes call it.

    Args:
        output_dir: Folder of the run.
        step: Optimiser steps done.
        about: Goes into the manifest.
        write: Writes this process's files into the folder that it is given.
        accelerator: Of all processes.

    Raises:
        CheckpointError: if it could not be written; earlier checkpoints are as they were.
    """
    final = output_dir / f"checkpoint-{step}"
    draft = output_dir / f".{final.name}.draft"
    try:
        if accelerator.is_main_process:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
        accelerator.wait_for_everyone()
        write(draft)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            files = sorted(path for path in draft.rglob("*") if path.is_file())
            checksums = {path.relative_to(draft).as_posix(): _checksum(path) for path in files}
            (draft / MANIFEST).write_text(strict_json({"step": step, **about, "files": checksums}, indent=2) + "\n")
            publish_folder(draft, final)
    # The writers of tensors raise errors of their own kinds for a full disk.
    except Exception as error:
        shutil.rmtree(draft, ignore_errors=True)
        whole = ", ".join(path.name for path in list_checkpoints(output_dir)) or "none"
        raise CheckpointError(
            f"{final} could not be written: {type(error).__name__}: {error} "
            f"({shutil.disk_usage(output_dir).free / 2**20:.0f} MiB are free). Earlier checkpoints are untouched: "
            f"{whole}."
        ) from error
    accelerator.wait_for_everyone()
    return final


def prune_checkpoints(output_dir: Path, limit: int | None) -> None:
    """Deletes all but the newest `limit` checkpoints; each is out of sight before its first file goes."""
    for path in list_checkpoints(output_dir)[: -limit if limit else 0]:
        hidden = path.with_name(f".{path.name}.old")
        path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def clear_drafts(output_dir: Path) -> None:
    """Deletes what a killed run left half-written or half-deleted."""
    for path in output_dir.iterdir():
        if DRAFTS.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
