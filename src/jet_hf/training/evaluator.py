# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Evaluations and images of the model while it trains."""

import math

import torch

from ..analysis.evaluation import evaluate
from ..analysis.sampling import image_grid, reconstruct, sample_images
from ..data import read_pixels
from ..model.image_processing_jet import JetImageProcessor
from ..model.modeling_jet import scale_bytes
from .arguments import TrainArguments
from .monitor import Monitor
from .processes import on_main_process
from .setup import RunData
from .trainer import Trainer


def is_due(step: int, every: int, num_steps: int) -> bool:
    """Return whether a step is one of every so many, or the last; never for an interval of 0."""
    return every > 0 and (step % every == 0 or step == num_steps)


class Inspections:
    """
    Evaluate the model of a run and draw its samples and reconstructions; all processes call the methods.

    Args:
        arguments, trainer, processor, data, monitor: Parts of the run.
    """

    def __init__(
        self,
        arguments: TrainArguments,
        trainer: Trainer,
        processor: JetImageProcessor,
        data: RunData,
        monitor: Monitor,
    ):
        self.arguments, self.trainer, self.processor = arguments, trainer, processor
        self.data, self.monitor = data, monitor

    def make_up_for(self, step: int) -> None:
        """Do what is due at the step that a run starts from, unless it was done before the run was stopped there."""
        evaluated, drawn = on_main_process(
            lambda: (
                any(row["step"] == step for row in self.monitor.evaluations.read()),
                self.monitor.picture("samples", step).exists(),
            )
        )
        self.run(step, not evaluated, not drawn)

    def run(self, step: int, evaluation: bool = True, images: bool = True) -> None:
        """Evaluate and draw images, where they are due and wanted."""
        arguments, num_steps = self.arguments, self.trainer.num_training_steps
        evaluation = evaluation and self.data.eval is not None and is_due(step, arguments.eval_steps, num_steps)
        images = images and is_due(step, arguments.sample_steps, num_steps)
        if not evaluation and not images:
            return
        # Loaders draw seeds, by which a run that makes up for this would differ from one that need not.
        with self.trainer.averaged_weights(), torch.random.fork_rng(devices=[]):
            if evaluation:
                self.monitor.evaluation_done({"step": step, **self._evaluate()})
            if images:
                self._draw(step)

    def _evaluate(self) -> dict:
        evaluation = evaluate(
            self.trainer.model,
            self.data.eval.dataset,
            batch_size=self.arguments.eval_batch_size,
            seed=self.arguments.seed,
            accelerator=self.trainer.accelerator,
        )
        return {
            "bits_per_dim": evaluation.mean,
            "standard_error": evaluation.standard_error,
            "num_images": len(evaluation.bits_per_dim),
        }

    @torch.no_grad()
    def _draw(self, step: int) -> None:
        """Draw samples from the same latents each time, and held-out images beside their reconstructions."""
        model, count = self.trainer.base_model, self.arguments.num_samples
        model.eval()
        held_out = self.data.eval or self.data.train
        if held_out is not None:
            chosen = read_pixels(held_out.dataset.select(range(min(8, len(held_out.dataset)))))
            pixel_values = scale_bytes(chosen.to(self.trainer.accelerator.device))
            images = self.processor.post_process(pixel_values)
            images += self.processor.post_process(reconstruct(model, pixel_values).pixel_values)
            self.monitor.save_picture("reconstructions", step, image_grid(images, len(chosen)))
        # Last, since `make_up_for` looks for them.
        samples = sample_images(model, self.processor, count, seed=self.arguments.seed, batch_size=count)
        self.monitor.save_picture("samples", step, image_grid(samples, math.ceil(math.sqrt(count))))
