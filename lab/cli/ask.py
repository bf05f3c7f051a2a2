"""`lab ask`: a question about an image, answered by a trained arm."""

from __future__ import annotations

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arm", metavar="RUN", help="a trained arm (linear-understanding) or its folder")
    parser.add_argument("image", metavar="IMAGE", help="an image file; it is resized to what the arm sees")
    parser.add_argument("question", metavar="QUESTION")


def run(args: argparse.Namespace) -> None:
    from lab.graph.trained import ask

    print(ask(args.arm, args.image, args.question))
