"""An ablation that varied its mix, as compiler and stages leave it, with numbers whose truth is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

LEVELS = (0, 1280, 2560, 5120)
Rate = Callable[[str, float, float], float]  # connector, samples of understanding, of generation


def rate(connector: str, own: float, other: float, exchange: float = 0.2) -> float:
    """What a task comes to: half of its errors are gone after 2,000 samples."""
    half = 2000 if connector == "linear" else 3000
    effective = max(own + exchange * other, 1e-9)
    return 1 - 0.9 / (1 + (effective / half) ** 1.5)


def make_mixes(
    folder: Path,
    *,
    understood: Rate = lambda connector, u, g: rate(connector, u, g),
    drawn: Rate = lambda connector, u, g: rate(connector, g, u, 0.3),
    cells: Sequence[tuple[int, int]] = tuple((u, g) for u in LEVELS for g in LEVELS if u or g),
    connectors: Sequence[str] = ("linear", "perceiver"),
    seeds: Sequence[int] = (0, 1, 2),
    spread: float = 0.01,
    claim: bool = True,
) -> Path:
    """Writes `compare.yaml` and metrics of arms `CONNECTOR-uU-gG`.

    Args:
        folder: Where.
        understood, drawn: Rates by connector and samples.
        cells: Samples of understanding and of generation, an arm of each connector for each.
        connectors: Of the arms.
        seeds: Of the replicates.
        spread: SD between seeds, of each arm on its own.
        claim: Whether one is made.
    """
    generator = np.random.default_rng(0)
    arms: dict[str, Any] = {}
    for connector in connectors:
        for u, g in cells:
            name = f"{connector}-u{u}-g{g}"
            labels = {seed: f"{name}-s{seed}" for seed in seeds}
            arms[name] = {
                "levels": {"connector": connector, "understanding": f"u{u}", "generation": f"g{g}"},
                "evaluate": labels,
                "cost": {s: [f"align@{connector}-s{s}", f"instruct@{labels[s]}"] for s in seeds},
            }
            for label in labels.values():
                rates = {
                    "understanding/vqa": understood(connector, u, g) + generator.normal(0, spread),
                    "generation/digit": drawn(connector, u, g) + generator.normal(0, spread),
                }
                metrics = {name: float(np.clip(value, 0, 1)) for name, value in rates.items()}
                content = {"arm": {"encoder": "vit", "connector": connector}, "metrics": metrics}
                _write(folder / "metrics" / "evaluate" / f"{label}.json", content)
                numbers = {
                    "mix/vqa": u / (u + g),
                    "mix/text_to_image": g / (u + g),
                    "cost/samples": u + g,
                    "cost/train_seconds": 5 + 0.01 * u + 0.02 * g,
                }
                _write(folder / "metrics" / "instruct" / f"{label}.json", numbers)
        for seed in seeds:
            shared = {"mix/caption": 0.75, "mix/text_to_image": 0.25, "cost/samples": 1600}
            _write(folder / "metrics" / "align" / f"{connector}-s{seed}.json", shared)
    found = {key: dict.fromkeys(arm["levels"][key] for arm in arms.values()) for key in _FACTORS}
    content = {
        "name": "mine",
        "claim": _CLAIM if claim else None,
        "metrics": ["understanding/vqa", "generation/digit"],
        "factors": {key: list(levels) for key, levels in found.items()},
        "seeds": list(seeds),
        "budget": None,
        "arms": arms,
    }
    (folder / "compare.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder


_FACTORS = ("connector", "understanding", "generation")
_CLAIM = {
    "text": "Learning to understand images helps to draw them",
    "metric": "generation/digit",
    "higher": {"understanding": "u5120"},
    "lower": {"understanding": "u0"},
    "margin": 0.02,
}


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def mixes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes an ablation's folder: see `make_mixes`."""
    monkeypatch.setenv("LAB_TRACKING", "off")
    folder = tmp_path / "experiments" / "ablations" / "mine"
    folder.mkdir(parents=True)
    return lambda **settings: make_mixes(folder, **settings)
