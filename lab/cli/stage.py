"""`lab stage`: what the stages of dvc.yaml call."""

from __future__ import annotations

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="data, judge, encoder, ..., compare")
    parser.add_argument("instance", metavar="INSTANCE", nargs="*", default=[], help="its connector, its mix")


def run(args: argparse.Namespace) -> None:
    from lab.graph.stages import run_stage

    run_stage(args.name, *args.instance)
