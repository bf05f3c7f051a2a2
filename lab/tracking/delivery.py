"""Sends a journal to MLflow. Whatever is sent twice, because a sender died in between, is there once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lab.tracking import opening, store
from lab.tracking.journal import Journal, Record
from lab.tracking.models import log_model

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger("lab.tracking")
_POINTS = 1000  # of a call, a server's limit
# What no repetition would change: the run was deleted, a name is not admitted.
_REFUSED = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "INVALID_STATE"}


class StuckError(Exception):
    """MLflow answers, but does not take a journal, which is kept."""


class Delivery:
    """Sends what a journal holds, as far as MLflow takes it; call it again for the rest.

    Attributes:
        run_id: of the run, once it is open.
        ended: whether the journal's end was sent.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.ended = False
        self._opened = False
        self._uri = store.tracking_uri()
        self._client: MlflowClient | None = None

    @property
    def run_id(self) -> str | None:
        return self.journal.run_id

    def send(self) -> None:
        """Opens the run if that is due, and sends all that the journal holds by now.

        Raises:
            Exception: whatever MLflow throws; what it has not taken stays in the journal.
        """
        head = self.journal.head()
        if head is None:
            return
        if not self._opened:
            with store.locked_client(self._uri) as client:
                self._client = client
                if self.run_id is None:
                    self._open(client, head)
            self._opened = True
        while True:
            records, end = self.journal.unsent(_POINTS)
            if not records:
                return
            for batch in _batches(records):
                self._send(self._client, batch)
            self.journal.mark(end)

    def abandon(self) -> None:
        """Closes the run of a process that died; call it when all is sent."""
        if self._client is None or self.run_id is None or self.ended:
            return
        head = self.journal.head() or {}
        if head.get("kind") == "stage":
            with store.locked_client(self._uri) as client:
                opening.close_abandoned(client, self.run_id, self.journal.key, self.journal.changed)

    def answers(self) -> bool:
        """Whether MLflow does, so that what it has not taken is at fault itself."""
        with suppress(Exception), store.locked_client(self._uri) as client:
            client.search_experiments(max_results=1)
            return True
        return False

    def _open(self, client: MlflowClient, head: Record) -> None:
        tried, self.journal.tried = self.journal.tried, True
        kind = head["kind"]
        if kind == "stage":
            self.journal.run_id = opening.open_stage(client, head, self.journal.key, tried)
        else:
            where = opening.experiment(client, head["experiment"])
            if kind == "arm":
                self.journal.run_id = opening.open_arm(
                    client, where, head["arm"], head["system"], head["time"]
                )
            else:
                client.set_experiment_tag(where, head["key"], head["value"])
        self.journal.mark()

    def _send(self, client: MlflowClient, batch: list[Record]) -> None:
        from mlflow.exceptions import MlflowException

        if self.run_id is None:
            return  # a view of an experiment, which opening it has sent
        try:
            if batch[0]["kind"] == "end":
                with store.locked_client(self._uri) as locked:
                    opening.close_stage(locked, self.run_id, batch[0]["status"], batch[0]["time"])
                self.ended = True
                return
            _SEND[batch[0]["kind"]](client, self.run_id, batch, self.journal)
        except MlflowException as error:
            if error.error_code not in _REFUSED:
                raise
            warn(f"MLflow refuses a part of run {self.run_id}, which is left out", error)


def warn(message: str, error: Exception) -> None:
    """One line of warning with the reason."""
    reason = " ".join(str(error).split())[:160]
    _log.warning("%s (%s: %s)", message, type(error).__name__, reason)


def _batches(records: list[Record]) -> Iterator[list[Record]]:
    """Neighbouring metrics together, as many as a call takes; everything else on its own."""
    batch: list[Record] = []
    size = 0
    for record in records:
        own = len(record.get("values", ())) if record["kind"] == "metrics" else _POINTS
        if batch and size + own > _POINTS:
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += own
    if batch:
        yield batch


def _metrics(client: MlflowClient, run_id: str, batch: list[Record], journal: Journal) -> None:
    from mlflow.entities import Metric

    points = [
        Metric(name, value, record["time"], record["step"])
        for record in batch
        for name, value in record["values"].items()
    ]
    for start in range(0, len(points), _POINTS):
        client.log_batch(run_id, metrics=points[start : start + _POINTS])


def _params(client: MlflowClient, run_id: str, batch: list[Record], journal: Journal) -> None:
    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    fresh = [Param(name, value) for name, value in batch[0]["values"].items() if name not in known]
    for start in range(0, len(fresh), 100):  # a server's limit
        client.log_batch(run_id, params=fresh[start : start + 100])


def _tags(client: MlflowClient, run_id: str, batch: list[Record], journal: Journal) -> None:
    opening.set_tags(client, run_id, batch[0]["values"])


def _files(client: MlflowClient, run_id: str, batch: list[Record], journal: Journal) -> None:
    for name in batch[0]["names"]:
        with suppress(FileNotFoundError):  # sent before, by a sender that died then
            client.log_artifact(run_id, str(journal.folder / name), batch[0]["folder"])
    if batch[0]["folder"] == "images":
        client.set_tag(run_id, "mlflow.loggedImages", True)  # without it the UI looks for none
    for name in batch[0]["names"]:
        (journal.folder / name).unlink(missing_ok=True)


def _dataset(client: MlflowClient, run_id: str, batch: list[Record], journal: Journal) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = batch[0]
    origin = json.dumps({"tags": {"dvc": data["digest"]}})
    known = {key: json.dumps(data[key]) for key in ("profile", "schema") if data[key]}
    entity = Dataset(data["name"], data["digest"][:36], "code", origin, **known)
    used = DatasetInput(entity, [InputTag("mlflow.data.context", data["use"])])
    client.log_inputs(run_id, [used])
    if arm := client.get_run(run_id).data.tags.get(opening.PARENT):
        client.log_inputs(arm, [used])  # the UI's table shows arms before their stages


def _model(client: MlflowClient, run_id: str, batch: list[Record], journal: Journal) -> None:
    log_model(client, run_id, batch[0])


_SEND: dict[str, Callable[[Any, str, list[Record], Journal], None]] = {
    "metrics": _metrics,
    "params": _params,
    "tags": _tags,
    "files": _files,
    "dataset": _dataset,
    "model": _model,
}
