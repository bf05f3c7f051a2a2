"""The table of published systems, from runs on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.errors import LabError
from lab.reports.systems import systems_table


def write_run(folder: Path, system: str, digest: str, **result: Any) -> Path:
    run = folder / ".lab" / "arms" / f"{system}-{digest}"
    for stage, numbers in {
        "encoder": {"cost/train_seconds": 60.0},
        "instruct/linear-main": {"cost/train_seconds": 90.0, "cost/trained_parameters": 12_345},
        "evaluate/linear-main": {"intervals": {}, "chance": {}, **result},
    }.items():
        file = run / "metrics" / f"{stage}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(numbers))
    (run / "params.yaml").write_text(yaml.safe_dump({"system": system}))
    return run


def cells(table: str, system: str) -> list[str]:
    (row,) = (line for line in table.splitlines() if line.startswith(f"| {system} |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_a_row_says_what_was_reached_and_from_where(tmp_path: Path) -> None:
    write_run(
        tmp_path,
        "llava",
        "1",
        metrics={"understanding/vqa": 0.9, "untrained/understanding/vqa": 0.2},
        intervals={"understanding/vqa": [0.85, 0.95]},
        chance={"understanding/vqa": 0.3},
    )
    row = cells(systems_table(tmp_path), "llava")
    assert row[:3] == ["llava", "12K", "90.0 (20.0)"]
    assert cells(systems_table(tmp_path), "emu") == ["emu", *[""] * (len(row) - 2), "not trained here"]
    assert row[-2:] == ["2.5", "beats chance in understanding"]


@pytest.mark.parametrize(("chance", "untrained"), [(0.5, 0.1), (0.1, 0.5)])
def test_a_claim_holds_above_chance_and_above_the_start(
    tmp_path: Path, chance: float, untrained: float
) -> None:
    write_run(
        tmp_path,
        "llava",
        "1",
        metrics={"understanding/vqa": 0.55, "untrained/understanding/vqa": untrained},
        intervals={"understanding/vqa": [0.45, 0.65]},
        chance={"understanding/vqa": chance},
    )
    assert cells(systems_table(tmp_path), "llava")[-1] == "not in understanding"


def test_each_claim_is_judged_by_itself(tmp_path: Path) -> None:
    write_run(
        tmp_path,
        "gill",
        "1",
        metrics={"understanding/vqa": 0.8, "generation/digit": 0.11, "generation/scene": 0.0},
        intervals={"understanding/vqa": [0.7, 0.9], "generation/digit": [0.08, 0.14]},
        chance={"understanding/vqa": 0.3},
    )
    assert cells(systems_table(tmp_path), "gill")[-1] == "beats chance in understanding; not in generation"


def test_colours_are_generation_too(tmp_path: Path) -> None:
    intervals = {"generation/digit": [0.05, 0.15], "generation/colour": [0.6, 0.7]}
    write_run(tmp_path, "mar", "1", metrics={"generation/digit": 0.1}, intervals=intervals)
    table = systems_table(tmp_path)
    assert cells(table, "mar")[-1] == "beats chance in generation (colours, not digits)"


@pytest.mark.parametrize(
    ("low", "status"), [(0.4, "in understanding, learning in context"), (0.3, "not in learning in context")]
)
def test_learning_in_context_is_more_than_seeing(tmp_path: Path, low: float, status: str) -> None:
    name = "understanding/by_example"
    numbers = {
        "metrics": {name: 0.5, "understanding/vqa": 0.9},
        "chance": {name: 1 / 3, "understanding/vqa": 0.3},
    }
    intervals = {name: [low, 0.6], "understanding/vqa": [0.8, 1.0]}
    for system in ("kosmos1", "llava"):
        write_run(tmp_path, system, "1", intervals=intervals, **numbers)
    table = systems_table(tmp_path)
    assert cells(table, "kosmos1")[5] == "50.0"
    assert status in cells(table, "kosmos1")[-1]
    assert cells(table, "llava")[5] == ""  # it does not claim it


def test_the_last_run_counts_and_unfinished_ones_do_not(tmp_path: Path) -> None:
    import os

    for digest, value, age in (("old", 0.1, 100), ("new", 0.7, 50)):
        run = write_run(tmp_path, "llava", digest, metrics={"understanding/vqa": value})
        for file in (run / "metrics").rglob("*.json"):
            os.utime(file, (1_700_000_000 - age, 1_700_000_000 - age))
    (tmp_path / ".lab" / "arms" / "llava-started").mkdir()
    assert cells(systems_table(tmp_path), "llava")[2] == "70.0"


def test_nothing_trained_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"no system was trained here; run `lab train SYSTEM\.yaml`"):
        systems_table(tmp_path)
