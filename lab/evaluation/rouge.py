"""ROUGE-L: the longest common subsequence of a caption and its references.

Paper: ROUGE: A Package for Automatic Evaluation of Summaries, ACL 2004 workshop (W04-1013), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lab.evaluation.wording import check_captions, words_of

BETA = 1.2  # the COCO evaluation's: recall weighs more than precision


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]], beta: float = BETA) -> np.ndarray:
    """The score of every caption, (n,), 0 to 1; a corpus has their mean.

    F of precision (common words in order by words of the candidate) and recall (by words of the reference);
    each is the best over references, as in the COCO evaluation.

    Args:
        candidates: n captions.
        references: n lists of captions, at least one each.
        beta: weight of recall against precision; 1 for the harmonic mean.

    Raises:
        ValueError: numbers do not match, or an image has no reference.
    """
    check_captions(candidates, references)
    scores = []
    for candidate, captions in zip(candidates, references, strict=True):
        given, wanted = words_of(candidate), [words_of(caption) for caption in captions]
        common = [_longest_common(given, words) for words in wanted]
        precision = max(common) / max(1, len(given))
        recall = max(found / max(1, len(words)) for found, words in zip(common, wanted, strict=True))
        weighed = recall + beta**2 * precision
        scores.append((1 + beta**2) * precision * recall / weighed if weighed else 0.0)
    return np.array(scores)


def _longest_common(one: Sequence[str], two: Sequence[str]) -> int:
    """Length of the longest subsequence that two captions share."""
    row = [0] * (len(two) + 1)
    for word in one:
        before = 0  # the entry up and to the left
        for place, other in enumerate(two, start=1):
            before, row[place] = row[place], before + 1 if word == other else max(row[place], row[place - 1])
    return row[-1]
