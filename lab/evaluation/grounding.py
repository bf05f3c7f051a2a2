"""Grounding: boxes that a model says in location words against the boxes of what was drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lab.evaluation.understanding import Answer
from lab.samples.segments import Sample
from lab.scenes.locations import dequantise, read_box
from lab.scenes.tasks import SceneTasks
from lab.scenes.world import World

RIGHT = 0.5  # intersection over union from which a box counts as found


@dataclass(frozen=True)
class GroundingScores:
    """What n answers are worth.

    Attributes:
        right: (n,) 1 where the intersection over union (IoU) with the true box is at least 0.5, else 0.
        iou: (n,) the IoU, 0 for an answer that is no box.
        well_formed: (n,) 1 where the answer is a box, else 0.
        chance: mean `right` of the constant answer for which it is highest.
        chance_iou: mean `iou` of the constant answer for which it is highest.
    """

    right: np.ndarray
    iou: np.ndarray
    well_formed: np.ndarray
    chance: float
    chance_iou: float


def box_requests(tasks: SceneTasks, number: int, seed: int) -> tuple[list[Sample], dict[str, np.ndarray]]:
    """`number` requests for a box, each about a scene of its own, and the boxes as drawn by sample id."""
    pairs = [tasks.box_request(row, seed) for row in range(min(number, len(tasks)))]
    return [sample for sample, _ in pairs], {sample.id: box for sample, box in pairs}


def grounding_scores(
    answers: Sequence[Answer], boxes: Mapping[str, np.ndarray], world: World
) -> GroundingScores:
    """Scores answers to requests for boxes, in their order.

    The true box is the one that was drawn, to the pixel, not its nearest in location words: coarse bins cost
    what they cost.

    Args:
        answers: what the model said; anything but two location words that enclose something is wrong.
        boxes: sample id -> true box (4,), px.
        world: with location words.
    """
    true = np.stack([boxes[answer.sample_id] for answer in answers]).astype(np.float64)  # (n, 4)
    given = [read_box(world, answer.given) for answer in answers]
    iou = np.array([0.0 if box is None else iou_of(box, one) for box, one in zip(given, true, strict=True)])
    chance, chance_iou = _best_constants(true, world)
    return GroundingScores(
        right=(iou >= RIGHT).astype(float),
        iou=iou,
        well_formed=np.array([box is not None for box in given], float),
        chance=chance,
        chance_iou=chance_iou,
    )


def iou_of(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two boxes (4,)."""
    overlap = np.prod((np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])).clip(0))
    areas = np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2])
    return float(overlap / (areas - overlap))


def _best_constants(true: np.ndarray, world: World) -> tuple[float, float]:
    """The best accuracy and the best mean IoU of one box for all, among all that location words can say.

    A box is a side along x with a side along y, and so is its overlap with another: K sides are compared with
    the n true ones in each direction, then combined.
    """
    near, far = np.triu_indices(world.locations)  # (K,) each
    step = world.locations + 1  # from one bin of the diagonal to the next, which is as far in x as in y
    sides = dequantise(world, np.stack([near, far], axis=1) * step)  # (K, 4) the same side in x and y
    low, high = sides[:, 0], sides[:, 2]
    overlap_x, overlap_y = (  # (K, n) each
        (np.minimum(high[:, None], true[:, axis + 2]) - np.maximum(low[:, None], true[:, axis])).clip(0)
        for axis in range(2)
    )
    length = high - low
    areas = np.prod(true[:, 2:] - true[:, :2], axis=1)  # (n,)
    accuracy, mean = 0.0, 0.0
    for across, width in zip(overlap_x, length, strict=True):
        overlap = across * overlap_y  # (K, n)
        iou = overlap / ((width * length)[:, None] + areas - overlap)
        accuracy = max(accuracy, float((iou >= RIGHT).mean(axis=1).max()))
        mean = max(mean, float(iou.mean(axis=1).max()))
    return accuracy, mean
