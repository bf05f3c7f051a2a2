"""Caption metrics: against independent implementations, by hand, and at their edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from torchmetrics.functional.text import bleu_score
from torchmetrics.functional.text.rouge import rouge_score

from lab.evaluation.bleu import bleu_counts, bleu_of
from lab.evaluation.captioning import caption_figures
from lab.evaluation.cider import cider_d, document_frequencies
from lab.evaluation.rouge import rouge_l
from lab.evaluation.wording import words_of

WORDS = ("a", "red", "dog", "cat", "sits", "on", "the", "mat", "near", "two", "trees")


@pytest.fixture(scope="module")
def corpus() -> tuple[list[str], list[list[str]]]:
    """Sixty random captions with one to three references that share words with them."""
    rng = np.random.default_rng(0)

    def say() -> str:
        return " ".join(rng.choice(WORDS, rng.integers(4, 11)))

    candidates = [say() for _ in range(60)]
    references = [[say() for _ in range(rng.integers(1, 4))] for _ in range(60)]
    for index in range(0, 60, 3):  # some are nearly right
        references[index][0] = candidates[index] + " today"
    return candidates, references


def grams(caption: str, n: int) -> list[str]:
    words = caption.split()
    return ["|".join(words[i : i + n]) for i in range(len(words) - n + 1)]


def paper_cider(candidates: list[str], references: list[list[str]]) -> list[float]:
    """CIDEr-D as the paper writes it: dense vectors over the whole vocabulary of n-grams."""
    scores = np.zeros(len(candidates))
    everything = [*candidates, *(reference for refs in references for reference in refs)]
    for n in range(1, 5):
        vocabulary = sorted({gram for caption in everything for gram in grams(caption, n)})
        counts = {c: np.array([grams(c, n).count(gram) for gram in vocabulary]) for c in everything}
        holds = np.array([np.sum([counts[r] for r in refs], axis=0) > 0 for refs in references])
        idf = np.log(len(references) / np.maximum(1, holds.sum(axis=0)))
        for row, (candidate, refs) in enumerate(zip(candidates, references, strict=True)):
            for reference in refs:
                c, s = counts[candidate] * idf, counts[reference] * idf
                norm = np.linalg.norm(c) * np.linalg.norm(s)
                gap = len(candidate.split()) - len(reference.split())
                part = np.minimum(c, s) @ s / norm if norm else 0.0
                scores[row] += 10 * math.exp(-(gap**2) / 72) * part / (4 * len(refs))
    return scores.tolist()


def test_cider_is_the_papers_formula(corpus: tuple[list[str], list[list[str]]]) -> None:
    assert cider_d(*corpus).tolist() == pytest.approx(paper_cider(*corpus), abs=1e-12)
    assert cider_d(*corpus).max() > 5


def test_cider_by_hand() -> None:
    """Two images, one word each: a word of one image alone weighs log 2, and only unigrams exist."""
    assert cider_d(["dog", "cat"], [["dog"], ["cat"]]).tolist() == pytest.approx([2.5, 2.5])
    assert cider_d(["cat", "cat"], [["dog"], ["cat"]]).tolist() == pytest.approx([0, 2.5])
    # "dog dog" has twice the count, clipped at one: min(2, 1) * 1 / (2 * 1) and a length off by one bigram
    expected = 10 * 0.5 * math.exp(-1 / 72) / 4
    assert cider_d(["dog dog", "cat"], [["dog"], ["cat"]])[0] == pytest.approx(expected)


def test_perfect_captions_of_four_words_score_ten_and_words_of_all_images_weigh_nothing() -> None:
    captions = ["one two three four", "five six seven eight nine"]
    assert cider_d(captions, [[c] for c in captions]).tolist() == pytest.approx([10, 10])
    assert cider_d(["one two three four"], [["one two three four"]]).tolist() == [0]
    shared = ["the big dog runs", "the big cat runs"]
    assert cider_d(["the runs", "the runs"], [[c] for c in shared]).tolist() == [0, 0]


def test_cider_with_frequencies_of_another_corpus(corpus: tuple[list[str], list[list[str]]]) -> None:
    """Then the score of a caption no longer depends on which others are scored."""
    candidates, references = corpus
    frequencies = document_frequencies(references)
    few = cider_d(candidates[:5], references[:5], frequencies, images=len(references))
    assert few.tolist() == pytest.approx(cider_d(candidates, references)[:5].tolist())
    with pytest.raises(ValueError, match="number of images"):
        cider_d(candidates, references, frequencies)


def test_bleu_is_that_of_torchmetrics(corpus: tuple[list[str], list[list[str]]]) -> None:
    candidates, references = corpus
    # where two references are equally near, torchmetrics takes the first, we the shorter, as COCO does
    ordered = [sorted(refs, key=lambda caption: len(caption.split())) for refs in references]
    ours = bleu_of(bleu_counts(candidates, ordered).sum(axis=0))
    assert float(ours) == pytest.approx(float(bleu_score(candidates, ordered, n_gram=4)), rel=1e-5)
    assert 0.05 < ours < 0.95


def test_bleu_by_hand() -> None:
    """Papineni's example: clipping leaves two of seven unigrams."""
    counts = bleu_counts(["the the the the the the the"], [["the cat is on the mat"]])
    assert counts[0, [0, 4, 8, 9]].tolist() == [2, 7, 7, 6]
    assert bleu_of(counts.sum(axis=0)) == 0  # no bigram
    short = bleu_counts(["one two three four"], [["one two three four five six"]])
    assert bleu_of(short.sum(axis=0)) == pytest.approx(math.exp(1 - 6 / 4))
    tie = bleu_counts(["a b c d"], [["a b c d e", "a b c"]])
    assert tie[0, 9] == 3


def test_rouge_is_that_of_torchmetrics(corpus: tuple[list[str], list[list[str]]]) -> None:
    """Its F weighs precision and recall alike, and with one reference there is no choice."""
    candidates, first = corpus[0], [references[0] for references in corpus[1]]
    found = rouge_l(candidates, [[reference] for reference in first], beta=1)
    theirs = [
        float(rouge_score(one, two, rouge_keys="rougeL")["rougeL_fmeasure"])
        for one, two in zip(candidates, first, strict=True)
    ]
    assert found.tolist() == pytest.approx(theirs, rel=1e-5)


def test_rouge_by_hand() -> None:
    """Of two references the first is the more precise, the second the better recalled: the best of each."""
    candidate, references = "a b c d e f", ["b x d f a", "a c"]  # in common: b d f, and a c
    precision, recall = 3 / 6, 2 / 2
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert rouge_l([candidate], [references])[0] == pytest.approx(expected)
    assert rouge_l([candidate], [[candidate]])[0] == pytest.approx(1)


def test_figures_do_not_depend_on_order_and_hold_their_value(
    corpus: tuple[list[str], list[list[str]]],
) -> None:
    candidates, references = corpus
    order = np.random.default_rng(1).permutation(len(candidates))
    one = caption_figures(candidates, references)
    two = caption_figures([candidates[i] for i in order], [references[i] for i in order])
    for name, figure in one.items():
        assert vars(figure) == pytest.approx(vars(two[name]), rel=1e-12)
        assert figure.low < figure.value < figure.high
        assert figure.samples == 60


def test_nothing_said_scores_nothing() -> None:
    figures = caption_figures(["", "!"], [["a red dog runs"], ["a cat sits here"]])
    assert [figure.value for figure in figures.values()] == [0, 0, 0]
    with pytest.raises(ValueError, match="0 candidates"):
        caption_figures([], [])
    with pytest.raises(ValueError, match="without a reference"):
        caption_figures(["a"], [[]])


def test_words() -> None:
    found = words_of("Top-left: a RED 3, isn't it? 2.5 (two).")
    assert found == ["top-left", "a", "red", "3", "isn't", "it", "2.5", "two"]
