"""The page on which MLflow's UI shows arms side by side.

MLflow's table of runs shows no metric until a person picks columns. A saved view picks them once for all;
it is a tag of the experiment. The tag's format is the UI's own (seen in 3.17) and promised nowhere: a UI that
does not know it shows its usual table.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.entities import Experiment

_NAME = "arms"
_TAG = f"mlflow.sharedViewState.{_NAME}"


def view_tag(metrics: Sequence[str]) -> tuple[str, str]:
    """Key and value of the experiment's tag that makes these metrics the table's columns, in this order."""
    columns = [f"metrics.`{name}`" for name in metrics]
    state = {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [*columns, "attributes.`Dataset`"],
        "columnOrder": columns,
        "columnWidths": {column: 7 * len(column) - 20 for column in columns},  # px: the header fits
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    return _TAG, json.dumps({"name": _NAME, "createdAt": 0, "updatedAt": 0, "state": f"deflate;{packed}"})


def link(address: str, experiment: Experiment) -> str:
    """Where a server shows an experiment's runs, with the columns of its saved view if it has one.

    Args:
        address: Of the server, ``http://127.0.0.1:5000``.
        experiment: As MLflow's client returns it.
    """
    page = f"{address}/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning"
    return f"{page}&viewStateShareKey={_NAME}" if _TAG in experiment.tags else page
