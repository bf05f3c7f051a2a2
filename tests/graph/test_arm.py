"""Arms outside the pipeline: what exists is reused, what differs is trained, and a person can try them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lab.errors import LabError
from lab.graph.arm import find_arm, run_trial, train
from lab.graph.trained import ask, draw

ARM = "linear-understanding"


@pytest.fixture
def folder(tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the pipeline of one trained arm, as the current folder."""
    shutil.copytree(tiny_pipeline, tmp_path / "pipeline")
    monkeypatch.chdir(tmp_path / "pipeline")
    return tmp_path / "pipeline"


Trained = Callable[..., set[str]]


@pytest.fixture
def trained(folder: Path, capsys: pytest.CaptureFixture[str]) -> Trained:
    """Train an arm; the stages that really ran."""

    def run(*overrides: str, declaration: str | None = None) -> set[str]:
        train(declaration, list(overrides))
        text = capsys.readouterr().out
        assert "understanding/vqa " in text
        reused = {line.split("@")[0] for line in re.findall(r"^(\S+): reused from", text, re.MULTILINE)}
        stages = {
            "data",
            "judge",
            "encoder",
            "text_decoder",
            "image_decoder",
            "align",
            "instruct",
            "evaluate",
        }
        return stages - reused

    return run


def test_an_arm_of_the_pipeline_is_not_trained_again(trained: Trained, folder: Path) -> None:
    assert trained() == set()
    found = json.loads(next(folder.glob(f".lab/arms/{ARM}-*/metrics/evaluate/{ARM}.json")).read_text())
    assert found == json.loads((folder / "metrics" / "evaluate" / f"{ARM}.json").read_text())


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stages.evaluate.captions=5", {"evaluate"}),
        ("stages.instruct.steps=3", {"instruct", "evaluate"}),
        ("mix=generation", {"instruct", "evaluate"}),
        ("connector=mlp", {"align", "instruct", "evaluate"}),
    ],
)
def test_what_differs_is_trained_once(
    trained: Trained, folder: Path, override: str, expected: set[str]
) -> None:
    before = {path: path.read_bytes() for path in (folder / "output").rglob("*") if path.is_file()}
    assert trained(override) == expected
    assert trained(override) == set()
    after = {path: path.read_bytes() for path in (folder / "output").rglob("*") if path.is_file()}
    assert after == before  # the pipeline is left as it was


def test_a_declaration_says_what_differs(trained: Trained, folder: Path) -> None:
    (folder / "mine.yaml").write_text(
        "mix: mine\nmixes:\n  mine: {caption: 1}\nstages: {instruct: {steps: 3}}\n"
    )
    assert trained(declaration="mine.yaml") == {"instruct", "evaluate"}
    assert find_arm(next((folder / ".lab" / "arms").glob("linear-mine-*")).name).name == "linear-mine"
    assert trained("stages.instruct.steps=2", declaration="mine.yaml") == {"instruct", "evaluate"}
    (folder / "mine.yaml").write_text("connectors: [linaer]\n")
    with pytest.raises(LabError, match=r"mine\.yaml: .*did you mean 'linear'"):
        train("mine.yaml", [])


@pytest.mark.parametrize("lost", ["metrics", "output"])
def test_half_a_result_is_none(trained: Trained, folder: Path, lost: str) -> None:
    """Killed between output and metrics, or one of them removed by hand: the stage runs again."""
    overrides = ["stages.instruct.steps=3", "stages.evaluate.captions=5"]
    assert trained(*overrides) == {"instruct", "evaluate"}
    for record in (folder / ".lab" / "nodes").glob("*/node.json"):
        if json.loads(record.read_text())["stage"] == "evaluate":
            if lost == "output":
                shutil.rmtree(record.parent)
            else:
                record.parent.with_suffix(".json").unlink()
    assert trained(*overrides) == {"evaluate"}


def test_a_trial_reports_on_its_way_and_gives_numbers(folder: Path) -> None:
    reported: list[tuple[int, float]] = []
    settings = {
        "connector": "linear",
        "mix": "understanding",
        "stages.instruct.learning_rate.connector": 1e-3,
    }

    def report(step: int, score: float) -> bool:
        reported.append((step, score))
        return False

    metrics = run_trial({**settings, "stages.instruct.steps": 10}, report)
    assert [step for step, _ in reported] == [2, 4, 6, 8]
    assert {"understanding/vqa", "generation/scene"} <= metrics.keys()
    assert all(isinstance(value, float) for value in metrics.values())


def test_looking_on_the_way_changes_no_trial(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"stages.instruct.steps": 10}
    run_trial(settings, lambda step, score: False)
    (watched,) = (folder / ".lab" / "nodes").glob("*/text_decoder/model.safetensors")
    weights = watched.read_bytes()
    shutil.rmtree(folder / ".lab" / "nodes")
    train(None, ["stages.instruct.steps=10"])
    assert watched.read_bytes() == weights


def test_a_stopped_trial_leaves_no_result(folder: Path) -> None:
    class Pruned(Exception):
        pass

    def stop(step: int, score: float) -> bool:
        raise Pruned

    with pytest.raises(Pruned):
        run_trial({"stages.instruct.steps": 10}, stop)
    assert not list((folder / ".lab" / "nodes").glob("*/node.json"))


def test_arms_side_by_side_train_what_they_share_once(folder: Path) -> None:
    """Two processes that both find the alignment missing."""
    shutil.rmtree(folder / "output" / "align")
    commands = [[sys.executable, "-m", "lab", "train", f"stages.instruct.steps={steps}"] for steps in (3, 5)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    options = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    running = [subprocess.Popen(command, cwd=folder, **options) for command in commands]  # type: ignore[call-overload]
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert sum(text.count("align@linear  4/4") for text in said) == 1
    assert sum("align@linear: reused from .lab/nodes" in text for text in said) == 1
    assert all("understanding/vqa" in text for text in said)


# -- by hand -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [ARM, f"output/instruct/{ARM}", f"{{here}}/output/instruct/{ARM}", "{here}"])
def test_an_arm_is_found_by_name_or_place(folder: Path, run: str) -> None:
    found = find_arm(run.format(here=folder))
    assert found.resolve() == folder / "output" / "instruct" / ARM


@pytest.mark.parametrize("run", ["linear-understandin", ".", "nowhere/at/all"])
def test_an_arm_that_is_not_there_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, run: str) -> None:
    (folder / "empty").mkdir()
    if run == ".":
        monkeypatch.chdir(folder / "empty")
    with pytest.raises(LabError, match=re.escape(f"no trained arm '{run}'")) as caught:
        find_arm(run)
    if run.startswith("linear"):
        assert f"did you mean '{ARM}'?" in str(caught.value)


@pytest.fixture
def picture(folder: Path) -> Path:
    Image.new("L", (50, 40), 200).save(folder / "picture.png")
    return folder / "picture.png"


def test_questions_are_answered(picture: Path) -> None:
    for question in ("where is the 3 ?", "Where is the 3?"):
        assert isinstance(ask(ARM, str(picture), question), str)
    assert ask(ARM, str(picture), "where is the 3 ?") == ask(ARM, str(picture), "Where is the 3?")


def test_what_an_arm_cannot_read_is_named(folder: Path, picture: Path) -> None:
    with pytest.raises(LabError, match=r"never seen the word 'whree'.*did you mean 'where'"):
        ask(ARM, str(picture), "whree is the 3 ?")
    with pytest.raises(LabError, match=r"nothing\.png: cannot be read as an image"):
        ask(ARM, "nothing.png", "where is the 3 ?")
    (folder / "text.png").write_text("no image")
    with pytest.raises(LabError, match=r"text\.png: cannot be read as an image"):
        ask(ARM, "text.png", "where is the 3 ?")
    with pytest.raises(LabError, match="cannot be written"):
        draw(ARM, "draw a red 3 at the top-left", "no/such/folder.png", 0)
    with pytest.raises(LabError, match="cannot be written"):
        draw(ARM, "draw a red 3 at the top-left", "unknown.ending", 0)


def test_prompts_are_drawn_from_anywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name in the pipeline's folder, and by a path from within the outputs."""
    draw(ARM, "draw a red 3 at the top-left", "one.png", 0)
    monkeypatch.chdir(folder / "output" / "instruct")
    draw(ARM, "Draw a red 3 at the top-left", str(folder / "two.png"), 0)
    assert (folder / "one.png").read_bytes() == (folder / "two.png").read_bytes()
    with Image.open(folder / "one.png") as drawn:
        assert drawn.size == (256, 256)


def test_what_an_arm_of_ones_own_trained_can_be_tried(trained: Trained, folder: Path, picture: Path) -> None:
    trained("connector=mlp")
    name = next((folder / ".lab" / "arms").glob("mlp-*")).name
    assert isinstance(ask(name, str(picture), "how many digits ?"), str)
    draw(name, "draw a red 3 at the top-left", "drawn.png", 0)
    assert (folder / "drawn.png").exists()
