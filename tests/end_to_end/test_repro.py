"""The whole pipeline, for real: `lab repro` and `dvc repro` on a copy of the checkout, one stage killed.

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
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml

if TYPE_CHECKING:
    from mlflow.entities import Run

ROOT = Path(__file__).parents[2]
Lab = Callable[..., "subprocess.Popen[str]"]
ARM, NEW = "linear-understanding", "mlp-understanding"
SHARED = ("data", "judge", "encoder", "text_decoder", "image_decoder")
INSTRUCT_STEPS = 150  # a few seconds, to have time to kill it


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, copy_checkout: Callable[[Path], Path]) -> Path:
    """A checkout with the smoke pipeline at its root: one connector, one mix."""
    folder = copy_checkout(tmp_path_factory.mktemp("repository"))
    smoke = yaml.safe_load((ROOT / "experiments" / "ablations" / "smoke" / "params.yaml").read_text())
    smoke |= {
        "root": ".",
        "connectors": ["linear"],
        "mixes": {"understanding": smoke["mixes"]["understanding"]},
    }
    smoke["stages"]["instruct"]["steps"] = INSTRUCT_STEPS
    write(folder, smoke)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "A copy of the checkout"]):
        subprocess.run([*git, *words], cwd=folder, check=True)
    return folder


def write(folder: Path, params: dict[str, Any]) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    text, _ = process.communicate(timeout=300)
    assert process.returncode == code, text
    return text


def ran(text: str) -> set[str]:
    """The stages of which `lab repro` says that they ran."""
    return set(re.findall(r"ok\s+(\S+): ran", text))


def test_a_stage_is_killed_midway(repository: Path, lab: Lab) -> None:
    """kill -9 of the instruct stage once it has a checkpoint: it fails, and what needs it is held back."""
    runner = lab(repository, "repro", "--jobs", "2")
    victim = instruct_with_checkpoint(runner, repository)
    os.kill(victim, signal.SIGKILL)
    text = finished(runner, code=1)
    assert ran(text) == {*SHARED, "align@linear"}
    assert re.search(rf"failed\s+instruct@{ARM}", text)
    assert re.search(rf"held back\s+compare, evaluate@{ARM}", text)
    assert not (repository / "output" / "instruct" / ARM).exists()
    assert list((repository / ".lab" / "work").glob("*/last.ckpt"))


def instruct_with_checkpoint(runner: subprocess.Popen[str], folder: Path) -> int:
    """Wait until the instruct stage has trained beyond a checkpoint; its process."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and runner.poll() is None:
        if any(step >= 10 for step in steps(folder)):
            for process in psutil.Process(runner.pid).children(recursive=True):
                with suppress(psutil.Error):  # it has just ended
                    words = process.cmdline()
                    if (
                        words[-4:] == ["stage", "instruct", "linear", "understanding"]
                        and "python" in words[0]
                    ):
                        return process.pid
        time.sleep(0.05)
    runner.terminate()
    raise AssertionError(f"the instruct stage never came so far: {runner.communicate()[0]}")


def steps(folder: Path) -> list[int]:
    """The steps that the log of the instruct stage shows."""
    log = folder / ".lab" / "logs" / f"instruct@{ARM}.log"
    text = log.read_text() if log.exists() else ""
    return [int(step) for step in re.findall(rf"(\d+)/{INSTRUCT_STEPS} ", text)]


def test_the_same_command_goes_on_and_a_new_word_trains_its_arm_alone(repository: Path, lab: Lab) -> None:
    params = yaml.safe_load((repository / "params.yaml").read_text())
    write(repository, {**params, "connectors": ["linear", "mlp"]})
    text = finished(lab(repository, "repro", "--jobs", "2"))
    killed = {f"instruct@{ARM}", f"evaluate@{ARM}"}
    assert ran(text) == killed | {"align@mlp", f"instruct@{NEW}", f"evaluate@{NEW}", "compare"}
    shown = steps(repository)
    assert shown[0] > 5  # from the checkpoint, not from the beginning
    assert shown[-1] == INSTRUCT_STEPS
    assert not list((repository / ".lab" / "work").glob("*"))


def test_plain_dvc_finds_nothing_to_do(repository: Path, environment: Callable[..., dict[str, str]]) -> None:
    command = [sys.executable, "-m", "dvc", "repro"]
    done = subprocess.run(
        command, cwd=repository, env=environment(repository), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Running stage" not in done.stdout
    assert "up to date" in done.stdout


def test_the_killed_stage_ended_as_if_nothing_had_happened(
    repository: Path, tmp_path: Path, lab: Lab
) -> None:
    """Weights and metrics are those of an undisturbed run of the stage, bit for bit."""
    shutil.copy(repository / "params.yaml", tmp_path)
    (tmp_path / "output" / "align").mkdir(parents=True)
    for name in ("data", "align/linear"):
        (tmp_path / "output" / name).symlink_to(repository / "output" / name)
    finished(
        lab(repository, "stage", "instruct", "linear", "understanding", cwd=tmp_path, LAB_TRACKING="off")
    )
    found, expected = (place / "output" / "instruct" / ARM for place in (repository, tmp_path))
    files = {file.relative_to(expected) for file in expected.rglob("*") if file.is_file()}
    assert {file.relative_to(found) for file in found.rglob("*") if file.is_file()} == files
    assert Path("text_decoder/model.safetensors") in files
    for file in files:
        assert (found / file).read_bytes() == (expected / file).read_bytes(), file
    metrics = [
        json.loads((place / "metrics" / "instruct" / f"{ARM}.json").read_text())
        for place in (repository, tmp_path)
    ]
    for one in metrics:
        assert one.pop("cost/train_seconds") > 0
        assert one.pop("cost/peak_memory_mb") > 0
        assert one.pop("cost/data_wait_share") >= 0
    assert metrics[0] == metrics[1]


def test_results_are_complete(repository: Path) -> None:
    result = json.loads((repository / "metrics" / "evaluate" / f"{ARM}.json").read_text())
    assert result["arm"] == {
        "connector": "linear",
        "mix": "understanding",
        "encoder": "vit",
        "text_decoder": "llama",
        "fusion": "sequence",
        "visual_head": "regression",
        "image_decoder": "transformer",
        "seed": 0,
    }
    names = {name.split("/")[0] for name in result["metrics"]}
    assert names == {"understanding", "generation", "reconstruction", "judge", "cost"}
    for name, (low, high) in result["intervals"].items():
        assert low <= result["metrics"][name] <= high, name
    assert all(0 < chance < 1 for chance in result["chance"].values())
    comparison = json.loads((repository / "metrics" / "comparison.json").read_text())
    assert ARM in json.dumps(comparison)
    assert NEW in json.dumps(comparison)
    assert list((repository / "output" / "compare").glob("*.png"))
    assert (repository / "output" / "evaluate" / ARM / "samples.png").stat().st_size > 0


@pytest.fixture(scope="module")
def runs(repository: Path) -> dict[tuple[str, str], list[Run]]:
    """(level, name) -> runs of the MLflow store."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{repository / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("smoke")
    assert experiment is not None
    found: dict[tuple[str, str], list[Run]] = {}
    for run in client.search_runs([experiment.experiment_id]):
        found.setdefault((run.data.tags["level"], run.info.run_name), []).append(run)
    return found


def test_every_stage_is_a_run_below_its_arm(runs: dict[tuple[str, str], list[Run]]) -> None:
    arms = {
        "shared": (*SHARED, "align linear", "align mlp", "compare"),
        ARM: ("instruct linear understanding", "evaluate linear understanding"),
        NEW: ("instruct mlp understanding", "evaluate mlp understanding"),
    }
    assert {name for level, name in runs if level == "arm"} == set(arms)
    for arm, stages in arms.items():
        (parent,) = runs["arm", arm]
        assert parent.info.status == "FINISHED"
        for stage in stages:
            (run,) = runs["stage", stage]  # the killed one was continued, not begun anew
            assert run.info.status == "FINISHED", stage
            assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_runs_can_be_compared(runs: dict[tuple[str, str], list[Run]]) -> None:
    (arm,) = runs["arm", ARM]
    groups = {name.split("/")[0] for name in arm.data.metrics}
    assert {"understanding", "generation"} <= groups
    (instruct,) = runs["stage", "instruct linear understanding"]
    assert instruct.data.tags["restarts"] == "1"
    assert {
        "connector": "linear",
        "mix": "understanding",
        "encoder": "vit",
        "seed": "0",
    }.items() <= instruct.data.tags.items()
    assert instruct.data.params["stages.instruct.steps"] == str(INSTRUCT_STEPS)
    assert "train/loss_vqa" in instruct.data.metrics
    (evaluate,) = runs["stage", "evaluate linear understanding"]
    assert {"understanding/vqa", "generation/scene"} <= evaluate.data.metrics.keys()


def test_losses_of_the_killed_run_have_no_gap(
    repository: Path, runs: dict[tuple[str, str], list[Run]]
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{repository / 'mlflow.db'}")
    (run,) = runs["stage", "instruct linear understanding"]
    history = client.get_metric_history(run.info.run_id, "train/loss")
    logged = sorted({point.step for point in history})
    assert logged[-1] == INSTRUCT_STEPS
    assert logged == list(range(logged[0], INSTRUCT_STEPS + 1, 5))


def test_no_weights_are_kept_twice(repository: Path) -> None:
    kinds = {file.suffix for file in (repository / "mlartifacts").rglob("*") if file.is_file()}
    assert not kinds & {".safetensors", ".ckpt", ".pt", ".npz"}


def test_a_trained_arm_answers_and_draws(repository: Path, tmp_path: Path, lab: Lab) -> None:
    from PIL import Image

    Image.new("RGB", (50, 40), "red").save(tmp_path / "picture.png")
    asked = lab(repository, "ask", NEW, str(tmp_path / "picture.png"), "Where is the 3?")
    drawn = lab(
        repository,
        "draw",
        NEW,
        "draw a red 3 at the top-left",
        "-o",
        str(tmp_path / "drawn.png"),
    )
    assert finished(asked).strip()
    assert finished(drawn).strip() == str(tmp_path / "drawn.png")
    with Image.open(tmp_path / "drawn.png") as picture:
        assert picture.size == (256, 256)


def test_an_arm_of_ones_own_reuses_what_the_pipeline_made(repository: Path, lab: Lab) -> None:
    trained = lab(repository, "train", "connector=mlp")
    wrong = lab(repository, "ask", "mlp-understandin", "nothing.png", "what ?")
    text = finished(trained)
    for stage in (*SHARED, "align@mlp", f"instruct@{NEW}", f"evaluate@{NEW}"):
        assert f"{stage}: reused from output/" in text
    assert "understanding/vqa" in text
    assert f"did you mean '{NEW}'?" in finished(wrong, code=2)
