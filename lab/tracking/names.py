"""Parameters, metrics and tags as MLflow accepts them and as a person reads them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

_ILLEGAL = re.compile(r"[^\w.\-/: ]")
_LONGEST = 250  # characters of a value: what a table cell can show
_SYSTEM = ("encoder", "connector", "text_decoder", "fusion", "visual_head", "image_decoder")


def key(name: str) -> str:
    """A legal key: ``recall@1`` is refused by MLflow, ``recall_at_1`` is not."""
    return _ILLEGAL.sub("_", name.replace("@", "_at_"))


def text(value: object) -> str:
    """One short string: ``true``, ``0.001``, ``a, b``."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = ", ".join(text(item) for item in value)
    value = str(value)
    return value if len(value) <= _LONGEST else value[: _LONGEST - 3] + "..."


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys with short values, each choice on its own."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{path}.")
        else:
            flat[key(path)] = text(value)
    return flat


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """Metrics with legal names and finite values; the others would ruin the UI's axes and filters."""
    numbers = {key(name): float(value) for name, value in values.items() if value is not None}
    return {name: number for name, number in numbers.items() if math.isfinite(number)}


def system(words: Mapping[str, str]) -> str:
    """A system's component words in one line, in the order in which data flows."""
    return " ".join(str(words[role]) for role in _SYSTEM if words.get(role))
