"""Batches of images alone: pixels, captions and the phrase of every cell."""

from __future__ import annotations

import numpy as np

from lab.samples.regions import PixelCollate, RegionCollate
from lab.samples.tokenizer import Tokenizer
from lab.scenes.language import place_names
from lab.scenes.tasks import SceneTasks
from lab.scenes.world import COLOUR_NAMES, EMPTY


def test_every_cell_has_the_phrase_that_describes_it(tasks: SceneTasks, tokenizer: Tokenizer) -> None:
    rows = [5, 9, 200, 5]
    batch = RegionCollate(tasks.split, tasks.language, tokenizer)(rows)
    np.testing.assert_array_equal(batch.pixels, tasks.split.pixels(np.array(rows)))
    places = place_names(tasks.split.world)
    for index, row in enumerate(rows):
        for cell, place in enumerate(places):
            digit = int(tasks.split.scenes.digit[row, cell])
            assert batch.occupied[index, cell] == (digit != EMPTY)
            phrase = batch.phrases[batch.phrase_of[index, cell]]
            words = tokenizer.decode([one for one in phrase.tolist() if one]).split()
            assert place in words
            if digit == EMPTY:
                assert not any(word.isdigit() or word in COLOUR_NAMES for word in words)
            else:
                colour = COLOUR_NAMES[tasks.split.scenes.colour[row, cell]]
                assert {place, colour, str(digit)} <= set(words)
    assert len({tuple(phrase.tolist()) for phrase in batch.phrases}) == len(batch.phrases)  # each but once


def test_pixels_come_with_names(tasks: SceneTasks) -> None:
    batch = PixelCollate(tasks.split)([3, 4])
    np.testing.assert_array_equal(batch.pixels_drawn, tasks.split.pixels(np.array([3, 4])))
    assert len(set(batch.sample_ids)) == 2
