"""Nonlinear least squares for many data sets at once: what bootstraps and many starting points need.

Levenberg and Marquardt's method, every row of a batch on its own. Parameters lie between bounds: each is a
logistic function of a free variable, so that no step leaves them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
Model = Callable[[Array], Array]  # (B,P) parameters -> (B,N) values

_EDGE = 12.0  # of a free variable: within 1e-5 of a bound's span
_STEPS = 200
_SLACK = 1e-8  # relative: a step by which a sum of squares falls less gains nothing
_PATIENCE = 5  # steps without gain after which a row has arrived


@dataclass(frozen=True)
class Box:
    """Bounds of parameters, (P,) each."""

    low: Array
    high: Array

    def inside(self, free: Array) -> Array:
        """Parameters of free variables, (B,P) each."""
        return self.low + (self.high - self.low) / (1 + np.exp(-free))

    def free(self, parameters: Array) -> Array:
        """Free variables of parameters, those at a bound a little inside."""
        share = np.clip((parameters - self.low) / (self.high - self.low), 1e-5, 1 - 1e-5)
        return np.log(share / (1 - share))


def fit_curves(model: Model, observed: Array, weights: Array, starts: Array, box: Box) -> tuple[Array, Array]:
    """Fits a model to every row of observations, from the start of that row.

    Args:
        model: (B,P) parameters -> (B,N) values.
        observed: (B,N).
        weights: (B,N) of the squares; 0 leaves an observation out.
        starts: (B,P) parameters.
        box: their bounds.

    Returns:
        (B,P) parameters, (B,) weighted sums of squares.
    """
    free = box.free(starts)
    squares = (weights * (observed - model(box.inside(free))) ** 2).sum(axis=1)
    damping = np.full(len(free), 1e-2)
    idle = np.zeros(len(free), dtype=int)  # steps in a row that gained nothing
    for _ in range(_STEPS):
        moving = np.flatnonzero(idle <= _PATIENCE)
        if not moving.size:
            break
        here, seen, weight = free[moving], observed[moving], weights[moving]
        step = _step(model, here, seen, weight, damping[moving], box)
        tried = np.clip(here + np.clip(step, -2, 2), -_EDGE, _EDGE)
        found = (weight * (seen - model(box.inside(tried))) ** 2).sum(axis=1)
        before = squares[moving]
        better = found < before
        idle[moving] = np.where(found < before * (1 - _SLACK), 0, idle[moving] + 1)
        free[moving] = np.where(better[:, None], tried, here)
        squares[moving] = np.where(better, found, before)
        damping[moving] = np.clip(damping[moving] * np.where(better, 1 / 4, 4), 1e-9, 1e9)
    return box.inside(free), squares


def _step(model: Model, free: Array, observed: Array, weights: Array, damping: Array, box: Box) -> Array:
    """The damped step of every row, (B,P)."""
    slopes = _slopes(model, free, box)  # (B,N,P)
    weighted = slopes * weights[:, :, None]
    normal = slopes.transpose(0, 2, 1) @ weighted  # (B,P,P)
    towards = (weighted * (observed - model(box.inside(free)))[:, :, None]).sum(axis=1)
    size = np.einsum("bpp->bp", normal)
    scale = size + 1e-9 * size.sum(axis=1, keepdims=True) + 1e-15
    damped = normal + np.eye(free.shape[1]) * (damping[:, None] * scale + 1e-15)[:, None, :]
    return np.asarray(np.linalg.solve(damped, towards[:, :, None])[:, :, 0])


def _slopes(model: Model, free: Array, box: Box) -> Array:
    """Derivatives of the values by the free variables, (B,N,P), by central differences."""
    width = 1e-5
    columns = []
    for place in range(free.shape[1]):
        shift = np.zeros(free.shape[1])
        shift[place] = width
        columns.append((model(box.inside(free + shift)) - model(box.inside(free - shift))) / (2 * width))
    return np.stack(columns, axis=2)
