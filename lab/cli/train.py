"""`lab train`: one arm, from a declaration and overrides."""

from __future__ import annotations

import argparse

from lab.errors import LabError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        metavar="DECLARATION|KEY=VALUE",
        nargs="*",
        default=[],
        help="a published system (experiments/systems/NAME.yaml) or a YAML file with what differs from "
        "params.yaml; single settings: connector=perceiver",
    )


def run(args: argparse.Namespace) -> None:
    declarations = [word for word in args.words if "=" not in word]
    if len(declarations) > 1:
        raise LabError(f"one declaration at most, not {' and '.join(declarations)}; settings are KEY=VALUE")
    from lab.graph.arm import train

    train(declarations[0] if declarations else None, [word for word in args.words if "=" in word])
