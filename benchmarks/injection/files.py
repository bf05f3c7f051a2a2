"""Files that are damaged, edited or lost, and disks that are full."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from injection.laboratory import (
    EVERY,
    GRAPH,
    PART,
    STEPS,
    Laboratory,
    Outcome,
    Scenario,
    Skipped,
    settings_of,
)
from injection.pipeline import Hung


def flipped(in_cache: bool) -> Scenario:
    """One bit of an output that nodes still have to read is another.

    Args:
        in_cache: flip it in what DVC's cache has of the output as well.
    """

    def trial(laboratory: Laboratory, chance: random.Random) -> Outcome:
        laboratory.expected(GRAPH)
        pipeline, outcome = laboratory.pipeline(GRAPH), Outcome(faults=1)
        target = chance.choice(["encoder", "arm3", "judge"])
        pipeline.complete(target)
        ready = [name for name in GRAPH if (pipeline.folder / "output" / name).exists()]
        waiting = {need for name in GRAPH if name not in ready for need in GRAPH[name]}
        owner = chance.choice([name for name in ready if name in waiting])
        file = chance.choice([*filter(Path.is_file, (pipeline.folder / "output" / owner).rglob("*"))])
        if in_cache:
            md5 = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
            _flip(pipeline.folder / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:], chance)
            outcome.allowed = STEPS
        _flip(file, chance)
        runner = pipeline.start()
        if runner.code() != 0:
            outcome.problems.append(f"exit code {runner.code()}: {runner.tail()}")
        log = pipeline.folder / ".lab" / "events.log"
        if not log.exists() or f"/{owner} " not in log.read_text():
            outcome.problems.append(f"no event tells of the damage to {file.name} of {owner}")
        return laboratory.finish(pipeline, outcome)

    return trial


def lost_outputs(laboratory: Laboratory, chance: random.Random) -> Outcome:
    """Outputs are gone, and one object of DVC's cache, from which they come back, is damaged."""
    laboratory.expected(GRAPH)
    pipeline, outcome = laboratory.pipeline(GRAPH), Outcome(faults=1, allowed=STEPS)
    pipeline.complete()
    objects = sorted((pipeline.folder / ".dvc" / "cache" / "files" / "md5").glob("??/*"))
    _flip(chance.choice(objects), chance)
    shutil.rmtree(pipeline.folder / "output")
    if chance.random() < 0.5:
        shutil.rmtree(pipeline.folder / "metrics")
    runner = pipeline.start()
    if runner.code() != 0:
        outcome.problems.append(f"exit code {runner.code()}: {runner.tail()}")
    return laboratory.finish(pipeline, outcome)


def full_disk(laboratory: Laboratory, chance: random.Random) -> Outcome:
    """The disk is full at a random moment; after space is made, the same command completes the graph."""
    laboratory.expected(GRAPH)
    with _disk(laboratory.folder / "disk", "24M") as disk:
        pipeline, outcome = laboratory.pipeline(GRAPH, disk / "trial"), Outcome()
        ballast = disk / "ballast"
        for _ in range(3):
            free = shutil.disk_usage(disk).free
            size = free - chance.randrange(100_000, 3_000_000)
            if size <= 0:
                break
            ballast.write_bytes(bytes(size))
            runner = pipeline.start()
            try:
                code = runner.code(40)
            except Hung as error:
                outcome.problems.append(str(error))
                code = 1
            if code:
                outcome.faults += 1
                outcome.allowed += 2 * EVERY
                said = runner.log.read_text()
                if "Traceback" in said or "space" not in said:
                    outcome.problems.append(f"exit code {code} says: {' | '.join(said.splitlines()[-5:])}")
            ballast.unlink()
            if not code:
                break
            runner.code()
        return laboratory.finish(pipeline, outcome)


def edited(laboratory: Laboratory, chance: random.Random) -> Outcome:
    """Code is edited while nodes wait: they run the copy; afterwards the nodes that use it are stale."""
    span = laboratory.seconds(GRAPH)
    pipeline, outcome = laboratory.pipeline(GRAPH), Outcome()
    part = chance.choice(["common", "special"])
    file = pipeline.folder / "components" / "quick" / f"{part}.py"
    before, status = file.read_bytes(), file.stat()
    runner = pipeline.start()
    if runner.work_began() and runner.lasts(chance.uniform(0, span / 2)):
        outcome.faults += 1
        file.write_text(PART.format(salt="edited"))
        if runner.code() != 0:
            outcome.problems.append(f"exit code {runner.code()}: {runner.tail()}")
        stale = pipeline.stale()
        uses = {name for name in GRAPH if settings_of(name)["part"] == part}
        if set(stale) != uses:
            outcome.problems.append(f"stale: {sorted(stale)}, not {sorted(uses)}")
        file.write_bytes(before)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    return laboratory.finish(pipeline, outcome)


def _flip(path: Path, chance: random.Random) -> None:
    """Change one bit of a file; its times stay as they were."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(data)
    path.chmod(status.st_mode)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@contextmanager
def _disk(place: Path, size: str) -> Iterator[Path]:
    """A small disk of its own."""
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "lab-faults", str(place)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Skipped(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)
