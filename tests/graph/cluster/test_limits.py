"""What SLURM does to a job by itself, in real time: a minute and a half, so these run when asked for.

LAB_SLURM_LIMITS=1 pytest tests/graph/cluster/test_limits.py
"""

from __future__ import annotations

import os
import subprocess

import pytest
from graphs import Graph, needs
from slurm import Cluster

from lab.graph.cluster.slurm import states

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("LAB_SLURM_LIMITS") != "1", reason="set LAB_SLURM_LIMITS=1 (90 s)"),
]


def test_a_time_limit_and_a_preemption_cost_no_step(graph: Graph, cluster: Cluster) -> None:
    graph.add("limited", resources=needs(time="1"), steps=600)
    graph.add("evicted", resources=needs(cpus=4), steps=300)
    graph.add("compare", "limited", "evicted")
    graph.submit()
    graph.until_started("limited", "evicted")
    urgent = ["--partition=urgent", "--nodes=3", "--exclusive", "--time=1", "--wrap=srun sleep 1"]
    subprocess.run(["sbatch", "--output=/dev/null", *urgent], check=True, capture_output=True)
    assert set(graph.until_ended(seconds=180).values()) == {"done"}
    for name in ("limited", "evicted"):
        stops, starts = graph.events(name, "stop"), graph.events(name, "start")
        assert states(graph.folder)[name].restarts == len(stops) >= 1
        assert [event["step"] for event in starts] == [0, *(event["step"] for event in stops)]
