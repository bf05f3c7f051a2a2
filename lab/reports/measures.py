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
        return f"{value * self.factor:.{self.decimals(value)}f}"

    def decimals(self, value: float) -> int:
        """Digits behind the point: one for rates, else as many as give three digits."""
        size = abs(value)
        return 1 if self.rate or 10 <= size < 100 else 2 if size < 10 else 0

    def change(self, difference: float) -> str:
        """A difference with its sign, without unit."""
        return f"{difference * self.factor:+.{self.decimals(difference)}f}"


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
    Measure("understanding/by_example", "by example", "questions right that two examples alone tell"),
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

# in the files and the CSV; in a table where a declaration names them
_DETAILS = (
    Measure("understanding/caption_things", "caption things", "share of a caption's things that are named"),
    Measure("understanding/caption_cider_d", "CIDEr-D", "agreement in rare words, 0 to 10", rate=False),
    Measure("understanding/caption_bleu_4", "BLEU-4", "agreement in runs of words, 0 to 1", rate=False),
    Measure("understanding/caption_rouge_l", "ROUGE-L", "agreement in word order, 0 to 1", rate=False),
    Measure("generation/objects", "objects", "drawn scenes that hold every digit asked for"),
    Measure("generation/count", "count", "drawn scenes with as many digits as asked for"),
    Measure("generation/attribution", "attribution", "drawn scenes with every digit in its colour somewhere"),
    Measure("generation/edit_target", "edit target", "edits after which what was to change is as asked"),
    Measure("generation/edit_rest", "edit rest", "edits after which all else is as it was"),
    Measure("understanding/grounding_iou", "box IoU", "mean overlap of the given box with the digit's"),
    Measure("understanding/grounding_well_formed", "box form", "answers that are a box at all"),
    Measure("understanding/by_example/shots_0", "by example, 0 shots", "the same without examples"),
    Measure("understanding/by_example/shots_1", "by example, 1 shot", "the same with one example"),
    Measure("understanding/by_example/shots_4", "by example, 4 shots", "the same with four"),
    Measure("reconstruction/digit", "rebuilt digit", "digits still read as they are after reconstruction"),
    Measure("reconstruction/psnr", "rebuilt PSNR", "PSNR of reconstructed images, dB", rate=False),
)
_KNOWN = {measure.name: measure for measure in (*MEASURES, *_DETAILS)}
_FALLING = ("loss", "perplexity", "frechet", "cost", "seconds")


def measure_of(name: str) -> Measure:
    """The measure of a metric; of an unknown one what its name tells.

    Args:
        name: Key in the metric files.
    """
    if name in _KNOWN:
        return _KNOWN[name]
    if name.startswith(f"{UNDERSTANDING.name}/"):
        kind = name.rpartition("/")[2].replace("_", " ")
        return Measure(name, f"VQA: {kind}", f"questions of the kind '{kind}' answered exactly")
    label = name.partition("/")[2].replace("_", " ") or name
    return Measure(name, label, name, rate=False, rising=not any(word in name for word in _FALLING))
