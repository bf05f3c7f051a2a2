"""Dotted `key=value`: values given to keys of a parameter tree before it is checked."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from lab.config.words import WORDS
from lab.errors import LabError, nearest


def overridden(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The tree with dotted `key=value` overrides applied to it, in place, as `read_tree` says.

    Raises:
        LabError: an override without `=` or of an unknown key.
    """
    for override in sorted(overrides, key=_rank):
        apply_override(tree, override)
    return tree


def _rank(override: str) -> int:
    """Words before settings: `connector.dim=8 connector=mlp` sets the MLP's; `mix` after what adds mixes.

    Weights of the mix come last, when it is known which it is.
    """
    key = override.partition("=")[0]
    return 0 if key in WORDS else 3 if key.startswith("mix.") else 2 if key == "mix" else 1


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Applies one dotted `key=value` to a parameter tree.

    Raises:
        LabError: no `=`, or an unknown key.
    """
    from yaml import YAMLError, safe_load

    key, equals, text = override.partition("=")
    if not equals or not key:
        raise LabError(f"override '{override}': expected key=value")
    try:
        value = safe_load(text)
    except YAMLError as error:
        raise LabError(f"override '{override}': {' '.join(str(error).split())}") from error
    if isinstance(value, str):
        with suppress(ValueError):  # YAML reads 1e-3 as text
            value = float(value) if any(letter.isdigit() for letter in value) else value
    assign(tree, key, value, f"override '{override}'")


def assign(tree: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Gives one dotted key of a parameter tree a value.

    As in `read_tree`: `connector` and `mix` stand for lists of one, `connector.num_queries` for a setting of
    the chosen connector; likewise for other roles, and `mix.vqa` for a weight in the first mix.

    Args:
        tree: changed in place.
        key, value: what to set.
        where: begins messages.

    Raises:
        LabError: an unknown key, or a setting of a part that there is none of.
    """
    head, *rest = key.split(".")
    connectors, mixes = tree.get("connectors"), tree.get("mixes")
    if head in WORDS and rest:
        word = (connectors or [""])[0] if head == "connector" else tree.get(head)
        if not isinstance(word, str):
            raise LabError(f"{where}: {key}, but there is no {head}")
        tree.setdefault("settings", {}).setdefault(head, {}).setdefault(word, {})[".".join(rest)] = value
        return
    if key == "connector":
        tree["connectors"] = [value]
        return
    if key == "mix":
        if not isinstance(mixes, dict) or not isinstance(value, str) or value not in mixes:
            raise LabError(f"{where}: no mix '{value}'{nearest(str(value), map(str, mixes or ()))}")
        tree["mixes"] = {value: mixes[value]}
        return
    if head == "mix" and isinstance(mixes, dict) and mixes:
        head, rest = "mixes", [next(iter(mixes)), *rest]
    if head == "vocabulary" or (head in ("trainer", "datasets") and rest):
        tree.setdefault(head, {})
    place, passed = tree, ""
    for part in [head, *rest][:-1]:
        place, passed = _step(place, part, passed, where), f"{passed}{part}."
    last = [head, *rest][-1]
    if last not in place and not _open(passed):
        raise LabError(f"{where}: unknown key '{key}'{nearest(last, map(str, place))}")
    place[last] = value


def _step(place: Any, part: str, passed: str, where: str) -> dict[str, Any]:
    if part not in place and _open(passed):
        place[part] = {}
    if not isinstance(place.get(part), dict):
        raise LabError(f"{where}: unknown key '{passed}{part}'{nearest(part, map(str, place))}")
    return dict.__getitem__(place, part)


def _open(passed: str) -> bool:
    """Whether a mapping takes keys that the file does not have yet."""
    whole = ("mixes.", "settings.", "trainer.", "datasets.")
    return passed.startswith(whole) or passed.endswith((".mix.", ".learning_rate."))
