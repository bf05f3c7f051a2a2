"""The comparison of an ablation graph: from `compare.yaml`, metrics and per-sample scores to a verdict."""

from __future__ import annotations

from lab.reports.ablation.planning import power_table
from lab.reports.ablation.write import compare_ablation, write_ablation

__all__ = ["compare_ablation", "power_table", "write_ablation"]
