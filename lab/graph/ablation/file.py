"""The file itself: found, loaded, its keys, and the parameters that its arms start from."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from lab.config import Params, check_params, read_tree
from lab.errors import LabError, nearest
from lab.graph.datasets import registered
from lab.graph.node import REPOSITORY
from lab.graph.small import small_params
from lab.graph.system import read_system

FILE = "ablation.yaml"
ABLATIONS = Path("experiments", "ablations")
KEYS = (
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


def load(path: Path, mistakes: list[str]) -> dict[str, Any]:
    """Key -> value of a declaration, those that are written but empty left out.

    Raises:
        LabError: it cannot be read, or is no mapping.
    """
    shown = as_written(path)
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
        raise LabError(f"{shown}: expected a mapping of {', '.join(KEYS)}")
    mistakes += [f"line {line}: key '{key}' a second time" for line, key in sorted(loader.twice.items())]
    return {str(key): value for key, value in tree.items() if value is not None}  # all commented out


def base_of(tree: Mapping[str, Any], path: Path, mistakes: list[str]) -> Params | None:
    """Parameters that arms start from: a params.yaml, or the small size of a system."""
    name, root = tree.get("base"), checkout(path) or REPOSITORY
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
        return check_params(found, as_written(place))
    except LabError as error:
        mistakes.append(f"base: {error}")
        return None


def checkout(start: Path) -> Path | None:
    """The folder above that holds the ablations of a checkout."""
    start = start.resolve()
    return next((place for place in (start, *start.parents) if (place / ABLATIONS).is_dir()), None)


def as_written(path: Path) -> str:
    """A path as the person at the terminal would write it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
