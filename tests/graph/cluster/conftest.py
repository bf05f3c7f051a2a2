from __future__ import annotations

import sys
from pathlib import Path

import pytest
from slurm import Cluster

from lab.graph.cluster import batch

sys.path.insert(0, str(Path(__file__).parent))
from graphs import Graph, new_graph


@pytest.fixture
def graph(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Graph:
    """An empty graph on the cluster."""
    monkeypatch.setattr(batch, "_BUSY", 0)
    return new_graph(tmp_path)
