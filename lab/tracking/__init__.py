"""MLflow: experiments hold arms, arms hold the runs of their stages.

A run's records go to a journal on disk (`journal`), which a thread (`writer`) sends to MLflow (`delivery`,
`opening`), at once or when MLflow is back. Nothing heavy is imported before a run is opened. The Trainer's
logger is ``lab.tracking.lightning.LightningLogger``, apart because it imports Lightning.
"""

from __future__ import annotations

from lab.tracking.run import Run, arm_run, log_arm, log_view, start_run

__all__ = ["Run", "arm_run", "log_arm", "log_view", "start_run"]
