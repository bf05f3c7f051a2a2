"""Lets `import torchvision` succeed where its compiled operators cannot be loaded.

The package index offers one torchvision wheel, built against CUDA. Beside a CPU-only torch its `_C` library
does not load, so the operators `torchvision::nms` and `torchvision::qnms` are never declared; but
torchvision attaches Python rules to them while it is imported, and that raises `operator torchvision::nms
does not exist`. timm, lpips, peft and pytorch_lightning import torchvision and fall with it. Declaring the
two operators (names and types, no computation) is enough: transforms, models and data sets work, and only a
call of such an operator fails, with torchvision's own message.

How it gets into every process: torch calls the entry points of group `torch.backends` at the end of `import
torch`, and pyproject.toml lists `autoload` there. So spawned workers, subprocesses, pytest and notebooks
are covered although they import nothing of ours first. From a source tree that is not installed,
`lab/__init__.py` calls `install`.

Three rules keep it harmless:
- The real library is tried first. Where it loads, nothing is declared; the reverse order would abort the
  process, because C++ may not register an operator that exists.
- It acts when torchvision is *executed*, not when somebody asks whether it could be found: such a question
  must not import torch.
- An exception here would break `import torch` itself, so there is as little of it as possible.
"""

from __future__ import annotations

import importlib.machinery as machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: object | None = None  # the declarations live exactly as long as this object


def _load_real(folder: str) -> bool:
    """Loads torchvision's compiled library from its package `folder`, as torchvision will do itself."""
    import torch

    extensions = (machinery.ExtensionFileLoader, machinery.EXTENSION_SUFFIXES)
    spec = machinery.FileFinder(folder, extensions).find_spec("_C")
    if spec is None or spec.origin is None:
        return False
    try:
        torch.ops.load_library(spec.origin)
    except (OSError, ImportError):
        return False
    return True


def ensure(folder: str) -> None:
    """Declares torchvision's operators unless the real ones are there or can be loaded from `folder`."""
    global _declared
    import torch

    if hasattr(torch.ops.torchvision, "nms") or _load_real(folder):
        return
    _declared = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        _declared.define(schema)


class _Loader(machinery.SourceFileLoader):
    """Loads torchvision's `__init__.py` right after making sure of its operators."""

    def exec_module(self, module: ModuleType) -> None:
        ensure(os.path.dirname(self.path))
        super().exec_module(module)


class _Finder:
    """Puts `_Loader` in place of the ordinary loader of the top-level package torchvision, nothing else."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> machinery.ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is machinery.SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """Prepares a later `import torchvision`; imports nothing and may be called any number of times."""
    if "torchvision" not in sys.modules and _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)


def autoload() -> None:
    """What torch calls at the end of `import torch`."""
    unfinished = sys.modules.get("torchvision")
    if unfinished is None:
        install()
    else:  # `import torchvision` came first and is importing torch right now
        ensure(unfinished.__path__[0])


def shimmed() -> bool:
    """Whether the operators in this process are declarations only."""
    return _declared is not None
