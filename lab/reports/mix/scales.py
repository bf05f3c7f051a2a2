"""Axes of amounts of data, and what stands on them."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from lab.evaluation.curves import Array
from lab.evaluation.statistics import t_interval

_TICKS = 7  # amounts that all get one


def stretch(axes: Axes, which: str, amounts: Array) -> None:
    """Makes an axis one of amounts: stretched at the lower end, from 0, with ticks at the measured ones."""
    axis, scale = (axes.xaxis, axes.set_xscale) if which == "x" else (axes.yaxis, axes.set_yscale)
    scale("function", functions=(_root, _square))
    ticks = sorted(set(amounts.tolist()))
    if len(ticks) > _TICKS:
        ticks = list(np.linspace(ticks[0], ticks[-1], 5).round())
    axis.set_ticks(ticks, [short(tick) for tick in ticks])
    axis.set_minor_locator(NullLocator())


def short(amount: float) -> str:
    """`1.28k`."""
    return f"{amount / 1000:.3g}k" if amount >= 1000 else f"{amount:.0f}"


def half_width(values: Array) -> float:
    """Half of a 95% interval over seeds; 0 with one."""
    return (t_interval(values)[1] - float(values.mean())) if values.size > 1 else 0.0


def _root(values: Array) -> Array:
    return np.sign(values) * np.sqrt(np.abs(values))


def _square(values: Array) -> Array:
    return np.sign(values) * np.square(values)
