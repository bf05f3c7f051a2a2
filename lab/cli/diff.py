"""`lab diff`: what differs between two runs, and where that began."""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = """A RUN is one of
  a node                   instruct@linear-even-s0, or connectors_by_mix/instruct@linear-even-s0
  an arm                   linear-even (its first seed), connectors_by_mix/linear-even-s1
  an arm of `lab train`    its name, or its folder under .lab/arms
  an output folder         output/encoder: whatever holds a node.json
  an id of MLflow          or as much of its beginning as no other run has

Exit code: 0 if they are identical, 1 if they differ."""
    parser.add_argument("before", metavar="RUN", help="A")
    parser.add_argument("after", metavar="RUN", help="B")


def run(args: argparse.Namespace) -> int:
    from lab.graph.differences.difference import compare
    from lab.graph.differences.runs import Runs
    from lab.reports.difference import report

    runs = Runs(Path.cwd())
    difference = compare(runs.find(args.before), runs.find(args.after), runs)
    print("\n".join(report(difference)))
    return 0 if difference.same and not difference.environment else 1
