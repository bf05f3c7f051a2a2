"""A newcomer's photographs in LLaVA's JSON format: looked at, registered, trained on and evaluated."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
Lab = Callable[..., "subprocess.Popen[str]"]

# of the smoke pipeline, so that a stage takes seconds
SMALL = [
    "data.train_scenes=60",
    "data.validation_scenes=20",
    "data.test_scenes=20",
    "stages.instruct.log_every=10",
    "judge.steps=5",
    "stages.encoder.steps=3",
    "stages.text_decoder.steps=3",
    "stages.align.steps=3",
    "stages.evaluate.questions=5",
    "stages.evaluate.captions=5",
    "stages.evaluate.texts=5",
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, copy_checkout: Callable[[Path], Path]) -> Path:
    """A copy with the small pipeline's parameters, a git and DVC repository, and the photographs."""
    folder = copy_checkout(tmp_path_factory.mktemp("own") / "lab")
    small = (ROOT / "experiments" / "ablations" / "smoke" / "params.yaml").read_text()
    (folder / "params.yaml").write_text(re.sub(r"^root:.*", "root: .", small, flags=re.MULTILINE))
    subprocess.run([sys.executable, ROOT / "tests" / "photographs.py", folder / "photos"], check=True)
    subprocess.run(["git", "init", "-q", "."], cwd=folder, check=True)
    return folder


def run(lab: Lab, folder: Path, *words: str, code: int = 0, tracking: str = "off") -> str:
    started = lab(folder, *words, LAB_TRACKING=tracking)
    said, _ = started.communicate(timeout=600)
    assert started.returncode == code, said
    return said


@pytest.mark.slow
def test_photographs_are_inspected_imported_trained_on_and_evaluated(checkout: Path, lab: Lab) -> None:
    said = run(lab, checkout, "data", "inspect", "photos", "--sheet", "sheet.png")
    assert "rows       72 (train " in said
    assert "problems   none" in said
    assert "It shows an astronaut." in said
    assert (checkout / "sheet.png").read_bytes().startswith(b"\x89PNG")

    said = run(lab, checkout, "data", "import", "photos", "--as", "photos")
    assert "datasets/photos: 72 rows of format llava" in said
    tracked = yaml.safe_load((checkout / "datasets" / "photos.dvc").read_text())
    assert tracked["outs"][0]["nfiles"] == 73
    assert "no leak" in run(lab, checkout, "data", "check")

    # any understanding system fine-tunes on it: its stages, and a mix that names the set
    words = ["experiments/systems/llava.yaml", *SMALL, "mix.photos=6", "stages.instruct.steps=40"]
    said = run(lab, checkout, "train", *words, tracking="on")
    (arm,) = (checkout / ".lab" / "arms").glob("llava-*")
    metrics = json.loads(next(arm.glob("metrics/instruct/*.json")).read_text())
    assert metrics["data/photos/rows"] == 72
    assert metrics["data/photos/skipped"] == 0
    assert metrics["mix/photos"] > 0
    shown = [float(one) for one in re.findall(r"instruct\S* .* photos (\d+\.\d+)", said)]
    assert shown[-1] < shown[0]
    assert metrics["validation/loss_photos"] > 0
    with closing(sqlite3.connect(checkout / "mlflow.db")) as records:
        recorded = dict(records.execute("SELECT name, digest FROM datasets WHERE name = 'photos'"))
    assert recorded == {"photos": tracked["outs"][0]["md5"]}

    said = run(lab, checkout, "eval", arm.name, "--data", "photos", "--split", "train", "--samples", "0")
    (figure,) = re.findall(r"photos/exact/exact\s+(\d\.\d+) \[", said)
    assert 0.0 < float(figure) <= 1.0  # whether it is in colour is soon learnt
    assert "measured before" in run(
        lab, checkout, "eval", arm.name, "--data", "photos", "--split", "train", "--samples", "0"
    )


@pytest.mark.slow
def test_a_stage_of_dvc_yaml_says_which_line_it_lacks(checkout: Path, lab: Lab) -> None:
    params = yaml.safe_load((checkout / "params.yaml").read_text())
    params["mixes"]["generation"] = {"photos": 1}
    before = (checkout / "params.yaml").read_text()
    (checkout / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    try:
        run(lab, checkout, "stage", "data")
        said = run(lab, checkout, "stage", "text_decoder", code=2)
        assert "stage 'text_decoder' reads a data set that it does not depend on" in said
        assert "add `- datasets.photos` to its params" in said
    finally:
        (checkout / "params.yaml").write_text(before)
