"""VQA accuracy: open answers against those that ten people gave.

Paper: VQA: Visual Question Answering, arXiv:1505.00468, section 3; the normalisation is that of the public
evaluation code (visualqa.org), version 2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

AGREEING = 3  # people whose word makes an answer fully right
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_ARTICLES = ("a", "an", "the")
_FULL_STOP = re.compile(r"\.(?!\d)")  # one before a digit stays: "2.5", ".5"
_GROUPED = re.compile(r"\d,\d")
_CONTRACTED = re.findall(
    r"\S+",
    """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's i'd've isn't it'd it'd've it'll ma'am mightn't mightn't've might've
    mustn't must've needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
    something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
    they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've
    who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll
    y'all'd've you'd you'd've you'll you're you've
    """,
)
# with any one apostrophe left out: "couldn'tve" and "couldnt've" both stand for "couldn't've"
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTED
    for place, letter in enumerate(word)
    if letter == "'"
}


def normalised(answer: str) -> str:
    """An answer as the VQA evaluation compares it.

    Punctuation goes where it touches a space, or everywhere once the answer has a comma between digits, and
    becomes a space elsewhere; full stops go unless a digit follows; then lower case, number words up to ten
    as digits, no articles, and contractions with their apostrophe.
    """
    given = answer.replace("\n", " ").replace("\t", " ").strip()
    text = given
    for mark in _PUNCTUATION:
        apart = f"{mark} " in given or f" {mark}" in given or _GROUPED.search(given)
        text = text.replace(mark, "" if apart else " ")
    words = [_DIGITS.get(word, word) for word in _FULL_STOP.sub("", text).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """How right an answer is, 0 to 1, given what people answered; ten of them in VQA and most sets like it.

    Of all ways to leave one person out, the mean of min(1, others who said the same / 3): with ten people
    0, 0.3, 0.6, 0.9, 1 for 0, 1, 2, 3, 4 or more of them. The shortcut min(1, n / 3) is not the same.

    Both sides are normalised. (The public code leaves answers on which all people agree as they are, articles
    included, which no normalised prediction can equal then.)

    Raises:
        ValueError: fewer than two people, of whom none could be left out.
    """
    if len(people) < 2:
        raise ValueError(f"VQA accuracy leaves one person out in turn; got answers of {len(people)}")
    given = normalised(answer)
    same = np.array([normalised(one) == given for one in people])
    others = same.sum() - same  # (P,) who agree among the others
    return float(np.minimum(1.0, others / AGREEING).mean())


def exact_match(answer: str, expected: str) -> float:
    """1 where both are the same once normalised, else 0 (GQA's measure)."""
    return float(normalised(answer) == normalised(expected))
