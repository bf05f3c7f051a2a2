"""One stage under `torchrun`: what one process does, done by two, published once, resumed after a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
COMMAND = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
STEPS = 40


def params() -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load(
        (ROOT / "experiments" / "ablations" / "smoke" / "params.yaml").read_text()
    )
    tree["data"] = {"train_scenes": 60, "validation_scenes": 40, "test_scenes": 40}
    tree["stages"]["text_decoder"] |= {"steps": STEPS, "batch_size": 8, "warmup": 2, "log_every": 1}
    tree["stages"]["text_decoder"] |= {"checkpoint_every": 1000}
    tree["stages"]["evaluate"] = dict.fromkeys(tree["stages"]["evaluate"], 6)
    return tree


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of the stage."""
    from lab.graph.execution import run_stage

    folder = tmp_path_factory.mktemp("single")
    (folder / "params.yaml").write_text(yaml.safe_dump(params()))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_stage("data")
        run_stage("text_decoder")
    return folder


def start(folder: Path, single: Path) -> subprocess.Popen[str]:
    (folder / "output").mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params()))
    if not (folder / "output" / "data").exists():
        (folder / "output" / "data").symlink_to(single / "output" / "data")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *COMMAND, "-m", "lab", "stage", "text_decoder"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    weights = load_file(folder / "output" / "text_decoder" / "model.safetensors")
    return weights, json.loads((folder / "metrics" / "text_decoder.json").read_text())


def test_two_processes_under_torchrun_make_what_one_makes(single: Path, tmp_path: Path) -> None:
    with start(tmp_path, single) as process:
        told, _ = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert told.count(f"  {STEPS}/{STEPS}  ") == 1, told  # one of the two speaks
    assert {path.name for path in (tmp_path / "output").iterdir()} == {"data", "text_decoder"}
    assert not list((tmp_path / ".lab" / "work").glob("*"))
    (weights, metrics), (expected, one) = output(tmp_path), output(single)
    assert metrics["cost/tokens"] == one["cost/tokens"]
    assert metrics["cost/samples"] == one["cost/samples"] == 8 * STEPS
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=2e-3)


@pytest.mark.slow
def test_a_signal_to_one_of_them_stops_both_and_the_same_command_goes_on(
    single: Path, tmp_path: Path
) -> None:
    with start(tmp_path, single) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "  3/" in line:
                break
        workers = psutil.Process(process.pid).children()
        assert len(workers) == 2
        workers[1].send_signal(signal.SIGUSR1)
        process.communicate(timeout=60)
    assert process.returncode != 0
    (state,) = (tmp_path / ".lab" / "work").glob("*/last.ckpt")
    saved = torch.load(state, weights_only=True)["global_step"]
    assert 3 <= saved < STEPS
    with start(tmp_path, single) as process:
        told, _ = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert f"  {saved}/{STEPS}  " not in told
    assert f"  {saved + 1}/{STEPS}  " in told
    weights, expected = output(tmp_path)[0], output(single)[0]
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=2e-3)
