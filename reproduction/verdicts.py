# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Comparison of the results with the paper's claims.

Runs with the same seed share their images and their noise, so each contrast is formed per seed. Its error is half the
width of the 95 % confidence interval of Student's t over the seeds. Many contrasts are tested: if nothing differed,
one in forty would exceed its error on the claimed side.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import pandas as pd
from scipy import stats

from .claims import Claim, Contrast, FrontClaim


class Verdict(StrEnum):
    """Outcome of a comparison. A claim has the first of these that one of its comparisons has."""

    CONTRARY = "contrary"
    NOT_RUN = "not run"
    ONE_SEED = "one seed, no error"
    WITHIN_ERROR = "within the error"
    SHOWN = "shown"


@dataclass(frozen=True)
class Comparison:
    """
    A contrast of the results.

    Args:
        text: The contrast in words.
        values: Value for each seed with which all of its cells are finished.
    """

    text: str
    values: pd.Series

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return self.values.mean()

    @property
    def error(self) -> float:
        """Half the width of the confidence interval, NaN for fewer than two seeds."""
        return confidence_margin(self.values)

    @property
    def verdict(self) -> Verdict:
        """Verdict on the contrast."""
        if self.values.empty:
            return Verdict.NOT_RUN
        if len(self.values) == 1:
            return Verdict.ONE_SEED
        if abs(self.mean) <= self.error:
            return Verdict.WITHIN_ERROR
        return Verdict.SHOWN if self.mean > 0 else Verdict.CONTRARY


@dataclass(frozen=True)
class Judgment:
    """
    Verdict on a claim.

    Args:
        text: The claim in words.
        comparisons: Its comparisons.
        paper_margin: The smallest of its contrasts in the paper's results, NaN if they are unknown.
    """

    text: str
    comparisons: list[Comparison]
    paper_margin: float

    @property
    def verdict(self) -> Verdict:
        """Verdict on the claim."""
        return min((item.verdict for item in self.comparisons), key=list(Verdict).index, default=Verdict.NOT_RUN)


def confidence_margin(values: pd.Series) -> float:
    """Return half the width of the 95 % confidence interval of a mean, NaN for fewer than two values."""
    return stats.t.ppf(0.975, len(values) - 1) * values.sem()


def evaluate(contrast: Contrast, bits: pd.DataFrame) -> pd.Series:
    """Return the known values of a contrast, for a table with a column for each cell."""
    weights = pd.Series(contrast.weights, dtype=float)
    return (bits[weights.index] @ weights).dropna()


def judge(claim: Claim | FrontClaim, bits: pd.DataFrame, flops: pd.Series, paper: pd.Series) -> Judgment:
    """
    Compare a claim with the results.

    Args:
        claim: The claim.
        bits: Bits per dimension of the finished runs, with a row for each seed and a column for each cell.
        flops: Training FLOPs of the cells.
        paper: The paper's results of the cells.
    """
    known_flops = flops.dropna().to_dict()
    ours = claim.select(bits.mean().dropna().to_dict(), known_flops)
    theirs = claim.select(paper.dropna().to_dict(), known_flops)
    margins = [margin for contrast in theirs for margin in evaluate(contrast, paper.to_frame().T)]
    comparisons = [Comparison(contrast.text, evaluate(contrast, bits)) for contrast in ours]
    return Judgment(claim.text, comparisons, min(margins, default=math.nan))
