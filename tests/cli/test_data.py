"""`lab data inspect` from the command line: one clear message, and no sheet where there is no image."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.cli import main
from tests.samples.readers.conftest import encoded, put, talk


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--samples", "-1"], "--samples -1: expected 0 or more"),
        (["--sheet", "gone/sheet.png"], "gone/sheet.png: cannot be written"),
        (["--sheet", "sheet.words"], "sheet.words: cannot be written"),
        (["--split", "test"], "--split test: expected own, or SPLIT=SHARE, or SPLIT=FILE"),
    ],
)
def test_what_cannot_be_done_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "set/0.png", encoded(0))
    put(tmp_path, "set/0.txt", "a cat")
    assert main(["data", "inspect", "set", *words]) == 2
    assert message in capsys.readouterr().err


def test_texts_alone_have_no_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "set/talks.jsonl", [talk(0, "What?", "This.")])
    assert not main(["data", "inspect", "set"])
    assert not list(tmp_path.glob("*.png"))
