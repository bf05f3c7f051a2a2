"""The grammar of mixes: which sources a stage draws from, and how much of each (docs/mixes.md).

    mixes:
      plain: {caption: 1, vqa: 3}          # weights, normalised to shares of samples
      rich:
        count: tokens                      # shares of tokens instead
        temperature: 2                     # weights times size^(1/2)
        curve: steps                       # a weight stays as it is up to the next point; linear: moves there
        of:
          caption: {0%: 4, 30%: 1}         # a weight over the share of training
          llava: {weight: 3, epochs: 2, rows: 50000} # at most two passes over at most 50 000 different rows
          questions: {weight: 5, of: {vqa: 1, gqa: 2}} # a group: its weight is divided among its members

A mapping that has `of` is a mix or a group with settings, any other one is weights, so that `of` is the one
word that no task and no data set may have. A list of names in place of weights gives each the weight 1.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NewType, TypeGuard

from lab.errors import LabError, nearest

MixTree = NewType("MixTree", dict[str, Any])  # a mix as it is stated, numbers as floats

COUNTS = ("samples", "tokens")
CURVES = ("linear", "steps")
_OF_MIX = ("of", "count", "temperature", "curve")
_OF_PART = ("weight", "epochs", "rows", "of", "temperature")
_NAME = re.compile(r"[A-Za-z]\w*(?:[./-]\w+)*", re.ASCII)
_POINT = re.compile(r"(\d+(?:\.\d+)?)%")


@dataclass(frozen=True)
class Part:
    """An entry of a mix: a source, or a group of them.

    Attributes:
        name: of the source, or of the group.
        points: (share of training, weight) in order; before the first and after the last, theirs hold.
        epochs: passes over its rows, at most.
        rows: different rows, at most.
        members: of a group, none of a source.
        temperature: of a group, None where sizes do not matter.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    epochs: float = math.inf
    rows: int | None = None
    members: tuple[Part, ...] = ()
    temperature: float | None = None

    def sources(self) -> Iterator[Part]:
        """The sources in it, itself if it is one."""
        if not self.members:
            yield self
        for member in self.members:
            yield from member.sources()

    def size(self, rows: Mapping[str, int]) -> int:
        """Different rows that it has to give."""
        if self.members:
            return sum(member.size(rows) for member in self.members)
        return rows[self.name] if self.rows is None else min(self.rows, rows[self.name])

    def weight(self, share: float, steps: bool) -> float:
        """Its weight after a share of training."""
        index = bisect_right(self.points, (share, math.inf))
        (since, weight), (until, following) = (
            self.points[max(0, index - 1)],
            self.points[min(index, len(self.points) - 1)],
        )
        if steps or until <= since:
            return weight
        return weight + (following - weight) * min(1.0, max(0.0, (share - since) / (until - since)))


@dataclass(frozen=True)
class Mix:
    """A mix that is well-formed.

    Attributes:
        parts: in the order of the file.
        count: what shares are shares of, samples or tokens.
        temperature: None where sizes do not matter.
        curve: how a weight gets from one point to the next, linear or steps.
    """

    parts: tuple[Part, ...]
    count: str = "samples"
    temperature: float | None = None
    curve: str = "linear"
    points: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        found = {share for part in self._all(self.parts) for share, _ in part.points}
        object.__setattr__(self, "points", tuple(sorted({0.0, *found})))

    def sources(self) -> list[Part]:
        """Every source in it."""
        return [source for part in self.parts for source in part.sources()]

    @property
    def changes(self) -> bool:
        """Whether a weight moves in the course of training."""
        return any(len(part.points) > 1 for part in self._all(self.parts))

    @property
    def planned(self) -> bool:
        """Whether what sample number j is depends on how many there are: weights move, or sources run out."""
        return self.changes or any(source.epochs < math.inf for source in self.sources())

    def weights(self, share: float, rows: Mapping[str, int]) -> dict[str, float]:
        """Source -> weight after a share of training.

        Args:
            share: 0 to 1.
            rows: source -> rows of it.
        """
        return dict(self._divided(self.parts, 1.0, self.temperature, share, rows, normalise=False))

    def ever(self) -> list[str]:
        """Sources that are drawn from at some time."""
        rows = dict.fromkeys((source.name for source in self.sources()), 1)
        found = [self.weights(share, rows) for share in self.points]
        return [name for name in rows if any(weights[name] > 0 for weights in found)]

    def _divided(
        self,
        parts: Sequence[Part],
        whole: float,
        temperature: float | None,
        share: float,
        rows: Mapping[str, int],
        normalise: bool,
    ) -> Iterator[tuple[str, float]]:
        weights = [part.weight(share, self.curve == "steps") for part in parts]
        if temperature is not None:
            sizes = [part.size(rows) for part in parts]
            weights = [
                weight * size ** (1 / temperature) for weight, size in zip(weights, sizes, strict=True)
            ]
        total = sum(weights) if normalise else 1.0
        for part, weight in zip(parts, weights, strict=True):
            own = whole * weight / total if total > 0 else 0.0
            if part.members:
                yield from self._divided(part.members, own, part.temperature, share, rows, normalise=True)
            else:
                yield part.name, own

    def _all(self, parts: Sequence[Part]) -> Iterator[Part]:
        for part in parts:
            yield part
            yield from self._all(part.members)


def parse(tree: Mapping[str, Any], where: str = "mix") -> Mix:
    """A mix from its statement.

    Raises:
        LabError: naming every mistake at once.
    """
    mistakes: list[str] = []
    mix = read(tree, where, mistakes)
    if mix is None:
        raise LabError("; ".join(mistakes))
    return mix


def stated(tree: object, where: str, mistakes: list[str]) -> MixTree | None:
    """A mix as it is written in params.yaml, whole numbers that stand for weights as floats.

    None where there are mistakes, which are appended, all of them.
    """
    if read(tree, where, mistakes) is None or not isinstance(tree, Mapping):
        return None
    return MixTree(_floats(tree))


def read(tree: object, where: str, mistakes: list[str]) -> Mix | None:
    """A mix from its statement, None where there are mistakes, which are appended, all of them."""
    before = len(mistakes)
    settings, inner, place = {}, tree, where
    if isinstance(tree, Mapping) and "of" in tree:
        mistakes += [
            f"unknown key '{where}.{key}'{nearest(str(key), _OF_MIX)}" for key in tree if key not in _OF_MIX
        ]
        settings, inner, place = dict(tree), tree["of"], f"{where}.of"
    elif isinstance(tree, Mapping) and (lost := [key for key in _OF_MIX if key in tree]):
        mistakes.append(
            f"{where}: {' and '.join(lost)} without 'of'; weights beside settings stand below 'of'"
        )
        return None
    parts = _parts(inner, place, mistakes)
    for key, valid in (("count", COUNTS), ("curve", CURVES)):
        if (word := settings.get(key, valid[0])) not in valid:
            mistakes.append(f"{where}.{key}: no '{word}'{nearest(str(word), valid)}")
    temperature = _positive(settings, "temperature", where, mistakes)
    names = [source.name for part in parts for source in part.sources()]
    mistakes += [f"{where}: '{name}' twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    if len(mistakes) > before:
        return None
    mix = Mix(
        tuple(parts),
        settings.get("count", COUNTS[0]),
        temperature,
        settings.get("curve", CURVES[0]),
    )
    ones = dict.fromkeys(names, 1)
    mistakes += [
        f"{where}: all weights are 0{f' at {share:.0%} of training' if share or mix.changes else ''}; "
        "at least one source needs a positive weight"
        for share in mix.points
        if sum(mix.weights(share, ones).values()) <= 0
    ]
    return mix if len(mistakes) == before else None


def _parts(tree: object, where: str, mistakes: list[str]) -> list[Part]:
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        tree = {name: 1.0 for name in tree}
    if not isinstance(tree, Mapping):
        mistakes.append(f"{where}: expected weights by the names of sources, not {tree!r}")
        return []
    found = []
    for name, entry in ((str(name), entry) for name, entry in tree.items()):
        if name == "of" or not _NAME.fullmatch(name):
            mistakes.append(
                f"{where}: '{name}' is no name of a source: a letter, then letters, digits and '_'"
            )
        elif (part := _part(name, entry, f"{where}.{name}", mistakes)) is not None:
            found.append(part)
    return found


def _part(name: str, entry: object, where: str, mistakes: list[str]) -> Part | None:
    if not isinstance(entry, Mapping) or _is_curve(entry):
        points = _points(entry, where, mistakes)
        return Part(name, points) if points else None
    before = len(mistakes)
    mistakes += [
        f"unknown key '{where}.{key}'{nearest(str(key), _OF_PART)}" for key in entry if key not in _OF_PART
    ]
    points = _points(entry.get("weight", 1.0), f"{where}.weight", mistakes)
    epochs = _positive(entry, "epochs", where, mistakes)
    rows = _positive(entry, "rows", where, mistakes)
    temperature = _positive(entry, "temperature", where, mistakes)
    if rows is not None and rows != int(rows):
        mistakes.append(f"'{where}.rows' must be a whole number, not {rows}")
    members = _parts(entry["of"], f"{where}.of", mistakes) if "of" in entry else []
    if "of" in entry:
        mistakes += [
            f"{where}.{key}: of a group; state it for its members"
            for key in ("epochs", "rows")
            if key in entry
        ]
        if not members and len(mistakes) == before:
            mistakes.append(f"{where}.of: a group needs at least one member")
    elif "temperature" in entry:
        mistakes.append(f"{where}.temperature: of a source alone; it is for groups and whole mixes")
    if len(mistakes) > before:
        return None
    return Part(
        name,
        points,
        math.inf if epochs is None else epochs,
        None if rows is None else int(rows),
        tuple(members),
        temperature,
    )


def _is_curve(entry: Mapping[Any, Any]) -> bool:
    return bool(entry) and all(_POINT.fullmatch(str(key)) for key in entry)


def _points(entry: object, where: str, mistakes: list[str]) -> tuple[tuple[float, float], ...]:
    """(share of training, weight) in order; none where there are mistakes."""
    curve = entry if isinstance(entry, Mapping) else {"0%": entry}
    found = []
    for key, weight in curve.items():
        place = f"{where}.{key}" if isinstance(entry, Mapping) else where
        match = _POINT.fullmatch(str(key))
        if match is None or float(match[1]) > 100:
            mistakes.append(f"{place}: a point of a weight is a share of training, such as 30%")
        elif not _is_number(weight) or not 0 <= weight < math.inf:
            mistakes.append(f"'{place}' must be a weight, a number of at least 0, not {weight!r}")
        else:
            found.append((float(match[1]) / 100, float(weight)))
    if not curve:
        mistakes.append(f"{where}: expected a weight, or weights by shares of training, such as 30%")
    if len({share for share, _ in found}) < len(found):
        mistakes.append(f"{where}: a share of training twice")
    return tuple(sorted(found)) if len(found) == len(curve) else ()


def _positive(tree: Mapping[str, Any], key: str, where: str, mistakes: list[str]) -> float | None:
    value = tree.get(key)
    if value is not None and (not _is_number(value) or not 0 < value < math.inf):
        mistakes.append(f"'{where}.{key}' must be a number above 0, not {value!r}")
        return None
    return None if value is None else float(value)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _floats(value: Any, key: str = "") -> Any:
    """The statement with its numbers as floats; `rows` counts."""
    if isinstance(value, Mapping):
        return {str(name): _floats(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [str(item) for item in value]
    return float(value) if _is_number(value) and key != "rows" else value
