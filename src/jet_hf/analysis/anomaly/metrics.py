# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""How well a score separates anomalies from normal images. It needs scikit-learn and SciPy, of the extra `anomaly`."""

import numpy as np
from scipy.stats import bootstrap
from sklearn import config_context
from sklearn.metrics import auc, average_precision_score, roc_curve


# Names of the metrics, with their titles in tables.
METRICS = {"auroc": "AUROC", "aupr": "AUPR", "fpr_at_95_tpr": "FPR at 95 % TPR"}
NUM_RESAMPLES = 200


def detection_metrics(normal: np.ndarray, anomalous: np.ndarray) -> np.ndarray:
    """
    Return the metrics of `METRICS`, float64 (3,): the areas under the receiver operating characteristic and under the
    precision-recall curve, where anomalies are the positive class, and the share of normal images whose scores reach
    the threshold that 95 % of the anomalies reach.

    Args:
        normal, anomalous: Scores, larger for stranger images, of any numbers of images.
    """
    is_anomalous = np.repeat([0, 1], [len(normal), len(anomalous)])
    scores = np.concatenate([normal, anomalous])
    # With equal scores, the threshold that 95 % of the anomalies reach may lie on a diagonal part of the curve.
    false_rates, true_rates, _ = roc_curve(is_anomalous, scores, drop_intermediate=False)
    precision = average_precision_score(is_anomalous, scores)
    return np.array([auc(false_rates, true_rates), precision, false_rates[true_rates >= 0.95][0]])


def metrics_with_intervals(normal: np.ndarray, anomalous: np.ndarray, seed: int = 0) -> dict[str, dict[str, float]]:
    """
    Return the `value` of each metric, and the ends `low` and `high` of its 95 % percentile interval by bootstrap, for
    which normal and anomalous images are resampled separately.

    Raises:
        ValueError: for fewer than two images of either kind.
    """
    for name, scores in (("normal", normal), ("anomalous", anomalous)):
        if len(scores) < 2:
            raise ValueError(f"there must be at least 2 {name} images to measure detection, got {len(scores)}.")
    with config_context(assume_finite=True, skip_parameter_validation=True):  # most of the time, with few images
        result = bootstrap(
            (normal, anomalous),
            detection_metrics,
            vectorized=False,
            n_resamples=NUM_RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    low, high = result.confidence_interval
    ends = zip(METRICS, detection_metrics(normal, anomalous), low, high, strict=True)
    return {name: {"value": float(v), "low": float(a), "high": float(b)} for name, v, a, b in ends}
