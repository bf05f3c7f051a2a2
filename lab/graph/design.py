"""Designs: which combinations of levels an ablation has as arms, and which effects it then cannot tell apart.

A fraction is a regular two-level design 2^(k-p) (Box and Hunter 1961): p factors follow from products of
others, chosen for minimum aberration (Fries and Hunter 1980), that is for the fewest short words in the
defining relation. Names of levels and factors decide which combinations a fraction has, not the order in
which they are declared. Factors of more levels and conditional ones are crossed fully with the fraction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from itertools import combinations

from lab.errors import LabError

MOST = 1000  # arms; more are a slip, and would be looked at one by one
MOST_HALVED = 10  # factors of a fraction; the search for generators grows with 2^k
ROMAN = {"III": 3, "IV": 4, "V": 5, "VI": 6, "VII": 7, "VIII": 8, "IX": 9, "X": 10}


@dataclass(frozen=True)
class Factor:
    """Something that arms differ in.

    Attributes:
        name: of the factor.
        levels: their names, unique over all factors.
        when: other factors and their levels under which this one exists; empty if it always does.
    """

    name: str
    levels: tuple[str, ...]
    when: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Fraction:
    """A two-level fractional factorial.

    Attributes:
        halvings: p; a share of 1/2^p of all combinations.
        resolution: length of the shortest word of the defining relation that is asked for: 3 keeps main
            effects apart from each other, 4 also from interactions of two, 5 these from each other too.
    """

    halvings: int
    resolution: int


def holds(condition: Mapping[str, Sequence[str]], levels: Mapping[str, str]) -> bool:
    """Whether an arm of these levels is one that a condition speaks of."""
    return all(levels.get(factor) in allowed for factor, allowed in condition.items())


def reachable(factor: Factor, factors: Sequence[Factor]) -> bool:
    """Whether some combination of levels has this factor, conditions of its conditions included."""
    known = {one.name: one for one in factors}
    allowed: dict[str, set[str]] = {}
    todo = [factor]
    while todo:
        for parent, levels in todo.pop().when.items():
            if parent not in allowed:
                allowed[parent] = set(known[parent].levels)
                todo.append(known[parent])
            allowed[parent] &= set(levels)
    return all(allowed.values())


def factorial(factors: Sequence[Factor], fraction: Fraction | None = None) -> list[dict[str, str]]:
    """Combinations of levels, in the order of declaration; conditional factors where their condition holds.

    Args:
        factors: with conditions that name factors among them.
        fraction: None for all combinations.

    Returns:
        Of each combination, factor -> level.

    Raises:
        LabError: conditions in a circle, a fraction that is impossible, or more than `MOST` combinations.
    """
    halved = _halved(factors) if fraction else []
    found = [{}] if fraction is None else _runs(halved, fraction)
    for factor in parents_first(factors):
        if factor in halved:
            continue
        crossed: list[dict[str, str]] = []
        for levels in found:
            if holds(factor.when, levels):
                crossed += [{**levels, factor.name: level} for level in factor.levels]
            else:
                crossed.append(levels)
        found = crossed
        if len(found) > MOST:
            raise LabError(
                f"design: more than {MOST} arms; take a fraction of it, or list arms with design: none"
            )
    order = [{level: number for number, level in enumerate(factor.levels)} for factor in factors]
    ordered = [{one.name: levels[one.name] for one in factors if one.name in levels} for levels in found]
    names = [one.name for one in factors]
    ordered.sort(
        key=lambda levels: [
            rank.get(levels.get(name, ""), -1) for name, rank in zip(names, order, strict=True)
        ]
    )
    return ordered


def aliases(factors: Sequence[Factor], fraction: Fraction) -> tuple[str, ...]:
    """Main effects and interactions of two that a fraction cannot tell apart.

    One line for each group of them, such as "connector*mix = width"; interactions of three and more are left
    out.

    Raises:
        LabError: a fraction that is impossible.
    """
    halved = _halved(factors)
    names = [factor.name for factor in halved]
    words = _words(len(halved), fraction)
    place = {factor.name: number for number, factor in enumerate(factors)}
    declared = sorted(range(len(names)), key=lambda bit: place[names[bit]])
    effects = [(bit,) for bit in declared] + list(combinations(declared, 2))
    groups: dict[int, list[tuple[int, ...]]] = {}
    for effect in effects:
        mask = sum(1 << bit for bit in effect)
        groups.setdefault(min(mask ^ word for word in words), []).append(effect)
    lines = [
        sorted(group, key=lambda effect: [place[names[bit]] for bit in effect])
        for group in groups.values()
        if len(group) > 1
    ]
    lines.sort(key=lambda line: [place[names[bit]] for bit in line[0]])
    return tuple(" = ".join("*".join(names[bit] for bit in effect) for effect in line) for line in lines)


def _halved(factors: Sequence[Factor]) -> list[Factor]:
    """Factors that a fraction is made of, by name: those of exactly two levels that always exist."""
    return sorted((one for one in factors if len(one.levels) == 2 and not one.when), key=lambda one: one.name)


def parents_first(factors: Sequence[Factor]) -> list[Factor]:
    """Factors, each after those that its condition names.

    Raises:
        LabError: conditions in a circle.
    """
    known = {factor.name: factor for factor in factors}
    sorter = TopologicalSorter({factor.name: list(factor.when) for factor in factors})
    try:
        return [known[name] for name in sorter.static_order()]
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise LabError(f"factors: conditions in a circle: {circle}") from error


def _runs(factors: Sequence[Factor], fraction: Fraction) -> list[dict[str, str]]:
    """Combinations of a fraction of its factors."""
    columns = _generators(len(factors), fraction)
    basic = len(factors) - len(columns)
    levels = [sorted(factor.levels) for factor in factors]
    runs = []
    for run in range(1 << basic):
        bits = [run >> bit & 1 for bit in range(basic)]
        bits += [(run & column).bit_count() & 1 for column in columns]
        runs.append({one.name: words[bit] for one, words, bit in zip(factors, levels, bits, strict=True)})
    return runs


def _words(factors: int, fraction: Fraction) -> list[int]:
    """The defining relation: sets of factors, as bits, whose product is constant; the empty one as well."""
    columns = _generators(factors, fraction)
    words = [0]
    for number, column in enumerate(columns, factors - len(columns)):
        words += [word ^ column ^ 1 << number for word in words]
    return words


def _generators(factors: int, fraction: Fraction) -> tuple[int, ...]:
    """Of each factor that follows from others, these as bits; checked against the resolution asked for."""
    if factors > MOST_HALVED:
        raise LabError(
            f"design: a fraction of {factors} factors of two levels; at most {MOST_HALVED} are possible"
        )
    columns, best = _minimum_aberration(factors, fraction.halvings)
    if best >= fraction.resolution:
        return columns
    roman = {number: letters for letters, number in ROMAN.items()}
    enough = next(
        halvings
        for halvings in range(fraction.halvings - 1, -1, -1)
        if _minimum_aberration(factors, halvings)[1] >= fraction.resolution
    )
    reach = f"resolution {roman[best]} at most" if best else "less than resolution III"
    needed = f"1/{2**enough}" if enough else "all combinations (design: full)"
    raise LabError(
        f"design: 1/{2**fraction.halvings} of {factors} factors of two levels (conditional ones are not "
        f"halved) reaches {reach}; resolution {roman[fraction.resolution]} needs {needed}"
    )


@lru_cache
def _minimum_aberration(factors: int, halvings: int) -> tuple[tuple[int, ...], int]:
    """Generators of the fraction with the fewest short words, and its resolution.

    The pattern counts words by length, shortest first. It only grows when a generator is added, so that a
    branch which is no better than the best already found is left. The resolution is 0 where every choice
    confounds main effects with each other, and more than any asked for where nothing is left out.
    """
    basic = factors - halvings
    if not halvings:
        return (), max(ROMAN.values())
    columns = [column for column in range(1 << max(basic, 0)) if column.bit_count() > 1]
    columns.sort(key=lambda column: (-column.bit_count(), column))
    best: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def extend(start: int, chosen: tuple[int, ...], words: list[tuple[int, int]]) -> None:
        for number in range(start, len(columns)):
            column = columns[number]
            added = [(mask ^ column, generators + 1) for mask, generators in words]
            longer = words + added
            lengths = [mask.bit_count() + generators for mask, generators in longer]
            pattern = tuple(lengths.count(length) for length in range(1, factors + 1))
            if best and pattern >= best[0][0]:
                continue
            if len(chosen) + 1 < halvings:
                extend(number + 1, (*chosen, column), longer)
            else:
                best[:] = [(pattern, (*chosen, column))]

    extend(0, (), [(0, 0)])
    if not best:
        return (), 0
    pattern, found = best[0]
    return found, next(length for length, count in enumerate(pattern, 1) if count)
