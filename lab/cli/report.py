"""`lab report`: what a data mix did, as a page: claim, surfaces, laws, the best mix, costs."""

from __future__ import annotations

import argparse
from pathlib import Path

from lab.errors import LabError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of an ablation, or its folder")
    parser.add_argument(
        "--prefer",
        nargs="+",
        metavar="NAME=WEIGHT",
        default=[],
        help="what the best mix is best for: understanding=2 generation=1, or metrics (both groups alike)",
    )
    parser.add_argument(
        "--budget",
        metavar="AMOUNT",
        default="",
        help="of the best mix: samples such as 4800, or seconds of training such as 300s",
    )


def run(args: argparse.Namespace) -> None:
    from lab.graph.ablation import find_ablation

    folder = Path(args.name)
    if not (folder / "compare.yaml").exists():
        if (folder / "params.yaml").exists() and not (folder / "ablation.yaml").exists():
            raise LabError(
                f"{args.name}: a pipeline, whose arms have one seed and few mixes; `lab compare` is its page"
            )
        folder = find_ablation(args.name).parent
    if not (folder / "compare.yaml").exists():
        raise LabError(f"{folder}: the ablation is not compiled; run `lab graph compile {folder.name}`")

    from lab.reports.mix import Wish, report_ablation

    page = report_ablation(folder, Wish(tuple(args.prefer), args.budget))
    print(f"The page: {page}")
