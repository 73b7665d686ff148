# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The model of a run, made ready for `from_pretrained`, and shared on the Hub while training goes on."""

import logging
import math
import shutil
import sys
from pathlib import Path
from threading import Thread

import torch

from ..analysis.cost import training_flops
from ..analysis.evaluation import data_title, score_record
from ..arguments import TrainArguments
from ..data import RELEASES, known_release
from ..hub import CardFacts, PushError, check_login, full_repo_id, push_folder, write_model_card
from ..model.image_processing_jet import JetImageProcessor
from ..utils.files import publish_files, shared_command
from .monitor import Monitor
from .setup import RunData
from .trainer import Trainer


logger = logging.getLogger(__name__)


class Publisher:
    """
    Writes and pushes the model of a run; all processes call it, the main one does it.

    Args:
        arguments, trainer, processor, data, monitor: Those of the run.
    """

    def __init__(
        self,
        arguments: TrainArguments,
        trainer: Trainer,
        processor: JetImageProcessor,
        data: RunData,
        monitor: Monitor,
    ):
        self.arguments = arguments
        self.trainer, self.model, self.accelerator = trainer, trainer.base_model, trainer.accelerator
        self.processor, self.data, self.monitor = processor, data, monitor
        self.output_dir = Path(arguments.output_dir)
        self.push_draft = self.output_dir / ".push.draft"
        self.last_push: Thread | None = None
        if arguments.push_to_hub and self.accelerator.is_main_process and (problem := check_login()):
            logger.warning(f"pushing to the Hub will fail: {problem} Training goes on; each push tries again.")

    def close(self, wait: bool = True) -> None:
        """Wait for the push that is under way, or else leave it behind: the end of the process ends it."""
        if not self.accelerator.is_main_process:
            return
        if wait:
            self._finish_last_push()
        elif self.last_push is not None and self.last_push.is_alive():
            logger.warning("a push to the Hub was still running and is given up.")
            return
        shutil.rmtree(self.push_draft, ignore_errors=True)

    def _finish_last_push(self) -> None:
        if self.last_push is not None:
            self.last_push.join()

    def export(self, folder: Path) -> None:
        """The model as `from_pretrained` takes it, its processor, code, and card; all processes call it."""
        with self.trainer.averaged_weights():
            if self.accelerator.is_main_process:
                shutil.rmtree(folder, ignore_errors=True)
            self.trainer.save_model(folder)
            if self.accelerator.is_main_process:
                self.processor.save_pretrained(folder)
                pictures = sorted(self.monitor.pictures.glob("samples-*.png"))
                if pictures:
                    shutil.copyfile(pictures[-1], folder / "samples.png")
                write_model_card(folder, self._card_facts(), model_id=self._model_id())
        self.accelerator.wait_for_everyone()

    def finish(self) -> None:
        """Write the finished model to the run's folder; all processes call it."""
        draft = self.output_dir / ".model.draft"
        self.export(draft)
        if self.accelerator.is_main_process:
            publish_files(draft, self.output_dir, last="config.json")
            self.monitor.say(f"wrote the finished model to {self.output_dir}")
        self.accelerator.wait_for_everyone()

    def push_finished(self) -> None:
        """Push the finished model, if the run is to be shared; all processes call it."""
        if self.arguments.push_to_hub and self.accelerator.is_main_process:
            self._finish_last_push()
            self._upload(self.output_dir, "the finished model")
        self.accelerator.wait_for_everyone()

    def push_beside_training(self, what: str) -> None:
        """Pushes the model as it is, beside training; not while an earlier push still runs."""
        if not self.arguments.push_to_hub:
            return
        busy = self.accelerator.is_main_process and self.last_push is not None and self.last_push.is_alive()
        if self.accelerator.num_processes > 1:
            busy = bool(self.accelerator.reduce(torch.tensor(int(busy), device=self.accelerator.device)).item())
        if busy:
            self.monitor.say(f"{what}: not pushed, the push before it is still running")
            return
        self.export(self.push_draft)
        if self.accelerator.is_main_process:
            if self.monitor.metrics.path.exists():
                shutil.copyfile(self.monitor.metrics.path, self.push_draft / "metrics.jsonl")
            # A daemon: a process that is told to stop does not wait for the Hub.
            self.last_push = Thread(target=self._upload, args=(self.push_draft, what), daemon=True)
            self.last_push.start()

    def _upload(self, folder: Path, what: str) -> None:
        try:
            url = push_folder(
                folder, self._model_id(), private=self.arguments.hub_private_repo, commit_message=f"Jet: {what}"
            )
            self.monitor.say(f"pushed {what} to {url}")
        # Whatever goes wrong with the network must not end the training.
        except Exception as error:
            kind = "" if isinstance(error, PushError) else f"{type(error).__name__}: "
            logger.warning(f"{what} was not pushed, training is not affected: {kind}{error}")

    def _model_id(self) -> str:
        name = self.arguments.hub_model_id or self.output_dir.resolve().name
        return full_repo_id(name) if self.arguments.push_to_hub else name

    def _card_facts(self) -> CardFacts:
        arguments, step = self.arguments, self.trainer.step_count
        precision = self.accelerator.mixed_precision
        flops = training_flops(self.model.config) * arguments.train_batch_size * step
        source = self.data.source
        release = known_release(source)
        notes = [RELEASES[release].note] if release else []
        for split, pixels in ((arguments.train_split, self.data.train), (self.data.eval_split, self.data.eval)):
            if pixels and pixels.lossy:
                notes.append(
                    f"The {split} images come from lossy {pixels.source_format} files: their bits per dimension are "
                    "those of the decoded pixels."
                )
            if pixels and pixels.num_skipped:
                notes.append(f"{pixels.num_skipped} undecodable images of {split} were left out.")
        # The last evaluation, if it is of these weights.
        evaluations = [
            score_record(source, self.data.eval_split, **_known_numbers(row))
            for row in self.monitor.evaluations.read()[-1:]
            if row["step"] == step
        ]
        return CardFacts(
            dataset_title=data_title(source),
            dataset_note=" ".join(notes),
            training={
                "optimiser steps": step,
                "of a schedule of": self.trainer.num_training_steps,
                "batch size": arguments.train_batch_size,
                "training images": self.data.num_train_images or "streamed",
                "learning rate": arguments.learning_rate,
                "weight decay": arguments.weight_decay,
                "gradient norm clipped to": arguments.max_grad_norm,
                "moving average of weights": arguments.ema_decay if arguments.use_ema else "no",
                "precision of the conditioners": {"no": "float32"}.get(precision, precision),
                "seed": arguments.seed,
                "parameters": self.model.num_parameters(),
                "training FLOPs": f"{flops:.3g}",
                "processes": self.accelerator.num_processes,
            },
            command=shared_command(sys.argv),
            evaluations=evaluations,
            base_model=arguments.model_name_or_path,
            dataset_id=arguments.dataset_name,
            has_samples=self.monitor.pictures.exists(),
        )


def _known_numbers(row: dict) -> dict:
    """Return the scores of a line of `evaluations.jsonl`, where null stands for a number that is not known."""
    return {key: math.nan if value is None else value for key, value in row.items() if key != "step"}
