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
_SLACK = 1e-12  # relative: a sum of squares that falls by less has arrived


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
    damping = np.full(len(free), 1e-2)
    residual = observed - model(box.inside(free))
    squares = (weights * residual**2).sum(axis=1)
    waiting = np.zeros(len(free), dtype=int)  # steps in a row that gained nothing
    identity = np.eye(free.shape[1])
    for _ in range(_STEPS):
        slopes = _slopes(model, free, box)  # (B,N,P)
        normal = np.einsum("bnp,bn,bnq->bpq", slopes, weights, slopes)
        towards = np.einsum("bnp,bn,bn->bp", slopes, weights, residual)
        scale = np.einsum("bpp->bp", normal) + 1e-9 * np.trace(normal, axis1=1, axis2=2)[:, None] + 1e-15
        damped = normal + identity * (damping[:, None] * scale)[:, None, :] + 1e-15 * identity
        step = np.linalg.solve(damped, towards[:, :, None])[:, :, 0]
        tried = np.clip(free + np.clip(step, -2, 2), -_EDGE, _EDGE)
        left = observed - model(box.inside(tried))
        found = (weights * left**2).sum(axis=1)
        better = found < squares
        waiting = np.where(found < squares * (1 - _SLACK), 0, waiting + 1)
        free = np.where(better[:, None], tried, free)
        residual = np.where(better[:, None], left, residual)
        squares = np.where(better, found, squares)
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-9, 1e9)
        if (waiting > 12).all():
            break
    return box.inside(free), squares


def _slopes(model: Model, free: Array, box: Box) -> Array:
    """Derivatives of the values by the free variables, (B,N,P), by central differences."""
    width = 1e-5
    columns = []
    for place in range(free.shape[1]):
        shift = np.zeros(free.shape[1])
        shift[place] = width
        columns.append((model(box.inside(free + shift)) - model(box.inside(free - shift))) / (2 * width))
    return np.stack(columns, axis=2)
