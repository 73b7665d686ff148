"""Tiny training runs, in this process and in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import datasets
import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT
from PIL import Image

from jet_hf.training import RunResult, parse_arguments, train


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
    """Write an image folder with smooth pictures, so that there is something to learn."""
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


# Imported by the processes of a run, it makes the checksum of the weights take as long as for many gigabytes.
SLOW_SAVES = """
import hashlib, os, time

file_digest = hashlib.file_digest

def slow_digest(file, *arguments):
    if file.name.endswith("draft/model.safetensors"):
        time.sleep(float(os.environ["SECONDS_PER_SAVE"]))
    return file_digest(file, *arguments)

hashlib.file_digest = slow_digest
"""


def slow_saves(folder: Path, seconds: float) -> dict[str, str]:
    """Return the variables of a run whose checkpoints take this long to save."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(SLOW_SAVES)
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "SECONDS_PER_SAVE": str(seconds)}


def launch_command(num_processes: int, launcher: str | None) -> list[str]:
    """Return the start of a command line: `None` stands for torchrun, or for no launcher of one process."""
    if launcher is None and num_processes == 1:
        return [sys.executable]
    if launcher is None:
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    program = {"accelerate": ["-m", "accelerate.commands.launch"], "jet": [str(ROOT / "scripts" / "launch.py")]}
    settings = ROOT / "recipes" / "accelerate" / ("cpu.yaml" if num_processes == 1 else "ddp.yaml")
    flags = ["--num_processes", str(num_processes), "--mixed_precision", "no", "--main_process_port", "0"]
    return [sys.executable, *program[launcher], "--config_file", str(settings), *(flags if num_processes > 1 else [])]


def flags(**fields) -> list[str]:
    """Return the flags of a tiny run; fields win over those of `TINY`, and `None` omits one."""
    return [f"--{name}={value}" for name, value in (TINY | fields).items() if value is not None]


def command(num_processes: int = 1, launcher: str | None = None, **fields) -> list[str]:
    """Return the command line of a tiny run; see [`flags`]."""
    return [*launch_command(num_processes, launcher), str(ROOT / "scripts" / "train.py"), *flags(**fields)]


@contextmanager
def like_a_process(cache: Path) -> Iterator[None]:
    """Give this process the settings of [`environment`], so that runs in both are bit-identical."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        yield
    torch.set_num_threads(threads)


def train_here(**fields) -> RunResult | None:
    """Train in this process; see [`flags`]."""
    return train(parse_arguments(flags(**fields)))


def rows(folder: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


class TrainProcess:
    """A run in progress, whose output goes to a file."""

    def __init__(
        self,
        cache: Path,
        num_processes: int = 1,
        launcher: str | None = None,
        variables: dict[str, str] | None = None,
        **fields,
    ):
        self.log = cache / f"log-{time.monotonic_ns()}.txt"
        self.folder = Path(fields["output_dir"])
        self.process = subprocess.Popen(
            command(num_processes, launcher, **fields),
            env=environment(cache, ACCELERATE_USE_CPU="true", **(variables or {})),
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A background job of a shell would ignore Ctrl-C, and pass that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def wait(self, code: int = 0) -> str:
        """Wait for the end of the run, check its exit code and return its output."""
        assert self.process.wait(timeout=300) == code, self.output
        return self.output

    @property
    def output(self) -> str:
        return self.log.read_text()

    def when(self, happens: Callable[[], bool], send: signal.Signals) -> "TrainProcess":
        """Send a signal to the process and its children as soon as something happens."""
        self.wait_until(happens)
        os.killpg(self.process.pid, send)
        return self

    def wait_until(self, happens: Callable[[], bool]) -> "TrainProcess":
        deadline = time.monotonic() + 300
        while not happens():
            assert self.process.poll() is None and time.monotonic() < deadline, self.output
            time.sleep(0.001)
        return self

    def logged(self, step: int) -> Callable[[], bool]:
        """Return a condition: the metrics of a step are in the log of the run."""
        path = self.folder / "metrics.jsonl"
        return lambda: path.exists() and f'"step": {step},' in path.read_text()

    def running(self) -> list[psutil.Process]:
        """Return all processes that have the run's folder in their command line: launchers, trainers, loaders."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            words = process.info["cmdline"] or []
            if any(word == f"--output_dir={self.folder}" for word in words):
                found.append(process)
        return [process for process in found if process.info["status"] != psutil.STATUS_ZOMBIE]

    def kill_all(self) -> None:
        """Kill every process of the run at once, those in sessions of their own too."""
        for process in self.running():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def wait_for_all(self) -> None:
        """Wait until no process of the run is left."""
        deadline = time.monotonic() + 60
        while left := self.running():
            assert time.monotonic() < deadline, left
            time.sleep(0.05)


def run_to_end(cache: Path, code: int = 0, **options) -> str:
    """Train in a process, check its exit code and return its output; see [`TrainProcess`]."""
    return TrainProcess(cache, **options).wait(code)
