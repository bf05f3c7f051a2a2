"""Main effects of factors and interactions of two, from all arms and seeds at once.

Least squares with sum-to-zero coding, so that an effect is averaged over the levels of the other factors with
equal weight, whatever arms a fraction or an exclusion leaves. An effect is stated as a difference to the
factor's first level, an interaction as a difference of such differences.

**What an effect is judged against.** Seeds are blocks. Arms that agree on upstream factors share the training
of those stages, so at one seed they share its luck too: three arms on one alignment are not three witnesses
for their connector. Nodes that several arms of a seed share are therefore blocks as well. What can be
estimated within blocks is judged by the residual of all arms and seeds; what cannot, because it differs
between shared nodes, is estimated seed by seed and judged by Student's t over seeds (as whole plots are).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
from scipy.special import stdtrit

from lab.evaluation.statistics import holm, least_squares, t_probability
from lab.reports.ablation.design import DesignedArm
from lab.reports.ablation.estimates import LEVEL, NONE, SAMPLES, SEEDS, Ends, Measured, larger

CELLS = "arms and seeds"
TIMES = " \u00d7 "


@dataclass(frozen=True)
class Effect:
    """One tested difference between levels.

    Attributes:
        factors: One for a main effect, two for an interaction.
        levels: (level, first level) of each factor.
        value: The difference; of an interaction the difference of differences.
        interval: 95%; None where nothing can be said about it.
        joint: 95% over seeds and samples.
        p: Two-sided.
        holm: Adjusted for all effects of the metric.
        over: What the interval is over: "arms and seeds" (the residual), seeds, samples or none.
        freedom: Degrees of freedom behind the interval, 0 over samples.
        seeds: How many.
        aliases: Terms that the design cannot tell from this one.
    """

    factors: tuple[str, ...]
    levels: tuple[tuple[str, str], ...]
    value: float
    interval: Ends | None
    joint: Ends | None
    p: float
    holm: float
    over: str
    freedom: int
    seeds: int
    aliases: tuple[str, ...] = ()

    @property
    def term(self) -> str:
        """`connector`, or `connector x mix`."""
        return TIMES.join(self.factors)

    @property
    def change(self) -> str:
        """`q_former - linear`, of an interaction `(q_former - linear) x (even - understanding)`."""
        return change_of(self.levels)

    @property
    def significant(self) -> bool:
        return self.seeds > 1 and self.holm < LEVEL


def change_of(levels: Sequence[tuple[str, str]]) -> str:
    """Levels and first levels in words, as `Effect.change`."""
    parts = [f"{level} - {first}" for level, first in levels]
    return parts[0] if len(parts) == 1 else TIMES.join(f"({part})" for part in parts)


@dataclass
class Model:
    """Columns of the arms' design matrix, and which terms it can tell apart.

    Attributes:
        matrix: (A, P), the first column of ones.
        contrasts: ((factors, levels), (P,)) of every effect that is estimated.
        aliases: Term -> terms that are the same columns in this design.
        inseparable: Terms that the arms do not determine beside the others.
    """

    matrix: np.ndarray
    contrasts: list[tuple[tuple[str, ...], tuple[tuple[str, str], ...], np.ndarray]]
    aliases: dict[tuple[str, ...], list[str]] = field(default_factory=dict)
    inseparable: list[str] = field(default_factory=list)


def model_of(factors: Mapping[str, Sequence[str]], arms: Sequence[DesignedArm]) -> Model:
    """The linear model that a set of arms supports: main effects first, then interactions of two factors.

    Args:
        factors: Factor -> levels in declared order.
        arms: With at least one value.
    """
    model = Model(np.ones((len(arms), 1)), [])
    kept: dict[tuple[str, ...], tuple[int, int]] = {}  # term -> its columns
    pending: list[tuple[tuple[str, ...], list[list[str]], int]] = []
    terms: list[tuple[str, ...]] = [(factor,) for factor in factors]
    terms += combinations(factors, 2)
    for term in terms:
        having = [arm for arm in arms if all(factor in arm.levels for factor in term)]
        levels = [
            [level for level in factors[factor] if any(a.levels[factor] == level for a in having)]
            for factor in term
        ]
        if any(len(known) < 2 for known in levels):
            continue  # nothing varies, or a factor exists at one level of the other alone
        block = np.array([_row(arm, term, levels) for arm in arms])  # (A,k)
        before = model.matrix.shape[1]
        if _rank(np.hstack([model.matrix, block])) < _rank(model.matrix) + block.shape[1]:
            twins = [
                other
                for other, (start, end) in kept.items()
                if _within(block, np.hstack([model.matrix[:, :1], model.matrix[:, start:end]]))
            ]
            if twins:
                model.aliases.setdefault(twins[0], []).append(TIMES.join(term))
            else:
                model.inseparable.append(TIMES.join(term))
            continue
        model.matrix = np.hstack([model.matrix, block])
        kept[term] = (before, model.matrix.shape[1])
        pending.append((term, levels, before))
    for term, levels, start in pending:
        for chosen in np.ndindex(*(len(known) - 1 for known in levels)):
            picked = list(zip(levels, chosen, strict=True))
            differences = [_code(len(known), i + 1) - _code(len(known), 0) for known, i in picked]
            contrast = np.zeros(model.matrix.shape[1])
            product = _product(differences)
            contrast[start : start + len(product)] = product
            named = tuple((known[i + 1], known[0]) for known, i in picked)
            model.contrasts.append((term, named, contrast))
    return model


def effects(
    measured: Measured, factors: Mapping[str, Sequence[str]], arms: Sequence[DesignedArm]
) -> tuple[list[Effect], Model]:
    """All effects on a metric, corrected together by Holm's method.

    Args:
        measured: The metric.
        factors: Factor -> levels in declared order.
        arms: As `measured` has them.
    """
    rows = [a for a in range(len(arms)) if not np.isnan(measured.values[a]).all()]
    model = model_of(factors, [arms[a] for a in rows])
    if not model.contrasts:
        return [], model
    found = []
    for contrast, way in zip(model.contrasts, _ways(measured, arms, rows, model), strict=True):
        if way is None:
            continue  # no seed has the arms for it yet
        term, levels, _ = contrast
        joint, p = measured.joint(way.weights, way.seeds)
        interval, over = joint, SAMPLES if joint else NONE
        if way.freedom:
            half = float(stdtrit(way.freedom, 0.975)) * way.error
            interval, over = (way.value - half, way.value + half), way.over
            p = larger(p, t_probability(way.value, way.error, way.freedom))
        found.append(
            Effect(
                factors=term,
                levels=levels,
                value=way.value,
                interval=interval,
                joint=joint,
                p=p,
                holm=math.nan,
                over=over,
                freedom=way.freedom,
                seeds=len(way.seeds),
                aliases=tuple(model.aliases.get(term, ())),
            )
        )
    adjusted = holm([effect.p for effect in found])
    return [replace(effect, holm=p) for effect, p in zip(found, adjusted, strict=True)], model


@dataclass(frozen=True)
class _Way:
    """How one effect is estimated: its value, standard error (of `freedom` degrees), and weights (A,S)."""

    value: float
    error: float
    freedom: int
    over: str
    weights: np.ndarray
    seeds: list[int]


def _ways(
    measured: Measured, arms: Sequence[DesignedArm], rows: Sequence[int], model: Model
) -> list[_Way | None]:
    """Within blocks where that is possible, else seed by seed."""
    place = {a: row for row, a in enumerate(rows)}
    cells = [(int(a), int(s)) for a, s in np.argwhere(~np.isnan(measured.values))]
    observed = np.array([measured.values[cell] for cell in cells])
    contrasts = np.array([contrast for _, _, contrast in model.contrasts])
    seeds = sorted({s for _, s in cells})
    terms = np.array([model.matrix[place[a]] for a, _ in cells])
    blocks = _blocks(cells, arms, measured.seeds)
    inside = least_squares(
        np.hstack([blocks, terms[:, 1:]]),
        observed,
        np.hstack([np.zeros((len(contrasts), blocks.shape[1])), contrasts[:, 1:]]),
    )
    parts = []
    for seed in seeds:
        chosen = [i for i, (_, s) in enumerate(cells) if s == seed]
        parts.append((seed, chosen, least_squares(terms[chosen], observed[chosen], contrasts)))
    ways: list[_Way | None] = []
    for number in range(len(contrasts)):
        weights = np.zeros_like(measured.values)
        if len(seeds) > 1 and not np.isnan(inside.errors[number]):
            for weight, cell in zip(inside.weights[number], cells, strict=True):
                weights[cell] = weight
            value, error = float(inside.estimates[number]), float(inside.errors[number])
            ways.append(_Way(value, error, inside.freedom, CELLS, weights, seeds))
            continue
        known = [part for part in parts if not np.isnan(part[2].estimates[number])]
        if not known:
            ways.append(None)
            continue
        for _, chosen, fit in known:
            for weight, i in zip(fit.weights[number], chosen, strict=True):
                weights[cells[i]] = weight / len(known)
        values = np.array([fit.estimates[number] for _, _, fit in known])
        freedom = len(known) - 1
        error = float(values.std(ddof=1)) / math.sqrt(len(known)) if freedom else math.nan
        used = [seed for seed, _, _ in known]
        ways.append(_Way(float(values.mean()), error, freedom, SEEDS, weights, used))
    return ways


def _blocks(
    cells: Sequence[tuple[int, int]], arms: Sequence[DesignedArm], seeds: Sequence[int]
) -> np.ndarray:
    """Columns that mark cells of one seed, and cells that share the training of a node at that seed."""
    groups: dict[tuple[int, ...], None] = {}
    for s in sorted({s for _, s in cells}):
        groups[tuple(i for i, cell in enumerate(cells) if cell[1] == s)] = None
    users: dict[str, list[tuple[int, int]]] = {}
    for a, arm in enumerate(arms):
        for s, seed in enumerate(seeds):
            for node in arm.cost.get(seed, ()):
                users.setdefault(node, []).append((a, s))
    for using in users.values():
        members = tuple(i for i, cell in enumerate(cells) if cell in using)
        # A node that serves several seeds is not repeated by them: as a block it would hide its factor.
        if members and len(using) > 1 and len({s for _, s in using}) == 1:
            groups[members] = None
    columns = np.zeros((len(cells), len(groups)))
    for column, members in enumerate(groups):
        columns[list(members), column] = 1
    return columns


def unrepeated(arms: Sequence[DesignedArm], seeds: Sequence[int]) -> list[str]:
    """Nodes that were trained once for several seeds: chance in them is in no interval."""
    used: dict[str, set[int]] = {}
    for arm in arms:
        for seed in seeds:
            for node in arm.cost.get(seed, ()):
                used.setdefault(node, set()).add(seed)
    return [node for node, of in used.items() if len(of) > 1]


def _code(levels: int, level: int) -> np.ndarray:
    """Sum-to-zero coding: (levels - 1,), the last level is minus one throughout."""
    return np.eye(levels)[level, :-1] if level < levels - 1 else -np.ones(levels - 1)


def _row(arm: DesignedArm, term: Sequence[str], levels: Sequence[Sequence[str]]) -> np.ndarray:
    """An arm's columns of a term; zeros where it lacks one of the factors."""
    pairs = list(zip(term, levels, strict=True))
    if any(factor not in arm.levels for factor in term):
        return np.zeros(math.prod(len(known) - 1 for known in levels))
    return _product([_code(len(known), known.index(arm.levels[factor])) for factor, known in pairs])


def _product(codes: Sequence[np.ndarray]) -> np.ndarray:
    return codes[0] if len(codes) == 1 else np.kron(codes[0], codes[1])


def _rank(matrix: np.ndarray) -> int:
    return int(np.linalg.matrix_rank(matrix, rtol=1e-9))


def _within(columns: np.ndarray, others: np.ndarray) -> bool:
    return _rank(np.hstack([others, columns])) == _rank(others)
