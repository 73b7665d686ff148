# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Evaluations and sample images of the model during training."""

import logging
import math
from dataclasses import dataclass

import torch

from ..analysis.evaluation import Evaluation, score_images
from ..analysis.sampling import image_grid, reconstruct, sample_images
from ..arguments import TrainArguments
from ..data import PixelSplit, read_pixels
from ..model.image_processing_jet import JetImageProcessor
from ..model.modeling_jet import scale_bytes
from .monitor import Monitor
from .processes import on_main_process
from .setup import RunData
from .trainer import Trainer


logger = logging.getLogger(__name__)


def is_due(step: int, every: int, num_steps: int) -> bool:
    """Return whether a step is a multiple of `every` or the last step; never for an interval of 0."""
    return every > 0 and (step % every == 0 or step == num_steps)


@dataclass(frozen=True)
class Evaluator:
    """
    Evaluate the model every `eval_steps`, and draw samples and reconstructions every `sample_steps`; 0 means never.

    All processes call the methods. The noise of evaluations and the latents of samples follow from the seed.
    """

    arguments: TrainArguments
    trainer: Trainer
    processor: JetImageProcessor
    data: RunData
    monitor: Monitor

    def catch_up(self, step: int) -> None:
        """Do what is due at the step that a run starts from, unless it was done before the run was stopped there."""
        evaluated, drawn = on_main_process(
            lambda: (
                any(row["step"] == step for row in self.monitor.evaluations.read()),
                self.monitor.image_path("samples", step).exists(),
            )
        )
        self.run(step, not evaluated, not drawn)

    def run(self, step: int, evaluation: bool = True, images: bool = True) -> None:
        """Evaluate the model and draw images, if they are due and wanted."""
        num_steps = self.trainer.num_training_steps
        held_out = self.data.eval if evaluation and is_due(step, self.arguments.eval_steps, num_steps) else None
        images = images and is_due(step, self.arguments.sample_steps, num_steps)
        if held_out is None and not images:
            return
        # Data loaders draw seeds, which would make the steps that follow depend on when evaluations take place.
        with self.trainer.averaged_weights(), torch.random.fork_rng(devices=[]):
            if held_out is not None:
                self._evaluate(step, held_out)
            if images:
                try:
                    self._draw(step)
                except ValueError as error:  # of a model that diverges, whose training may recover
                    logger.warning(f"step {step}: the images could not be drawn: {error}")

    def _evaluate(self, step: int, pixels: PixelSplit) -> None:
        scores = score_images(
            self.trainer.model,
            pixels.dataset,
            batch_size=self.arguments.eval_batch_size,
            seed=self.arguments.seed,
            accelerator=self.trainer.accelerator,
        )
        evaluation = Evaluation(scores)
        self.monitor.log_evaluation(
            {
                "step": step,
                self.monitor.metric_name: evaluation.mean,
                "standard_error": evaluation.standard_error,
                "num_images": len(scores),
            }
        )

    @torch.no_grad()
    def _draw(self, step: int) -> None:
        model, count, seed = self.trainer.base_model, self.arguments.num_samples, self.arguments.seed
        model.eval()
        if (examples := self.data.eval or self.data.train) is not None:
            pixels = read_pixels(examples.dataset.select(range(min(8, len(examples.dataset)))))
            pixel_values = scale_bytes(pixels.to(self.trainer.accelerator.device), model.config.num_levels)
            images = self.processor.post_process(pixel_values)
            images += self.processor.post_process(reconstruct(model, pixel_values).pixel_values)
            self.monitor.save_image("reconstructions", step, image_grid(images, len(pixels)))
        # The samples come last, since `catch_up` looks for their file.
        samples = sample_images(model, self.processor, count, seed=seed, batch_size=count)
        self.monitor.save_image("samples", step, image_grid(samples, math.ceil(math.sqrt(count))))
