"""`lab sync`: what runs have kept while MLflow was out of reach, sent to it."""

from __future__ import annotations

import argparse

from lab.errors import LabError


def arguments(parser: argparse.ArgumentParser) -> None:
    """None: what waits, and for which store, is known."""


def run(args: argparse.Namespace) -> None:
    from lab.tracking.store import shown_uri
    from lab.tracking.writer import send_left, waiting

    try:
        sent = send_left()
    except Exception as error:  # whatever a tracker throws, the journals are kept
        reason = " ".join(str(error).split())[:200]
        raise LabError(f"{shown_uri()}: MLflow does not take {_runs(waiting())}: {reason}") from error
    busy = waiting()
    print(f"{shown_uri()}: {_runs(sent)} sent, {_runs(busy)} still being recorded")


def _runs(count: int) -> str:
    return f"{count} run{'s' * (count != 1)}"
