"""The small size of a published system, as the parameters of a pipeline with one arm."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from lab.config import Params, apply_override, check_params, read_tree
from lab.errors import LabError, nearest
from lab.graph.system import BASE, SYSTEMS, System
from lab.registry import ROLES

# stages in their usual order; a system may state another (`recipe`)
_ORDER = (
    "data",
    "judge",
    "encoder",
    "text_decoder",
    "image_decoder",
    "represent",
    "align",
    "pretrain",
    "instruct",
    "evaluate",
)
_CHOSEN = ("represent", "pretrain")  # stages of the base that run only where a system names them
_KEYS = (*ROLES, "targets", "mix", "stages", "recipe", "world", "data")


def small_params(
    system: System, path: Path, overrides: list[str], datasets: Mapping[str, Any] | None = None
) -> Params:
    """What `lab train` runs for a system.

    A bare word replaces a component and takes the base's settings of that word; a mapping changes some of
    these. A stage that is null is left out.

    Args:
        system: as read.
        path: of its declaration, for messages.
        overrides: dotted key=value settings.
        datasets: entries of the data sets that its mix may name.

    Raises:
        LabError: naming what the declaration gets wrong.
    """
    if system.small is None:
        raise LabError(f"{path}: there is no small size to train")
    tree = read_tree(SYSTEMS / f"{BASE}.yaml")
    for key in system.small:
        if key not in _KEYS:
            raise LabError(f"{path}: unknown key 'small.{key}'{nearest(str(key), _KEYS)}")
    small = deepcopy(system.small)
    for key in ("mix", "stages", "world", "data"):
        if not isinstance(small.get(key, {}), Mapping):
            raise LabError(f"{path}: small.{key}: expected a mapping, not {small[key]!r}")
    if not isinstance(small.get("recipe", []), list):
        raise LabError(f"{path}: small.recipe: expected a list of stages, not {small['recipe']!r}")
    for role in ROLES:
        if role in small:
            _choose(tree, role, small[role], path)
    tree["mixes"] = {system.name: small.get("mix", next(iter(tree["mixes"].values())))}
    stages = small.get("stages", {})
    left_out = [name for name in _CHOSEN if name not in stages]
    left_out += [name for name, section in stages.items() if section is None]
    left_out += [] if tree["image_decoder"] else ["image_decoder"]
    _merge(tree["stages"], stages)
    tree["recipe"] = small.get("recipe", [name for name in _ORDER if name not in left_out])
    for key in ("world", "data"):
        _merge(tree[key], small.get(key, {}))
    tree |= {"targets": small.get("targets", tree["targets"]), "system": system.name}
    if datasets:
        tree["datasets"] = dict(datasets)
    for one in overrides:
        apply_override(tree, one)
    if others := [name for name in tree["mixes"] if name != system.name]:
        raise LabError(f"mixes.{others[0]}: a system has one mix, whose shares are mix.TASK=NUMBER")
    return check_params(tree, str(path))


def _choose(tree: dict[str, Any], role: str, choice: object, path: Path) -> None:
    """Put a component into the tree: a word, a mapping of name and settings, or None."""
    settings = dict(choice) if isinstance(choice, Mapping) else {"name": choice}
    word = settings.pop("name", None)
    if word is None and not (choice is None and role in ("visual_head", "image_decoder")):
        raise LabError(f"{path}: small.{role}: expected a word, or a mapping with 'name', not {choice!r}")
    if role == "connector":
        tree["connectors"] = [word]
    else:
        tree[role] = word
    if word is not None:
        tree["settings"].setdefault(role, {}).setdefault(word, {}).update(settings)


def _merge(tree: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Apply changes to a tree: mappings merge, but a mix is replaced as a whole."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict) and key not in ("mix", "losses"):
            _merge(tree[key], value)
        else:
            tree[key] = value
