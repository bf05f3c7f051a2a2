"""`lab sweep`: an Optuna study from a declaration; the same command resumes it."""

from __future__ import annotations

import argparse

from lab.errors import LabError, nearest

_ACTIONS = ("show", "join")
_HELP = """\
lab sweep FILE                     run the trials of a declaration, or go on with them
lab sweep FILE --workers 8         several processes; kill any of them, its trial goes on in another
lab sweep FILE --on slurm          workers are jobs of a cluster
lab sweep show FILE                the trials so far, while it runs or after
lab sweep join FILE                one more worker, from any machine that sees the folder and the storage

docs/sweeps.md has the grammar of declarations, samplers and pruners, and storages.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _HELP
    parser.add_argument(
        "words", metavar="FILE", nargs="+", help="such as sweeps/quick.yaml; `show` or `join` may precede it"
    )
    parser.add_argument("--trials", type=int, metavar="N", help="finished ones in all")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes at once")
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="journal:///FILE, postgresql://USER@HOST/DATABASE or sqlite:///FILE; without it SQLite for one "
        "worker and a journal for several, in .lab",
    )
    parser.add_argument("--on", choices=("local", "slurm"), default="local", help="where the workers run")


def run(args: argparse.Namespace) -> None:
    *action, file = args.words
    if len(action) > 1 or (action and action[0] not in _ACTIONS):
        raise LabError(f"sweep: no action '{action[0]}'{nearest(action[0], _ACTIONS)}")
    from lab.training.preemption import install

    install()
    if not action:
        from lab.search.study import run as search

        search(file, args.trials, args.workers, args.storage, args.on)
    elif action[0] == "join":
        from lab.search.study import join

        join(file, args.storage)
    else:
        from lab.reports.sweep import print_sweep
        from lab.search.results import load

        print_sweep(load(file, args.storage))
