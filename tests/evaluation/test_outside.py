"""Protocols on data sets: figures by the metrics of their papers, results files in the official form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.config import DataSetParams
from lab.errors import LabError
from lab.evaluation.outside import Reply, figures_of, protocol_of, replies
from lab.evaluation.submission import submission
from lab.models.arm import Arm
from lab.registry import build
from lab.samples.datasets import DataSet, DataSource
from lab.samples.images import LIMIT
from lab.samples.indexing import build as build_index
from lab.samples.tokenizer import Tokenizer
from lab.scenes.world import World
from tests.conftest import TINY
from tests.samples.readers.conftest import LAYOUTS

EXPECTED = {
    "llava": "exact",
    "coco": "caption",
    "vqav2": "vqa",
    "gqa": "exact",
    "textvqa": "vqa",
    "pope": "pope",
    "boxes": "box",
    "folder": "caption",
}


def source(root: Path, name: str, locations: int = 4) -> DataSource:
    LAYOUTS[name](root)
    data = DataSet("mine", DataSetParams("", name), build_index(root, name, LIMIT, root.with_name("index")))
    split = next(one for one in ("train", "validation", "test") if len(data.rows(one)))
    return DataSource(data, split, World(locations=locations))


def given(data: DataSource, *answers: str) -> list[Reply]:
    """Replies of a model that says `answers` to the rows in order."""
    return [
        Reply(row := data.row(number), "asked", said, row.answers[0] if row.answers else "")
        for number, said in enumerate(answers)
    ]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_data_set_knows_its_protocol(tmp_path: Path, name: str) -> None:
    assert protocol_of(source(tmp_path / "set", name)) == EXPECTED[name]


def test_a_set_without_questions_has_nothing_to_score(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="it asks for no text"):
        protocol_of(source(tmp_path / "set", "edits"))


@pytest.mark.parametrize(("said", "accuracy"), [("Red.", 1.0), ("blue", 0.6), ("green", 0.0)])
def test_vqa_accuracy_takes_ten_people(tmp_path: Path, said: str, accuracy: float) -> None:
    """Eight said red, two blue: of ten ways to leave one out, two count one person less."""
    data = source(tmp_path / "set", "vqav2")
    assert figures_of("vqa", given(data, said), data)["accuracy"].value == pytest.approx(accuracy)


def test_captions_are_compared_with_all_references(tmp_path: Path) -> None:
    data = source(tmp_path / "set", "coco")
    one = figures_of("caption", given(data, "a cat that is red", "a dog"), data)
    assert one["rouge_l"].value == pytest.approx(1.0)
    assert set(one) == {"cider_d", "bleu_4", "rouge_l"}


def test_pope_has_its_five_figures(tmp_path: Path) -> None:
    data = source(tmp_path / "set", "pope")
    figures = figures_of("pope", given(data, "Yes, there is.", "yes"), data)
    assert {name: figure.value for name, figure in figures.items()} == pytest.approx(
        {"accuracy": 0.5, "precision": 0.5, "recall": 1.0, "f1": 2 / 3, "yes_ratio": 1.0}
    )


@pytest.mark.parametrize(
    ("locations", "said", "right"),
    [
        (32, "<loc_328> <loc_695>", 1.0),
        (4, "<loc_0> <loc_0>", 0.0),
        (0, "[0.25, 0.33, 0.75, 0.67]", 1.0),
        (0, "there", 0.0),
    ],
)
def test_boxes_are_scored_in_the_square_of_the_encoder(
    tmp_path: Path, locations: int, said: str, right: float
) -> None:
    data = source(tmp_path / "set", "boxes", locations)
    assert figures_of("box", given(data, said), data)["right"].value == right


def test_questions_about_one_image_are_one_sample(tmp_path: Path) -> None:
    data = source(tmp_path / "set", "gqa")
    about = given(data, "yes", "no")
    assert len({shot.digest for reply in about for shot in reply.row.shots}) == 1
    assert figures_of("exact", about, data)["exact"].samples == 1


def test_protocols_refuse_rows_that_are_not_made_for_them(tmp_path: Path) -> None:
    data = source(tmp_path / "set", "gqa")
    with pytest.raises(LabError, match="has an answer of one person"):
        figures_of("vqa", given(data, "yes", "no"), data)
    with pytest.raises(LabError, match=r"no protocol 'popes' for data sets \(did you mean 'pope'\?\)"):
        figures_of("popes", given(data, "yes", "no"), data)


SUBMISSIONS: list[tuple[str, tuple[str, ...], str, Any]] = [
    ("vqav2", ("red",), "results.json", [{"question_id": 9001, "answer": "red"}]),
    ("textvqa", ("nous",), "results.json", [{"question_id": 34602, "answer": "nous"}]),
    (
        "gqa",
        ("yes", "no"),
        "results.json",
        [{"questionId": "05451384", "prediction": "yes"}, {"questionId": "05451385", "prediction": "no"}],
    ),
    (
        "coco",
        ("a cat", "a dog"),
        "results.json",
        [{"image_id": 7, "caption": "a cat"}, {"image_id": 8, "caption": "a dog"}],
    ),
    (
        "pope",
        ("yes", "no"),
        "answers.jsonl",
        [{"question": "asked", "answer": "yes"}, {"question": "asked", "answer": "no"}],
    ),
]


@pytest.mark.parametrize(
    ("name", "answers", "file", "entries"), SUBMISSIONS, ids=[one[0] for one in SUBMISSIONS]
)
def test_results_files_are_in_the_official_form(
    tmp_path: Path, name: str, answers: tuple[str, ...], file: str, entries: Any
) -> None:
    data = source(tmp_path / "set", name)
    made = submission(name, given(data, *answers))
    assert made is not None
    assert made[0] == file
    text = made[1]
    found = [json.loads(line) for line in text.splitlines()] if file.endswith("l") else json.loads(text)
    assert found == entries


def test_every_answer_of_a_conversation_is_asked_for(tmp_path: Path, new_arm: Callable[..., Arm]) -> None:
    data = source(tmp_path / "set", "llava")
    arm = new_arm()
    arm.tokenizer = Tokenizer.of_words(["red"], data.data.words())
    arm.model.text_decoder = build("text_decoder", TINY["text_decoder"], len(arm.tokenizer))
    found = replies(arm, data, range(len(data)), batch_size=2)
    assert [one.expected for one in found] == ["A cat.", "No.", "Not at all.", "Two."]
    assert [one.asked for one in found if one.row.shots[1:] == []] == [
        "What is this?",
        "Is it big?",
        "Say a number.",
    ]
    again = replies(arm, data, range(len(data)), batch_size=5)
    assert [one.given for one in again] == [one.given for one in found]
