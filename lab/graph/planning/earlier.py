"""What earlier runs took: of this ablation, of the others, and of the pipeline at the root.

Two records are read. `.lab/timings.json`, which the runner writes, has the time and the peak memory of whole
processes. `metrics/STAGE/LABEL.json`, which is in git and so in every clone, has the time of the work itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.errors import LabError
from lab.graph.node import RECORD
from lab.graph.planning.work import Work, work_of

if TYPE_CHECKING:
    from lab.config import Params
    from lab.graph.compile import Graph

# settings that change a stage's time, by how far apart they set two stages
_WORD, _SETTING, _MIX, _PART = 10.0, 3.0, 1.0, 0.5


@dataclass(frozen=True)
class Earlier:
    """One run that has ended.

    Attributes:
        work: what it did.
        name: of its node, with its folder's name before it.
        seconds: of the whole process, or of the work itself.
        whole: which of the two.
        memory: MB at its peak, None where nobody looked.
    """

    work: Work
    name: str
    seconds: float
    whole: bool
    memory: float | None

    def distance(self, work: Work) -> float:
        """How unlike its work is to another of the same stage, as far as that takes time; 0 for like."""
        mine, other = self.work.shape, work.shape
        apart = 0.0 if self.whole else _PART
        apart += _MIX * (self.work.mix != work.mix) + _MIX * (self.work.batch != work.batch)
        for key in {*mine, *other}:
            if mine.get(key) != other.get(key):
                apart += _SETTING if "." in key else _WORD
        return apart


def checkout_of(folder: Path) -> Path:
    """The folder above `experiments/ablations/NAME`, where the other ablations are to be found as well."""
    inside = folder.parent.name == "ablations" and folder.parent.parent.name == "experiments"
    return folder.parents[2] if inside else folder


def earlier_runs(graph: Graph) -> list[Earlier]:
    """All runs that have left a record, those of the ablation itself first."""
    own = {
        (node.stage, node.label): work_of(node.stage, node.reads, node.connector)
        for node in graph.nodes.values()
    }
    found = [*_runs_in(graph.folder, own)]
    root = checkout_of(graph.folder)
    for folder in [*sorted((root / "experiments" / "ablations").glob("*/")), root]:
        if folder != graph.folder:
            found += _runs_in(folder, _declared(folder))
    return found


def _runs_in(folder: Path, declared: Mapping[tuple[str, str], Work]) -> Iterator[Earlier]:
    """The runs of one folder, each as the work that it did, or that it is declared to do now."""
    timings = _read(folder / ".lab" / "timings.json")
    for (stage, label), work in declared.items():
        name = f"{stage}@{label}" if label else stage
        record = _read(folder / "output" / stage / label / RECORD)
        parameters = record.get("parameters")
        if isinstance(parameters, dict):  # what ran, whatever is declared now
            work = work_of(stage, parameters, str(work.settings.get("connector", "")))
        file = folder / "metrics" / stage / f"{label}.json" if label else folder / "metrics" / f"{stage}.json"
        tree = _read(file)
        numbers = tree.get("metrics", tree)
        memory = _number(numbers.get("cost/peak_memory_mb"))
        if (seconds := _number(numbers.get(_key(stage)))) is not None:
            yield Earlier(work, f"{folder.name}/{name}", seconds, False, memory)
        timed = timings.get(name)
        if isinstance(timed, dict) and (seconds := _number(timed.get("seconds"))) is not None:
            yield Earlier(
                work, f"{folder.name}/{name}", seconds, True, _number(timed.get("memory_mb")) or memory
            )


def _key(stage: str) -> str:
    return "cost/evaluate_seconds" if stage == "evaluate" else "cost/train_seconds"


def _declared(folder: Path) -> dict[tuple[str, str], Work]:
    """The stages of another ablation, or of a pipeline, of which there may be records."""
    import yaml

    files = sorted(folder.glob("nodes/*/*.yaml"))
    found = {}
    for file in files:
        if file.name == "dvc.yaml":
            continue
        try:
            tree = yaml.load(file.read_text(encoding="utf-8"), yaml.CSafeLoader)
            work = work_of(tree["stage"], tree["params"], tree.get("connector", ""))
        except (OSError, yaml.YAMLError, KeyError, TypeError):
            continue  # not a node's; what it took is not known
        found[work.stage, file.parent.name] = work
    if files or not (folder / "params.yaml").exists() or not (folder / "metrics").is_dir():
        return found
    return _pipeline(folder)


def _pipeline(folder: Path) -> dict[tuple[str, str], Work]:
    """The stages of a folder with a params.yaml and a dvc.yaml by hand."""
    from lab.config import load_params
    from lab.graph.stages import instance_kinds, stages_of

    try:
        params = load_params(folder / "params.yaml")
    except LabError:
        return {}
    found = {}
    for stage, definition in stages_of(params).items():
        kinds = instance_kinds(definition) if stage != "compare" else []
        for connector in params.connectors if "connector" in kinds else params.connectors[:1]:
            for mix in params.mixes if "mix" in kinds else list(params.mixes)[:1]:
                given = {"connector": connector, "mix": mix}
                label = "-".join(given[kind] for kind in kinds)
                found[stage, label] = _work(params, stage, given)
    return found


def _work(params: Params, stage: str, given: Mapping[str, str]) -> Work:
    from lab.graph.stages import identified_by

    single = replace(params, connectors=[given["connector"]])
    return work_of(stage, identified_by(single, stage, given))


def _read(file: Path) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _number(value: object) -> float | None:
    return (
        float(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
        else None
    )
