"""What a sweep varies: numbers, words, and mixes as points on a simplex; each may exist under conditions.

A mix of k parts is drawn by breaking a stick: k - 1 numbers between 0 and 1 that know nothing of each other,
of which the i-th says how much of what is left its part takes, on the scale on which all mixes are equally
likely. So every sampler takes it, none has to know of the sum, and two parts are one number: the first share.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lab.errors import nearest

if TYPE_CHECKING:
    from optuna import Trial

KINDS = ("choices", "log", "float", "int", "simplex")
SWEPT = "swept"  # how a mix that a trial draws is called
_RANGES = {"log": float, "float": float, "int": int}
_DECIMALS = 4  # of a task's share; training keeps shares to 1/256


@dataclass(frozen=True)
class Dimension:
    """One dimension of the space, or several that make a mix.

    Attributes:
        key: what it sets, as in `lab train KEY=VALUE`.
        kind: one of KINDS.
        values: the choices, or lower and upper bound; names of the parts of a mix.
        when: earlier dimensions and the values under which this one exists.
        parts: of a mix: part -> task -> its share of the part.
    """

    key: str
    kind: str
    values: tuple[Any, ...]
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def exists(self, chosen: Mapping[str, Any]) -> bool:
        """Whether it exists under what was chosen so far."""
        return all(key in chosen and chosen[key] in values for key, values in self.when.items())

    @property
    def names(self) -> tuple[str, ...]:
        """Its numbers, as the study calls them."""
        if self.kind != "simplex":
            return (self.key,)
        if len(self.values) == 2:
            return (f"{self.key}.{self.values[0]}",)
        return tuple(f"{self.key}.{part} of the rest" for part in self.values[:-1])

    @property
    def shown(self) -> tuple[str, ...]:
        """Keys of `chosen` that say all: of two shares the first, as the other follows."""
        if self.kind != "simplex":
            return (self.key,)
        parts = self.values[:1] if len(self.values) == 2 else self.values
        return tuple(f"{self.key}.{part}" for part in parts)

    def draw(self, trial: Trial) -> tuple[Any, ...]:
        """What the study's sampler gives for its numbers."""
        if self.kind == "choices":
            return (trial.suggest_categorical(self.key, self.values),)
        if self.kind == "int":
            return (trial.suggest_int(self.key, *self.values),)
        if self.kind == "simplex":
            return tuple(trial.suggest_float(name, 0.0, 1.0) for name in self.names)
        return (trial.suggest_float(self.key, *self.values, log=self.kind == "log"),)

    def chosen(self, drawn: Sequence[Any]) -> dict[str, Any]:
        """Its numbers as a person reads them: the key's value, or the share of every part."""
        if self.kind != "simplex":
            return {self.key: drawn[0]}
        shares = broken_stick(drawn)
        return {f"{self.key}.{part}": share for part, share in zip(self.values, shares, strict=True)}

    def settings(self, drawn: Sequence[Any]) -> dict[str, Any]:
        """Its numbers as `lab train` takes them."""
        if self.kind != "simplex":
            return {self.key: drawn[0]}
        tasks: dict[str, float] = {}
        for part, share in zip(self.values, broken_stick(drawn), strict=True):
            for task, weight in self.parts[part].items():
                tasks[task] = tasks.get(task, 0.0) + share * weight
        mix = {task: round(weight, _DECIMALS) for task, weight in tasks.items()}
        return {f"mixes.{SWEPT}": mix, "mix": SWEPT} if self.key == "mix" else {self.key: mix}

    def corners(self) -> list[tuple[Any, ...]]:
        """Values that stand for all: every choice, both ends of a range, every part of a mix alone."""
        if self.kind != "simplex":
            return [(value,) for value in self.values]
        ends = [(0.0,) * place + (1.0,) * (len(self.names) - place) for place in range(len(self.values))]
        return [tuple(end) for end in ends]


def broken_stick(numbers: Sequence[float]) -> list[float]:
    """Shares of k parts from k - 1 numbers in [0, 1]; uniform on the simplex where these are uniform.

    The first of k parts that share a stick uniformly has the distribution function 1 - (1 - x)^(k - 1); its
    inverse gives the part, and what is left is broken likewise. The last number is the share itself.
    """
    shares, left = [], 1.0
    for place, number in enumerate(numbers):
        taken = left * (1.0 - (1.0 - number) ** (1.0 / (len(numbers) - place)))
        shares.append(taken)
        left -= taken
    return [*shares, max(left, 0.0)]


def read_space(tree: Any, mistakes: list[str]) -> tuple[Dimension, ...]:
    """The dimensions of a declaration's `space`; mistakes are appended."""
    space: dict[str, Dimension] = {}
    if not tree:
        mistakes.append("missing 'space': what is varied, such as connector: {choices: [linear, q_former]}")
    for key, entry in mapping(tree or {}, "space", mistakes).items():
        where = f"space.{key}"
        entry = mapping(entry, where, mistakes)
        mistakes += unknown(entry, (*KINDS, "when"), f"{where}: ")
        kinds = [kind for kind in KINDS if kind in entry]
        when = _when(entry.get("when", {}), space, where, mistakes)
        if len(kinds) != 1:
            mistakes.append(f"{where}: exactly one of {', '.join(KINDS)} is expected")
        elif kinds[0] == "simplex":
            if parts := _parts(str(key), entry["simplex"], where, mistakes):
                space[str(key)] = Dimension(str(key), "simplex", tuple(parts), when, parts)
        elif (values := _values(kinds[0], entry[kinds[0]], where, mistakes)) is not None:
            space[str(key)] = Dimension(str(key), kinds[0], values, when)
    return tuple(space.values())


def contexts(space: Sequence[Dimension], dimension: Dimension) -> dict[str, Any]:
    """Settings under which a dimension exists: the first value of everything that it depends on."""
    by_key = {one.key: one for one in space}
    found: dict[str, Any] = {}
    for key, values in dimension.when.items():
        found |= contexts(space, by_key[key])
        found[key] = values[0]
    return found


def grid(space: Sequence[Dimension]) -> Iterator[dict[str, Any]]:
    """Every point of a space of choices and whole numbers, as numbers of the study; the last varies first."""

    def below(place: int, drawn: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if place == len(space):
            yield drawn
            return
        dimension = space[place]
        if not dimension.exists(drawn):
            yield from below(place + 1, drawn)
            return
        whole = dimension.kind == "int"
        for value in range(dimension.values[0], dimension.values[1] + 1) if whole else dimension.values:
            yield from below(place + 1, {**drawn, dimension.key: value})

    yield from below(0, {})


def low_discrepancy(space: Sequence[Dimension], number: int, seed: int) -> dict[str, Any]:
    """Point `number` of a scrambled Sobol sequence over a space, as numbers of the study."""
    from scipy.stats.qmc import Sobol

    names = [name for dimension in space for name in dimension.names]
    sequence = Sobol(len(names), scramble=True, rng=seed)
    if number:
        sequence.fast_forward(number)
    at = dict(zip(names, sequence.random(1)[0].tolist(), strict=True))
    drawn: dict[str, Any] = {}
    for dimension in space:
        if dimension.exists(drawn):
            drawn |= {name: _scaled(dimension, at[name]) for name in dimension.names}
    return drawn


def _scaled(dimension: Dimension, at: float) -> Any:
    """The value at a place between 0 and 1 of a dimension."""
    if dimension.kind == "simplex":
        return at
    if dimension.kind == "choices":
        return dimension.values[min(int(at * len(dimension.values)), len(dimension.values) - 1)]
    low, high = dimension.values
    if dimension.kind == "int":
        return min(low + int(at * (high - low + 1)), high)
    value = low * (high / low) ** at if dimension.kind == "log" else low + at * (high - low)
    return min(max(value, low), high)


def _values(kind: str, stated: Any, where: str, mistakes: list[str]) -> tuple[Any, ...] | None:
    values = tuple(number(value) for value in stated) if isinstance(stated, list) else ()
    if fault := _fault(kind, values):
        mistakes.append(f"{where}: {fault}")
        return None
    cast = _RANGES.get(kind)
    return tuple(map(cast, values)) if cast else values


def _fault(kind: str, values: tuple[Any, ...]) -> str:
    if kind == "choices":
        plain = all(isinstance(value, str | int | float) for value in values)
        different = len({json.dumps(value) for value in values if plain}) == len(values)
        right = values and plain and different
        return "" if right else "choices: a list of different words or numbers is expected"
    numbers = [value for value in values if type(value) in (int, float)]
    if len(values) != 2 or len(numbers) != 2 or not values[0] < values[1]:
        return f"{kind}: [lowest, highest] is expected"
    if kind == "log" and values[0] <= 0:
        return "log: bounds above 0 are expected"
    if kind == "int" and any(type(value) is not int for value in values):
        return "int: whole bounds are expected"
    return ""


def _parts(key: str, stated: Any, where: str, mistakes: list[str]) -> dict[str, dict[str, float]]:
    """Of a mix: part -> task -> share of the part, from a list of tasks or from groups of weighted tasks."""
    if key != "mix" and not key.endswith(".mix"):
        mistakes.append(f"{where}: simplex is for mixes: mix, or stages.NAME.mix")
        return {}
    if isinstance(stated, list):
        stated = {str(task): {task: 1} for task in stated}
    if not isinstance(stated, Mapping) or len(stated) < 2:
        mistakes.append(
            f"{where}: simplex: a list of at least two tasks is expected, or groups of them, such as "
            "{understanding: {vqa: 7, caption: 1}, generation: {text_to_image: 1}}"
        )
        return {}
    parts: dict[str, dict[str, float]] = {}
    for name, group in stated.items():
        weights = group.values() if isinstance(group, Mapping) else ()
        if not weights or any(type(weight) not in (int, float) or not weight > 0 for weight in weights):
            mistakes.append(f"{where}: simplex.{name}: weights above 0 of tasks are expected, not {group!r}")
            continue
        parts[str(name)] = {str(task): weight / sum(weights) for task, weight in group.items()}
    return parts


def _when(
    tree: Any, space: Mapping[str, Dimension], where: str, mistakes: list[str]
) -> dict[str, tuple[Any, ...]]:
    when = {}
    earlier = {key: one.values for key, one in space.items() if one.kind == "choices"}
    for key, value in mapping(tree, f"{where}.when", mistakes).items():
        values = tuple(value) if isinstance(value, list) else (value,)
        if key not in earlier:
            hint = nearest(str(key), earlier)
            mistakes.append(f"{where}.when: '{key}' has no choices above this line{hint}")
            continue
        mistakes += [
            f"{where}.when: '{item}' is no choice of {key}{nearest(str(item), map(str, earlier[key]))}"
            for item in values
            if item not in earlier[key]
        ]
        when[str(key)] = values
    return when


def mapping(tree: Any, where: str, mistakes: list[str]) -> dict[Any, Any]:
    """A mapping as it is, anything else as a mistake and an empty one."""
    if isinstance(tree, dict):
        return tree
    mistakes.append(f"{where}: a mapping is expected, not {tree!r}")
    return {}


def unknown(tree: Mapping[Any, Any], valid: Sequence[str], where: str = "") -> list[str]:
    """A mistake for every key that there is not."""
    return [f"{where}unknown key '{key}'{nearest(str(key), valid)}" for key in tree if key not in valid]


def number(value: Any) -> Any:
    """YAML reads 1e-3 as text."""
    if isinstance(value, str) and value.lstrip("+-")[:1].isdigit():
        try:
            return float(value)
        except ValueError:
            return value
    return value
