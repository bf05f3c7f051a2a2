"""`lab data`: look at a data set, register it, check that evaluation sets are not in training data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

from lab.errors import LabError

_ACTIONS = {
    "inspect": "recognise a data set: counts, samples, lengths, problems, a contact sheet",
    "import": "register a data set under a name that mixes can use",
    "check": "find images and questions of evaluation sets in training data",
}
_SHOWN = 20  # leaks that are shown one by one


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    for action, summary in _ACTIONS.items():
        below = actions.add_parser(action, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if action == "check":
            below.add_argument("names", metavar="NAME", nargs="*", default=[], help="data sets (all)")
            continue
        hub = ", or owner/name on the Hugging Face hub" if action == "import" else ""
        below.add_argument("path", metavar="PATH", help=f"folder of the data set{hub}")
        below.add_argument("--format", metavar="NAME", help="where it is not recognised: llava, coco, ...")
        below.add_argument("--limit", type=int, metavar="PIXELS", help="most pixels of an image (100000000)")
        below.add_argument(
            "--split",
            nargs="+",
            metavar="SPLIT",
            help="own; or shares by image: validation=0.1 test=0.1; or files: train=train.json test=val.json",
        )
        if action == "inspect":
            below.add_argument("--samples", type=int, default=3, metavar="N", help="to show (%(default)s)")
            below.add_argument("--tokenizer", metavar="FOLDER", help="whose tokens to count, not words")
            below.add_argument("--sheet", type=Path, metavar="FILE", help="of images (data-NAME.png)")
            continue
        below.add_argument("--as", dest="name", metavar="NAME", required=True, help="what mixes call it")
        below.add_argument(
            "--policy", metavar="POLICY", help="for bad records: error, skip, quarantine (error)"
        )
        below.add_argument("--task", metavar="TASK", help="text_to_image: draw from its captions")
        below.add_argument("--fit", metavar="FIT", help="of images: pad, crop, stretch, anyres (pad)")
        below.add_argument("--tiles", type=int, metavar="N", help="at most so many tiles, for anyres (4)")
        ways = below.add_mutually_exclusive_group()
        ways.add_argument("--copy", action="store_true", help="copy files, share no blocks")
        ways.add_argument("--link", action="store_true", help="leave files where they are; DVC keeps no copy")


def run(args: argparse.Namespace) -> int | None:
    return {"inspect": _inspect, "import": _import, "check": _check}[args.action](args)


def _inspect(args: argparse.Namespace) -> None:
    from lab.graph.importing import inspected
    from lab.reports.data import contact_sheet, description
    from lab.samples.tokenizer import Tokenizer

    if args.samples < 0:
        raise LabError(f"--samples {args.samples}: expected 0 or more")
    data = inspected(args.path, _stated(args))
    tokenizer = None if args.tokenizer is None else Tokenizer.load(args.tokenizer)
    for line in description(data, args.samples, tokenizer):
        print(line)
    sheet = args.sheet or Path(f"data-{data.name}.png")
    if images := contact_sheet(data, 24, sheet):
        print(f"\n{images} images in {sheet}")


def _import(args: argparse.Namespace) -> None:
    from lab.config import SPLITS
    from lab.graph.importing import import_data

    way: Literal["clone", "copy", "link"] = "link" if args.link else "copy" if args.copy else "clone"
    data = import_data(args.path, args.name, _stated(args), way)
    rows = ", ".join(f"{split} {len(data.rows(split)):,}" for split in SPLITS)
    print(f"datasets/{args.name}: {len(data):,} rows of format {data.params.format} ({rows})")
    if data.skipped:
        kinds = data.index.counts["problems"].items()
        told = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in kinds)
        print(f"{data.skipped:,} records left out: {told}")
    print(f"a mix can name it: {{{args.name}: 1}}")
    if not args.link:
        print(f"for git: git add params.yaml datasets/.gitignore datasets/{args.name}.dvc")


def _check(args: argparse.Namespace) -> int:
    from lab.graph.leakage import check_leakage

    found, compared = check_leakage(args.names)
    for line in compared:
        print(line)
    for leak in found[:_SHOWN]:
        near = f" ({leak.distance} of 64 bits differ)" if leak.kind == "near image" else ""
        print(f"{leak.kind}{near}: {leak.held_out} and {leak.training}")
    if len(found) > _SHOWN:
        print(f"and {len(found) - _SHOWN:,} more")
    print(f"{len(found):,} leaks" if found else "no leak")
    return 1 if found else 0


def _stated(args: argparse.Namespace) -> dict[str, Any]:
    """What the entry of the data set says of what was given."""
    names = ("format", "limit", "policy", "task", "fit", "tiles")
    stated = {name: value for name in names if (value := getattr(args, name, None)) is not None}
    if args.split is not None:
        stated["splits"] = _splits(args.split)
    return stated


def _splits(words: list[str]) -> Any:
    if words == ["own"]:
        return "own"
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise LabError(f"--split {word}: expected own, or SPLIT=SHARE, or SPLIT=FILE")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = value
    return found
