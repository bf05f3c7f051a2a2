"""Runs by the names that people give them, and what each recorded of itself.

A run says what it read and wrote in `node.json`, in its output; MLflow knows the machine that it ran on, and
the runs whose outputs are gone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.errors import LabError, nearest
from lab.graph.node import RECORD, record_of
from lab.tracking import store

if TYPE_CHECKING:
    import mlflow.entities
    from mlflow import MlflowClient

ABLATIONS = Path("experiments") / "ablations"  # of a checkout
_MANY = 20  # names that an error message lists
_RUN_ID = re.compile(r"[0-9a-f]{4,32}")


@dataclass(frozen=True)
class Record:
    """What is known of one run.

    Attributes:
        name: as a person writes it, "instruct@linear-even-s0".
        stage: its word.
        identity: hash of all that it read.
        parameters: what it read of its configuration; None where that was not recorded.
        code: file -> hash, SHA-256 or the beginning of it; None likewise.
        inputs: stage -> identity of the run whose output it took; None likewise.
        outputs: file -> MD5 of what it wrote; None likewise.
        environment: "python", "torch", "host", ... -> value; empty where MLflow knows nothing.
        commit: of git, "" where MLflow knows nothing or files differed from it.
        folder: its output, None where only MLflow knows the run.
        places: stage -> folders in which that input's output may lie.
        shortened: the parameters come from MLflow, as short texts.
    """

    name: str
    stage: str
    identity: str
    parameters: Mapping[str, Any] | None = None
    code: Mapping[str, str] | None = None
    inputs: Mapping[str, str] | None = None
    outputs: Mapping[str, str] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    commit: str = ""
    folder: Path | None = None
    places: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    shortened: bool = False


class Runs:
    """All runs of a checkout by their names.

    Args:
        folder: where the person is; the checkout is looked for above it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        above = [self.folder, *self.folder.parents]
        self.root = next((place for place in above if (place / ABLATIONS).is_dir()), self.folder)
        self._client: MlflowClient | None = None
        self._connected = False
        self._newest: dict[str, mlflow.entities.Run | None] = {}

    def find(self, text: str) -> Record:
        """A run by its name (see `lab diff --help`).

        Raises:
            LabError: there is no such run, it has not run yet, or several are called so.
        """
        place = self.folder / text
        if place.is_dir():
            return self._in(place, text)
        known = self._names()
        if text in known:
            if len(known[text]) > 1:
                several = ", ".join(self._shown(place) for place in known[text])
                raise LabError(f"'{text}' may be any of {several}; name its folder")
            return self._read(known[text][0], text)
        found = self._recorded(text)
        if found is not None:
            return found
        raise LabError(f"no run '{text}'{_nearest(text, known)}")

    def read(self, folder: Path) -> Record:
        """The record of an output folder, with what MLflow knows of the run that wrote it.

        Raises:
            LabError: nothing was published there.
        """
        record = _record(folder, record_of(folder))
        run = self._run_of(record.identity)
        return record if run is None else _with_environment(record, run)

    def input_of(self, record: Record, stage: str) -> Record:
        """The run whose output another one took; nothing but its identity where that output is gone."""
        identity = (record.inputs or {})[stage]
        for place in (*record.places.get(stage, ()), self.root / ".lab" / "nodes" / identity):
            if _identity(place) == identity:
                return self.read(place)
        gone = Record(stage, stage, identity)
        run = self._run_of(identity)
        return gone if run is None else _of_run(run)

    def _in(self, place: Path, text: str) -> Record:
        """The run of an output folder, or the last one of a folder that holds the outputs of an arm."""
        if (place / RECORD).exists():
            return self.read(place)
        for stage in ("evaluate", "instruct"):
            found = sorted(place.glob(f"output/{stage}/*/{RECORD}"))
            if len(found) == 1:
                return self.read(found[0].parent)
        raise LabError(f"{text}: holds no {RECORD}; name the output folder of one stage")

    def _names(self) -> dict[str, list[Path]]:
        """Everything that a person may call a run -> the output folders that may be meant."""
        known: dict[str, list[Path]] = {}
        full: dict[str, list[Path]] = {}
        for place in sorted((self.root / ABLATIONS).glob("*/")):
            for name, output in _outputs(place).items():
                full[f"{place.name}/{name}"] = [output]
                known.setdefault(name, []).append(output)
        for place in dict.fromkeys([self.root, self.folder]):  # what lies here goes before the rest
            known |= {name: [output] for name, output in _outputs(place).items()}
            for arm in sorted((place / ".lab" / "arms").glob("*/")):
                last = sorted(arm.glob(f"output/evaluate/*/{RECORD}"))
                known |= {arm.name: [file.parent for file in last[:1]]} if last else {}
        return known | full

    def _read(self, output: Path, text: str) -> Record:
        if not (output / RECORD).exists():
            raise LabError(f"{text}: has not run yet; `lab graph run` runs what is missing")
        return self.read(output)

    def _shown(self, output: Path) -> str:
        return str(output.relative_to(self.root) if output.is_relative_to(self.root) else output)

    # -- MLflow

    def _recorded(self, text: str) -> Record | None:
        """A run by MLflow's id or the beginning of it."""
        if not _RUN_ID.fullmatch(text):
            return None
        found = self._search(f"attributes.run_id LIKE '{text}%'")
        if not found:
            return None
        if len(found) > 1:
            raise LabError(f"'{text}' begins several run ids: {', '.join(run.info.run_id for run in found)}")
        run = found[0]
        identity = run.data.tags.get("identity", "")
        if not identity:
            raise LabError(f"run {text}: is not the run of a stage, but '{run.info.run_name}'")
        folder = self._folder(identity)
        if folder is None:
            return _of_run(run)
        record = _with_environment(_record(folder, record_of(folder)), run)
        newest = self._run_of(identity)
        # an earlier run of the same identity wrote what is no longer there
        gone = newest is not None and newest.info.run_id != run.info.run_id
        return replace(record, outputs=None) if gone else record

    def _folder(self, identity: str) -> Path | None:
        """The output that a run of this identity left in the checkout."""
        shelves = [self.root, self.folder, *sorted((self.root / ABLATIONS).glob("*/"))]
        outputs = [place for shelf in shelves for place in _published(shelf)]
        places = (self.root / ".lab" / "nodes" / identity, *outputs)
        return next((place for place in places if _identity(place) == identity), None)

    def _run_of(self, identity: str) -> mlflow.entities.Run | None:
        """The newest run of an identity, one that ended well if there is any."""
        if identity not in self._newest:
            found = self._search(f"tags.identity = '{identity}' and tags.level = 'stage'")
            ended = [run for run in found if run.info.status == "FINISHED"]
            self._newest[identity] = next(iter([*ended, *found]), None)
        return self._newest[identity]

    def _search(self, condition: str) -> list[mlflow.entities.Run]:
        if not self._connected:
            self._connected = True
            self._client = _client()
        if self._client is None:
            return []
        try:
            experiments = [one.experiment_id for one in self._client.search_experiments()]
            return list(self._client.search_runs(experiments, condition, order_by=["start_time DESC"]))
        except Exception:  # whatever a tracker throws, the records in the outputs can be compared
            self._client = None
            return []


def _client() -> MlflowClient | None:
    """A client of the store; None where there is none yet, which is not the moment to make one."""
    uri = store.tracking_uri()
    if not store.enabled() or (
        uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists()
    ):
        return None
    try:
        with store.locked_client() as client:
            return client
    except Exception:  # as above
        return None


def _outputs(pipeline: Path) -> dict[str, Path]:
    """Names of runs in a pipeline's folder -> their output folders, also of those that have not run yet."""
    found: dict[str, Path] = {}
    for file in sorted(pipeline.glob("nodes/*/*.yaml")):
        if file.name != "dvc.yaml":
            found[f"{file.stem}@{file.parent.name}"] = pipeline / "output" / file.stem / file.parent.name
    for place in _published(pipeline):
        stage, _, label = place.relative_to(pipeline / "output").as_posix().partition("/")
        found[f"{stage}@{label}" if label else stage] = place
    last = {name.partition("@")[2]: place for name, place in found.items() if name.startswith("evaluate@")}
    return {**_arms(pipeline), **last, **found}


def _published(pipeline: Path) -> list[Path]:
    """The output folders that hold a record."""
    return [
        file.parent for depth in ("*", "*/*") for file in sorted(pipeline.glob(f"output/{depth}/{RECORD}"))
    ]


def _arms(pipeline: Path) -> dict[str, Path]:
    """The arms of an ablation -> the output of their evaluation, of the first seed."""
    import yaml

    try:
        tree = yaml.safe_load((pipeline / "compare.yaml").read_text(encoding="utf-8"))
        labels = {name: next(iter(arm["evaluate"].values())) for name, arm in tree["arms"].items()}
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, StopIteration):
        return {}  # not an ablation, or not compiled yet
    return {str(name): pipeline / "output" / "evaluate" / str(label) for name, label in labels.items()}


def _nearest(text: str, known: Mapping[str, Any]) -> str:
    """The nearest names; an ablation of many nodes has too many for one line."""
    if len(known) <= _MANY:
        return nearest(text, known)
    near = get_close_matches(text, list(known), n=3)
    return f" (did you mean {' or '.join(repr(name) for name in near)}?)" if near else f" among {len(known)}"


def _identity(folder: Path) -> str:
    try:
        return str(record_of(folder)["identity"])
    except (LabError, KeyError):
        return ""


def _record(folder: Path, tree: Mapping[str, Any]) -> Record:
    """The content of a `node.json`."""
    stage = str(tree.get("stage", folder.name))
    label = str(tree.get("label") or tree.get("instance") or "")
    inputs, places = None, {}
    if isinstance(tree.get("upstream"), Mapping):
        inputs = {}
        for name, said in tree["upstream"].items():
            # a name with a slash is the place of the output as well: "align/linear"
            word = name.partition("/")[0]
            key = name if word in inputs else word
            inputs[key] = str(said["identity"] if isinstance(said, Mapping) else said)
            where = str(said.get("folder", name)) if isinstance(said, Mapping) else name
            places[key] = tuple(_around(folder, where))
    return Record(
        name=f"{stage}@{label}" if label else stage,
        stage=stage,
        identity=str(tree.get("identity", "")),
        parameters=tree.get("parameters"),
        code=tree.get("code"),
        inputs=inputs,
        outputs=tree.get("outputs"),
        folder=folder,
        places=places,
    )


def _around(folder: Path, where: str) -> Iterator[Path]:
    """Where an input may lie that is named relative to an output, to its pipeline, or to all outputs."""
    yield folder / where
    for above in folder.parents:
        if above.name == "output":
            yield above / where
            yield above.parent / where


def _of_run(run: mlflow.entities.Run) -> Record:
    """A run that only MLflow knows."""
    tags, parameters = run.data.tags, dict(run.data.params)
    stage = tags.get("stage", "")
    for role in ("connector", "mix"):  # elsewhere these words stand in the keys of settings alone
        if role in tags:
            parameters.setdefault(role, tags[role])
    record = Record(
        run.info.run_name or stage, stage, tags.get("identity", ""), parameters=parameters, shortened=True
    )
    return _with_environment(record, run)


def _with_environment(record: Record, run: mlflow.entities.Run) -> Record:
    tags = run.data.tags
    found = {name.removeprefix("env."): value for name, value in tags.items() if name.startswith("env.")}
    clean = tags.get("git_dirty") == "false"
    return replace(record, environment=found, commit=tags.get("git_commit", "") if clean else "")
