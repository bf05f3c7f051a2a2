"""Designs: every combination that makes sense, and fractions that keep apart what they promise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from math import prod
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.errors import LabError
from lab.graph.design import ROMAN, Factor, Fraction, aliases, factorial, parents_first, reachable

DOCS = Path(__file__).parents[2] / "docs" / "ablations.md"

# (factors, halvings) -> words of length 3, 4, ... of the design with minimum aberration, as tabulated by
# Chen, Sun and Wu (A catalogue of two-level and three-level fractional factorial designs with small runs,
# 1993).
PATTERNS = {
    (3, 1): (1,),
    (4, 1): (0, 1),
    (5, 1): (0, 0, 1),
    (5, 2): (2, 1, 0),
    (6, 2): (0, 3, 0, 0),
    (6, 3): (4, 3, 0, 0),
    (7, 2): (0, 1, 2, 0, 0),
    (7, 3): (0, 7, 0, 0, 0),
    (7, 4): (7, 7, 0, 0, 1),
    (8, 2): (0, 0, 2, 1, 0, 0),
    (8, 3): (0, 3, 4, 0, 0, 0),
    (8, 4): (0, 14, 0, 0, 0, 1),
    (9, 2): (0, 0, 0, 3, 0, 0, 0),
    (9, 3): (0, 1, 4, 2, 0, 0, 0),
    (9, 4): (0, 6, 8, 0, 0, 1, 0),
    (9, 5): (4, 14, 8, 0, 4, 1, 0),
    (10, 3): (0, 0, 3, 3, 1, 0, 0, 0),
    (10, 4): (0, 2, 8, 4, 0, 1, 0, 0),
    (10, 5): (0, 10, 16, 0, 0, 5, 0, 0),
    (10, 6): (8, 18, 16, 8, 8, 5, 0, 0),
}


def two_level(count: int) -> list[Factor]:
    return [Factor(f"f{number}", (f"l{number}", f"h{number}"), {}) for number in range(count)]


def signs(factor: Factor, runs: Sequence[Mapping[str, str]]) -> list[int]:
    return [1 if run[factor.name] == factor.levels[0] else -1 for run in runs]


def defining_words(factors: Sequence[Factor], runs: Sequence[Mapping[str, str]]) -> list[int]:
    """Lengths of the products of factors that are the same in every run: from the runs alone."""
    columns = [signs(factor, runs) for factor in factors]
    found = []
    for size in range(1, len(factors) + 1):
        for chosen in combinations(columns, size):
            if len({prod(row) for row in zip(*chosen, strict=True)}) == 1:
                found.append(size)
    return found


# -- all combinations ----------------------------------------------------------------------------------------


def test_every_combination_in_the_order_of_declaration() -> None:
    factors = [Factor("b", ("z", "y"), {}), Factor("a", ("p", "q", "r"), {})]
    assert factorial(factors) == [{"b": b, "a": a} for b, a in product("zy", "pqr")]


def test_a_conditional_factor_exists_where_its_condition_holds() -> None:
    factors = [
        Factor("queries", ("few", "many"), {"connector": ("q_former", "perceiver")}),  # before what it needs
        Factor("connector", ("linear", "q_former", "perceiver"), {}),
        Factor("depth", ("flat", "deep"), {"queries": ("many",)}),  # a condition on a conditional factor
    ]
    found = factorial(factors)
    assert {tuple(levels.values()) for levels in found} == {
        ("linear",),
        *((queries, word) for queries in ["few"] for word in ("q_former", "perceiver")),
        *(("many", word, depth) for word in ("q_former", "perceiver") for depth in ("flat", "deep")),
    }
    assert all(
        list(levels) == [name for name in ("queries", "connector", "depth") if name in levels]
        for levels in found
    )


def test_all_parts_of_a_condition_have_to_hold() -> None:
    factors = [*two_level(2), Factor("c", ("x", "y"), {"f0": ("h0",), "f1": ("l1",)})]
    assert [levels for levels in factorial(factors) if "c" in levels] == [
        {"f0": "h0", "f1": "l1", "c": "x"},
        {"f0": "h0", "f1": "l1", "c": "y"},
    ]


def test_conditions_in_a_circle_are_named() -> None:
    factors = [Factor("a", ("x",), {"b": ("y",)}), Factor("b", ("y",), {"a": ("x",)})]
    with pytest.raises(LabError, match=r"conditions in a circle: (a -> b -> a|b -> a -> b)"):
        parents_first(factors)


def test_conditions_that_contradict_each_other_are_never_reached() -> None:
    parent = Factor("a", ("x", "y"), {})
    child = Factor("b", ("p", "q"), {"a": ("x",)})
    lost = Factor("c", ("r", "s"), {"a": ("y",), "b": ("p",)})  # b is there only where a is x
    factors = [parent, child, lost]
    assert [reachable(one, factors) for one in factors] == [True, True, False]
    assert not any("c" in levels for levels in factorial(factors))


def test_too_many_arms_are_a_slip() -> None:
    with pytest.raises(LabError, match="more than 1000 arms; take a fraction"):
        factorial(two_level(10))
    assert len(factorial(two_level(10), Fraction(4, 4))) == 64


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_order_of_levels_and_factors_changes_only_the_order_of_arms(data: st.DataObject) -> None:
    count = data.draw(st.integers(3, 6))
    fraction = data.draw(st.sampled_from([None, Fraction(1, 3)]))
    factors = [*two_level(count), Factor("more", ("x", "y", "z"), {"f1": ("h1",)})]
    shuffled = [
        Factor(one.name, tuple(data.draw(st.permutations(one.levels))), one.when)
        for one in data.draw(st.permutations(factors))
    ]

    def arms(given: Sequence[Factor]) -> set[frozenset[tuple[str, str]]]:
        return {frozenset(levels.items()) for levels in factorial(given, fraction)}

    assert arms(shuffled) == arms(factors)
    if fraction:
        assert {
            frozenset(frozenset(e.split("*")) for e in line.split(" = "))
            for line in aliases(shuffled, fraction)
        } == {
            frozenset(frozenset(e.split("*")) for e in line.split(" = "))
            for line in aliases(factors, fraction)
        }


# -- fractions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "pattern"), PATTERNS.items(), ids=str)
def test_fractions_have_minimum_aberration(size: tuple[int, int], pattern: tuple[int, ...]) -> None:
    count, halvings = size
    factors = two_level(count)
    runs = factorial(factors, Fraction(halvings, 3))
    assert len({tuple(run.values()) for run in runs}) == len(runs) == 2 ** (count - halvings)
    words = defining_words(factors, runs)
    assert tuple(words.count(length) for length in range(3, count + 1)) == pattern
    assert all(sum(signs(factor, runs)) == 0 for factor in factors)  # each level as often as the other


@pytest.mark.parametrize("size", [(5, 2), (6, 2), (7, 3), (5, 1)], ids=str)
def test_aliases_are_the_effects_that_runs_cannot_tell_apart(size: tuple[int, int]) -> None:
    factors = two_level(size[0])
    fraction = Fraction(size[1], 3)
    runs = factorial(factors, fraction)
    columns = {
        "*".join(one.name for one in chosen): tuple(
            map(prod, zip(*(signs(one, runs) for one in chosen), strict=True))
        )
        for order in (1, 2)
        for chosen in combinations(factors, order)
    }
    same = {
        frozenset(
            other for other, column in columns.items() if column in (given, tuple(-sign for sign in given))
        )
        for given in columns.values()
    }
    expected = {group for group in same if len(group) > 1}
    assert {frozenset(line.split(" = ")) for line in aliases(factors, fraction)} == expected


def test_aliases_are_named_in_the_order_of_declaration() -> None:
    factors = [Factor(name, (f"{name}0", f"{name}1"), {}) for name in ("connector", "mix", "width")]
    assert aliases(factors, Fraction(1, 3)) == (
        "connector = mix*width",
        "connector*mix = width",
        "connector*width = mix",
    )
    assert aliases(two_level(5), Fraction(1, 5)) == ()


def test_other_factors_are_crossed_with_a_fraction() -> None:
    factors = [
        *two_level(3),
        Factor("three", ("x", "y", "z"), {}),
        Factor("under", ("p", "q"), {"three": ("x",)}),  # of two levels, but conditional
    ]
    arms = factorial(factors, Fraction(1, 3))
    halved = {tuple(arm[f"f{number}"] for number in range(3)) for arm in arms}
    assert len(halved) == 4
    assert len(arms) == 4 * (2 + 1 + 1)
    assert aliases(factors, Fraction(1, 3)) == aliases(two_level(3), Fraction(1, 3))


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [
        (5, Fraction(2, 5), "1/4 of 5 factors of two levels (conditional ones are not halved) reaches"),
        (5, Fraction(2, 5), "reaches resolution III at most; resolution V needs 1/2"),
        (5, Fraction(1, 6), "resolution V at most; resolution VI needs all combinations (design: full)"),
        (4, Fraction(2, 3), "reaches less than resolution III; resolution III needs 1/2"),
        (8, Fraction(5, 3), "resolution III needs 1/16"),
        (2, Fraction(1, 3), "resolution III needs all combinations"),
        (0, Fraction(1, 3), "of 0 factors of two levels"),
        (3, Fraction(40, 3), "reaches less than resolution III"),
        (11, Fraction(3, 3), "a fraction of 11 factors of two levels; at most 10"),
    ],
)
def test_a_resolution_out_of_reach_is_refused_with_what_reaches_it(
    count: int, fraction: Fraction, expected: str
) -> None:
    for function in (factorial, aliases):
        with pytest.raises(LabError) as caught:
            function(two_level(count), fraction)  # type: ignore[operator]
        assert expected in str(caught.value)


def test_the_table_of_the_docs_is_what_fractions_reach() -> None:
    rows = [line.strip("| \n").split("|") for line in DOCS.read_text().splitlines() if line.startswith("| ")]
    header = next(row for row in rows if row[0].strip() == "factors")
    shares = [int(cell.strip().removeprefix("1/")).bit_length() - 1 for cell in header[1:]]
    stated = {
        (int(row[0]), halvings): cell.strip()
        for row in rows
        if row[0].strip().isdigit()
        for halvings, cell in zip(shares, [*row[1:], *[""] * len(shares)], strict=False)
    }
    assert len(stated) == 8 * 6
    for (count, halvings), reached in stated.items():
        for name, resolution in ROMAN.items():
            reaches = bool(reached) and resolution <= ROMAN[reached]
            if reaches:
                factorial(two_level(count), Fraction(halvings, resolution))
            else:
                with pytest.raises(LabError, match=f"resolution {name} needs"):
                    factorial(two_level(count), Fraction(halvings, resolution))
