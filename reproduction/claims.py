# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
The paper's orderings as data, and whether results show them.

A claim is a number of contrasts, sums of bits per dimension with weights, each of which it says to be above zero. Runs
of one seed share their images and their noise, so a contrast is formed for each seed first; its error is half of the
95 % interval of Student's t over seeds. Many contrasts are looked at: one in forty exceeds its error on the claimed
side where there is nothing.
"""

import math
import statistics
from collections import Counter
from dataclasses import dataclass


SHOWN, CONTRARY, WITHIN, ONE_SEED, NOT_RUN = "shown", "contrary", "within the error", "one seed, no error", "not run"

# 0.975-quantiles of Student's t for 1, 2, ... degrees of freedom; for more, that of the normal distribution.
T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
NORMAL_QUANTILE = 1.960


@dataclass(frozen=True)
class Contrast:
    """
    A sum of cells' bits per dimension that is claimed to be above zero.

    Args:
        text: What that means, such as "masking at 1:1 above pairing".
        weights: Of the cells, by name.
    """

    text: str
    weights: tuple[tuple[str, float], ...]


def above(higher: str, lower: str) -> Contrast:
    """The claim that one cell has more bits per dimension than another."""
    return Contrast(f"{higher} above {lower}", ((higher, 1.0), (lower, -1.0)))


@dataclass(frozen=True)
class Claim:
    """
    An ordering of the paper.

    Args:
        text: In words.
        parts: All have to hold.
    """

    text: str
    parts: tuple[Contrast, ...]

    def contrasts(self, flops: dict[str, float], means: dict[str, float]) -> tuple[Contrast, ...]:
        """The contrasts to look at, given each cell's training operations and mean bits per dimension."""
        return self.parts


@dataclass(frozen=True)
class FrontClaim:
    """
    The claim that the best of one kind of model is behind another kind at its own compute: the best cell of `behind`
    is compared with the best of `ahead` that takes no more operations; where there is none, it is "not run".

    Args:
        text: In words.
        ahead, behind: Names of cells.
    """

    text: str
    ahead: tuple[str, ...]
    behind: tuple[str, ...]

    def contrasts(self, flops: dict[str, float], means: dict[str, float]) -> tuple[Contrast, ...]:
        """The contrast to look at, given each cell's training operations and mean bits per dimension."""
        behind = [name for name in self.behind if name in means and name in flops]
        if not behind:
            return ()
        best = min(behind, key=means.__getitem__)
        rivals = [name for name in self.ahead if name in means and flops.get(name, math.inf) <= flops[best]]
        return (above(best, min(rivals, key=means.__getitem__)),) if rivals else ()


@dataclass(frozen=True)
class Outcome:
    """
    What results say of a contrast.

    Args:
        contrast: Which.
        verdict: One of this module's constants.
        mean: Over seeds; `None` if it was not run.
        error: Half of the 95 % interval; `None` for fewer than two seeds.
        num_seeds: Seeds for which all of its cells are finished.
    """

    contrast: Contrast
    verdict: str
    mean: float | None
    error: float | None
    num_seeds: int


@dataclass(frozen=True)
class Verdict:
    """
    What results say of a claim.

    Args:
        text: The claim's.
        verdict: `contrary` if one contrast is; `shown` if all are.
        outcomes: Of its contrasts.
        paper: The smallest of its contrasts in the paper's figures; `None` where these are not known.
    """

    text: str
    verdict: str
    outcomes: tuple[Outcome, ...]
    paper: float | None

    @property
    def counts(self) -> Counter:
        """Contrasts by verdict."""
        return Counter(outcome.verdict for outcome in self.outcomes)

    @property
    def num_same_sign(self) -> int:
        """Contrasts whose mean is on the claimed side, whatever the error."""
        return sum(outcome.mean is not None and outcome.mean > 0 for outcome in self.outcomes)

    @property
    def weakest(self) -> Outcome | None:
        """The contrast with the smallest mean."""
        run = [outcome for outcome in self.outcomes if outcome.mean is not None]
        return min(run, key=lambda outcome: outcome.mean) if run else None


def mean_and_error(values: list[float]) -> tuple[float, float | None]:
    """Mean, and half of its 95 % interval; `None` for one value."""
    if len(values) < 2:
        return values[0], None
    quantile = T_QUANTILES[len(values) - 2] if len(values) - 2 < len(T_QUANTILES) else NORMAL_QUANTILE
    return statistics.fmean(values), quantile * statistics.stdev(values) / math.sqrt(len(values))


def weigh(contrast: Contrast, results: dict[str, dict[int, float]]) -> Outcome:
    """Looks at a contrast, in bits per dimension by cell and seed."""
    by_seed = [results.get(name, {}) for name, _ in contrast.weights]
    seeds = set.intersection(*map(set, by_seed))
    values = [
        sum(weight * bits[seed] for bits, (_, weight) in zip(by_seed, contrast.weights, strict=True))
        for seed in sorted(seeds)
    ]
    if not values:
        return Outcome(contrast, NOT_RUN, None, None, 0)
    mean, error = mean_and_error(values)
    verdict = WITHIN
    if error is None:
        verdict = ONE_SEED
    elif abs(mean) > error:
        verdict = SHOWN if mean > 0 else CONTRARY
    return Outcome(contrast, verdict, mean, error, len(values))


def judge(
    claim: Claim | FrontClaim,
    results: dict[str, dict[int, float]],
    flops: dict[str, float],
    paper: dict[str, float | None],
) -> Verdict:
    """
    Compares a claim with results.

    Args:
        claim: Which.
        results: Bits per dimension of finished runs, by cell and seed.
        flops: Training operations by cell.
        paper: The paper's figures by cell.
    """
    means = {name: statistics.fmean(bits.values()) for name, bits in results.items() if bits}
    outcomes = tuple(weigh(contrast, results) for contrast in claim.contrasts(flops, means))
    found = {outcome.verdict for outcome in outcomes}
    first = (CONTRARY, NOT_RUN, ONE_SEED, WITHIN, SHOWN)
    verdict = next((verdict for verdict in first if verdict in found), NOT_RUN)
    return Verdict(claim.text, verdict, outcomes, paper_margin(claim, flops, paper))


def paper_margin(claim: Claim | FrontClaim, flops: dict[str, float], paper: dict[str, float | None]) -> float | None:
    """The smallest contrast of a claim in the paper's own figures, of those whose figures are all known."""
    figures = {name: figure for name, figure in paper.items() if figure is not None}
    sums = [
        sum(weight * figures[name] for name, weight in contrast.weights)
        for contrast in claim.contrasts(flops, figures)
        if all(name in figures for name, _ in contrast.weights)
    ]
    return min(sums, default=None)
