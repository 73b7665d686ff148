# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Progress bar, metrics log, trackers and sample images of a training run."""

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from PIL import Image

from ..utils.files import replace_file, replace_text, strict_json
from .trainer import StepMetrics


class JsonLines:
    """
    A file of one JSON object a line, of which a killed run may have left the last line unfinished.

    Args:
        path: The file; made at the first line.
    """

    def __init__(self, path: Path):
        self.path = path

    def append(self, row: dict) -> None:
        with self.path.open("a") as file:
            file.write(strict_json(row) + "\n")

    def read(self) -> list[dict]:
        """All rows but an unfinished one."""
        if not self.path.exists():
            return []
        lines = self.path.read_text().split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def truncate(self, step: int) -> None:
        """Forgets rows of steps after `step`, which are about to be done again."""
        if self.path.exists():
            replace_text(self.path, "".join(strict_json(row) + "\n" for row in self.read() if row["step"] <= step))


class Monitor:
    """
    Shows and logs a run; the main process does, the others only keep time.

    Args:
        accelerator: Its trackers are logged to.
        output_dir: Folder of the run.
        num_steps: Optimiser steps of the run.
        start_step: Those done before, where a checkpoint is gone on from.
        batch_size: Images of a step, over all processes.
        num_images: Images of an epoch, where known.
        flops_per_image: Of a training step.
        peak_flops: Of one device a second, where known.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        output_dir: Path,
        num_steps: int,
        start_step: int | None,
        batch_size: int,
        num_images: int | None,
        flops_per_image: float,
        peak_flops: float | None,
    ):
        self.accelerator = accelerator
        self.batch_size, self.num_images = batch_size, num_images
        self.flops_per_image, self.peak_flops = flops_per_image, peak_flops
        self.metrics = JsonLines(output_dir / "metrics.jsonl")
        self.evaluations = JsonLines(output_dir / "evaluations.jsonl")
        self.pictures = output_dir / "samples"
        if accelerator.is_main_process:
            for lines in (self.metrics, self.evaluations):
                lines.truncate(-1 if start_step is None else start_step)
        interval = 0.5 if sys.stderr.isatty() else 30
        self.bar = tqdm(total=num_steps, initial=start_step or 0, unit="step", mininterval=interval, smoothing=0.05)
        self.images_seen = 0
        self.data_seconds = self.step_seconds = 0.0
        self._restart()

    def _restart(self) -> None:
        self._start, self._images, self._paused = time.monotonic(), 0, 0.0

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.data_seconds += time.monotonic() - start

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time that does not count as training: evaluations, pictures, checkpoints."""
        start = time.monotonic()
        yield
        self._paused += time.monotonic() - start

    def step_done(self, metrics: StepMetrics, log: bool) -> None:
        self._images += self.batch_size
        self.images_seen += self.batch_size
        self.bar.update()
        self.bar.set_postfix(bpd=f"{metrics.loss:.3f}", refresh=False)
        if not log:
            return
        seconds = time.monotonic() - self._start - self._paused
        self.step_seconds += seconds
        row = {
            "step": metrics.step,
            "epoch": self.num_images and metrics.step * self.batch_size / self.num_images,
            "loss": metrics.loss,
            "grad_norm": metrics.grad_norm,
            "learning_rate": metrics.learning_rate,
            "images_per_second": self._images / seconds,
            "peak_memory_gib": peak_memory(self.accelerator.device) / 2**30,
        }
        if self.peak_flops:
            peak = self.peak_flops * self.accelerator.num_processes
            row["model_flops_utilization"] = row["images_per_second"] * self.flops_per_image / peak
        self.bar.set_postfix(bpd=f"{metrics.loss:.3f}", images=f"{row['images_per_second']:.3g}/s", refresh=False)
        if self.accelerator.is_main_process:
            self.metrics.append(row)
        self.accelerator.log({f"train/{key}": value for key, value in row.items() if value is not None}, metrics.step)
        self._restart()

    def evaluation_done(self, row: dict) -> None:
        if self.accelerator.is_main_process:
            self.evaluations.append(row)
            self.say(
                f"step {row['step']}: {row['bits_per_dim']:.4f} ± {row['standard_error']:.4f} bits per dimension of "
                f"{row['num_images']} held-out images"
            )
        self.accelerator.log({f"eval/{key}": row[key] for key in ("bits_per_dim", "standard_error")}, step=row["step"])

    def picture(self, name: str, step: int) -> Path:
        """Return the path of an image of a step."""
        return self.pictures / f"{name}-{step:08d}.png"

    def save_picture(self, name: str, step: int, picture: Image.Image) -> None:
        """Writes `samples/NAME-STEP.png` and shows it to the trackers that take images."""
        if not self.accelerator.is_main_process:
            return
        self.pictures.mkdir(exist_ok=True)
        replace_file(self.picture(name, step), picture.save)
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        pixels = pixels.reshape(1, picture.height, picture.width, -1).numpy()
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({name: pixels}, step=step, dataformats="NHWC")
            elif hasattr(tracker, "log_images"):
                tracker.log_images({name: [pixels[0]]}, step=step)

    def say(self, message: str) -> None:
        """A line above the progress bar."""
        if self.accelerator.is_main_process:
            self.bar.write(message, file=sys.stderr)

    def close(self) -> None:
        self.bar.close()
        busy = self.step_seconds - self.data_seconds
        if self.images_seen and busy > 0:
            self.say(
                f"steps: {self.images_seen / busy:.4g} images/s; waiting for data took "
                f"{self.data_seconds / self.step_seconds:.1%} of the time"
            )


def peak_memory(device: torch.device) -> int:
    """Largest amount of memory that this process has used on the device, or on a CPU in all, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024
