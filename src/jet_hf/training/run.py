# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""A whole training run: data, model, steps, checkpoints, evaluations, images, the finished model, the Hub."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
import yaml
from accelerate import PartialState
from safetensors.torch import load_model

from ..analysis.cost import peak_flops, training_flops
from ..data import Batch, BatchSharding, ReadOptions, UndecodableImagesError, stream_batches, train_batches
from ..model.configuration_jet import JetConfig
from ..utils.files import replace_text
from .arguments import TrainArguments
from .checkpoints import (
    CheckpointError,
    clear_drafts,
    compare_trajectories,
    find_checkpoint,
    list_checkpoints,
    prune_checkpoints,
    save_checkpoint,
)
from .dry_run import describe
from .inspections import Inspections, is_due
from .launcher import find_launcher
from .lock import LOCK_FILE, RunLock, RunLockedError
from .monitor import Monitor
from .processes import on_main_process
from .publishing import Publisher
from .setup import count_steps, load_data, make_accelerator, make_model, make_processor, weights_digest
from .signals import RunInterrupted, StopSignals
from .trainer import NonFiniteLossError, Trainer


logger = logging.getLogger(__name__)

# Errors whose messages are for the user, whatever signal came before them.
EXPECTED_ERRORS = (ValueError, OSError, UndecodableImagesError, CheckpointError, NonFiniteLossError, RunLockedError)


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


class TrainingRun:
    """
    A run of `scripts/train.py`.

    Args:
        arguments: Parsed training arguments.

    Raises:
        RunLockedError: if another run works in `output_dir`.
        ValueError: for arguments, data or an `output_dir` that do not fit, before anything is written.
        RunInterrupted: for SIGINT or SIGTERM before the first step, or for a second SIGINT.
        CheckpointError, NonFiniteLossError, UndecodableImagesError: from [`run`], with the last checkpoint in place.
    """

    def __init__(self, arguments: TrainArguments):
        self.arguments = arguments
        self.output_dir = Path(arguments.output_dir)
        self.signals, self.launcher = StopSignals(), find_launcher()
        self.lock = RunLock(self.output_dir)
        self.completed = self.warned_of_grace = False
        with self._stoppable():
            self.accelerator = make_accelerator(arguments)
            try:
                self.lock.acquire()
                self._load()
            except BaseException:
                self.lock.release()
                raise

    def _load(self) -> None:
        """Find the checkpoint, and build the model and the datasets."""
        arguments = self.arguments
        self.shares = BatchSharding(
            arguments.train_batch_size,
            arguments.gradient_accumulation_steps,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        self.checkpoint = on_main_process(self._find_checkpoint)
        self.model = make_model(arguments)
        self.initial_weights = self._digest_of_initial_weights()
        self.processor = make_processor(self.model.config, arguments)
        self.data = load_data(arguments, self.processor, self.accelerator, self.model.config.num_classes)
        self.num_steps = count_steps(arguments, self.data.num_train_images)
        if self.checkpoint is not None:
            compare_trajectories(*self.checkpoint, self._trajectory())

    def _digest_of_initial_weights(self) -> str | None:
        """Return a digest of the weights that fine-tuning starts from; new weights follow from the seed."""
        if self.arguments.model_name_or_path is None:
            return None
        return on_main_process(lambda: weights_digest(self.model))

    def _find_checkpoint(self) -> tuple[Path, dict] | None:
        """Return the checkpoint to resume from, and its manifest; refuse to overwrite another run."""
        wanted, found = self.arguments.resume_from_checkpoint, None
        if wanted is not None:
            found = find_checkpoint(self.output_dir, wanted)
            if found is None:
                logger.info(f"{self.output_dir} has no whole checkpoint yet: starting from scratch.")
        else:
            results = [name for name in ("metrics.jsonl", "config.json") if (self.output_dir / name).exists()]
            results += [path.name for path in list_checkpoints(self.output_dir)]
            if results:
                raise ValueError(
                    f"`output_dir` {self.output_dir} holds a run already ({', '.join(results)}): give "
                    "`resume_from_checkpoint` latest to go on with it, or another folder."
                )
        self._refuse_files_of_others()
        return found

    def _refuse_files_of_others(self) -> None:
        """Raise ValueError if `output_dir` holds files, but none by which it is known as the folder of a run."""
        own = {LOCK_FILE, ".recipe.yaml"}  # which a run that was killed at its start may have left alone
        others = sorted(path.name for path in self.output_dir.iterdir() if path.name not in own)
        if not others or (self.output_dir / "metrics.jsonl").exists() or list_checkpoints(self.output_dir):
            return
        # A run that was killed before its first step has a recipe; a sweep writes one before it starts the run.
        if not any(is_recipe(self.output_dir / name) for name in ("recipe.yaml", "sweep.yaml")):
            raise ValueError(
                f"`output_dir` {self.output_dir} holds files that are not those of a run ({', '.join(others[:3])}"
                f"{', …' if len(others) > 3 else ''}): give a new or an empty folder."
            )

    def run(self) -> RunResult:
        """
        Train to the end of the schedule, and write everything to `output_dir`.

        SIGINT and SIGTERM end the run after the current step, with a checkpoint.
        """
        try:
            with self._stoppable():
                return self._run()
        except NonFiniteLossError as error:
            raise NonFiniteLossError(f"{error} Last checkpoint: {self._last_checkpoint()}.") from error
        finally:
            self.lock.release()

    def _run(self) -> RunResult:
        self._begin()
        stopping = self.signals.deferred
        try:
            with stopping():
                if self._loop():
                    self.publisher.finish()
                    self.completed = True
            if self.completed and self.arguments.push_to_hub:
                if self.signals.requested is not None:
                    raise RunInterrupted(self.signals.requested)
                self.publisher.push_finished()
        except Exception as error:
            # A process that was told to stop may be gone before another one's last exchange with it.
            if self.signals.requested is None or isinstance(error, EXPECTED_ERRORS):
                raise
            raise RunInterrupted(self.signals.requested) from error
        finally:
            with stopping():
                self.monitor.close()
                self.publisher.close(wait=self.signals.requested is None)
                self.accelerator.end_training()
        return RunResult(self.output_dir, self.trainer.step_count, self.completed)

    def _begin(self) -> None:
        """Write the recipe, load the checkpoint, and open the logs."""
        arguments, accelerator = self.arguments, self.accelerator
        if accelerator.is_main_process:
            clear_drafts(self.output_dir)
            replace_text(self.output_dir / "recipe.yaml", yaml.safe_dump(asdict(arguments), sort_keys=False))
        accelerator.wait_for_everyone()
        self._prepare()
        start_step = self._resume()
        self.monitor = Monitor(
            accelerator,
            self.output_dir,
            self.num_steps,
            start_step,
            arguments.train_batch_size,
            self.data.num_train_images,
            training_flops(self.model.config),
            peak_flops(torch.cuda.get_device_name()) if accelerator.device.type == "cuda" else None,
        )
        self.inspections = Inspections(arguments, self.trainer, self.processor, self.data, self.monitor)
        self.publisher = Publisher(arguments, self.trainer, self.processor, self.data, self.monitor)

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Let signals end the block, by an exception that says what is left of the run."""
        try:
            with self.signals:
                yield
        except RunInterrupted as stop:
            message = f"stopped by {stop.signal.name}: no new checkpoint was saved, the last one is "
            message += f"{self._last_checkpoint()}."
            if self.completed:
                message = f"stopped by {stop.signal.name}: the finished model in {self.output_dir} was not pushed."
            if stop.__cause__ is not None:
                message += f" ({type(stop.__cause__).__name__}: {stop.__cause__})"
            raise RunInterrupted(stop.signal, message) from None

    def _last_checkpoint(self) -> str:
        checkpoints = list_checkpoints(self.output_dir)
        return str(checkpoints[-1]) if checkpoints else "none"

    def _prepare(self) -> None:
        arguments, accelerator = self.arguments, self.accelerator
        if arguments.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        if arguments.torch_compile:
            self.model.compile_couplings()
        self.trainer = Trainer(
            self.model,
            self.num_steps,
            learning_rate=arguments.learning_rate,
            weight_decay=arguments.weight_decay,
            warmup_ratio=arguments.warmup_ratio,
            max_grad_norm=arguments.max_grad_norm,
            ema_decay=arguments.ema_decay if arguments.use_ema else None,
            seed=arguments.seed,
            label_dropout=arguments.label_dropout,
            accelerator=accelerator,
        )
        accelerator.register_for_checkpointing(self.trainer.scheduler)
        # Outside FSDP accelerate saves the wrapped model's names; this way a checkpoint is a model to load as well.
        accelerator.register_save_state_pre_hook(self._write_weights)
        accelerator.register_load_state_pre_hook(self._read_weights)
        trackers = {key: value for key, value in asdict(arguments).items() if isinstance(value, int | float | str)}
        accelerator.init_trackers("jet", trackers)

    def _write_weights(self, models: list, weights: list, folder: str) -> None:
        if weights and self.accelerator.is_main_process:
            self.model.save_pretrained(folder)
            self.processor.save_pretrained(folder)
        weights.clear()

    def _read_weights(self, models: list, folder: str) -> None:
        if models:
            # On the CPU, from which they are copied: safetensors refuses an indexed CPU device such as cpu:0.
            load_model(self.model, Path(folder) / "model.safetensors", device="cpu")
        models.clear()

    def _trajectory(self) -> dict:
        """Return the settings that must match for a resumed run to be bit-identical."""
        config = self.model.config.to_dict()
        return {
            "model": {name: config[name] for name in JetConfig.__annotations__},
            "initial_weights": self.initial_weights,
            "num_steps": self.num_steps,
            "num_train_images": self.data.num_train_images,
            "data": self.data.fingerprint,
            "eval_data": self.data.eval and self.data.eval.fingerprint,
            "mixed_precision": self.accelerator.mixed_precision,
            **self.arguments.own_trajectory(),
        }

    def _resume(self) -> int | None:
        """Resume from the checkpoint, if there is one; return the number of steps that it has completed."""
        if self.checkpoint is None:
            return None
        path, manifest = self.checkpoint
        self.accelerator.load_state(str(path))
        self.accelerator.step = 0  # another number of accumulation steps must not start in the middle of a batch
        if self.trainer.ema:
            dcp.load(self.trainer.ema, checkpoint_id=path / "ema")
        self.trainer.step_count = manifest["step"]
        logger.info(f"going on from {path}, after {manifest['step']} of {self.num_steps} steps.")
        return manifest["step"]

    def _train_batches(self, start_step: int) -> Iterator[Batch]:
        arguments = self.arguments
        pin_memory = self.accelerator.device.type == "cuda"
        if arguments.streaming:
            options = ReadOptions(
                num_classes=self.model.config.num_classes,
                max_images=arguments.max_train_images,
                max_undecodable_share=arguments.max_undecodable_share,
                seed=arguments.seed,
            )
            loader = stream_batches(
                self.data.source,
                arguments.train_split,
                self.processor,
                options,
                self.shares,
                range(start_step, self.num_steps),
                shuffle_buffer_size=arguments.shuffle_buffer_size,
                pin_memory=pin_memory,
            )
        else:
            loader = train_batches(
                self.data.train.dataset,
                self.shares,
                range(start_step, self.num_steps),
                seed=arguments.seed,
                num_workers=arguments.dataloader_num_workers,
                pin_memory=pin_memory,
            )
        with torch.random.fork_rng(devices=[]):
            return iter(loader)  # which draws a seed for its workers, once more on resuming

    def _loop(self) -> bool:
        """Train, save and evaluate; return whether the schedule was completed."""
        arguments, start_step = self.arguments, self.trainer.step_count
        batches = self._train_batches(start_step)
        # A run that was stopped right after a checkpoint has not been looked at there.
        self.inspections.make_up_for(start_step)
        for step in range(start_step + 1, self.num_steps + 1):
            with self.monitor.waiting_for_data():
                share = [next(batches) for _ in range(self.shares.num_micro_batches)]
            metrics = self.trainer.step(share)
            last = step == self.num_steps
            self.monitor.step_done(metrics, log=is_due(step, arguments.logging_steps, self.num_steps))
            with self.monitor.pause():
                stopping = self._asked_to_stop() and not last
                saving = stopping or last or is_due(step, arguments.save_steps, self.num_steps)
                # First of all, since little time may be left.
                if saving:
                    self._save(step, stopping)
                if stopping:
                    self.monitor.say(
                        f"stopped by {self._stop_reason()} after step {step}, checkpoint-{step} is saved; go on with "
                        "--resume_from_checkpoint latest"
                    )
                    return False
                self.inspections.run(step)
                if saving and not last:
                    self.publisher.push_beside_training(f"step {step}")
        return True

    def _asked_to_stop(self) -> bool:
        """Return whether a signal, or the end of the launcher, asks the run to stop; all processes agree."""
        self.lock.check()
        asked = self.signals.requested is not None or (self.launcher is not None and self.launcher.has_ended)
        if self.accelerator.num_processes == 1:
            return asked
        if asked:
            self.accelerator.set_trigger()
        return self.accelerator.check_trigger()

    def _stop_reason(self) -> str:
        if self.signals.requested is not None:
            return self.signals.requested.name
        ended = self.launcher is not None and self.launcher.has_ended
        return "the end of its launcher" if ended else "a signal to another process"

    def _save(self, step: int, stopping: bool) -> None:
        if stopping:
            self.monitor.say(f"{self._stop_reason()}: saving checkpoint-{step}; a second Ctrl-C ends without it")

        def write(folder: Path) -> None:
            self.accelerator.step = 0  # as after resuming, so that checkpoints do not tell the two apart
            self.accelerator.save_state(str(folder))
            if self.trainer.ema:
                dcp.save(self.trainer.ema, checkpoint_id=folder / "ema")

        about = {"trajectory": self._trajectory(), "num_processes": self.accelerator.num_processes}
        start = time.monotonic()
        save_checkpoint(self.output_dir, step, about, write, self.accelerator)
        if self.accelerator.is_main_process:
            self._compare_with_grace(time.monotonic() - start)
            prune_checkpoints(self.output_dir, self.arguments.save_total_limit)

    def _compare_with_grace(self, seconds: float) -> None:
        """Warn once if the launcher would not wait for a checkpoint after SIGTERM."""
        grace = self.launcher and self.launcher.grace_seconds
        if grace is not None and seconds > grace / 2 and not self.warned_of_grace:
            self.warned_of_grace = True
            logger.warning(
                f"saving a checkpoint took {seconds:.0f} seconds, but the launcher kills its processes "
                f"{grace:.0f} seconds after SIGTERM or Ctrl-C: set TORCH_ELASTIC_SHUTDOWN_TIMEOUT to more than "
                f"{2 * seconds:.0f} before the launch, or such a checkpoint may be lost."
            )


def is_recipe(path: Path) -> bool:
    """Return whether a file is a recipe as a run of this release or an earlier one writes it."""
    try:
        fields = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(fields, dict) and {"output_dir", "train_batch_size", "max_steps", "seed"} <= fields.keys()


def train(arguments: TrainArguments) -> RunResult | None:
    """Run a training, or with `dry_run` only print its plan. See [`TrainingRun`]."""
    if arguments.dry_run:
        with StopSignals():
            plan = describe(arguments)
        if PartialState().is_main_process:
            print(plan)
        return None
    return TrainingRun(arguments).run()
