"""Claim and metrics: whether arms have them, and for a claim someone to be compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from lab.config import Params
from lab.errors import nearest
from lab.graph.ablation.declaration import Claim, Draft
from lab.graph.design import Factor, holds
from lab.graph.levels import one_level, unknown_keys
from lab.reports.measures import MEASURES
from lab.samples.mix import parse

_GROUPS = ("understanding", "generation", "reconstruction")  # of metrics that an evaluation gives


def claim_of(
    value: object, factors: Sequence[Factor], drafts: Sequence[Draft], mistakes: list[str]
) -> Claim | None:
    """The claim as declared, None without one; arms have to have its metric and to be in pairs."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        mistakes.append(f"claim: expected a mapping of text, metric, higher and lower, not {value!r}")
        return None
    keys = ("text", "metric", "higher", "lower")
    mistakes += unknown_keys(value, (*keys, "margin"), "claim.")
    mistakes += [f"missing key 'claim.{key}'" for key in keys if key not in value]
    if "text" in value and (not isinstance(value["text"], str) or not value["text"].strip()):
        mistakes.append(f"claim.text: expected a sentence, not {value['text']!r}")
    metric = value.get("metric")
    if "metric" in value:
        mistakes += _wrong_metric(metric, "claim.metric")
    margin = value.get("margin", 0.0)
    if not isinstance(margin, (int, float)) or isinstance(margin, bool) or not 0 <= margin < math.inf:
        mistakes.append(f"claim.margin: expected a number of at least 0, not {margin!r}")
        margin = 0.0
    sides: dict[str, dict[str, str]] = {}
    for side in ("higher", "lower"):
        if side not in value:
            continue
        before = len(mistakes)
        levels = one_level(value[side], f"claim.{side}", factors, mistakes)
        if len(mistakes) == before:
            sides[side] = {name: one[0] for name, one in levels.items()}
    if len(sides) < 2:
        return None
    mistakes += _sides(sides["higher"], sides["lower"], str(metric), drafts)
    return Claim(str(value.get("text")), str(metric), sides["higher"], sides["lower"], float(margin))


def _sides(
    higher: Mapping[str, str], lower: Mapping[str, str], metric: str, drafts: Sequence[Draft]
) -> list[str]:
    """Mistakes in what a claim compares."""
    mistakes, found = [], []
    for side, levels in (("higher", higher), ("lower", lower)):
        condition = {factor: (level,) for factor, level in levels.items()}
        arms = [draft for draft in drafts if holds(condition, draft.levels)]
        if drafts and not arms:
            mistakes.append(f"claim.{side}: no arm has {' and '.join(levels.values())}")
        found.append(arms)
        lacking = [(arm.name, why) for arm in arms if arm.params and (why := _unmeasured(arm.params, metric))]
        mistakes += [f"claim.metric: arm {arm} has no {metric}: {why}" for arm, why in lacking[:1]]
    both = [arm.name for arm in found[0] if arm in found[1]]
    if higher == lower or both:
        where = f": arm {both[0]} is on both sides" if both else ""
        mistakes.append(f"claim: higher and lower differ in no factor{where}")
    elif all(found):
        mistakes += _unpaired(found[0], found[1], {*higher, *lower})
    return mistakes


def _unpaired(higher: Sequence[Draft], lower: Sequence[Draft], claimed: set[str]) -> list[str]:
    """Complains where no two arms of a claim's sides agree in the factors that both sides have beside it."""
    of_both = [{factor for arm in side for factor in arm.levels} - claimed for side in (higher, lower)]
    others = sorted(of_both[0] & of_both[1])
    sides = [{tuple(arm.levels.get(factor) for factor in others) for arm in side} for side in (higher, lower)]
    if sides[0] & sides[1]:
        return []
    return [
        f"claim: no arm of higher has one of lower to compare it with, the same in {' and '.join(others)}"
    ]


def metrics_of(value: object, drafts: Sequence[Draft], mistakes: list[str]) -> tuple[str, ...]:
    """The metrics of the main table; each some arm has to have."""
    if not isinstance(value, list):
        mistakes.append(f"metrics: expected a list, not {value!r}")
        return ()
    for number, name in enumerate(value):
        wrong = _wrong_metric(name, f"metrics[{number}]")
        mistakes += wrong or [f"metrics[{number}]: '{name}' twice"] * (name in value[:number])
        reasons = [_unmeasured(draft.params, str(name)) for draft in drafts if draft.params]
        if reasons and all(reasons):
            mistakes.append(f"metrics[{number}]: no arm has {name}: {reasons[0]}")
    return tuple(map(str, value))


def _wrong_metric(name: object, where: str) -> list[str]:
    """Complains of a metric that no evaluation gives.

    One that is finer than those with a meaning of their own (`understanding/vqa/colour`, `.../grounding_iou`)
    is believed; one that is nearly the name of such is a slip.
    """
    known = [measure.name for measure in MEASURES]
    group, _, tail = str(name).partition("/")
    tails = [one.partition("/")[2] for one in known if one.startswith(f"{group}/")]
    finer = any(tail.startswith((f"{one}/", f"{one}_")) for one in tails)
    slip = not finer and get_close_matches(tail, tails, cutoff=0.7)
    if name in known or (group in _GROUPS and tail and not slip):
        return []
    return [f"{where}: no metric '{name}'{nearest(str(name), known)}"]


def _unmeasured(params: Params, metric: str) -> str:
    """Why an arm has no such metric; "" if it has."""
    drawn = metric.startswith(("generation/", "reconstruction/"))
    if drawn and (params.visual_head is None or params.image_decoder is None):
        return "it draws no images"
    if metric.startswith("understanding/grounding") and not params.world.locations:
        return "world.locations is 0"
    if metric.startswith("understanding/by_example") and not any(
        "by_example" in parse(mix).ever() for mix in params.mixes.values()
    ):
        return "no mix has the task 'by_example'"
    return ""
