"""Lightning's view of a run."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from lab.tracking.run import Run


class LightningLogger(Logger):
    """Forwards what a Trainer logs to a run; leaves checkpoints, parameters and the run's end to others."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    @property
    def name(self) -> str:
        return "lab"

    @property
    def version(self) -> str:
        return self._run.id or "unrecorded"

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        values = {name: value for name, value in metrics.items() if name != "epoch"}  # there is only one
        self._run.metrics(values, step or 0)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the stage recorded its settings when it opened the run."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._run.flush()
