"""`lab doctor`: each thing is one line, and what is wrong says how to mend it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from lab.cli import doctor, main
from lab.cli.doctor import Finding


def test_reports_this_machine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    text = "\n".join(lines)
    for name in ("python", "torch ", "torchvision", "transformers", "threads", "dvc repository", "disk"):
        assert any(line[6:].startswith(name) for line in lines), text
    assert not any("unexpected" in line for line in lines), text


def test_outside_a_checkout_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "_CHECKS", (doctor._dvc,))
    assert main(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("WRONG dvc repository")
    assert "cd into a clone" in out
    assert err == "\n1 essential thing wrong\n"


def test_a_check_that_breaks_is_a_finding() -> None:
    def check():
        yield Finding("first", "fine")
        raise ValueError("two\nlines")

    first, second = doctor._guarded(check)
    assert str(first).startswith("ok")
    assert second.broken
    assert second.detail == "ValueError: two lines"


def test_stores(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    uri = f"sqlite:///{file}"

    def look(uri: str) -> Finding:
        return doctor._store("store", uri, "rows", "SELECT COUNT(*) FROM t")

    assert "made by the first run" in look(uri).detail
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE t (x)")
        database.execute("INSERT INTO t VALUES (1)")
        database.commit()
    assert look(uri) == Finding("store", f"{file}, 1 rows")
    file.write_bytes(b"not a database" * 100)
    assert look(uri).remedy.startswith("move it away")
    assert "start that server" in look("http://127.0.0.1:9").remedy


def test_too_many_threads_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    (finding,) = doctor._threads()
    assert "slow" in finding.remedy
    assert not finding.broken
