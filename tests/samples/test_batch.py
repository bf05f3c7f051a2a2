"""How samples are laid out: what is supervised, where images stand, and padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lab.errors import LabError
from lab.samples.batch import Batch, Collate
from lab.samples.segments import (
    BOS,
    IMAGE_END,
    IMAGE_START,
    PAD,
    Sample,
    Segment,
    answer,
    end_of_answer,
    image,
    question,
    special,
)
from lab.samples.tokenizer import Tokenizer
from lab.scenes.tasks import SceneTasks

READ, DRAWN = 3, 5  # visual tokens of an image


def picture(value: float) -> np.ndarray:
    return np.full((3, 32, 32), value, np.float32)


@pytest.fixture
def samples() -> list[Sample]:
    """Every kind of row: text alone, an image read, one drawn, two read, one read and one drawn."""
    start = special(BOS)
    end = end_of_answer()
    return [
        Sample("a", "text", (start, question("any 3 ?"), answer("yes"))),
        Sample("b", "vqa", (start, image(picture(0.1)), question("any 3 ?"), answer("no"), answer("red 3"))),
        Sample("c", "draw", (start, question("draw red 3"), image(picture(0.2), supervised=True), end)),
        Sample(
            "d", "vqa", (start, image(picture(0.3)), image(picture(0.4)), question("any 3 ?"), answer("no"))
        ),
        Sample("e", "draw", (start, image(picture(0.5)), question("draw"), image(picture(0.6), True), end)),
    ]


@pytest.fixture
def collate(tokenizer: Tokenizer) -> Collate:
    return Collate(tokenizer, READ, DRAWN, ("vqa", "draw", "text"))


def written(segment: Segment) -> list[str]:
    """The words of a text with the marks of its turn."""
    said = (segment.text or "").split()
    if segment.role == "user":
        return ["<user>", *said, "<assistant>"]
    return [*said, "<eos>"] if segment.role == "assistant" and segment.ends else said


def expected_row(sample: Sample, tokenizer: Tokenizer) -> list[tuple[int, bool, str]]:
    """(id, supervised, kind) of each position, written down element by element."""
    row: list[tuple[int, bool, str]] = []
    for segment in sample.segments:
        mine = segment.supervised
        if segment.text is not None:
            row += [(tokenizer.encode(word)[0], mine, "text") for word in written(segment)]
        else:
            row.append((tokenizer[IMAGE_START], mine, "text"))
            row += [(tokenizer[PAD], False, "drawn" if mine else "read")] * (DRAWN if mine else READ)
            row.append((tokenizer[IMAGE_END], mine, "text"))
    return row


@pytest.mark.parametrize("left", [False, True])
def test_positions_are_those_declared(samples: list[Sample], tokenizer: Tokenizer, left: bool) -> None:
    batch = Collate(tokenizer, READ, DRAWN, ("vqa", "draw", "text"), left)(samples)
    rows = [expected_row(sample, tokenizer) for sample in samples]
    length = max(map(len, rows))
    assert batch.ids.shape == (5, length)
    for index, row in enumerate(rows):
        padding = [(tokenizer[PAD], False, "padding")] * (length - len(row))
        whole = padding + row if left else row + padding
        assert batch.ids[index].tolist() == [one for one, _, _ in whole]
        assert batch.supervised[index].tolist() == [one for _, one, _ in whole]
        for what in ("read", "drawn"):
            assert getattr(batch, what)[index].tolist() == [kind == what for _, _, kind in whole]
        assert batch.mask[index].tolist() == [kind != "padding" for _, _, kind in whole]


def test_slots_and_pictures_agree_in_number_and_order(samples: list[Sample], collate: Collate) -> None:
    batch = collate(samples)
    assert batch.read.sum() == READ * len(batch.pixels_read)
    assert batch.drawn.sum() == DRAWN * len(batch.pixels_drawn)
    assert batch.pixels_read[:, 0, 0, 0].tolist() == pytest.approx([0.1, 0.3, 0.4, 0.5])
    assert batch.pixels_drawn[:, 0, 0, 0].tolist() == pytest.approx([0.2, 0.6])
    assert batch.read.sum(dim=1).tolist() == [0, READ, 0, 2 * READ, READ]
    assert batch.drawn.sum(dim=1).tolist() == [0, 0, DRAWN, 0, DRAWN]


def test_rows_keep_their_names_and_tasks(samples: list[Sample], collate: Collate) -> None:
    batch = collate(samples)
    assert batch.sample_ids == ("a", "b", "c", "d", "e")
    assert [batch.tasks[index] for index in batch.task] == ["text", "vqa", "draw", "vqa", "draw"]
    assert len(batch) == 5


def test_a_batch_of_text_has_no_pictures(samples: list[Sample], collate: Collate) -> None:
    batch = collate(samples[:1])
    assert len(batch.pixels_read) == len(batch.pixels_drawn) == 0
    assert not batch.read.any()
    assert not batch.drawn.any()


def test_a_row_is_laid_out_alike_in_every_batch(samples: list[Sample], collate: Collate) -> None:
    together = collate(samples)
    for index, sample in enumerate(samples):
        alone = collate([sample])
        length = alone.ids.shape[1]
        for name in ("ids", "mask", "supervised", "read", "drawn"):
            assert torch.equal(getattr(together, name)[index, :length], getattr(alone, name)[0])
        assert not together.mask[index, length:].any()


def test_of_real_tasks_the_produced_segments_are_supervised(tasks: SceneTasks, tokenizer: Tokenizer) -> None:
    collate = Collate(tokenizer, READ, DRAWN, tuple(tasks.tasks))
    for task in tasks.tasks:
        sample = tasks.sample(task, 3, 0)
        batch: Batch = collate([sample])
        said = tokenizer.tokenizer.decode(batch.ids[0][batch.supervised[0]].tolist()).split()
        wanted: list[str] = []
        for segment in sample.segments:
            if segment.supervised:
                wanted += [IMAGE_START, IMAGE_END] if segment.text is None else written(segment)
        assert said == wanted


def test_a_sample_that_starts_with_what_it_produces_is_refused(collate: Collate) -> None:
    with pytest.raises(LabError, match="sample early"):
        collate([Sample("early", "vqa", (answer("yes"),))])


def test_a_segment_is_text_or_an_image() -> None:
    with pytest.raises(ValueError, match="either"):
        Segment()
    with pytest.raises(ValueError, match="either"):
        Segment(text="a", picture=image(picture(0)).picture)
