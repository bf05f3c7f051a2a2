"""A sweep's declaration: what is varied, what is sought, how long. Checked in full before anything runs.

objective: understanding/vqa          # a metric of the evaluation
direction: maximize
trials: 6                             # finished ones, over all runs of the command
sampler: tpe                          # or random
pruner: median                        # or hyperband, none
seed: 0
set:                                  # the same in every trial; keys as for `lab train KEY=VALUE`
  stages.instruct.steps: 200
space:
  connector: {choices: [linear, q_former]}
  connector.num_queries: {int: [8, 32], when: {connector: q_former}}
  stages.instruct.learning_rate.connector: {log: [3.0e-4, 3.0e-3]}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from lab.config import load_params, read_tree
from lab.errors import LabError, nearest
from lab.reports.measures import MEASURES

DIRECTIONS = ("maximize", "minimize")
SAMPLERS = ("tpe", "random")
PRUNERS = ("median", "hyperband", "none")
_DEFAULTS: dict[str, Any] = {
    "name": None,
    "objective": None,
    "direction": "maximize",
    "trials": 10,
    "sampler": "tpe",
    "pruner": "median",
    "seed": 0,
    "storage": None,
    "set": {},
    "space": None,
}
_RANGES = {"log": float, "float": float, "int": int}


@dataclass(frozen=True)
class Choice:
    """One dimension of the space.

    Attributes:
        key: What it sets, as in `lab train KEY=VALUE`.
        kind: ``choices``, ``log``, ``float`` or ``int``.
        values: The choices, or lower and upper bound.
        when: Earlier dimensions and the values under which this one exists.
    """

    key: str
    kind: str
    values: tuple[Any, ...]
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def exists(self, chosen: Mapping[str, Any]) -> bool:
        """Whether the dimension exists under what was chosen so far."""
        return all(key in chosen and chosen[key] in values for key, values in self.when.items())


@dataclass(frozen=True)
class Declaration:
    """A checked sweep."""

    name: str
    objective: str
    direction: Literal["maximize", "minimize"]
    trials: int
    sampler: str
    pruner: str
    seed: int
    storage: str | None
    fixed: Mapping[str, Any]
    space: tuple[Choice, ...]
    experiment: str
    study: str  # name and a digest of all that shapes its trials: what is changed is another study


def read(path: Path, folder: Path) -> Declaration:
    """Reads and checks a declaration.

    Args:
        path: Of the YAML file.
        folder: Of the params.yaml that the trials start from.

    Raises:
        LabError: Naming every mistake at once.
    """
    tree = _tree(path)
    base = folder / "params.yaml"
    params = load_params(base)
    mistakes = [f"unknown key '{key}'{nearest(str(key), _DEFAULTS)}" for key in tree if key not in _DEFAULTS]
    values = {**_DEFAULTS, "name": path.stem, **tree}
    mistakes += _scalars(values)
    fixed = {str(key): _number(value) for key, value in _mapping(values["set"], "set", mistakes).items()}
    space = _space(values["space"], mistakes)
    mistakes += _settings(base, fixed, space)
    if mistakes:
        raise LabError(f"{path}: " + "; ".join(mistakes))
    shaping = [values[key] for key in ("objective", "direction", "sampler", "pruner", "seed")]
    content = json.dumps([shaping, fixed, _plain(space), read_tree(base)], sort_keys=True, default=str)
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    name = str(values["name"])
    return Declaration(
        **{
            key: values[key]
            for key in ("objective", "direction", "trials", "sampler", "pruner", "seed", "storage")
        },
        name=name,
        fixed=fixed,
        space=space,
        experiment=params.name,
        study=f"{name}-{digest}",
    )


def overrides(settings: Mapping[str, Any]) -> list[str]:
    """Settings as `lab train` takes them."""
    return [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()
    ]


def _tree(path: Path) -> dict[Any, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = sorted(str(other) for other in path.parent.glob("*.yaml"))
        raise LabError(f"no sweep '{path}'{nearest(str(path), near)}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise LabError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise LabError(f"{path}: expected a mapping, with objective and space at least")
    return tree


def _scalars(values: Mapping[str, Any]) -> list[str]:
    mistakes = []
    known = [measure.name for measure in MEASURES]
    objective = values["objective"]
    if not isinstance(objective, str):
        mistakes.append("missing 'objective': the metric that is sought, such as understanding/vqa")
    elif objective not in known and not objective.startswith(
        (*(f"{name}/" for name in known), "validation/")
    ):
        mistakes.append(f"objective: no metric '{objective}'{nearest(objective, known)}")
    for key, valid in (("direction", DIRECTIONS), ("sampler", SAMPLERS), ("pruner", PRUNERS)):
        if values[key] not in valid:
            mistakes.append(f"{key}: no '{values[key]}'{nearest(str(values[key]), valid)}")
    if type(values["trials"]) is not int or values["trials"] < 1:
        mistakes.append(f"trials: a whole number of at least 1 is expected, not {values['trials']!r}")
    if type(values["seed"]) is not int or values["seed"] < 0:
        mistakes.append(f"seed: a whole number of at least 0 is expected, not {values['seed']!r}")
    if not isinstance(values["name"], str) or not values["name"].replace("-", "_").isidentifier():
        mistakes.append(f"name: letters, digits, - and _ are expected, not {values['name']!r}")
    if values["storage"] is not None and "://" not in str(values["storage"]):
        mistakes.append(f"storage: a URL is expected, such as sqlite:///study.db, not {values['storage']!r}")
    return mistakes


def _space(tree: Any, mistakes: list[str]) -> tuple[Choice, ...]:
    space: dict[str, Choice] = {}
    if not tree:
        mistakes.append("missing 'space': what is varied, such as connector: {choices: [linear, q_former]}")
    for key, entry in _mapping(tree or {}, "space", mistakes).items():
        where = f"space.{key}"
        entry = _mapping(entry, where, mistakes)
        kinds = [kind for kind in ("choices", *_RANGES) if kind in entry]
        valid = {"choices", "when", *_RANGES}
        mistakes += [
            f"{where}: unknown key '{name}'{nearest(str(name), valid)}" for name in entry if name not in valid
        ]
        if len(kinds) != 1:
            mistakes.append(f"{where}: exactly one of choices, log, float, int is expected")
            continue
        when = _when(entry.get("when", {}), space, where, mistakes)
        values = entry[kinds[0]]
        values = tuple(_number(value) for value in values) if isinstance(values, list) else ()
        if fault := _fault(kinds[0], values):
            mistakes.append(f"{where}: {fault}")
            continue
        cast = _RANGES.get(kinds[0])
        space[str(key)] = Choice(str(key), kinds[0], tuple(map(cast, values)) if cast else values, when)
    return tuple(space.values())


def _fault(kind: str, values: tuple[Any, ...]) -> str:
    if kind == "choices":
        plain = all(isinstance(value, str | int | float) for value in values)
        different = len({json.dumps(value) for value in values if plain}) == len(values)
        return (
            ""
            if values and plain and different
            else "choices: a list of different words or numbers is expected"
        )
    numbers = [value for value in values if type(value) in (int, float)]
    if len(values) != 2 or len(numbers) != 2 or not values[0] < values[1]:
        return f"{kind}: [lowest, highest] is expected"
    if kind == "log" and values[0] <= 0:
        return "log: bounds above 0 are expected"
    if kind == "int" and any(type(value) is not int for value in values):
        return "int: whole bounds are expected"
    return ""


def _when(
    tree: Any, space: Mapping[str, Choice], where: str, mistakes: list[str]
) -> dict[str, tuple[Any, ...]]:
    when = {}
    earlier = {key: choice.values for key, choice in space.items() if choice.kind == "choices"}
    for key, value in _mapping(tree, f"{where}.when", mistakes).items():
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


def _settings(base: Path, fixed: Mapping[str, Any], space: tuple[Choice, ...]) -> list[str]:
    """Tries every value in params.yaml, with just what it depends on: what a trial would meet is met now."""
    try:
        load_params(base, overrides(fixed))
    except LabError as error:
        return [f"set: {error}"]
    mistakes = []
    by_key = {choice.key: choice for choice in space}
    for choice in space:
        context: dict[str, Any] = {}
        _add_conditions(choice, by_key, context)
        for value in choice.values:
            try:
                load_params(base, overrides({**fixed, **context, choice.key: value}))
            except LabError as error:
                mistakes.append(f"space.{choice.key}: {error}")
                if choice.kind != "choices":
                    break  # both ends of a range fail alike
    return mistakes


def _add_conditions(choice: Choice, by_key: Mapping[str, Choice], context: dict[str, Any]) -> None:
    for key, values in choice.when.items():
        _add_conditions(by_key[key], by_key, context)
        context[key] = values[0]


def _mapping(tree: Any, where: str, mistakes: list[str]) -> dict[Any, Any]:
    if isinstance(tree, dict):
        return tree
    mistakes.append(f"{where}: a mapping is expected, not {tree!r}")
    return {}


def _number(value: Any) -> Any:
    """YAML reads 1e-3 as text."""
    if isinstance(value, str) and value[:1].isdigit():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _plain(space: tuple[Choice, ...]) -> list[Any]:
    return [[choice.key, choice.kind, choice.values, dict(choice.when)] for choice in space]
