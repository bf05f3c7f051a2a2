"""What stages ask of a machine or a cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from lab.config import LAYOUTS, OPTIONAL, PREFLIGHT, RECIPE, STRATEGIES
from lab.errors import LabError, nearest
from lab.graph.ablation.declaration import Resources
from lab.graph.ablation.file import as_written, load
from lab.graph.levels import unknown_keys


def read_resources(
    value: object, recipes: Sequence[Sequence[str]], mistakes: list[str]
) -> dict[str, Resources]:
    """Stage -> resources, those of `default` filled in."""
    if not isinstance(value, Mapping):
        mistakes.append(f"resources: expected a mapping of stages, not {value!r}")
        return {}
    known = ["default", *dict.fromkeys(name for recipe in recipes for name in recipe), "compare"]
    known = known if recipes else ["default", *RECIPE, *OPTIONAL, "compare"]
    usual: dict[str, Any] = {}
    found = {}
    for stage in sorted(map(str, value), key=lambda name: name != "default"):
        where = f"resources.{stage}"
        if stage not in known:
            mistakes.append(f"resources: no stage '{stage}'{nearest(stage, known)}")
        stated = asked(value[stage], where, mistakes)
        usual = stated if stage == "default" else usual
        found[stage] = Resources(**{**usual, **stated})
    return found


_CHOICES = {"strategy": STRATEGIES, "layout": LAYOUTS, "preflight": PREFLIGHT}


def asked(value: object, where: str, mistakes: list[str]) -> dict[str, Any]:
    """Fields of resources, those that are right."""
    names = [one.name for one in fields(Resources)]
    if not isinstance(value, Mapping):
        mistakes.append(f"{where}: expected a mapping of {', '.join(names)}, not {value!r}")
        return {}
    mistakes += unknown_keys(value, names, f"{where}.")
    found: dict[str, Any] = {}
    for name, item in value.items():
        least = 0 if name == "gpus" else 1
        count = isinstance(item, int) and not isinstance(item, bool) and item >= least
        text = str(item)
        match name:
            case "cpus" | "gpus" | "nodes" | "tasks":
                right, expected = count, f"a whole number of at least {least}"
            case "memory":
                right, expected = bool(re.fullmatch(r"[1-9]\d*[KMGT]", text)), "a size such as 500M or 2G"
            case "time":
                right = bool(re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", text)) and bool(re.search("[1-9]", text))
                expected = "minutes, hours:minutes:seconds or days-hours, such as 30, 1:00:00 or 1-12"
            case "strategy" | "layout" | "preflight":
                right, expected = text in _CHOICES[name], f"one of {', '.join(_CHOICES[name])}"
            case "partition":
                right, expected = bool(re.fullmatch(r"[\w.,-]+", text)), "the name of a partition"
            case _:
                continue
        if right:
            found[str(name)] = item if name in ("cpus", "gpus", "nodes", "tasks") else text
        else:
            hint = nearest(text, _CHOICES[name]) if name in _CHOICES else ""
            mistakes.append(f"{where}.{name}: expected {expected}, not {item!r}{hint}")
    return found


def resources_of(path: Path, stage: str) -> Resources:
    """What a stage asks for, read from a declaration of which nothing else is looked at.

    Raises:
        LabError: naming every mistake in it at once.
    """
    mistakes: list[str] = []
    found = read_resources(load(path, mistakes).get("resources", {}), [], mistakes)
    if mistakes:
        raise LabError(f"{as_written(path)}: " + "; ".join(mistakes))
    return found.get(stage, found.get("default", Resources()))
