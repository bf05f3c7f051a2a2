"""A figure with its 95% interval, as every protocol reports it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lab.evaluation.statistics import (
    Array,
    JointBootstrap,
    bootstrap_interval,
    sums_interval,
    wilson_interval,
)


@dataclass(frozen=True)
class Figure:
    """One number.

    Attributes:
        value: the figure; nan where it is undefined, as precision is when nothing was called positive.
        low, high: its 95% interval over test samples; nan likewise.
        samples: what was drawn again for the interval: questions, images, captions.
    """

    value: float
    low: float
    high: float
    samples: int


def mean_figure(scores: Sequence[float] | np.ndarray) -> Figure:
    """A mean over independent samples (n,), with a percentile bootstrap interval.

    Scores are sorted first, so that their order changes nothing.
    """
    values = np.sort(np.asarray(scores, np.float64))
    return Figure(float(values.mean()), *bootstrap_interval(values), len(values))


def share_figure(scores: Sequence[float] | np.ndarray) -> Figure:
    """A mean of shares between 0 and 1: Wilson's interval where all are 0 or 1, else as `mean_figure`.

    A rate of 0 or 1 is the reason: all its resamples are alike, though the next sample need not be.
    """
    values = np.asarray(scores, np.float64)
    if not np.isin(values, (0.0, 1.0)).all():
        return mean_figure(values)
    return Figure(float(values.mean()), *wilson_interval(int(values.sum()), len(values)), len(values))


def rate_figure(rows: np.ndarray, statistic: Callable[[Array], np.ndarray]) -> Figure:
    """A rate of sums, such as precision: as `sums_figure`, but Wilson's interval where it is 0 or 1.

    Args:
        rows: (n, k), what each independent sample adds.
        statistic: sums (..., k) -> rates (...), nan where there is nothing to take a share of.
    """
    figure = sums_figure(rows, statistic)
    if figure.value not in (0.0, 1.0):
        return figure
    apart = statistic(np.asarray(rows, np.float64))  # of every sample by itself
    counted = int(np.isfinite(apart).sum())  # that have a share in it
    return Figure(figure.value, *wilson_interval(round(figure.value * counted), counted), figure.samples)


def share_by_group(scores: Sequence[float] | np.ndarray, groups: Sequence[Hashable]) -> Figure:
    """A mean of shares between 0 and 1 that are not independent within groups, which are drawn again whole.

    Args:
        scores: n shares.
        groups: n, such as the images that questions are about; if all differ, this is `share_figure`.
    """
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    if len(numbers) == len(groups):
        return share_figure(scores)
    sums = np.zeros((len(numbers), 2))
    for score, group in zip(scores, groups, strict=True):
        sums[numbers[group]] += score, 1
    return rate_figure(sums, lambda total: total[:, 0] / total[:, 1])


def macro_figure(groups: Mapping[str, np.ndarray]) -> Figure:
    """The unweighted mean of the mean shares of groups of samples; samples are drawn within each group.

    Groups of one size share their draws, as kinds of questions about the same scenes do; that they share them
    in the order of their samples is the caller's to see to.
    """
    scores = [np.asarray(group, np.float64).reshape(1, 1, -1) for group in groups.values()]
    value = float(np.mean([group.mean() for group in scores]))
    if value in (0.0, 1.0):  # as in `share_figure`; what groups share counts once
        fewest = min(group.size for group in scores)
        interval = wilson_interval(round(value * fewest), fewest)
    else:
        interval = JointBootstrap(scores, resamples=2000).interval([[1.0]])
    return Figure(value, *interval, sum(group.size for group in scores))


def sums_figure(rows: np.ndarray, statistic: Callable[[Array], np.ndarray]) -> Figure:
    """A figure of sums (see `sums_interval`); rows are sorted first, so that their order changes nothing.

    Args:
        rows: (n, k), what each independent sample adds.
        statistic: sums (..., k) -> figures (...).
    """
    terms = np.asarray(rows, np.float64)
    terms = terms[np.lexsort(terms.T[::-1])]
    value = float(statistic(terms.sum(axis=0, keepdims=True))[0])
    return Figure(value, *sums_interval(terms, statistic), len(terms))
