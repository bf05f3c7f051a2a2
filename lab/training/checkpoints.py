"""Resumable state of a stage: `last.ckpt` in its work folder, whole at every moment, whoever dies when.

Weights that are split over processes are written as a folder of shards. `last.ckpt` is then one line that
names the folder, so that in both cases a single rename makes the new state the last one.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import psutil
import pytorch_lightning as pl
import torch

from lab.errors import LabError
from lab.training.callbacks import LossWatch
from lab.training.collective import rank, summed
from lab.training.ledger import Ledger

NAME = "last.ckpt"
_SHARDS = "shards in "  # what a `last.ckpt` begins with that names a folder; others are zip archives
_OLD = 600.0  # seconds after which what another machine has begun to write counts as left behind


class LastCheckpoint(pl.Callback):
    """Writes `last.ckpt` every so many steps, and when a signal or a callback asks to leave, at a step's end.

    Only sound states are written: a run that broke left its last good one, which a rerun starts from. It has
    to be the last callback, as the clock starts again after it.

    Args:
        path: of `last.ckpt`.
        every: steps between checkpoints.
        watch: looks at the losses, and has its records written, before a checkpoint is.
        ledger: says when to leave, and is told when the next step begins.
        sharded: whether to write a folder of shards.
    """

    def __init__(self, path: Path, every: int, watch: LossWatch, ledger: Ledger, sharded: bool) -> None:
        self.path, self.every, self.watch, self.ledger, self.sharded = path, every, watch, ledger, sharded

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.ledger.done % self.every == 0 or self.ledger.signal or self.ledger.paused:
            self.watch.check()
            # a gradient can break before any loss shows it; the next step's loss will
            if not summed([float(not _finite(module))])[0]:
                self.watch.flush()
                self.save(trainer)
        self.ledger.start_clock()

    def save(self, trainer: pl.Trainer) -> None:
        """Writes the state under a name of this process's own, then renames it."""
        mark = f"last.{socket.gethostname()}.{os.getpid()}"
        partial = self.path.with_name(f"{mark}.partial")
        try:
            if self.sharded:
                shards = self.path.with_name(f"{mark}.{self.ledger.done}.shards")
                trainer.save_checkpoint(shards)  # the name that rank 0 has
                if rank() == 0:
                    partial.write_text(f"{_SHARDS}{shards.name}\n")
            else:
                trainer.save_checkpoint(partial)
            if rank() == 0:
                os.replace(partial, self.path)
                tidy(self.path.parent)
        except OSError:
            partial.unlink(missing_ok=True)  # its space may be what is missing
            raise


def _finite(module: torch.nn.Module) -> bool:
    for parameter in module.parameters():
        own = parameter.to_local() if hasattr(parameter, "to_local") else parameter  # of its shards, this one
        if not bool(own.isfinite().all()):
            return False
    return True


def find(work: Path) -> Path | None:
    """The state that a run left: a file, or a folder of shards; None where there is none.

    Raises:
        LabError: `last.ckpt` names a folder that is gone.
    """
    path = work / NAME
    if not path.exists():
        return None
    with path.open("rb") as file:
        head = file.read(len(_SHARDS)).decode(errors="replace")
        if head != _SHARDS:
            return path
        folder = work / file.read().decode().strip()
    if not folder.is_dir():
        raise LabError(f"{path}: names {folder.name}, which is gone; remove it to start from the beginning")
    return folder


def tidy(work: Path) -> None:
    """Removes what writers that are gone have left, and shards that a later state has replaced."""
    kept = find(work)
    for path in [*work.glob("last.*.partial"), *work.glob("last.*.shards")]:
        if path != kept and not _somebody_writes(path):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _somebody_writes(path: Path) -> bool:
    """Whether another process may still be at it; its name says which."""
    here = f"last.{socket.gethostname()}."
    if path.name.startswith(here):
        pid = path.name.removeprefix(here).partition(".")[0]
        return pid.isdigit() and int(pid) != os.getpid() and psutil.pid_exists(int(pid))
    try:
        return time.time() - path.stat().st_mtime < _OLD
    except FileNotFoundError:
        return False


def joined(folder: Path) -> Path:
    """Writes a folder of shards as one file of the form that a run without shards reads.

    Returns:
        The file, beside the folder; to be removed once it is read.
    """
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    file = folder.with_name(f"last.{socket.gethostname()}.{os.getpid()}.partial")
    dcp_to_torch_save(folder, file)
    parts: dict[str, Any] = torch.load(file, weights_only=True)
    state = torch.load(folder / "meta.pt", weights_only=True)
    state["state_dict"] = parts["state_dict"]
    state["optimizer_states"] = [_by_number(parts["optimizer_0"])]
    torch.save(state, file)
    return file


def _by_number(optimizer: dict[str, Any]) -> dict[str, Any]:
    """The state of an optimizer with its parameters numbered in order of their groups, instead of named."""
    names = [name for group in optimizer["param_groups"] for name in group["params"]]
    number = {name: index for index, name in enumerate(names)}
    groups = [
        {**group, "params": [number[name] for name in group["params"]]} for group in optimizer["param_groups"]
    ]
    return {
        "state": {number[name]: state for name, state in optimizer["state"].items()},
        "param_groups": groups,
    }
