# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""A sweep's report in Markdown: the paper's figures beside ours, the paper's claims beside what the runs show."""

import inspect
from pathlib import Path

from jet_hf.model.configuration_jet import JetConfig
from jet_hf.training import TrainArguments
from jet_hf.utils.files import replace_text, strict_json
from jet_hf.utils.tables import markdown_table

from .claims import CONTRARY, NOT_RUN, ONE_SEED, SHOWN, WITHIN, Verdict, judge, mean_and_error
from .results import CellResult, by_cell
from .tables import Cell, Table


MISSING = "n/a"


def report_text(
    command: str,
    table: Table,
    cells: list[Cell],
    rows: list[dict],
    base: TrainArguments,
    overrides: list[str],
    picture: str | None,
) -> str:
    """
    The report.

    Args:
        command: That made it; it becomes the first line.
        table: The paper's table.
        cells: Those that were asked for.
        rows: Results.
        base: Settings that all runs share.
        overrides: Those of them that are not the recipe's.
        picture: File of the plot, relative to the report.
    """
    results = by_cell(cells, rows)
    verdicts = judge_all(table, cells, results)
    parts = [
        f"`{command}`",
        f"# {table.title}",
        describe_setting(table, rows, base, overrides),
        "## Bits per dimension",
        figures_table(table, results),
        figures_legend(table, results, rows),
        "## What the paper says of it",
        verdicts_table(verdicts),
        verdicts_legend(verdicts),
    ]
    if failures := list_failures(results):
        parts += ["## Runs that failed", failures]
    if picture:
        parts += [
            "## Compute",
            f"![Bits per dimension against training compute]({picture})",
            "Operations of training are counted from the configuration (`jet_hf.analysis.cost.training_flops`). Bars "
            "are standard errors over seeds; the line joins the cells that no other undercuts in both.",
        ]
    return "\n\n".join(parts) + "\n"


def write_report(path: Path, text: str) -> None:
    """Writes a report."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, text)


def judge_all(table: Table, cells: list[Cell], results: list[CellResult]) -> list[Verdict]:
    """Every claim of a table against the results."""
    bits = {result.cell.name: result.bits for result in results}
    flops = {result.cell.name: result.flops for result in results if result.flops is not None}
    known = {cell.name: cell.paper for cell in cells}
    return [judge(claim, bits, flops, known) for claim in table.claims(cells)]


def describe_setting(table: Table, rows: list[dict], base: TrainArguments, overrides: list[str]) -> str:
    """What the two columns of figures were made with."""
    data = base.dataset_release or base.dataset_name or base.dataset_path
    crops = f", {base.random_crops_per_image} random crops of each image" if base.random_crops_per_image else ""
    steps = sorted({row["num_steps"] for row in rows if row["num_steps"]})
    length = f"{' or '.join(f'{number:,}' for number in steps)} steps" if steps else "steps not known yet"
    images = sorted({row["num_eval_images"] for row in rows if row["num_eval_images"]})
    scored = f", scored on {' or '.join(map(str, images))} held-out ones" if images else ""
    seeds = sorted({row["seed"] for row in rows})
    changed = f" (overrides: `{' '.join(overrides)}`)" if overrides else ""
    config = JetConfig(**base.config_fields())
    return (
        f"- The paper: {table.setting}.\n"
        f"- Here: images of {config.image_size} x {config.image_size} pixels of `{data}`{crops}{scored}; "
        f"{config.num_coupling_layers} coupling layers of depth {config.num_hidden_layers} and width "
        f"{config.hidden_size} where the table does not change them; "
        f"{length} of {base.train_batch_size} images at a learning rate of {base.learning_rate:g}{changed}; seeds "
        f"{', '.join(map(str, seeds))}.\n\n"
        "Where data or sizes differ from the paper's, only orderings can be compared, not figures; and an ordering "
        "that holds here is one of this setting."
    )


def figures_table(table: Table, results: list[CellResult]) -> str:
    """The paper's figure and ours for every cell, and how far each is from the reference."""
    reference = next((result for result in results if result.cell.name == table.reference), None)
    lines = [["cell", "paper", "here", "seeds", "parameters", "training FLOPs"]]
    if reference:
        lines[0][3:3] = [f"paper: less `{reference.cell.name}`", f"here: less `{reference.cell.name}`"]
    for result in results:
        line = [
            f"`{result.cell.name}`",
            f"{result.cell.paper:g}" if result.cell.paper is not None else MISSING,
            _measured(result),
            f"{len(result.bits)} of {result.num_runs}",
            f"{result.num_parameters:,}" if result.num_parameters else MISSING,
            f"{result.flops:.3g}" if result.flops else MISSING,
        ]
        if reference:
            line[3:3] = _differences(result, reference)
        lines.append(line)
    return markdown_table(lines, left=1)


def _measured(result: CellResult) -> str:
    if not result.bits:
        return "failed" if result.failures else "not run"
    error = result.standard_error
    return f"{result.mean:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def _differences(result: CellResult, reference: CellResult) -> list[str]:
    """The paper's difference from the reference, and ours over the seeds that both have, with its 95 % interval."""
    papers = result.cell.paper, reference.cell.paper
    theirs = f"{papers[0] - papers[1]:+.3f}" if None not in papers else MISSING
    values = [result.bits[seed] - reference.bits[seed] for seed in sorted(result.bits.keys() & reference.bits.keys())]
    if result is reference or not values:
        return [MISSING if result is reference else theirs, MISSING]
    mean, error = mean_and_error(values)
    return [theirs, f"{mean:+.4f}" + (f" ± {error:.4f}" if error is not None else "")]


def figures_legend(table: Table, results: list[CellResult], rows: list[dict]) -> str:
    """What the columns mean, and what is known of cells beyond their figures."""
    lines = [
        "± in the column *here* is the standard error over seeds, which draw weights, permutations, data and noise."
    ]
    if any(result.cell.name == table.reference for result in results):
        lines.append("Differences are formed seed by seed, on the same images; their ± is half of the 95 % interval.")
    lines += [f"Here {', '.join(f'`{name}`' for name in names)} are the same model." for names in same_models(rows)]
    lines += [f"Of `{result.cell.name}` the paper: {result.cell.note}." for result in results if result.cell.note]
    return " ".join(lines)


def same_models(rows: list[dict]) -> list[list[str]]:
    """Cells that differ in the paper and not here: with few coupling layers, patterns do not get their turn."""
    fields = inspect.get_annotations(JetConfig)
    groups: dict[str, dict[str, None]] = {}
    for row in rows:
        if row["image_size"] is not None:
            given = {name: row[name] for name in fields if name != "permutation_seed"}
            splits = JetConfig(**given).layer_splits
            key = strict_json(given | {"coupling_kinds": splits, "spatial_couplings": None})
            groups.setdefault(key, {})[row["cell"]] = None
    return [list(names) for names in groups.values() if len(names) > 1]


def verdicts_table(verdicts: list[Verdict]) -> str:
    """One line a claim."""
    lines = [
        ["the paper's claim", "here", "comparisons", "smallest margin here", "smallest margin in the paper"],
    ]
    for verdict in verdicts:
        number = len(verdict.outcomes)
        counted = [f"{verdict.counts[kind]} {kind}" for kind in (SHOWN, WITHIN, CONTRARY, ONE_SEED, NOT_RUN)]
        counted = [text for text in counted if not text.startswith("0 ")]
        run = sum(outcome.mean is not None for outcome in verdict.outcomes)
        signs = f"; {verdict.num_same_sign} of {run} on the claimed side" if run else ""
        weakest = verdict.weakest
        margin = MISSING
        if weakest:
            error = f" ± {weakest.error:.4f}" if weakest.error is not None else ""
            margin = f"{weakest.mean:+.4f}{error}" + (f" ({weakest.contrast.text})" if number > 1 else "")
        lines.append(
            [
                verdict.text,
                f"**{verdict.verdict}**",
                f"{', '.join(counted)}{signs}" if number else "none",
                margin,
                f"{verdict.paper:+.3f}" if verdict.paper is not None else MISSING,
            ]
        )
    return markdown_table(lines, left=4)


def verdicts_legend(verdicts: list[Verdict]) -> str:
    """What the verdicts mean."""
    number = sum(len(verdict.outcomes) for verdict in verdicts)
    return (
        "A claim is *shown* if each of its comparisons lies above zero by more than half of its 95 % interval over "
        "seeds (Student's t), *contrary* if one lies as far below; else it is *within the error*, which neither shows "
        f"nor refutes it. Of {number} comparisons, about {number / 40:.1f} would be shown by chance if nothing "
        "differed. The error is that over seeds: it does not say what other images, sizes or longer training give."
    )


def list_failures(results: list[CellResult]) -> str:
    """The failed runs with their reasons."""
    return "\n".join(
        f"- `{result.cell.name}`, seed {seed}: {reason}"
        for result in results
        for seed, reason in result.failures.items()
    )
