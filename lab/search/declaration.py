"""A sweep's declaration: what is varied, what is sought, how long. Checked in full before anything runs.

objectives: {understanding/vqa: maximize}   # metrics of the evaluation; several give a Pareto front
trials: 6                                   # finished ones, over all runs of the command
sampler: tpe                                # see methods.py for these two
pruner: median
seed: 0
set:                                        # the same in every trial; keys as for `lab train KEY=VALUE`
  stages.instruct.steps: 200
space:
  connector: {choices: [linear, q_former]}
  connector.num_queries: {int: [8, 32], when: {connector: q_former}}
  stages.instruct.learning_rate.connector: {log: [3.0e-4, 3.0e-3]}
  mix: {simplex: {understanding: {vqa: 7, caption: 1}, generation: {text_to_image: 1}}}
constraints: {parameters: 2.0e+6, seconds: 300}   # at most, estimated before a trial trains
fidelity: {steps: [50, 100]}                # rungs at which asha and hyperband decide who goes on
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from lab.config import Params, check_params, overridden, read_tree
from lab.errors import LabError, nearest
from lab.graph.ablation import Resources, asked
from lab.reports.measures import MEASURES
from lab.search.limits import LIMITS
from lab.search.methods import PRUNERS, SAMPLERS, misfits
from lab.search.space import Dimension, contexts, grid, mapping, number, read_space, unknown

DIRECTIONS = ("maximize", "minimize")
_TRIALS = 10  # where neither the file nor a grid says how many
_DEFAULTS: dict[str, Any] = {
    "name": None,
    "objectives": None,
    "trials": None,
    "sampler": "tpe",
    "pruner": None,
    "seed": 0,
    "storage": None,
    "set": {},
    "space": None,
    "constraints": {},
    "fidelity": None,
    "resources": {},
}
_SHAPING = ("objectives", "sampler", "pruner", "seed", "constraints", "fidelity")


@dataclass(frozen=True)
class Fidelity:
    """Rungs of a training: a trial that is not among the best of its rung waits there.

    Attributes:
        unit: "steps" or "samples", of instruction tuning.
        rungs: amounts, ascending; the whole training comes after the last.
        reduction: one of so many goes on.
    """

    unit: str
    rungs: tuple[int, ...]
    reduction: int = 3


@dataclass(frozen=True)
class Declaration:
    """A checked sweep."""

    path: Path
    name: str
    objectives: Mapping[str, str]  # metric -> maximize or minimize
    trials: int
    sampler: str
    pruner: str
    seed: int
    storage: str | None
    fixed: Mapping[str, Any]
    space: tuple[Dimension, ...]
    constraints: Mapping[str, float]
    fidelity: Fidelity | None
    resources: Resources  # of a worker on a cluster
    trained: tuple[str, ...]  # stages that the space changes, in the order of the recipe
    experiment: str
    study: str  # name and a digest of all that shapes its trials: what is changed is another study


def read(path: Path, folder: Path) -> Declaration:
    """Reads and checks a declaration.

    Args:
        path: of the YAML file.
        folder: of the params.yaml that the trials start from.

    Raises:
        LabError: naming every mistake at once.
    """
    tree = _tree(path)
    base = read_tree(folder / "params.yaml")
    params = check_params(base)
    mistakes = unknown(tree, tuple(_DEFAULTS))
    values = {**_DEFAULTS, "name": path.stem, **tree}
    objectives = _objectives(values["objectives"], mistakes)
    several = len(objectives) > 1
    if values["pruner"] is None:
        values["pruner"] = "none" if several else "asha" if values["fidelity"] else "median"
    mistakes += _scalars(values)
    fixed = {str(key): number(value) for key, value in mapping(values["set"], "set", mistakes).items()}
    space = read_space(values["space"], mistakes)
    constraints = _constraints(values["constraints"], mistakes)
    variants = _settings(base, fixed, space, mistakes)
    fidelity = _fidelity(values["fidelity"], variants, mistakes)
    mistakes += misfits(values["sampler"], values["pruner"], several, space, fidelity is not None)
    trials = _trials(values["trials"], values["sampler"], space, mistakes)
    resources = Resources(**asked(values["resources"], "resources", mistakes))
    if mistakes:
        raise LabError(f"{path}: " + "; ".join(mistakes))
    from lab.graph.planning.arm import changed_stages

    content = [[values[key] for key in _SHAPING], fixed, _plain(space), base]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return Declaration(
        path=path,
        name=str(values["name"]),
        objectives=objectives,
        trials=trials,
        **{key: values[key] for key in ("sampler", "pruner", "seed", "storage")},
        fixed=fixed,
        space=space,
        constraints=constraints,
        fidelity=fidelity,
        resources=resources,
        trained=changed_stages(variants),
        experiment=params.name,
        study=f"{values['name']}-{digest}",
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
        raise LabError(f"{path}: expected a mapping, with objectives and space at least")
    return tree


def _objectives(stated: Any, mistakes: list[str]) -> dict[str, str]:
    known = [measure.name for measure in MEASURES]
    if not stated:
        mistakes.append("missing 'objectives': what is sought, such as {understanding/vqa: maximize}")
    found = {}
    for name, direction in mapping(stated or {}, "objectives", mistakes).items():
        metric = str(name)
        if metric not in known and not metric.startswith((*(f"{one}/" for one in known), "validation/")):
            mistakes.append(f"objectives: no metric '{metric}'{nearest(metric, known)}")
        if direction not in DIRECTIONS:
            mistakes.append(f"objectives.{metric}: no '{direction}'{nearest(str(direction), DIRECTIONS)}")
        found[metric] = str(direction)
    return found


def _scalars(values: Mapping[str, Any]) -> list[str]:
    mistakes = []
    for key, valid in (("sampler", tuple(SAMPLERS)), ("pruner", PRUNERS)):
        if values[key] not in valid:
            mistakes.append(f"{key}: no '{values[key]}'{nearest(str(values[key]), valid)}")
    if type(values["seed"]) is not int or values["seed"] < 0:
        mistakes.append(f"seed: a whole number of at least 0 is expected, not {values['seed']!r}")
    if not isinstance(values["name"], str) or not values["name"].replace("-", "_").isidentifier():
        mistakes.append(f"name: letters, digits, - and _ are expected, not {values['name']!r}")
    if values["storage"] is not None and "://" not in str(values["storage"]):
        mistakes.append(
            f"storage: a URL is expected, such as journal:///folder/study.journal, not {values['storage']!r}"
        )
    return mistakes


def _constraints(stated: Any, mistakes: list[str]) -> dict[str, float]:
    found = {}
    tree = mapping(stated, "constraints", mistakes)
    mistakes += unknown(tree, tuple(LIMITS), "constraints: ")
    for name, value in tree.items():
        most = number(value)
        if isinstance(most, bool) or not isinstance(most, int | float) or not most > 0:
            mistakes.append(f"constraints.{name}: a number above 0 is expected, not {value!r}")
        else:
            found[str(name)] = float(most)
    return found


def _fidelity(stated: Any, variants: list[Params], mistakes: list[str]) -> Fidelity | None:
    if stated is None:
        return None
    tree = mapping(stated, "fidelity", mistakes)
    mistakes += unknown(tree, ("steps", "samples", "reduction"), "fidelity: ")
    units = [unit for unit in ("steps", "samples") if unit in tree]
    if len(units) != 1:
        mistakes.append("fidelity: one of steps and samples is expected, such as {steps: [50, 100]}")
        return None
    rungs, reduction = tree[units[0]], tree.get("reduction", 3)
    if type(reduction) is not int or reduction < 2:
        mistakes.append(f"fidelity.reduction: a whole number of at least 2 is expected, not {reduction!r}")
    whole = isinstance(rungs, list) and rungs and all(type(rung) is int and rung > 0 for rung in rungs)
    if not whole or sorted(set(rungs)) != rungs:
        mistakes.append(f"fidelity.{units[0]}: ascending whole numbers are expected, not {rungs!r}")
        return None
    for section in (variant.fitted("instruct") for variant in variants):
        size = section.batch_size if units[0] == "samples" else 1
        if section.budget:
            mistakes.append("fidelity: stages.instruct has a budget; rungs need a stage that counts steps")
        elif rungs[-1] >= section.steps * size:
            most = section.steps * size
            mistakes.append(f"fidelity.{units[0]}: below {most}, what instruct has in all, not {rungs[-1]}")
        elif any(rung % size for rung in rungs):
            mistakes.append(f"fidelity.samples: multiples of instruct's batch_size {size} are expected")
        else:
            continue
        break
    return Fidelity(units[0], tuple(rungs), reduction)


def _trials(stated: Any, sampler: str, space: tuple[Dimension, ...], mistakes: list[str]) -> int:
    if stated is not None and (type(stated) is not int or stated < 1):
        mistakes.append(f"trials: a whole number of at least 1 is expected, not {stated!r}")
        return 0
    if sampler == "grid" and not any(one.kind in ("log", "float", "simplex") for one in space):
        most = 100_000
        points = sum(1 for _ in islice(grid(space), most + 1))
        if points > most:
            mistakes.append(f"sampler grid: more than {most} points")
        if stated is not None and stated > points:
            mistakes.append(f"trials: the grid has {points} points, fewer than {stated}")
        return stated or points
    return stated or _TRIALS


def _settings(
    base: dict[str, Any], fixed: Mapping[str, Any], space: tuple[Dimension, ...], mistakes: list[str]
) -> list[Params]:
    """Tries every value in params.yaml, with just what it depends on: what a trial would meet is met now."""

    def with_settings(settings: Mapping[str, Any]) -> Params:
        return check_params(overridden(deepcopy(base), overrides(settings)))

    variants = []
    try:
        variants.append(with_settings(fixed))
    except LabError as error:
        mistakes.append(f"set: {error}")
        return []
    for dimension in space:
        if dimension.key in fixed:
            mistakes.append(f"space.{dimension.key}: stands in 'set' as well")
        context = {**fixed, **contexts(space, dimension)}
        for corner in dimension.corners():
            try:
                variants.append(with_settings({**context, **dimension.settings(corner)}))
            except LabError as error:
                mistakes.append(f"space.{dimension.key}: {error}")
                if dimension.kind != "choices":
                    break  # both ends of a range fail alike
    return variants


def _plain(space: tuple[Dimension, ...]) -> list[Any]:
    return [[one.key, one.kind, one.values, dict(one.when), one.parts] for one in space]
