"""`lab compare`: the comparison of a pipeline's arms, or of an ablation."""

from __future__ import annotations

import argparse
from pathlib import Path

from lab.errors import LabError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        metavar="FOLDER|NAME",
        nargs="?",
        default=".",
        help="of a pipeline or an ablation (here), or the name of an ablation",
    )


def run(args: argparse.Namespace) -> None:
    folder = Path(args.folder)
    if not folder.is_dir():
        from lab.graph.ablation import find_ablation

        try:
            folder = find_ablation(args.folder).parent
        except LabError as error:
            raise LabError(f"no folder '{args.folder}', and {error}") from error
    if (folder / "compare.yaml").exists():
        from lab.reports.ablation import compare_ablation

        compare_ablation(folder)
    elif (folder / "ablation.yaml").exists():
        name = folder.resolve().name
        raise LabError(f"{folder}: the ablation is not compiled; run `lab graph compile {name}`")
    else:
        from lab.reports.comparison import compare

        compare(folder)
