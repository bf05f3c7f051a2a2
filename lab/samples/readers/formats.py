"""The formats by name, and which of them a folder is."""

from __future__ import annotations

from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import cast

from lab.errors import LabError, nearest
from lab.samples.readers.fields import are_images, files_of
from lab.samples.readers.record import Reader

# in the order in which they are tried: what only one format has comes first
FORMATS = (
    "webdataset",
    "hf",
    "llava",
    "pope",
    "edits",
    "interleaved",
    "coco",
    "boxes",
    "vqav2",
    "textvqa",
    "gqa",
    "folder",
)
_REFUSED = (
    ".pkl",
    ".pickle",
    ".p",
    ".pt",
    ".pth",
    ".npy",
    ".npz",
    ".joblib",
)  # loading some would run programs
_WALKED, _ASKED = 200_000, 1000  # files that recognition finds, and images and others that it looks at


def reader_of(name: str) -> Reader:
    """The reader of a format.

    Raises:
        LabError: there is no such format.
    """
    if name not in FORMATS:
        raise LabError(f"no format '{name}'{nearest(name, FORMATS)}")
    return cast(Reader, import_module(f"lab.samples.readers.{name}"))


def recognise(root: Path) -> str:
    """The format of a folder, or of a file in it.

    Raises:
        LabError: it is of none.
    """
    files = list(islice(files_of(root), _WALKED))
    images = list(islice(are_images(files), _ASKED))
    files = [*islice((name for name in files if not any(are_images([name]))), _ASKED), *images]
    for name in FORMATS:
        if reader_of(name).recognises(root, files):
            return name
    refused = [name for name in files if name.lower().endswith(_REFUSED)]
    if refused:
        raise LabError(
            f"{root / refused[0]}: pickles and NumPy files are not opened, since loading them can run "
            "programs; write the records as JSON"
        )
    shown = ", ".join(files[:5]) or "nothing"
    raise LabError(f"{root}: of no known format ({', '.join(FORMATS)}); it holds {shown}")
