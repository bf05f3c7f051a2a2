from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # workers import what trials do from there

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def _empty_storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage whose tables are made once: that takes longer than most studies here."""
    from optuna.storages import RDBStorage

    path = tmp_path_factory.mktemp("storage") / "optuna.db"
    RDBStorage(f"sqlite:///{path}").remove_session()
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _empty_storage: Path) -> Path:
    """A pipeline's folder with the default parameters; nothing is tracked."""
    (tmp_path / ".lab").mkdir()
    shutil.copy(_empty_storage, tmp_path / ".lab" / "optuna.db")
    shutil.copy(REPOSITORY / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAB_TRACKING", "off")
    return tmp_path


SWEEP = """
objectives: {understanding/vqa: maximize}
trials: 6
seed: 3
set: {stages.instruct.steps: 200}
space:
  connector: {choices: [linear, q_former]}
  connector.num_queries: {int: [8, 32], when: {connector: q_former}}
  stages.instruct.learning_rate.connector: {log: [3.0e-4, 3.0e-3]}
"""


@pytest.fixture
def sweep(folder: Path) -> Path:
    """A declaration with a conditional dimension."""
    path = folder / "try.yaml"
    path.write_text(SWEEP)
    return path


@pytest.fixture
def declare(folder: Path) -> Callable[[str], Path]:
    """Writes another declaration."""

    def write(text: str) -> Path:
        path = folder / "other.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies end without pictures, which take longer than most of them."""
    from lab.search import study

    monkeypatch.setattr(study, "conclude", lambda trials, folder: None)


@pytest.fixture
def tiny(tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the pipeline of one trained arm, as the current folder."""
    shutil.copytree(tiny_pipeline, tmp_path / "pipeline")
    monkeypatch.chdir(tmp_path / "pipeline")
    return tmp_path / "pipeline"
