"""How many stages at once a machine bears."""

from __future__ import annotations

import os

from lab.graph.cores import cores, default_jobs


def test_jobs_fit_the_machine() -> None:
    assert 1 <= default_jobs() <= cores() <= (os.cpu_count() or 1)
