"""The tasks of the built-in world: a scene and a random generator in, a sample out.

| task | the model reads | the model produces |
|---|---|---|
| caption | image, prompt | canonical caption |
| inventory | image, prompt | every digit, with its colour and place or nowhere |
| vqa | image, several questions | answers |
| text_to_image | description | plan, image |
| edit | image, instruction | plan, edited image |
| interleaved | image, description of a second scene | caption of the first, plan and image of the second |
| documents | two or three images | a caption after each |
| listing | image, prompt | every place, with what is there |
| draw | description | image, without a plan: what a frozen language model can be asked |
| by_example | images of one digit, each with its colour, or digit, or place | the same of more images |
| text | description, questions and requests about it | answers, captions, inventories, listings |
| ground | image, several requests for the box of a digit | boxes |
| refer | image, several questions about what is in a box | colours and digits |
| grounded_caption | image, prompt | canonical caption with a box after each digit |

A plan is the listing of the scene to be drawn, said before it is drawn, as an answer states its evidence
before it concludes (docs/learning.md has the experiments behind both). A listing of the text task is of the
described scene, or of what an edit would make of it. The last three tasks are those of a world with location
words: a box is two of them (see lab/scenes/locations.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from lab.samples.segments import (
    BOS,
    Picture,
    Sample,
    Segment,
    answer,
    end_of_answer,
    part_of_answer,
    question,
    special,
    told,
)
from lab.scenes.language import BY_EXAMPLE, QUESTIONS, Language, Thing, things_of
from lab.scenes.locations import write_box
from lab.scenes.world import COLOUR_NAMES, EMPTY, Scenes, WorldSplit, boxes, render

Choice = TypeVar("Choice")
MOST_SHOTS = 4  # examples of a training sample
_Make = Callable[[int, Scenes, list[Thing], np.random.Generator], tuple[Segment, ...]]


class SceneTasks:
    """Makes samples of every task from one split of the world.

    Args:
        split: digits and scenes.
        turns: questions asked about one image or description (dense supervision: several questions share one
            image).
    """

    def __init__(self, split: WorldSplit, turns: int = 6) -> None:
        self.split = split
        self.turns = turns
        self.language = Language(split.world)
        self.tasks: dict[str, _Make] = {
            "caption": self._caption,
            "inventory": self._inventory,
            "vqa": self._vqa,
            "text_to_image": self._text_to_image,
            "edit": self._edit,
            "interleaved": self._interleaved,
            "text": self._text,
            "documents": self._documents,
            "listing": self._listing,
        }
        if split.world.locations:  # last: a task's place in this order is part of the seed of its samples
            self.tasks |= {
                "ground": self._ground,
                "refer": self._refer,
                "grounded_caption": self._grounded_caption,
            }
        self.tasks["draw"] = self._draw
        self.tasks["by_example"] = self._by_example

    def __len__(self) -> int:
        return len(self.split.scenes)

    def sources(self) -> dict[str, TaskSource]:
        """Every task as a source of a mix."""
        return {task: TaskSource(self, task, number) for number, task in enumerate(self.tasks)}

    def sample(self, task: str, row: int, seed: int) -> Sample:
        """The sample of a task about scene `row`; equal arguments give equal samples."""
        rng = np.random.default_rng([seed, row])
        scene = self.split.scenes.take(np.array([row]))
        segments = self.tasks[task](row, scene, self._things(scene), rng)
        return Sample(f"{task}/{row}/{seed}", task, (special(BOS), *segments))

    def question(self, kind: str, row: int, seed: int) -> Sample | None:
        """One question of one kind about scene `row` (for evaluation), or None if the scene admits none."""
        rng = np.random.default_rng([seed, row])
        scene = self.split.scenes.take(np.array([row]))
        pair = self.language.ask(kind, self._things(scene), rng)
        if pair is None:
            return None
        segments = (special(BOS), self._image(scene), question(pair[0]), answer(pair[1]))
        return Sample(f"{kind}/{row}/{seed}", kind, segments)

    def text_question(self, kind: str, row: int, seed: int) -> Sample | None:
        """One question about a described scene, without an image (for evaluating a language model alone)."""
        rng = np.random.default_rng([seed, row])
        things = self._things(self.split.scenes.take(np.array([row])))
        stated = self._stated(things, rng)
        pair = self.language.ask(kind, things, rng)
        if pair is None:
            return None
        segments = (special(BOS), stated, question(pair[0]), answer(pair[1]))
        return Sample(f"{kind}/{row}/{seed}", kind, segments)

    def box_request(self, row: int, seed: int) -> tuple[Sample, np.ndarray]:
        """One request for a box in scene `row` (for evaluation), and that box as drawn, (4,), px."""
        rng = np.random.default_rng([seed, row])
        scene = self.split.scenes.take(np.array([row]))
        thing = _pick(self._things(scene), rng)
        asked, box = self.language.locate(thing, self._boxes(scene)[thing.cell], rng)
        segments = (special(BOS), self._image(scene), question(asked), answer(box))
        drawn = boxes(self.split.world, self.split.digits, scene)[0, thing.cell]
        return Sample(f"box/{row}/{seed}", "ground", segments), drawn

    def question_by_example(self, row: int, seed: int, shots: int) -> Sample:
        """A question about scene `row` that `shots` examples tell and nothing else does (for evaluation)."""
        rng = np.random.default_rng([seed, row])
        scene = self.split.scenes.take(np.array([row]))
        *examples, (image, reply) = self._alike(scene, shots, rng)
        asked = question(self.language.EXAMPLE_PROMPT)
        solved = [segment for shown, said in examples for segment in (shown, asked, told(said))]
        segments = (special(BOS), *solved, image, asked, answer(reply))
        return Sample(f"by_example/{row}/{seed}", "by_example", segments)

    def edited(self, row: int, seed: int) -> Scenes:
        """The scene that the edit sample of the same arguments asks for."""
        rng = np.random.default_rng([seed, row])
        scene = self.split.scenes.take(np.array([row]))
        _, cell, colour = self.language.edit(self._things(scene), rng)
        return _apply(scene, cell, colour)

    def picture(self, row: int) -> Picture:
        """The image of scene `row`."""
        return self._picture(self.split.scenes.take(np.array([row])))

    # -- tasks -----------------------------------------------------------------------------------------------

    def _caption(
        self, row: int, scene: Scenes, things: list[Thing], rng: np.random.Generator
    ) -> tuple[Segment, ...]:
        prompt = _pick(self.language.CAPTION_PROMPTS, rng)
        return self._image(scene), question(prompt), answer(self.language.caption(things))

    def _inventory(
        self, row: int, scene: Scenes, things: list[Thing], rng: np.random.Generator
    ) -> tuple[Segment, ...]:
        prompt = _pick(self.language.INVENTORY_PROMPTS, rng)
        return self._image(scene), question(prompt), answer(self.language.inventory(things))

    def _vqa(
        self, row: int, scene: Scenes, things: list[Thing], rng: np.random.Generator
    ) -> tuple[Segment, ...]:
        return (self._image(scene), *self._turns(things, rng, self.turns))

    def _text_to_image(
        self, row: int, scene: Scenes, things: list[Thing], rng: np.random.Generator
    ) -> tuple[Segment, ...]:
        prompt = self.language.draw_prompt(things, rng)
        return question(prompt), *self._drawn(scene)

    def _edit(
        self, row: int, scene: Scenes, things: list[Thing], rng: np.random.Generator
    ) -> tuple[Segment, ...]:
        instruction, cell, colour = self.language.edit(things, rng)
        return self._image(scene), question(instruction), *self._drawn(_apply(scene, cell, colour))

    def _interleaved(
        self, row: int, scene: Scenes, things: list[Thing], rng: np.random.Generator
    ) -> tuple[Segment, ...]:
        other = self.split.scenes.take(rng.integers(0, len(self), 1))
        return (
            self._image(scene),
            answer(self.language.caption(things)),
            question(self.language.description(self._things(other), rng)),
            *self._drawn(other),
        )

    def _documents(
        self, row: int, scene: Scenes, things: list[Thing], rng: np.random.Generator
    ) -> tuple[Segment, ...]:
        count = int(rng.integers(1, 3))
        others = [self.split.scenes.take(rng.integers(0, len(self), 1)) for _ in range(count)]
        segments: list[Segment] = []
        for one in (scene, *others):
            segments += [self._image(one), answer(self.language.caption(self._things(one)))]
        return tuple(segments)

    def _listing(
        self, row: int, scene: Scenes, things: list[Thing], rng: np.random.Generator
    ) -> tuple[Segment, ...]:
        prompt = _pick(self.language.LISTING_PROMPTS, rng)
        return self._image(scene), question(prompt), answer(self.language.listing(things))

    def _draw(
        self, row: int, scene: Scenes, things: list[Thing], rng: np.random.Generator
    ) -> tuple[Segment, ...]:
        prompt = self.language.draw_prompt(things, rng)
        return question(prompt), *self._drawn(scene)[1:]

    def _by_example(
        self, row: int, scene: Scenes, things: list[Thing], rng: np.random.Generator
    ) -> tuple[Segment, ...]:
        shots = int(rng.integers(1, MOST_SHOTS + 1))
        segments: list[Segment] = []
        for image, reply in self._alike(scene, shots, rng):
            # nobody can guess what the first is asked for
            said = answer(reply) if segments else told(reply)
            segments += [image, question(self.language.EXAMPLE_PROMPT), said]
        return tuple(segments)

    def _text(
        self, row: int, scene: Scenes, things: list[Thing], rng: np.random.Generator
    ) -> tuple[Segment, ...]:
        language = self.language
        stated = self._stated(things, rng)
        extra = int(rng.integers(4))
        if extra == 0:
            last = (question(_pick(language.CAPTION_PROMPTS, rng)), answer(language.caption(things)))
        elif extra == 2:
            last = (question(_pick(language.INVENTORY_PROMPTS, rng)), answer(language.inventory(things)))
        elif extra == 1:
            last = (question(_pick(language.LISTING_PROMPTS, rng)), answer(language.listing(things)))
        else:
            instruction, cell, colour = language.edit(things, rng)
            after = self._things(_apply(scene, cell, colour))
            last = (question(instruction), answer(language.listing(after)))
        return (stated, *self._turns(things, rng, self.turns), *last)

    def _ground(
        self, row: int, scene: Scenes, things: list[Thing], rng: np.random.Generator
    ) -> tuple[Segment, ...]:
        return (self._image(scene), *self._box_turns(self.language.locate, scene, things, rng))

    def _refer(
        self, row: int, scene: Scenes, things: list[Thing], rng: np.random.Generator
    ) -> tuple[Segment, ...]:
        return (self._image(scene), *self._box_turns(self.language.refer, scene, things, rng))

    def _grounded_caption(
        self, row: int, scene: Scenes, things: list[Thing], rng: np.random.Generator
    ) -> tuple[Segment, ...]:
        prompt = _pick(self.language.GROUNDED_CAPTION_PROMPTS, rng)
        caption = self.language.grounded_caption(things, self._boxes(scene))
        return self._image(scene), question(prompt), answer(caption)

    # -- parts -----------------------------------------------------------------------------------------------

    def _alike(self, scene: Scenes, shots: int, rng: np.random.Generator) -> list[tuple[Segment, str]]:
        """`shots` images and that of the scene, all with one digit, and an answer of one kind to each."""
        kind = _pick(BY_EXAMPLE, rng)
        others = (self.split.scenes.take(rng.integers(0, len(self), 1)) for _ in range(shots))
        found = []
        for one in (*others, scene):
            alone = _alone(one, rng)
            found.append((self._image(alone), self.language.tell(kind, self._things(alone)[0])))
        return found

    def _drawn(self, scene: Scenes) -> tuple[Segment, ...]:
        """The plan of a scene, its image and the end, all to be produced."""
        plan = part_of_answer(self.language.listing(self._things(scene)))
        return plan, self._image(scene, supervised=True), end_of_answer()

    def _stated(self, things: list[Thing], rng: np.random.Generator) -> Segment:
        language, listed = self.language, rng.random() < 0.5
        return Segment(text=language.listing(things) if listed else language.description(things, rng))

    def _turns(self, things: list[Thing], rng: np.random.Generator, turns: int) -> list[Segment]:
        """Question-answer turns of different kinds in random order."""
        segments: list[Segment] = []
        kinds = list(QUESTIONS)
        for index in rng.permutation(len(kinds)):
            pair = self.language.ask(kinds[index], things, rng)
            if pair is not None and len(segments) < 2 * turns:
                segments += [question(pair[0]), answer(pair[1])]
        return segments

    def _box_turns(
        self,
        ask: Callable[[Thing, str, np.random.Generator], tuple[str, str]],
        scene: Scenes,
        things: list[Thing],
        rng: np.random.Generator,
    ) -> list[Segment]:
        """Question-answer turns about the digits in random order, each about another one."""
        segments: list[Segment] = []
        located = self._boxes(scene)
        for index in rng.permutation(len(things))[: self.turns]:
            asked, reply = ask(things[index], located[things[index].cell], rng)
            segments += [question(asked), answer(reply)]
        return segments

    def _boxes(self, scene: Scenes) -> dict[int, str]:
        """The box of each digit in words, by cell."""
        world = self.split.world
        drawn = boxes(world, self.split.digits, scene)[0]
        return {int(cell): write_box(world, drawn[cell]) for cell in np.flatnonzero(scene.digit[0] != EMPTY)}

    def _things(self, scene: Scenes) -> list[Thing]:
        return things_of(scene, 0)

    def _image(self, scene: Scenes, supervised: bool = False) -> Segment:
        return Segment(picture=self._picture(scene), supervised=supervised)

    def _picture(self, scene: Scenes) -> Picture:
        split = self.split
        return Picture(lambda: render(split.world, split.digits, scene)[0], lambda: split.key(scene))


@dataclass(frozen=True)
class TaskSource:
    """One task of a split as a source of a mix (see lab/samples/mixture.py)."""

    tasks: SceneTasks
    task: str
    number: int

    def __len__(self) -> int:
        return len(self.tasks)

    def sample(self, row: int, seed: int) -> Sample:
        return self.tasks.sample(self.task, row, seed)


def _apply(scene: Scenes, cell: int, colour: str | None) -> Scenes:
    """The scene after an edit of one cell: recoloured, or emptied when `colour` is None."""
    edited = scene.take(np.array([0]))
    if colour is None:
        edited.digit[0, cell] = EMPTY
    else:
        edited.colour[0, cell] = COLOUR_NAMES.index(colour)
    return edited


def _alone(scene: Scenes, rng: np.random.Generator) -> Scenes:
    """One digit of a scene and nothing else."""
    alone = scene.take(np.array([0]))
    kept = _pick(np.flatnonzero(scene.digit[0] != EMPTY).tolist(), rng)
    alone.digit[0, np.arange(alone.digit.shape[1]) != kept] = EMPTY
    return alone


def _pick(choices: Sequence[Choice], rng: np.random.Generator) -> Choice:
    return choices[int(rng.integers(len(choices)))]
