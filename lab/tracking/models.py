"""Models in MLflow that name weights instead of copying them, with signature, settings and metrics."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

_FILE = "arm.json"


def log_model(client: MlflowClient, run_id: str, record: dict[str, Any]) -> None:
    """Makes the model that a run has evaluated; a second time changes nothing.

    Args:
        client: of the store.
        run_id: of the evaluation.
        record: name, loader, parts, inputs, outputs, params; values, time and step of its metrics.
    """
    from mlflow.entities import LoggedModelOutput, Metric
    from mlflow.models import Model
    from mlflow.pyfunc import add_to_model

    where = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([where], f"name = '{record['name']}' AND source_run_id = '{run_id}'")
    model = (
        found[0]
        if found
        else client.create_logged_model(
            where, record["name"], run_id, params=record["params"], model_type="arm"
        )
    )
    if not found or str(model.status) != "READY":
        with TemporaryDirectory() as folder:
            (Path(folder) / _FILE).write_text(json.dumps(record["parts"], indent=1), encoding="utf-8")
            described = Model(
                artifact_path=model.artifact_location,
                run_id=run_id,
                model_uuid=model.model_id,
                model_id=model.model_id,
                signature=_signature(record),
            )
            add_to_model(described, loader_module=record["loader"], data=_FILE)
            described.save(str(Path(folder) / "MLmodel"))
            client.log_model_artifacts(model.model_id, folder)
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, record["step"])])
    client.log_batch(
        run_id,
        metrics=[
            Metric(name, value, record["time"], record["step"], model.model_id, **record["measured_on"])
            for name, value in record["values"].items()
        ],
    )


def _signature(record: dict[str, Any]) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    def schema(columns: dict[str, tuple[str, bool]]) -> Schema:
        return Schema([ColSpec(kind, name, needed) for name, (kind, needed) in columns.items()])

    return ModelSignature(schema(record["inputs"]), schema(record["outputs"]))
