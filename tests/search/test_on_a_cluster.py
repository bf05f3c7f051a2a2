"""Workers as jobs of a real SLURM: they share a study, and one that is lost costs nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.search.results import load

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_jobs_of_a_cluster_finish_a_study(tiny: Path) -> None:
    (tiny / "jobs.yaml").write_text(
        "objectives: {understanding/vqa: maximize}\nsampler: random\npruner: none\ntrials: 3\n"
        "resources: {memory: 1G, time: 10}\n"
        "space: {stages.instruct.learning_rate.connector: {log: [1.0e-4, 1.0e-2]}}\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LAB_TRACKING": "off"}
    command = [sys.executable, "-m", "lab", "sweep", "jobs.yaml", "--on", "slurm", "--workers", "2"]
    done = subprocess.run(command, cwd=tiny, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 workers were there, 2 submitted" in done.stdout
    assert [record.state for record in load("jobs.yaml").records] == ["complete"] * 3
    logs = list((tiny / ".lab" / "sweeps").glob("*/worker-*.log"))
    assert len(logs) == 2
    assert sum(log.read_text().count("understanding/vqa") for log in logs) == 3
    assert (tiny / "output" / "sweeps" / "jobs" / "best.yaml").exists()
