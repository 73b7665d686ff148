# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""The model of a run, saved for `from_pretrained` and pushed to the Hub during training."""

import json
import logging
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from ..analysis.cost import training_flops
from ..analysis.evaluation import data_title, evaluation_record
from ..arguments import TrainArguments
from ..data import RELEASES, known_release
from ..hub import CardFacts, PushError, check_login, full_repo_id, push_folder, write_model_card
from ..model.image_processing_jet import JetImageProcessor
from ..utils.files import publish_files, publish_folder, shared_command, strict_json
from .checkpoints import BEST, delete_folder, whole_or_absent
from .evaluator import is_due
from .monitor import Monitor
from .processes import on_main_process
from .setup import RunData, repository_name
from .trainer import Trainer


logger = logging.getLogger(__name__)

# Row of evaluations.jsonl that the model in `best/` has.
EVALUATION = "evaluation.json"


def best_evaluation(output_dir: Path) -> dict | None:
    """Return the row of `evaluations.jsonl` that the model in `best/` has; `None` without one."""
    record = output_dir / BEST / EVALUATION
    return json.loads(record.read_text()) if record.exists() else None


def set_best_aside(output_dir: Path, step: int) -> None:
    """Rename `best/` to `best-STEP` if it is of a step after `step`, from which the run is extended otherwise."""
    best = best_evaluation(output_dir)
    if best is not None and best["step"] > step:
        aside = output_dir / f"{BEST}-{best['step']}"
        delete_folder(aside)
        (output_dir / BEST).rename(aside)
        logger.info(
            f"the best model so far, of step {best['step']}, is now in {aside}: the run goes on otherwise from step "
            f"{step}, and looks for its best model from there on."
        )


@dataclass
class Publisher:
    """Write the model of a run, and push it; all processes call the methods, and the main process acts."""

    arguments: TrainArguments
    trainer: Trainer
    processor: JetImageProcessor
    data: RunData
    monitor: Monitor

    def __post_init__(self) -> None:
        self.accelerator, self.output_dir = self.trainer.accelerator, Path(self.arguments.output_dir)
        self.push_draft = self.output_dir / ".push.draft"
        self._last_push: Thread | None = None
        if self.arguments.push_to_hub and self.accelerator.is_main_process and (problem := check_login()):
            logger.warning(f"pushing to the Hub will fail: {problem} Training continues, and each push tries again.")

    def close(self, wait: bool = True) -> None:
        """Wait for the push in progress, or abandon it: it ends with the process."""
        if not self.accelerator.is_main_process:
            return
        if wait:
            self._finish_last_push()
        elif self._push_in_progress():
            logger.warning("abandoned a push to the Hub that was still in progress.")
            return
        shutil.rmtree(self.push_draft, ignore_errors=True)

    def export(self, folder: Path) -> None:
        """Write the model for `from_pretrained`, with its processor, code and card."""
        with self.trainer.averaged_weights():
            if self.accelerator.is_main_process:
                shutil.rmtree(folder, ignore_errors=True)
            self.trainer.save_model(folder)
            if self.accelerator.is_main_process:
                self.processor.save_pretrained(folder)
                if (samples := self._last_samples()) is not None:
                    shutil.copyfile(samples, folder / "samples.png")
                write_model_card(folder, self._card_facts(), model_id=self._repo_id())
        self.accelerator.wait_for_everyone()

    def _last_samples(self) -> Path | None:
        """Return the last image of samples up to this step: a run may be extended from before later ones."""
        last = self.monitor.image_path("samples", self.trainer.step_count)
        return max((path for path in last.parent.glob("samples-*.png") if path <= last), default=None)

    def keep_best(self) -> None:
        """
        Write the current model to `best/` if its evaluation is the best one of the run.

        Raises:
            CheckpointError: if it could not be written. The earlier one is untouched.
        """
        step, num_steps = self.trainer.step_count, self.trainer.num_training_steps
        if not self.arguments.save_best or not is_due(step, self.arguments.eval_steps, num_steps):
            return
        evaluation = on_main_process(self._better_evaluation)
        if evaluation is None:
            return
        best, draft = self.output_dir / BEST, self.output_dir / f".{BEST}.draft"
        with whole_or_absent(draft, best):
            self.export(draft)
            if self.accelerator.is_main_process:
                (draft / EVALUATION).write_text(strict_json(evaluation, indent=2) + "\n")
                publish_folder(draft, best)
        self.accelerator.wait_for_everyone()

    def _better_evaluation(self) -> dict | None:
        """Return the evaluation of the current step, if its loss is lower than that of the model in `best/`."""
        best, last, name = (
            best_evaluation(self.output_dir),
            self.monitor.evaluations.read()[-1],
            self.monitor.metric_name,
        )
        if last[name] is None:  # it was NaN
            return None
        return last if best is None or last[name] < best[name] else None

    def finish(self) -> None:
        """Write the finished model to the folder of the run."""
        draft = self.output_dir / ".model.draft"
        self.export(draft)
        if self.accelerator.is_main_process:
            publish_files(draft, self.output_dir, last="config.json")
            self.monitor.log(f"wrote the finished model to {self.output_dir}")
            if best := best_evaluation(self.output_dir):
                loss = f"{best[self.monitor.metric_name]:.4f} {self.monitor.unit}"
                self.monitor.log(
                    f"the model with the best evaluation, {loss} at step {best['step']}, is in "
                    f"{self.output_dir / BEST}"
                )
        self.accelerator.wait_for_everyone()

    def push_finished(self) -> None:
        """Push the finished model."""
        if self.accelerator.is_main_process:
            self._finish_last_push()
            self._upload(self.output_dir, "the finished model")
        self.accelerator.wait_for_everyone()

    def push_in_background(self, subject: str) -> None:
        """Push the current model while training continues, unless an earlier push is still in progress."""
        if not self.arguments.push_to_hub:
            return
        if on_main_process(self._push_in_progress):
            self.monitor.log(f"{subject} was not pushed: the push before it is still in progress")
            return
        self.export(self.push_draft)
        if self.accelerator.is_main_process:
            if self.monitor.metrics.path.exists():
                shutil.copyfile(self.monitor.metrics.path, self.push_draft / "metrics.jsonl")
            # As a daemon it does not keep a process alive that is told to stop.
            self._last_push = Thread(target=self._upload, args=(self.push_draft, subject), daemon=True)
            self._last_push.start()

    def _push_in_progress(self) -> bool:
        return self._last_push is not None and self._last_push.is_alive()

    def _finish_last_push(self) -> None:
        if self._last_push is not None:
            self._last_push.join()

    def _repo_id(self) -> str:
        name = repository_name(self.arguments)
        return full_repo_id(name) if self.arguments.push_to_hub else name

    def _upload(self, folder: Path, subject: str) -> None:
        try:
            private, message = self.arguments.hub_private_repo, f"Jet: {subject}"
            url = push_folder(folder, self._repo_id(), private=private, commit_message=message)
            self.monitor.log(f"pushed {subject} to {url}")
        # No failure of the network may end the training.
        except Exception as error:
            kind = "" if isinstance(error, PushError) else f"{type(error).__name__}: "
            logger.warning(f"{subject} was not pushed, training is not affected: {kind}{error}")

    def _card_facts(self) -> CardFacts:
        """Return the facts for the card of the current model."""
        arguments, trainer, data, monitor = self.arguments, self.trainer, self.data, self.monitor
        step, precision, release = trainer.step_count, self.accelerator.mixed_precision, known_release(data.source)
        flops = training_flops(trainer.base_model.config) * arguments.train_batch_size * step
        notes = [RELEASES[release].note] if release else []
        for split, pixels in ((data.train_split, data.train), (data.eval_split, data.eval)):
            if pixels and pixels.lossy:
                notes.append(
                    f"The {split} images come from lossy {pixels.source_format} files: their bits per dimension are "
                    "those of the decoded pixels."
                )
            if pixels and pixels.num_skipped:
                notes.append(f"{pixels.num_skipped} undecodable images of {split} were left out.")
        # The last evaluation counts if it is of these weights.
        evaluations = [
            evaluation_record(data.source, data.eval_split, row)
            for row in monitor.evaluations.read()[-1:]
            if row["step"] == step and data.eval_split is not None and "bits_per_dim" in row
        ]
        return CardFacts(
            dataset_title=data_title(data.source),
            dataset_note=" ".join(notes),
            training={
                "optimizer steps": step,
                "scheduled steps": trainer.num_training_steps,
                "batch size": arguments.train_batch_size,
                "training images": data.num_train_images or "streamed",
                "learning rate": arguments.learning_rate,
                "learning rate schedule": arguments.lr_scheduler_type,
                "weight decay": arguments.weight_decay,
                "gradient norm clipped to": arguments.max_grad_norm,
                "weight averaging (EMA)": arguments.ema_decay if arguments.use_ema else "no",
                "noise curriculum": f"from {noise:g} gray levels" if (noise := arguments.noise_curriculum) else "no",
                "random flips": "horizontal" if arguments.random_flip else "no",
                **({"mutation rate": f"{arguments.mutation_rate:g}"} if arguments.mutation_rate else {}),
                "precision of the conditioners": {"no": "float32"}.get(precision, precision),
                "seed": arguments.seed,
                "parameters": trainer.base_model.num_parameters(),
                "training FLOPs": f"{flops:.3g}",
                "processes": self.accelerator.num_processes,
            },
            command=shared_command(sys.argv),
            evaluations=evaluations,
            base_model=arguments.model_name_or_path,
            dataset_id=arguments.dataset_name,
            has_samples=self._last_samples() is not None,
        )
