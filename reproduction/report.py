# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
The report of a table in Markdown: results over seeds beside the paper's, verdicts on its claims, and a plot.

docs/sweeps/README.md explains the statistics.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from jet_hf.training import TrainArguments
from jet_hf.training.fine_tuning import find_config
from jet_hf.utils.files import replace_file, replace_text
from jet_hf.utils.tables import markdown_table

from .tables import FINISHED, Cell, Table


UNKNOWN = "n/a"
MARKERS = "osD^vP*X"

# Outcomes of a comparison. A claim has the first of these that one of its comparisons has.
VERDICTS = ("contrary", "not run", "one seed, no error", "within the error", "shown")
CONTRARY, NOT_RUN, ONE_SEED, WITHIN_ERROR, SHOWN = VERDICTS


def write_report(path: Path, command: str, table: Table, rows: list[dict], arguments: TrainArguments) -> None:
    """
    Write the report, and a plot with the same name beside it.

    Args:
        path: Markdown file to write.
        command: Command that makes the report, as its first line.
        table: Table of the paper, or grid.
        rows: Results, see [`reproduction.sweep.collect_rows`].
        arguments: Arguments that all runs share.
    """
    bits, summary = summarize(table.cells, rows)
    picture = path.with_suffix(".png")
    parts = [
        f"`{command}`",
        f"# {table.title}",
        setting_text(table, rows, arguments),
        "`docs/sweeps/README.md` explains the columns, the errors, the verdicts and the plot.",
        "## Bits per dimension",
        results_table(table, summary, bits),
        *(f"On `{cell.name}`: {cell.note}." for cell in table.cells if cell.note),
    ]
    if table.claims:
        parts += ["## The paper's claims", claims_table(table, summary, bits)]
    missing = [f"- `{row['cell']}`, seed {row['seed']}: {row['status']}" for row in rows if row["status"] != FINISHED]
    if missing:
        parts += ["## Runs without a result", "\n".join(missing)]
    parts += ["## Compute", f"![Bits per dimension against training compute]({picture.name})"]
    path.parent.mkdir(parents=True, exist_ok=True)
    plot_compute(picture, table.title, summary)
    replace_text(path, "\n\n".join(parts) + "\n")


def summarize(cells: list[Cell], rows: list[dict]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """
    Return the bits per dimension and a summary, NaN without a result.

    Returns:
        A table of the bits per dimension with a row for each seed and a column for each cell, and one of the cells
        with their labels, results over seeds, paper's result, size, and group in the plot by their last label.
    """
    frame, names = pd.DataFrame(rows).astype({"bits_per_dim": float}), [cell.name for cell in cells]
    bits = frame.pivot(index="seed", columns="cell", values="bits_per_dim")[names]
    sizes = frame.groupby("cell")
    labels = pd.DataFrame([cell.labels for cell in cells], index=names)
    label = labels.columns[-1]
    return bits, labels.assign(
        paper=pd.Series([cell.paper for cell in cells], names, dtype=float),
        mean=bits.mean(),
        sem=bits.sem(),
        finished=bits.count(),
        parameters=sizes["num_parameters"].first(),
        flops=sizes["training_flops"].first().astype(float),
        group=label + " " + labels[label].astype(str),
    )


def select_pairs(cells: pd.DataFrame, condition: str) -> pd.DataFrame:
    """Return the pairs of cells that meet a condition, with the columns of the cells as `high_` and `low_` ones."""
    cells = cells.rename_axis("name").reset_index()
    return cells.add_prefix("high_").merge(cells.add_prefix("low_"), how="cross").query(condition, engine="python")


def differences(claim: dict, cells: pd.DataFrame, bits: pd.DataFrame) -> pd.DataFrame:
    """
    Return the differences between cells that are above zero if a claim holds.

    Args:
        claim: Claim of `paper.yaml`, which describes the kinds of claims.
        cells: Labels and FLOPs of the cells.
        bits: Bits per dimension with a column for each cell, and a row for each seed or one for the paper.

    Returns:
        A table with a column for each comparison, named after it, and the rows of `bits`.
    """
    pairs = select_pairs(cells.assign(mean=bits.mean()), claim["pairs"])
    if claim.get("like_compute"):
        pairs = pairs.dropna(subset=["high_mean", "low_mean", "high_flops", "low_flops"])
        best = pairs[pairs["high_mean"] == pairs["high_mean"].min()]
        pairs = best.query("low_flops <= high_flops").nsmallest(1, "low_mean")
    if "minus" in claim:
        pairs = pairs.merge(select_pairs(cells, claim["minus"]).add_prefix("minus_"), how="cross")
    found = {}
    for pair in pairs.to_dict("records"):
        text = claim.get("wording", "{high_name} above {low_name}").format(**pair)
        found[text] = bits[pair["high_name"]] - bits[pair["low_name"]]
        if "minus" in claim:
            found[text] -= bits[pair["minus_high_name"]] - bits[pair["minus_low_name"]]
    values = pd.DataFrame(found, index=bits.index, dtype=float)
    return values.mean(axis=1, skipna=False).to_frame("average") if claim.get("average") and found else values


def compare(values: pd.DataFrame) -> pd.DataFrame:
    """Return the mean, the error and the verdict of each column of differences, of the seeds without NaN."""
    count, mean, error = values.count(), values.mean(), confidence_margin(values)
    conditions = [count == 0, count == 1, mean.abs() <= error, mean > 0]
    verdict = np.select(conditions, [NOT_RUN, ONE_SEED, WITHIN_ERROR, SHOWN], default=CONTRARY)
    return pd.DataFrame({"mean": mean, "error": error, "verdict": verdict})


def judge(comparisons: pd.DataFrame) -> str:
    """Return the verdict on a claim, given its comparisons."""
    return min(comparisons["verdict"], key=VERDICTS.index, default=NOT_RUN)


def confidence_margin(values: pd.Series | pd.DataFrame) -> float | pd.Series:
    """Return half the width of the 95 % confidence interval of a mean, NaN for fewer than two values."""
    return stats.t.ppf(0.975, values.count() - 1) * values.sem()


def setting_text(table: Table, rows: list[dict], arguments: TrainArguments) -> str:
    """Return a paragraph on the data, the length and the sizes behind the paper's results and ours."""
    seeds = ", ".join(map(str, sorted({row["seed"] for row in rows})))
    if table.setting is None:
        return f"Each cell names the fields that it sets; the recipe of the grid sets all others. Seeds: {seeds}."
    config = find_config(arguments)
    steps, images = (
        " or ".join(f"{number:,}" for number in sorted({row[key] for row in rows if row[key]}))
        for key in ("num_steps", "num_eval_images")
    )
    data = arguments.dataset_release or arguments.dataset_name or arguments.dataset_path
    crops = f" ({crops} random crops per image)" if (crops := arguments.random_crops_per_image) else ""
    scored = f", scored on {images} held-out images" if images else ""
    return f"""\
- Paper: {table.setting}.
- Here: {config.image_size} x {config.image_size} images from `{data}`{crops}{scored}; {config.num_coupling_layers} \
coupling layers of depth {config.num_hidden_layers} and width {config.hidden_size} unless the table sets them; \
{steps or "an unknown number of"} steps with a batch size of {arguments.train_batch_size} and a learning rate of \
{arguments.learning_rate:g}; seeds {seeds}."""


def results_table(table: Table, cells: pd.DataFrame, bits: pd.DataFrame) -> str:
    """Return the table of the paper's results and ours, with the differences from the reference cell."""
    columns = {"cell": [f"`{name}`" for name in cells.index]}
    if table.setting is not None:
        columns["paper"] = [show(value, "g") for value in cells["paper"]]
    columns["here"] = list(map(plus_minus, cells["mean"], cells["sem"]))
    if table.reference in bits:
        in_paper = cells["paper"] - cells["paper"][table.reference]
        here = bits.sub(bits[table.reference], axis=0)
        in_paper[table.reference] = here[table.reference] = np.nan
        columns[f"paper: minus `{table.reference}`"] = [show(value, "+.3f") for value in in_paper]
        margins = zip(here.mean(), confidence_margin(here), strict=True)
        columns[f"here: minus `{table.reference}`"] = [plus_minus(mean, error, "+") for mean, error in margins]
    columns["seeds"] = [f"{number} of {len(bits)}" for number in cells["finished"]]
    columns["parameters"] = [f"{number:,}" for number in cells["parameters"]]
    columns["training FLOPs"] = [show(value, ".3g") for value in cells["flops"]]
    return markdown_table([list(columns), *map(list, zip(*columns.values(), strict=True))], left=1)


def show(value: float, form: str) -> str:
    """Return a number in a format, where it is known."""
    return UNKNOWN if np.isnan(value) else f"{value:{form}}"


def plus_minus(mean: float, error: float, sign: str = "") -> str:
    """Return a mean with its error, where they are known."""
    return show(mean, f"{sign}.4f") + ("" if np.isnan(error) else f" ± {error:.4f}")


def claims_table(table: Table, cells: pd.DataFrame, bits: pd.DataFrame) -> str:
    """Return the table of verdicts on the paper's claims."""
    lines = [["claim", "here", "comparisons", "smallest margin here", "smallest margin in the paper"]]
    for claim in table.claims:
        comparisons = compare(differences(claim, cells, bits))
        verdicts = list(comparisons["verdict"])
        counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in reversed(VERDICTS) if verdict in verdicts]
        text, margin = ", ".join(counts) or "none", UNKNOWN
        finished = comparisons.dropna(subset="mean")
        if len(finished):
            text += f"; {sum(finished['mean'] > 0)} of {len(finished)} on the claimed side"
            weakest = finished["mean"].idxmin()
            margin = plus_minus(finished["mean"][weakest], finished["error"][weakest], "+")
            margin += f" ({weakest})" if len(comparisons) > 1 else ""
        in_paper = differences(claim, cells, cells[["paper"]].T).min().min()
        lines.append([claim["text"], f"**{judge(comparisons)}**", text, margin, show(in_paper, "+.3f")])
    return markdown_table(lines, left=4)


def plot_compute(path: Path, title: str, cells: pd.DataFrame) -> None:
    """
    Plot the means of the cells with their standard errors over seeds, and the Pareto front through them.

    Args:
        path: PNG file to write.
        title: Title of the plot.
        cells: Table with the columns `group`, `flops`, `mean` and `sem`, indexed by the names of the cells.
    """
    finished = cells.dropna(subset=["flops", "mean"])
    front = pareto_front(finished)
    figure = Figure(figsize=(7, 4.5), layout="tight")
    axes = figure.subplots()
    for i, (group, members) in enumerate(finished.groupby("group", sort=False)):
        style = {"fmt": MARKERS[i % len(MARKERS)], "color": f"C{i % 10}", "markersize": 5, "capsize": 2}
        axes.errorbar(members["flops"], members["mean"], members["sem"].fillna(0.0), label=group, **style)
    axes.plot(front["flops"], front["mean"], color="black", linewidth=1, alpha=0.6, label="Pareto front", zorder=0)
    for name, point in front.iterrows():
        axes.annotate(name, (point["flops"], point["mean"]), (4, -9), textcoords="offset points", fontsize=6)
    axes.set(xscale="log", xlabel="training FLOPs", ylabel="bits per dimension of held-out images", title=title)
    axes.margins(x=0.2)  # room for the names
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    replace_file(path, lambda draft: figure.savefig(draft, dpi=120, format="png"))


def pareto_front(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the cells that no other cell undercuts in both `flops` and `mean`, cheapest first."""
    cells = cells.sort_values(["flops", "mean"])
    return cells[cells["mean"] < cells["mean"].cummin().shift(fill_value=float("inf"))]
