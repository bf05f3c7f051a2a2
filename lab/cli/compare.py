"""`lab compare`: the comparison of a pipeline's arms."""

from __future__ import annotations

import argparse
from pathlib import Path

from lab.errors import LabError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", metavar="FOLDER", nargs="?", type=Path, default=Path(), help="of the pipeline (here)"
    )


def run(args: argparse.Namespace) -> None:
    if not args.folder.is_dir():
        raise LabError(f"no folder '{args.folder}'")
    from lab.reports.comparison import compare

    compare(args.folder)
