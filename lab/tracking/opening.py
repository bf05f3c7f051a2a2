"""Experiments, arms and the runs of stages in MLflow: found or made, continued, closed, each once.

All of it may be repeated: a journal's key is a tag of the run that it opened. Callers hold the lock of
`store.locked_client`, which keeps the processes of a machine apart, and all machines of a PostgreSQL. Before
a server nothing does, so two machines may make the same arm at once; the next who looks makes them one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lab.tracking import names, process, store

if TYPE_CHECKING:
    import mlflow.entities
    from mlflow import MlflowClient

PARENT = "mlflow.parentRunId"
SHARED = "shared"
ORIGIN = {"mlflow.source.name": "lab", "mlflow.source.type": "LOCAL"}
_JOURNAL = "journal"


def experiment(client: MlflowClient, name: str) -> str:
    """Id of an experiment, which is made if it is missing and restored if it was deleted."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        # Says to the UI that this holds trainings, not language-model traces.
        kind = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return str(client.create_experiment(name, artifact_location=store.artifact_root(), tags=kind))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return experiment(client, name)  # another machine was faster
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def open_stage(client: MlflowClient, head: dict[str, Any], key: str, tried: bool) -> str:
    """Id of a stage's run, which starts now, continues where its process died, or was opened before.

    Args:
        client: Of the store.
        head: What the journal says of the run.
        key: Of the journal.
        tried: Whether this was tried before.
    """
    where = experiment(client, head["experiment"])
    if tried and (opened := search(client, where, **{_JOURNAL: key})):
        return str(opened[0].info.run_id)
    _reap(client, where, head["identity"])
    marks = {**head["tags"], _JOURNAL: key}
    earlier = _unfinished(client, where, head["identity"], head["stage"], head["arm"] or "")
    if earlier is not None:
        return _continue(client, earlier, head["name"], marks)
    if head["arm"] is not None:
        marks[PARENT] = open_arm(client, where, head["arm"], head["system"], head["start"])
    run_id = str(
        client.create_run(where, start_time=head["start"], tags=marks, run_name=head["name"]).info.run_id
    )
    if head["arm"] is not None:
        parent = open_arm(client, where, head["arm"], head["system"], head["start"])
        if parent != marks[PARENT]:  # another machine has made the arm one meanwhile, and not seen this run
            client.set_tag(run_id, PARENT, parent)
        client.update_run(parent, status="RUNNING")
    return run_id


def open_arm(client: MlflowClient, where: str, arm: str, system: str, start: int) -> str:
    """Id of an arm's run, which is made when it is missing."""
    if same := _same_arm(client, where, arm, system):
        return same
    marks = {"level": "arm", "arm": arm, "mlflow.user": process.user(), **ORIGIN}
    marks |= {"system": system} if system else {}
    made = str(client.create_run(where, start_time=start, tags=marks, run_name=arm).info.run_id)
    client.set_terminated(made, end_time=start)  # an arm is RUNNING only while a stage of it runs
    return _same_arm(client, where, arm, system) or made


def close_stage(client: MlflowClient, run_id: str, status: str, end: int) -> None:
    """Ends a stage's run, and gives its arm the status that follows from its stages."""
    client.set_terminated(run_id, status, end)
    run = client.get_run(run_id)
    if parent := run.data.tags.get(PARENT):
        _settle_arm(client, run.info.experiment_id, parent)


def close_abandoned(client: MlflowClient, run_id: str, key: str, end: int) -> None:
    """Ends the run of a process that died without a word, unless another attempt goes on with it."""
    run = client.get_run(run_id)
    if run.info.status == "RUNNING" and run.data.tags.get(_JOURNAL) == key:
        client.set_tag(run_id, "reaped", "process gone")
        close_stage(client, run_id, "KILLED", end)


def search(client: MlflowClient, where: str, *conditions: str, **tags: str) -> list[mlflow.entities.Run]:
    """Runs of an experiment that satisfy all of it, newest first."""
    filters = [*conditions, *(f'tags.{name} = "{value}"' for name, value in tags.items())]
    found = client.search_runs(
        [where], " and ".join(filters), order_by=["attributes.start_time DESC"], max_results=1000
    )
    return list(found)


def _same_arm(client: MlflowClient, where: str, arm: str, system: str) -> str | None:
    """The oldest run of this arm, after all others of it were made one with it."""
    found = search(client, where, level="arm", arm=arm)
    same = [run for run in found if run.data.tags.get("system", "") == system]
    # A stage that did not know the system opened the arm: the first that knows completes it.
    same = same or [run for run in found if not run.data.tags.get("system") or not system][-1:]
    if not same:
        return None
    first, *twins = sorted(same, key=lambda run: (run.info.start_time, run.info.run_id))
    for twin in twins:
        for child in search(client, where, f'tags.`{PARENT}` = "{twin.info.run_id}"'):
            client.set_tag(child.info.run_id, PARENT, first.info.run_id)
        client.delete_run(twin.info.run_id)
    if system and not first.data.tags.get("system"):
        client.set_tag(first.info.run_id, "system", system)
    return str(first.info.run_id)


def _continue(client: MlflowClient, earlier: mlflow.entities.Run, name: str, marks: dict[str, str]) -> str:
    run_id = str(earlier.info.run_id)
    marks = {**marks, "restarts": str(int(earlier.data.tags.get("restarts", 0)) + 1)}
    set_tags(client, run_id, marks)
    client.update_run(run_id, status="RUNNING", name=name)
    if parent := earlier.data.tags.get(PARENT):
        client.update_run(parent, status="RUNNING")
    return run_id


def set_tags(client: MlflowClient, run_id: str, tags: dict[str, str]) -> None:
    """Several tags in one call."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(names.key(name), value) for name, value in tags.items()])


def _unfinished(
    client: MlflowClient, where: str, identity: str, stage: str, arm: str
) -> mlflow.entities.Run | None:
    if not identity:
        return None
    found = search(client, where, level="stage", identity=identity, stage=stage, arm=arm)
    alive = found and found[0].info.status == "RUNNING"  # _reap left only the living as RUNNING
    return found[0] if found and not alive and found[0].info.status != "FINISHED" else None


def _reap(client: MlflowClient, where: str, identity: str) -> None:
    """Closes runs whose process died without a word (SIGKILL, power): they would seem to run for ever."""
    for run in search(client, where, "attributes.status = 'RUNNING'", level="stage"):
        if process.is_dead(run.data.tags):
            client.set_tag(run.info.run_id, "reaped", "process gone")
            client.set_terminated(run.info.run_id, "KILLED")
            if run.data.tags.get("identity") != identity and PARENT in run.data.tags:
                _settle_arm(client, where, run.data.tags[PARENT])


def _settle_arm(client: MlflowClient, where: str, parent: str) -> None:
    arm = client.get_run(parent)
    if arm.info.lifecycle_stage == "deleted":  # another machine has just made it one with an older run
        tags = arm.data.tags
        parent = _same_arm(client, where, tags.get("arm", ""), tags.get("system", "")) or parent
    latest: dict[str, str] = {}
    children = search(client, where, f'tags.`{PARENT}` = "{parent}"')
    for child in children:
        latest.setdefault(child.info.run_name, child.info.status)  # newest first
    if "RUNNING" in latest.values():
        return
    failed = {"FAILED", "KILLED"} & set(latest.values())
    end = max((child.info.end_time or 0 for child in children), default=0)
    client.set_terminated(parent, "FAILED" if failed else "FINISHED", end or None)
