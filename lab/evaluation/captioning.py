"""Captions against references: CIDEr-D, BLEU-4 and ROUGE-L of a corpus."""

from __future__ import annotations

from collections.abc import Sequence

from lab.evaluation.bleu import bleu_counts, bleu_of
from lab.evaluation.cider import cider_d
from lab.evaluation.figures import Figure, mean_figure, sums_figure
from lab.evaluation.rouge import rouge_l


def caption_figures(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Figure]:
    """The three metrics of n captions, with intervals over images.

    Document frequencies of CIDEr-D are those of `references`, and stay as they are when images are drawn
    again for the interval: it says how the figure would vary over images, the corpus's statistics given.

    Args:
        candidates: n captions.
        references: n lists of captions, at least one each.

    Returns:
        `cider_d` (0 to 10; papers quote it times 100), `bleu_4` and `rouge_l` (0 to 1).
    """
    return {
        "cider_d": mean_figure(cider_d(candidates, references)),
        "bleu_4": corpus_bleu(candidates, references),
        "rouge_l": mean_figure(rouge_l(candidates, references)),
    }


def corpus_bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Figure:
    """BLEU-4 of n captions as one corpus; for its interval, captions are drawn again and counts added."""
    return sums_figure(bleu_counts(candidates, references), bleu_of)
