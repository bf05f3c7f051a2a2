"""BLEU-4 of a corpus, from counts that add up over captions.

Paper: BLEU: a Method for Automatic Evaluation of Machine Translation, ACL 2002 (P02-1040), section 2.3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from lab.evaluation.wording import check_captions, ngrams, words_of

ORDERS = (1, 2, 3, 4)


def bleu_counts(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """What BLEU adds up: (n, 10) of each caption.

    Columns are the clipped matches of order 1 to 4, the candidate's n-grams of order 1 to 4, its words, and
    the words of the reference that is nearest in length (of two equally near ones the shorter).

    Raises:
        ValueError: numbers do not match, or an image has no reference.
    """
    check_captions(candidates, references)
    rows = []
    for candidate, captions in zip(candidates, references, strict=True):
        given, wanted = words_of(candidate), [words_of(caption) for caption in captions]
        matches, totals = [], []
        for order in ORDERS:
            most: Counter[tuple[str, ...]] = Counter()
            for words in wanted:
                most |= ngrams(words, order)
            own = ngrams(given, order)
            matches.append((own & most).total())
            totals.append(own.total())
        near = min((abs(len(words) - len(given)), len(words)) for words in wanted)[1]
        rows.append([*matches, *totals, len(given), near])
    return np.array(rows, float)


def bleu_of(sums: np.ndarray) -> np.ndarray:
    """BLEU-4, (...), of counts (..., 10) that were added up over a corpus, without smoothing; 0 to 1.

    The geometric mean of the four precisions times the brevity penalty; 0 where an order has no match.
    """
    matches, totals, given, wanted = sums[..., :4], sums[..., 4:8], sums[..., 8], sums[..., 9]
    some = np.asarray((matches > 0).all(axis=-1))
    precision = np.where(some[..., None], matches, 1.0) / np.where(some[..., None], totals, 1.0)
    brevity = np.minimum(0.0, 1 - wanted / np.where(given > 0, given, 1.0))
    return np.asarray(np.where(some, np.exp(np.log(precision).mean(axis=-1) + brevity), 0.0))
