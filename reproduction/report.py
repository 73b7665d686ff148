# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
The report of a table in Markdown: results over seeds beside the paper's, verdicts on its claims, and a plot.

Runs with the same seed share their images and their noise, so cells are compared per seed. The error of a comparison
is half the width of the 95 % confidence interval of Student's t over the seeds. Many comparisons are tested: if
nothing differed, one in forty would exceed its error on the claimed side.
"""

import math
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from jet_hf.training import TrainArguments
from jet_hf.training.fine_tuning import find_config
from jet_hf.utils.files import replace_file, replace_text
from jet_hf.utils.tables import markdown_table

from .tables import Cell, Table


UNKNOWN = "n/a"
MARKERS = "osD^vP*X"
# Label by which the plot groups the cells: the first of these that the table has.
GROUP_LABELS = ("backbone", "pattern", "mode", "dequantization", "parts", "layers")

SETTING = """\
- Paper: {paper}.
- Here: {size} x {size} images from `{data}`{crops}{scored}; {layers} coupling layers of depth {depth} and width \
{width} unless the table sets them; {steps} with a batch size of {batch_size} and a learning rate of {rate:g}; seeds \
{seeds}.

Where the data or the sizes differ from the paper's, compare only the orderings, not the numbers. An ordering that is \
shown here is shown for this setting."""

RESULTS_LEGEND = """\
± in the column *here* is the standard error over seeds; a seed draws the weights, the permutations, the data order \
and the noise."""

DIFFERENCES_LEGEND = """\
Differences are paired by seed, on the same images; their ± is half the width of the 95 % confidence interval."""

CLAIMS_LEGEND = """\
A claim is *shown* if each of its comparisons lies above zero by more than half the width of its 95 % confidence \
interval over seeds (Student's t), and *contrary* if one of them lies as far below. Otherwise it is *within the \
error*, neither shown nor refuted. Of {number} comparisons, about {chance:.1f} would be shown by chance if nothing \
differed. The error covers seeds only: it says nothing about other images, sizes or longer training."""

COMPUTE_LEGEND = """\
`jet_hf.analysis.cost.training_flops` counts the training FLOPs from the configuration. Bars are standard errors over \
seeds. The line joins the cells that no other cell undercuts in both compute and bits per dimension."""


class Verdict(StrEnum):
    """Outcome of a comparison. A claim has the first of these that one of its comparisons has."""

    CONTRARY = "contrary"
    NOT_RUN = "not run"
    ONE_SEED = "one seed, no error"
    WITHIN_ERROR = "within the error"
    SHOWN = "shown"


class Comparison(NamedTuple):
    """A claimed difference in words, with its mean over the seeds and its error, NaN if they are unknown."""

    text: str
    mean: float
    error: float
    verdict: Verdict


class Judgment(NamedTuple):
    """Verdict on a claim, with its comparisons and the smallest difference in the paper, NaN if unknown."""

    text: str
    verdict: Verdict
    comparisons: list[Comparison]
    paper_margin: float


def write_report(path: Path, command: str, table: Table, rows: list[dict], arguments: TrainArguments) -> None:
    """
    Write the report, and a plot with the same name beside it.

    Args:
        path: Markdown file to write.
        command: Command that makes the report, as its first line.
        table: Table of the paper, or grid.
        rows: Results, see [`collect_rows`].
        arguments: Arguments that all runs share.
    """
    bits, summary = summarize(table.cells, rows)
    picture = path.with_suffix(".png")
    parts = [
        f"`{command}`",
        f"# {table.title}",
        setting_text(table, rows, arguments),
        "## Bits per dimension",
        results_table(table, summary, bits),
        results_legend(table),
    ]
    if table.claims:
        judgments = [judge(claim, summary, bits) for claim in table.claims]
        number = sum(len(judgment.comparisons) for judgment in judgments)
        legend = CLAIMS_LEGEND.format(number=number, chance=number / 40)
        parts += ["## The paper's claims", claims_table(judgments), legend]
    if missing := [f"- `{row['cell']}`, seed {row['seed']}: {row['reason']}" for row in rows if row["reason"]]:
        parts += ["## Runs without a result", "\n".join(missing)]
    parts += ["## Compute", f"![Bits per dimension against training compute]({picture.name})", COMPUTE_LEGEND]
    path.parent.mkdir(parents=True, exist_ok=True)
    plot_compute(picture, table.title, summary)
    replace_text(path, "\n\n".join(parts) + "\n")


def summarize(cells: list[Cell], rows: list[dict]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """
    Return the bits per dimension and a summary, NaN without a result.

    Returns:
        A table of the bits per dimension with a row for each seed and a column for each cell, and one of the cells
        with their labels, results over seeds, paper's result, size and group in the plot.
    """
    frame, names = pd.DataFrame(rows).astype({"bits_per_dim": float}), [cell.name for cell in cells]
    bits = frame.pivot(index="seed", columns="cell", values="bits_per_dim")[names]
    sizes = frame.groupby("cell")
    labels = pd.DataFrame([cell.labels for cell in cells], index=names)
    label = next((key for key in GROUP_LABELS if key in labels), labels.columns[0])
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
    return cells.add_prefix("high_").merge(cells.add_prefix("low_"), how="cross").query(condition)


def contrasts(claim: dict, cells: pd.DataFrame, results: str) -> dict[str, pd.Series]:
    """
    Return what a claim states: sums of the cells' bits per dimension that are positive, as weights by their wording.

    Args:
        claim: Entry of `paper.yaml`, which describes the kinds of claims.
        cells: The cells, see [`summarize`].
        results: Column of the results, by which the best cells at like compute are chosen: `mean` or `paper`.
    """
    pairs = select_pairs(cells, claim["pairs"])
    if claim.get("like_compute"):
        high, low = f"high_{results}", f"low_{results}"
        pairs = pairs.dropna(subset=[high, low, "high_flops", "low_flops"])
        pairs = pairs[pairs[high] == pairs[high].min()].query("low_flops <= high_flops").nsmallest(1, low)
    if "minus" in claim:
        others = select_pairs(cells, claim["minus"])
        return {
            claim["comparison"].format(wide=wide, narrow=narrow): difference(wide).sub(
                difference(narrow), fill_value=0
            )
            for _, wide in pairs.iterrows()
            for _, narrow in others.iterrows()
        }
    found = {f"{pair['high_name']} above {pair['low_name']}": difference(pair) for _, pair in pairs.iterrows()}
    if "average" in claim and found:
        return {claim["average"]: pd.concat(found.values()) / len(found)}
    return found


def difference(pair: pd.Series) -> pd.Series:
    """Return the weights of the difference between the cells of a pair."""
    return pd.Series({pair["high_name"]: 1.0, pair["low_name"]: -1.0})


def evaluate(weights: pd.Series, bits: pd.DataFrame) -> pd.Series:
    """Return the known values of a weighted sum of cells, for a table with a column for each cell."""
    return (bits[weights.index] @ weights).dropna()


def confidence_margin(values: pd.Series) -> float:
    """Return half the width of the 95 % confidence interval of a mean, NaN for fewer than two values."""
    return stats.t.ppf(0.975, len(values) - 1) * values.sem()


def compare(text: str, values: pd.Series) -> Comparison:
    """Judge the values of a claimed difference, one for each seed with which all of its cells are finished."""
    mean, error = values.mean(), confidence_margin(values)
    if len(values) < 2:
        verdict = Verdict.NOT_RUN if values.empty else Verdict.ONE_SEED
    elif abs(mean) <= error:
        verdict = Verdict.WITHIN_ERROR
    else:
        verdict = Verdict.SHOWN if mean > 0 else Verdict.CONTRARY
    return Comparison(text, mean, error, verdict)


def judge(claim: dict, cells: pd.DataFrame, bits: pd.DataFrame) -> Judgment:
    """Compare a claim of `paper.yaml` with the results; [`summarize`] returns both tables."""
    comparisons = [compare(text, evaluate(sums, bits)) for text, sums in contrasts(claim, cells, "mean").items()]
    verdict = min((item.verdict for item in comparisons), key=list(Verdict).index, default=Verdict.NOT_RUN)
    paper = cells[["paper"]].T
    margins = [margin for sums in contrasts(claim, cells, "paper").values() for margin in evaluate(sums, paper)]
    return Judgment(claim["text"], verdict, comparisons, min(margins, default=math.nan))


def setting_text(table: Table, rows: list[dict], arguments: TrainArguments) -> str:
    """Return a paragraph on the data, the length and the sizes behind the paper's results and ours."""
    seeds = ", ".join(map(str, sorted({row["seed"] for row in rows})))
    if table.setting is None:
        return f"Each cell names the fields that it sets; the recipe of the grid sets all others. Seeds: {seeds}."
    config = find_config(arguments)
    steps, images = (sorted({row[key] for row in rows if row[key]}) for key in ("num_steps", "num_eval_images"))
    return SETTING.format(
        paper=table.setting,
        size=config.image_size,
        data=arguments.dataset_release or arguments.dataset_name or arguments.dataset_path,
        crops=f" ({crops} random crops per image)" if (crops := arguments.random_crops_per_image) else "",
        scored=f", scored on {' or '.join(map(str, images))} held-out images" if images else "",
        layers=config.num_coupling_layers,
        depth=config.num_hidden_layers,
        width=config.hidden_size,
        steps=f"{' or '.join(f'{number:,}' for number in steps)} steps" if steps else "an unknown number of steps",
        batch_size=arguments.train_batch_size,
        rate=arguments.learning_rate,
        seeds=seeds,
    )


def results_table(table: Table, summary: pd.DataFrame, bits: pd.DataFrame) -> str:
    """Return the table of the paper's results and ours, with the differences from the reference cell."""
    reference, is_paper = table.reference if table.reference in bits else None, table.setting is not None
    header = ["cell", "here", "seeds", "parameters", "training FLOPs"]
    if is_paper:
        header.insert(1, "paper")
    if reference:
        header[3:3] = [f"paper: minus `{reference}`", f"here: minus `{reference}`"]
    lines = [header]
    for name, cell in summary.iterrows():
        line = [
            f"`{name}`",
            plus_minus(cell["mean"], cell["sem"]),
            f"{cell['finished']} of {len(bits)}",
            f"{cell['parameters']:,}",
            UNKNOWN if math.isnan(cell["flops"]) else f"{cell['flops']:.3g}",
        ]
        if is_paper:
            line.insert(1, UNKNOWN if math.isnan(cell["paper"]) else f"{cell['paper']:g}")
        if reference:
            in_paper = cell["paper"] - summary["paper"][reference]
            values = (bits[name] - bits[reference]).dropna()
            line[3:3] = [
                UNKNOWN if name == reference or math.isnan(in_paper) else f"{in_paper:+.3f}",
                UNKNOWN if name == reference else plus_minus(values.mean(), confidence_margin(values), sign="+"),
            ]
        lines.append(line)
    return markdown_table(lines, left=1)


def plus_minus(mean: float, error: float, sign: str = "") -> str:
    """Return a mean with its error, where they are known."""
    if math.isnan(mean):
        return UNKNOWN
    return f"{mean:{sign}.4f}" + ("" if math.isnan(error) else f" ± {error:.4f}")


def results_legend(table: Table) -> str:
    """Return the explanation of the results: symbols, and remarks on the paper."""
    differences = [DIFFERENCES_LEGEND for cell in table.cells if cell.name == table.reference]
    notes = [f"On `{cell.name}`: {cell.note}." for cell in table.cells if cell.note]
    return " ".join([RESULTS_LEGEND, *differences, *notes])


def claims_table(judgments: list[Judgment]) -> str:
    """Return the table of verdicts on the paper's claims."""
    lines = [["claim", "here", "comparisons", "smallest margin here", "smallest margin in the paper"]]
    for judgment in judgments:
        verdicts = [item.verdict for item in judgment.comparisons]
        counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in reversed(Verdict) if verdict in verdicts]
        comparisons, margin = ", ".join(counts) or "none", UNKNOWN
        if finished := [item for item in judgment.comparisons if item.verdict != Verdict.NOT_RUN]:
            comparisons += f"; {sum(item.mean > 0 for item in finished)} of {len(finished)} on the claimed side"
            weakest = min(finished, key=lambda item: item.mean)
            margin = plus_minus(weakest.mean, weakest.error, sign="+")
            margin += f" ({weakest.text})" if len(judgment.comparisons) > 1 else ""
        in_paper = UNKNOWN if math.isnan(judgment.paper_margin) else f"{judgment.paper_margin:+.3f}"
        lines.append([judgment.text, f"**{judgment.verdict}**", comparisons, margin, in_paper])
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
