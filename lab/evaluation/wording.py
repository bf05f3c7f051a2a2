"""Captions as words: what every metric that counts words counts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

# a word, with hyphens, apostrophes and decimal points within it
_WORD = re.compile(r"\w+(?:[-'\u2019.,]\w+)*")


def words_of(caption: str) -> list[str]:
    """Lower-case words of a caption, punctuation left out.

    The COCO evaluation uses the Penn Treebank tokenizer instead, which also splits "don't" into "do n't";
    otherwise the words are the same. Published numbers depend on the tokenizer: compare like with like.
    """
    return _WORD.findall(caption.lower())


def ngrams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    """How often each run of `order` words occurs."""
    return Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))


def check_captions(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raises ValueError unless there is a candidate, and at least one reference for each."""
    if len(candidates) != len(references) or not candidates:
        raise ValueError(f"{len(candidates)} candidates and {len(references)} lists of references")
    if not all(references):
        raise ValueError("a caption without a reference cannot be scored")
