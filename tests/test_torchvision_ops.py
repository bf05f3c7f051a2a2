"""torchvision imports in every kind of process, and real operators are left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab import torchvision_ops


def run(code: str, cwd: Path, **environment: str) -> str:
    """Runs `code` in a fresh interpreter outside the repository, so only what is installed can help it."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("order", ["import torchvision", "import torch; import torchvision"])
def test_import_in_either_order_without_our_packages(tmp_path: Path, order: str) -> None:
    code = f"{order}; from torchvision.transforms import v2; print(hasattr(v2, 'Resize'))"
    assert run(code, tmp_path) == "True"


def test_import_from_a_source_tree_without_the_entry_point(tmp_path: Path) -> None:
    code = "import lab, torchvision; print(torchvision.__name__)"
    assert run(code, tmp_path, TORCH_DEVICE_BACKEND_AUTOLOAD="0") == "torchvision"


def test_spawned_worker(tmp_path: Path) -> None:
    program = tmp_path / "spawn.py"
    program.write_text(
        "import torch.multiprocessing as mp\n"
        "def work(rank): import torchvision; print(torchvision.__name__)\n"
        "if __name__ == '__main__': mp.spawn(work, nprocs=1)\n"
    )
    assert (
        run(f"import runpy; runpy.run_path({str(program)!r}, run_name='__main__')", tmp_path) == "torchvision"
    )


def test_asking_whether_torchvision_exists_imports_nothing(tmp_path: Path) -> None:
    code = "import lab, sys, importlib.util as u; u.find_spec('torchvision'); print('torch' in sys.modules)"
    assert run(code, tmp_path) == "False"


def test_real_operators_are_left_alone(tmp_path: Path) -> None:
    code = (
        "import torch; real = torch.library.Library('torchvision', 'DEF');"
        "real.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor');"
        "import lab.torchvision_ops as ops; ops.ensure('nowhere'); print(ops.shimmed())"
    )
    assert run(code, tmp_path) == "False"


def test_install_is_idempotent() -> None:
    before = list(sys.meta_path)
    torchvision_ops.install()
    torchvision_ops.install()
    assert len(sys.meta_path) - len(before) <= 1
