"""One attempt at a node at a time, and a lost one cannot publish."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.graph import claim as claims
from lab.graph.claim import Claim, ClaimedError
from lab.tracking import process


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "claims" / "instruct"


def stranger(path: Path, **changes: str) -> None:
    """Puts somebody else's claim there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"token": "other", "attempt": "17.0", **process.signature(), **changes}))


def test_a_second_attempt_is_told_who_works(path: Path) -> None:
    with (
        Claim(path, "12.0"),
        pytest.raises(ClaimedError, match=rf"process {os.getpid()} on .*, job 12\.0"),
        Claim(path),
    ):
        pass
    with Claim(path):  # the first has let go
        pass
    assert not path.exists()
    assert ClaimedError.code == 74


def test_the_claim_of_a_dead_process_is_free_at_once(path: Path) -> None:
    code = (
        "import os, pathlib; from lab.graph.claim import Claim; "
        f"Claim(pathlib.Path({str(path)!r})).__enter__(); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 9
    assert path.exists()
    with Claim(path) as mine, mine.fence():
        pass


def test_a_claim_of_another_machine_is_free_after_its_lease(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "LEASE", 0.3)
    stranger(path, host="elsewhere")
    with pytest.raises(ClaimedError, match="elsewhere"), Claim(path):
        pass
    time.sleep(0.4)
    with Claim(path) as mine, mine.fence():
        pass


def test_a_holder_keeps_its_claim_for_as_long_as_it_lives(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "LEASE", 0.3)
    with Claim(path) as mine:
        path.write_text(path.read_text().replace(process.signature()["host"], "elsewhere"))
        time.sleep(0.7)
        with pytest.raises(ClaimedError), Claim(path):
            pass
        with mine.fence():
            pass


def test_an_attempt_that_was_taken_over_is_refused_and_leaves_the_claim_alone(path: Path) -> None:
    with Claim(path) as mine:
        stranger(path)
        before = path.read_text()
        with (
            pytest.raises(ClaimedError, match=r"out of reach too long; another took over: .*job 17\.0"),
            mine.fence(),
        ):
            pass
    assert path.read_text() == before
