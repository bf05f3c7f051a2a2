"""The report on data mixes: what samples of understanding and of generation do to each other's metrics."""

from __future__ import annotations

from lab.reports.mix.study import Wish
from lab.reports.mix.write import report_ablation

__all__ = ["Wish", "report_ablation"]
