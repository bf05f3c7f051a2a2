"""Settings under the keys by which a person sets them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters under the keys by which a person sets them, one value each.

    `settings.connector.linear.bias` is `connector.bias` and says that `connector` is linear; likewise
    `mixes.even.vqa` is `mix.vqa`.
    """
    plain: dict[str, Any] = {}
    for key, value in _leaves(parameters):
        if key == "connectors" and isinstance(value, list) and len(value) == 1:
            plain.setdefault("connector", value[0])
            continue
        parts = key.split(".")
        role = {"settings": parts[1:2], "mixes": ["mix"]}.get(parts[0], [])
        start = 3 if parts[0] == "settings" else 2
        if role and len(parts) >= start:
            plain.setdefault(role[0], parts[start - 1])
            key = ".".join([*role, *parts[start:]])
            if len(parts) == start:  # a component without settings
                continue
        plain[key] = value
    return plain


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
