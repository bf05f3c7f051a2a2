"""Several workers: no trial is lost, doubled or added, whoever is killed, on a journal and on PostgreSQL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from toys import BROKEN, DEADLY, NOTED, RATED, SLOW

from lab.errors import LabError
from lab.search.results import load
from lab.search.storage import default_url, open_storage, studies
from lab.search.study import run

if TYPE_CHECKING:
    from postgres import Postgres

pytestmark = pytest.mark.usefixtures("no_plots")

MANY = """
objectives: {understanding/vqa: maximize}
sampler: random
pruner: none
space:
  stages.instruct.learning_rate.connector: {log: [3.0e-4, 3.0e-3]}
"""


def events(kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in Path("log").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def begin(file: Path, workers: int, objective: str, trials: int) -> subprocess.Popen[str]:
    """The command in a process group of its own."""
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import toys\n"
        "from lab.search import study\n"
        "if __name__ == '__main__':\n"
        "    study.conclude = lambda trials, folder: None\n"
        "    from lab.training.preemption import install\n"
        "    install()\n"
        f"    study.run({str(file)!r}, {trials}, {workers}, objective=toys.{objective})\n"
    )
    script = file.with_name("begin.py")
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen([sys.executable, str(script)], env=environment, text=True, start_new_session=True)


def until(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)


def logged(kind: str, count: int) -> Callable[[], bool]:
    return lambda: Path("log").exists() and len(events(kind)) >= count


def all_done_once(file: Path, url: str, count: int) -> None:
    """So many trials are complete, each with settings of its own, and nothing else is in the storage."""
    storage = open_storage(url)
    (name,) = studies(url)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    assert Counter(trial.state.name for trial in trials) == {"COMPLETE": count}
    assert [trial.number for trial in trials] == list(range(count))
    assert len({str(trial.params) for trial in trials}) == count
    assert all(record.metrics and record.settings for record in load(file, url).records)


@pytest.mark.parametrize("kind", ["journal", "postgres"])
def test_eight_workers_lose_and_double_nothing(
    declare: Callable[[str], Path], kind: str, request: pytest.FixtureRequest
) -> None:
    """The stress of benchmarks/workers.py, in small; a worker is killed on the way."""
    file, count = declare(MANY), 24
    if kind == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        url = server.new_database()
        file.write_text(f"{MANY}storage: {url}\n")
    else:
        url = default_url("", several=True)
    running = begin(file, 8, "NOTED", count)
    until(logged("end", 3))
    os.kill(events("end")[-1]["pid"], signal.SIGKILL)
    assert running.wait(240) == 0
    all_done_once(file, url, count)
    assert len({event["pid"] for event in events("start")}) >= 2
    # a trial that was under way at the kill was begun twice, no other
    again = [n for n in Counter(str(event["settings"]) for event in events("start")).values() if n > 1]
    assert again in ([], [2])


def test_a_study_goes_on_after_all_of_its_processes_were_killed(declare: Callable[[str], Path]) -> None:
    file, count = declare(MANY), 8
    running = begin(file, 2, "SLOW", count)
    until(logged("end", 4))
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    states = Counter(record.state for record in load(file).records)
    assert states["complete"] >= 1
    assert states["interrupted"] >= 1
    assert sum(states.values()) == count
    run(str(file), count, 2, objective=SLOW)
    all_done_once(file, default_url("", several=True), count)


def test_workers_leave_in_order_when_asked_to(declare: Callable[[str], Path]) -> None:
    file, count = declare(MANY), 30
    running = begin(file, 2, "SLOW", count)
    until(logged("end", 1))
    os.kill(running.pid, signal.SIGINT)
    assert running.wait(60) not in (0, -signal.SIGINT)
    pids = {event["pid"] for event in events("start")}
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert Counter(record.state for record in load(file).records)["running"] == 0


def test_workers_leave_when_their_command_was_killed(declare: Callable[[str], Path]) -> None:
    running = begin(declare(MANY), 2, "SLOW", 200)
    until(logged("end", 1))
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    until(lambda: not any(Path(f"/proc/{event['pid']}").exists() for event in events("start")))


def test_a_trial_that_kills_its_workers_fails_and_the_study_goes_on(declare: Callable[[str], Path]) -> None:
    """Those with an even number of queries do, as if there were no memory for them."""
    file = declare(
        "objectives: {understanding/vqa: maximize}\nset: {connector: q_former}\nsampler: grid\n"
        "pruner: none\nspace: {connector.num_queries: {int: [8, 10]}}\n"
    )
    run(str(file), workers=2, objective=DEADLY)
    dead, fine, dead_too = load(file).records
    assert (dead.state, fine.state, dead_too.state) == ("failed", "complete", "failed")
    assert dead.reason == dead_too.reason == "4 workers died at it; does it need more memory than there is?"


def test_a_study_of_one_worker_moves_to_the_journal_for_several(sweep: Path) -> None:
    run(str(sweep), 3, objective=RATED)
    before = load(sweep).records
    run(str(sweep), 6, 2, objective=NOTED)
    after = load(sweep)
    assert after.records[:3] == before[:3]
    assert len(after.records) == 6
    run(str(sweep), 7, objective=NOTED)  # and stays there
    assert len(load(sweep).records) == 7
    assert len(events("start")) == 4


def test_what_stops_a_worker_stops_all(sweep: Path) -> None:
    with pytest.raises(LabError, match="3 trials in a row failed"):
        run(str(sweep), 30, 2, objective=BROKEN)
