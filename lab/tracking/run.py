"""Runs: an experiment holds arms, an arm holds the runs of its stages.

Tracking never decides whether a training lives. What a run records is in a journal on disk before the call
returns; a thread sends it to MLflow, now or, if that is out of reach, later.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.tracking import names, process, source, store, view
from lab.tracking.delivery import warn
from lab.tracking.journal import Journal, now
from lab.tracking.measurements import Measurements
from lab.tracking.opening import ORIGIN, SHARED
from lab.tracking.pictures import write_picture
from lab.tracking.writer import Writer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_collector: ContextVar[tuple[tuple[str, ...], Run | None]] = ContextVar("collector", default=((), None))


class Run:
    """One run; every method is safe to call whatever the tracker's state, and costs microseconds.

    Args:
        journal: Where to; None records nothing.
        measured: Whether the machine's load is recorded too.
    """

    def __init__(self, journal: Journal | None = None, measured: bool = False) -> None:
        self._journal = journal
        self._measurements = Measurements() if measured else None
        self._began = time.monotonic()
        self._writer = Writer(journal, self._measure) if journal else None
        self._latest: dict[str, Any] = {"time": now(), "values": {}, "step": 0}
        self._data: dict[str, str] = {}
        self._complained = False

    @property
    def id(self) -> str | None:
        """MLflow's run id, or None where the run is not, or not yet, in MLflow."""
        return self._writer.run_id if self._writer else None

    @property
    def recorded(self) -> bool:
        """Whether what is recorded goes anywhere, now or later."""
        return self._journal is not None

    def metrics(self, values: Mapping[str, Any], step: int = 0) -> None:
        """Records numbers at a step; those that are not finite are dropped."""
        if self._journal is not None and (numbers := names.finite(values)):
            self._latest = {"time": now(), "values": numbers, "step": int(step)}
            self._add("metrics", **self._latest)

    def flush(self) -> None:
        """Returns when what was recorded so far would outlive the machine."""
        try:
            if self._journal is not None:
                self._journal.sync()
        except OSError as error:
            self._complain(error)

    def params(self, values: Mapping[str, Any]) -> None:
        """Records settings, nested ones under dotted names; a setting once recorded stays as it is."""
        self._add("params", values=names.flatten(values))

    def tags(self, values: Mapping[str, Any]) -> None:
        """Records words that may change later."""
        self._add("tags", values={names.key(name): names.text(value) for name, value in values.items()})

    def image(self, name: str, image: Any, step: int = 0) -> None:
        """Records a picture: PIL, or (H,W,3) or (3,H,W) as uint8 or as floats in [0,1]."""
        self._files("images", lambda journal: write_picture(image, name, step, now(), journal.file))

    def figure(self, name: str, figure: Figure) -> None:
        """Records a matplotlib figure as the artifact ``name``, for instance ``plots/front.png``."""

        def write(journal: Journal) -> list[Path]:
            path = journal.file(Path(name).name)
            figure.savefig(path)
            return [path]

        folder = Path(name).parent.as_posix()
        self._files(None if folder == "." else folder, write)

    def artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Copies a file into the run's artifacts (weights never: they live in DVC's cache)."""
        self._files(folder, lambda journal: [Path(shutil.copy(path, journal.file(Path(path).name)))])

    def dataset(
        self,
        name: str,
        digest: str,
        use: str = "training",
        profile: Mapping[str, Any] | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        """Names the data that the run reads and DVC's hash of it; fills the UI's dataset column.

        Args:
            name: What a person reads.
            digest: DVC's hash.
            use: For what: "training" or "evaluation".
            profile: What is known of it, such as its size.
            schema: Of its samples, as MLflow writes one.
        """
        self._data = {"dataset_name": name, "dataset_digest": digest[:36]}
        self._add("dataset", name=name, digest=digest, use=use, profile=profile, schema=schema)

    def model(
        self,
        name: str,
        loader: str,
        parts: Mapping[str, Any],
        inputs: Mapping[str, tuple[str, bool]],
        outputs: Mapping[str, tuple[str, bool]],
        params: Mapping[str, Any],
    ) -> None:
        """Records a model, without its weights, and the metrics recorded last as its own.

        Args:
            name: What a person reads.
            loader: Module that loads it from the file with `parts` (`_load_pyfunc`).
            parts: Where its weights are, and what they are known by.
            inputs, outputs: Column -> type of MLflow, and whether it has to be there.
            params: Its settings.
        """
        content = {"name": name, "loader": loader, "parts": dict(parts), "params": names.flatten(params)}
        content |= {"inputs": dict(inputs), "outputs": dict(outputs), "measured_on": self._data}
        self._add("model", **content, **self._latest)

    def _files(self, folder: str | None, write: Callable[[Journal], list[Path]]) -> None:
        if self._journal is None:
            return
        try:
            paths = write(self._journal)
        except Exception as error:  # whatever a picture or a disk does, the training goes on
            self._complain(error)
            return
        self._add(
            "files", folder=folder, names=[str(path.relative_to(self._journal.folder)) for path in paths]
        )

    def _add(self, kind: str, **content: Any) -> None:
        if self._journal is None:
            return
        try:
            self._journal.append({"kind": kind, "time": now()} | content)
        except OSError as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            warn("A part of what this run records is lost; the run goes on", error)
        self._complained = True

    def _measure(self) -> None:
        if self._measurements is None:
            return
        with suppress(Exception):  # a torch that is half imported, say; a figure less is no matter
            self.metrics(self._measurements.sample(), step=round(time.monotonic() - self._began))

    def _wait(self) -> None:
        if self._writer is not None:
            self._writer.wait_open()

    def _finish(self, status: str | None = None) -> None:
        if self._writer is not None and self._writer.here:
            if status:
                self._add("end", status=status)
            self.flush()
            self._writer.close()


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
    command: str = "",
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
        command: What a person calls to get such a run; `lab stage STAGE` if left out.

    Yields:
        The run; one that records nothing when tracking is off or out of reach.
    """
    collected, outer = _collector.get()
    if stage not in collected:
        outer = None
    run = outer or _open(experiment, arm, stage, name, identity, command, dict(tags or {}))
    if params:
        run.params(params)
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


@contextmanager
def arm_run(experiment: str, arm: str, system: str = "") -> Iterator[Run]:
    """The run of an arm itself, for what belongs to the arm as a whole."""
    run = _begin({"kind": "arm", "experiment": experiment, "arm": arm, "system": system, "time": now()})
    try:
        yield run
    finally:
        run._finish()


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
    key, value = view.view_tag(metrics)
    _begin({"kind": "view", "experiment": experiment, "key": key, "value": value})._finish()


def _open(
    experiment: str,
    arm: str | None,
    stage: str,
    name: str,
    identity: str,
    command: str,
    tags: dict[str, Any],
) -> Run:
    if not store.enabled():
        return Run()
    marks = {
        **{names.key(k): names.text(v) for k, v in tags.items()},
        **{"level": "stage", "stage": stage, "arm": arm or "", "identity": identity},
        **process.signature(),
        **source.git_tags(),
        **source.environment_tags(),
        **ORIGIN,
        "mlflow.source.name": command or f"lab stage {stage}",
        "mlflow.user": process.user(),
    }
    # shared stages serve several systems, also those that know their connector; in an ablation
    # a name means one arm, of which each stage knows the words that it reads
    known = "connector" in tags and arm != SHARED and "ablation" not in tags
    head: dict[str, Any] = {
        "kind": "stage",
        "experiment": experiment,
        "arm": arm,
        "stage": stage,
        "name": name,
    }
    head |= {"identity": identity, "system": names.system(tags) if known else "", "tags": marks}
    return _begin({**head, "start": now()}, measured=True)


def _begin(head: dict[str, Any], measured: bool = False) -> Run:
    """A run whose journal begins with `head`; one that records nothing if off or the disk is full."""
    if not store.enabled():
        return Run()
    try:
        run = Run(Journal.new(head), measured)
    except OSError as error:
        warn("This run is not recorded", error)
        return Run()
    run._wait()
    return run
