"""`lab components`: the catalogue as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import registry
from lab.cli import main

GOOD = '''"""Queries read the image.

Paper: BLIP-2, arXiv:2301.12597, section 3.1
"""

from torch import nn

__all__ = ["QFormer"]


class QFormer(nn.Module):
    def __init__(self, dim_in: int, dim_out: int, *, num_queries: int = 16, depth: int = 2):
        super().__init__()
'''


@pytest.fixture(autouse=True)
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of parts of our own, so that new parts do not change what is expected here."""
    folder = tmp_path / "components"
    for path in registry.ROLES.values():
        (folder / path).mkdir(parents=True)
    (folder / "connectors" / "q_former.py").write_text(GOOD)
    (folder / "connectors" / "broken.py").write_text("class (")
    monkeypatch.setattr(registry, "COMPONENTS", folder)
    monkeypatch.setenv("COLUMNS", "110")
    return folder


def test_lists_role_word_line_paper_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["components"]) == 0
    text = capsys.readouterr().out
    assert "connector  (components/connectors)" in text
    assert "q_former    Queries read the image." in text
    assert "Paper: BLIP-2, arXiv:2301.12597, section 3.1" in text
    assert "num_queries: int = 16, depth: int = 2" in text
    assert "encoder  (components/encoders)" in text
    assert all(len(line) <= 110 for line in text.splitlines())


def test_a_broken_part_is_listed_with_its_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["components", "connector"]) == 0
    text = capsys.readouterr().out
    assert "encoder" not in text
    assert "broken      cannot be used: components/connectors/broken.py:1" in text
    assert main(["components", "broken"]) == 0
    assert "cannot be used" in capsys.readouterr().out


def test_shows_one_part_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["components", "q_former"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("connector: q_former  (components/connectors/q_former.py)")
    assert "  num_queries: int = 16\n  depth: int = 2" in text


def test_unknown_word_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["components", "q_fromer"]) == 2
    assert "did you mean 'q_former'?" in capsys.readouterr().err
