"""Which arms a declaration asks for: those of its design, less exclusions, and those that it lists."""

from __future__ import annotations

import fractions
import re
from collections.abc import Mapping, Sequence

from lab.errors import LabError, nearest
from lab.graph.design import ROMAN, Factor, Fraction, factorial, holds
from lab.graph.levels import condition_of, one_level, unknown_keys


def design_of(value: object, mistakes: list[str]) -> str | Fraction:
    """The design: "full", "none", or a fraction."""
    if value in ("full", "none"):
        return str(value)
    if not isinstance(value, Mapping):
        hint = nearest(value, ("full", "none")) if isinstance(value, str) else ""
        mistakes.append(
            f"design: expected full, none or {{fraction: 1/4, resolution: III}}, not {value!r}{hint}"
        )
        return "full"
    mistakes += unknown_keys(value, ("fraction", "resolution"), "design.")
    try:
        share = fractions.Fraction(str(value.get("fraction")))
    except (ValueError, ZeroDivisionError):
        share = fractions.Fraction(0)
    halvings = share.denominator.bit_length() - 1
    if share != fractions.Fraction(1, 2**halvings) or not halvings:
        mistakes.append(f"design.fraction: expected 1/2, 1/4, 1/8 and so on, not {value.get('fraction')!r}")
    resolution = str(value.get("resolution"))
    if resolution not in ROMAN:
        mistakes.append(
            f"design.resolution: expected one of {', '.join(ROMAN)}, not {value.get('resolution')!r}"
        )
    return Fraction(halvings, ROMAN.get(resolution, 3))


def stated_arms(
    value: object, factors: Sequence[Factor], mistakes: list[str]
) -> list[tuple[str, dict[str, str]]]:
    """Arms that are listed: name, and factor -> level."""
    if not isinstance(value, list):
        mistakes.append(f"arms: expected a list of mappings of factors to levels, not {value!r}")
        return []
    arms = []
    for number, item in enumerate(value):
        where = f"arms[{number}]"
        given = dict(item) if isinstance(item, Mapping) else item
        name = given.pop("name", None) if isinstance(given, dict) else None
        before = len(mistakes)
        if name is not None and not re.fullmatch(r"[A-Za-z]\w*", str(name), re.ASCII):
            mistakes.append(f"{where}.name: expected a letter, then letters, digits and '_', not {name!r}")
        levels = {key: one[0] for key, one in one_level(given, where, factors, mistakes).items()}
        if len(mistakes) > before:
            continue
        for factor in factors:
            needed = holds(factor.when, levels)
            if needed and factor.name not in levels:
                mistakes.append(f"{where}: no level of {factor.name}; have {', '.join(factor.levels)}")
            if factor.name in levels and not needed:
                mistakes.append(f"{where}: {factor.name}, though its condition does not hold")
        ordered = {one.name: levels[one.name] for one in factors if one.name in levels}
        arms.append((str(name or "-".join(ordered.values())), ordered))
    return arms


def exclusions(
    value: object, factors: Sequence[Factor], mistakes: list[str]
) -> list[dict[str, tuple[str, ...]]]:
    """Conditions on factors; arms of the design that meet one are left out."""
    if not isinstance(value, list):
        mistakes.append(f"exclude: expected a list of mappings of factors to levels, not {value!r}")
        return []
    return [condition_of(item, f"exclude[{number}]", factors, mistakes) for number, item in enumerate(value)]


def chosen_arms(
    factors: Sequence[Factor],
    design: str | Fraction,
    stated: Sequence[tuple[str, dict[str, str]]],
    excluded: Sequence[Mapping[str, Sequence[str]]],
    mistakes: list[str],
) -> list[tuple[str, dict[str, str]]]:
    """Name and levels of every arm: of the design, less what is excluded, and of the list."""
    try:
        fraction = design if isinstance(design, Fraction) else None
        designed = [] if design == "none" else factorial(factors, fraction)
    except LabError as error:
        mistakes.append(str(error))
        return []
    mistakes += [
        f"exclude[{number}]: matches no arm of the design"
        for number, condition in enumerate(excluded)
        if not any(holds(condition, levels) for levels in designed)
    ]
    kept = [levels for levels in designed if not any(holds(condition, levels) for condition in excluded)]
    arms = [("-".join(levels.values()), levels) for levels in kept]
    for number, (name, levels) in enumerate(stated):
        same = next((other for other, given in arms if given == levels), None)
        if same is not None:
            mistakes.append(f"arms[{number}]: '{same}' is the same arm")
        elif name in dict(arms):
            mistakes.append(f"arms[{number}].name: '{name}' is another arm's name")
        arms.append((name, levels))
    if not arms:
        mistakes.append("exclude: leaves no arm" if designed else "arms: there are none, and design is none")
        return []
    for factor in factors:
        found = {levels[factor.name] for _, levels in arms if factor.name in levels}
        if len(found) < min(2, len(factor.levels)):  # of one level it is said on purpose
            always = f"; it is always '{found.pop()}'" if found else ""
            mistakes.append(f"factors.{factor.name}: no arm varies it{always}")
    return arms
