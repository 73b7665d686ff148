# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Works off runs on this machine: each a process group of its own under `accelerate launch`, with a log of its own.

A run's log is locked for as long as any of its processes lives, since they inherit it as their output. A sweep that
was killed may have left runs at work; the next one waits for these rather than have two write to one folder.
"""

import fcntl
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from .plan import FAILED, FAILURE_FILE, FINISHED, LOG_FILE, Run, State, read_state


logger = logging.getLogger(__name__)

START_LINE = "=== started by the sweep ==="
POLL_SECONDS = 0.1
GRACE_SECONDS = 120.0  # for a step to end and a checkpoint to be written


@dataclass
class Worker:
    """A run at work."""

    run: Run
    process: subprocess.Popen
    slot: int


class LocalRunner:
    """
    Works off runs, some at a time.

    Args:
        train_script: `scripts/train.py`.
        num_parallel: Runs at a time.
        accelerate_config: Configuration file of accelerate; its default where there is none.
        notify: Called with a run and its state when it has ended.
    """

    def __init__(
        self,
        train_script: Path,
        num_parallel: int = 1,
        accelerate_config: str | None = None,
        notify: Callable[[Run, State], None] = lambda run, state: None,
    ):
        self.num_parallel, self.accelerate_config = num_parallel, accelerate_config
        self.train_script, self.notify = train_script, notify
        self.stopped_by: signal.Signals | None = None
        self._workers: list[Worker] = []
        self._waited_for: set[str] = set()

    def work_off(self, runs: list[Run]) -> None:
        """
        Does all runs, or as many as there are until SIGINT or SIGTERM comes: then those at work save a checkpoint and
        end, and `stopped_by` is set. A run that fails leaves its reason in its folder, and the others go on.
        """
        waiting = list(runs)
        with self._signals():
            try:
                while (waiting or self._workers) and not self.stopped_by:
                    self._start_some(waiting)
                    time.sleep(POLL_SECONDS)
                    self._collect()
            finally:
                self._end_all()

    @contextmanager
    def _signals(self):
        previous = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _stop(self, signum: int, frame) -> None:
        if self.stopped_by:  # asked twice: no more waiting for checkpoints
            self._signal_all(signal.SIGKILL)
        self.stopped_by = signal.Signals(signum)

    def _start_some(self, waiting: list[Run]) -> None:
        for run in list(waiting):
            if len(self._workers) >= self.num_parallel or self.stopped_by:
                return
            log = open_log(run.folder)
            if log is None:
                if run.name not in self._waited_for:
                    self._waited_for.add(run.name)
                    logger.info(f"{run.name} is still at work for an earlier sweep: waiting for it.")
                continue
            waiting.remove(run)
            # What was left at work may have come to its end meanwhile.
            if (state := read_state(run)).status == FINISHED:
                log.close()
                self.notify(run, state)
                continue
            self._start(run, log)

    def _start(self, run: Run, log: BinaryIO) -> None:
        (run.folder / FAILURE_FILE).unlink(missing_ok=True)
        log.write(f"{START_LINE}\n".encode())
        log.flush()
        slot = min(set(range(self.num_parallel)) - {worker.slot for worker in self._workers})
        process = subprocess.Popen(
            launch_command(run, self.train_script, self.accelerate_config, self.num_parallel > 1),
            env=child_environment(slot, self.num_parallel),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in a terminal is ours to hand on
        )
        logger.info(f"{run.name} started, see {run.folder / LOG_FILE}")
        log.close()  # the lock is theirs now
        self._workers.append(Worker(run, process, slot))

    def _collect(self) -> None:
        for worker in list(self._workers):
            code = worker.process.poll()
            if code is not None and not is_at_work(worker.run.folder):
                self._workers.remove(worker)
                state = read_state(worker.run)
                # One that was told to stop is no failure; nor is one that a scheduler stopped in order.
                if state.status not in (FINISHED, FAILED) and code != 0 and not self.stopped_by:
                    worker.run.write_failure(failure_reason(worker.run.folder / LOG_FILE, code))
                    state = read_state(worker.run)
                self.notify(worker.run, state)

    def _end_all(self) -> None:
        self._signal_all(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while self._workers:
            self._collect()
            if time.monotonic() > deadline:
                self._signal_all(signal.SIGKILL)
            time.sleep(POLL_SECONDS)

    def _signal_all(self, number: signal.Signals) -> None:
        # To the whole group: accelerate's launcher of one process does not hand signals on.
        for worker in self._workers:
            with suppress(ProcessLookupError):
                os.killpg(worker.process.pid, number)


def launch_command(run: Run, train_script: Path, accelerate_config: str | None, several: bool) -> list[str]:
    """The command of a run, whose settings are written into its folder."""
    options = ["--config_file", accelerate_config] if accelerate_config else []
    if several:
        options += ["--main_process_port", "0"]  # a free one, where a run has several processes
    settings = str(run.write_settings())
    return [sys.executable, "-m", "accelerate.commands.launch", *options, str(train_script), "--config", settings]


def child_environment(slot: int, num_parallel: int) -> dict[str, str]:
    """Variables of the run in a slot: its share of the GPUs, or of the CPU's cores, unless these are set already."""
    # torch's launcher would kill a run 30 seconds after SIGTERM.
    environment = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": f"{GRACE_SECONDS:.0f}", **os.environ}
    if num_parallel > 1:
        devices = torch.cuda.device_count()
        if devices >= num_parallel:
            known = os.environ.get("CUDA_VISIBLE_DEVICES")
            names = known.split(",") if known else [str(i) for i in range(devices)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(names[slot::num_parallel])
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_parallel)))
    return environment


def open_log(folder: Path) -> BinaryIO | None:
    """The log of a run, to append to, locked; `None` where a process of that run lives."""
    folder.mkdir(parents=True, exist_ok=True)
    log = (folder / LOG_FILE).open("ab")
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.close()
        return None
    except OSError as error:
        logger.warning(f"{folder} cannot be locked ({error}): make sure that no other sweep works there.")
    return log


def is_at_work(folder: Path) -> bool:
    """Whether a process of the run in this folder lives on this machine."""
    if not (folder / LOG_FILE).exists():
        return False
    log = open_log(folder)
    if log is not None:
        log.close()
    return log is None


def failure_reason(log: Path, code: int) -> str:
    """Why a run failed, out of the end of its log: the trainer's own message, or an exception, or a signal."""
    text = log.read_text(errors="replace").rpartition(START_LINE)[2]
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    for pattern in (r"error: (.+)", r"((?:[\w.]*(?:Error|Exception))\b(?<!CalledProcessError).*)"):
        for line in reversed(lines):
            if match := re.match(pattern, line):
                reason = match[1]
                diverged = re.match(r"step \d+: loss \S+, gradient norm", reason)
                return f"diverged: {reason}" if diverged else reason
    if killed := re.search(r"died with <Signals\.(\w+)", text):
        return f"killed by {killed[1]}{' (out of memory?)' if killed[1] == 'SIGKILL' else ''}"
    return f"exit code {code}: {lines[-1] if lines else 'no output'}"
