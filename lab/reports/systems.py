"""What the published systems reached in their small size, as a table for the documentation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lab.errors import LabError
from lab.graph.system import find, names, read_system
from lab.reports.measures import MEASURES, Measure
from lab.scenes.world import COLOUR_NAMES

SHOWN = (
    "understanding/vqa",
    "understanding/caption",
    "understanding/grounding",
    "understanding/by_example",
    "generation/colour",
    "generation/digit",
    "generation/scene",
)


def systems_table(folder: Path) -> str:
    """The newest run of every small system in a folder, as a Markdown table.

    Args:
        folder: where `lab train` was called.

    Raises:
        LabError: no system was trained there.
    """
    measures = [measure for name in SHOWN for measure in MEASURES if measure.name == name]
    heads = ["system", "trained", *(f"{measure.label} %" for measure in measures), "minutes", "status"]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 2)}---|"]
    rows = [(name, _newest(folder, name)) for name in names()]
    if all(run is None for _, run in rows):
        raise LabError(f"{folder / '.lab' / 'arms'}: no system was trained here; run `lab train SYSTEM.yaml`")
    for name, run in rows:
        if run is None:
            lines.append(f"| {name} | {'| ' * (len(heads) - 2)}not trained here |")
            continue
        result = json.loads(next((run / "metrics" / "evaluate").glob("*.json")).read_text())
        stages = [json.loads(file.read_text()) for file in sorted((run / "metrics").rglob("*.json"))]
        parameters = sum(stage.get("cost/trained_parameters", 0) for stage in _last(run))
        claims = read_system(find(name)).claims
        shown = [measure for measure in measures if _shown(measure, claims)]
        cells = [f"{parameters / 1e3:,.0f}K"]
        cells += [_cell(result, measure) if measure in shown else "" for measure in measures]
        cells += [f"{_seconds(stages) / 60:.1f}", _status(claims, result)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _status(claims: Sequence[str], result: Mapping[str, Any]) -> str:
    """Which claims hold: whether a 95% interval lies above chance and above the system before training."""
    held: list[str] = []
    failed: list[str] = []
    for claim in claims:
        if claim not in _CLAIMED:
            continue
        for name, chance, words in _CLAIMED[claim]:
            low = result["intervals"].get(name, [0.0])[0]
            bar = max(result["chance"].get(name, chance), result["metrics"].get(f"untrained/{name}", 0.0))
            if low > bar:
                held.append(words)
                break
        else:
            failed.append(_CLAIMED[claim][0][2])
    beaten = [f"beats chance in {', '.join(held)}"] if held else []
    return "; ".join([*beaten, *(f"not in {claim}" for claim in failed)])


# claim -> measures, of which the first that lies above chance decides: its name, chance where the evaluation
# states none, and what the table calls it
_CLAIMED = {
    "understanding": [("understanding/vqa", 1.0, "understanding")],
    "generation": [
        ("generation/digit", 1 / 10, "generation"),
        ("generation/colour", 1 / len(COLOUR_NAMES), "generation (colours, not digits)"),
    ],
    "grounding": [("understanding/grounding", 1.0, "grounding")],
    "in_context": [("understanding/by_example", 1.0, "learning in context")],
}


def _shown(measure: Measure, claims: Sequence[str]) -> bool:
    """Whether the table has a value: boxes and questions by example are of those that claim them alone."""
    return {"box": "grounding", "by example": "in_context"}.get(measure.label, claims[0]) in claims


def _newest(folder: Path, name: str) -> Path | None:
    """The folder of a system's last finished run."""
    runs = []
    for run in (folder / ".lab" / "arms").glob(f"{name}-*"):
        results = list((run / "metrics" / "evaluate").glob("*.json"))
        if results and yaml.safe_load((run / "params.yaml").read_text())["system"] == name:
            runs.append((results[0].stat().st_mtime, run))
    return max(runs)[1] if runs else None


def _last(run: Path) -> list[dict[str, Any]]:
    """Metrics of the last joint stage."""
    return [json.loads(file.read_text()) for file in (run / "metrics" / "instruct").glob("*.json")]


def _cell(result: Mapping[str, Any], measure: Measure) -> str:
    """The value, and in brackets that before training."""
    value = result["metrics"].get(measure.name)
    before = result["metrics"].get(f"untrained/{measure.name}")
    if value is None:
        return ""
    return measure.show(value) + (f" ({measure.show(before)})" if before is not None else "")


def _seconds(stages: list[dict[str, Any]]) -> float:
    """What all stages of a run took, those that it shares with others included."""
    return float(sum(stage.get("metrics", stage).get("cost/train_seconds", 0.0) for stage in stages))
