"""What is said about scenes is true. Truth is found here from the scene's integers and the words alone."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pytest

from lab.samples.tokenizer import Tokenizer
from lab.scenes.digits import load_patches, split_instances
from lab.scenes.language import QUESTIONS, Language, place_names, short_answer
from lab.scenes.tasks import SceneTasks
from lab.scenes.world import COLOUR_NAMES, EMPTY, Scenes, World, WorldSplit, compose

WORLDS = [World(), World(48, 3, 9, 1), World(32, 2, 1, 1), World(64, 4, 10, 1)]


def tasks_of(world: World, count: int = 150) -> SceneTasks:
    digits = load_patches(split_instances(0)["test"], world.variants, 0)
    return SceneTasks(WorldSplit(world, digits, compose(world, digits, count, 1)), turns=8)


@dataclass(frozen=True)
class Mentioned:
    """Places, digits and colours in a sentence, in the order of mention."""

    places: list[str]
    digits: list[int]
    colours: list[str]


def mentioned(world: World, sentence: str) -> Mentioned:
    words = sentence.split()
    places = set(place_names(world))
    return Mentioned(
        [word for word in words if word in places],
        [int(word) for word in words if re.fullmatch(r"\d+", word)],
        [word for word in words if word in COLOUR_NAMES],
    )


def truth(world: World, scenes: Scenes, row: int) -> dict[str, tuple[int, str]]:
    """Place -> (digit, colour)."""
    content = zip(place_names(world), scenes.digit[row].tolist(), scenes.colour[row].tolist(), strict=True)
    return {place: (digit, COLOUR_NAMES[colour]) for place, digit, colour in content if digit != EMPTY}


def right_answer(kind: str, asked: Mentioned, scene: dict[str, tuple[int, str]], smaller: bool) -> str:
    by_digit = {digit: (place, colour) for place, (digit, colour) in scene.items()}
    match kind:
        case "digit_at":
            return str(scene[asked.places[0]][0])
        case "colour_at":
            return scene[asked.places[0]][1]
        case "colour_of":
            return by_digit[asked.digits[0]][1]
        case "where":
            return by_digit[asked.digits[0]][0]
        case "exists":
            found = [colour for digit, colour in scene.values() if digit == asked.digits[0]]
            return "yes" if found and (not asked.colours or found == asked.colours) else "no"
        case "count":
            return str(len(scene))
        case "compare":
            first, second = (scene[place][0] for place in asked.places)
            return "yes" if (first < second if smaller else first > second) else "no"
        case "add":
            return str(sum(scene[place][0] for place in asked.places))
    raise AssertionError(f"a kind without a check: {kind}")


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: f"{world.grid}x{world.grid}-{world.max_digits}")
@pytest.mark.parametrize("kind", QUESTIONS)
def test_answers_are_right(kind: str, world: World) -> None:
    tasks = tasks_of(world)
    asked = 0
    for row in range(len(tasks)):
        scene = truth(world, tasks.split.scenes, row)
        sample = tasks.question(kind, row, seed=3)
        if sample is None:
            assert len(scene) < 2  # every scene of two digits admits every kind
            continue
        asked += 1
        question, answer = (plain(segment.text) for segment in sample.segments[-2:])
        expected = right_answer(kind, mentioned(world, question), scene, "smaller" in question.split())
        assert short_answer(answer) == expected, question
        evidence = answer.removesuffix(short_answer(answer))
        for part in evidence.split(","):
            claim = mentioned(world, part)
            if claim.places and claim.digits:
                assert (claim.digits[0], claim.colours[0]) == scene[claim.places[0]], answer
    assert asked or world.max_digits == 1


def plain(text: str | None) -> str:
    """The words without markers of turns and ends."""
    return " ".join(word for word in (text or "").split() if not word.startswith("<"))


def test_every_kind_is_asked_where_it_can_be() -> None:
    tasks = tasks_of(World(), 400)
    for kind in QUESTIONS:
        number = sum(tasks.question(kind, row, 0) is not None for row in range(400))
        assert number >= 300, kind


def test_yes_and_no_are_balanced() -> None:
    """Half of the answers are no, half of those nearly right: the digit is there in another colour."""
    tasks = tasks_of(World(), 2000)
    replies, near = [], 0
    for row in range(2000):
        sample = tasks.question("exists", row, 5)
        assert sample is not None
        question, answer = (plain(segment.text) for segment in sample.segments[-2:])
        replies.append(short_answer(answer))
        digits = {digit for digit, _ in truth(tasks.split.world, tasks.split.scenes, row).values()}
        near += replies[-1] == "no" and mentioned(tasks.split.world, question).digits[0] in digits
    assert set(replies) == {"yes", "no"}
    assert replies.count("yes") == pytest.approx(1000, abs=80)
    assert near == pytest.approx(500, abs=80)


def test_larger_is_as_often_true_as_not() -> None:
    tasks = tasks_of(World(), 2000)
    samples = [sample for row in range(2000) if (sample := tasks.question("compare", row, 5)) is not None]
    yes = sum(short_answer(plain(sample.segments[-1].text)) == "yes" for sample in samples)
    assert yes / len(samples) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: f"{world.grid}x{world.grid}-{world.max_digits}")
def test_captions_and_listings_say_all_that_is_there(world: World) -> None:
    tasks = tasks_of(world, 60)
    rng = np.random.default_rng(0)
    for row in range(60):
        scene = truth(world, tasks.split.scenes, row)
        things = {(place, *content) for place, content in scene.items()}
        listed = tasks._things(tasks.split.scenes.take(np.array([row])))
        language = tasks.language
        for said in (language.caption(listed), language.listing(listed)):
            assert triples(world, said) == things
        assert inventoried(language.inventory(listed)) == things
        for _ in range(8):  # all the forms of a free description
            said = mentioned(world, language.description(listed, rng))
            assert set(zip(said.places, said.digits, said.colours, strict=True)) == things


def inventoried(text: str) -> set[tuple[str, int, str]]:
    """Reads "0 nowhere 1 red top-left ...": every digit once, in order."""
    words, found, digits = text.split(), set(), []
    while words:
        digits.append(int(words.pop(0)))
        first = words.pop(0)
        if first != "nowhere":
            found.add((words.pop(0), digits[-1], first))
    assert digits == list(range(10))
    return found


def triples(world: World, text: str) -> set[tuple[str, int, str]]:
    parts = [mentioned(world, part) for part in text.split(",")]
    return {(p.places[0], p.digits[0], p.colours[0]) for p in parts if p.digits}


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: f"{world.grid}x{world.grid}-{world.max_digits}")
def test_vocabulary_covers_everything_that_is_said(world: World) -> None:
    tasks = tasks_of(world)
    tokenizer = Tokenizer.of_words(Language(world).vocabulary())
    sentences = 0
    for seed in range(3):
        for row in range(len(tasks)):
            for task in tasks.tasks:
                for segment in tasks.sample(task, row, seed).segments:
                    if segment.text is not None:
                        sentences += 1
                        tokenizer.encode(segment.text)  # raises at an unknown word
    assert sentences > 5000


def test_vocabulary_does_not_depend_on_the_call() -> None:
    assert Language(World()).vocabulary() == Language(World()).vocabulary()
