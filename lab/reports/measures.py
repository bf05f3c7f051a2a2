"""What the numbers are called, what they mean, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """One column of the comparison.

    Attributes:
        name: Key in the metric files.
        label: What a table and an axis say.
        meaning: What it is, in one sentence.
        rate: A share of samples, shown in percent.
        rising: More is better.
    """

    name: str
    label: str
    meaning: str
    rate: bool = True
    rising: bool = True

    @property
    def group(self) -> str:
        return self.name.partition("/")[0]

    @property
    def axis(self) -> str:
        return f"{self.label} (%)" if self.rate else self.label

    @property
    def factor(self) -> float:
        """From the files' unit to the shown one."""
        return 100.0 if self.rate else 1.0

    def show(self, value: float | None) -> str:
        """The value as a table shows it, without unit."""
        if value is None:
            return "-"
        shown = value * self.factor
        return f"{shown:.1f}" if self.rate or abs(shown) < 100 else f"{shown:.0f}"


UNDERSTANDING = Measure("understanding/vqa", "VQA", "questions about held-out images answered exactly")
GENERATION = Measure("generation/scene", "scene", "held-out prompts whose drawn scene is right in every cell")

MEASURES = (
    UNDERSTANDING,
    Measure("understanding/caption", "caption", "held-out images whose whole caption is right"),
    Measure(
        "understanding/text_perplexity",
        "text ppl",
        "perplexity of plain text: has the language model forgotten?",
        rate=False,
        rising=False,
    ),
    Measure("understanding/grounding", "box", "digits whose box is found, at an IoU of at least 0.5"),
    Measure("generation/place", "place", "cells of drawn scenes that are empty or filled as prompted"),
    Measure("generation/colour", "colour", "prompted digits drawn in their colour"),
    Measure("generation/digit", "digit", "prompted digits that the judge reads as prompted"),
    GENERATION,
    Measure("generation/edit", "edit", "edits that change what was asked and keep the rest"),
    Measure(
        "generation/frechet",
        "Fréchet",
        "distance of drawn to real scenes in the judge's features; depends on the number of samples",
        rate=False,
        rising=False,
    ),
)
