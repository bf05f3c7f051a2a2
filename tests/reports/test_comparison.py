from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lab.errors import LabError
from lab.reports.arms import Arm, pareto_front, read
from lab.reports.comparison import compare, write_comparison
from lab.reports.measures import GENERATION, UNDERSTANDING


@pytest.fixture(autouse=True)
def _untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_TRACKING", "off")


def test_everything_is_written_and_the_table_printed(
    pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    comparison = compare(pipeline)
    said = capsys.readouterr().out
    assert [arm.name for arm in comparison.arms][:3] == [
        "linear-understanding",
        "linear-generation",
        "q_former-understanding",
    ]
    for word in ("perceiver-generation", "Fréchet", "±2.1", "frequent answer: VQA 25.0%", "digit 97.4%"):
        assert word in said
    output = pipeline / "output" / "compare"
    names = {path.name for path in output.iterdir()}
    assert names >= {"comparison.md", "comparison.csv", "comparison.json", "comparison.html"}
    pictures = sorted(name for name in names if name.endswith(".png"))
    assert pictures == ["fidelity.png", "front.png", "mix.png", "samples.png", "vqa_kinds.png"]
    for name in pictures:
        with Image.open(output / name) as image:
            assert min(image.size) > 200
    summary = json.loads((pipeline / "metrics" / "comparison.json").read_text())
    assert summary["best"] == comparison.best.name
    assert summary["front"] == [arm.name for arm in comparison.front]
    assert summary["arms"]["linear-generation"]["generation/scene"] == pytest.approx(0.7)


def test_the_csv_holds_every_number(pipeline: Path) -> None:
    comparison = compare(pipeline)
    with open(pipeline / "output" / "compare" / "comparison.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(arm.metrics) for arm in comparison.arms)
    (row,) = [
        r for r in rows if r["arm"] == "linear-generation" and r["metric"] == "understanding/vqa/exists"
    ]
    arm = next(arm for arm in comparison.arms if arm.name == "linear-generation")
    assert float(row["value"]) == arm.metrics["understanding/vqa/exists"]
    assert (row["connector"], row["chance"]) == ("linear", "0.5")


def test_the_page_needs_nothing_but_itself(pipeline: Path) -> None:
    samples = pipeline / "output" / "evaluate" / "linear-understanding" / "samples.json"
    texts = json.loads(samples.read_text())
    texts[0]["question"] = "<script>alert(1)</script>"
    samples.write_text(json.dumps(texts))
    compare(pipeline)
    text = (pipeline / "output" / "compare" / "comparison.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "<script" not in text
    assert text.count("data:image/png") == 5 + 10  # pictures, and the images that were asked about


def test_same_numbers_give_the_same_bytes(pipeline: Path) -> None:
    output = pipeline / "output" / "compare"
    compare(pipeline)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    compare(pipeline)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_an_arm_with_few_numbers_and_no_samples_is_compared(pipeline: Path) -> None:
    for path in (pipeline / "output" / "evaluate").glob("*/samples.npz"):
        path.unlink()
    (pipeline / "metrics" / "judge.json").unlink()
    path = pipeline / "metrics" / "evaluate" / "linear-generation.json"
    path.write_text(json.dumps({"metrics": {"generation/digit": 0.5}}))
    comparison = compare(pipeline)
    assert len(comparison.arms) == 6
    assert "| linear-generation | - | - |" in (pipeline / "output" / "compare" / "comparison.md").read_text()


def test_arms_that_are_no_longer_declared_are_named_and_left_out(pipeline: Path) -> None:
    params = pipeline / "params.yaml"
    params.write_text(params.read_text().replace("q_former, ", ""))
    comparison = read(pipeline)
    assert [arm.connector for arm in comparison.arms] == ["linear", "linear", "perceiver", "perceiver"]
    assert comparison.left_out == ("q_former-generation", "q_former-understanding")


def test_the_stage_writes_where_it_is_told_and_returns_the_numbers(pipeline: Path, tmp_path: Path) -> None:
    numbers = write_comparison(pipeline, tmp_path / "partial")
    assert (tmp_path / "partial" / "comparison.html").exists()
    assert not (pipeline / "output" / "compare").exists()
    assert numbers["best"] == "linear-generation"


def test_all_wrong_is_no_certainty(pipeline: Path) -> None:
    """A bootstrap of 200 zeros has no width; Wilson's interval reaches to 1.9%."""
    path = pipeline / "metrics" / "evaluate" / "linear-generation.json"
    content = json.loads(path.read_text())
    content["metrics"]["generation/scene"] = 0.0
    content["intervals"]["generation/scene"] = [0.0, 0.0]
    path.write_text(json.dumps(content))
    scores = {"generation/scene": np.zeros(200)}
    np.savez(pipeline / "output" / "evaluate" / "linear-generation" / "scores.npz", **scores)
    (arm,) = [arm for arm in read(pipeline).arms if arm.name == "linear-generation"]
    assert arm.intervals["generation/scene"] == pytest.approx((0.0, 0.0188), abs=1e-4)


def test_shared_costs_come_from_what_the_stages_measured(pipeline: Path) -> None:
    """Not the arms' own: theirs stand beside their other numbers."""
    assert read(pipeline).seconds == {"encoder": 60.5, "image_decoder": 42.0, "align linear": 20.0}


def test_the_front_keeps_what_nothing_beats() -> None:
    points = {"a": (0.5, 0.9), "b": (0.7, 0.7), "c": (0.6, 0.6), "d": (0.7, 0.5), "e": (0.8, 0.1)}
    arms = [Arm(name, {}, {"understanding/vqa": x, "generation/scene": y}) for name, (x, y) in points.items()]
    arms.append(Arm("f", {}, {"understanding/vqa": 1.0}))
    assert [arm.name for arm in pareto_front(arms, UNDERSTANDING, GENERATION)] == ["a", "b", "e"]
    twins = [arms[1], Arm("twin", {}, arms[1].metrics)]
    assert len(pareto_front(twins, UNDERSTANDING, GENERATION)) == 2


def test_mistakes_are_said_in_one_line(pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="nothing to compare"):
        compare(tmp_path)
    path = pipeline / "metrics" / "evaluate" / "linear-generation.json"
    path.write_text("{")
    with pytest.raises(LabError, match=r"linear-generation\.json: not JSON"):
        compare(pipeline)
    path.write_text("{}")
    with pytest.raises(LabError, match="no numbers"):
        compare(pipeline)
