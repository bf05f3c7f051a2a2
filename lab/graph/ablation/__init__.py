"""The declaration of an ablation graph, `ablation.yaml`: read, checked in full, and spelt out as arms.

docs/ablations.md explains every key; experiments/ablations/connectors_by_mix is an example with comments.
"""

from __future__ import annotations

from lab.graph.ablation.declaration import Ablation, Arm, Budget, Claim, Resources
from lab.graph.ablation.file import FILE
from lab.graph.ablation.reading import find_ablation, read_ablation
from lab.graph.ablation.resources import asked, resources_of

__all__ = [
    "FILE",
    "Ablation",
    "Arm",
    "Budget",
    "Claim",
    "Resources",
    "asked",
    "find_ablation",
    "read_ablation",
    "resources_of",
]
