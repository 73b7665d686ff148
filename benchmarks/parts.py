# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Parts of the benchmark, each a generator of rows for JSON, and their measures of time and memory."""

import ctypes
import os
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context

import datasets
import numpy as np
import torch
from torch.nn.functional import interpolate
from torch.utils.benchmark import Measurement, Timer, timer

from jet_hf.analysis.cost import peak_flops
from jet_hf.analysis.evaluation import evaluate
from jet_hf.model.modeling_jet import scale_bytes
from jet_hf.utils.noise import uniform_noise

from .arguments import BenchmarkArguments
from .contenders import Task, Work, build


def keep_freed_memory() -> None:
    """
    Let glibc keep freed memory for later allocations.

    By default, earlier allocations decide whether a call must fetch its memory from the system, page by page, so that
    chance would favor one contender over another.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(-1, 2**30)  # M_TRIM_THRESHOLD: free memory at the end of the heap that is not returned
        library.mallopt(-2, 2**28)  # M_TOP_PAD: growth of the heap
        library.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: its maximum; larger blocks are fetched each time


def interleave(runs: dict, rounds: int) -> dict:
    """
    Time functions in turns, so that other work on the machine affects all of them alike.

    `Timer.timeit` makes two calls of the same function before the timed one: after matrix products in bfloat16, some
    processors are slow for a while. Times are in seconds and include the work queued on an accelerator.
    """
    order, timings = deque(runs), {name: [] for name in runs}
    for _ in range(rounds):
        for name in order:
            stopwatch = Timer("run()", globals={"run": runs[name]}, num_threads=torch.get_num_threads())
            timings[name].append(stopwatch.timeit(1))
        order.rotate(-1)
    return {name: Measurement.merge(measured)[0] for name, measured in timings.items()}


def peak_memory(work: Work) -> tuple[int, int]:
    """
    Measure the memory of the second call, as counted by torch's allocator.

    Returns:
        Bytes that stay allocated between calls (weights, buffers, optimizer state), and the peak of all other bytes
        during the call (activations, gradients, workspaces).
    """
    work.run()
    states = work.optimizer.state.values() if work.optimizer else []
    moments = [tensor for state in states for tensor in state.values()]
    resident = sum(tensor.nbytes for tensor in (*work.model.parameters(), *work.model.buffers(), *moments))
    if next(work.model.parameters()).is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work.run()
        return resident, torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as recorded:
        work.run()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return resident, int(live.max())


def first_call(contender: str, task: Task, repeats: int) -> dict[str, float]:
    """Return the seconds of the `first` call in a new process with an empty cache, and the median of `later` ones."""
    with tempfile.TemporaryDirectory() as cache, ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_first_call, contender, task, repeats, cache).result()


def _first_call(contender: str, task: Task, repeats: int, cache: str) -> dict[str, float]:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    keep_freed_memory()
    if "compiled" in contender:
        torch.compile(torch.nn.functional.gelu)(torch.ones(64, device=task.device))  # exclude the compiler's start-up
    run = build(contender, task).run
    start = timer()
    run()
    return {"first": timer() - start, "later": interleave({contender: run}, repeats)[contender].median}


def speed(arguments: BenchmarkArguments) -> Iterator[dict]:
    """Measure the seconds of each operation, with all contenders in turns."""
    peak = peak_flops(torch.cuda.get_device_name()) if arguments.device == "cuda" else None
    for patch_size, operation in product(arguments.patch_sizes, arguments.operations):
        task = arguments.task(operation, patch_size=patch_size)
        runs = {name: build(name, task).run for name in arguments.entrants(operation)}
        for name, timing in interleave(runs, arguments.rounds).items():
            low, seconds, high = np.quantile(timing.times, (0.25, 0.5, 0.75)).tolist()
            row = {"operation": operation, "patch_size": patch_size, "contender": name, "seconds": seconds}
            row |= {"low": low, "high": high, "images_per_second": task.batch_size / seconds}
            yield row | ({"utilization": task.flops / seconds / peak} if peak else {})


def memory(arguments: BenchmarkArguments) -> Iterator[dict]:
    """Measure the bytes of a training step, also with jet_hf's gradient checkpointing."""
    contenders = dict.fromkeys([*arguments.entrants("train"), "jet_hf-checkpointed"])
    for patch_size, name in product(arguments.patch_sizes, contenders):
        resident, peak = peak_memory(build(name, arguments.task("train", patch_size=patch_size)))
        total = resident + peak
        yield {"patch_size": patch_size, "contender": name, "resident": resident, "peak": peak, "total": total}


def precision(arguments: BenchmarkArguments) -> Iterator[dict]:
    """Measure the error of bits per dimension with bfloat16 conditioners, on the same images and noise."""
    # Smooth images: noise has 8 bits per dimension under any model.
    small = torch.rand(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images = interpolate(small, arguments.image_size, mode="bicubic").clamp(0, 1)
    pixel_values = scale_bytes((255 * images).byte()).to(arguments.device)
    noise = uniform_noise(0, torch.arange(len(images), device=arguments.device), images.shape[1:])
    for patch_size in arguments.patch_sizes:
        model = build("jet_hf", arguments.task("encode", patch_size=patch_size)).model
        with torch.no_grad():
            exact = model(pixel_values, noise=noise).bits_per_dim
            with torch.autocast(arguments.device, torch.bfloat16):
                autocast = model(pixel_values, noise=noise).bits_per_dim
            narrow = model.bfloat16()(pixel_values, noise=noise).bits_per_dim
        for name, errors in (("bf16 weights", narrow - exact), ("autocast", autocast - exact)):
            row = {"patch_size": patch_size, "conditioners": name, "bits_per_dim": exact.mean().item()}
            yield row | {"mean_error": errors.mean().item(), "largest_error": errors.abs().max().item()}


def compilation(arguments: BenchmarkArguments) -> Iterator[dict]:
    """Measure the seconds that compiling a training step takes, by the number of coupling layers."""
    for number, name in product(arguments.compile_layers, arguments.entrants("train")):
        if "compiled" in name and "bf16" not in name:
            call = first_call(name, arguments.task("train", num_coupling_layers=number), repeats=1)
            yield {"contender": name, "layers": number, "compile_seconds": call["first"] - call["later"]}


def latency(arguments: BenchmarkArguments) -> Iterator[dict]:
    """Measure the seconds of decoding the first image in a new process, and of a later one."""
    for patch_size, name in product(arguments.patch_sizes, arguments.entrants("decode")):
        task = arguments.task("decode", batch_size=1, patch_size=patch_size)
        yield {"contender": name, "patch_size": patch_size, **first_call(name, task, repeats=15)}


# Substrings of operator names by the kind of the operator; the first kind with a match counts.
KINDS = {
    "matrix products": ("mm", "linear_pointwise", "aten::linear"),
    "attention": ("scaled_dot_product", "softmax"),
    "layer norms": ("layer_norm",),
    "optimizer and clipping": ("adam", "norm"),
    "moving and copying": ("copy", "index", "cat", "fill", "zero", "clone"),
    "element by element": ("gelu", "sigmoid", "aten::add", "aten::mul", "aten::div", "aten::sub", "lerp"),
    "rest": ("",),
}


def profile(arguments: BenchmarkArguments) -> Iterator[dict]:
    """Measure the share of jet_hf's time in each kind of operator."""
    for patch_size, operation in product(arguments.patch_sizes, ("encode", "train")):
        run = build("jet_hf", arguments.task(operation, patch_size=patch_size)).run
        run()
        with torch.profiler.profile() as recorded:
            for _ in range(3):
                run()
        times: Counter[str] = Counter()
        for event in recorded.key_averages():
            kind = next(kind for kind, names in KINDS.items() if any(name in event.key for name in names))
            times[kind] += event.self_device_time_total if arguments.device == "cuda" else event.self_cpu_time_total
        shares = {kind: times[kind] / times.total() for kind in KINDS}
        yield {"operation": operation, "patch_size": patch_size, **shares}


GROWTH = {
    "batch_size": (1, 2, 4, 8, 16, 32),
    "num_coupling_layers": (2, 4, 8, 16),
    "image_size": (32, 64, 128, 256),
    "hidden_size": (64, 128, 256, 512),
}


def growth(arguments: BenchmarkArguments, axes: dict[str, tuple[int, ...]] = GROWTH) -> Iterator[dict]:
    """Measure jet_hf and the floor as one size grows, and fit power laws to all values and to the largest two."""
    for (axis, values), operation in product(axes.items(), ("encode", "train")):
        sizes = {"batch_size": 2, "num_coupling_layers": 2, "patch_size": 4}
        tasks = {value: arguments.task(operation, **sizes | {axis: value}) for value in values}
        runs = {(name, value): build(name, tasks[value]).run for name in ("jet_hf", "floor") for value in values}
        timings = interleave(runs, max(3, arguments.rounds // 2))
        flops = fit_exponent(values, [task.flops for task in tasks.values()])
        for name in ("jet_hf", "floor"):
            seconds = [timings[name, value].median for value in values]
            row = {"size": axis, "operation": operation, "contender": name, "range": f"{values[0]} to {values[-1]}"}
            row |= {"values": list(values), "seconds": seconds, "exponent": fit_exponent(values, seconds)}
            yield row | {"last": fit_exponent(values[-2:], seconds[-2:]), "flops": flops}


def fit_exponent(values: Sequence[float], results: Sequence[float]) -> float:
    """Fit the exponent of a power law, by least squares of logarithms."""
    return float(np.polyfit(np.log(values), np.log(results), 1)[0])


def scoring(arguments: BenchmarkArguments) -> Iterator[dict]:
    """Measure the images per second of `evaluate`, and of the bare model on the same images."""
    shape = (3, arguments.image_size, arguments.image_size)
    pixels = torch.randint(256, (8 * arguments.batch_size, *shape), dtype=torch.uint8)
    features = datasets.Features({"pixels": datasets.Array3D(shape, "uint8")})
    dataset = datasets.Dataset.from_dict({"pixels": list(pixels.numpy())}, features=features)
    batches = pixels.to(arguments.device).split(arguments.batch_size)
    noise = uniform_noise(0, torch.arange(arguments.batch_size, device=arguments.device), shape)

    @torch.no_grad()
    def bare(model: torch.nn.Module) -> None:
        for batch in batches:
            model(scale_bytes(batch), noise=noise)

    for patch_size in arguments.patch_sizes:
        model = build("jet_hf", arguments.task("encode", patch_size=patch_size)).model
        runs = {"bare": partial(bare, model), "evaluate": partial(evaluate, model, dataset, arguments.batch_size)}
        speeds = {name: len(pixels) / timing.median for name, timing in interleave(runs, arguments.rounds).items()}
        yield {"patch_size": patch_size, **speeds, "evaluate / bare": speeds["evaluate"] / speeds["bare"]}
