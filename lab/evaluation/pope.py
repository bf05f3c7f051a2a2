"""POPE on the built-in world: is an object there that is, and is one seen that is not?

Paper: Evaluating Object Hallucination in Large Vision-Language Models, arXiv:2305.10355, section 5.

Objects are digits. Of every scene up to three that are there are asked about, and as many that are not:

| negatives | the absent digits asked about |
|---|---|
| random | any |
| popular | the most frequent ones of the training scenes |
| adversarial | those that occur most often in training scenes together with the digits that are there |
| attribute | digits that are there, in a colour that they do not have ("is there a red 3 ?"); not POPE's |

Scenes of the built-in world are drawn without preferences, so popular and adversarial negatives hold no trap
beyond chance unevenness of the training scenes; attribute negatives are the hard ones here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lab.evaluation.figures import Figure, rate_figure
from lab.evaluation.statistics import Array
from lab.samples.segments import BOS, Sample, answer, image, question, special
from lab.scenes.language import short_answer, things_of
from lab.scenes.tasks import SceneTasks
from lab.scenes.world import COLOUR_NAMES, Scenes

NEGATIVES = ("random", "popular", "adversarial", "attribute")
ASKED = 3  # objects that are there, and as many that are not, of each image
FIGURES = ("accuracy", "precision", "recall", "f1", "yes_ratio")


@dataclass(frozen=True)
class Poll:
    """A question about an object.

    Attributes:
        sample: image, question and "yes" or "no".
        row: of the scene.
        there: whether the object is there.
    """

    sample: Sample
    row: int
    there: bool


def polls(tasks: SceneTasks, training: Scenes, negatives: str, images: int, seed: int) -> list[Poll]:
    """Balanced questions about the first `images` scenes of a held-out split.

    Args:
        tasks: of the held-out split.
        training: scenes whose frequencies make objects popular or adversarial.
        negatives: one of NEGATIVES.
        images: scenes asked about.
        seed: of the objects drawn; the questions about a scene do not depend on how many are asked about.
    """
    together = co_occurrence(training)  # (10, 10), frequencies on the diagonal
    found = []
    for row in range(min(images, len(tasks))):
        rng = np.random.default_rng([seed, row])
        scene = tasks.split.scenes.take(np.array([row]))
        there = {thing.digit: thing.colour for thing in things_of(scene, 0)}
        absent = [digit for digit in range(10) if digit not in there]
        count = min(ASKED, len(there), len(absent))
        shown = [int(digit) for digit in rng.permutation(list(there))[:count]]
        if negatives == "attribute":
            asked = [(f"{there[digit]} {digit}", True) for digit in shown]
            for digit in shown:
                others = [colour for colour in COLOUR_NAMES if colour != there[digit]]
                asked.append((f"{others[int(rng.integers(len(others)))]} {digit}", False))
        else:
            order = rng.permutation(absent).tolist()
            if negatives == "popular":
                order = sorted(absent, key=lambda digit: -together[digit, digit])
            elif negatives == "adversarial":
                beside = together[list(there)].sum(axis=0)
                order = sorted(absent, key=lambda digit: -beside[digit])
            asked = [(f"{digit}", True) for digit in shown] + [(f"{digit}", False) for digit in order[:count]]
        pixels = tasks.split.pixels(np.array([row]))[0]
        for what, yes in asked:
            said = (question(f"is there a {what} ?"), answer("yes" if yes else "no"))
            name = f"pope/{negatives}/{row}/{seed}/{what.replace(' ', '-')}"
            sample = Sample(name, "exists", (special(BOS), image(pixels), *said))
            found.append(Poll(sample, row, yes))
    return found


def co_occurrence(scenes: Scenes) -> np.ndarray:
    """(10, 10): in how many scenes two digits are both there; on the diagonal, in how many one is."""
    there = np.stack([(scenes.digit == digit).any(axis=1) for digit in range(10)], axis=1).astype(np.int64)
    return np.asarray(there.T @ there)


def says_yes(given: str) -> bool:
    """How POPE reads an answer: no if its first sentence has the word "no" or "not", else yes.

    Whatever is no answer at all counts as yes. Of an answer that states its evidence the conclusion is read.
    """
    first = short_answer(given).split(".")[0].replace(",", "")
    return not {"No", "no", "not"} & set(re.split(r"\s+", first))


def pope_figures(rows: Sequence[int], said: Sequence[bool], there: Sequence[bool]) -> dict[str, Figure]:
    """POPE's five figures; "yes" is the positive class.

    Questions about one image are not independent: for the intervals, images are drawn with all of theirs.

    Args:
        rows: n images, by number.
        said: what was answered, True for yes.
        there: what is true.

    Returns:
        Figures by the names of FIGURES. Precision is undefined where yes was never said (nan); F1 is 0 then.
    """
    answered, truth = np.asarray(said, bool), np.asarray(there, bool)
    outcome = np.stack(
        [answered & truth, answered & ~truth, ~answered & truth, ~answered & ~truth], axis=1
    )  # (n, 4): true and false yes, false and true no
    _, place = np.unique(np.asarray(rows), return_inverse=True)
    sums = np.zeros((place.max() + 1, 4))
    np.add.at(sums, place, outcome)
    return {
        name: rate_figure(sums, lambda total, index=index: _figures(total)[index])  # type: ignore[misc]
        for index, name in enumerate(FIGURES)
    }


def _figures(sums: Array) -> Array:
    """(R, 4) counts -> (5, R) figures."""
    hit, alarm, miss, pass_ = sums.T
    total = sums.sum(axis=1)
    return np.stack(
        [
            (hit + pass_) / total,
            _ratio(hit, hit + alarm),
            _ratio(hit, hit + miss),
            _ratio(2 * hit, 2 * hit + alarm + miss),
            (hit + alarm) / total,
        ]
    )


def _ratio(part: Array, whole: Array) -> Array:
    """nan where there is nothing to take a share of."""
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)
