# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Progress bar, metrics log, trackers and sample images of a training run."""

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from PIL import Image

from ..analysis.cost import peak_flops, training_flops
from ..arguments import TrainArguments
from ..model.configuration_jet import JetConfig
from ..utils.files import replace_file, replace_text, strict_json
from ..utils.xla import is_xla, memory_info
from .environment import describe_environment, device_name
from .trackers import Trackers
from .trainer import StepMetrics


class JsonLines:
    """
    A file of one JSON object per line, whose last line a killed run may have left unfinished.

    Args:
        path: The file, created with its first line.
    """

    def __init__(self, path: Path):
        self.path = path
        self.last_step = -1  # of an earlier start of the run

    def append(self, row: dict) -> None:
        with self.path.open("a") as file:
            file.write(strict_json(row) + "\n")

    def read(self) -> list[dict]:
        """Return all finished rows."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().split("\n")[:-1]]

    def truncate(self, step: int) -> None:
        """Delete the rows of steps after `step`, which the run is about to repeat."""
        if self.path.exists():
            rows = self.read()
            self.last_step = max((row["step"] for row in rows), default=-1)
            replace_text(self.path, "".join(strict_json(row) + "\n" for row in rows if row["step"] <= step))


# Metrics of a step whose means a row of metrics.jsonl holds.
AVERAGED = ("loss", "grad_norm", "loss_prior", "loss_log_det")


@dataclass
class MetricsWindow:
    """
    Sums of metrics over the optimizer steps since the last row of `metrics.jsonl`. Skipped steps are only counted.

    A checkpoint keeps them, so that rows do not depend on interruptions.

    Args:
        num_updates, num_clipped, num_skipped: Numbers of steps that updated the weights, of those whose gradient was
            clipped, and of skipped steps.
        largest_grad_norm: Largest gradient norm of an update.
        sums: Sums over the updates, by the names in `AVERAGED`.
    """

    num_updates: int = 0
    num_clipped: int = 0
    num_skipped: int = 0
    largest_grad_norm: float = 0.0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(AVERAGED, 0.0))

    def add(self, metrics: StepMetrics) -> None:
        """Add a step."""
        if metrics.skipped:
            self.num_skipped += 1
            return
        self.num_updates += 1
        self.num_clipped += metrics.clipped
        self.largest_grad_norm = max(self.largest_grad_norm, metrics.grad_norm)
        for name in AVERAGED:
            self.sums[name] += getattr(metrics, name)

    def close(self) -> dict[str, float | None]:
        """Return the metrics of the steps, `None` where all were skipped, and reset the sums."""
        count = self.num_updates
        row: dict[str, float | None] = {name: total / count if count else None for name, total in self.sums.items()}
        row["largest_grad_norm"] = self.largest_grad_norm if count else None
        row["clipped_share"] = self.num_clipped / count if count else None
        row["skipped_steps"] = self.num_skipped
        vars(self).update(vars(MetricsWindow()))
        return row


class Monitor:
    """
    Show and log a run. The main process writes; the others only measure times.

    Args:
        arguments: Arguments of the run, which the trackers show.
        config: Configuration of the model.
        accelerator: Accelerator whose trackers are logged to.
        steps: Optimizer steps to take, from the checkpoint of a resumed run to the end of the schedule.
        num_images: Images of an epoch; `None` if unknown.
        window: Metrics since the last row of `metrics.jsonl`, from the checkpoint of a resumed run.
        is_extended: Whether this start extends the run, so that the steps after its checkpoint are no repetition.
    """

    def __init__(
        self,
        arguments: TrainArguments,
        config: JetConfig,
        accelerator: Accelerator,
        steps: range,
        num_images: int | None,
        window: MetricsWindow,
        is_extended: bool = False,
    ):
        self.accelerator, self.batch_size, self.num_images = accelerator, arguments.train_batch_size, num_images
        # The loss of a model with `noise_std` is no bits per dimension.
        self.loss_name, self.metric_name, self.unit, self.images = (
            ("bpd", "bits_per_dim", "bits per dimension", "held-out images")
            if config.noise_std is None
            else ("nats", "noisy_nats_per_dim", "nats per dimension", "held-out noisy images")
        )
        self.has_curriculum = arguments.noise_curriculum > 0
        self.window = window
        self.flops_per_image, output_dir = training_flops(config), Path(arguments.output_dir)
        self.peak_flops = peak_flops(device_name(accelerator.device))
        self.metrics = JsonLines(output_dir / "metrics.jsonl")
        self.evaluations = JsonLines(output_dir / "evaluations.jsonl")
        self.environments = JsonLines(output_dir / "environments.jsonl")
        self.images_dir = output_dir / "samples"
        if accelerator.is_main_process:
            for lines in (self.metrics, self.evaluations, self.environments):
                lines.truncate(steps.start or -1)  # a new run evaluates step 0
            self._log_environment(steps.start)
        self.trackers = Trackers(arguments, accelerator, steps.start, is_extended)
        interval = 0.5 if sys.stderr.isatty() else 30
        self.bar = tqdm(total=steps.stop, initial=steps.start, unit="step", mininterval=interval, smoothing=0.05)
        self.images_seen = 0
        self.data_seconds = self.step_seconds = 0.0
        # Since the last logged step:
        self._start, self._images, self._paused = time.monotonic(), 0, 0.0

    def _log_environment(self, step: int) -> None:
        """Write a row of `environments.jsonl`, unless a resumed run continues in the environment of the last row."""
        environment, rows = describe_environment(self.accelerator), self.environments.read()
        if not rows or rows[-1] != {"step": rows[-1]["step"], **environment}:
            self.environments.append({"step": step, **environment})

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time of the block as waiting for data."""
        start = time.monotonic()
        yield
        self.data_seconds += time.monotonic() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block, which evaluates, draws images or saves, out of the throughput."""
        start = time.monotonic()
        yield
        self._paused += time.monotonic() - start

    def log_step(self, metrics: StepMetrics, write: bool) -> None:
        """Advance the progress bar, and on request write the metrics to the log and the trackers."""
        self._images += self.batch_size
        self.images_seen += self.batch_size
        self.bar.update()
        loss = {("noisy " if metrics.noise_scale else "") + self.loss_name: f"{metrics.loss:.3f}"}
        self.bar.set_postfix(loss, refresh=False)
        self.window.add(metrics)
        if metrics.skipped:
            self.log(
                f"step {metrics.step} was skipped: its loss was {metrics.loss}, its gradient norm {metrics.grad_norm}"
            )
        if not write:
            return
        seconds = time.monotonic() - self._start - self._paused
        self.step_seconds += seconds
        throughput = self._images / seconds
        row = {
            "step": metrics.step,
            "learning_rate": metrics.learning_rate,
            **self.window.close(),
            "epoch": self.num_images and metrics.step * self.batch_size / self.num_images,
            "images_per_second": throughput,
            "peak_memory_gib": peak_memory(self.accelerator.device) / 2**30,
        }
        if self.peak_flops:
            peak = self.peak_flops * self.accelerator.num_processes
            row["model_flops_utilization"] = throughput * self.flops_per_image / peak
        if self.has_curriculum:
            row["noise_scale"] = metrics.noise_scale
        self.bar.set_postfix({**loss, "images": f"{throughput:.3g}/s"}, refresh=False)
        if self.accelerator.is_main_process:
            self.metrics.append(row)
        self.trackers.log("train", row, is_repeated=metrics.step <= self.metrics.last_step)
        self._start, self._images, self._paused = time.monotonic(), 0, 0.0

    def log_evaluation(self, row: dict) -> None:
        """Write a row of `evaluations.jsonl`, and log it to the trackers."""
        if self.accelerator.is_main_process:
            self.evaluations.append(row)
        self.log(
            f"step {row['step']}: {row[self.metric_name]:.4f} ± {row['standard_error']:.4f} {self.unit} of "
            f"{row['num_images']} {self.images}"
        )
        self.trackers.log("eval", row, is_repeated=row["step"] <= self.evaluations.last_step)

    def image_path(self, name: str, step: int) -> Path:
        """Return the path of an image of a step."""
        return self.images_dir / f"{name}-{step:08d}.png"

    def save_image(self, name: str, step: int, image: Image.Image) -> None:
        """Write `samples/NAME-STEP.png`, and show it to the trackers that take images."""
        if not self.accelerator.is_main_process:
            return
        path = self.image_path(name, step)
        is_repeated = path.exists()
        self.images_dir.mkdir(exist_ok=True)
        replace_file(path, image.save)
        self.trackers.log_image(name, step, image, is_repeated)

    def log(self, message: str) -> None:
        """Print a line above the progress bar."""
        if self.accelerator.is_main_process:
            self.bar.write(message, file=sys.stderr)

    def close(self) -> None:
        """Close the progress bar, and print the throughput of the run."""
        self.bar.close()
        busy = self.step_seconds - self.data_seconds
        if self.images_seen and busy > 0:
            self.log(
                f"throughput: {self.images_seen / busy:.4g} images/s; {self.data_seconds / self.step_seconds:.1%} of "
                "the time was spent waiting for data"
            )


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process on a GPU or TPU, or else its peak resident memory, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if is_xla(device) and (peak := memory_info(device).get("peak_bytes_used")):
        return peak
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024
