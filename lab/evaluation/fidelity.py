"""What drawn scenes have of what was asked for, by kind, as the judge reads them.

After GenEval, arXiv:2310.11513, section 3.1, whose six tasks are asked of scenes by their number of digits;
the judge of the built-in world takes the detector's place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lab.scenes.judge import NO_DIGIT, Judge
from lab.scenes.world import COLOURS, EMPTY, Scenes

KINDS = ("objects", "count", "attribution", "position", "scene")


@dataclass(frozen=True)
class Reading:
    """What the judge sees in B images of C cells.

    Attributes:
        digit: (B, C), 0-9, or EMPTY.
        colour: (B, C), index into COLOUR_NAMES; meaningless where empty.
    """

    digit: np.ndarray
    colour: np.ndarray


@torch.no_grad()
def read_images(judge: Judge, pixels: Tensor) -> Reading:
    """Images (B, 3, H, W) in [0, 1] as the judge sees them."""
    parts = [judge(chunk) for chunk in pixels.split(500)]
    digit = torch.cat([part[0] for part in parts]).argmax(dim=-1)  # (B, C)
    colour = torch.cat([part[1] for part in parts]).argmax(dim=-1)
    return Reading(digit.masked_fill(digit == NO_DIGIT, EMPTY).numpy(), colour.numpy())


def fidelity(seen: Reading, scenes: Scenes) -> dict[str, np.ndarray]:
    """Kind -> (B,) whether an image has it, 0 or 1.

    | kind | true where |
    |---|---|
    | objects | every digit asked for is somewhere |
    | count | as many cells hold a digit as were asked for |
    | attribution | every digit asked for is somewhere in its colour |
    | position | every digit asked for is in its place, in whatever colour |
    | scene | every cell is right, empty ones included |
    """
    wanted, drawn = scenes.digit != EMPTY, seen.digit != EMPTY  # (B, C)
    pairs = np.where(wanted, scenes.digit.astype(np.int64) * len(COLOURS) + scenes.colour, EMPTY)
    seen_pairs = np.where(drawn, seen.digit.astype(np.int64) * len(COLOURS) + seen.colour, EMPTY)
    found = {
        "objects": _all_somewhere(scenes.digit, seen.digit, wanted),
        "count": drawn.sum(axis=1) == wanted.sum(axis=1),
        "attribution": _all_somewhere(pairs, seen_pairs, wanted),
        "position": ((scenes.digit == seen.digit) | ~wanted).all(axis=1),
        "scene": (pairs == seen_pairs).all(axis=1),
    }
    return {kind: found[kind].astype(float) for kind in KINDS}


def geneval_tasks(scores: dict[str, np.ndarray], scenes: Scenes) -> dict[str, np.ndarray]:
    """GenEval's six tasks -> scores of the prompts that belong to each; tasks without a prompt are left out.

    | task | prompts | right where |
    |---|---|---|
    | single_object | of one digit | objects |
    | two_object | of two | objects |
    | counting | of two or more | count |
    | colours | of one | attribution |
    | position | of two or more | position |
    | colour_attribution | of two | attribution |
    """
    number = (scenes.digit != EMPTY).sum(axis=1)
    tasks = {
        "single_object": ("objects", number == 1),
        "two_object": ("objects", number == 2),
        "counting": ("count", number >= 2),
        "colours": ("attribution", number == 1),
        "position": ("position", number >= 2),
        "colour_attribution": ("attribution", number == 2),
    }
    return {task: scores[kind][rows] for task, (kind, rows) in tasks.items() if rows.any()}


def edit_success(seen: Reading, before: Scenes, after: Scenes) -> dict[str, np.ndarray]:
    """Whether B edits did what they should and no more, (B,) 0 or 1 each.

    `target`: every cell that the edit changes is as asked. `rest`: all others are as they were. `both`: the
    whole scene is right. An image returned as it came scores 0, 1 and 0.
    """
    pairs, old, new = (
        np.where(one.digit != EMPTY, one.digit.astype(np.int64) * len(COLOURS) + one.colour, EMPTY)
        for one in (seen, before, after)
    )  # (B, C)
    changed = old != new
    target = ((pairs == new) | ~changed).all(axis=1)
    rest = ((pairs == old) | changed).all(axis=1)
    return {
        "target": target.astype(float),
        "rest": rest.astype(float),
        "both": (target & rest).astype(float),
    }


def _all_somewhere(asked: np.ndarray, seen: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(B,) whether every wanted entry (B, C) occurs anywhere in its row of what was seen; none repeats."""
    there = (asked[:, :, None] == seen[:, None, :]).any(axis=2)  # (B, C)
    return np.asarray((there | ~wanted).all(axis=1))
