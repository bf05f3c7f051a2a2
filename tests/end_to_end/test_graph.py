"""An ablation, for real: run in parallel, killed, resumed, extended, travelling to a second clone.

Tests run in the order of the file; each goes on from what the one before it left.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
Lab = Callable[..., "subprocess.Popen[str]"]
Environment = Callable[..., dict[str, str]]
OFF = {"LAB_TRACKING": "off"}  # test_repro.py looks at what MLflow gets; here it would only take time
DECLARATION: dict[str, Any] = {
    "claim": {
        "text": "Questions teach to answer them",
        "metric": "understanding/vqa",
        "higher": {"mix": "questions"},
        "lower": {"mix": "captions"},
    },
    "base": "params.yaml",
    "factors": {"mix": ["captions", "questions"]},
    "seeds": [0],
    "replicate_from": "align",
}
SHARED = {f"{stage}@all" for stage in ("data", "judge", "text_decoder")}
VICTIM, OTHER = "captions-s0", "questions-s0"
NODES = 9


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, copy_checkout: Callable[[Path], Path]) -> Path:
    """A checkout with an ablation that trains for seconds, of a system that only reads: fewer stages do."""
    folder = copy_checkout(tmp_path_factory.mktemp("repository"))
    shutil.rmtree(folder / "experiments" / "ablations" / "reference")
    trial = folder / "experiments" / "ablations" / "trial"
    trial.mkdir()
    params = yaml.safe_load((ROOT / "experiments" / "ablations" / "smoke" / "params.yaml").read_text())
    params |= {"encoder": "patches", "connectors": ["linear"], "visual_head": None, "image_decoder": None}
    params["recipe"] = ["data", "judge", "text_decoder", "align", "instruct", "evaluate"]
    params["mixes"] = {"captions": {"caption": 1}, "questions": {"vqa": 1}}
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
    params["stages"]["instruct"]["steps"] = 60
    params["stages"]["evaluate"] = dict.fromkeys(params["stages"]["evaluate"], 6)
    (trial / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    declare(trial)
    commit(folder, "A copy of the checkout", first=True)
    return folder


@pytest.fixture(scope="module")
def trial(repository: Path) -> Path:
    return repository / "experiments" / "ablations" / "trial"


def declare(trial: Path, **changes: Any) -> None:
    (trial / "ablation.yaml").write_text(yaml.safe_dump({**DECLARATION, **changes}, sort_keys=False))


def commit(folder: Path, message: str, first: bool = False) -> None:
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for words in ([["init", "-q"]] if first else []) + [["add", "-A"], ["commit", "-qm", message]]:
        subprocess.run([*git, *words], cwd=folder, check=True)


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    text, _ = process.communicate(timeout=900)
    assert process.returncode == code, text
    return text


def dvc(folder: Path, environment: dict[str, str], *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ran(text: str) -> set[str]:
    return set(re.findall(r"ok\s+(\S+): ran", text))


def locks(trial: Path) -> dict[str, dict[str, str]]:
    """Node -> output folder -> hash, as DVC recorded them."""
    found = {}
    for file in [trial / "dvc.lock", *trial.glob("nodes/*/dvc.lock")]:
        for name, stage in yaml.safe_load(file.read_text())["stages"].items():
            outs = {out["path"]: out["md5"] for out in stage["outs"] if out["path"].startswith("output/")}
            found[name] = outs
    return found


def test_a_node_is_killed_midway_and_the_rest_finishes(repository: Path, trial: Path, lab: Lab) -> None:
    runner = lab(repository, "graph", "run", "trial", "--jobs", "2", **OFF)
    log = trial / ".lab" / "logs" / f"instruct@{VICTIM}.log"
    deadline = time.monotonic() + 240
    while not (log.exists() and re.search(r"\b(1|2)\d/60 ", log.read_text())):
        assert time.monotonic() < deadline
        assert runner.poll() is None, runner.communicate()[0]
        time.sleep(0.02)
    (claim,) = (trial / ".lab" / "claims").glob(f"output~instruct~{VICTIM}")
    os.kill(int(json.loads(claim.read_text())["pid"]), signal.SIGKILL)
    text = finished(runner, code=1)
    assert ran(text) == {*SHARED, "align@s0", f"instruct@{OTHER}", f"evaluate@{OTHER}"}
    assert re.search(rf"failed\s+instruct@{VICTIM}", text)
    assert re.search(rf"held back\s+compare, evaluate@{VICTIM}", text)
    assert "killed by SIGKILL" in text


def test_the_same_command_runs_what_is_missing_and_goes_on_from_the_checkpoint(
    repository: Path, trial: Path, lab: Lab
) -> None:
    text = finished(lab(repository, "graph", "run", "trial", "--jobs", "2", **OFF))
    assert ran(text) == {f"instruct@{VICTIM}", f"evaluate@{VICTIM}", "compare"}
    log = (trial / ".lab" / "logs" / f"instruct@{VICTIM}.log").read_text()
    assert int(re.findall(r"(\d+)/60 ", log)[0]) >= 10
    assert not list((trial / ".lab" / "work").glob("*"))
    assert (trial / "output" / "compare" / "comparison.html").exists()
    assert (
        finished(lab(repository, "graph", "run", "trial", **OFF)).strip() == f"{NODES} stages, all up to date"
    )


def test_serial_dvc_repro_gives_the_same_bytes_and_leaves_the_runner_nothing(
    repository: Path, trial: Path, lab: Lab, environment: Environment
) -> None:
    assert "Running stage" not in dvc(trial, environment(repository, **OFF), "repro")
    parallel = locks(trial)
    shutil.rmtree(trial / "output")
    shutil.rmtree(trial / "metrics")
    shutil.rmtree(repository / ".dvc" / "cache")
    for lock in [trial / "dvc.lock", *trial.glob("nodes/*/dvc.lock")]:
        lock.unlink()
    text = dvc(trial, environment(repository, **OFF), "repro")
    assert text.count("Running stage") == NODES
    serial = locks(trial)
    assert serial.keys() == parallel.keys()
    for name in serial.keys() - {"compare"}:  # which shows seconds
        assert serial[name] == parallel[name], name
    assert (
        finished(lab(repository, "graph", "run", "trial", **OFF)).strip() == f"{NODES} stages, all up to date"
    )


def test_a_new_level_runs_its_nodes_alone(repository: Path, trial: Path, lab: Lab) -> None:
    mixes = {"captions": "captions", "questions": "questions", "more": {"vqa": 1, "caption": 1}}
    declare(trial, factors={"mix": mixes})
    text = finished(lab(repository, "graph", "run", "trial", "--jobs", "2", **OFF))
    assert ran(text) == {"instruct@more-s0", "evaluate@more-s0", "compare"}
    declare(trial)
    assert ran(finished(lab(repository, "graph", "run", "trial", **OFF))) <= {"compare"}


def test_an_edited_component_makes_the_nodes_stale_that_use_it(
    repository: Path, trial: Path, lab: Lab
) -> None:
    file = repository / "components" / "connectors" / "linear.py"
    text = file.read_text()
    file.write_text(text + "\n# edited\n")
    stale = json.loads(finished(lab(repository, "graph", "status", "trial", "--json", **OFF)))
    file.write_text(text)
    assert {name for name, state in stale.items() if state["state"] == "done"} == SHARED
    assert stale["align@s0"]["reason"].endswith("components/connectors/linear.py changed")
    assert finished(lab(repository, "graph", "status", "trial", **OFF)).strip() == f"{NODES} done"


def test_results_travel_to_a_second_clone(
    repository: Path, tmp_path: Path, lab: Lab, environment: Environment
) -> None:
    """`dvc pull` there: nothing to do, and a comparison without training."""
    mine = environment(repository, **OFF)
    dvc(repository, mine, "remote", "add", "-d", "--local", "store", str(tmp_path / "store"))
    dvc(repository, mine, "push")
    commit(repository, "Results")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(repository), str(clone)], check=True)
    theirs = environment(clone, **OFF)
    dvc(clone, theirs, "remote", "add", "-d", "--local", "store", str(tmp_path / "store"))
    trial = clone / "experiments" / "ablations" / "trial"
    dvc(trial, theirs, "pull", "-R", ".")
    assert "up to date" in dvc(trial, theirs, "status", "-R", ".")
    assert finished(lab(clone, "graph", "run", "trial", **OFF)).strip() == f"{NODES} stages, all up to date"
    text = finished(lab(clone, "compare", "trial", **OFF))
    assert "understanding" in text
