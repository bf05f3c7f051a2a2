"""The logs of tasks as a person would have read them in a terminal."""

from __future__ import annotations

import os
import re
from pathlib import Path

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def lines_of(text: str) -> list[str]:
    """The lines of a log as a terminal would have left them, progress bars at their last state."""
    lines = (line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))
    return [plain for line in lines if (plain := _CONTROL.sub("", line).rstrip())]


def last_line(log: Path) -> str:
    """The last line that a running stage has printed."""
    with log.open("rb") as handle:
        handle.seek(max(0, handle.seek(0, os.SEEK_END) - 4096))
        lines = lines_of(handle.read().decode(errors="replace"))
    return lines[-1].strip() if lines else ""
