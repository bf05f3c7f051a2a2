"""`lab preflight`: what a stage would train on, before it does."""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stage", metavar="STAGE", help="align, pretrain, instruct; a node of an ablation")
    parser.add_argument("instance", metavar="INSTANCE", nargs="*", default=[], help="its connector, its mix")
    parser.add_argument(
        "--whole", action="store_true", help="look at all samples, not at trainer.preflight_samples of them"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the samples as a page as well")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from lab.graph.preflight import examine
    from lab.reports.files import write
    from lab.reports.preflight import coloured, page, summary

    label, findings, samples = examine(Path.cwd(), args.stage, args.instance, args.whole)
    console = Console()
    for line in coloured(samples):
        console.print(line)
    print(f"\n{label}: {summary(findings)}")
    if args.html is not None:
        write(args.html, page(label, findings, samples))
        print(f"The page: {args.html}")
    return 1 if findings.faults else 0
