"""`lab stage`: what the stages of dvc.yaml call."""

from __future__ import annotations

import argparse

from lab.training.preemption import install
from lab.training.processes import may_start


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="data, judge, encoder, ..., compare")
    parser.add_argument("instance", metavar="INSTANCE", nargs="*", default=[], help="its connector, its mix")


def run(args: argparse.Namespace) -> None:
    install()  # before imports that take seconds
    may_start()
    from lab.graph.execution import run_stage

    run_stage(args.name, *args.instance)
