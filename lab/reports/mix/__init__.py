"""The report on data mixes: understanding against generation, from any ablation or sweep that varied the mix."""

from __future__ import annotations

from lab.reports.mix.study import Wish
from lab.reports.mix.write import report_ablation

__all__ = ["Wish", "report_ablation"]
