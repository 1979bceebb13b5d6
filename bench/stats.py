"""Medians, spreads and ratios of values that come one a round."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Summary(NamedTuple):
    median: float
    low: float
    high: float


def summarise(values: Sequence[float]) -> Summary:
    return Summary(float(np.median(values)), float(min(values)), float(max(values)))


def percentiles(values: Sequence[float], points: Sequence[float]) -> list[float]:
    """Linearly interpolated."""
    return [float(value) for value in np.percentile(np.asarray(values), points)]


def advantage(ours: Sequence[float], theirs: Sequence[float], *, higher_is_better: bool) -> Summary:
    """How many times better `ours` is, round by round, so that noise both felt in a round cancels."""
    if len(ours) != len(theirs):
        raise ValueError(f"expected the same rounds on both sides, got {len(ours)} and {len(theirs)}")
    pairs = list(zip(ours, theirs, strict=True))
    return summarise([our / their if higher_is_better else their / our for our, their in pairs])


def agreement(labels: Sequence[int], reference: Sequence[int]) -> float:
    """Share of equal labels."""
    return float(np.mean(np.asarray(labels) == np.asarray(reference)))


def chance_of_errors(errors: int, trials: int, rate: float) -> float:
    """Probability of at least so many errors when each trial fails with probability `rate` (0 to 1, 1 excluded)."""
    if rate == 0:
        return float(errors == 0)

    def log_of(count: int) -> float:
        choices = math.lgamma(trials + 1) - math.lgamma(count + 1) - math.lgamma(trials - count + 1)
        return choices + count * math.log(rate) + (trials - count) * math.log1p(-rate)

    return math.fsum(math.exp(log_of(count)) for count in range(errors, trials + 1))
