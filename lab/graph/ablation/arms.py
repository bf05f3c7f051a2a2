"""The parameters of every arm, as its levels make them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lab.config import Params, examine, tree_of
from lab.graph.ablation.budget import budgeted, limit, whole_batches
from lab.graph.ablation.declaration import Budget, Draft
from lab.graph.levels import Setting, apply, of_part, touched_by
from lab.graph.stages import data_sets_of


def drafts_of(
    name: str,
    base: Params,
    common: Mapping[str, Any],
    levels: Mapping[tuple[str, str], Mapping[str, Any]],
    chosen: Sequence[tuple[str, dict[str, str]]],
    budget: Budget | None,
    mistakes: list[str],
) -> list[Draft]:
    """The arms with their parameters; mistakes that several arms share are reported once."""
    origin = tree_of(base) | {"name": name, "system": ""}
    wrong: dict[str, list[str]] = {}
    batches: set[int] = set()
    drafts = []
    shared = [Setting(key, value, "set") for key, value in common.items()]
    by_level = {
        (factor, level): [Setting(*item, f"factors.{factor}.{level}", factor, level) for item in sets.items()]
        for (factor, level), sets in levels.items()
    }
    if not chosen:  # what can be told without arms, all but settings of parts, which need the arm's word
        everything = [*shared, *(one for settings in by_level.values() for one in settings)]
        apply(origin, [one for one in everything if not of_part(one.key)], mistakes)
    for arm, own in chosen:
        settings = [*shared, *(one for item in own.items() for one in by_level[item])]
        plain: list[str] = []
        tree, keys = apply(origin, settings, plain)
        bounded = {f"stages.{name}.steps" for name in budgeted(tree, budget)}
        touched = touched_by(own, settings, keys, bounded, plain)
        mistakes += plain
        batches |= limit(tree, budget)
        params, found = examine(tree)
        said = {mistake.partition(": ")[2] for mistake in plain}  # unknown words, with their level
        for mistake in found:
            if mistake.partition(": ")[2] not in said:
                wrong.setdefault(mistake, []).append(arm)
        recipe = tree["recipe"] if isinstance(tree["recipe"], list) else []
        drafts.append(Draft(arm, own, recipe, params if not plain else None, touched))
    for mistake, arms in wrong.items():
        others = f" and {len(arms) - 1} more" if len(arms) > 1 else ""
        who = "every arm" if len(arms) == len(chosen) else f"arm {arms[0]}{others}"
        mistakes.append(f"{who}: {mistake}")
    if budget is not None and budget.unit == "samples" and batches:
        mistakes += whole_batches(int(budget.amount), batches)
    mistakes += _alike(drafts)
    return drafts


def spelt_alike(drafts: Sequence[Draft]) -> list[Draft]:
    """The arms with one vocabulary, so that they differ in what they see of a data set, not in its words."""
    named = {
        name
        for draft in drafts
        if draft.params
        for stage in draft.params.recipe
        for name in data_sets_of(draft.params, stage, {"mix": next(iter(draft.params.mixes))})
    }
    return [
        draft._replace(params=draft.params and replace(draft.params, vocabulary=sorted(named)))
        for draft in drafts
    ]


def _alike(drafts: Sequence[Draft]) -> list[str]:
    """Arms that differ in nothing that any stage reads."""
    groups: dict[str, list[str]] = {}
    for draft in drafts:
        if draft.params is not None:
            groups.setdefault(_content(draft.params), []).append(draft.name)
    alike = [group for group in groups.values() if len(group) > 1]
    if not alike:
        return []
    more = f" (and {len(alike) - 1} more such groups)" if len(alike) > 1 else ""
    return [
        f"arms {' and '.join(alike[0])}{more} are the same in all that is read; leave out all but one, or "
        "let a factor exist only where it has a use (`when`)"
    ]


def _content(params: Params) -> str:
    tree = tree_of(params)
    parts = {**params.words(), "connector": params.connectors[0]}
    content = {
        "parts": {role: params.spec(role, word) for role, word in parts.items()},
        "mix": list(tree["mixes"].values()),
        "stages": {
            name: section
            for name, section in tree["stages"].items()
            if name in params.recipe or name == "features"
        },
        **{key: tree[key] for key in ("world", "data", "judge", "targets", "recipe")},
    }
    return json.dumps(content, sort_keys=True)
