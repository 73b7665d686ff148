# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Measures of the benchmark: time in turns, time of a cold start, and memory."""

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity
from torch.utils.benchmark import Measurement, Timer, timer

from .allocator import keep_freed_memory
from .contenders import Task, Work, build


Name = TypeVar("Name")


def interleave(runs: dict[Name, Callable[[], object]], rounds: int) -> dict[Name, Measurement]:
    """
    Time several functions in turns, so that other work on the machine affects all of them alike.

    Each round starts with another function. `Timer.timeit` makes two calls of the same function before the timed one:
    after matrix products in bfloat16, some processors are slow for a while.

    Args:
        runs: Functions by name.
        rounds: Number of timed calls of each function.

    Returns:
        The wall-clock time of each call in seconds, including the work queued on an accelerator.
    """
    names = list(runs)
    measured: dict[Name, list[Measurement]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            once = Timer("run()", globals={"run": runs[name]}, num_threads=torch.get_num_threads())
            measured[name].append(once.timeit(1))
    return {name: Measurement.merge(measurements)[0] for name, measurements in measured.items()}


def peak_memory(work: Work, device: str) -> tuple[int, int]:
    """
    Measure the memory of one call, after a first call that is not measured.

    Returns:
        Bytes that stay allocated between calls (weights, buffers, optimizer state), and the peak of all other bytes
        during the call (activations, gradients, workspaces), as counted by torch's allocator.
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
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profile:
        work.run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return resident, peak


def first_call(contender: str, task: Task, repeats: int) -> dict[str, float]:
    """
    Time the first call in a new process with an empty compilation cache, and `repeats` later calls.

    Returns:
        The seconds of the `first` call, and the median of the `later` ones.
    """
    with tempfile.TemporaryDirectory() as cache, ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_time_first_call, contender, task, repeats, cache).result()


def _time_first_call(contender: str, task: Task, repeats: int, cache: str) -> dict[str, float]:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    keep_freed_memory()
    if "compiled" in contender:
        torch.compile(torch.nn.functional.gelu)(torch.ones(64, device=task.device))  # exclude the compiler's start-up
    work = build(contender, task)
    start = timer()
    work.run()
    first = timer() - start
    return {"first": first, "later": interleave({contender: work.run}, repeats)[contender].median}
