"""How long tasks have taken, remembered from run to run."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path


class Timings:
    """How long tasks took and what memory they needed, over runs: `.lab/timings.json`."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[str, dict[str, float]] = {}
        with suppress(OSError, ValueError):
            self.known = json.loads(file.read_text())

    def note(self, name: str, seconds: float, memory_mb: float) -> None:
        self.known[name] = {"seconds": round(seconds, 1), "memory_mb": round(memory_mb)}

    def expected(self, name: str) -> float | None:
        """Seconds, from the task itself or else from the mean of its stage; None where neither has run."""
        if name in self.known:
            return self.known[name]["seconds"]
        stage = name.split("@")[0]
        alike = [entry["seconds"] for other, entry in self.known.items() if other.split("@")[0] == stage]
        return sum(alike) / len(alike) if alike else None

    def save(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        draft = self.file.with_name(f".{self.file.name}.{os.getpid()}")
        draft.write_text(json.dumps(self.known, indent=1, sort_keys=True) + "\n")
        os.replace(draft, self.file)
