"""`lab export`: a trained arm, or its image decoder, in the format of transformers or diffusers."""

from __future__ import annotations

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arm", metavar="RUN", help="a trained arm (linear-understanding) or its folder")
    parser.add_argument("folder", metavar="FOLDER", help="where to; it must not exist yet, or be empty")
    parser.add_argument(
        "--part",
        choices=("model", "image_decoder"),
        default="model",
        help="what reads, as a LLaVA of transformers, or what draws, for diffusers (%(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    from lab.graph.exchange import export

    for note in export(args.arm, args.folder, args.part):
        print(f"note: {note}")
    print(args.folder)
