"""Runs: an experiment holds arms, an arm holds the runs of its stages.

Tracking never decides whether a training lives. Whatever goes wrong in here, a server that is gone or a
database that stays locked, becomes one warning, and the run goes on unrecorded.
"""

from __future__ import annotations

import getpass
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.tracking import names, process, source, store, view

if TYPE_CHECKING:
    import mlflow.entities
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

_log = logging.getLogger("lab.tracking")
_PARENT = "mlflow.parentRunId"
_SHARED = "shared"
_ORIGIN = {"mlflow.source.name": "lab", "mlflow.source.type": "LOCAL"}
_POINTS, _SECONDS = 100, 10.0  # a flush after so many points, or after so long
_PATIENCE = 60.0  # seconds until a tracker that failed is tried again
_collector: ContextVar[tuple[tuple[str, ...], Run | None]] = ContextVar("collector", default=((), None))
_KEPT = 50_000  # points held back for a tracker that may return


class Run:
    """One run. Metrics are buffered; every method is safe to call whatever the tracker's state.

    Attributes:
        id: MLflow's run id, or None where the run is not recorded.
    """

    def __init__(self, client: MlflowClient | None = None, run_id: str | None = None) -> None:
        self.id = run_id
        self._client = client
        self._points: list[tuple[str, float, int, int]] = []
        self._last_flush = time.monotonic()
        self._silent_until = 0.0

    def metrics(self, values: Mapping[str, Any], step: int = 0) -> None:
        """Records numbers at a step; those that are not finite are dropped."""
        if self._client is None:
            return
        now = int(time.time() * 1000)
        self._points += [(name, value, now, int(step)) for name, value in names.finite(values).items()]
        if len(self._points) >= _POINTS or time.monotonic() - self._last_flush > _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes the buffered metrics; keeps them for later when that fails."""
        self._last_flush = time.monotonic()
        points = self._points
        if not points or self._client is None or time.monotonic() < self._silent_until:
            del points[:-_KEPT]
            return
        while points:
            if not self._try(
                lambda client, run_id: client.log_batch(run_id, metrics=_metrics(points[:1000]))
            ):
                return
            del points[:1000]

    def params(self, values: Mapping[str, Any]) -> None:
        """Records settings, nested ones under dotted names; a setting once recorded stays as it is."""

        def log(client: MlflowClient, run_id: str) -> None:
            from mlflow.entities import Param

            known = client.get_run(run_id).data.params
            fresh = [Param(k, v) for k, v in names.flatten(values).items() if k not in known]
            for start in range(0, len(fresh), 100):  # a server's limit
                client.log_batch(run_id, params=fresh[start : start + 100])

        self._try(log)

    def tags(self, values: Mapping[str, Any]) -> None:
        """Records words that may change later."""

        def log(client: MlflowClient, run_id: str) -> None:
            from mlflow.entities import RunTag

            client.log_batch(run_id, tags=[RunTag(names.key(k), names.text(v)) for k, v in values.items()])

        self._try(log)

    def image(self, name: str, image: Any, step: int = 0) -> None:
        """Records a picture: PIL, or (H,W,3) or (3,H,W) as uint8 or as floats in [0,1]."""
        self._try(
            lambda client, run_id: client.log_image(run_id, _picture(image), key=names.key(name), step=step)
        )

    def figure(self, name: str, figure: Figure) -> None:
        """Records a matplotlib figure as the artifact ``name``, for instance ``plots/front.png``."""
        self._try(lambda client, run_id: client.log_figure(run_id, figure, name))

    def artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Copies a file into the run's artifacts (weights never: they live in DVC's cache)."""
        self._try(lambda client, run_id: client.log_artifact(run_id, str(path), folder))

    def dataset(self, name: str, digest: str) -> None:
        """Names the data that the run reads and DVC's hash of it; fills the UI's dataset column."""

        def log(client: MlflowClient, run_id: str) -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            origin = json.dumps({"tags": {"dvc": digest}})
            entity = Dataset(name=name, digest=digest[:36], source_type="code", source=origin)
            used = DatasetInput(entity, [InputTag("mlflow.data.context", "training")])
            client.log_inputs(run_id, [used])
            if arm := client.get_run(run_id).data.tags.get(_PARENT):
                client.log_inputs(arm, [used])  # the UI's table shows arms before their stages

        self._try(log)

    def _try(self, action: Callable[[MlflowClient, str], Any]) -> bool:
        """Does it, or warns once and stays silent for a while; True when done."""
        if self._client is None or self.id is None or time.monotonic() < self._silent_until:
            return False
        try:
            action(self._client, self.id)
        except Exception as error:  # whatever a tracker throws, the training goes on
            if self._silent_until == 0.0:
                _warn("MLflow does not take this run's data; the run goes on", error)
            self._silent_until = time.monotonic() + _PATIENCE
            return False
        return True

    def _finish(self, status: str) -> None:
        self._silent_until = 0.0  # one last attempt, whatever happened before
        self.flush()
        self._try(lambda client, run_id: client.set_terminated(run_id, status))


@contextmanager
def start_run(
    *,
    experiment: str,
    arm: str | None,
    stage: str,
    name: str,
    identity: str = "",
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
    dataset: tuple[str, str] | None = None,
    collect: Sequence[str] = (),
) -> Iterator[Run]:
    """Opens the run of a stage, nested under the run of its arm, and closes it with a truthful status.

    Args:
        experiment: MLflow experiment: one per ablation.
        arm: The arm's name, ``shared`` for stages that all arms use; None nests the run nowhere.
        stage: The stage's word.
        name: What a person reads in the UI.
        identity: Hash of all that determines the stage. An unfinished run of the same identity whose
            process is gone is continued instead of started anew.
        params: Settings, flat or nested.
        tags: Component words, mix, seed and so on. Arms of one name whose words differ are different arms.
        dataset: Name and DVC hash of the data.
        collect: Stages that record into this run, when they run inside it, instead of opening their own.

    Yields:
        The run; one that records nothing when tracking is off or out of reach.
    """
    collected, outer = _collector.get()
    if stage not in collected:
        outer = None
    run = outer or _open(experiment, arm, stage, name, identity, dict(tags or {}))
    run.params(params or {})
    if dataset:
        run.dataset(*dataset)
    if outer is not None:
        yield outer
        return
    collecting = _collector.set((tuple(collect), run))
    try:
        yield run
    except BaseException as error:
        success = isinstance(error, SystemExit) and error.code in (None, 0)
        stopped = isinstance(error, KeyboardInterrupt | GeneratorExit)
        if not success:
            run.tags({"error": f"{type(error).__name__}: {error}"})
        run._finish("FINISHED" if success else "KILLED" if stopped else "FAILED")
        raise
    else:
        run._finish("FINISHED")
    finally:
        _collector.reset(collecting)
        run._try(_settle)


@contextmanager
def arm_run(experiment: str, arm: str, system: str = "") -> Iterator[Run]:
    """The run of an arm itself, for what belongs to the arm as a whole."""
    run = Run()
    if store.enabled():
        try:
            with store.locked_client() as client:
                run = Run(client, _arm(client, _experiment(client, experiment), arm, system))
        except Exception as error:
            _warn("MLflow is out of reach; the arm's summary is not recorded", error)
    yield run
    run.flush()


def log_arm(experiment: str, arm: str, params: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """Puts an arm's choices and final numbers on the arm's own run, where the UI compares arms.

    Args:
        experiment: MLflow experiment.
        arm: The arm's name.
        params: Its choices: component words, mix, seed.
        metrics: Final numbers, ``understanding/...`` and ``generation/...``.
    """
    with arm_run(experiment, arm, names.system(params)) as run:
        run.params(params)
        run.metrics({name: round(value, 4) for name, value in metrics.items()})  # a table shows every digit


def log_view(experiment: str, metrics: Sequence[str]) -> None:
    """Makes these metrics the columns of the page that `lab ui` opens, in this order."""
    if not store.enabled():
        return
    try:
        with store.locked_client() as client:
            client.set_experiment_tag(_experiment(client, experiment), *view.view_tag(metrics))
    except Exception as error:
        _warn("MLflow is out of reach; its table keeps its columns", error)


def _open(
    experiment: str, arm: str | None, stage: str, name: str, identity: str, tags: dict[str, Any]
) -> Run:
    if not store.enabled():
        return Run()
    marks = {
        **{names.key(k): names.text(v) for k, v in tags.items()},
        **{"level": "stage", "stage": stage, "arm": arm or "", "identity": identity},
        **process.signature(),
        **source.git_tags(),
        **source.environment_tags(),
        **_ORIGIN,
        "mlflow.source.name": f"lab stage {stage}",
        "mlflow.user": _user(),
    }
    try:
        with store.locked_client() as client:
            where = _experiment(client, experiment)
            _reap(client, where, identity)
            earlier = _unfinished(client, where, identity, stage, arm or "")
            if earlier is not None:
                return _continue(client, earlier, name, marks)
            if arm is not None:
                # shared stages serve several systems, also those that know their connector; in an ablation
                # a name means one arm, of which each stage knows the words that it reads
                known = "connector" in tags and arm != _SHARED and "ablation" not in tags
                system = names.system(tags) if known else ""
                marks[_PARENT] = _arm(client, where, arm, system)
                client.update_run(marks[_PARENT], status="RUNNING")
            return Run(client, client.create_run(where, tags=marks, run_name=name).info.run_id)
    except Exception as error:
        _warn("MLflow is out of reach; this run is not recorded", error)
        return Run()


def _continue(client: MlflowClient, earlier: mlflow.entities.Run, name: str, marks: dict[str, str]) -> Run:
    run = Run(client, earlier.info.run_id)
    client.update_run(earlier.info.run_id, status="RUNNING", name=name)
    run.tags({**marks, "restarts": int(earlier.data.tags.get("restarts", 0)) + 1})
    if parent := earlier.data.tags.get(_PARENT):
        client.update_run(parent, status="RUNNING")
    return run


def _experiment(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        # Says to the UI that this holds trainings, not language-model traces.
        kind = {"mlflow.experimentKind": "custom_model_development"}
        return client.create_experiment(name, artifact_location=store.artifact_root(), tags=kind)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _arm(client: MlflowClient, experiment: str, arm: str, system: str) -> str:
    """The arm's run, made when it is missing; the caller holds the store's lock."""
    found = _search(client, experiment, level="arm", arm=arm)
    same = [run for run in found if run.data.tags.get("system", "") == system]
    # A stage that did not know the system opened the arm: the first that knows completes it.
    same = same or [run for run in found if not run.data.tags.get("system") or not system]
    marks = {"level": "arm", "arm": arm, "mlflow.user": _user(), **_ORIGIN}
    if system:
        marks["system"] = system
    if same:
        parent = str(same[-1].info.run_id)
        if system and not same[-1].data.tags.get("system"):
            client.set_tag(parent, "system", system)
        return parent
    made = client.create_run(experiment, tags=marks, run_name=arm).info.run_id
    client.set_terminated(made)  # an arm is RUNNING only while a stage of it runs
    return str(made)


def _unfinished(
    client: MlflowClient, experiment: str, identity: str, stage: str, arm: str
) -> mlflow.entities.Run | None:
    if not identity:
        return None
    found = _search(client, experiment, level="stage", identity=identity, stage=stage, arm=arm)
    alive = found and found[0].info.status == "RUNNING"  # _reap left only the living as RUNNING
    return found[0] if found and not alive and found[0].info.status != "FINISHED" else None


def _reap(client: MlflowClient, experiment: str, identity: str) -> None:
    """Closes runs whose process died without a word (SIGKILL, power): they would seem to run for ever."""
    for run in _search(client, experiment, "attributes.status = 'RUNNING'", level="stage"):
        if process.is_dead(run.data.tags):
            client.set_tag(run.info.run_id, "reaped", "process gone")
            client.set_terminated(run.info.run_id, "KILLED")
            if run.data.tags.get("identity") != identity and _PARENT in run.data.tags:
                _settle_arm(client, experiment, run.data.tags[_PARENT])


def _settle(client: MlflowClient, run_id: str) -> None:
    """Gives the run's arm the status that follows from its stages."""
    run = client.get_run(run_id)
    if parent := run.data.tags.get(_PARENT):
        with store.store_lock():
            _settle_arm(client, run.info.experiment_id, parent)


def _settle_arm(client: MlflowClient, experiment: str, parent: str) -> None:
    latest: dict[str, str] = {}
    for child in _search(client, experiment, f'tags.`{_PARENT}` = "{parent}"'):
        latest.setdefault(child.info.run_name, child.info.status)  # newest first
    if "RUNNING" in latest.values():
        return
    failed = {"FAILED", "KILLED"} & set(latest.values())
    client.set_terminated(parent, "FAILED" if failed else "FINISHED")


def _search(
    client: MlflowClient, experiment: str, *conditions: str, **tags: str
) -> list[mlflow.entities.Run]:
    """Runs that satisfy all of it, newest first."""
    filters = [*conditions, *(f'tags.{name} = "{value}"' for name, value in tags.items())]
    found = client.search_runs(
        [experiment], " and ".join(filters), order_by=["attributes.start_time DESC"], max_results=1000
    )
    return list(found)


def _warn(message: str, error: Exception) -> None:
    reason = (str(error).splitlines() or [""])[0][:160]
    _log.warning("%s (%s: %s)", message, type(error).__name__, reason)


def _metrics(points: list[tuple[str, float, int, int]]) -> list[mlflow.entities.Metric]:
    from mlflow.entities import Metric

    return [Metric(*point) for point in points]


def _picture(image: Any) -> Any:
    """Anything that shows a picture -> what MLflow takes: PIL or uint8 (H,W,3)."""
    from PIL import Image

    if isinstance(image, Image.Image):
        return image
    import numpy as np

    array = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)  # (C,H,W) -> (H,W,C)
    if array.dtype != np.uint8:
        array = (np.clip(array, 0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(array.squeeze())


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a uid without a name, as in some containers
        return "unknown"
