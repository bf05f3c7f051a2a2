"""`lab data import`: a data set gets its place under `datasets/`, its DVC file, its entry in params.yaml."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, Literal

from lab.config import SPLITS, DataSetParams, load_params, mistakes_in_data_set, names_data_set
from lab.errors import LabError
from lab.graph.datasets import FOLDER, KEPT, QUARANTINE, indexed
from lab.samples.datasets import DataSet, check_policy, quarantine
from lab.samples.readers.formats import FORMATS, recognise

Way = Literal["clone", "copy", "link"]
_HUB = re.compile(r"\w[\w.-]*/[\w.-]+")
_ALONE = (".tar", ".tgz", ".gz", ".parquet", ".arrow")  # files that are a data set by themselves
_SECTION = re.compile(r"datasets:(?: *\{ *\})?( *(?:#.*)?)$")  # of entries in a block, or of none
_HELD_OUT = 0.1  # of the images, for validation and as much for tests, where a set says nothing
_FICLONE = 0x40049409  # Linux: a file that shares the other's blocks until one of them is written


def import_data(
    path: str,
    name: str,
    stated: Mapping[str, Any],
    way: Way = "clone",
) -> DataSet:
    """Registers a data set under a name that mixes can use.

    Args:
        path: its folder, an archive or a table, or the name of a data set on the Hugging Face hub.
        name: to register it under.
        stated: what of its entry is not to be found out: format, policy, splits, task, fit, tiles, limit.
        way: how its files come under `datasets/`, if they are not there: "clone" shares their blocks (a
            reflink, or a hard link) where the file system can, and copies where not; "copy"; "link" leaves
            them where they are.

    Raises:
        LabError: the name is taken or malformed, what is stated is no entry, no format fits, or records are
            bad and may not be left out; nothing is left behind then.
    """
    if not names_data_set(name):
        raise LabError(f"--as {name}: expected a name of a-z, 0-9 and _ that is no task")
    _check_stated(name, stated)
    folder, target = Path.cwd(), Path.cwd() / FOLDER / name
    taken = load_params(folder / "params.yaml").datasets
    in_place = target.is_dir() and Path(path).resolve() == target  # where `dvc import` has put it
    if name in taken or ((target.exists() or target.is_symlink()) and not in_place):
        raise LabError(f"data set '{name}': there is one already ({FOLDER}/{name}); take another name")
    target.parent.mkdir(exist_ok=True)
    try:
        if not Path(path).exists():
            _download(path, target)
        elif not in_place:
            _place(Path(path).resolve(), target, way)
        entry = DataSetParams(
            **{
                "path": f"{FOLDER}/{name}",
                "format": stated.get("format") or recognise(target),
                **{key: value for key, value in stated.items() if key != "format"},
            }
        )
        data = indexed(name, entry, target)
        if "splits" not in stated:
            entry = DataSetParams(**{**asdict(entry), "splits": proposed_splits(data)})
            data = DataSet(name, entry, data.index)
        _check_found(data, path)
        check_policy(data)
        draft = register(folder / "params.yaml", name, entry)
    except BaseException:
        if in_place:
            raise
        target.unlink() if target.is_symlink() else shutil.rmtree(target, ignore_errors=True)
        raise
    if entry.policy == "quarantine" and data.skipped:
        quarantine(data, folder / QUARANTINE / name)
    if way != "link" and not target.with_name(f"{name}.dvc").exists():
        _add_to_dvc(target, folder)
    os.replace(draft, folder / "params.yaml")
    return data


def proposed_splits(data: DataSet) -> Any:
    """The set's own splits where it has held-out rows, else shares by a hash of the image."""
    own = DataSet(data.name, DataSetParams(data.params.path, data.params.format), data.index)
    if len(own.rows("train")) and any(len(own.rows(split)) for split in SPLITS[1:]):
        return "own"
    if not len(own.rows("train")):  # a set that is for evaluation alone
        return "own"
    return dict.fromkeys(SPLITS[1:], _HELD_OUT)


def register(file: Path, name: str, entry: DataSetParams) -> Path:
    """A draft of params.yaml with an entry more; every other line stays as it is, comments included.

    Raises:
        LabError: the file would not be valid.
    """
    import yaml

    defaults = {item.name: item.default for item in fields(DataSetParams) if item.default is not MISSING}
    shown = {key: value for key, value in asdict(entry).items() if value != defaults.get(key, MISSING)}
    text = yaml.safe_dump(shown, default_flow_style=True, sort_keys=False, width=10**6).strip()
    lines = file.read_text(encoding="utf-8").splitlines()
    first = next((place for place, line in enumerate(lines) if _SECTION.match(line)), None)
    if first is None and any(line.startswith("datasets:") for line in lines):
        raise LabError(f"{file.name}: datasets: write an entry a line, so that one more can be added")
    if first is None:
        lines += ["", "datasets:"]
        first = len(lines) - 1
    lines[first] = _SECTION.sub(r"datasets:\1", lines[first])
    after = first + 1
    while after < len(lines) and lines[after].startswith((" ", "\t")):
        after += 1
    lines.insert(after, f"  {name}: {text}")
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text("\n".join(lines) + "\n", encoding="utf-8")
    try:
        load_params(draft)
    except LabError as error:
        draft.unlink()
        raise LabError(str(error).replace(str(draft), file.name)) from error
    return draft


def _place(source: Path, target: Path, way: Way) -> None:
    """Brings the files of a data set to their place."""
    if source.is_file():
        if not source.name.lower().endswith(_ALONE):
            raise LabError(f"{source}: name the folder that holds it and its images")
        target.mkdir()
        if way == "link":
            (target / source.name).symlink_to(source)
        else:
            _bring(source, target / source.name, way)
        return
    if target.is_relative_to(source):
        raise LabError(f"{source}: holds the folder that it would be copied to")
    if way == "link":
        target.symlink_to(source, target_is_directory=True)
        return
    for parent, folders, names in os.walk(source):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        below = target / Path(parent).relative_to(source)
        below.mkdir(parents=True, exist_ok=True)
        for one in sorted(names):
            file = Path(parent, one)
            if one.startswith(".") or not file.is_file():
                continue
            if file.is_symlink() and not file.resolve().is_relative_to(source):
                raise LabError(
                    f"{file}: a link that leads out of {source}; `--link` leaves files in their place"
                )
            _bring(file.resolve(), below / one, way)


def _bring(source: Path, target: Path, way: Way) -> None:
    if way == "clone":
        with suppress(OSError), source.open("rb") as given, target.open("wb") as made:
            fcntl.ioctl(made.fileno(), _FICLONE, given.fileno())
            return
        target.unlink(missing_ok=True)
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def _download(name: str, target: Path) -> None:
    """Fetches the tables and texts of a data set from the Hugging Face hub; none of its programs."""
    if not _HUB.fullmatch(name):
        raise LabError(f"{name}: no such folder, and no name of a data set on the hub (owner/name)")
    from huggingface_hub import snapshot_download

    kinds = [
        "*.parquet",
        "*.arrow",
        "*.json",
        "*.jsonl",
        "*.csv",
        "*.tsv",
        "*.txt",
        "*.tar",
        "*.jpg",
        "*.png",
    ]
    try:
        snapshot_download(name, repo_type="dataset", allow_patterns=kinds, local_dir=target)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LabError(f"{name}: no such folder, nor could it be fetched from the hub: {reason}") from error
    shutil.rmtree(target / ".cache", ignore_errors=True)


def _add_to_dvc(target: Path, folder: Path) -> None:
    """`dvc add`, where the folder is in a DVC repository.

    Raises:
        LabError: DVC refuses.
    """
    if not any((place / ".dvc").is_dir() for place in (folder, *folder.parents)):
        return
    place = target.relative_to(folder).as_posix()
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "add", "--quiet", place], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        reason = " ".join(done.stderr.split())
        raise LabError(f"{place}: `dvc add` failed: {reason}; the files are there, the entry is not")


def inspected(path: str, stated: Mapping[str, Any]) -> DataSet:
    """A data set as it would be imported, its index kept in the `.lab` of the current folder.

    Args:
        path: its folder, or the name of one that is registered here.
        stated: as in `import_data`.

    Raises:
        LabError: there is none, of no known format, or without a record; what is stated is no entry.
    """
    params = Path("params.yaml")
    if not Path(path).exists() and params.exists():
        known = load_params(params).datasets
        if path in known:
            return indexed(path, known[path], Path(known[path].path).absolute())
    root = Path(path).absolute()
    _check_stated("NAME", stated)
    if not root.is_dir():
        raise LabError(f"{path}: no such folder")
    entry = DataSetParams(
        **{
            "path": path,
            "format": stated.get("format") or recognise(root),
            **{key: value for key, value in stated.items() if key != "format"},
        }
    )
    data = indexed(root.name, entry, root, Path.cwd() / KEPT)
    _check_found(data, path)
    if "splits" in stated:
        return data
    return DataSet(root.name, DataSetParams(**{**asdict(entry), "splits": proposed_splits(data)}), data.index)


def _check_stated(name: str, stated: Mapping[str, Any]) -> None:
    """Raises LabError with all mistakes in what is stated of an entry, before a file is looked at."""
    entry = DataSetParams(**{"path": "", "format": FORMATS[0], **stated})
    if mistakes := mistakes_in_data_set(f"datasets.{name}", entry):
        raise LabError("; ".join(mistakes))


def _check_found(data: DataSet, path: str) -> None:
    """Raises LabError where a data set has no record, not even a bad one."""
    if not len(data) and not data.skipped:
        raise LabError(f"{path}: no record of format {data.params.format}")
