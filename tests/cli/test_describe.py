"""`lab describe` and `lab systems`."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.cli import main
from lab.graph import system as systems

TINY = """
paper: "A System: Small, arXiv:2301.00001"
claims: [understanding, grounding]
full:
  image_size: 32
  encoder: {name: patches, patch_size: 8, dim: 24}
  connector: linear
  text_decoder: {name: llama, dim: 64, depth: 2}
  fusion: sequence
  visual_head: null
  image_decoder: null
  vocab_size: 50
  stages:
    align: {trainable: [connector], data: [pairs], batch_size: 8, learning_rate: 1.0e-3, sequence: 32}
    instruct: {trainable: [text_decoder], data: [pairs], batch_size: null, learning_rate: null, sequence: 32}
  published: {connector: 1.6K}
"""


@pytest.fixture(autouse=True)
def declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of systems of our own."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "base.yaml").write_text("seed: 0\n")
    monkeypatch.setattr(systems, "SYSTEMS", tmp_path)
    monkeypatch.setattr(systems, "RESULTS", tmp_path / "systems.md")
    monkeypatch.setenv("COLUMNS", "110")
    return tmp_path


def test_describes_parts_and_stages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = {line.split()[0]: line.split() for line in lines if line}
    assert lines[0] == "tiny: A System: Small, arXiv:2301.00001; full size"
    assert ["connector", "1.6K", "1.6K", "+0.0%"] in [line.split() for line in lines]
    assert ["encoder", "patches", "5.1K", "none", "none"] in [line.split() for line in lines]
    assert ["connector", "linear", "1.6K", "all", "none"] in [line.split() for line in lines]
    assert cells["align"][1] == "8"
    assert cells["instruct"][1:4] == ["1", "(not", "stated)"]
    assert lines[-2].startswith("Memory: weights and gradients in bf16")
    assert lines[-1].startswith("Operations of an optimizer step")


def test_a_file_will_do(declared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", str(declared / "tiny.yaml")]) == 0
    assert "tiny: A System" in capsys.readouterr().out


def test_a_size_that_is_not_declared_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "tiny", "--size", "small"]) == 2
    assert "tiny.yaml: there is no small size" in capsys.readouterr().err


def test_an_unknown_system_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "tinny"]) == 2
    assert "no system 'tinny' (did you mean 'tiny'?)" in capsys.readouterr().err


def test_lists_systems_with_words_claims_and_status(
    declared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (declared / "broken.yaml").write_text("paper: nothing\n")
    assert main(["systems"]) == 0
    text = capsys.readouterr().out
    assert "tiny      A System: Small, arXiv:2301.00001" in text
    assert "encoder patches, connector linear, text_decoder llama, fusion sequence" in text
    assert "claims understanding, grounding; not trained here" in text
    assert "broken    cannot be used: " in text
    assert "base" not in text.replace(str(declared), "")
    assert all(len(line) <= 110 for line in text.splitlines())


def test_counting_needs_no_network(capsys: pytest.CaptureFixture[str]) -> None:
    """Sizes come from the configurations of published checkpoints that are kept here."""
    published = Path(systems.__file__).resolve().parents[2] / "experiments" / "systems" / "llava.yaml"
    assert main(["describe", str(published)]) == 0
    assert "6.738B     6.740B       -0.0%" in capsys.readouterr().out
