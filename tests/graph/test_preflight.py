"""A stage looks at its samples before its first step."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from lab.cli import main
from lab.errors import LabError
from lab.graph.execution import run_stage
from lab.samples.segments import answer, part_of_answer


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
    assert main(["preflight", "instruct", "linear", "understanding", "--html", "pages/samples.html"]) == 0
    said = capsys.readouterr().out
    assert "samples looked at: no faults" in said
    assert "<assistant>" in said
    assert "learned" in (aligned / "pages" / "samples.html").read_text()
    assert main(["preflight", "encoder"]) == 2
    assert "encoder draws from no mix" in capsys.readouterr().err


def test_what_cannot_be_laid_out_is_named_and_the_rest_is_shown(
    aligned: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(aligned)
    monkeypatch.setattr("lab.scenes.tasks.answer", lambda text: answer(text.replace("yes", "zebra")))
    assert main(["preflight", "instruct", "linear", "understanding", "--whole"]) == 1
    said = capsys.readouterr().out
    assert "32 samples looked at" in said
    assert "refused: " in said
    assert "'zebra'" in said
    assert said.count("<assistant>") >= 3


def test_a_look_changes_no_weight(aligned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(aligned)
    found = []
    for word in ("error", "off"):  # YAML reads off as false
        params = yaml.safe_load((aligned / "params.yaml").read_text())
        params.setdefault("trainer", {}).pop("preflight", None)
        text = yaml.safe_dump(params, sort_keys=False).replace("trainer: {}", "trainer:")
        text = text.replace("trainer:", f"trainer:\n  preflight: {word}")
        (aligned / "params.yaml").write_text(text)
        run_stage("instruct", "linear", "understanding")
        place = aligned / "output" / "instruct" / "linear-understanding"
        found.append({file.name: load_file(file) for file in place.rglob("*.safetensors")})
        shutil.rmtree(place)
    assert found[0]
    assert found[0].keys() == found[1].keys()
    for name, weights in found[0].items():
        assert all(value.equal(found[1][name][key]) for key, value in weights.items())


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
