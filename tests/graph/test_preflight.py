"""A stage looks at its samples before its first step."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from lab.cli import main
from lab.errors import LabError
from lab.graph.execution import run_stage
from lab.samples.segments import part_of_answer


@pytest.fixture
def aligned(tmp_path: Path, tiny_pipeline: Path) -> Path:
    """A pipeline in which `instruct` comes next."""
    for place in ("data", "encoder", "text_decoder", "align"):
        shutil.copytree(tiny_pipeline / "output" / place, tmp_path / "output" / place)
    shutil.copytree(tiny_pipeline / "metrics", tmp_path / "metrics")
    shutil.copyfile(tiny_pipeline / "params.yaml", tmp_path / "params.yaml")
    return tmp_path


def test_the_command_shows_samples_and_what_is_learned_of_them(
    aligned: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(aligned)
    assert main(["preflight", "instruct", "linear", "understanding", "--html", "samples.html"]) == 0
    said = capsys.readouterr().out
    assert "samples looked at: no faults" in said
    assert "<assistant>" in said
    assert "learned" in (aligned / "samples.html").read_text()
    assert main(["preflight", "encoder"]) == 2
    assert "encoder draws from no mix" in capsys.readouterr().err


def test_faults_stop_a_stage_before_its_first_step(aligned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(aligned)
    monkeypatch.setattr("lab.scenes.tasks.answer", part_of_answer)  # answers that do not end
    with pytest.raises(LabError, match=r"instruct@linear-understanding: of \d+ samples \d+ endless: "):
        run_stage("instruct", "linear", "understanding")
    assert not [*(aligned / "output" / "instruct").glob("*")]
    params = yaml.safe_load((aligned / "params.yaml").read_text())
    params["trainer"] = {**params.get("trainer", {}), "preflight": "warn"}
    (aligned / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    metrics = run_stage("instruct", "linear", "understanding")
    assert metrics["preflight/endless"] > 0
