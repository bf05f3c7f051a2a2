"""The runner on a small real DVC pipeline: a -> b, c -> d."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from lab.errors import LabError
from lab.graph.task import Pipeline, Task

STEP = """
import json, os, pathlib, sys, time, yaml
name, *needs = sys.argv[1:]
setting = yaml.safe_load(open("params.yaml"))[name]
def note(event):
    with open("events", "a") as file:
        file.write(json.dumps([name, event, os.getpid(), time.time()]) + "\\n")
note("start")
print(f"{name} at work", flush=True)
time.sleep(float(os.environ.get("SLEEP_" + name, "0")))
if setting == "wrong":
    sys.exit("something broke")
if setting == "mistake":
    print("lab: error: no connector 'q_fromer'", file=sys.stderr)
    sys.exit(2)
pathlib.Path("output").mkdir(exist_ok=True)
taken = [pathlib.Path("output", need).read_text() for need in needs]
pathlib.Path("output", name).write_text(" ".join([name, str(setting), *taken]))
note("end")
"""

# The command itself, but for its check of params.yaml: the pipeline below is none of the lab's.
COMMAND = """
import sys
from lab import config
from lab.cli import main
config.load_params = lambda path: None
sys.exit(main(sys.argv[1:]))
"""

NEEDS: dict[str, list[str]] = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}


def dvc(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "dvc", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    subprocess.run(["git", "init", "-q", "."], cwd=folder, check=True)
    dvc(folder, "init", "-q")
    (folder / ".gitignore").write_text("output/\n.lab/\n")
    (folder / "step.py").write_text(STEP)
    (folder / "params.yaml").write_text("".join(f"{name}: 1\n" for name in NEEDS))
    stages = {
        name: {
            "cmd": " ".join([sys.executable, "step.py", name, *needs]),
            "params": [name],
            "deps": ["step.py", *(f"output/{n}" for n in needs)],
            "outs": [f"output/{name}"],
        }
        for name, needs in NEEDS.items()
    }
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))  # JSON is YAML
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "pipeline")


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Starts `lab repro` in the pipeline's folder; what a test leaves running is killed."""
    started: list[subprocess.Popen[str]] = []

    def run(*words: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "repro", *words],
            cwd=folder,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=30)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=90)
    return process.returncode, output


def events(folder: Path) -> list[tuple[str, str, int, float]]:
    file = folder / "events"
    return [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def ran(folder: Path) -> list[str]:
    return sorted(name for name, event, _, _ in events(folder) if event == "start")


def await_start(folder: Path, name: str) -> int:
    """Waits until a stage's command runs and returns its process id."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for started, event, pid, _ in events(folder):
            if (started, event) == (name, "start"):
                return pid
        time.sleep(0.05)
    raise AssertionError(f"{name} did not start")


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 15
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not psutil.pid_exists(pid)


def test_runs_in_parallel_and_dvc_finds_nothing_to_do(folder: Path, start: Start) -> None:
    code, output = finish(start("--jobs", "2", SLEEP_b="4", SLEEP_c="4"))
    assert code == 0, output
    assert ran(folder) == ["a", "b", "c", "d"]
    times = {(name, event): when for name, event, _, when in events(folder)}
    assert max(times["b", "start"], times["c", "start"]) < min(times["b", "end"], times["c", "end"])
    assert "4 ran" in output

    assert "up to date" in dvc(folder, "repro")
    assert ran(folder) == ["a", "b", "c", "d"]
    code, output = finish(start())
    assert (code, output.strip()) == (0, "4 stages, all up to date")

    params = folder / "params.yaml"
    text = params.read_text()
    params.write_text(text.replace("b: 1", "b: 2"))
    assert finish(start())[0] == 0
    assert ran(folder) == ["a", "b", "b", "c", "d", "d"]
    params.write_text(text)
    code, output = finish(start())
    assert "2 up to date, 2 from cache" in output
    assert ran(folder) == ["a", "b", "b", "c", "d", "d"]


@pytest.mark.parametrize(
    ("setting", "code", "shown"),
    [("wrong", 1, "something broke"), ("mistake", 2, "lab: error: no connector 'q_fromer'")],
)
def test_a_failure_stops_only_what_depends_on_it(
    folder: Path, start: Start, setting: str, code: int, shown: str
) -> None:
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("b: 1", f"b: {setting}"))
    returned, output = finish(start("--jobs", "2", SLEEP_c="2"))
    assert returned == code, output
    assert shown in output
    assert "1 failed, 1 held back" in output
    assert (folder / "output" / "c").exists()
    assert ran(folder) == ["a", "b", "c"]

    params.write_text(params.read_text().replace(setting, "1"))
    assert finish(start())[0] == 0
    assert ran(folder) == ["a", "b", "b", "c", "d"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopping_ends_every_process_and_the_same_command_goes_on(
    folder: Path, start: Start, number: signal.Signals
) -> None:
    first = start("--jobs", "2", SLEEP_b="60", SLEEP_c="60")
    pids = [await_start(folder, "b"), await_start(folder, "c")]
    first.send_signal(number)
    code, output = finish(first)
    assert code == (-9 if number == signal.SIGKILL else 130)
    if number != signal.SIGKILL:
        assert "stopped in" in output

    code, output = finish(start("--jobs", "2"))  # at once: it waits until the leftovers have ended
    assert code == 0, output
    assert all(gone(pid) for pid in pids)
    assert ran(folder) == ["a", "b", "b", "c", "c", "d"]
    assert "up to date" in dvc(folder, "repro")


def test_targets_and_mistakes(folder: Path, start: Start, tmp_path: Path) -> None:
    assert finish(start("b"))[0] == 0
    assert ran(folder) == ["a", "b"]
    code, output = finish(start("e"))
    assert (code, output.strip()) == (2, "lab: error: no stage 'e'; have a, b, c, d")
    (folder / "dvc.yaml").write_text("stages: {a: {cmdd: x}}")
    code, output = finish(start())
    assert code == 2
    assert output.startswith("lab: error: DVC: ")
    assert len(output.splitlines()) == 1


def test_select_takes_groups_patterns_and_what_they_need() -> None:
    parents = {"data": set(), "align@x": {"data"}, "align@y": {"data"}, "end": {"align@x"}}
    place = Path("here")
    pipeline = Pipeline(
        {
            name: Task(name, "", place, place, (), (), frozenset(needed), place)
            for name, needed in parents.items()
        }
    )
    assert pipeline.select([]) == set(parents)
    assert pipeline.select(["align"]) == {"data", "align@x", "align@y"}
    assert pipeline.select(["*@y"]) == {"data", "align@y"}
    assert pipeline.descendants(["align@x"]) == {"align@x", "end"}
    with pytest.raises(LabError, match=r"did you mean 'align@y'"):
        pipeline.select(["aling@y"])
