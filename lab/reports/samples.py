"""The same held-out samples as several arms drew and answered them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Samples:
    """The same held-out samples as several arms drew and answered them.

    Attributes:
        texts: A sample's "prompt", "question" and "answer".
        real: (S,H,W,3) uint8.
        reconstructed: (S,H,W,3) uint8.
        generated: Arm name -> (S,H,W,3) uint8.
        predicted: Arm name -> S answers.
    """

    texts: Sequence[dict[str, str]]
    real: np.ndarray
    reconstructed: np.ndarray
    generated: dict[str, np.ndarray]
    predicted: dict[str, list[str]]


def read_samples(folders: Mapping[str, Path]) -> Samples | None:
    """Collects the arms' sample files; arms that were shown other samples than the first are left out.

    Args:
        folders: Arm name -> the output of its evaluation.
    """
    first: Samples | None = None
    for name, folder in folders.items():
        if not (folder / "samples.npz").exists() or not (folder / "samples.json").exists():
            continue
        texts = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
        with np.load(folder / "samples.npz", allow_pickle=False) as arrays:
            # (S,3,H,W) -> (S,H,W,3)
            pixels = {
                kind: arrays[kind].transpose(0, 2, 3, 1) for kind in ("real", "reconstructed", "generated")
            }
        if first is None:
            first = Samples(texts, pixels["real"], pixels["reconstructed"], {}, {})
        if np.array_equal(pixels["real"], first.real):
            first.generated[name] = pixels["generated"]
            first.predicted[name] = [str(text.get("predicted", "")) for text in texts]
    return first


def grid(samples: Samples, rows: int = 8) -> Figure:
    """Prompt, real and reconstructed image, and what every arm drew: a row a sample."""
    rows = min(rows, len(samples.texts), len(samples.real))
    columns = {"real": samples.real, "reconstructed": samples.reconstructed, **samples.generated}
    cell, words = 0.98, 2.9  # inches
    titles = {name: name.replace("-", "\n") for name in columns}
    longest = max(len(line) for title in titles.values() for line in title.split("\n"))
    letters = min(8.5, 8.5 * 12 / longest)  # points; a title is no wider than its column
    head = 0.25 + 0.15 * max(2, 1 + max(title.count("\n") for title in titles.values()))
    size = (words + cell * len(columns), head + cell * rows)
    figure = plt.figure(figsize=size)
    height, width = samples.real.shape[1:3]
    gap = max(1, round(height / 20))
    sheet = np.full((rows * (height + gap), len(columns) * (width + gap), 3), 255, dtype=np.uint8)
    for column, pixels in enumerate(columns.values()):
        for row in range(rows):
            top, left = row * (height + gap), column * (width + gap)
            sheet[top : top + height, left : left + width] = pixels[row]
    # one picture: axes for each would take seconds
    axes = figure.add_axes((words / size[0], 0, 1 - words / size[0], rows * cell / size[1]))
    axes.imshow(sheet, interpolation="nearest", aspect="auto")
    axes.axis("off")
    for row in range(rows):
        middle = ((rows - row - 0.5) * cell) / size[1]
        prompt = textwrap.fill(str(samples.texts[row].get("prompt", "")), 42)
        figure.text(0.0, middle, prompt, va="center", ha="left", fontsize=9)
    for column, name in enumerate(columns):
        middle = (words + (column + 0.475) * cell) / size[0]
        weight = "normal" if name in samples.generated else "bold"
        figure.text(
            middle,
            (rows * cell + 0.04) / size[1],
            titles[name],
            ha="center",
            va="bottom",
            fontsize=letters,
            weight=weight,
        )
    return figure
