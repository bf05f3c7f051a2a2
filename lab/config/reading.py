"""From a file, or a tree read earlier, to checked parameters; all mistakes are named at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from lab.config.checks import mistakes_in_recipe, mistakes_in_words
from lab.config.overrides import overridden
from lab.config.params import Params
from lab.config.structure import hints_of, structure
from lab.errors import LabError
from lab.models.caching import mistakes_of_caches
from lab.models.compatibility import mistakes_of


def read_tree(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Reads a YAML file and applies dotted `key=value` overrides.

    Two words stand for lists of one: `connector=mlp` sets `connectors` to [mlp], `mix=NAME` keeps that mix
    alone. `connector.num_queries=8` goes to the settings of the chosen connector, likewise for other roles;
    `mix.vqa=2` is a weight in the chosen mix.

    Raises:
        LabError: a missing file, broken YAML, an override without `=` or of an unknown key.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if not path.exists():
        raise LabError(f"{path}: no such file; run the command in a folder that holds a params.yaml")
    try:
        tree: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (YAMLError, OmegaConfBaseException) as error:
        raise LabError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise LabError(f"{path}: expected a mapping of parameters")
    return overridden({str(key): value for key, value in tree.items()}, overrides)


def load_params(path: Path, overrides: Sequence[str] = ()) -> Params:
    """Reads, overrides and checks a `params.yaml`.

    Raises:
        LabError: naming every mistake of the file at once.
    """
    return check_params(read_tree(path, overrides), str(path))


def check_params(tree: Mapping[str, Any], where: str = "params.yaml") -> Params:
    """Checks a parameter tree and gives it its types.

    Raises:
        LabError: naming every mistake at once.
    """
    params, mistakes = examine(tree)
    if params is None:
        raise LabError(f"{where}: " + "; ".join(mistakes))
    return params


def examine(tree: Mapping[str, Any]) -> tuple[Params | None, list[str]]:
    """A parameter tree with its types, None if there are mistakes, and these."""
    mistakes: list[str] = []
    params: Params = structure(Params, tree, "", mistakes)
    if not mistakes:
        unknown, mistakes = mistakes_in_words(params), mistakes_in_recipe(params)
        mistakes += [] if unknown or mistakes else mistakes_of_caches(params)
        apart = [] if unknown else mistakes_of(params, recipe=not mistakes)
        mistakes = unknown + mistakes + apart
    return None if mistakes else params, mistakes


def node_params(tree: Mapping[str, Any], name: str) -> Params:
    """Parameters of one node of an ablation: those that its stage reads.

    All others are None, so that a stage that reads more than it says fails instead of going stale unnoticed.
    """
    mistakes: list[str] = []
    unread = {item.name: None for item in fields(Params)}
    known = {"threads": 1, "system": "", **tree, "name": name}
    hints = hints_of(Params)
    read = {key: structure(hints[key], value, key, mistakes, partial=True) for key, value in known.items()}
    if mistakes:
        raise LabError(f"{name}: " + "; ".join(mistakes))
    return Params(**{**unread, **read})
