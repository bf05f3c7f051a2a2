"""`lab report`: what a data mix did, as a page: claim, surfaces, laws, the best mix, costs."""

from __future__ import annotations

import argparse
from pathlib import Path

from lab.errors import LabError, nearest


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of an ablation or a sweep, or its folder or file")
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
    parser.add_argument("--storage", metavar="URL", help="of a sweep that was given one")


def run(args: argparse.Namespace) -> None:
    sweep = _sweep(args.name)
    if sweep is None:
        folder = _ablation(args.name)

        from lab.reports.mix import Wish, report_ablation

        page = report_ablation(folder, Wish(tuple(args.prefer), args.budget))
    else:
        from lab.reports.mix import Wish
        from lab.reports.mix.sweep import report_sweep
        from lab.search.results import load

        records = load(sweep, args.storage).records
        page = report_sweep(sweep.stem, records, Path.cwd(), Wish(tuple(args.prefer), args.budget))
    print(f"The page: {page}")


def _sweep(name: str) -> Path | None:
    """The declaration of a sweep, by its file or its name in `sweeps/`; None if it is none."""
    for place in (Path(name), Path("sweeps", f"{name}.yaml")):
        if place.is_file() and place.suffix == ".yaml" and place.name != "ablation.yaml":
            return place
    return None


def _ablation(name: str) -> Path:
    """The folder of a compiled ablation."""
    from lab.graph.ablation import find_ablation

    folder = Path(name)
    if (folder / "compare.yaml").exists():
        return folder
    if (folder / "params.yaml").exists() and not (folder / "ablation.yaml").exists():
        raise LabError(
            f"{name}: a pipeline, whose arms have one seed and few mixes; `lab compare` is its page"
        )
    try:
        folder = find_ablation(name).parent
    except LabError as error:
        sweeps = [place.stem for place in Path("sweeps").glob("*.yaml")]
        raise LabError(f"{error}; no sweep either{nearest(name, sweeps)}") from error
    if not (folder / "compare.yaml").exists():
        raise LabError(f"{folder}: the ablation is not compiled; run `lab graph compile {folder.name}`")
    return folder
