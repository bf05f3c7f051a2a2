"""`lab systems`: the published systems that are declared here."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from pathlib import Path

from lab.errors import LabError
from lab.graph.system import find, names, read_system, status


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results",
        action="store_true",
        help="print what the systems trained in this folder reached, in Markdown",
    )


def run(args: argparse.Namespace) -> None:
    if args.results:
        from lab.reports.systems import systems_table

        print(systems_table(Path.cwd()), end="")
        return
    width = min(shutil.get_terminal_size((110, 24)).columns, 130)
    column = max([8, *(len(name) for name in names())]) + 2
    for name in names():
        try:
            system = read_system(find(name))
            lines = [
                f"{system.title}, arXiv:{system.paper}",
                ", ".join(f"{role} {word}" for role, word in system.words().items()) or "no full size",
                f"claims {', '.join(system.claims)}; {status(name)}",
            ]
        except LabError as error:
            lines = [f"cannot be used: {error}"]
        for number, line in enumerate(lines):
            first = f"{name:<{column}}" if number == 0 else " " * column
            print(textwrap.fill(line, width, initial_indent=first, subsequent_indent=" " * column))
