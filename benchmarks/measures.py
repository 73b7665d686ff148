# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""How it is measured: in turns, in bytes, and from a cold start."""

import ctypes
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch

from jet_hf.model.configuration_jet import JetConfig

from .contenders import COMPILED, Contender, Work, build


WARMUP = 2
# Parameters of glibc's mallopt (malloc.h), in bytes.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


@dataclass(frozen=True)
class Timing:
    """
    Repeated measurements of one thing, in seconds.

    Args:
        seconds: Of each time.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.seconds) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


def keep_freed_memory() -> None:
    """
    Has glibc keep freed memory for what comes next. Otherwise it depends on what was allocated before whether a call
    has to fetch its memory from the system, page by page: whoever is timed, by chance.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_TRIM_THRESHOLD, 2**30)  # free memory at the heap's end that is not given back
        library.mallopt(M_TOP_PAD, 2**28)  # what the heap grows by
        library.mallopt(M_MMAP_THRESHOLD, 2**25)  # glibc's maximum; what is larger is fetched by itself and given back


def seconds_of(run: Callable[[], object], device: str) -> float:
    """Wall-clock time of one call, the device's work included."""
    _synchronize(device)
    start = time.perf_counter()
    run()
    _synchronize(device)
    return time.perf_counter() - start


def interleave(runs: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, Timing]:
    """
    Times several things in turns, so that what else the machine does falls on all of them alike; each round starts
    with another one. Every timed call follows one of the same thing that is not timed: after matrix products in
    bfloat16, for one, some processors are slow for a while.

    Args:
        runs: What is timed, by name.
        rounds: Times that each is measured, after `WARMUP` calls that are not.
        device: Where the work is done.
    """
    for run in runs.values():
        for _ in range(WARMUP):
            run()
    names, seconds = list(runs), {name: [] for name in runs}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            runs[name]()
            seconds[name].append(seconds_of(runs[name], device))
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def peak_memory(work: Work, device: str) -> tuple[int, int]:
    """
    Memory of one call, after one that is not counted.

    Returns:
        Bytes that stay between calls (weights, buffers, the optimiser's state), and the largest number of bytes beside
        them during the call (activations, gradients, what kernels need), as torch's allocator counted them.
    """
    work.run()
    tensors = [*work.model.parameters(), *work.model.buffers()]
    if work.optimizer is not None:
        states = work.optimizer.state.values()
        tensors += [value for state in states for value in state.values() if torch.is_tensor(value)]
    resident = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work.run()
        torch.cuda.synchronize()
        return resident, torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work.run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return resident, peak


@dataclass(frozen=True)
class FirstCall:
    """
    A call in a new process, with nothing compiled before.

    Args:
        first: Seconds of the first call.
        later: Seconds of one after it, the median of a few.
    """

    first: float
    later: float


def first_call(
    contender: Contender,
    operation: str,
    config: JetConfig,
    batch_size: int,
    device: str,
    compile_mode: str | None = None,
    repeats: int = 5,
) -> FirstCall:
    """Times the first call of a new process, where nothing is compiled but a trifle, and some later ones."""
    arguments = (contender, operation, config, batch_size, device, compile_mode, repeats)
    with tempfile.TemporaryDirectory() as cache:
        settings = {"TORCHINDUCTOR_CACHE_DIR": cache}  # empty: nothing of an earlier process
        with ProcessPoolExecutor(1, get_context("spawn"), _set_environment, (settings,)) as pool:
            return pool.submit(_time_first_call, *arguments).result()


def _time_first_call(contender, operation, config, batch_size, device, compile_mode, repeats) -> FirstCall:
    keep_freed_memory()
    if COMPILED in contender.options:
        torch.compile(torch.nn.functional.gelu)(torch.ones(64, device=device))  # the compiler's own start
    work = build(contender, operation, config, batch_size, device, compile_mode)
    seconds = [seconds_of(work.run, device) for _ in range(repeats + 1)]
    return FirstCall(seconds[0], statistics.median(seconds[1:]))


def _set_environment(settings: dict[str, str]) -> None:
    os.environ.update(settings)


def _synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
