"""Factors of an ablation: their levels, what each level sets, and the parameters of an arm that has them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

from lab.config import WORDS, Params, assign, tree_of
from lab.errors import LabError, nearest
from lab.graph.amounts import STEPS, amounts_of, is_amount, pour
from lab.graph.design import Factor, parents_first, reachable
from lab.registry import words

# What a declaration may not set, and what to write instead; `set` may add mixes and choose seed and threads.
FIXED = {
    "name": "the folder names an ablation",
    "root": "the folder tells it",
    "system": "an ablation's arms are no published system",
    "connectors": "write connector",
    "trainer": "resources says where a stage runs",
}
SHARED = {
    **FIXED,
    "mixes": "write mix, or mix.TASK for a weight in the arm's mix",
    "seed": "seeds lists them",
    "threads": "no number follows from them",
}


class Setting(NamedTuple):
    """One value that an arm's parameters get: by a factor's level, or by `set` (both "" then)."""

    key: str
    value: Any
    where: str
    factor: str = ""
    level: str = ""


def unknown_keys(tree: Mapping[Any, Any], known: Iterable[str], where: str) -> list[str]:
    """Complains of each key that is none of those known, which are named after `where`."""
    valid = list(known)
    return [f"unknown key '{where}{key}'{nearest(str(key), valid)}" for key in tree if key not in valid]


def settings_of(value: object, where: str, fixed: Mapping[str, str], mistakes: list[str]) -> dict[str, Any]:
    """Dotted key -> value, as `set` and levels state them."""
    if not isinstance(value, Mapping):
        mistakes.append(f"{where}: expected a mapping of dotted keys, not {value!r}")
        return {}
    found: dict[str, Any] = {}
    for key, item in ((str(key), item) for key, item in value.items()):
        head = key.partition(".")[0]
        part = of_part(key) or head == "settings"
        if head in fixed:
            mistakes.append(f"{where}: '{key}' cannot be set here: {fixed[head]}")
        elif isinstance(item, Mapping) and not part and not _is_whole(key):
            within = next(iter(item), "...")
            mistakes.append(f"{where}: '{key}' takes no mapping; write '{key}.{within}' and so on")
        else:
            found[key] = item
    return found


def of_part(key: str) -> bool:
    """Whether a key is a setting of the part that an arm has in a role, such as `connector.num_queries`."""
    head, _, rest = key.partition(".")
    return head in WORDS and bool(rest)


def _is_whole(key: str) -> bool:
    """Whether a mapping is one value of this key."""
    return key.rpartition(".")[2] in ("mix", "losses") or key.startswith("mix.")


def read_factors(
    value: object, base: Params | None, mistakes: list[str]
) -> tuple[list[Factor], dict[tuple[str, str], dict[str, Any]]]:
    """Factors, and what each of their levels sets: (factor, level) -> dotted key -> value."""
    if not isinstance(value, Mapping) or not value:
        mistakes.append(f"factors: expected a mapping of names to levels, not {value!r}")
        return [], {}
    settings: dict[tuple[str, str], dict[str, Any]] = {}
    bare: list[Factor] = []
    conditions: dict[str, object] = {}
    for name, declared in ((str(name), declared) for name, declared in value.items()):
        where = f"factors.{name}"
        if not re.fullmatch(r"[A-Za-z][\w.]*", name, re.ASCII) or name == "name":
            mistakes.append(f"{where}: a factor's name is of letters, digits, '_' and '.', and not 'name'")
        spread: Mapping[Any, Any] = {"levels": declared}
        counted = isinstance(declared, Mapping) and isinstance(declared.get("samples"), list)
        if isinstance(declared, Mapping) and (counted or {"key", "levels", "when"} & declared.keys()):
            spread = declared
            known = ("samples", "tasks", "when") if counted else ("key", "levels", "when")
            mistakes += unknown_keys(declared, known, f"{where}.")
        key = spread.get("key", name)
        if not isinstance(key, str):
            mistakes.append(f"{where}.key: expected a dotted key, not {key!r}")
            key = name
        conditions[name] = spread.get("when", {})
        if counted:
            own = amounts_of(name, spread, where, mistakes)
        else:
            own = _levels(spread.get("levels"), where, key, mistakes)
        refused = _no_parameter(key, where, base) if any(key in sets for sets in own.values()) else []
        mistakes += refused
        for level, sets in own.items():
            other = next((factor.name for factor in bare if level in factor.levels), None)
            if other is not None:
                mistakes.append(f"{where}: level '{level}' is one of {other} too; names of levels are unique")
            stated = {one: item for one, item in sets.items() if one != key or not refused}
            settings[name, level] = (
                stated if counted else settings_of(stated, f"{where}.{level}", SHARED, mistakes)
            )
        bare.append(Factor(name, tuple(own), {}))
    before = len(mistakes)
    factors = [
        Factor(
            one.name,
            one.levels,
            condition_of(conditions.get(one.name, {}), f"factors.{one.name}.when", bare, mistakes),
        )
        for one in bare
    ]
    if len(mistakes) == before:
        try:
            parents_first(factors)
        except LabError as error:
            mistakes.append(str(error))
        mistakes += [
            f"factors.{one.name}.when: never holds" for one in factors if not reachable(one, factors)
        ]
    return factors, settings


def _no_parameter(key: str, where: str, base: Params | None) -> list[str]:
    """Complains of a factor's key that no level can set."""
    head = key.partition(".")[0]
    if head in SHARED:
        return [f"{where}: '{key}' cannot be set here: {SHARED[head]}"]
    heads = {*WORDS, "mix", *(tree_of(base) if base else ())} - SHARED.keys()
    if base is None or head in heads:
        return []
    return [
        f"{where}: '{key}' is no parameter; name one with `key`, or let levels map parameters to values"
        f"{nearest(key, heads)}"
    ]


def _levels(value: object, where: str, key: str, mistakes: list[str]) -> dict[str, dict[Any, Any]]:
    """Level -> what it sets, which is the factor's key where it is one value."""
    found: dict[str, dict[Any, Any]] = {}
    if isinstance(value, Mapping):
        for level, sets in value.items():
            whole = not isinstance(sets, Mapping) or _is_whole(key)
            found[str(level)] = {key: sets} if whole else dict(sets)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, (Mapping, list)):
                mistakes.append(
                    f"{where}: {item!r} has no name; write levels as a mapping of names to values"
                )
                continue
            level = _named(key, item)
            if level in found:
                mistakes.append(f"{where}: level '{level}' twice")
            found[level] = {key: item}
    if not value or not isinstance(value, (Mapping, list)):
        mistakes.append(f"{where}: expected a list or a mapping of levels, not {value!r}")
    for level in found:
        if not re.fullmatch(r"[A-Za-z]\w*", level, re.ASCII):
            mistakes.append(
                f"{where}: level '{level}' is to be a letter, then letters, digits and '_'; a mapping of "
                "names to values gives it another name"
            )
        elif re.fullmatch(r"s\d+|all|true|false|null", level):
            mistakes.append(f"{where}: level '{level}' means something else in a node's name; choose another")
    return found


def _named(key: str, value: object) -> str:
    """The name of a level that is a value alone: a word is its own, a number gets the key's last part."""
    if isinstance(value, str):
        return value
    last = key.rpartition(".")[2]
    if value is None:
        return f"no_{last}"
    if isinstance(value, bool):
        return f"{last}_{str(value).lower()}"
    return last + f"{value:.12g}".replace("+", "").replace("-", "m").replace(".", "_")


def condition_of(
    value: object, where: str, factors: Sequence[Factor], mistakes: list[str]
) -> dict[str, tuple[str, ...]]:
    """Factor -> levels of the arms that a condition speaks of."""
    if not isinstance(value, Mapping):
        mistakes.append(f"{where}: expected a mapping of factors to levels, not {value!r}")
        return {}
    known = {factor.name: factor for factor in factors}
    found = {}
    for name, given in ((str(name), given) for name, given in value.items()):
        if name not in known:
            mistakes.append(f"{where}: no factor '{name}'{nearest(name, known)}")
            continue
        levels = tuple(str(level) for level in (given if isinstance(given, list) else [given]))
        mistakes += [
            f"{where}: {name} has no level '{level}'{nearest(level, known[name].levels)}"
            for level in levels
            if level not in known[name].levels
        ]
        found[name] = levels
    return found


def one_level(
    value: object, where: str, factors: Sequence[Factor], mistakes: list[str]
) -> dict[str, tuple[str, ...]]:
    """A condition of one level a factor."""
    items = value.items() if isinstance(value, Mapping) else ()
    several = [key for key, given in items if isinstance(given, list)]
    mistakes += [f"{where}: one level of {key}, not a list" for key in several]
    return {} if several else condition_of(value, where, factors, mistakes)


def apply(
    origin: Mapping[str, Any], settings: Sequence[Setting], mistakes: list[str]
) -> tuple[dict[str, Any], list[str]]:
    """An arm's tree of parameters, and what each setting is called there.

    Mixes that `set` adds come first, then words and the mix, then the settings of these and all else.
    """
    tree: dict[str, Any] = deepcopy(dict(origin))
    tree["connectors"] = tree["connectors"][:1]
    mixes: dict[str, dict[str, Any]] = {}

    def rank(one: Setting) -> int:
        if one.key.startswith("mixes."):
            return 0
        return 1 if one.key in (*WORDS, "mix") else 2 + one.key.count(".")

    for one in sorted((one for one in settings if not is_amount(one.key)), key=rank):
        if rank(one) and not mixes:  # all of them are known now
            mixes, first = tree["mixes"], next(iter(tree["mixes"]))
            tree["mixes"] = {first: dict(mixes[first])}
        only = next(iter(tree["mixes"]))
        try:
            if one.key == "mix" and isinstance(one.value, Mapping):
                tree["mixes"] = {one.level or only: dict(one.value)}
            elif one.key == "mix":
                if not isinstance(one.value, str) or one.value not in mixes:
                    raise LabError(f"{one.where}: no mix '{one.value}'{nearest(str(one.value), mixes)}")
                tree["mixes"] = {one.level or one.value: dict(mixes[one.value])}
            else:
                assign(tree, one.key, one.value, one.where)
                key, word = one.key, one.value
                if key in WORDS and isinstance(word, str) and word not in (have := words(key)):
                    raise LabError(f"{one.where}: no {key} '{word}'{nearest(word, have)}")
        except LabError as error:
            mistakes.append(str(error))
    tree["mixes"] = dict(list(tree["mixes"].items())[:1])
    if amounts := {one.where: one.value for one in settings if is_amount(one.key)}:
        pour(tree, amounts, mistakes)
    return tree, [_spelt_out(one.key, tree) for one in settings]


def _spelt_out(key: str, tree: Mapping[str, Any]) -> str:
    """The key of a setting of a part, with the word that the part has in this arm."""
    head, _, rest = key.partition(".")
    if not of_part(key):
        return key
    return f"settings.{head}.{tree['connectors'][0] if head == 'connector' else tree[head]}.{rest}"


def touched_by(
    own: Mapping[str, str],
    settings: Sequence[Setting],
    keys: Sequence[str],
    bounded: Collection[str],
    mistakes: list[str],
) -> dict[str, frozenset[str]]:
    """Factor -> keys that its level sets; no two factors may set one, nor anything what the budget bounds."""
    touched: dict[str, set[str]] = {factor: set() for factor in own}
    setters: dict[str, str] = {}
    amounts = [one.factor for one in settings if is_amount(one.key)]
    for one, key in zip(settings, keys, strict=True):
        mixed = key == "mix" or key.startswith("mix.")
        if key in bounded or (is_amount(key) and STEPS in bounded):
            mistakes.append(f"{one.where}: sets '{key}', which follows from the budget")
        if amounts and (mixed or key == STEPS):
            mistakes.append(f"{one.where}: sets '{key}', which follows from the samples of {amounts[0]}")
        if not one.factor:
            continue
        touched[one.factor] |= {"mix", STEPS} if is_amount(key) else {"mix" if mixed else key}
        other = setters.setdefault(key, one.factor)
        if other != one.factor:
            mistakes.append(f"factors.{other} and factors.{one.factor} both set '{key}'")
    return {factor: frozenset(found) for factor, found in touched.items()}
