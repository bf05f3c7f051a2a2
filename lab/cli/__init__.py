"""The `lab` command: one file a verb, thin, and nothing heavy imported before a verb needs it.

A verb's module has `arguments(parser)`, which declares its arguments, and `run(args)`, which does the work
and returns an exit code (None is 0). Its summary stands in `VERBS`, so that `lab --help` imports no verb.

Exit codes: 0 done; 1 something failed; 2 a mistake the person can mend, said in one line; 75 stopped by a
signal (SIGTERM, SIGUSR1) in a state that the same command goes on from; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from lab.errors import LabError, nearest
from lab.training.preemption import Preempted

VERBS = {
    "repro": "run the pipeline of this folder: what is out of date, several stages at once",
    "graph": "an ablation as a graph: plan it, run it, lose nothing: lab graph run NAME",
    "compare": "table and plots of all arms, understanding and generation side by side",
    "report": "the page on a data mix: claim, surfaces, laws, the best mix, costs",
    "diff": "say what differs between two runs: code, data, configuration, environment, seed",
    "train": "train and evaluate one arm of your own: lab train connector=perceiver",
    "ask": "ask a trained arm about an image",
    "draw": "let a trained arm draw a prompt",
    "eval": "evaluate a trained arm by protocol: VQA, POPE, captions, few-shot, drawings: lab eval RUN",
    "data": "bring your own data: look at it, register it, check it against leakage: lab data inspect FOLDER",
    "preflight": "look at what a stage would train on: faults, and samples by what is learned of them",
    "sweep": "search learning rates, connectors and mixes with Optuna",
    "export": "write a trained arm as a LLaVA of transformers, or its image decoder for diffusers",
    "import": "make an arm of a LLaVA or BLIP-2 of transformers: lab import FOLDER --as NAME",
    "components": "list the parts that can be swapped, with their settings and papers",
    "systems": "list the published systems that are declared here",
    "describe": "count a system's parameters, memory and operations, at its published size or small",
    "ui": "open the records of all runs in MLflow",
    "sync": "send to MLflow what runs have kept while it was out of reach",
    "doctor": "check this machine and this checkout, and say how to mend what is wrong",
    "stage": "run one stage here and now (what dvc.yaml calls)",
}

# Read by libraries when they are first imported, hence set before any verb runs. What the person set stays.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers' own bars follow it
    "TOKENIZERS_PARALLELISM": "false",  # or it warns at every fork of a data loader
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # DDP advises against what steps of several kinds of samples need
}


class _Parser(argparse.ArgumentParser):
    """Reports mistakes as every other part of the lab does."""

    def error(self, message: str) -> NoReturn:
        raise LabError(f"{message} (see '{self.prog} --help')")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and turn whatever happens into an exit code."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    words = list(sys.argv[1:] if argv is None else argv)
    verbose = "--traceback" in words
    try:
        code = _dispatch([word for word in words if word != "--traceback"])
        sys.stdout.flush()  # a reader that has gone away shows here, not while the interpreter exits
        return code
    except LabError as error:
        if verbose:
            traceback.print_exc()
        print(f"lab: error: {error}", file=sys.stderr)
        return error.code
    except Preempted as stop:
        from lab.training.processes import is_rank_zero

        if is_rank_zero():
            print(f"lab: {stop}", file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `lab components | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _dispatch(words: list[str]) -> int:
    parser = _Parser(prog="lab", description="Ablations of multimodal models: declare, run, compare.")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb", required=True)
    asked = next((word for word in words if not word.startswith("-")), None)
    if asked is not None and asked not in VERBS:
        raise LabError(f"no verb '{asked}'{nearest(asked, VERBS)}")
    module = import_module(f"lab.cli.{asked}") if asked else None
    for verb, summary in VERBS.items():
        below = verbs.add_parser(verb, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if module is not None and verb == asked:
            module.arguments(below)
    if not words:
        parser.print_help()
        return 0
    args = parser.parse_args(words)
    assert module is not None  # without a verb the parser has ended the program or raised
    if args.verb != "stage" and {"WORLD_SIZE", "SLURM_STEP_NUM_TASKS"} & os.environ.keys():
        from lab.training.processes import processes

        if processes().world > 1:
            raise LabError(f"lab {args.verb} is for one process; several can only run `lab stage`")
    return module.run(args) or 0
