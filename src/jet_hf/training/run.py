# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""A whole training run: data, model, steps, checkpoints, evaluations, pictures, the finished model, the Hub."""

import logging
import math
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
import yaml
from accelerate import PartialState
from safetensors.torch import load_model

from ..cost import peak_flops, training_flops
from ..data import Batch, Shares, read_pixels, stream_batches, train_batches
from ..evaluation import evaluate
from ..model.configuration_jet import JetConfig
from ..model.likelihood_jet import scale_bytes
from ..sampling import image_grid, reconstruct, sample_images
from .arguments import TrainArguments
from .checkpoints import clear_drafts, find_checkpoint, list_checkpoints, prune_checkpoints, save_checkpoint
from .loop import NonFiniteLossError, Trainer
from .monitor import Monitor
from .plan import describe
from .publishing import Publisher
from .setup import count_steps, load_data, make_accelerator, make_model, make_processor


logger = logging.getLogger(__name__)

# Fields that decide every number of a run; a checkpoint goes on only with the same ones.
TRAJECTORY_FIELDS = (
    "train_split",
    "streaming",
    "shuffle_buffer_size",
    "center_crop",
    "random_crops_per_image",
    "max_train_images",
    "train_batch_size",
    "learning_rate",
    "weight_decay",
    "warmup_ratio",
    "max_grad_norm",
    "use_ema",
    "ema_decay",
    "label_dropout",
    "seed",
)


@dataclass(frozen=True)
class RunResult:
    """
    How a run ended.

    Args:
        output_dir: Folder of the run.
        step: Optimiser steps done.
        finished: Whether the schedule came to its end; otherwise the run was asked to stop.
    """

    output_dir: Path
    step: int
    finished: bool


class TrainingRun:
    """
    A run of `scripts/train.py`.

    Args:
        arguments: All that it is told.

    Raises:
        ValueError: for arguments, data or an `output_dir` that do not fit; before anything is written.
        CheckpointError, NonFiniteLossError, UndecodableImagesError: from [`run`], with the last checkpoint in place.
    """

    def __init__(self, arguments: TrainArguments):
        self.arguments = arguments
        self.output_dir = Path(arguments.output_dir)
        self.accelerator = make_accelerator(arguments)
        self.shares = Shares(
            arguments.train_batch_size,
            arguments.gradient_accumulation_steps,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        self.checkpoint = self._find_checkpoint()
        self.model = make_model(arguments)
        self.processor = make_processor(self.model.config, arguments)
        self.data = load_data(arguments, self.processor, self.accelerator, self.model.config.num_classes)
        self.num_steps = count_steps(arguments, self.data.num_train_images)
        self.stop_requested = False

    def _find_checkpoint(self) -> tuple[Path, dict] | None:
        """The checkpoint to go on from; refuses to write over another run."""
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
        # No process writes before all have looked.
        self.accelerator.wait_for_everyone()
        return found

    def run(self) -> RunResult:
        """Trains to the end of the schedule, or until SIGTERM; writes everything to `output_dir`."""
        arguments, accelerator = self.arguments, self.accelerator
        if accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            clear_drafts(self.output_dir)
            (self.output_dir / "recipe.yaml").write_text(yaml.safe_dump(asdict(arguments), sort_keys=False))
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
        self.publisher = Publisher(arguments, self.trainer, self.processor, self.data, self.monitor)
        previous = signal.signal(signal.SIGTERM, self._request_stop)
        try:
            finished = self._loop(start_step or 0)
            if finished:
                self.publisher.finish()
        except NonFiniteLossError as error:
            good = list_checkpoints(self.output_dir)
            raise NonFiniteLossError(f"{error} Last checkpoint: {good[-1] if good else 'none'}.") from error
        finally:
            signal.signal(signal.SIGTERM, previous)
            self.monitor.close()
            self.publisher.close()
            accelerator.end_training()
        return RunResult(self.output_dir, self.trainer.step_count, finished)

    def _request_stop(self, signum: int, frame) -> None:
        self.stop_requested = True

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
            load_model(self.model, Path(folder) / "model.safetensors", device=str(self.accelerator.device))
        models.clear()

    def _trajectory(self) -> dict:
        """What must be the same for a checkpoint to go on as if nothing had happened."""
        config = self.model.config.to_dict()
        return {
            "model": {name: config[name] for name in JetConfig.__annotations__},
            "num_steps": self.num_steps,
            "num_train_images": self.data.num_train_images,
            "data": self.data.fingerprint,
            "mixed_precision": self.accelerator.mixed_precision,
            **{name: getattr(self.arguments, name) for name in TRAJECTORY_FIELDS},
        }

    def _resume(self) -> int | None:
        """Goes on from the checkpoint, if there is one; gives the optimiser steps that it has done."""
        if self.checkpoint is None:
            return None
        path, manifest = self.checkpoint
        ours, theirs = self._trajectory(), manifest["trajectory"]
        if "data" not in theirs:  # of an earlier version
            logger.warning(f"{path} does not say which images it was trained on: they cannot be compared with these.")
            del ours["data"]
        changed = [name for name in ours if ours[name] != theirs.get(name)]
        if set(changed) - {"data", "num_train_images"}:
            listed = "; ".join(f"{name} was {theirs.get(name)}, is {ours[name]}" for name in changed if name != "data")
            raise ValueError(
                f"{path} cannot go on with other settings: {listed}. To start a new run from its weights, give it as "
                "`model_name_or_path`."
            )
        if changed:
            source, split = self.data.source, self.arguments.train_split
            raise ValueError(
                f"{path} cannot go on with other data: the images of the split {split!r} of "
                f"{source.name or source.path} are not those that it was trained on, in the same order. To start a "
                "new run from its weights, give it as `model_name_or_path`."
            )
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
            loader = stream_batches(
                self.data.source,
                arguments.train_split,
                self.processor,
                self.shares,
                self.num_steps,
                seed=arguments.seed,
                start_step=start_step,
                shuffle_buffer_size=arguments.shuffle_buffer_size,
                max_undecodable_share=arguments.max_undecodable_share,
                pin_memory=pin_memory,
                num_classes=self.model.config.num_classes,
                max_images=arguments.max_train_images,
            )
        else:
            loader = train_batches(
                self.data.train.dataset,
                self.shares,
                self.num_steps,
                seed=arguments.seed,
                start_step=start_step,
                num_workers=arguments.dataloader_num_workers,
                pin_memory=pin_memory,
            )
        return iter(loader)

    def _loop(self, start_step: int) -> bool:
        """Steps and what is due after each; whether the schedule came to its end."""
        arguments = self.arguments
        batches = self._train_batches(start_step)
        if start_step == 0:
            self._look(0)
        for step in range(start_step + 1, self.num_steps + 1):
            with self.monitor.waiting_for_data():
                share = [next(batches) for _ in range(self.shares.num_micro_batches)]
            metrics = self.trainer.step(share)
            last = step == self.num_steps
            self.monitor.step_done(metrics, log=self._due(step, arguments.logging_steps))
            with self.monitor.pause():
                stopping = self._asked_to_stop()
                self._look(step)
                if last or stopping or self._due(step, arguments.save_steps):
                    self._save(step)
                    if not last and not stopping:
                        self.publisher.push_beside_training(f"step {step}")
            if stopping and not last:
                self.monitor.say(
                    f"stopped by SIGTERM after step {step}, checkpoint-{step} is saved; go on with "
                    "--resume_from_checkpoint latest"
                )
                return False
        return True

    def _due(self, step: int, every: int) -> bool:
        return every > 0 and (step % every == 0 or step == self.num_steps)

    def _asked_to_stop(self) -> bool:
        if self.accelerator.num_processes == 1:
            return self.stop_requested
        if self.stop_requested:
            self.accelerator.set_trigger()
        return self.accelerator.check_trigger()

    def _look(self, step: int) -> None:
        """Evaluates and draws pictures, where it is time."""
        arguments = self.arguments
        evaluate_now = self.data.eval and self._due(step, arguments.eval_steps)
        draw_now = self._due(step, arguments.sample_steps)
        if not evaluate_now and not draw_now:
            return
        with self.trainer.averaged_weights():
            if evaluate_now:
                self.monitor.evaluation_done({"step": step, **self._evaluate()})
            if draw_now:
                self._draw(step)

    def _evaluate(self) -> dict:
        evaluation = evaluate(
            self.trainer.model,
            self.data.eval.dataset,
            batch_size=self.arguments.eval_batch_size,
            seed=self.arguments.seed,
            accelerator=self.accelerator,
        )
        return {
            "bits_per_dim": evaluation.mean,
            "standard_error": evaluation.standard_error,
            "num_images": len(evaluation.bits_per_dim),
        }

    @torch.no_grad()
    def _draw(self, step: int) -> None:
        """Samples from the same latents each time, and held-out images beside what comes back of them."""
        self.model.eval()
        count = self.arguments.num_samples
        samples = sample_images(self.model, self.processor, count, seed=self.arguments.seed, batch_size=count)
        columns = math.ceil(math.sqrt(count))
        self.monitor.save_picture("samples", step, image_grid(samples, columns))
        held_out = self.data.eval or self.data.train
        if held_out is None:
            return
        chosen = read_pixels(held_out.dataset.select(range(min(8, len(held_out.dataset)))))
        pixel_values = scale_bytes(chosen.to(self.accelerator.device))
        images = self.processor.post_process(pixel_values)
        images += self.processor.post_process(reconstruct(self.model, pixel_values).pixel_values)
        self.monitor.save_picture("reconstructions", step, image_grid(images, len(chosen)))

    def _save(self, step: int) -> None:
        def write(folder: Path) -> None:
            self.accelerator.save_state(str(folder))
            if self.trainer.ema:
                dcp.save(self.trainer.ema, checkpoint_id=folder / "ema")

        about = {"trajectory": self._trajectory(), "num_processes": self.accelerator.num_processes}
        save_checkpoint(self.output_dir, step, about, write, self.accelerator)
        if self.accelerator.is_main_process:
            prune_checkpoints(self.output_dir, self.arguments.save_total_limit)


def train(arguments: TrainArguments) -> RunResult | None:
    """Does what `scripts/train.py` is told: a run, or with `dry_run` only its plan. See [`TrainingRun`]."""
    if arguments.dry_run:
        plan = describe(arguments)
        if PartialState().is_main_process:
            print(plan)
        return None
    return TrainingRun(arguments).run()
