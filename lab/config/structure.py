"""Shape and types: plain YAML values as the classes that they are declared to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from lab.config.sections import Switch
from lab.errors import nearest
from lab.samples.mix import MixTree, stated

hints_of = cache(get_type_hints)


def structure(kind: Any, value: Any, where: str, mistakes: list[str], partial: bool = False) -> Any:
    """`value` as the type `kind`; mistakes are appended, all of them. What a partial one lacks is None."""
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            mistakes.append(f"{where or 'top level'}: expected a mapping, not {value!r}")
            return None
        known = {item.name: item for item in fields(kind)}
        prefix = f"{where}." if where else ""
        mistakes += [
            f"unknown key '{prefix}{key}'{nearest(str(key), known)}" for key in value if key not in known
        ]
        missing = [
            name
            for name, item in known.items()
            if name not in value and item.default is MISSING and item.default_factory is MISSING
        ]
        mistakes += [] if partial else [f"missing key '{prefix}{name}'" for name in missing]
        hints = hints_of(kind)
        parts = {
            name: structure(hints[name], value[name], f"{prefix}{name}", mistakes, partial)
            for name in known
            if name in value
        }
        return None if mistakes else kind(**dict.fromkeys(missing), **parts)
    origin = get_origin(kind)
    if origin is UnionType:  # of one type and None
        inner = next(option for option in get_args(kind) if option is not type(None))
        return None if value is None else structure(inner, value, where, mistakes, partial)
    if origin is list and isinstance(value, list):
        return [
            structure(get_args(kind)[0], item, f"{where}[{index}]", mistakes)
            for index, item in enumerate(value)
        ]
    if origin is dict and isinstance(value, Mapping):
        item_kind = get_args(kind)[1]
        return {
            str(key): structure(item_kind, item, f"{where}.{key}", mistakes) for key, item in value.items()
        }
    if kind is Any:
        return value
    if kind is MixTree:
        return stated(value, where, mistakes)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind is Switch:
        kind, value = str, ("on" if value else "off") if isinstance(value, bool) else value
    if kind in (int, str, bool) and type(value) is kind:
        return value
    expected = {list: "a list", dict: "a mapping"}.get(origin or kind, getattr(kind, "__name__", str(kind)))
    mistakes.append(f"'{where}' must be {expected}, not {value!r}")
    return None
