# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Markdown tables of the benchmark's results, and the plot of growth."""

import os

from examples.plots import plt, save_figure
from jet_hf.utils.tables import markdown_table


# Header, factor and format of the measured columns.
COLUMNS = {
    "seconds": ("ms", 1e3, ".1f"),
    "low": ("first quartile", 1e3, ".1f"),
    "high": ("third quartile", 1e3, ".1f"),
    "images_per_second": ("images/s", 1, ".1f"),
    "utilization": ("model FLOPs utilization", 1, ".0%"),
    "resident": ("resident, MiB", 2**-20, ".1f"),
    "peak": ("peak of a step, MiB", 2**-20, ".1f"),
    "total": ("sum, MiB", 2**-20, ".1f"),
    "compile_seconds": ("seconds", 1, ".1f"),
    "bits_per_dim": ("bits per dimension", 1, ".4f"),
    "mean_error": ("mean error", 1, "+.5f"),
    "largest_error": ("largest error", 1, ".5f"),
    "first": ("first image, s", 1, ".2f"),
    "later": ("later image, ms", 1e3, ".1f"),
    "exponent": ("exponent of time", 1, ".2f"),
    "last": ("between the largest two", 1, ".2f"),
    "flops": ("exponent of FLOPs", 1, ".2f"),
    "bare": ("bare model, images/s", 1, ".1f"),
    "evaluate": ("evaluate, images/s", 1, ".1f"),
}
SHARE = (1, ".1%")  # factor and format of other numbers


def _peer(name: str) -> str:
    return "jet_pytorch"


def _peer_in_same_mode(name: str) -> str:
    return "-".join(["jet_pytorch", *name.split("-")[1:]])


def _floor(name: str) -> str:
    return "floor-bf16" if "bf16" in name else "floor"


# Ratios of a part: header, column, and the contender to divide by.
RATIOS = {
    "speed": [
        ("x floor", "seconds", _floor),
        ("x jet_pytorch", "seconds", _peer),
        ("x jet_pytorch in the same mode", "seconds", _peer_in_same_mode),
    ],
    "memory": [("peak x jet_pytorch", "peak", _peer), ("sum x jet_pytorch", "total", _peer)],
    "compilation": [("x jet_pytorch", "compile_seconds", _peer_in_same_mode)],
    "latency": [("later x jet_pytorch", "later", _peer)],
}
SETTING = ("operation", "patch_size", "layers")  # columns that must agree for a ratio


def update_tables(text: str, results: dict[str, dict]) -> str:
    """
    Replace the tables of a Markdown document and keep its other text.

    The table of a part stands between the lines `<!-- PART -->` and `<!-- end of PART -->`, with the command,
    commit, date and machine of its run. A part that the document lacks is appended to it.

    Args:
        text: The document.
        results: The content of `benchmark.json`.

    Raises:
        ValueError: If the end of a table is missing.
    """
    for part, result in results.items():
        start, end = f"<!-- {part} -->\n", f"<!-- end of {part} -->\n"
        if start not in text:
            text = f"{text}\n{start}{end}".lstrip()
        before, rest = text.split(start, 1)
        if end not in rest:
            raise ValueError(f"the report must contain the line {end.strip()} after {start.strip()}.")
        content = f"{table(part, result['rows'])}\n\n{describe_origin(result)}"
        text = f"{before}{start}\n{content}\n\n{end}{rest.split(end, 1)[1]}"
    return text


def describe_origin(result: dict) -> str:
    """Name the command, commit, date and machine of a part's results."""
    machine = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    origin = f"`{result['command']}` at commit {result['commit']} on {result['date']}"
    return f"Measured by {origin} with batches of {result['batch_size']}: {machine}."


def table(part: str, rows: list[dict]) -> str:
    """Format the rows of a part as a Markdown table: labels, measured columns, ratios. Lists are left out."""
    keys = [key for key, value in rows[0].items() if not isinstance(value, list)]
    labels = [key for key in keys if key not in COLUMNS and not isinstance(rows[0][key], float)]
    columns = {key: COLUMNS.get(key, (key, *SHARE)) for key in keys if key not in labels}
    ratios = RATIOS.get(part, [])
    lines = [[label.replace("_", " ") for label in labels] + [header for header, *_ in (*columns.values(), *ratios)]]
    for row in rows:
        cells = [f"`{row[label]}`" if label == "contender" else str(row[label]) for label in labels]
        cells += [format(factor * row[key], spec) for key, (_, factor, spec) in columns.items()]
        cells += [_ratio(rows, row, column, reference(row["contender"])) for _, column, reference in ratios]
        lines.append(cells)
    return markdown_table(lines, len(labels))


def _ratio(rows: list[dict], row: dict, column: str, contender: str) -> str:
    """Format a number over that of another contender in the same setting; empty if that did not run."""
    for other in rows:
        if other["contender"] == contender and all(other.get(key) == row.get(key) for key in SETTING):
            return f"{row[column] / other[column]:.2f}"
    return ""


def plot_growth(path: str | os.PathLike, rows: list[dict]) -> None:
    """Plot the seconds of encoding and training against each size, for jet_hf and the floor."""
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    figure, axes = plt.subplots(1, len(sizes), figsize=(3.5 * len(sizes), 3.5), squeeze=False)
    for axis, size in zip(axes[0], sizes, strict=True):
        for row in rows:
            if row["size"] == size:
                color, style = {"encode": "C0", "train": "C1"}[row["operation"]], {"jet_hf": "o-", "floor": ":"}
                label = f"{row['operation']}, {row['contender']}"
                axis.plot(
                    row["values"], row["seconds"], style[row["contender"]], color=color, markersize=4, label=label
                )
                axis.set(xscale="log", yscale="log", xlabel=size, xticks=row["values"], xticklabels=row["values"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("seconds")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    save_figure(path, figure)
