"""scripts/train.py in processes of its own, on images made for it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from conftest import ROOT
from PIL import Image


TINY = {
    "image_size": 8,
    "patch_size": 2,
    "num_coupling_layers": 5,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "train_batch_size": 8,
    "learning_rate": 0.01,
    "max_steps": 12,
    "save_steps": 3,
    "logging_steps": 1,
    "eval_steps": 6,
    "sample_steps": 6,
    "num_samples": 4,
}


def write_images(folder: Path, num_train: int = 21, num_validation: int = 5, size: int = 8) -> Path:
    """An image folder with smooth pictures, so that there is something to learn."""
    rng = np.random.default_rng(0)
    for split, count in (("train", num_train), ("validation", num_validation)):
        (folder / split).mkdir(parents=True)
        for i in range(count):
            corners = rng.integers(256, size=(2, 2, 3)).astype(np.uint8)
            Image.fromarray(corners).resize((size, size), Image.Resampling.BILINEAR).save(folder / split / f"{i}.png")
    return folder


def environment(cache: Path, **variables: str) -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_DATASETS_CACHE": str(cache),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **variables,
    }


def command(num_processes: int = 1, **fields) -> list[str]:
    """The command line of a tiny run; fields win over those of `TINY`, `None` leaves one out."""
    launcher = [sys.executable]
    if num_processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    flags = [f"--{name}={value}" for name, value in (TINY | fields).items() if value is not None]
    return [*launcher, str(ROOT / "scripts" / "train.py"), *flags]


class TrainProcess:
    """A run that is under way; its output goes to a file."""

    def __init__(self, cache: Path, num_processes: int = 1, variables: dict[str, str] | None = None, **fields):
        self.log = cache / f"log-{time.monotonic_ns()}.txt"
        self.process = subprocess.Popen(
            command(num_processes, **fields),
            env=environment(cache, ACCELERATE_USE_CPU="true", **(variables or {})),
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self, code: int = 0) -> str:
        """Waits for its end, which must come with this exit code; gives the output."""
        assert self.process.wait(timeout=300) == code, self.output
        return self.output

    @property
    def output(self) -> str:
        return self.log.read_text()

    def when(self, happens: Callable[[], bool], send: signal.Signals) -> "TrainProcess":
        """Sends a signal to the process and its children as soon as something happens."""
        deadline = time.monotonic() + 300
        while not happens():
            assert self.process.poll() is None and time.monotonic() < deadline, self.output
            time.sleep(0.001)
        os.killpg(self.process.pid, send)
        return self


def run_to_end(cache: Path, code: int = 0, **options) -> str:
    return TrainProcess(cache, **options).wait(code)
