"""A node is one execution of one stage: its identity, its folders, its record.

The identity is a hash of everything the stage reads: its parameters, the code files it depends on, and the
identities of the nodes upstream. It names the folder of resumable state, so an interrupted node continues
where it was and a changed one never picks up state that is not its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import LabError

REPOSITORY = Path(__file__).resolve().parents[2]
RECORD = "node.json"


@dataclass(frozen=True)
class Node:
    """Where a stage reads and writes.

    Attributes:
        stage: its name.
        instance: its arm, such as "q_former" or "q_former-generation"; "" for a stage that all arms share.
        identity: 16 hex digits.
        output: folder that is published at the end.
        work: folder of resumable state, outside the outputs.
    """

    stage: str
    instance: str
    identity: str
    output: Path
    work: Path

    @property
    def label(self) -> str:
        return f"{self.stage}@{self.instance}" if self.instance else self.stage


def identify(
    stage: str, instance: str, parameters: Mapping[str, Any], code: list[str], upstream: Mapping[str, str]
) -> str:
    """Identity of a node.

    Args:
        stage, instance: its name.
        parameters: dotted key -> value of everything it reads.
        code: files and folders of the repository, relative to it.
        upstream: name -> identity of the nodes it reads.
    """
    content = {
        "stage": stage,
        "instance": instance,
        "parameters": parameters,
        "code": {name: _digest(REPOSITORY / name) for name in sorted(code)},
        "upstream": upstream,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def identity_of(folder: Path) -> str:
    """Identity of the node that wrote `folder`.

    Raises:
        LabError: nothing was published there.
    """
    return str(record_of(folder)["identity"])


def record_of(folder: Path) -> dict[str, Any]:
    """What the node that wrote `folder` recorded about itself."""
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError) as error:
        raise LabError(
            f"{folder}: the output of an earlier stage is missing; run `dvc repro` first"
        ) from error
    return dict(record)


@contextmanager
def publish(node: Node) -> Iterator[Path]:
    """Gives a fresh folder to write to; renames it to the node's output when the block ends well.

    Only what is a function of the inputs goes into `node.json`: DVC hashes it with the rest of the output.
    """
    partial = node.output.parent / f".{node.output.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    record = {"stage": node.stage, "instance": node.instance, "identity": node.identity}
    (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    shutil.rmtree(node.output, ignore_errors=True)
    os.replace(partial, node.output)


def clear(work: Path) -> None:
    """Removes resumable state that is no longer needed."""
    shutil.rmtree(work, ignore_errors=True)


def write_metrics(path: Path, metrics: Mapping[str, Any]) -> None:
    """Writes a metrics file, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(metrics, indent=2) + "\n")
    os.replace(partial, path)


def _digest(path: Path) -> str:
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        place = file.relative_to(REPOSITORY) if file.is_relative_to(REPOSITORY) else Path(file.name)
        digest.update(place.as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
