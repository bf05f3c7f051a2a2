"""How a comparison's files are written: whole or not at all, and the same bytes for the same numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def dump(content: Any) -> str:
    """JSON that a person can read; floats to twelve digits, below which machines differ in rounding."""
    return json.dumps(_rounded(content), indent=2, ensure_ascii=False) + "\n"


def write(path: Path, text: str) -> None:
    """Writes a text file whole; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)  # never into a file that DVC's cache may share by a hard link


def _rounded(content: Any) -> Any:
    if isinstance(content, float):
        return float(f"{content:.12g}")
    if isinstance(content, dict):
        return {key: _rounded(value) for key, value in content.items()}
    return [_rounded(value) for value in content] if isinstance(content, list | tuple) else content
