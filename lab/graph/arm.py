"""One arm outside the pipeline: `lab train` and a trial of a sweep. What exists is reused, never retrained.

A node is looked for by its identity: first among the pipeline's outputs in the current folder, then among
nodes that earlier arms left in `.lab/nodes`. Only what is found in neither runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import yaml

from lab.config import Params, check_params, read_tree, tree_of
from lab.errors import LabError, nearest
from lab.graph.claim import ClaimedError
from lab.graph.context import Context, prepare
from lab.graph.datasets import registered
from lab.graph.execution import execute
from lab.graph.node import RECORD, clear
from lab.graph.small import small_params
from lab.graph.stages import data_sets_of, instance_kinds, stages_of
from lab.graph.system import read_system

_LOOK = 0.5  # seconds between two looks at nodes that others train


def train(declaration: str | None, overrides: list[str]) -> None:
    """Trains and evaluates one arm and prints its metrics.

    Args:
        declaration: a published system, or a YAML file with what differs from params.yaml, or None.
        overrides: dotted key=value settings. Without `connector=` and `mix=` the first of each is taken.
    """
    folder = Path.cwd()
    params = _single(_declared(folder, declaration, overrides))
    arm = arm_folder(folder, params)
    print(f"arm {arm.name.rpartition('-')[0]}: {os.path.relpath(arm, folder)}", flush=True)
    result = run_chain(folder, arm, params)
    for name, value in sorted(result["metrics"].items()):
        low_high = result["intervals"].get(name)
        interval = f"  [{low_high[0]:.3f}, {low_high[1]:.3f}]" if low_high else ""
        print(f"{name:40} {value:8.3f}{interval}")


def run_trial(
    settings: Mapping[str, Any], report: Callable[[int, float], bool], rungs: Collection[int] = ()
) -> dict[str, float]:
    """One trial of a sweep: the stages that its settings change, then the evaluation.

    Args:
        settings: dotted key -> value; `connector` and `mix` choose the arm.
        report: called with (step, score) during instruction tuning, higher is better (see HeldOutScore). It
            says whether to pause there, with the state kept for another call; it may raise to stop the trial.
        rungs: steps at which to call it; four in between if none is stated.

    Returns:
        Metrics of the evaluation.

    Raises:
        Paused: as `report` asked for.
    """
    from lab.training.progress import HeldOutScore

    folder, params = Path.cwd(), _of_trial(settings)
    callback = HeldOutScore(report)

    def watch(context: Context) -> None:
        if context.stage == "instruct":
            steps = context.params.fitted("instruct").steps
            callback.prepare(context.tasks("validation"), steps, rungs)
            context.callbacks = (callback,)

    result = run_chain(folder, arm_folder(folder, params), params, watch)
    return {name: float(value) for name, value in result["metrics"].items()}


def forget_trial(settings: Mapping[str, Any]) -> None:
    """Removes the state that a trial which is not to go on has left."""
    folder, params = Path.cwd(), _of_trial(settings)
    instance = [params.connectors[0], next(iter(params.mixes))]
    clear(prepare(arm_folder(folder, params), params, "instruct", *instance, home=folder).node.work)


def _of_trial(settings: Mapping[str, Any]) -> Params:
    changes = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return _single(_declared(Path.cwd(), None, changes))


def arm_folder(folder: Path, params: Params) -> Path:
    """Where an arm of these parameters lives, below `.lab/arms`."""
    digest = hashlib.sha256(json.dumps(tree_of(params), sort_keys=True).encode()).hexdigest()[:8]
    name = params.system or f"{params.connectors[0]}-{next(iter(params.mixes))}"
    return folder / ".lab" / "arms" / f"{name}-{digest}"


def run_chain(
    folder: Path,
    arm: Path,
    params: Params,
    watch: Callable[[Context], None] = lambda context: None,
) -> dict[str, Any]:
    """Runs the recipe of one arm; existing nodes are linked instead.

    Args:
        folder: of the pipeline, whose outputs are reused.
        arm: folder of the arm; gets `output/` with links to nodes, and `metrics/`.
        params: with a single connector and mix.
        watch: called with every context that is about to run.

    Returns:
        The metrics of the last stage.
    """
    arm.mkdir(parents=True, exist_ok=True)
    _write(arm / "params.yaml", yaml.safe_dump(tree_of(params), sort_keys=False))
    instance = {"connector": params.connectors[0], "mix": next(iter(params.mixes))}
    stages, left = stages_of(params), list(params.recipe)
    metrics: dict[str, Any] = {}
    while left:
        for name in left:
            if {place.partition("/")[0] for place in stages[name].upstream} & set(left):
                continue
            words = [instance[kind] for kind in instance_kinds(stages[name])]
            context = prepare(arm, params, name, *words, home=folder)
            try:
                if (found := _reused(folder, context)) is None:
                    found = _trained(folder, context, watch)
            except ClaimedError:  # somebody trains this very node: its output will do here as well
                continue
            left.remove(name)
            metrics = found
            break
        else:
            time.sleep(_LOOK)
    return metrics


def _reused(folder: Path, context: Context) -> dict[str, Any] | None:
    """The metrics of a stage whose node exists, which is linked; None where it has to run."""
    arm, link = context.folder, context.node.output
    node = _node(folder, context)
    declared = folder / "output" / link.relative_to(arm / "output")
    stated = folder / "metrics" / context.numbers.relative_to(arm / "metrics")
    for place, numbers in ((declared, stated), (node, node.with_suffix(".json"))):
        # data alone has no metrics; elsewhere a kill may have come between them and the output
        if _identity(place) == context.node.identity and (numbers.exists() or context.stage == "data"):
            metrics = json.loads(numbers.read_text()) if numbers.exists() else {}
            _link(link, place)
            _write(context.numbers, json.dumps(metrics, indent=2) + "\n")
            print(f"{context.node.label}: reused from {os.path.relpath(place, folder)}", flush=True)
            return metrics
    return None


def _trained(folder: Path, context: Context, watch: Callable[[Context], None]) -> dict[str, Any]:
    watch(context)
    link, node = context.node.output, _node(folder, context)
    context.node = replace(context.node, output=node)
    metrics = execute(context)
    _write(node.with_suffix(".json"), json.dumps(metrics, indent=2) + "\n")
    _link(link, node)
    return metrics


def _node(folder: Path, context: Context) -> Path:
    return folder / ".lab" / "nodes" / context.node.identity


def _declared(folder: Path, declaration: str | None, overrides: list[str]) -> Params:
    """params.yaml, with a declaration's differences and overrides on top, checked."""
    changes = []
    if declaration is not None:
        path = Path(declaration)
        if "small" in (tree := read_tree(path)) or "full" in tree:
            return small_params(read_system(path), path, overrides, registered(folder))
        needed = {one.name for one in fields(Params) if one.default is one.default_factory is MISSING}
        if needed <= tree.keys():
            return check_params(read_tree(path, overrides), declaration)  # whole, as the best of a sweep
        changes = [f"{key}={json.dumps(value)}" for key, value in _leaves(tree)]
    source = folder / "params.yaml"
    return check_params(read_tree(source, [*changes, *overrides]), declaration or str(source.name))


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found += _leaves(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found


def _single(params: Params) -> Params:
    """The first arm, without the data sets that it does not read."""
    mix = next(iter(params.mixes))
    single = replace(params, connectors=params.connectors[:1], mixes={mix: params.mixes[mix]})
    read = {name for stage in single.recipe for name in data_sets_of(single, stage, {"mix": mix})}
    return replace(single, datasets={name: one for name, one in single.datasets.items() if name in read})


def _identity(place: Path) -> str:
    try:
        return str(json.loads((place / RECORD).read_text())["identity"])
    except (OSError, ValueError, KeyError):
        return ""


def _link(link: Path, target: Path) -> None:
    """Links an output, all or nothing: two trials may be of one arm."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.exists() and not link.is_symlink():
        shutil.rmtree(link)
    draft = link.with_name(f".{link.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(os.path.relpath(target.resolve(), link.parent.resolve()))
    os.replace(draft, link)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    os.replace(draft, path)


def find_arm(run: str) -> Path:
    """The folder that holds a trained arm's components.

    Args:
        run: "linear-understanding" (an arm of the pipeline here), a folder of `.lab/arms`, or a path.

    Raises:
        LabError: there is no such arm.
    """
    folder = Path.cwd()
    given = Path(run).absolute()  # an image decoder is looked for two folders above
    for place in (given, folder / "output" / "instruct" / run):
        if (place / "text_decoder" / "config.json").exists():
            return place
    for place in (given, folder / ".lab" / "arms" / run):
        found = sorted((place / "output" / "instruct").glob("*/text_decoder/config.json"))
        if found:
            return found[0].parents[1]
    known = [path.name for path in (folder / "output" / "instruct").glob("*-*")]
    known += [path.name for path in (folder / ".lab" / "arms").glob("*")]
    raise LabError(f"no trained arm '{run}'{nearest(run, known)}")
