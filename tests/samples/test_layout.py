"""Layouts of a step: every position once, little padding, and parts that come to the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lab.config import load_params
from lab.samples.batch import Batch, Collate
from lab.samples.layout import buckets, lay_out, pack
from lab.samples.mixture import Mixture
from lab.samples.step import Parts, Plan, StepCollate
from lab.samples.tokenizer import Tokenizer
from lab.scenes.tasks import SceneTasks
from lab.training.speed import ROW

ROOT = Path(__file__).parents[2]


def batch_of(tasks: SceneTasks, tokenizer: Tokenizer, size: int = 12) -> Batch:
    data = Mixture(tasks.sources(), dict.fromkeys(("vqa", "text", "edit", "interleaved"), 1.0), size, seed=0)
    return Collate(tokenizer, 16, 16, tuple(tasks.tasks))([data[row] for row in range(size)])


@pytest.mark.parametrize("word", ["padded", "buckets", "packed"])
def test_every_position_stands_somewhere_once(tasks: SceneTasks, tokenizer: Tokenizer, word: str) -> None:
    batch = batch_of(tasks, tokenizer)
    layout = lay_out(batch, word, 160).layout
    assert layout is not None
    place = torch.cat([rows.place.flatten() for rows in layout.rows])
    sample = torch.cat([rows.sample.flatten() for rows in layout.rows])
    width = batch.ids.shape[1]
    assert torch.equal(place[sample >= 0].sort().values, batch.mask.flatten().nonzero().flatten())
    assert torch.equal(place[sample >= 0] // width, sample[sample >= 0])
    real = batch.mask.flatten()
    assert torch.equal(place[layout.back[real]], torch.arange(real.numel())[real])


@pytest.mark.parametrize("word", ["padded", "buckets", "packed"])
def test_wanted_states_are_those_that_losses_read(tasks: SceneTasks, tokenizer: Tokenizer, word: str) -> None:
    batch = batch_of(tasks, tokenizer)
    layout = lay_out(batch, word, 160, sparing=True).layout
    assert layout is not None
    wanted = [rows.place.flatten()[rows.wanted] for rows in layout.rows]
    read = batch.supervised.roll(-1) | batch.drawn | batch.drawn.roll(-1)
    assert torch.equal(torch.cat(wanted).sort().values, read.flatten().nonzero().flatten())


def test_packed_rows_find_their_images(tasks: SceneTasks, tokenizer: Tokenizer) -> None:
    """A position's image in a row is the image that it has in the batch."""
    batch = batch_of(tasks, tokenizer)
    (rows,) = lay_out(batch, "packed", 160).layout.rows  # type: ignore[union-attr]
    assert not rows.alone
    for row in range(len(rows.place)):
        for place, sample, number in zip(rows.place[row], rows.sample[row], rows.image[row], strict=True):
            if sample < 0:
                continue
            own = int(batch.image.flatten()[place])
            found = -1 if number < 0 else int(rows.images[row, number])
            assert found == (-1 if own < 0 else int(batch.places.images[sample, own]))


def test_no_row_is_fuller_than_need_be() -> None:
    lengths = [60, 50, 40, 30, 20, 10]
    rows = pack(lengths, budget=70)
    assert sorted(sample for row in rows for sample in row) == list(range(6))
    assert [sum(lengths[sample] for sample in row) for row in rows] == [70, 70, 70]
    assert pack([300, 5, 5], budget=70) == [[0, 1, 2]]  # one row of 310 is less than two of 300
    assert pack([60, 60, 60], budget=100) == [[0, 1, 2]]  # two rows would be 240 positions


def test_groups_cost_less_than_one_and_than_many() -> None:
    assert buckets([100, 10, 100, 10] * 4) == [
        [1, 3, 5, 7, 9, 11, 13, 15],
        [0, 2, 4, 6, 8, 10, 12, 14],
    ]
    assert buckets([10, 11, 12]) == [[0, 1, 2]]  # a call costs more than three positions


def useful(lengths: np.ndarray, size: int, budget: int) -> float:
    """Share of a packed step's positions that hold something, over steps of `size` samples."""
    computed = 0
    for first in range(0, len(lengths), size):
        step = lengths[first : first + size].tolist()
        rows = pack(step, budget)
        computed += len(rows) * max(sum(step[sample] for sample in row) for row in rows)
    return float(lengths.sum()) / computed


@pytest.mark.parametrize("mix", ["understanding", "generation"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_little_padding_on_the_default_mixes(
    tasks: SceneTasks, tokenizer: Tokenizer, mix: str, device: str
) -> None:
    params = load_params(ROOT / "params.yaml")
    size = params.fitted("instruct").batch_size
    data = Mixture(tasks.sources(), params.mixes[mix], 16 * size, seed=0)
    collate = Collate(tokenizer, 16, 16, tuple(tasks.tasks))
    lengths = collate([data[row] for row in range(16 * size)]).mask.sum(dim=1).numpy()
    assert useful(lengths, size, ROW[device]) > 0.95


def llava_lengths(count: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths in tokens like those of LLaVA-1.5's instruction data (arXiv:2310.03744, table 7).

    Of its 665k samples 6% are text alone (ShareGPT: long, heavy-tailed, cut at 2048), 24% conversations,
    detailed descriptions and reasons of LLaVA-Instruct, 70% short answers and boxes, many turns an image.
    Text lengths are log-normal, with medians of 800, 250 and 120 tokens and deviations of the logarithm of
    0.9, 0.4 and 0.8; an image adds 576 tokens.
    """
    kind = rng.choice(3, count, p=[0.06, 0.24, 0.70])
    text = rng.lognormal(np.log([800, 250, 120])[kind], np.array([0.9, 0.4, 0.8])[kind])
    return np.minimum(text + np.where(kind == 0, 0, 576), 2048).astype(np.int64)


@pytest.mark.parametrize("size", [32, 128])
def test_little_padding_on_lengths_like_those_of_llava(size: int) -> None:
    lengths = llava_lengths(2048, np.random.default_rng(0))
    padded = lengths.sum() / sum(size * lengths[first : first + size].max() for first in range(0, 2048, size))
    assert padded < 0.55
    assert useful(lengths, size, ROW["cuda"]) > 0.95


def test_what_is_chosen_follows_from_lengths_alone(tasks: SceneTasks, tokenizer: Tokenizer) -> None:
    batch = batch_of(tasks, tokenizer)
    longest = int(batch.mask.sum(dim=1).max())
    assert Plan("auto", 160, longest).layout_of(batch) == "packed"
    assert Plan("auto", 160, longest - 1).layout_of(batch) == "buckets"
    assert Plan("auto", 160, packs=False).layout_of(batch) == "buckets"
    assert Plan("auto", 160, packs=False, groups=False).layout_of(batch) == "padded"
    assert Plan("auto", 160, longest - 1, groups=False).layout_of(batch) == "packed"
    assert Plan("padded")(batch) is batch
    assert Plan("padded", sparing=True)(batch) is batch  # it is short


def test_parts_of_a_step_are_its_samples_in_order(tasks: SceneTasks, tokenizer: Tokenizer) -> None:
    data = Mixture(tasks.sources(), {"vqa": 1.0, "text_to_image": 1.0}, 8, seed=0)
    samples = [data[row] for row in range(8)]
    collate = Collate(tokenizer, 16, 16, tuple(tasks.tasks))
    step = StepCollate(collate, 4, Plan(), by_sample=True)(samples)
    assert isinstance(step, Parts)
    assert [len(part) for part in step.parts] == [2, 2, 2, 2]
    assert step.sample_ids == tuple(sample.id for sample in samples)
    for part in step.parts:
        row = part.places.supervised // part.ids.shape[1]
        summed = torch.zeros(2).index_add(0, row, part.weights)
        torch.testing.assert_close(summed, part.supervised.any(dim=1).float())
