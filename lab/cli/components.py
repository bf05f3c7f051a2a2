"""`lab components`: the catalogue of parts, read from their files without importing them."""

from __future__ import annotations

import argparse
import ast
import shutil
import textwrap

from lab import registry
from lab.errors import LabError, nearest


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "which", metavar="ROLE|WORD", nargs="?", help="connector lists a role, q_former shows a part"
    )


def run(args: argparse.Namespace) -> None:
    parts = registry.catalogue()
    roles = list(registry.ROLES)
    if args.which is None or args.which in roles:
        for role in roles if args.which is None else [args.which]:
            _list(role, [part for part in parts if part.role == role])
        return
    found = [part for part in parts if part.word == args.which]
    if not found:
        raise LabError(
            f"no role or part '{args.which}'{nearest(args.which, [*roles, *(p.word for p in parts)])}"
        )
    for part in found:
        _show(part)


def _settings(part: registry.Component) -> list[str]:
    return [f"{p.name}: {p.annotation} = {p.default!r}" for p in part.parameters]


def _list(role: str, parts: list[registry.Component]) -> None:
    """Print a role's parts, each with its description, its paper and its settings."""
    width = min(shutil.get_terminal_size((110, 24)).columns, 130)
    column = max([12, *(len(part.word) + 2 for part in parts)])
    print(f"{role}  (components/{registry.ROLES[role]})")
    for part in parts:
        lines = [f"cannot be used: {part.fault}"] if part.fault else [part.title, f"Paper: {part.paper}"]
        if part.parameters:
            lines.append(", ".join(_settings(part)))
        indent = " " * (column + 2)
        for number, line in enumerate(lines):
            first = f"  {part.word:<{column}}" if number == 0 else indent
            print(
                textwrap.fill(
                    line, width, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False
                )
            )
    print()


def _show(part: registry.Component) -> None:
    """Print all that a part's file says about it."""
    file = registry.path(part.role, part.word)
    print(f"{part.role}: {part.word}  ({registry.place(part.role, part.word)})\n")
    if part.fault:
        print(f"cannot be used: {part.fault}\n")
        return
    print((ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").strip())
    print("\nSettings:" if part.parameters else "\nNo settings.")
    for line in _settings(part):
        print(f"  {line}")
    print()
