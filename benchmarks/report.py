# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""A benchmark's report in Markdown, and its plot."""

import os

import numpy as np

from examples.plots import plt, save_figure
from jet_hf.utils.tables import markdown_table

from .contenders import BF16, FLOOR, JET_HF, JET_PYTORCH


MIB = 2**20
# What a size makes grow, for the reader of the fits.
EXPLANATIONS = {
    "batch_size": "Operations are proportional to the batch. A small batch pays for reading the weights and for "
    "launching operations, so that time grows more slowly at first.",
    "num_coupling_layers": "Coupling layers are alike and come one after the other: time is proportional to their "
    "number, but for what a call costs whatever its size.",
    "image_size": "With patches of one size, tokens grow with the square of the image's side, and so do the "
    "projections; attention grows with the square of the tokens, that is with the fourth power, and takes over.",
    "hidden_size": "Projections grow with the square of the width, attention and norms with the width.",
}


CHOICES = """## What was done, and what was not worth it

- *Products*. Query, key and value come out of one. Without gradients on a CPU, oneDNN adds the bias and applies GELU
  while the product is in the cache (`linear_jet.JetLinear`), but for small products without GELU, of which its
  start would be a good part.
- *GELU*. On CPUs by way of a sigmoid, which is the same function, as torch's tanh is slow, and in pieces that stay in
  the cache. A training step keeps its input alone and takes it anew in the backward pass, together with its gradient
  (`linear_jet.GELULinear`).
- *Attention*. torch's fused kernels, but for few tokens in bfloat16 on a CPU
  (`conditioners_jet.prefers_plain_products`).
- *Splits*. Those of channels and those of patches are one form of index map (`flow_jet.split_indices`): a coupling
  layer gathers both halves and puts back the one that it changed; nothing is sorted or inverted. Maps that neighbours
  share would save the second of the two: together they are part of the small share of *moving and copying*, and a
  state in another order at each layer would have to be explained at each of them.
- *Compiling*. Each coupling layer's affine map with its conditioner, one graph for all of them, whatever their split
  (`flow_jet.JetConditionalMap`). On a CPU it gains little over eager mode, which is near the products' own time
  already.
- *Optimiser*. torch's fused AdamW where the device has it.
- *Waiting*. A training step looks at the device once, before the update: a loss that is not finite must not reach the
  weights. Scoring looks at a batch's results when the next is under way.
- *Not kept*: checkpointing inside a coupling layer, as GELU's recomputation has taken most of what it could save;
  residuals added by oneDNN, a gain within the noise; a second copy of the weights, laid out for oneDNN once rather
  than at each call: 0.96 to 1.03 of the time (this script's `jet_hf-prepacked` at commit a7486aa), for twice the
  memory and for copies that could be out of date."""

UNMEASURED = """## On a GPU

Not measured yet: no GPU was to be had. The commands are

```console
$ python scripts/benchmark.py --device cuda --image_size 64 --patch_sizes 4 --num_coupling_layers 64 \\
    --num_hidden_layers 5 --hidden_size 512 --num_attention_heads 8 --batch_size 64 \\
    --parts speed memory latency compilation profile --compile_layers 64 --output_dir runs/benchmark-deep \\
    --contenders jet_hf jet_hf-bf16 jet_hf-compiled-bf16 jet_pytorch jet_pytorch-compiled-bf16 floor-bf16
$ python scripts/benchmark.py --device cuda --image_size 64 --patch_sizes 4 --num_coupling_layers 32 \\
    --num_hidden_layers 2 --hidden_size 512 --num_attention_heads 8 --batch_size 256 \\
    --parts speed memory latency compilation profile --compile_layers 32 --output_dir runs/benchmark-base \\
    --contenders jet_hf jet_hf-bf16 jet_hf-compiled-bf16 jet_pytorch jet_pytorch-compiled-bf16 floor-bf16
```

and `--compile_mode reduce-overhead` adds CUDA graphs."""


def report_text(results: dict, picture: str) -> str:
    """The report of what [`run_benchmark`] gave; `picture` is the plot's file beside it."""
    parts = ["# Speed and memory", _intro(results)]
    writers = {
        "speed": _speed,
        "memory": _memory,
        "precision": _precision,
        "compilation": _compilation,
        "latency": _latency,
        "profile": _profile,
        "growth": lambda rows: _growth(rows, picture),
        "scoring": _scoring,
    }
    for part, write in writers.items():
        if part in results:
            parts.append(write(results[part]["rows"]))
    return "\n\n".join([*parts, CHOICES, UNMEASURED]) + "\n"


def _intro(results: dict) -> str:
    runs: dict[str, list[str]] = {}
    for part, run in results.items():
        machine = ", ".join(f"{name} {value}" for name, value in run["machine"].items())
        runs.setdefault(f"`{run['command']}`, {run['date']}, {machine}, batches of {run['batch_size']}", []).append(
            part
        )
    lines = [f"- {', '.join(parts)}: {run}" for run, parts in runs.items()]
    return (
        "Made by\n\n" + "\n".join(lines) + "\n\n"
        "Contenders take turns in one process, so that what else the machine does falls on all of them, each timed "
        "call after one of its own that is not; compiling and first images are measured in new processes without "
        "caches. On Linux, freed memory is kept for what comes next: a process that fetches it from the system "
        "again and again, which depends on what it did before, is slower (another allocator, or the environment "
        "variables `MALLOC_TOP_PAD_` and `MALLOC_TRIM_THRESHOLD_`, do the same for other programs). *floor* is the "
        "time of the matrix products and of attention alone, in torch's own kernels without anything between them; "
        "a training step's has their gradients and no optimiser. Times are medians with quartiles; ratios are "
        "those of the medians. `jet_hf-bf16` has conditioners in bfloat16 and a state in float32; in training it "
        "is autocast. Two runs of the same command differ by several percent in their ratios."
    )


def _speed(rows: list[dict]) -> str:
    text = ["## Encoding, decoding, training"]
    has_utilization = any(row["utilization"] for row in rows)
    for patch_size in sorted({row["patch_size"] for row in rows}, reverse=True):
        header = ["operation", "contender", "ms", "quartiles", "images/s", "x floor", "x jet_pytorch", "x its like"]
        lines = [header + ["model FLOPs utilisation"] * has_utilization]
        for operation in dict.fromkeys(row["operation"] for row in rows):
            times = {
                row["contender"]: row["seconds"]
                for row in rows
                if (row["patch_size"], row["operation"]) == (patch_size, operation)
            }
            for row in rows:
                if (row["patch_size"], row["operation"]) == (patch_size, operation):
                    lines.append(_speed_line(row, times, has_utilization))
        text += [f"### Patch size {patch_size}", markdown_table(lines, 2)]
    text.append(
        "*x floor*: that of the same precision; encoding and decoding have the same products. *x its like*: against "
        "jet_pytorch run the same way, compiled against compiled."
    )
    return "\n\n".join(text)


def _speed_line(row: dict, times: dict[str, float], has_utilization: bool) -> list[str]:
    seconds = row["seconds"]
    like = row["contender"].replace(JET_HF, JET_PYTORCH)
    line = [
        row["operation"],
        f"`{row['contender']}`",
        f"{1000 * seconds:.1f}",
        f"{1000 * row['low']:.1f} - {1000 * row['high']:.1f}",
        f"{row['images_per_second']:.1f}",
        _ratio(seconds, times.get(f"{FLOOR}-{BF16}") if BF16 in row["contender"] else times.get(FLOOR)),
        _ratio(seconds, times.get(JET_PYTORCH)),
        _ratio(seconds, times.get(like)) if row["contender"].startswith(JET_HF) else "",
    ]
    return line + [f"{row['utilization']:.0%}" if row["utilization"] else ""] * has_utilization


def _ratio(value: float, reference: float | None) -> str:
    return f"{value / reference:.2f}" if reference else ""


def _memory(rows: list[dict]) -> str:
    lines = [["patch size", "contender", "stays, MiB", "step's peak beside, MiB", "peak x jet_pytorch", "all x"]]
    for row in rows:
        peers = [r for r in rows if (r["contender"], r["patch_size"]) == (JET_PYTORCH, row["patch_size"])]
        peak = peers[0]["peak"] if peers else None
        total = peers[0]["peak"] + peers[0]["resident"] if peers else None
        lines.append(
            [
                str(row["patch_size"]),
                f"`{row['contender']}`",
                f"{row['resident'] / MIB:.1f}",
                f"{row['peak'] / MIB:.1f}",
                _ratio(row["peak"], peak),
                _ratio(row["peak"] + row["resident"], total),
            ]
        )
    return (
        "## Memory of a training step\n\n" + markdown_table(lines, 2) + "\n\n"
        "As torch's allocator counted. *Stays*: weights and the two moments of the optimiser. *Beside*: activations, "
        "gradients and what kernels need. *All*: both together."
    )


def _precision(rows: list[dict]) -> str:
    lines = [["patch size", "conditioners", "bits per dimension", "mean error", "largest error"]]
    for row in rows:
        line = [str(row["patch_size"]), row["conditioners"], f"{row['bits_per_dim']:.4f}"]
        lines.append([*line, f"{row['mean_error']:+.5f}", f"{row['largest_error']:.5f}"])
    return (
        "## What bfloat16 costs in bits per dimension\n\n" + markdown_table(lines, 2) + "\n\n"
        "Against float32 on the same images and noise, with random weights."
    )


def _compilation(rows: list[dict]) -> str:
    lines = [["contender", "coupling layers", "seconds", "x jet_pytorch"]]
    for row in rows:
        peers = {r["layers"]: r["seconds"] for r in rows if r["contender"].startswith(JET_PYTORCH)}
        ratio = _ratio(row["seconds"], peers.get(row["layers"]))
        lines.append([f"`{row['contender']}`", str(row["layers"]), f"{row['seconds']:.1f}", ratio])
    return (
        "## Compiling a training step\n\n" + markdown_table(lines, 1) + "\n\n"
        "First call less a later one, in a new process. jet_hf compiles its coupling layers, which share one graph "
        "(`model.compile_couplings()`), jet_pytorch the whole model, as its training script does. A setting of matrix "
        "products that it makes at each split and merge breaks its graph there, so that its layers share graphs as "
        "well, several of them, and its time hardly grows with depth either."
    )


def _latency(rows: list[dict]) -> str:
    lines = [["patch size", "contender", "first image, s", "later image, ms", "later x jet_pytorch"]]
    for row in rows:
        peers = {r["patch_size"]: r["later"] for r in rows if r["contender"] == JET_PYTORCH}
        ratio = _ratio(row["later"], peers.get(row["patch_size"]))
        line = [str(row["patch_size"]), f"`{row['contender']}`", f"{row['first']:.2f}", f"{1000 * row['later']:.1f}"]
        lines.append([*line, ratio])
    return "## One image sampled, in a new process\n\n" + markdown_table(lines, 2)


def _profile(rows: list[dict]) -> str:
    columns = list(dict.fromkeys((row["operation"], row["patch_size"]) for row in rows))
    shares = {(row["kind"], row["operation"], row["patch_size"]): row["share"] for row in rows}
    lines = [["kind of operation", *(f"{operation}, patch size {size}" for operation, size in columns)]]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        lines.append([kind, *(f"{shares.get((kind, *column), 0):.1%}" for column in columns)])
    return (
        "## Where the time goes\n\n" + markdown_table(lines, 1) + "\n\n"
        "Shares of the own time of jet_hf's operations, eager and float32, as torch's profiler saw them."
    )


def fit_exponent(values: list[float], seconds: list[float]) -> float:
    """Exponent of a power law through all points, by least squares of logarithms."""
    return float(np.polyfit(np.log(values), np.log(seconds), 1)[0])


def _growth(rows: list[dict], picture: str) -> str:
    text = ["## Growth", f"![Seconds of an operation as one size grows]({picture})"]
    lines = [["size", "operation", "range", "time grows with", "between the largest two", "operations grow with"]]
    for axis, operation in dict.fromkeys((row["axis"], row["operation"]) for row in rows):
        values, seconds, flops = _series(rows, axis, operation, JET_HF)
        fits = (values, seconds), (values[-2:], seconds[-2:]), (values, flops)
        exponents = [fit_exponent(*fit) for fit in fits]
        line = [axis, operation, f"{values[0]} to {values[-1]}"]
        lines.append(line + [f"{axis} ^ {exponent:.2f}" for exponent in exponents])
    text.append(markdown_table(lines, 3))
    text += [f"**{axis}**: {EXPLANATIONS[axis]}" for axis in dict.fromkeys(row["axis"] for row in rows)]
    text.append("Eager, float32. Exponents are least-squares fits of logarithms.")
    return "\n\n".join(text)


def _series(rows: list[dict], axis: str, operation: str, contender: str) -> tuple[list, list, list]:
    """Values of a size, seconds and operations."""
    found = [row for row in rows if (row["axis"], row["operation"], row["contender"]) == (axis, operation, contender)]
    return tuple([row[key] for row in found] for key in ("value", "seconds", "flops"))


def plot_growth(path: str | os.PathLike, rows: list[dict]) -> None:
    """Writes seconds of encoding and training as each size grows, jet_hf's and the floor's."""
    axes_of = list(dict.fromkeys(row["axis"] for row in rows))
    figure, axes = plt.subplots(1, len(axes_of), figsize=(3.5 * len(axes_of), 3.5), squeeze=False)
    for axis, name in zip(axes[0], axes_of, strict=True):
        for operation, color in (("encode", "C0"), ("train", "C1")):
            for contender, style in ((JET_HF, "o-"), (FLOOR, ":")):
                values, seconds, _ = _series(rows, name, operation, contender)
                axis.plot(values, seconds, style, color=color, markersize=4, label=f"{operation}, {contender}")
        axis.set(xscale="log", yscale="log", xlabel=name, xticks=values, xticklabels=values)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("seconds")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    save_figure(path, figure)


def _scoring(rows: list[dict]) -> str:
    lines = [["patch size", "bare model, images/s", "evaluate, images/s", "evaluate / bare"]]
    for row in rows:
        speeds = [f"{row['bare']:.1f}", f"{row['evaluate']:.1f}"]
        lines.append([str(row["patch_size"]), *speeds, f"{row['evaluate'] / row['bare']:.3f}"])
    return (
        "## Scoring a data set\n\n" + markdown_table(lines, 0) + "\n\n"
        "`jet_hf.analysis.evaluation.evaluate`, which `scripts/evaluate.py` calls, reads batches from Arrow, draws "
        "each image's noise and gathers scores; the bare model has batches and noise at hand."
    )
