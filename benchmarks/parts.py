# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Parts of the benchmark; each measures and yields rows of results, ready for JSON."""

from collections import Counter
from collections.abc import Iterator, Sequence

import datasets
import numpy as np
import torch
from torch.nn.functional import interpolate
from torch.profiler import ProfilerActivity

from jet_hf.analysis.cost import forward_flops, peak_flops, training_flops
from jet_hf.analysis.evaluation import evaluate
from jet_hf.data import Batch
from jet_hf.model.modeling_jet import JetForDensityEstimation, scale_bytes
from jet_hf.utils.noise import uniform_noise

from .arguments import BenchmarkArguments
from .contenders import Task, build, supports
from .measures import first_call, interleave, peak_memory


def speed(arguments: BenchmarkArguments) -> Iterator[dict]:
    """Measure the seconds of each operation, with all contenders in turns."""
    peak = peak_flops(torch.cuda.get_device_name()) if arguments.device == "cuda" else None
    for patch_size in arguments.patch_sizes:
        for operation in arguments.operations:
            task = arguments.task(operation, patch_size=patch_size)
            runs = {name: build(name, task).run for name in arguments.entrants if supports(name, operation)}
            for name, timing in interleave(runs, arguments.rounds).items():
                low, high = np.quantile(timing.times, (0.25, 0.75)).tolist()
                row: dict[str, object] = {"operation": operation, "patch_size": patch_size, "contender": name}
                images_per_second = arguments.batch_size / timing.median
                row |= {"seconds": timing.median, "low": low, "high": high, "images_per_second": images_per_second}
                if peak is not None:
                    row["utilization"] = images_per_second * _flops_per_image(task) / peak
                yield row


def _flops_per_image(task: Task) -> int:
    return training_flops(task.config) if task.operation == "train" else forward_flops(task.config)


def memory(arguments: BenchmarkArguments) -> Iterator[dict]:
    """Measure the bytes of a training step, also with jet_hf's gradient checkpointing."""
    for patch_size in arguments.patch_sizes:
        for contender in dict.fromkeys([*arguments.entrants, "jet_hf-checkpointed"]):
            if not supports(contender, "train"):
                continue
            work = build(contender, arguments.task("train", patch_size=patch_size))
            resident, peak = peak_memory(work, arguments.device)
            row = {"patch_size": patch_size, "contender": contender}
            yield row | {"resident": resident, "peak": peak, "total": resident + peak}


def precision(arguments: BenchmarkArguments, num_images: int = 64) -> Iterator[dict]:
    """Measure the error of bits per dimension with bfloat16 conditioners, on the same images and noise."""
    for patch_size in arguments.patch_sizes:
        shape = (3, arguments.image_size, arguments.image_size)
        # Smooth images: noise has 8 bits per dimension under any model.
        small = torch.rand(num_images, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        images = interpolate(small, size=shape[1:], mode="bicubic").clamp(0, 1)
        pixel_values = scale_bytes((255 * images).byte()).to(arguments.device)
        noise = uniform_noise(0, torch.arange(num_images, device=pixel_values.device), shape)
        model = build("jet_hf", arguments.task("encode", patch_size=patch_size)).model
        with torch.no_grad():
            exact = model(pixel_values, noise=noise).bits_per_dim
            with torch.autocast(arguments.device, torch.bfloat16):
                autocast = model(pixel_values, noise=noise).bits_per_dim
            narrow = model.bfloat16()(pixel_values, noise=noise).bits_per_dim
        for name, bits in (("bf16 weights", narrow), ("autocast", autocast)):
            errors = bits - exact
            row = {"patch_size": patch_size, "conditioners": name, "bits_per_dim": exact.mean().item()}
            yield row | {"mean_error": errors.mean().item(), "largest_error": errors.abs().max().item()}


def compilation(arguments: BenchmarkArguments) -> Iterator[dict]:
    """Measure the seconds that compiling a training step takes, by the number of coupling layers."""
    for number in arguments.compile_layers:
        task = arguments.task("train", num_coupling_layers=number)
        for contender in arguments.entrants:
            if "compiled" in contender and "bf16" not in contender:
                call = first_call(contender, task, repeats=1)
                yield {"contender": contender, "layers": number, "compile_seconds": call["first"] - call["later"]}


def latency(arguments: BenchmarkArguments) -> Iterator[dict]:
    """Measure the seconds of decoding the first image in a new process, and of a later one."""
    for patch_size in arguments.patch_sizes:
        for contender in arguments.entrants:
            if supports(contender, "decode"):
                task = arguments.task("decode", batch_size=1, patch_size=patch_size)
                yield {"contender": contender, "patch_size": patch_size, **first_call(contender, task, repeats=15)}


# Substrings of operator names by the kind of the operator; the first kind with a match counts.
KINDS = {
    "matrix products": ("mm", "linear_pointwise", "aten::linear"),
    "attention": ("scaled_dot_product", "softmax"),
    "layer norms": ("layer_norm",),
    "optimizer and clipping": ("adam", "norm"),
    "moving and copying": ("copy", "index", "cat", "fill", "zero", "clone"),
    "element by element": ("gelu", "sigmoid", "aten::add", "aten::mul", "aten::div", "aten::sub", "lerp"),
}


def profile(arguments: BenchmarkArguments, repeats: int = 3) -> Iterator[dict]:
    """Measure the share of jet_hf's time in each kind of operator."""
    on_cuda = arguments.device == "cuda"
    for patch_size in arguments.patch_sizes:
        for operation in ("encode", "train"):
            run = build("jet_hf", arguments.task(operation, patch_size=patch_size)).run
            run()
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda
            with torch.profiler.profile(activities=activities) as recorded:
                for _ in range(repeats):
                    run()
            times: Counter[str] = Counter()
            for event in recorded.key_averages():
                kinds = [kind for kind, parts in KINDS.items() if any(part in event.key for part in parts)]
                times[[*kinds, "rest"][0]] += event.self_device_time_total if on_cuda else event.self_cpu_time_total
            shares = {kind: times[kind] / times.total() for kind in (*KINDS, "rest")}
            yield {"operation": operation, "patch_size": patch_size, **shares}


GROWTH = {
    "batch_size": (1, 2, 4, 8, 16, 32),
    "num_coupling_layers": (2, 4, 8, 16),
    "image_size": (32, 64, 128, 256),
    "hidden_size": (64, 128, 256, 512),
}


def growth(arguments: BenchmarkArguments, axes: dict[str, tuple[int, ...]] = GROWTH) -> Iterator[dict]:
    """
    Measure jet_hf and the floor as one size grows; the other sizes are 2 images, 2 layers and patches of 4 pixels.

    The exponents are those of power laws: of the time over all values, of the time between the two largest, and of
    the FLOPs.
    """
    for axis, values in axes.items():
        for operation in ("encode", "train"):
            sizes = [{"batch_size": 2, "num_coupling_layers": 2, "patch_size": 4, axis: value} for value in values]
            tasks = dict(zip(values, [arguments.task(operation, **fields) for fields in sizes], strict=True))
            runs = {
                (contender, value): build(contender, task).run
                for contender in ("jet_hf", "floor")
                for value, task in tasks.items()
            }
            flops = [task.batch_size * _flops_per_image(task) for task in tasks.values()]
            timings = interleave(runs, max(3, arguments.rounds // 2))
            for contender in ("jet_hf", "floor"):
                seconds = [timings[contender, value].median for value in values]
                row: dict[str, object] = {"size": axis, "operation": operation, "contender": contender}
                row |= {"range": f"{values[0]} to {values[-1]}", "values": list(values), "seconds": seconds}
                row |= {"exponent": fit_exponent(values, seconds), "last": fit_exponent(values[-2:], seconds[-2:])}
                yield row | {"flops": fit_exponent(values, flops)}


def fit_exponent(values: Sequence[float], results: Sequence[float]) -> float:
    """Fit the exponent of a power law, by least squares of logarithms."""
    return float(np.polyfit(np.log(values), np.log(results), 1)[0])


def scoring(arguments: BenchmarkArguments, num_batches: int = 8) -> Iterator[dict]:
    """Measure the images per second of `evaluate`, and of the bare model on the same images."""
    for patch_size in arguments.patch_sizes:
        config = arguments.config(patch_size=patch_size)
        shape = (config.num_channels, config.image_size, config.image_size)
        pixels = torch.randint(256, (num_batches * arguments.batch_size, *shape), dtype=torch.uint8)
        features = datasets.Features({"pixels": datasets.Array3D(shape, "uint8")})
        dataset = datasets.Dataset.from_dict({"pixels": list(pixels.numpy())}, features=features)
        model = JetForDensityEstimation(config).to(arguments.device).eval()
        indices = torch.arange(arguments.batch_size)
        batches = [
            Batch(part, indices).to(torch.device(arguments.device)) for part in pixels.split(arguments.batch_size)
        ]
        noise = uniform_noise(0, batches[0].indices, shape)

        @torch.no_grad()
        def bare(model=model, batches=batches, noise=noise):
            return [model(scale_bytes(batch.pixels), noise=noise).bits_per_dim for batch in batches]

        def whole(model=model, dataset=dataset):
            return evaluate(model, dataset, arguments.batch_size)

        timings = interleave({"bare": bare, "evaluate": whole}, arguments.rounds)
        speeds = {name: len(pixels) / timing.median for name, timing in timings.items()}
        ratio = speeds["evaluate"] / speeds["bare"]
        yield {"patch_size": patch_size, **speeds, "evaluate / bare": ratio}
