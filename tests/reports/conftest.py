from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

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


CLAIM = {
    "text": "Learned queries draw better than a linear map",
    "metric": "generation/scene",
    "higher": {"connector": "q_former"},
    "lower": {"connector": "linear"},
    "margin": 0.0,
}
FACTORS = {"connector": ["linear", "q_former"], "mix": ["understanding", "even"]}
BUDGET = {"unit": "samples", "amount": 6400, "stages": ["instruct"]}
ASKED = ("digit_at", "where", "count")
Levels = Mapping[str, str]


def make_ablation(
    folder: Path,
    *,
    drawn: Callable[[Levels], float] = lambda levels: 0.5,
    understood: Callable[[Levels], float] = lambda levels: 0.7,
    spread: float = 0.01,
    shared: float = 0.0,
    samples: int = 200,
    factors: Mapping[str, Sequence[str]] = FACTORS,
    arms: Sequence[Levels] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    claim: Mapping[str, Any] | None = CLAIM,
    metrics: Sequence[str] = ("understanding/vqa", "generation/scene"),
    budget: Mapping[str, Any] | None = BUDGET,
    aliases: Sequence[str] = (),
    pictures: bool = False,
    seed: int = 0,
) -> Path:
    """An ablation's folder as the compiler and the stages leave it, with invented numbers.

    The levels of the first factor share the node `align`, and every arm of a seed `encoder`.

    Args:
        folder: Where.
        drawn, understood: Rate of right scenes and of right answers, by an arm's levels.
        spread: SD of both between seeds, of each arm on its own.
        shared: SD of the luck that arms of one level of the first factor share at a seed.
        samples: Prompts, and questions of a kind.
        arms: In place of the full factorial.
        pictures: Whether drawn samples are kept.
        seed: Of the numbers.
    """
    generator = np.random.default_rng(seed)
    if arms is None:
        arms = [dict(zip(factors, row, strict=True)) for row in product(*factors.values())]
    first = next(iter(factors))
    luck = {(word, s): generator.normal(0, shared) for word in factors[first] for s in seeds}
    difficulty = generator.uniform(size=(len(ASKED) + 1, samples))  # the same samples for all
    described: dict[str, Any] = {}
    for levels in arms:
        name = "-".join(levels.values())
        labels = {s: f"{name}-s{s}" for s in seeds}
        align = {s: f"align@{levels[first]}-s{s}" for s in seeds}
        described[name] = {
            "levels": dict(levels),
            "evaluate": labels,
            "cost": {s: [f"encoder@s{s}", align[s], f"instruct@{labels[s]}"] for s in seeds},
        }
        for s in seeds:
            shift = luck[levels[first], s] + generator.normal(0, spread)
            rates = np.array([understood(levels)] * len(ASKED) + [drawn(levels)]) + shift
            noise = generator.normal(0, 0.1, difficulty.shape)
            write_evaluation(folder, labels[s], {**levels, "seed": s}, difficulty + noise < rates[:, None])
            for node, seconds in ((f"instruct@{labels[s]}", 80.0), (align[s], 20.0), (f"encoder@s{s}", 60.0)):
                write_cost(folder, node, train_seconds=seconds)
            if pictures:
                _pictures(folder / "output" / "evaluate" / labels[s], generator)
    content = {
        "name": "connectors_by_mix",
        "claim": None if claim is None else dict(claim),
        "metrics": list(metrics),
        "factors": {factor: list(words) for factor, words in factors.items()},
        "aliases": list(aliases),
        "seeds": list(seeds),
        "budget": None if budget is None else dict(budget),
        "arms": described,
    }
    (folder / "compare.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder


def write_evaluation(folder: Path, label: str, words: Mapping[str, Any], right: np.ndarray) -> None:
    """Metrics and scores of one evaluation; `right` has a row a kind of question, and one of drawn scenes."""
    right = right.astype(float)
    scores = {f"understanding/vqa/{kind}": row for kind, row in zip(ASKED, right, strict=False)}
    scores["generation/scene"] = right[-1]
    metrics = {name: float(values.mean()) for name, values in scores.items()}
    metrics["understanding/vqa"] = float(right[:-1].mean())
    metrics |= {"generation/frechet": 200 - 100 * metrics["generation/scene"], "judge/digit": 0.974}
    metrics |= {"cost/train_seconds": 80.0, "cost/evaluate_seconds": 9.0}
    content = {
        "arm": {"encoder": "vit", **words},
        "metrics": metrics,
        "intervals": {name: [max(0, m - 0.06), min(1, m + 0.06)] for name, m in metrics.items() if m <= 1},
        "chance": {"understanding/vqa": 0.25},
        "samples": right.size,
    }
    path = folder / "metrics" / "evaluate" / f"{label}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    output = folder / "output" / "evaluate" / label
    output.mkdir(parents=True, exist_ok=True)
    np.savez(output / "scores.npz", **scores)


def write_cost(folder: Path, node: str, **spent: float) -> None:
    """What a node that trains records."""
    stage, _, label = node.partition("@")
    path = folder / "metrics" / stage / f"{label}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = {"train_seconds": 80.0, "samples": 6400, "tokens": 409600, "steps": 200, "flops": 3e12}
    path.write_text(json.dumps({f"cost/{key}": value for key, value in (numbers | spent).items()}))


def _pictures(output: Path, generator: np.random.Generator) -> None:
    real = np.full((10, 3, 32, 32), 15, dtype=np.uint8)
    for number in range(10):
        y, x = 4 + 16 * (number % 2), 4 + 16 * (number // 2 % 2)
        real[number, number % 3, y : y + 9, x : x + 7] = 230
    drawn = np.where(generator.random((10, 1, 1, 1)) < 0.4, real[::-1], real)
    np.savez(output / "samples.npz", real=real, reconstructed=real // 8 * 8, generated=drawn)
    texts = [
        {
            "prompt": "draw: top-left red 3 , bottom-right blue 7",
            "question": "digit at top-left ?",
            "answer": "3",
            "predicted": str(generator.choice(["3", "8"])),
        }
        for _ in range(10)
    ]
    (output / "samples.json").write_text(json.dumps(texts))


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return make_pipeline(tmp_path / "pipeline")


@pytest.fixture
def ablation(tmp_path: Path) -> Callable[..., Path]:
    """Makes an ablation's folder: see `make_ablation`."""

    def make(**settings: Any) -> Path:
        return make_ablation(tmp_path / "experiments" / "ablations" / "connectors_by_mix", **settings)

    return make
