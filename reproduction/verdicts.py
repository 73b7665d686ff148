# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Comparison of the results with the paper's claims.

Runs with the same seed share their images and their noise, so each contrast is formed per seed. Its error is half the
width of the 95 % confidence interval of Student's t over the seeds. Many contrasts are tested: if nothing differed,
one in forty would exceed its error on the claimed side.
"""

import math
from enum import StrEnum
from typing import NamedTuple

import pandas as pd
from scipy import stats

from .claims import Claim, Contrast


class Verdict(StrEnum):
    """Outcome of a comparison. A claim has the first of these that one of its comparisons has."""

    CONTRARY = "contrary"
    NOT_RUN = "not run"
    ONE_SEED = "one seed, no error"
    WITHIN_ERROR = "within the error"
    SHOWN = "shown"


class Comparison(NamedTuple):
    """A contrast in words, with its mean over the seeds and its error, NaN if they are unknown."""

    text: str
    mean: float
    error: float
    verdict: Verdict


class Judgment(NamedTuple):
    """Verdict on a claim, with its comparisons and the smallest of its contrasts in the paper, NaN if unknown."""

    text: str
    verdict: Verdict
    comparisons: list[Comparison]
    paper_margin: float


def confidence_margin(values: pd.Series) -> float:
    """Return half the width of the 95 % confidence interval of a mean, NaN for fewer than two values."""
    return stats.t.ppf(0.975, len(values) - 1) * values.sem()


def evaluate(contrast: Contrast, bits: pd.DataFrame) -> pd.Series:
    """Return the known values of a contrast, for a table with a column for each cell."""
    weights = pd.Series(contrast.weights, dtype=float)
    return (bits[weights.index] @ weights).dropna()


def compare(contrast: Contrast, bits: pd.DataFrame) -> Comparison:
    """Compare a contrast with the results of the seeds with which all of its cells are finished."""
    values = evaluate(contrast, bits)
    mean, error = values.mean(), confidence_margin(values)
    if len(values) < 2:
        verdict = Verdict.NOT_RUN if values.empty else Verdict.ONE_SEED
    elif abs(mean) <= error:
        verdict = Verdict.WITHIN_ERROR
    else:
        verdict = Verdict.SHOWN if mean > 0 else Verdict.CONTRARY
    return Comparison(contrast.text, mean, error, verdict)


def judge(claim: Claim, bits: pd.DataFrame, flops: pd.Series, paper: pd.Series) -> Judgment:
    """
    Compare a claim with the results.

    Args:
        claim: The claim.
        bits: Bits per dimension of the finished runs, with a row for each seed and a column for each cell.
        flops: Training FLOPs of the cells.
        paper: The paper's results of the cells.
    """

    def select(means: pd.Series) -> list[Contrast]:
        if not callable(claim.contrasts):
            return claim.contrasts
        return claim.contrasts(means.dropna().to_dict(), flops.dropna().to_dict())

    comparisons = [compare(contrast, bits) for contrast in select(bits.mean())]
    verdict = min((item.verdict for item in comparisons), key=list(Verdict).index, default=Verdict.NOT_RUN)
    margins = [margin for contrast in select(paper) for margin in evaluate(contrast, paper.to_frame().T)]
    return Judgment(claim.text, verdict, comparisons, min(margins, default=math.nan))
