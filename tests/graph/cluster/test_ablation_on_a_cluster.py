"""An ablation of the lab itself on a real SLURM, one of whose machines is lost midway."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from slurm import Cluster

from lab.graph.cluster.slurm import states

SMOKE = Path(__file__).parents[3] / "experiments" / "ablations" / "smoke" / "params.yaml"
Lab = Callable[..., "subprocess.Popen[str]"]
INSTRUCT = "instruct@captions-s0"


@pytest.fixture
def trial(tmp_path: Path, copy_checkout: Callable[[Path], Path]) -> Path:
    """A checkout with an ablation that trains for seconds, two stages of it with two processes.

    One arm that only reads: most of the time goes into starting a process for every stage.
    """
    folder = copy_checkout(tmp_path / "checkout")
    shutil.rmtree(folder / "experiments" / "ablations" / "reference")
    trial = folder / "experiments" / "ablations" / "trial"
    trial.mkdir()
    params: dict[str, Any] = yaml.safe_load(SMOKE.read_text())
    params |= {"encoder": "patches", "connectors": ["linear"], "visual_head": None, "image_decoder": None}
    params["recipe"] = ["data", "judge", "text_decoder", "align", "instruct", "evaluate"]
    params["mixes"] = {"captions": {"caption": 1}}
    params["data"] = {"train_scenes": 60, "validation_scenes": 40, "test_scenes": 40}
    params["judge"]["steps"] = 5
    for name, stage in params["stages"].items():
        if name != "evaluate":
            stage |= {"steps": 4, "log_every": 2, "checkpoint_every": 2, "warmup": 1, "batch_size": 8}
    for name in ("align", "instruct"):
        joint = params["stages"][name]
        joint["trainable"].remove("visual_head")
        del joint["learning_rate"]["visual_head"]
    params["stages"]["align"]["mix"] = {"caption": 1}
    params["stages"]["instruct"]["steps"] = 40
    params["stages"]["evaluate"] = dict.fromkeys(params["stages"]["evaluate"], 6)
    (trial / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    declaration = {
        "base": "params.yaml",
        "factors": {"mix": ["captions"]},
        "replicate_from": "align",
        "resources": {
            "default": {"memory": "1G", "time": "10"},
            "text_decoder": {"tasks": 2, "strategy": "ddp"},
            "align": {"nodes": 2, "strategy": "ddp"},
        },
    }
    (trial / "ablation.yaml").write_text(yaml.safe_dump(declaration, sort_keys=False))
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "A copy of the checkout"]):
        subprocess.run([*git, *words], cwd=folder, check=True)
    return trial


def lose_the_machine(cluster: Cluster, job: str) -> str:
    """All that runs on the machine of a job is gone at once, and nothing says so to the controller."""
    machine = cluster.run("squeue", "-h", "-j", job, "-o", "%N").strip()
    cluster.kill_node(machine)
    for process in psutil.process_iter(["name", "cmdline"]):
        stepd = process.info["name"] == "slurmstepd" and f"[{job}." in " ".join(process.info["cmdline"])
        if stepd and process.environ().get("SLURM_CONF") == str(cluster.conf):  # others may count alike
            below = process.children(recursive=True)
            process.kill()
            for one in below:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
    return machine


@pytest.mark.slow
def test_a_graph_completes_though_a_machine_is_lost_and_nothing_is_left_to_do(
    cluster: Cluster, trial: Path, lab: Lab, environment: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    checkout = trial.parents[2]
    runner = lab(checkout, "graph", "run", "trial", "--on", "slurm", LAB_TRACKING="off")
    log = trial / ".lab" / "logs" / f"{INSTRUCT}.log"
    deadline = time.monotonic() + 400
    while not (log.exists() and "/40 " in log.read_text()):
        assert time.monotonic() < deadline
        assert runner.poll() is None, runner.communicate()[0]
        time.sleep(0.1)
    job = json.loads(lab(checkout, "graph", "status", "trial", "--json").communicate(timeout=60)[0])
    assert job[INSTRUCT]["job"].startswith("running")
    lost = lose_the_machine(cluster, states(trial)[INSTRUCT].job)
    text, _ = runner.communicate(timeout=400)
    cluster.start_node(lost)  # for other tests
    assert runner.returncode == 0, text
    assert "7 of 7 up to date" in text

    own = environment(checkout, LAB_TRACKING="off")
    again = lab(checkout, "graph", "run", "trial", LAB_TRACKING="off").communicate(timeout=60)[0]
    assert again.strip() == "7 stages, all up to date"
    dvc = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=trial,
        env=own,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert dvc.returncode == 0, dvc.stdout + dvc.stderr
    assert "Running stage" not in dvc.stdout

    # what the cluster made of the node is what this machine makes of it, byte for byte
    here = tmp_path / "here" / "experiments" / "ablations" / "trial"
    shutil.copytree(trial, here, ignore=shutil.ignore_patterns(".lab", "instruct"))
    for name in ("lab", "components"):
        (tmp_path / "here" / name).symlink_to(checkout / name)
    stage = lab(checkout, "stage", INSTRUCT, cwd=here, LAB_TRACKING="off")
    assert stage.wait(timeout=200) == 0
    place = Path("output", *INSTRUCT.split("@"))
    files = [file.relative_to(trial / place) for file in (trial / place).rglob("*") if file.is_file()]
    assert Path("connector/model.safetensors") in files
    for file in files:
        assert (here / place / file).read_bytes() == (trial / place / file).read_bytes(), file
