"""Stages that really train and are killed."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from page import ROOT

from injection.laboratory import Laboratory, Outcome, Scenario, Skipped
from injection.pipeline import PATIENCE

_STAGES = (["encoder"], ["align", "linear"], ["instruct", "linear", "understanding"])
_BEFORE = (["data"], ["judge"], ["encoder"], ["text_decoder"], ["image_decoder"], ["align", "linear"])
_EVERY = 5  # steps between two checkpoints
_MEASURED = ("cost/train_seconds", "cost/peak_memory_mb")  # what differs from run to run


class Training:
    """A pipeline so small that a stage trains in seconds, by `lab stage`.

    Args:
        laboratory: whose code it runs.
    """

    def __init__(self, laboratory: Laboratory) -> None:
        self.laboratory = laboratory
        self.folder = laboratory.folder / "training"
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(laboratory.code),
            "LAB_TRACKING": "off",
            "OMP_NUM_THREADS": "1",
        }
        self.folder.mkdir()
        params = yaml.safe_load((ROOT / "experiments" / "ablations" / "smoke" / "params.yaml").read_text())
        params |= {"root": ".", "data": {"train_scenes": 80, "validation_scenes": 40, "test_scenes": 40}}
        params["judge"]["steps"] = 5
        for name, stage in params["stages"].items():
            if name != "evaluate":
                stage |= {"log_every": 1, "checkpoint_every": _EVERY}
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        self.seconds: dict[str, float] = {}
        self.steps = {name: params["stages"][name]["steps"] for name in ("encoder", "align", "instruct")}
        for words in (*_BEFORE, _STAGES[-1]):
            began = time.monotonic()
            process, log = self.start(self.folder, words)
            if process.wait():
                raise Skipped(f"stage {words[0]} does not run: {log.read_text()[-500:]}")
            self.seconds[words[0]] = time.monotonic() - began

    def start(self, folder: Path, words: Sequence[str]) -> tuple[subprocess.Popen[bytes], Path]:
        """Start a stage; it and its log."""
        log = folder / f"{uuid.uuid4().hex[:8]}.log"
        with log.open("wb") as handle:
            command = [sys.executable, "-m", "lab", "stage", *words]
            process = subprocess.Popen(
                command, cwd=folder, env=self.environment, stdout=handle, stderr=subprocess.STDOUT
            )
        return process, log

    def made(self, folder: Path, words: Sequence[str]) -> dict[str, Any]:
        """What a stage made, but for the time it took."""
        place = "/".join([words[0], "-".join(words[1:])]).rstrip("/")
        output = folder / "output" / place
        files = {path.relative_to(output).as_posix(): path for path in sorted(output.rglob("*"))}
        made: dict[str, Any] = {name: path.read_bytes() for name, path in files.items() if path.is_file()}
        numbers = json.loads((folder / "metrics" / f"{place}.json").read_text())
        return made | {"metrics": {key: value for key, value in numbers.items() if key not in _MEASURED}}


def trained(number: int) -> Scenario:
    """Signal a stage that trains, up to twice at random moments."""

    def trial(laboratory: Laboratory, chance: random.Random) -> Outcome:
        training = laboratory.once(Training)
        words, outcome = chance.choice(_STAGES), Outcome()
        folder = Path(shutil.copytree(training.folder, laboratory.folder / f"training.{chance.random()}"))
        for place in ("output", "metrics"):
            for path in (folder / place).glob(f"{words[0]}*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        logs = []
        for _ in range(3):
            process, log = training.start(folder, words)
            logs.append(log)
            if len(logs) <= 2:
                _some_step(process, log, chance)
                if process.poll() is None:
                    began = time.monotonic()
                    process.send_signal(number)
                    code = process.wait(PATIENCE)
                    took = time.monotonic() - began
                    outcome.faults += 1
                    outcome.allowed += _EVERY if number == signal.SIGKILL else 0
                    if number != signal.SIGKILL and (code not in (0, 75, 130, -number) or took > 10):
                        outcome.problems.append(f"exit code {code} after {took:.1f} s")
                    if code:
                        continue
            if process.wait(PATIENCE):
                outcome.problems.append(log.read_text()[-300:])
            break
        executed = sum(len(_steps(log)) for log in logs)
        outcome.lost = executed - training.steps[words[0]]
        if not 0 <= outcome.lost <= outcome.allowed:
            outcome.problems.append(f"{outcome.lost} steps in vain, {outcome.allowed} allowed")
        expected, found = training.made(training.folder, words), training.made(folder, words)
        outcome.problems += [
            f"{name} differs"
            for name in sorted(expected.keys() | found.keys())
            if expected.get(name) != found.get(name)
        ]
        outcome.problems += [f"left: {path.name}" for path in folder.glob(".lab/work/*")]
        if not outcome.problems:
            shutil.rmtree(folder)
        return outcome

    return trial


def _steps(log: Path) -> list[str]:
    """The steps that a stage has reported."""
    return re.findall(r"  (\d+)/\d+  ", log.read_text(errors="replace"))


def _some_step(process: subprocess.Popen[bytes], log: Path, chance: random.Random) -> None:
    """Wait for a random moment from the first step on, or now and then before it."""
    if chance.random() < 0.2:
        time.sleep(chance.uniform(0, 3))
        return
    wanted = chance.randint(1, 25)
    while process.poll() is None and len(_steps(log)) < wanted:
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.05))
