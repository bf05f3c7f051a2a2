"""`lab sweep`: an Optuna study from a declaration; the same command resumes it."""

from __future__ import annotations

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("declaration", metavar="FILE", help="sweeps/quick.yaml")
    parser.add_argument(
        "--trials", type=int, metavar="N", help="finished trials in all, instead of the file's"
    )


def run(args: argparse.Namespace) -> None:
    from lab.search.study import run as search

    search(args.declaration, args.trials)
