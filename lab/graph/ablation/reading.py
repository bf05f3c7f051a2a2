"""A declaration as a whole: found by name, read, checked in full."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lab.errors import LabError, nearest
from lab.graph.ablation.arms import drafts_of, spelt_alike
from lab.graph.ablation.budget import budget_of, with_stages
from lab.graph.ablation.claim import claim_of, metrics_of
from lab.graph.ablation.declaration import Ablation, Arm
from lab.graph.ablation.design import chosen_arms, design_of, exclusions, stated_arms
from lab.graph.ablation.file import ABLATIONS, FILE, KEYS, as_written, base_of, checkout, load
from lab.graph.ablation.resources import read_resources
from lab.graph.design import Fraction, aliases
from lab.graph.levels import FIXED, read_factors, settings_of, unknown_keys
from lab.registry import read_once


def find_ablation(name: str) -> Path:
    """Finds a declaration by the name of its folder, or by the path of the folder or the file.

    Raises:
        LabError: there is none.
    """
    root = checkout(Path.cwd())
    known = {} if root is None else {file.parent.name: file for file in root.glob(f"{ABLATIONS}/*/{FILE}")}
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
    tree = load(path, mistakes)
    mistakes += unknown_keys(tree, KEYS, "")
    base = base_of(tree, path, mistakes)
    common = settings_of(tree.get("set", {}), "set", FIXED, mistakes)
    budget = budget_of(tree.get("budget"), mistakes)

    before = len(mistakes)
    factors, levels = read_factors(tree.get("factors"), base, mistakes)
    design = design_of(tree.get("design", "full"), mistakes)
    stated = stated_arms(tree.get("arms", []), factors, mistakes)
    excluded = exclusions(tree.get("exclude", []), factors, mistakes)
    chosen = chosen_arms(factors, design, stated, excluded, mistakes) if len(mistakes) == before else []
    drafts = drafts_of(path.parent.name, base, common, levels, chosen, budget, mistakes) if base else []

    recipes = [draft.recipe for draft in drafts] or ([base.recipe] if base else [])
    budget = with_stages(budget, recipes, mistakes)
    claim = claim_of(tree.get("claim"), factors, drafts, mistakes)
    metrics = metrics_of(tree.get("metrics", []), drafts, mistakes)
    seeds = _seeds(tree.get("seeds", [common.get("seed", base.seed if base else 0)]), mistakes)
    first = _replicated(tree.get("replicate_from"), recipes, mistakes)
    resources = read_resources(tree.get("resources", {}), recipes, mistakes)
    notes: tuple[str, ...] = ()
    if isinstance(design, Fraction) and chosen:
        notes = aliases(factors, design)
    if mistakes:
        raise LabError(f"{as_written(path)}: " + "; ".join(dict.fromkeys(mistakes)))
    arms = tuple(
        Arm(draft.name, draft.levels, draft.params, draft.touched)
        for draft in spelt_alike([draft for draft in drafts if draft.params])
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
