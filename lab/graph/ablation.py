"""The declaration of an ablation graph, `ablation.yaml`: read, checked in full, and spelt out as arms.

docs/ablations.md explains every key; experiments/ablations/connectors_by_mix is an example with comments.
"""

from __future__ import annotations

import fractions
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import yaml

from lab.config import (
    BUDGETS,
    LAYOUTS,
    OPTIONAL,
    PREFLIGHT,
    RECIPE,
    STRATEGIES,
    Params,
    StagesParams,
    check_params,
    examine,
    read_tree,
    tree_of,
)
from lab.errors import LabError, nearest
from lab.graph.datasets import registered
from lab.graph.design import ROMAN, Factor, Fraction, aliases, factorial, holds
from lab.graph.levels import (
    FIXED,
    Setting,
    apply,
    condition_of,
    of_part,
    one_level,
    read_factors,
    settings_of,
    touched_by,
    unknown_keys,
)
from lab.graph.node import REPOSITORY
from lab.graph.small import small_params
from lab.graph.stages import UNIFIED, data_sets_of
from lab.graph.system import read_system
from lab.registry import read_once
from lab.reports.measures import MEASURES

FILE = "ablation.yaml"
UNITS = ("samples", "steps", *BUDGETS)

_ABLATIONS = Path("experiments", "ablations")
_KEYS = (
    "claim",
    "base",
    "set",
    "factors",
    "design",
    "arms",
    "exclude",
    "seeds",
    "replicate_from",
    "budget",
    "metrics",
    "resources",
)
_TRAINED = tuple(one.name for one in fields(StagesParams) if one.name not in ("evaluate", "features"))
_GROUPS = ("understanding", "generation", "reconstruction")  # of metrics that an evaluation gives


@dataclass(frozen=True)
class Claim:
    """A sentence to test, and what would support it.

    Attributes:
        text: the sentence.
        metric: a metric of the evaluation.
        higher, lower: factor -> level of the arms said to be better, and of those they are compared with;
            other factors are averaged over.
        margin: smallest difference that would matter, in the metric's unit.
    """

    text: str
    metric: str
    higher: Mapping[str, str]
    lower: Mapping[str, str]
    margin: float


@dataclass(frozen=True)
class Budget:
    """What training may cost, the same for every arm.

    Attributes:
        unit: one of UNITS.
        amount: for each of the stages.
        stages: that have it, of those that an arm's recipe holds.
    """

    unit: str
    amount: float
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Resources:
    """What a stage asks of a machine or a cluster.

    Attributes:
        cpus: a process.
        gpus: a node.
        memory: a node, such as "2G"; "" for the cluster's default.
        time: at most, in SLURM's notation (minutes, "1:00:00", "1-00:00:00"); "" likewise.
        nodes: machines.
        tasks: processes a node.
        strategy: how processes train together, one of STRATEGIES.
        layout: how samples share a step, one of LAYOUTS.
        preflight: what faults in samples lead to, one of PREFLIGHT.
        partition: of the cluster; "" for its default.
    """

    cpus: int = 1
    gpus: int = 0
    memory: str = ""
    time: str = ""
    nodes: int = 1
    tasks: int = 1
    strategy: str = "auto"
    layout: str = "auto"
    preflight: str = "error"
    partition: str = ""


@dataclass(frozen=True)
class Arm:
    """One setting of all factors.

    Attributes:
        name: its levels joined by "-", or the one that was given to it.
        levels: factor -> level, in the order of factors; without those whose condition does not hold.
        params: checked, with one connector and one mix, and the base's seed.
        touched: factor -> dotted keys that its level sets: a role for a word, `settings.ROLE.WORD.NAME` for a
            setting of a part, `mix` for anything about the mix, else the key of params.yaml.
    """

    name: str
    levels: Mapping[str, str]
    params: Params
    touched: Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Ablation:
    """A checked declaration.

    Attributes:
        name: of its folder.
        folder: that holds it.
        claim: None if there is none.
        factors, arms: in the order of declaration.
        seeds: of the replicates of every arm.
        replicate_from: the first stage that a replicate's seed changes.
        budget: None if every stage trains as long as its `steps` say.
        metrics: of the main table; empty to leave the choice to the comparison.
        resources: stage -> what it asks for; "default" for all others.
        aliases: effects that a fractional design cannot tell apart, a line each.
    """

    name: str
    folder: Path
    claim: Claim | None
    factors: tuple[Factor, ...]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    replicate_from: str
    budget: Budget | None
    metrics: tuple[str, ...]
    resources: Mapping[str, Resources] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    def resources_of(self, stage: str) -> Resources:
        """What a stage asks for."""
        return self.resources.get(stage, self.resources.get("default", Resources()))


class _Draft(NamedTuple):
    """An arm before it has been found sound."""

    name: str
    levels: dict[str, str]
    recipe: list[str]
    params: Params | None
    touched: dict[str, frozenset[str]]


def find_ablation(name: str) -> Path:
    """Finds a declaration by the name of its folder, or by the path of the folder or the file.

    Raises:
        LabError: there is none.
    """
    root = _checkout(Path.cwd())
    known = {} if root is None else {file.parent.name: file for file in root.glob(f"{_ABLATIONS}/*/{FILE}")}
    if name in known:
        return known[name]
    for place in (Path(name), Path(name, FILE)):
        if place.is_file() and place.suffix == ".yaml":
            return place.resolve()
    raise LabError(f"no ablation '{name}'{nearest(name, known)}")


@read_once()
def read_ablation(path: Path) -> Ablation:
    """Reads and checks a declaration, and makes its arms.

    Args:
        path: of an `ablation.yaml`.

    Raises:
        LabError: naming every mistake at once.
    """
    path = path.resolve()
    mistakes: list[str] = []
    tree = _load(path, mistakes)
    mistakes += unknown_keys(tree, _KEYS, "")
    base = _base(tree, path, mistakes)
    common = settings_of(tree.get("set", {}), "set", FIXED, mistakes)
    budget = _budget(tree.get("budget"), mistakes)

    before = len(mistakes)
    factors, levels = read_factors(tree.get("factors"), base, mistakes)
    design = _design(tree.get("design", "full"), mistakes)
    stated = _stated(tree.get("arms", []), factors, mistakes)
    excluded = _exclusions(tree.get("exclude", []), factors, mistakes)
    chosen = _chosen(factors, design, stated, excluded, mistakes) if len(mistakes) == before else []
    drafts = _drafts(path.parent.name, base, common, levels, chosen, budget, mistakes) if base else []

    recipes = [draft.recipe for draft in drafts] or ([base.recipe] if base else [])
    budget = _spent(budget, recipes, mistakes)
    claim = _claim(tree.get("claim"), factors, drafts, mistakes)
    metrics = _metrics(tree.get("metrics", []), drafts, mistakes)
    seeds = _seeds(tree.get("seeds", [common.get("seed", base.seed if base else 0)]), mistakes)
    first = _replicated(tree.get("replicate_from"), recipes, mistakes)
    resources = _resources(tree.get("resources", {}), recipes, mistakes)
    notes: tuple[str, ...] = ()
    if isinstance(design, Fraction) and chosen:
        notes = aliases(factors, design)
    if mistakes:
        raise LabError(f"{_shown(path)}: " + "; ".join(dict.fromkeys(mistakes)))
    arms = tuple(
        Arm(draft.name, draft.levels, draft.params, draft.touched)
        for draft in _spelt_alike([draft for draft in drafts if draft.params])
        if draft.params
    )
    return Ablation(
        name=path.parent.name,
        folder=path.parent,
        claim=claim,
        factors=tuple(factors),
        arms=arms,
        seeds=seeds,
        replicate_from=first,
        budget=budget,
        metrics=metrics,
        resources=resources,
        aliases=notes,
    )


# -- the file ------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Reads scalars as YAML 1.2 does: `on` and `1:00:00` are text, 1e-3 a number. Notes keys given twice."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[Any]]] = {}  # type: ignore[misc]

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.twice: dict[int, str] = {}

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    self.twice[key.start_mark.line + 1] = key.value
                seen.add(key.value)
        return node


for _tag, _pattern, _first in (
    ("merge", r"<<", "<"),
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|false", "tf"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _load(path: Path, mistakes: list[str]) -> dict[str, Any]:
    shown = _shown(path)
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        tree = loader.get_single_data()
    except FileNotFoundError:
        raise LabError(f"{shown}: no such file") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        what = " ".join(" ".join(filter(None, [error.context, error.problem])).split())
        raise LabError(f"{shown}{line}: {what}") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise LabError(f"{shown}: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise LabError(f"{shown}: expected a mapping of {', '.join(_KEYS)}")
    mistakes += [f"line {line}: key '{key}' a second time" for line, key in sorted(loader.twice.items())]
    return {str(key): value for key, value in tree.items() if value is not None}  # all commented out


def _base(tree: Mapping[str, Any], path: Path, mistakes: list[str]) -> Params | None:
    """Parameters that arms start from: a params.yaml, or the small size of a system."""
    name, root = tree.get("base"), _checkout(path) or REPOSITORY
    if not isinstance(name, str):
        wrong = "missing key 'base'" if "base" not in tree else f"base: expected a file, not {name!r}"
        mistakes.append(f"{wrong}; params.yaml of the checkout, or one of experiments/systems")
        return None
    place = next((file for file in (path.parent / name, root / name) if file.is_file()), None)
    if place is None:
        known = [
            "params.yaml",
            *(str(file.relative_to(root)) for file in root.glob("experiments/systems/*.yaml")),
        ]
        mistakes.append(f"base: no file '{name}' beside {FILE} or in {root}{nearest(name, known)}")
        return None
    try:
        found = read_tree(place)
        if "small" in found or "full" in found:
            return small_params(read_system(place), place, [], registered(root))
        return check_params(found, _shown(place))
    except LabError as error:
        mistakes.append(f"base: {error}")
        return None


def _checkout(start: Path) -> Path | None:
    """The folder above that holds the ablations of a checkout."""
    start = start.resolve()
    return next((place for place in (start, *start.parents) if (place / _ABLATIONS).is_dir()), None)


def _shown(path: Path) -> str:
    """A path as the person at the terminal would write it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


# -- arms ----------------------------------------------------------------------------------------------------


def _design(value: object, mistakes: list[str]) -> str | Fraction:
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


def _stated(
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


def _exclusions(
    value: object, factors: Sequence[Factor], mistakes: list[str]
) -> list[dict[str, tuple[str, ...]]]:
    if not isinstance(value, list):
        mistakes.append(f"exclude: expected a list of mappings of factors to levels, not {value!r}")
        return []
    return [condition_of(item, f"exclude[{number}]", factors, mistakes) for number, item in enumerate(value)]


def _chosen(
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


def _drafts(
    name: str,
    base: Params,
    common: Mapping[str, Any],
    levels: Mapping[tuple[str, str], Mapping[str, Any]],
    chosen: Sequence[tuple[str, dict[str, str]]],
    budget: Budget | None,
    mistakes: list[str],
) -> list[_Draft]:
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
        bounded = {f"stages.{name}.steps" for name in _sections(tree, budget)}
        touched = touched_by(own, settings, keys, bounded, plain)
        mistakes += plain
        batches |= _limit(tree, budget)
        params, found = examine(tree)
        said = {mistake.partition(": ")[2] for mistake in plain}  # unknown words, with their level
        for mistake in found:
            if mistake.partition(": ")[2] not in said:
                wrong.setdefault(mistake, []).append(arm)
        recipe = tree["recipe"] if isinstance(tree["recipe"], list) else []
        drafts.append(_Draft(arm, own, recipe, params if not plain else None, touched))
    for mistake, arms in wrong.items():
        others = f" and {len(arms) - 1} more" if len(arms) > 1 else ""
        who = "every arm" if len(arms) == len(chosen) else f"arm {arms[0]}{others}"
        mistakes.append(f"{who}: {mistake}")
    if budget is not None and budget.unit == "samples" and batches:
        mistakes += _whole_batches(int(budget.amount), batches)
    mistakes += _alike(drafts)
    return drafts


def _spelt_alike(drafts: Sequence[_Draft]) -> list[_Draft]:
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


def _alike(drafts: Sequence[_Draft]) -> list[str]:
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


# -- the budget ----------------------------------------------------------------------------------------------


def _budget(value: object, mistakes: list[str]) -> Budget | None:
    """The budget as declared; without stages where they are not stated."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        mistakes.append(f"budget: expected a mapping of a unit to an amount, not {value!r}")
        return None
    mistakes += unknown_keys(value, (*UNITS, "stages"), "budget.")
    units = [unit for unit in UNITS if unit in value]
    if len(units) != 1:
        mistakes.append(f"budget: expected one of {', '.join(UNITS)}, not {' and '.join(units) or 'none'}")
        return None
    stages = value.get("stages", [])
    if not isinstance(stages, list) or ("stages" in value and not stages):
        mistakes.append(f"budget.stages: expected a list of stages, not {stages!r}")
        stages = []
    unit, amount = units[0], value[units[0]]
    counted = unit in ("samples", "steps", "tokens")
    number = isinstance(amount, (int, float)) and not isinstance(amount, bool)
    if not number or not 0 < amount < math.inf or (counted and amount != int(amount)):
        kind = "a whole number" if counted else "a number"
        mistakes.append(f"budget.{unit}: expected {kind} above 0, not {amount!r}")
        return None
    return Budget(unit, float(amount), tuple(map(str, stages)))


def _sections(tree: Mapping[str, Any], budget: Budget | None) -> dict[str, dict[str, Any]]:
    """Stages of an arm that have a budget -> their sections."""
    if budget is None or not isinstance(tree["recipe"], list):
        return {}
    sections = {name: tree["stages"].get(name) for name in budget.stages or UNIFIED if name in tree["recipe"]}
    return {
        name: section for name, section in sections.items() if name in _TRAINED and isinstance(section, dict)
    }


def _limit(tree: Mapping[str, Any], budget: Budget | None) -> set[int]:
    """Writes the budget into an arm's tree; gives the batch sizes that samples are to be divided by."""
    batches = set()
    for section in _sections(tree, budget).values():
        assert budget is not None
        if budget.unit == "steps":
            section["steps"] = int(budget.amount)
        elif budget.unit == "samples":
            batch = section["batch_size"]
            if isinstance(batch, int) and batch > 0:
                batches.add(batch)
                section["steps"] = max(1, int(budget.amount) // batch)
        else:
            section["budget"] = {budget.unit: budget.amount}
    return batches


def _whole_batches(amount: int, batches: set[int]) -> list[str]:
    common = math.lcm(*batches)
    low = amount // common * common
    if low == amount:
        return []
    near = " and ".join(str(number) for number in (low, low + common) if number)
    sizes = " and ".join(str(batch) for batch in sorted(batches))
    return [f"budget.samples: {amount} are no whole number of batches of {sizes}; nearest: {near}"]


def _spent(budget: Budget | None, recipes: Sequence[Sequence[str]], mistakes: list[str]) -> Budget | None:
    """The budget with all its stages, of those that arms have."""
    if budget is None or not recipes:
        return None
    have = [name for name in _TRAINED if any(name in recipe for recipe in recipes)]
    mistakes += [
        f"budget.stages: no stage '{name}' trains here{nearest(name, have)}"
        for name in budget.stages
        if name not in have
    ]
    stages = budget.stages or tuple(name for name in UNIFIED if name in have)
    if not stages:
        mistakes.append(f"budget: names no stages, and the recipe has none of {', '.join(UNIFIED)}")
    return Budget(budget.unit, budget.amount, stages)


def resources_of(path: Path, stage: str) -> Resources:
    """What a stage asks for, read from a declaration of which nothing else is looked at.

    Raises:
        LabError: naming every mistake in it at once.
    """
    mistakes: list[str] = []
    found = _resources(_load(path, mistakes).get("resources", {}), [], mistakes)
    if mistakes:
        raise LabError(f"{_shown(path)}: " + "; ".join(mistakes))
    return found.get(stage, found.get("default", Resources()))


# -- claim, metrics, replicates, resources -------------------------------------------------------------------


def _claim(
    value: object, factors: Sequence[Factor], drafts: Sequence[_Draft], mistakes: list[str]
) -> Claim | None:
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
    higher: Mapping[str, str], lower: Mapping[str, str], metric: str, drafts: Sequence[_Draft]
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


def _unpaired(higher: Sequence[_Draft], lower: Sequence[_Draft], claimed: set[str]) -> list[str]:
    """Complains where no two arms of a claim's sides agree in the factors that both sides have beside it."""
    of_both = [{factor for arm in side for factor in arm.levels} - claimed for side in (higher, lower)]
    others = sorted(of_both[0] & of_both[1])
    sides = [{tuple(arm.levels.get(factor) for factor in others) for arm in side} for side in (higher, lower)]
    if sides[0] & sides[1]:
        return []
    return [
        f"claim: no arm of higher has one of lower to compare it with, the same in {' and '.join(others)}"
    ]


def _metrics(value: object, drafts: Sequence[_Draft], mistakes: list[str]) -> tuple[str, ...]:
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
    return ""


def _seeds(value: object, mistakes: list[str]) -> tuple[int, ...]:
    seeds = value if isinstance(value, list) else []
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
    if not seeds or not whole or len(set(seeds)) < len(seeds):
        mistakes.append(f"seeds: expected a list of different whole numbers from 0 on, not {value!r}")
        return ()
    return tuple(seeds)


def _replicated(value: object, recipes: Sequence[Sequence[str]], mistakes: list[str]) -> str:
    """The first stage that a seed changes: encoder unless stated, or what the recipe begins to train with."""
    stages = [name for name in recipes[0] if all(name in other for other in recipes)] if recipes else []
    if value is None:
        usual = [name for name in stages if name not in ("data", "judge")]
        return "encoder" if "encoder" in usual or not usual else usual[0]
    if recipes and value not in stages:
        mistakes.append(f"replicate_from: no stage '{value}' in every recipe{nearest(str(value), stages)}")
    return str(value)


def _resources(value: object, recipes: Sequence[Sequence[str]], mistakes: list[str]) -> dict[str, Resources]:
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
