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
import socket
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
        content: all that its numbers follow from (see `content_of`).
        output: folder that is published at the end.
        work: folder of resumable state, outside the outputs.
    """

    stage: str
    instance: str
    content: Mapping[str, Any]
    output: Path
    work: Path

    @property
    def label(self) -> str:
        return f"{self.stage}@{self.instance}" if self.instance else self.stage

    @property
    def identity(self) -> str:
        """16 hex digits."""
        return identify(self.content)


def content_of(
    stage: str, instance: str, parameters: Mapping[str, Any], code: list[str], upstream: Mapping[str, str]
) -> dict[str, Any]:
    """All that a node's numbers follow from.

    Args:
        stage, instance: its name.
        parameters: dotted key -> value of everything it reads.
        code: files and folders of the repository, relative to it.
        upstream: name -> identity of the nodes it reads.
    """
    return {
        "stage": stage,
        "instance": instance,
        "parameters": dict(parameters),
        "code": {name: digest for place in sorted(code) for name, digest in _digests(REPOSITORY / place)},
        "upstream": dict(upstream),
    }


def identify(content: Mapping[str, Any]) -> str:
    """Hash of a node's content, 16 hex digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def identity_of(folder: Path) -> str:
    """Identity of the node that wrote `folder`.

    Raises:
        LabError: nothing was published there.
    """
    return str(record_of(folder)["identity"])


def record_of(folder: Path) -> dict[str, Any]:
    """What the node that wrote `folder` recorded about itself: its content, and the MD5 of every file."""
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError) as error:
        raise LabError(
            f"{folder}: the output of an earlier stage is missing; run `dvc repro` first"
        ) from error
    return dict(record)


def damage(folder: Path) -> str:
    """The first file of an output that is not what its node published, "" if all are."""
    for name, expected in record_of(folder).get("outputs", {}).items():
        try:
            found = md5_of(folder / name)
        except OSError:
            return f"{folder / name}: missing"
        if found != expected:
            return f"{folder / name}: damaged (MD5 {found}, published with {expected})"
    return ""


def md5_of(file: Path) -> str:
    """MD5 of a file, as DVC computes it."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextmanager
def publish(node: Node, fence: AbstractContextManager[object] | None = None) -> Iterator[Path]:
    """Gives a fresh folder to write to; renames it to the node's output when the block ends well.

    Only what is a function of the inputs goes into `node.json`: DVC hashes it with the rest of the output.

    Args:
        node: whose output it is.
        fence: entered while the output takes its place; raises if another attempt has taken over.
    """
    mark = f".{node.output.name}."
    for left in node.output.parent.glob(f"{mark}*.partial"):  # by attempts that were killed
        shutil.rmtree(left, ignore_errors=True)
    partial = node.output.parent / f"{mark}{socket.gethostname()}.{os.getpid()}.partial"
    partial.mkdir(parents=True)
    try:
        yield partial
        outputs = {
            file.relative_to(partial).as_posix(): md5_of(file)
            for file in sorted(partial.rglob("*"))
            if file.is_file()
        }
        record = {"identity": node.identity, **node.content, "outputs": outputs}
        (partial / RECORD).write_text(json.dumps(record, indent=1) + "\n")
        with fence or nullcontext():
            shutil.rmtree(node.output, ignore_errors=True)
            os.replace(partial, node.output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def clear(work: Path) -> None:
    """Removes resumable state that is no longer needed."""
    shutil.rmtree(work, ignore_errors=True)


def write_metrics(path: Path, metrics: Mapping[str, Any]) -> None:
    """Writes a metrics file, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    partial.write_text(json.dumps(metrics, indent=2) + "\n")
    os.replace(partial, path)


def _digests(path: Path) -> Iterator[tuple[str, str]]:
    """The Python files of a path, by their place in the repository, with a digest each."""
    for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
        place = file.relative_to(REPOSITORY) if file.is_relative_to(REPOSITORY) else Path(file.name)
        yield place.as_posix(), hashlib.sha256(file.read_bytes()).hexdigest()[:16]
