"""`lab draw`: a picture of a prompt, drawn by a trained arm."""

from __future__ import annotations

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arm", metavar="RUN", help="a trained arm (linear-generation) or its folder")
    parser.add_argument("prompt", metavar="PROMPT")
    parser.add_argument("-o", "--out", metavar="FILE", default="drawing.png", help="where to (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another picture (%(default)s)")


def run(args: argparse.Namespace) -> None:
    from lab.graph.trained import draw

    draw(args.arm, args.prompt, args.out, args.seed)
    print(args.out)
