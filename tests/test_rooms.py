"""Imports point one way: cli, graph, training, models, components. Parts know nothing of the lab."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# a room of `lab` imports rooms of its own floor or below; what is not listed is ground that all stand on
FLOORS = {
    "cli": 3,
    **dict.fromkeys(("graph", "search", "reports"), 2),
    **dict.fromkeys(("training", "evaluation", "tracking"), 1),
    "exchange": 1,
    **dict.fromkeys(("models", "samples", "scenes"), 0),
}
HARNESS = {"lab", "pytorch_lightning", "lightning", "mlflow", "optuna", "dvc", "omegaconf", "yaml"}


def python_files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(file: Path, *, anywhere: bool = True) -> Iterator[str]:
    """Full names of imported modules; those at the top level only, unless `anywhere`."""
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if anywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield start
            yield from (f"{start}.{alias.name}" for alias in node.names)


def named(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", python_files("components"), ids=named)
def test_components_know_nothing_of_the_lab(file: Path) -> None:
    assert not {name for name in imports(file) if name.split(".")[0] in HARNESS}


@pytest.mark.parametrize("file", python_files("components"), ids=named)
def test_components_import_layers_and_contracts_only(file: Path) -> None:
    ours = {name for name in imports(file) if name.startswith("components.")}
    assert not {name for name in ours if name.split(".")[1] not in ("layers", "contracts")}


@pytest.mark.parametrize("file", python_files("components"), ids=named)
def test_components_import_heavy_libraries_when_built(file: Path) -> None:
    light = {"torch", "components", "__future__", *sys.stdlib_module_names}
    assert not {name for name in imports(file, anywhere=False) if name.split(".")[0] not in light}


@pytest.mark.parametrize("file", python_files("lab"), ids=named)
def test_rooms_of_the_lab_look_down_only(file: Path) -> None:
    room = file.relative_to(ROOT / "lab").parts[0].removesuffix(".py")
    if room not in FLOORS:
        return
    seen = {name.split(".")[1] for name in imports(file) if name.startswith("lab.")}
    assert not {other for other in seen if FLOORS.get(other, 0) > FLOORS[room]}


@pytest.mark.parametrize("file", python_files("lab"), ids=named)
def test_the_lab_knows_parts_by_the_registry(file: Path) -> None:
    ours = {name for name in imports(file) if name.split(".")[0] == "components"}
    assert not {name for name in ours if not name.startswith("components.contracts")} - {"components"}


def test_modules_do_not_import_each_other_in_circles() -> None:
    modules = {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in python_files("lab")}
    arrows = {name: set(imports(file, anywhere=False)) & set(modules) for name, file in modules.items()}
    TopologicalSorter(arrows).prepare()  # raises CycleError, naming the circle
