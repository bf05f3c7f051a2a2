"""CIDEr-D: agreement of captions with references in the n-grams that few images share.

Paper: CIDEr: Consensus-based Image Description Evaluation, arXiv:1411.5726, sections 3 and 5.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from lab.evaluation.wording import check_captions, ngrams, words_of

Gram = tuple[str, ...]
ORDERS = (1, 2, 3, 4)
SIGMA = 6.0  # of the penalty on lengths, in words


def document_frequencies(references: Sequence[Sequence[str]]) -> Counter[Gram]:
    """In how many images' references each n-gram occurs, n = 1 to 4."""
    found: Counter[Gram] = Counter()
    for captions in references:
        said = (words_of(caption) for caption in captions)
        found.update({gram for words in said for order in ORDERS for gram in ngrams(words, order)})
    return found


def cider_d(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    frequencies: Mapping[Gram, int] | None = None,
    images: int | None = None,
) -> np.ndarray:
    """The score of every caption, (n,), 0 to 10; a corpus has their mean.

    Of each order, the cosine of TF-IDF vectors, candidate counts clipped at the reference's, times a Gaussian
    penalty on the difference in length; ten times the mean over orders, then over references. As in the
    authors' code, term frequencies are raw counts, length is counted in bigrams, and 1.0 is what papers quote
    as 100.

    A caption of fewer than four words has no 4-grams, so that even a perfect one stays below 10; n-grams that
    all images share weigh nothing, so that a corpus of one image scores 0.

    Args:
        candidates: n captions.
        references: n lists of captions, at least one each.
        frequencies: in how many images each n-gram occurs (`document_frequencies`); of `references` if left
            out, as in the COCO evaluation: then the score of a caption depends on which others are scored.
        images: how many images `frequencies` were counted on; needed with them.

    Raises:
        ValueError: numbers do not match, an image has no reference, or `images` is missing.
    """
    check_captions(candidates, references)
    if frequencies is None:
        frequencies, images = document_frequencies(references), len(references)
    if images is None:
        raise ValueError("document frequencies need the number of images that they were counted on")
    scores = []
    for candidate, captions in zip(candidates, references, strict=True):
        given = words_of(candidate)
        similar = [_similarity(given, words_of(caption), frequencies, images) for caption in captions]
        scores.append(10 * float(np.mean(similar)))
    return np.array(scores)


def _similarity(given: list[str], wanted: list[str], frequencies: Mapping[Gram, int], images: int) -> float:
    """Mean over orders of the penalised, clipped cosine of two captions."""
    gap = max(0, len(given) - 1) - max(0, len(wanted) - 1)  # bigrams
    cosines = []
    for order in ORDERS:
        one, two = (_weights(words, order, frequencies, images) for words in (given, wanted))
        lengths = math.hypot(*one.values()) * math.hypot(*two.values())
        overlap = sum(min(weight, two[gram]) * two[gram] for gram, weight in one.items() if gram in two)
        cosines.append(overlap / lengths if lengths else 0.0)
    return math.exp(-(gap**2) / (2 * SIGMA**2)) * sum(cosines) / len(ORDERS)


def _weights(words: list[str], order: int, frequencies: Mapping[Gram, int], images: int) -> dict[Gram, float]:
    """TF-IDF of the n-grams of one order; one that no reference has counts as if one had."""
    return {
        gram: count * (math.log(images) - math.log(max(1, frequencies.get(gram, 0))))
        for gram, count in ngrams(words, order).items()
    }
