"""Tiny training runs, in this process and in processes of their own."""

import atexit
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import signal
import socket
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
from accelerate.commands import launch
from conftest import ROOT
from huggingface_hub import constants, hf_api
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


def launch_flags(num_processes: int) -> list[str]:
    """Return the flags of a launcher."""
    settings = ROOT / "recipes" / "accelerate" / ("cpu.yaml" if num_processes == 1 else "ddp.yaml")
    flags = ["--num_processes", str(num_processes), "--mixed_precision", "no", "--main_process_port", "0"]
    return ["--config_file", str(settings), *(flags if num_processes > 1 else [])]


def launch_command(num_processes: int, launcher: str | None) -> list[str]:
    """Return the start of a command line: `None` starts one process without a launcher."""
    if launcher is None:
        assert num_processes == 1
        return [sys.executable]
    assert launcher == "jet"
    return [sys.executable, str(ROOT / "scripts" / "launch.py"), *launch_flags(num_processes)]


def flags(**fields) -> list[str]:
    """Return the flags of a tiny run; fields win over those of `TINY`, and `None` omits one."""
    return list_flags(TINY | fields)


def list_flags(fields: dict) -> list[str]:
    """Return the flags of fields other than `None`; a list has several values."""
    flags = []
    for name, value in fields.items():
        if value is not None:
            flags += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    return flags


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


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_forked(
    arguments: list[str], cache: Path, stdout: Path, stderr: Path, variables: dict[str, str], under_parent: bool
) -> None:
    """Be the process of a script, or its parent: in a session of its own, with the settings of [`environment`]."""
    gc.freeze()
    gc.enable()  # again, after the imports
    os.setsid()
    if under_parent and os.fork():
        os.wait()
        return
    for stream, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.environ.update(environment(cache, **variables))
    os.chdir(ROOT)  # not where the server was, which a test that had changed its folder may have started
    torch.set_num_threads(1)
    datasets.config.HF_DATASETS_CACHE = cache
    datasets.disable_progress_bars()
    if "SECONDS_PER_SAVE" in variables:
        exec(SLOW_SAVES, {})
    if "HF_ENDPOINT" in variables:  # the client of the Hub reads it when it is imported
        importlib.reload(constants)
        hf_api.api.endpoint = constants.ENDPOINT
    sys.argv = arguments
    runpy.run_path(sys.argv[0], run_name="__main__")


class ForkedScript:
    """
    The process of a script, forked from one with all imports done, which saves the seconds that they take.

    It has the part of the interface of `subprocess.Popen` that the tests need.

    Args:
        arguments: Path of the script and its arguments.
        cache: Folder for the cache of `datasets`.
        stdout, stderr: Files to which the output is appended.
        variables: Environment variables, those of [`slow_saves`] and `HubServer.environment` among them.
        under_parent: Whether the process is a parent that waits for the script's process, as a launcher does.
    """

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["conftest", "train_process", "jet_hf.commands.train"])

    def __init__(
        self,
        arguments: list[str],
        cache: Path,
        stdout: Path,
        stderr: Path,
        variables: dict[str, str],
        under_parent: bool = False,
    ):
        with pytest.MonkeyPatch.context() as patch:
            # The server imports by this variable alone.
            patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
            # Killed runs cannot clean up their semaphores.
            patch.setenv("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
            patch.setenv("PYTHONHASHSEED", "1")  # no result may depend on the hashes of strings, which differ here
            given = (arguments, cache, stdout, stderr, variables, under_parent)
            self.process = self.context.Process(target=run_forked, args=given)
            self.process.start()
        self.pid = self.process.pid
        # At its end, Python would wait for a run that a failed test left behind.
        atexit.register(self.process.kill)

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running after {timeout} seconds"
        return self.process.exitcode

    def terminate(self) -> None:
        self.process.terminate()


def join_variables(num_processes: int) -> list[dict[str, str]]:
    """Return the environment variables with which processes join by themselves, as they do under a launcher."""
    common = {"ACCELERATE_USE_CPU": "true"}
    if num_processes == 1:
        return [common]
    common |= {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [common | {"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(num_processes)]


def run_in_two(arguments: list[str], cache: Path) -> str:
    """Run a script in two forked processes that join, and return their common stdout."""
    stdout, stderr = (cache / f"{name}-{time.monotonic_ns()}.txt" for name in ("stdout", "stderr"))
    ranks = [ForkedScript(arguments, cache, stdout, stderr, variables) for variables in join_variables(2)]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0], stderr.read_text()
    return stdout.read_text()


class TrainProcess:
    """
    A run in progress, whose output goes to a file.

    Args:
        cache: Folder for the output and for the cache of `datasets`.
        num_processes: Number of training processes.
        launcher: See [`launch_command`]; without one, several processes join by themselves. With "parent", the process
            is forked from one that waits for it, as a launcher does. With "accelerate", its launcher is forked.
        variables: Environment variables.
        imports: Whether the process does its own imports; without them and without a launcher, it is forked.
        fields: See [`flags`].
    """

    def __init__(
        self,
        cache: Path,
        num_processes: int = 1,
        launcher: str | None = None,
        variables: dict[str, str] | None = None,
        imports: bool = False,
        **fields,
    ):
        self.log = cache / f"log-{time.monotonic_ns()}.txt"
        self.folder = Path(fields["output_dir"])
        variables = variables or {}
        if launcher != "jet" and not imports:
            arguments = [str(ROOT / "scripts" / "train.py"), *flags(**fields)]
            if launcher == "accelerate":
                arguments = [launch.__file__, *launch_flags(num_processes), *arguments]
                num_processes = 1  # the launcher starts the others
            self.log.touch()
            self.processes = [
                ForkedScript(arguments, cache, self.log, self.log, rank | variables, launcher == "parent")
                for rank in join_variables(num_processes)
            ]
        else:
            with self.log.open("wb") as log:
                process = subprocess.Popen(
                    command(num_processes, launcher, **fields),
                    env=environment(cache, ACCELERATE_USE_CPU="true", **variables),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self.processes = [process]
        self.process = self.processes[0]

    def wait(self, code: int = 0) -> str:
        """Wait for the end of the run, check its exit code and return its output."""
        assert [process.wait(timeout=300) for process in self.processes] == [code] * len(self.processes), self.output
        return self.output

    @property
    def output(self) -> str:
        return self.log.read_text()

    def when(self, happens: Callable[[], bool], send: signal.Signals) -> "TrainProcess":
        """Send a signal to the processes and their children as soon as something happens."""
        self.wait_until(happens)
        for process in self.processes:
            os.killpg(process.pid, send)
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
        """Return all processes of the run: launchers, trainers, loaders, those in sessions of their own too."""
        sessions, found = {process.pid for process in self.processes}, []
        for process in psutil.process_iter(["cmdline", "status"]):
            if process.info["status"] == psutil.STATUS_ZOMBIE:
                continue
            with suppress(ProcessLookupError):
                if os.getsid(process.pid) in sessions or f"--output_dir={self.folder}" in (
                    process.info["cmdline"] or []
                ):
                    found.append(process)
        return found

    def kill_all(self) -> None:
        """Kill every process of the run at once."""
        for process in self.running():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for process in self.processes:
            process.wait()

    def wait_for_all(self) -> None:
        """Wait until no process of the run is left."""
        deadline = time.monotonic() + 60
        while left := self.running():
            assert time.monotonic() < deadline, left
            time.sleep(0.05)


def run_to_end(cache: Path, code: int = 0, **options) -> str:
    """Train in a process, check its exit code and return its output; see [`TrainProcess`]."""
    return TrainProcess(cache, **options).wait(code)
