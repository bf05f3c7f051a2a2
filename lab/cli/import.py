"""`lab import`: a published checkpoint of transformers as an arm."""

from __future__ import annotations

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="FOLDER", help="a LLaVA or BLIP-2 as transformers saves it")
    parser.add_argument("--as", dest="name", metavar="NAME", required=True, help="what to call the arm")


def run(args: argparse.Namespace) -> None:
    from lab.graph.exchange import take

    for note in take(args.checkpoint, args.name):
        print(f"note: {note}")
    print(f'arm {args.name}: lab ask {args.name} IMAGE "QUESTION"')
