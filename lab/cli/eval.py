"""`lab eval`: protocols of understanding and generation for one trained arm."""

from __future__ import annotations

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arm", metavar="RUN", help="a trained arm (linear-understanding) or its folder")
    parser.add_argument(
        "--protocol",
        nargs="+",
        default=[],
        metavar="NAME",
        help="which to run, all that the arm admits if left out; docs/evaluation.md has what they are",
    )
    parser.add_argument(
        "--shots",
        nargs="+",
        type=int,
        default=[0],
        metavar="K",
        help="solved examples before each question, for vqa and caption (0; the protocol has 0 1 2 4 8)",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=200,
        metavar="N",
        help="at most so many questions of a kind, captions, prompts and edits (%(default)s)",
    )
    parser.add_argument(
        "--features",
        default="judge",
        metavar="NETWORK",
        help="of the Fréchet distance: judge, inception, or a folder of a transformers CLIP (%(default)s)",
    )
    parser.add_argument(
        "--clip",
        default="own",
        metavar="NETWORK",
        help="of the CLIP score: own (the encoder stage's contrastive model) or such a folder (%(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    from lab.evaluation.subject import Asking
    from lab.graph.evaluations import evaluate_run
    from lab.reports.evaluation import evaluation_table

    asking = Asking(samples=args.samples, features=args.features, clip=args.clip)
    results = evaluate_run(args.arm, args.protocol, args.shots, asking)
    print(evaluation_table(results))
