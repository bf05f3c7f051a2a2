"""Tables of measurements in pages of the documentation, and copies of the code to measure."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown, the first row as its head."""
    head, *body = rows
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def machine() -> str:
    """What the figures were taken on, in a line."""
    model = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), model)
    memory = psutil.virtual_memory().total / 2**30
    versions = f"Python {platform.python_version()}, DVC {version('dvc')}"
    return f"{model}, {os.cpu_count()} hardware threads, {memory:.0f} GB, {platform.system()}, {versions}"


def write_between(page: Path, marks: tuple[str, str], text: str) -> None:
    """Replace what stands between two marks of a page."""
    before, _, rest = page.read_text().partition(marks[0])
    _, _, after = rest.partition(marks[1])
    page.write_text(f"{before}{marks[0]}\n{text}\n{marks[1]}{after}")


def checkout(folder: Path) -> None:
    """Copy the lab's code, as it is now, to a folder of its own."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for package in ("lab", "components"):
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    shutil.copyfile(ROOT / ".dvcignore", folder / ".dvcignore")
    (folder / ".gitignore").write_text("output/\n.lab/\n__pycache__/\n")
