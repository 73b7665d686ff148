# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""A whole training run: data, model, steps, checkpoints, evaluations, images, the finished model, the Hub."""

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator, PartialState

from ..arguments import TrainArguments
from ..data import Batch, BatchSharding, UndecodableImagesError
from ..model.configuration_jet import JetConfig
from ..utils.files import replace_text
from .checkpoints import (
    BEST,
    Checkpointer,
    CheckpointError,
    clear_drafts,
    compare_trajectories,
    delete_folder,
    list_checkpoints,
)
from .dry_run import check_memory, describe
from .evaluator import Evaluator, is_due
from .extension import check_later_checkpoints, extension_of, schedule_ratios
from .fine_tuning import adapt_model, find_config, make_model
from .launcher import Launcher, find_launcher
from .lock import RunLock, RunLockedError
from .monitor import MetricsWindow, Monitor
from .processes import on_main_process
from .publishing import Publisher, set_best_aside
from .setup import (
    RunData,
    count_micro_batches,
    count_steps,
    enable_gradient_checkpointing,
    find_data,
    find_start,
    load_data,
    make_accelerator,
    make_batches,
    make_processor,
    weights_digest,
)
from .signals import RunInterrupted, StopSignals
from .trainer import DivergenceError, Trainer, UpdateGuard


logger = logging.getLogger(__name__)

# Errors whose messages are meant for the user, whatever signal came before them.
EXPECTED_ERRORS = (ValueError, OSError, UndecodableImagesError, CheckpointError, DivergenceError, RunLockedError)


@dataclass(frozen=True)
class RunResult:
    """
    Result of a training run.

    Args:
        output_dir: Folder of the run.
        step: Number of optimizer steps completed.
        finished: Whether the schedule was completed. Otherwise a signal ended the run after a checkpoint.
    """

    output_dir: Path
    step: int
    finished: bool


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """A run that is ready for its next step, with the micro-batches of this process from there on."""

    arguments: TrainArguments
    lock: RunLock
    signals: StopSignals
    launcher: Launcher | None
    trainer: Trainer
    batches: Iterable[Batch]
    checkpointer: Checkpointer
    monitor: Monitor
    evaluator: Evaluator
    publisher: Publisher

    def run(self) -> RunResult:
        """
        Train to the end of the schedule, and write everything to `output_dir`.

        SIGINT and SIGTERM end the run after the current step, with a checkpoint.

        Raises:
            RunInterrupted: for a second SIGINT, or for a signal while the finished model is pushed.
            CheckpointError, DivergenceError, RunLockedError, UndecodableImagesError: with the last checkpoint in
                place.
        """
        output_dir = Path(self.arguments.output_dir)
        finished = written = False
        try:
            with self.signals.deferred():
                finished = self._train()
                if finished:
                    self.publisher.finish()
                    written = True
            if written and self.arguments.push_to_hub:
                if self.signals.requested is not None:
                    raise RunInterrupted(self.signals.requested)
                self.publisher.push_finished()
        except RunInterrupted as stop:
            if not written:
                raise
            pushed = " was not pushed" if self.arguments.push_to_hub else " is complete"
            raise RunInterrupted(stop.signal, f"the finished model in {output_dir}{pushed}") from None
        except DivergenceError as error:
            raise type(error)(f"{error} Last checkpoint: {last_checkpoint(output_dir)}.") from error
        except Exception as error:
            # A process that was told to stop may be gone before the last exchange of another process with it.
            if self.signals.requested is None or isinstance(error, EXPECTED_ERRORS):
                raise
            raise RunInterrupted(self.signals.requested) from error
        finally:
            with self.signals.deferred():
                self.monitor.close()
                self.publisher.close(wait=self.signals.requested is None)
                self.trainer.accelerator.end_training()
        return RunResult(output_dir, self.trainer.step_count, finished)

    def _train(self) -> bool:
        """Train, save and evaluate; return whether the schedule was completed."""
        trainer, num_steps = self.trainer, self.trainer.num_training_steps
        # The data workers are forked here, while signals are deferred: they outlive a signal until the run has saved.
        with torch.random.fork_rng(devices=[]):  # the iterator draws a seed, and would draw another one on resuming
            batches = iter(self.batches)
        # The run may have been stopped after the checkpoint of a step and before its evaluation.
        self.evaluator.catch_up(trainer.step_count)
        self.publisher.keep_best()
        while trainer.step_count < num_steps:
            with self.monitor.waiting_for_data():
                micro_batches = [next(batches) for _ in range(trainer.accelerator.gradient_accumulation_steps)]
            metrics = trainer.step(micro_batches)
            step, is_last = metrics.step, metrics.step == num_steps
            self.monitor.log_step(metrics, write=is_due(step, self.arguments.logging_steps, num_steps))
            with self.monitor.paused():
                self.lock.check()
                # The checkpoint comes first, since little time may be left.
                if not is_last and self._must_stop():
                    self._save_and_stop(step)
                    return False
                saving = is_last or is_due(step, self.arguments.save_steps, num_steps)
                if saving:
                    self.checkpointer.save()
                self.evaluator.run(step)
                self.publisher.keep_best()
                if saving and not is_last:
                    self.publisher.push_in_background(f"step {step}")
        return True

    def _must_stop(self) -> bool:
        """Return whether a process has a reason to stop; all processes agree."""
        accelerator, has_reason = self.trainer.accelerator, self._stop_reason() is not None
        if accelerator.num_processes == 1:
            return has_reason
        if has_reason:
            accelerator.set_trigger()
        return accelerator.check_trigger()

    def _stop_reason(self) -> str | None:
        if self.signals.requested is not None:
            return self.signals.requested.name
        return "the end of its launcher" if self.launcher is not None and self.launcher.has_ended else None

    def _save_and_stop(self, step: int) -> None:
        reason = self._stop_reason() or "a signal to another process"
        self.monitor.log(f"{reason}: saving checkpoint-{step}; a second Ctrl-C ends the run without it")
        self.checkpointer.save()
        reason = self._stop_reason() or reason
        self.monitor.log(
            f"stopped by {reason} after step {step}; checkpoint-{step} is saved, resume with "
            "--resume_from_checkpoint latest"
        )


def build_run(
    arguments: TrainArguments, accelerator: Accelerator, lock: RunLock, signals: StopSignals, launcher: Launcher | None
) -> TrainingRun:
    """
    Build the model, the data and all other parts of a run, and load its checkpoint; all processes call it.

    Raises:
        ValueError: for arguments, data or an `output_dir` that do not fit, before anything is written.
        CheckpointError: for a checkpoint that does not exist or is incomplete.
    """
    output_dir = Path(arguments.output_dir)
    rank, num_processes = accelerator.process_index, accelerator.num_processes
    start = on_main_process(lambda: find_start(output_dir, arguments.resume_from_checkpoint, arguments.extend))
    accelerator.gradient_accumulation_steps = num_micro_batches = count_micro_batches(arguments, start, num_processes)
    sharding = BatchSharding(arguments.train_batch_size, num_micro_batches, rank, num_processes)
    source = find_data(arguments, accelerator)
    config = find_config(arguments)
    on_main_process(lambda: check_memory(arguments, config, accelerator))
    model = make_model(arguments, config)
    # New weights follow from the seed.
    initial_weights = on_main_process(lambda: weights_digest(model)) if arguments.model_name_or_path else None
    model = adapt_model(model, config, arguments.seed)
    processor = make_processor(config, arguments)
    data = load_data(arguments, source, processor, accelerator, config.num_classes, start)
    if arguments.save_best and data.eval is None:
        raise ValueError("`save_best` needs evaluations: held-out images, and `eval_steps` above 0.")
    num_steps = count_steps(arguments, data.num_train_images)
    trajectory = make_trajectory(arguments, config, data, initial_weights, num_steps, accelerator.mixed_precision)
    if start is not None:
        trajectory["extended"] = start.trajectory.get("extended")
        compare_trajectories(start, trajectory, arguments.extend)
        trajectory["extended"] = extension_of(start, trajectory)
        on_main_process(lambda: check_later_checkpoints(output_dir, start, trajectory))
    extended = trajectory["extended"]
    is_extended = start is not None and extended != start.trajectory.get("extended")
    steps = range(start.step if start else 0, num_steps)
    batches = make_batches(arguments, data, processor, sharding, steps, accelerator.device)
    if arguments.gradient_checkpointing:
        enable_gradient_checkpointing(model, accelerator.device)
    if arguments.torch_compile:
        model.compile_couplings()
    trainer = Trainer(
        model,
        num_steps,
        learning_rate=arguments.learning_rate,
        weight_decay=arguments.weight_decay,
        lr_scheduler_type=arguments.lr_scheduler_type,
        cooldown_ratio=arguments.cooldown_ratio,
        max_grad_norm=arguments.max_grad_norm,
        ema_decay=arguments.ema_decay if arguments.use_ema else None,
        seed=arguments.seed,
        label_dropout=arguments.label_dropout,
        accelerator=accelerator,
        noise_curriculum=arguments.noise_curriculum,
        random_flip=arguments.random_flip,
        mutation_rate=arguments.mutation_rate,
        guard=UpdateGuard(arguments.max_skipped_steps, arguments.spike_factor, **(start.guard if start else {})),
        **schedule_ratios(arguments, extended, num_steps),
    )

    # Everything fits: from here on, the run writes to its folder.
    if accelerator.is_main_process:
        clear_drafts(output_dir)
        if start is None:
            delete_folder(output_dir / BEST)  # of a run that was killed before its first checkpoint
        elif is_extended:
            set_best_aside(output_dir, start.step)
        replace_text(output_dir / "recipe.yaml", yaml.safe_dump(asdict(arguments), sort_keys=False))
    accelerator.wait_for_everyone()
    grace_seconds = launcher.grace_seconds if launcher else None
    window = MetricsWindow(**start.window) if start else MetricsWindow()
    checkpointer = Checkpointer(arguments, trainer, processor, trajectory, window, grace_seconds)
    if start is not None:
        checkpointer.load(start)
        logger.info(f"resuming from {start.path}, after {start.step} of {num_steps} steps.")
    if is_extended:
        extend_schedule(trainer, arguments.lr_scheduler_type)
    monitor = Monitor(arguments, config, accelerator, steps, data.num_train_images, window, is_extended)
    return TrainingRun(
        arguments=arguments,
        lock=lock,
        signals=signals,
        launcher=launcher,
        trainer=trainer,
        batches=batches,
        checkpointer=checkpointer,
        monitor=monitor,
        evaluator=Evaluator(arguments, trainer, processor, data, monitor),
        publisher=Publisher(arguments, trainer, processor, data, monitor),
    )


def make_trajectory(
    arguments: TrainArguments,
    config: JetConfig,
    data: RunData,
    initial_weights: str | None,
    num_steps: int,
    mixed_precision: str,
) -> dict[str, Any]:
    """Return the settings of a new run that must match for a resumed run to be bit-identical."""
    return {
        "model": {name: config.to_dict()[name] for name in JetConfig.__annotations__},
        "initial_weights": initial_weights,
        "num_steps": num_steps,
        "num_train_images": data.num_train_images,
        "data": data.fingerprint,
        "eval_data": data.eval and data.eval.fingerprint,
        "mixed_precision": mixed_precision,
        "extended": None,
        **arguments.own_trajectory(),
        "train_split": data.train_split,
    }


def extend_schedule(trainer: Trainer, lr_scheduler_type: str) -> None:
    """Apply the schedule of an extended run from its next step on."""
    (before,) = trainer.scheduler.get_last_lr()
    trainer.restart_schedule()
    (now,) = trainer.scheduler.get_last_lr()
    logger.info(
        f"extended to {trainer.num_training_steps} steps of the schedule {lr_scheduler_type}: the learning rate of "
        f"the next step is {now:.4g}, in place of {before:.4g}."
    )


def last_checkpoint(output_dir: Path) -> str:
    """Return the path of the newest checkpoint of a run, or `none`."""
    checkpoints = list_checkpoints(output_dir)
    return str(checkpoints[-1]) if checkpoints else "none"


def train(arguments: TrainArguments) -> RunResult | None:
    """
    Run a training, or with `dry_run` print its plan and return `None`.

    Raises:
        ValueError: for arguments, data or an `output_dir` that do not fit, before anything is written.
        RunLockedError: if another run is using `output_dir`.
        RunInterrupted: for SIGINT or SIGTERM before the first step, and see [`TrainingRun.run`].
        CheckpointError, DivergenceError, UndecodableImagesError: see [`TrainingRun.run`].
    """
    if arguments.dry_run:
        with StopSignals():
            plan = describe(arguments, find_launcher())
        if PartialState().is_main_process:
            print(plan)
        return None
    output_dir, launcher = Path(arguments.output_dir), find_launcher()
    try:
        with StopSignals() as signals:
            accelerator = make_accelerator(arguments, launcher)
            with RunLock(output_dir) as lock:
                return build_run(arguments, accelerator, lock, signals, launcher).run()
    except RunInterrupted as stop:
        outcome = stop.outcome or f"the last checkpoint is {last_checkpoint(output_dir)}"
        cause = f" ({type(stop.__cause__).__name__}: {stop.__cause__})" if stop.__cause__ else ""
        raise RunInterrupted(stop.signal, outcome + cause) from None
