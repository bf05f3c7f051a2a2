from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

KINDS = {
    "digit_at": 0.1,
    "colour_at": 1 / 6,
    "colour_of": 1 / 6,
    "where": 0.25,
    "exists": 0.5,
    "count": 0.25,
    "compare": 0.5,
    "add": 0.06,
}


def make_pipeline(
    folder: Path, mixes: tuple[str, ...] = ("understanding", "generation"), seed: int = 0
) -> Path:
    """A pipeline's folder as the stages leave it, with invented numbers."""
    generator = np.random.default_rng(seed)
    connectors = ("linear", "q_former", "perceiver")
    (folder / "metrics" / "evaluate").mkdir(parents=True)
    mix_lines = "".join(f"  {mix}: {{vqa: 1}}\n" for mix in mixes)
    (folder / "params.yaml").write_text(
        f"name: connectors_by_mix\nconnectors: [{', '.join(connectors)}]\nmixes:\n{mix_lines}"
    )
    real = _scenes(generator, 10)
    blurred = np.clip(real.astype(float) + generator.normal(0, 8, real.shape), 0, 255).astype(np.uint8)
    for c, connector in enumerate(connectors):
        for m, mix in enumerate(mixes):
            tilt = m / max(1, len(mixes) - 1)
            metrics = _metrics(generator, 0.82 - 0.16 * tilt - 0.03 * c, 0.35 + 0.35 * tilt - 0.05 * c)
            write_arm(folder, connector, mix, metrics)
            out = folder / "output" / "evaluate" / f"{connector}-{mix}"
            out.mkdir(parents=True)
            drawn = np.where(generator.random((10, 1, 1, 1)) < 0.3, blurred[::-1], blurred)
            np.savez(out / "samples.npz", real=real, reconstructed=blurred, generated=drawn)
            (out / "samples.json").write_text(json.dumps(_texts(generator)))
    for stage, numbers in {
        "judge": {"judge/digit": 0.974, "judge/colour": 1.0, "judge/place": 1.0, "judge/scene": 0.948},
        "encoder": {"encoder/region": 0.785, "cost/train_seconds": 60.5},
        "image_decoder": {
            "reconstruction/psnr": 30.1,
            "reconstruction/digit": 0.953,
            "cost/train_seconds": 42.0,
        },
        "align/linear": {"validation/loss": 1.2, "cost/train_seconds": 20.0},
        "instruct/linear-generation": {"validation/loss": 0.8, "cost/train_seconds": 81.2},
    }.items():
        file = folder / "metrics" / f"{stage}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(numbers))
    return folder


def write_arm(folder: Path, connector: str, mix: str, metrics: dict[str, float]) -> None:
    """One arm's metric file, as the evaluation writes it."""
    rates = {k: v for k, v in metrics.items() if v <= 1 and not k.startswith(("judge", "reconstruction"))}
    content: dict[str, Any] = {
        "arm": {
            "connector": connector,
            "mix": mix,
            "encoder": "vit",
            "text_decoder": "llama",
            "visual_head": "regression",
            "image_decoder": "transformer",
            "seed": 0,
        },
        "metrics": metrics,
        "intervals": {k: [max(0, v - 0.022), min(1, v + 0.02)] for k, v in rates.items()},
        "chance": {"understanding/vqa": 0.25, **{f"understanding/vqa/{k}": v for k, v in KINDS.items()}},
        "samples": 1600,
    }
    path = folder / "metrics" / "evaluate" / f"{connector}-{mix}.json"
    path.write_text(json.dumps(content))


def _metrics(generator: np.random.Generator, understanding: float, generation: float) -> dict[str, float]:
    spread = {kind: float(np.clip(understanding + generator.normal(0, 0.1), 0.05, 0.995)) for kind in KINDS}
    return {
        "understanding/vqa": float(np.mean(list(spread.values()))),
        **{f"understanding/vqa/{kind}": value for kind, value in spread.items()},
        "understanding/caption": understanding - 0.2,
        "understanding/text_perplexity": 3.2 + generation,
        "generation/digit": generation + 0.18,
        "generation/colour": 0.985,
        "generation/place": 0.998,
        "generation/scene": generation,
        "generation/edit": generation - 0.1,
        "generation/frechet": 240 - 150 * generation,
        "reconstruction/psnr": 30.2,
        "reconstruction/digit": 0.953,
        "reconstruction/scene": 0.9,
        "judge/digit": 0.974,
        "cost/train_seconds": 81.2,
        "cost/evaluate_seconds": 14.9,
    }


def _scenes(generator: np.random.Generator, count: int) -> np.ndarray:
    """Cells with a coloured blob: something to look at. (S,3,32,32) uint8."""
    colours = np.array([[255, 60, 60], [60, 230, 70], [90, 120, 255], [255, 230, 60]])
    pixels = np.full((count, 3, 32, 32), 15, dtype=np.uint8)
    for sample in range(count):
        for cell in range(4):
            if generator.random() < 0.5:
                y, x = 16 * (cell // 2) + 4, 16 * (cell % 2) + 4
                pixels[sample, :, y : y + 9, x + 2 : x + 6] = colours[generator.integers(4)][:, None, None]
    return pixels


def _texts(generator: np.random.Generator) -> list[dict[str, str]]:
    return [
        {
            "prompt": "a red 3 at the top left, a blue 7 at the bottom right, a white 0 at the bottom left",
            "question": "which digit is at the top left?",
            "answer": "3",
            "predicted": str(generator.choice(["3", "8"])),
        }
        for _ in range(10)
    ]


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return make_pipeline(tmp_path / "pipeline")
