# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Markdown tables of the benchmark's results, and the plot of growth."""

import os
import re

from examples.plots import plt, save_figure
from jet_hf.utils.tables import markdown_table


# Header, factor and format of the measured columns; any other fraction is a share.
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
# Header and column of the ratios, with the contender to divide by.
RATIOS = (
    ("x floor", "seconds", lambda name: "floor-bf16" if "bf16" in name else "floor"),
    ("x jet_pytorch", "seconds", lambda name: "jet_pytorch"),
    ("x jet_pytorch in the same mode", "seconds", lambda name: re.sub(r"^\w+", "jet_pytorch", name)),
    ("peak x jet_pytorch", "peak", lambda name: "jet_pytorch"),
    ("sum x jet_pytorch", "total", lambda name: "jet_pytorch"),
    ("x jet_pytorch", "compile_seconds", lambda name: re.sub(r"^\w+", "jet_pytorch", name)),
    ("later x jet_pytorch", "later", lambda name: "jet_pytorch"),
)


def update_tables(text: str, results: dict[str, dict]) -> str:
    """
    Replace the tables of a Markdown document by those of `benchmark.json`, and keep its other text.

    The table of a part stands between the lines `<!-- PART -->` and `<!-- end of PART -->`, with the command,
    commit, date and machine of its run. A part that the document lacks is appended to it.

    Raises:
        ValueError: If the end of a table is missing.
    """
    for part, result in results.items():
        start, end = f"<!-- {part} -->\n", f"<!-- end of {part} -->\n"
        if start not in text:
            text = f"{text}\n{start}{end}".lstrip()
        machine = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
        origin = "Measured by `{command}` at commit {commit} on {date} with batches of {batch_size}".format(**result)
        block = f"{start}\n{table(result['rows'])}\n\n{origin}: {machine}.\n\n{end}"
        text, found = re.subn(f"{start}.*?{end}", lambda _, block=block: block, text, count=1, flags=re.DOTALL)
        if not found:
            raise ValueError(f"the report must contain the line {end.strip()} after {start.strip()}.")
    return text


def table(rows: list[dict]) -> str:
    """
    Format the rows of a part as a Markdown table: labels, measured columns, ratios.

    Lists are left out, and so is a ratio to a contender that did not run in the same setting.
    """
    lines = []
    for row in rows:
        labels, numbers = {}, {}
        for key, value in row.items():
            if isinstance(value, str | int) and key not in COLUMNS:
                labels[key.replace("_", " ")] = f"`{value}`" if key == "contender" else str(value)
            elif not isinstance(value, list):
                header, factor, spec = COLUMNS.get(key, (key, 1, ".1%"))
                numbers[header] = format(factor * value, spec)
        setting = {key: row[key] for key in ("operation", "patch_size", "layers") if key in row}
        for header, column, reference in RATIOS:
            if isinstance(row.get(column), int | float):
                wanted = setting | {"contender": reference(row["contender"])}
                other = next((other for other in rows if wanted.items() <= other.items()), None)
                numbers[header] = f"{row[column] / other[column]:.2f}" if other else ""
        lines.append(labels | numbers)
    return markdown_table([list(lines[0]), *(list(line.values()) for line in lines)], len(labels))


def plot_growth(path: str | os.PathLike, rows: list[dict]) -> None:
    """Plot the seconds of encoding and training against each size, for jet_hf and the floor."""
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    figure, axes = plt.subplots(1, len(sizes), figsize=(3.5 * len(sizes), 3.5), squeeze=False, layout="tight")
    for row in rows:
        axis = axes[0][sizes.index(row["size"])]
        style = {"encode": "C0", "train": "C1"}[row["operation"]] + {"jet_hf": "o-", "floor": ":"}[row["contender"]]
        label = f"{row['operation']}, {row['contender']}"
        axis.loglog(row["values"], row["seconds"], style, markersize=4, label=label)
        axis.set(xlabel=row["size"], xticks=row["values"], xticklabels=row["values"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("seconds")
    axes[0][0].legend(fontsize=8)
    save_figure(path, figure)
