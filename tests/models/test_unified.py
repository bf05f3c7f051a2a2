"""One sequence for everything: causal, indifferent to padding and neighbours, the same when it runs free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lab.errors import LabError
from lab.evaluation.understanding import prompt_of
from lab.models.arm import Arm
from lab.models.generation import generate_image_tokens, generate_text
from lab.models.rows import positions_of
from lab.samples.batch import Batch
from lab.samples.segments import (
    BOS,
    EOS,
    IMAGE_START,
    Sample,
    Segment,
    answer,
    end_of_answer,
    image,
    question,
    special,
)

RESAMPLER = {"name": "perceiver", "num_latents": 5, "depth": 1}
SYSTEMS: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlp": {"connector": {"name": "mlp"}},
    "q_former": {"connector": {"name": "q_former", "num_queries": 5, "dim": 32, "depth": 1}},
    "question": {
        "connector": {"name": "q_former", "num_queries": 5, "dim": 32, "depth": 1, "instruction": True}
    },
    "perceiver": {"connector": RESAMPLER},
    "block": {"fusion": {"name": "sequence", "bidirectional": True, "one_position": True}},
    "cross_attention": {"connector": RESAMPLER, "fusion": {"name": "cross_attention", "num_heads": 2}},
    "prefix": {"connector": RESAMPLER, "fusion": {"name": "prefix", "num_heads": 2}},
    "one_space": {"targets": "connector", "visual_head": {"name": "regression", "feedback": "shared"}},
}
START, END = special(BOS), end_of_answer()


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((3, 32, 32), np.float32)


def rows() -> dict[str, Sample]:
    """Every kind of row, each under a task of its own, so that losses by task are losses by row."""
    listed = [
        Sample("", "text", (START, question("is there a 3 ?"), answer("yes"))),
        Sample("", "read", (START, image(picture(1)), question("is there a 4 ?"), answer("no"))),
        Sample("", "draw", (START, question("draw a red 3"), image(picture(2), supervised=True), END)),
        Sample(
            "", "read two", (START, image(picture(3)), image(picture(4)), question("any 3 ?"), answer("no"))
        ),
        Sample(
            "",
            "read and draw",
            (START, image(picture(5)), answer("red 3"), question("draw"), image(picture(6), True), END),
        ),
    ]
    return {sample.task: replace(sample, id=sample.task) for sample in listed}


@pytest.fixture(params=SYSTEMS)
def arm(request: pytest.FixtureRequest, new_arm: Callable[..., Arm]) -> Arm:
    made = new_arm(**SYSTEMS[request.param])
    made.model.eval()
    with torch.no_grad():
        for name, parameter in made.model.fusion.named_parameters():
            if "gate" in name:
                parameter.fill_(0.5)  # at 0 nothing would be read
    return made


@pytest.fixture
def linear(new_arm: Callable[..., Arm]) -> Arm:
    made = new_arm()
    made.model.eval()
    return made


def batch_of(arm: Arm, *samples: Sample, left: bool = False) -> Batch:
    return arm.collate(tuple(rows()), left)(list(samples))


@torch.no_grad()
def states(arm: Arm, batch: Batch) -> Tensor:
    return arm.model.states(batch, arm.model.slot_inputs(arm.model.targets(batch))[0])


def test_a_later_word_changes_no_earlier_state(arm: Arm) -> None:
    batch = batch_of(arm, *rows().values())
    before = states(arm, batch)
    words = batch.mask & ~batch.read & ~batch.drawn
    for column in range(1, batch.ids.shape[1]):
        changed = batch.ids.clone()
        changed[:, column] = torch.where(
            words[:, column], (changed[:, column] + 9) % len(arm.tokenizer), changed[:, column]
        )
        after = states(arm, replace(batch, ids=changed))
        torch.testing.assert_close(after[:, :column], before[:, :column], rtol=0, atol=1e-6)
        hit = words[:, column]
        assert hit.logical_not().all() or not torch.equal(after[hit, column], before[hit, column])


@pytest.mark.parametrize("kind", ["read", "drawn"])
def test_a_later_picture_changes_no_earlier_state(arm: Arm, kind: str) -> None:
    sample = rows()["read and draw"]
    batch = batch_of(arm, sample)
    before = states(arm, batch)
    name = f"pixels_{kind}"
    after = states(arm, replace(batch, **{name: 1 - getattr(batch, name)}))
    # outside the sequence an image is read from its first mark on
    place = batch.image[0] >= 0 if kind == "read" else batch.drawn[0]
    first = int(place.nonzero()[0]) + (kind == "read" and arm.model.fusion.in_sequence)
    torch.testing.assert_close(after[:, :first], before[:, :first], rtol=0, atol=1e-6)
    assert (after[:, first:] - before[:, first:]).abs().amax(dim=2).min() > 0  # and every later one


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_padding_changes_nothing(arm: Arm, left: bool) -> None:
    together = batch_of(arm, *rows().values(), left=left)
    assert not together.mask.all()
    found = states(arm, together)
    for index, sample in enumerate(rows().values()):
        alone = states(arm, batch_of(arm, sample))
        torch.testing.assert_close(found[index][together.mask[index]], alone[0], rtol=0, atol=1e-5)


def test_losses_of_a_row_do_not_depend_on_its_neighbours(arm: Arm) -> None:
    with torch.no_grad():
        together = arm.model(batch_of(arm, *rows().values()))
        for index, sample in enumerate(rows().values()):
            alone = arm.model(batch_of(arm, sample))
            for name in ("text_sum", "text_count", "image_sum", "image_count"):
                one, all_of_them = getattr(alone, name), getattr(together, name)
                torch.testing.assert_close(one[index], all_of_them[index], rtol=1e-5, atol=1e-5)
                assert (one[:index] == 0).all()
                assert (one[index + 1 :] == 0).all()
    torch.testing.assert_close(together.text, together.text_sum.sum() / together.text_count.sum())
    torch.testing.assert_close(together.image, together.image_sum.sum() / 2)
    assert together.image_count.tolist() == [0, 0, 1, 0, 1]


def test_text_loss_is_the_cross_entropy_of_what_is_supervised(linear: Arm) -> None:
    """Word by word, from the state before each."""
    batch = batch_of(linear, *rows().values())
    with torch.no_grad():
        logits = linear.model.text_decoder.logits(states(linear, batch))
        for index in range(len(batch)):
            expected = 0.0
            for column in batch.supervised[index].nonzero().flatten().tolist():
                expected -= float(logits[index, column - 1].log_softmax(-1)[batch.ids[index, column]])
            assert float(linear.model(batch).text_sum[index]) == pytest.approx(expected, abs=1e-4)


def test_answers_equal_a_teacher_forced_pass(arm: Arm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits with the cache are those of one pass over prompt and answer, and so are the chosen words."""
    chosen = [rows()[name] for name in ("text", "read", "read two")]
    recorded: list[Tensor] = []
    score = arm.model.text_decoder.logits

    def record(hidden: Tensor) -> Tensor:
        recorded.append(score(hidden))
        return recorded[-1]

    monkeypatch.setattr(arm.model.text_decoder, "logits", record)
    prompts = batch_of(arm, *map(prompt_of, chosen), left=True)
    answers = generate_text(arm.model, prompts, arm.tokenizer[EOS], max_new_tokens=7)
    monkeypatch.undo()
    free = torch.stack(recorded, dim=1)  # (B, 7, V)
    for index, (sample, ids) in enumerate(zip(chosen, answers, strict=True)):
        assert ids
        words = " ".join(arm.tokenizer.tokenizer.convert_ids_to_tokens(ids))
        said = Segment(text=words, supervised=True, verbatim=True)
        batch = batch_of(arm, replace(sample, segments=(*prompt_of(sample).segments, said)))
        logits = arm.model.text_decoder.logits(states(arm, batch))[0]
        row = batch.supervised[0].nonzero().flatten()
        assert batch.ids[0, row].tolist() == ids
        torch.testing.assert_close(logits[row - 1], free[index, : len(ids)], rtol=0, atol=1e-4)
        assert logits[row - 1].argmax(dim=-1).tolist() == ids


def test_a_closed_answer_ends_and_others_go_on(linear: Arm) -> None:
    """Whatever word closes answers: each is cut there, and the others are unchanged."""
    chosen = [rows()[name] for name in ("text", "read", "read two")]
    prompts = batch_of(linear, *map(prompt_of, chosen), left=True)
    whole = generate_text(linear.model, prompts, end=-1, max_new_tokens=8)
    assert [len(ids) for ids in whole] == [8, 8, 8]
    for end in {token for ids in whole for token in ids}:
        cut = generate_text(linear.model, prompts, end=end, max_new_tokens=8)
        assert cut == [ids[: ids.index(end)] if end in ids else ids for ids in whole]


def test_drawn_tokens_equal_a_teacher_forced_pass(arm: Arm) -> None:
    """Tokens that the model feeds back to itself are what it predicts when it is given those same tokens."""
    chosen = [rows()[name] for name in ("draw", "read and draw")]
    prompts = []
    for sample in chosen:
        place = next(
            i for i, part in enumerate(sample.segments) if part.supervised and part.pixels is not None
        )
        prompts.append(replace(sample, segments=(*sample.segments[:place], special(IMAGE_START))))
    free = generate_image_tokens(arm.model, batch_of(arm, *prompts, left=True), [0, 1])  # (2, N, D_v)
    assert free.shape == arm.model.targets(batch_of(arm, *chosen)).shape
    batch = batch_of(arm, *chosen)
    with torch.no_grad():
        found = arm.model.states(batch, arm.model.slot_inputs(free)[0])
        before, owner = arm.model.at_slots(batch, found)
        torch.testing.assert_close(arm.model.visual_head(before), free, rtol=1e-4, atol=1e-4)
    assert owner.tolist() == [0, 1]


def test_image_loss_sees_the_tokens_of_the_right_picture(linear: Arm) -> None:
    """Swapping two pictures swaps what is fed back and what is aimed at, not rows."""
    one, two = rows()["draw"], rows()["read and draw"]
    with torch.no_grad():
        batch = batch_of(linear, one, two)
        targets = linear.model.targets(batch)
        assert targets is not None
        torch.testing.assert_close(targets, linear.model.encoder(batch.pixels_drawn))
        together = linear.model(batch).image_sum
        swapped = linear.model(batch_of(linear, two, one)).image_sum
    torch.testing.assert_close(together, swapped)


def test_targets_carry_no_gradient_but_what_is_read_does(linear: Arm) -> None:
    linear.model(batch_of(linear, rows()["draw"])).image.backward()
    assert all(parameter.grad is None for parameter in linear.model.encoder.parameters())
    linear.model(batch_of(linear, rows()["read"])).text.backward()
    assert all(parameter.grad is not None for parameter in linear.model.encoder.parameters())
    assert all(parameter.grad is not None for parameter in linear.model.connector.parameters())


@pytest.mark.parametrize("change", [-1, 1])
def test_a_wrong_number_of_slots_is_an_error(linear: Arm, change: int) -> None:
    model = linear.model
    read, drawn = model.connector.num_tokens, model.encoder.num_tokens
    too_many = type(linear.collate(()))(linear.tokenizer, read + change, drawn, ("read",))([rows()["read"]])
    with pytest.raises(
        LabError, match=rf"images read: .* {read + change} visual positions, .* {read} tokens"
    ):
        model(too_many)
    too_many = type(linear.collate(()))(linear.tokenizer, read, drawn + change, ("draw",))([rows()["draw"]])
    with pytest.raises(
        LabError, match=rf"images drawn: .* {drawn + change} visual positions, .* {drawn} tokens"
    ):
        model(too_many)


def test_positions_count_what_is_real() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]], dtype=torch.bool)
    assert positions_of(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]
