"""`lab doctor`: one line for each thing the lab stands on, and how to mend what is wrong."""

from __future__ import annotations

import argparse
import configparser
import os
import platform
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

_PACKAGES = ("pytorch-lightning", "transformers", "diffusers", "timm", "peft", "optuna", "mlflow", "dvc")


@dataclass(frozen=True)
class Finding:
    """One line of the report. `remedy` is empty where all is well; `broken` means the lab cannot work."""

    name: str
    detail: str
    remedy: str = ""
    broken: bool = False

    def __str__(self) -> str:
        mark = "WRONG" if self.broken else "note " if self.remedy else "ok   "
        return f"{mark} {self.name:<18} {self.detail}" + (f" -- {self.remedy}" if self.remedy else "")


def arguments(parser: argparse.ArgumentParser) -> None:
    """There is nothing to choose."""


def run(args: argparse.Namespace) -> int:
    broken = 0
    for check in _CHECKS:
        for finding in _guarded(check):
            print(finding, flush=True)
            broken += finding.broken
    if broken:
        print(f"\n{broken} essential thing{'s' if broken > 1 else ''} wrong", file=sys.stderr)
    return 1 if broken else 0


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Turn an unforeseen error into a finding, so that one broken library does not hide the others."""
    try:
        yield from check()
    except Exception as error:
        yield Finding(check.__name__.strip("_"), _one_line(error), "unexpected: please report it", True)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    old = sys.version_info < (3, 11)
    yield Finding("python", f"{version} ({sys.executable})", "needs 3.11 or newer" if old else "", old)
    if shutil.which("git") is None:
        yield Finding("git", "not found", "install git: DVC needs it", True)


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:  # a broken shared library raises anything
        yield Finding(
            "torch", _one_line(error), "make a fresh environment: rm -r .venv, then `make run`", True
        )
        return
    yield Finding("torch", torch.__version__)
    try:
        import torchvision

        from lab.torchvision_ops import shimmed

        kind = "its operators declared only (they do not load beside this torch)" if shimmed() else "complete"
        yield Finding("torchvision", f"{torchvision.__version__}, {kind}")
    except Exception as error:
        yield Finding("torchvision", _one_line(error), "reinstall the project: pip install -e .", True)


def _packages() -> Iterator[Finding]:
    for name in _PACKAGES:
        try:
            yield Finding(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, "missing", "pip install -c constraints.txt -e .", True)


def _devices() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            bf16 = (
                "native bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no native bf16"
            )
            yield Finding(f"cuda:{index}", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, {bf16}")
    elif torch.backends.mps.is_available():
        yield Finding("mps", "available")
    else:
        yield Finding("gpu", "none, the processor does the work")
    native = any(torch.cpu.get_capabilities().get(flag) for flag in ("avx512_bf16", "amx_bf16", "bf16"))
    yield Finding("bf16 on the cpu", "native" if native else "emulated, many times slower: stay with 32 bits")


def _step() -> Iterator[Finding]:
    """What `trainer` chooses here where it says auto, and the precision that suits."""
    from torch import accelerator

    from lab.training.speed import chosen

    found = accelerator.current_accelerator()
    yield Finding("a step", chosen(found.type if found is not None else "cpu"))


def _threads() -> Iterator[Finding]:
    import torch

    from lab.graph.cores import cores

    asked = os.environ.get("OMP_NUM_THREADS", "")
    detail = f"{cores()} cores, torch uses {torch.get_num_threads()}, OMP_NUM_THREADS {asked or 'not set'}"
    over = asked.isdecimal() and int(asked) > cores()
    yield Finding(
        "threads", detail, "more threads than cores are slow: unset OMP_NUM_THREADS" if over else ""
    )


def _dvc() -> Iterator[Finding]:
    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), None)
    if root is None:
        yield Finding("dvc repository", f"none at {here} or above", "cd into a clone of the lab", True)
        return
    config = configparser.ConfigParser()
    config.read([root / ".dvc" / "config", root / ".dvc" / "config.local"])
    links = config.get("cache", "type", fallback="reflink,copy (the default)")
    pipeline = "dvc.yaml here" if (here / "dvc.yaml").exists() else "no dvc.yaml in this folder"
    yield Finding("dvc repository", f"{root}, cache links: {links}, {pipeline}")
    try:
        import_module("_ruamel_yaml")
    except ImportError:
        yield Finding(
            "yaml", "the slow parser", "DVC is three times faster with: pip install ruamel.yaml.clib"
        )


def _mlflow() -> Iterator[Finding]:
    from lab.tracking.store import shown_uri, tracking_uri
    from lab.tracking.writer import waiting

    found = _store("mlflow store", tracking_uri(), "experiments", "SELECT COUNT(*) FROM experiments")
    yield replace(found, detail=found.detail.replace(tracking_uri(), shown_uri()))
    if kept := waiting():
        yield Finding(
            "mlflow spool", f"{kept} runs are being recorded, or wait to be", "lab sync sends what waits"
        )


def _optuna() -> Iterator[Finding]:
    from lab.search.storage import default_url

    url = default_url("", several=False)
    yield _store("optuna storage", url, "studies", "SELECT COUNT(*) FROM studies")


def _store(name: str, uri: str, noun: str, query: str) -> Finding:
    """Look at a store without creating it."""
    if uri.startswith(("http:", "https:")):
        try:
            with urlopen(f"{uri.rstrip('/')}/health", timeout=3):
                return Finding(name, uri)
        except (URLError, OSError) as error:
            return Finding(
                name, f"{uri}: {_one_line(error)}", "start that server or unset MLFLOW_TRACKING_URI"
            )
    if not uri.startswith("sqlite:///"):
        return Finding(name, uri)
    file = Path(uri.removeprefix("sqlite:///"))
    if not file.exists():
        return Finding(name, f"{file}, made by the first run")
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            (count,) = database.execute(query).fetchone()
    except sqlite3.Error as error:
        return Finding(name, f"{file}: {error}", f"move it away, a new one is made: mv {file} {file}.broken")
    return Finding(name, f"{file}, {count} {noun}")


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    remedy = (
        "too little for a run: free some, or `dvc gc -w`" if free < 1 else "getting short" if free < 5 else ""
    )
    yield Finding("disk", f"{free:.0f} GiB free", remedy, broken=free < 1)


_CHECKS = (_python, _torch, _packages, _devices, _step, _threads, _dvc, _mlflow, _optuna, _disk)
