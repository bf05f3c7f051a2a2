"""`lab eval`: protocols of understanding and generation for one trained arm."""

from __future__ import annotations

import argparse

from lab.errors import LabError


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
        "--data",
        metavar="NAME",
        help="a registered data set instead of the built-in world; protocols: vqa exact pope caption box",
    )
    parser.add_argument(
        "--split", metavar="SPLIT", help="of the data set (test, or what it has of held-out rows)"
    )
    parser.add_argument(
        "--shots",
        nargs="+",
        type=int,
        default=[0],
        metavar="K",
        help="solved examples before each question, for vqa, caption and by_example (0; often 0 1 2 4 8)",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=200,
        metavar="N",
        help="at most so many questions of a kind, captions, prompts and edits; with --data, rows, "
        "0 for all (%(default)s)",
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
    if args.data is not None:
        _on_data(args)
        return
    if args.split is not None:
        raise LabError("--split is of a data set; name one with --data")
    from lab.evaluation.subject import Asking
    from lab.graph.evaluations import evaluate_run
    from lab.reports.evaluation import evaluation_table

    asking = Asking(samples=args.samples, features=args.features, clip=args.clip)
    results = evaluate_run(args.arm, args.protocol, args.shots, asking)
    print(evaluation_table(results))


def _on_data(args: argparse.Namespace) -> None:
    from lab.graph.outside import evaluate_on
    from lab.reports.evaluation import evaluation_table

    if args.shots != [0]:
        raise LabError("--shots are for the built-in world, not for --data")
    results = evaluate_on(args.arm, args.data, args.protocol, args.split, args.samples)
    print(evaluation_table(results))
