"""Logs of tasks."""

from __future__ import annotations

from pathlib import Path

from lab.graph.logs import last_line, lines_of


def test_log_lines_are_what_a_terminal_would_show(tmp_path: Path) -> None:
    assert lines_of("a\n\x1b[32m10%\r20%\r\n\n30%\r40%") == ["a", "20%", "40%"]
    log = tmp_path / "log"
    log.write_text("x\n" * 9000 + "step 7\n\n")
    assert last_line(log) == "step 7"
    log.write_text("")
    assert last_line(log) == ""
