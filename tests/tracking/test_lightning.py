"""A Trainer's numbers arrive in the run, and nothing else does."""

from __future__ import annotations

from typing import Any

import pytest

from lab.tracking import Run


def test_a_logger_forwards_metrics_only() -> None:
    pytest.importorskip("pytorch_lightning")
    from lab.tracking.lightning import LightningLogger

    class Recorder(Run):
        def metrics(self, values: Any, step: int = 0) -> None:
            seen.append((values, step))

    seen: list[tuple[Any, int]] = []
    logger = LightningLogger(Recorder())
    logger.log_metrics({"train/loss": 1.0, "epoch": 0.0}, step=3)
    logger.log_hyperparams({"a": 1})
    logger.finalize("success")
    assert seen == [({"train/loss": 1.0}, 3)]
    assert logger.version == "unrecorded"
