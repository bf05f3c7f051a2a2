"""`lab repro`: `dvc repro`, with several stages at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from lab.errors import LabError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "targets",
        metavar="STAGE",
        nargs="*",
        default=[],
        help="only these and what they need: instruct, align@linear",
    )
    parser.add_argument("-j", "--jobs", type=int, metavar="N", help="stages at once (as many as cores)")


def run(args: argparse.Namespace) -> int:
    if args.jobs is not None and args.jobs < 1:
        raise LabError(f"--jobs must be at least 1, not {args.jobs}")
    from lab.config import load_params
    from lab.graph.cores import default_jobs
    from lab.graph.runner import reproduce

    folder = Path.cwd()
    load_params(folder / "params.yaml")  # every mistake in it at once, before anything runs
    return reproduce(folder, args.targets, args.jobs or default_jobs())
