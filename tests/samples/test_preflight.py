"""What is wrong with samples is found before they are trained on, each fault by its name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

from lab.reports.preflight import coloured, page
from lab.samples.batch import Collate, Stand
from lab.samples.mixture import Mixture
from lab.samples.preflight import faults_of, firsts_of, pieces_of, positions_of, scan
from lab.samples.segments import (
    BOS,
    IMAGE_START,
    Picture,
    Sample,
    Segment,
    answer,
    end_of_answer,
    image,
    part_of_answer,
    question,
    special,
    written,
)
from lab.samples.tokenizer import Tokenizer
from lab.scenes.language import Language
from lab.scenes.tasks import SceneTasks

from .chat_templates import FAMILIES, tokenizer_of


@pytest.fixture
def collate(tasks: SceneTasks) -> Collate:
    tokenizer = Tokenizer.of_words(Language(tasks.split.world).vocabulary())
    return Collate(tokenizer, 4, 6, (*tasks.tasks, "own"))


def unseen(supervised: bool = False) -> Segment:
    """An image that must not be looked at."""

    def load() -> np.ndarray:
        raise AssertionError("an image was loaded")

    return Segment(picture=Picture(load, lambda: "key"), supervised=supervised)


def kinds(sample: Sample, collate: Collate, longest: int | None = None) -> set[str]:
    return {kind for kind, _ in faults_of(sample, collate.lay(sample), collate, longest)}


def own(*segments: Segment) -> Sample:
    return Sample("own/1", "own", (special(BOS), *segments))


def test_the_built_in_tasks_have_no_faults(tasks: SceneTasks, collate: Collate) -> None:
    mixture = Mixture(tasks.sources(), dict.fromkeys(tasks.tasks, 1.0), 500, seed=0)
    findings = scan(mixture, collate, positions_of(mixture, 0, 0), 1000)
    assert findings.scanned == 500
    assert findings.message() == ""
    assert findings.counts() == {}


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        ((unseen(), question("what is red ?"), answer("yes")), set()),
        ((unseen(), question("what is red ?")), {"silent"}),
        ((question("red"), unseen(supervised=True), end_of_answer()), set()),
        ((question("red"), unseen(supervised=True)), {"endless"}),
        ((written("red", ends=False), unseen(), written("blue", ends=True)), set()),  # a document
        ((written("red", ends=False), unseen(), written("", ends=True)), set()),
        ((written("red", ends=False), unseen(), written("blue", ends=False)), {"endless"}),
        ((unseen(), special(IMAGE_START), question("what is red ?"), answer("yes")), {"misplaced"}),
        ((unseen(), question("what is red ?"), part_of_answer("yes")), {"endless"}),
        ((question("red"), part_of_answer("yes"), question("blue"), answer("no")), {"endless"}),
    ],
)
def test_a_fault_has_its_name(segments: tuple[Segment, ...], expected: set[str], collate: Collate) -> None:
    assert kinds(own(*segments), collate) == expected


def test_positions_have_to_be_those_of_the_images(collate: Collate) -> None:
    """A template that loses an image, or places one amid an answer."""
    sample = own(unseen(), question("what is red ?"), answer("yes"))
    laid = collate.lay(sample)
    lost = replace(laid, stands=[Stand.TEXT] * len(laid.ids))
    assert {kind for kind, _ in faults_of(sample, lost, collate, None)} == {"misplaced"}
    first = laid.stands.index(Stand.READ)
    amid = replace(laid, supervised=[place == first for place in range(len(laid.ids))])
    assert "cut" in {kind for kind, _ in faults_of(sample, amid, collate, None)}


def test_what_does_not_fit_the_language_model_is_named(collate: Collate) -> None:
    sample = own(unseen(), question("what is red ?"), answer("yes"))
    length = collate.length(sample)
    assert kinds(sample, collate, length) == set()
    assert kinds(sample, collate, length - 1) == {"long"}


@dataclass(frozen=True)
class Rows:
    """A data set in which every tenth row has a word that the tokenizer does not know."""

    number: int = 77

    def __len__(self) -> int:
        return 40

    def sample(self, row: int, seed: int) -> Sample:
        word = "zebra" if row % 10 == 0 else "red"
        return Sample(f"own/{row}", "own", (unseen(), question(word), answer("yes")))


def test_a_scan_names_sources_and_samples(tasks: SceneTasks, collate: Collate) -> None:
    mixture = Mixture(
        {**tasks.sources(), "own": Rows()}, {"caption": 1, "own": {"weight": 1, "epochs": 1}}, 80, 0
    )
    findings = scan(mixture, collate, positions_of(mixture, 0, 0), None)
    assert findings.counts() == {"refused": 4}
    assert "4 refused: own/" in findings.message()
    assert "of own" in findings.message()
    assert "'zebra'" in findings.message()


def test_every_source_is_looked_at_however_rare(tasks: SceneTasks) -> None:
    mixture = Mixture(tasks.sources(), {"caption": 500, "vqa": 1}, 3000, seed=0)
    chosen = positions_of(mixture, 10, 0)
    assert {mixture.source_of(position) for position in chosen} == {"caption", "vqa"}
    assert chosen == positions_of(mixture, 10, 0)
    assert len(chosen) <= 10 + 2
    assert positions_of(mixture, 0, 0) == list(range(3000))


def test_a_source_that_comes_late_is_looked_at(tasks: SceneTasks) -> None:
    mix = {"curve": "steps", "of": {"caption": 1, "vqa": {"0%": 0, "97%": 0.01}}}
    mixture = Mixture(tasks.sources(), mix, 60_000, seed=0)
    first = firsts_of(mixture)
    assert [mixture.source_of(position) for position in first] == ["caption", "vqa"]
    assert mixture.plan.drawn(first[1])["vqa"] == 0
    assert set(first) <= set(positions_of(mixture, 10, 0))


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_templates_have_no_faults_of_their_own(name: str, tasks: SceneTasks) -> None:
    collate = Collate(Tokenizer(tokenizer_of(FAMILIES[name])), 4, 6, (*tasks.tasks, "own"))
    mixture = Mixture(tasks.sources(), dict.fromkeys(tasks.tasks, 1.0), 40, seed=0)
    assert scan(mixture, collate, range(40), None).message() == ""
    cut = own(question("red"), part_of_answer("a red bird"), question("blue"), answer("no"))
    assert kinds(cut, collate) == {"endless"}
    said = [piece.text for piece in pieces_of(collate.lay(cut), collate) if piece.kind == "said"]
    assert said[0].strip() == "a red bird"


def test_an_image_without_positions_is_missed_all_the_same(tasks: SceneTasks) -> None:
    """Where features stay outside the sequence, only marks tell of an image."""
    tokenizer = Tokenizer.of_words(Language(tasks.split.world).vocabulary())
    collate = Collate(tokenizer, 0, 6, ("own",))
    sample = own(unseen(), question("what is red ?"), answer("yes"))
    assert kinds(sample, collate) == set()
    without = collate.lay(own(question("what is red ?"), answer("yes")))
    assert {kind for kind, _ in faults_of(sample, without, collate, None)} == {"misplaced"}


def test_samples_show_what_is_learned_of_them(collate: Collate) -> None:
    sample = own(unseen(), question("what is red ?"), answer("yes"))
    pieces = pieces_of(collate.lay(sample), collate)
    assert [piece.kind for piece in pieces] == ["given", "read", "given", "said"]
    assert pieces[1].text == "[4 positions]"
    assert pieces[3].text == "yes <eos>"
    lines = coloured([(sample.id, pieces)])
    assert "yes <eos>" in lines[-1].plain


def test_the_page_escapes_what_samples_say(tasks: SceneTasks, collate: Collate) -> None:
    mixture = Mixture(tasks.sources(), {"caption": 1}, 3, seed=0)
    findings = scan(mixture, collate, [0], None)
    written = page("instruct", findings, [("<b>id</b>", pieces_of(collate.lay(mixture[0]), collate))])
    assert "<b>id</b>" not in written
    assert "&lt;bos&gt;" in written
    assert "no faults" in written


def test_images_of_a_batch_are_where_they_were(collate: Collate) -> None:
    """The row that is looked at is the row that is trained on."""

    def rows() -> Iterator[Sample]:
        yield own(image(np.zeros((3, 8, 8), np.float32)), question("red"), answer("yes"))
        yield own(question("red"), image(np.zeros((3, 8, 8), np.float32), supervised=True))

    samples = list(rows())
    batch = collate(samples)
    for index, sample in enumerate(samples):
        laid = collate.lay(sample)
        assert batch.ids[index, : len(laid.ids)].tolist() == list(laid.ids)
        assert batch.read[index].sum() == list(laid.stands).count(Stand.READ)
        assert batch.drawn[index].sum() == list(laid.stands).count(Stand.DRAWN)
