"""`lab ui`: MLflow on this machine, opened at the page that shows the arms."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lab.errors import LabError

if TYPE_CHECKING:
    from mlflow.entities import Experiment

_HOST = "127.0.0.1"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=5000, help="on 127.0.0.1 (%(default)s)")


def run(args: argparse.Namespace) -> None:
    from lab.tracking.store import artifact_root, locked_client, shown_uri, tracking_uri

    uri = tracking_uri()
    served = uri.startswith(("http:", "https:"))
    if not served and not _free(args.port):
        raise LabError(f"port {args.port} of {_HOST} is taken; choose another: lab ui --port {args.port + 1}")
    try:
        with locked_client() as client:
            experiments = client.search_experiments()
    except Exception as error:  # whatever a tracker throws
        reason = " ".join(str(error).split())[:200]
        raise LabError(f"{shown_uri()}: MLflow's store does not answer: {reason}") from error
    address = uri if served else f"http://{_HOST}:{args.port}"
    print(links(address, experiments, _name_here()))
    if served:
        return
    print("The server answers in about ten seconds; Ctrl-C ends it.", flush=True)
    # One worker is enough for a person, and the job runner would be a second process of the same size.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri  # not on the command line: it may hold a password
    command = [sys.executable, "-m", "mlflow", "server", "--no-serve-artifacts"]
    command += ["--default-artifact-root", artifact_root() or "mlartifacts"]
    command += ["--host", _HOST, "--port", str(args.port), "--workers", "1"]
    os.execv(sys.executable, command)  # signals then reach the server itself


def links(address: str, experiments: list[Experiment], here: str | None) -> str:
    """Say where each experiment's table of runs is; MLflow's own start page shows traces instead.

    Args:
        address: of the server.
        experiments: all there are, in the order in which they were last changed.
        here: the experiment of the current folder's params.yaml, to be named first.
    """
    from lab.tracking.view import link

    named = [experiment for experiment in experiments if experiment.name != "Default"]
    named.sort(key=lambda experiment: experiment.name != here)
    if not named:
        return f"MLflow: {address} (no experiment yet: `make run` makes one)"
    rows = [f"  {experiment.name}: {link(address, experiment)}" for experiment in named]
    return "\n".join(["MLflow, the runs of", *rows])


def _name_here() -> str | None:
    import yaml

    params = Path("params.yaml")
    return (yaml.safe_load(params.read_text(encoding="utf-8")) or {}).get("name") if params.exists() else None


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself will
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True
