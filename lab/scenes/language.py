"""Sentences about scenes: descriptions, questions with answers, edits, boxes. Ground truth in, words out.

Sentences are lower case words separated by spaces, so that a word-level tokenizer reads them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from lab.scenes.locations import location_words
from lab.scenes.world import COLOUR_NAMES, EMPTY, Scenes, World

Choice = TypeVar("Choice")
BY_EXAMPLE = ("colour", "digit", "place")  # what a question may be about that only examples tell
EVIDENCE = "so"  # between what an answer saw and what it concludes
_ROWS = {2: ("top", "bottom"), 3: ("top", "middle", "bottom")}
_COLUMNS = {2: ("left", "right"), 3: ("left", "centre", "right")}


@dataclass(frozen=True)
class Thing:
    """A digit in a scene: its place (cell in raster order), value and colour name."""

    cell: int
    digit: int
    colour: str


def things_of(scenes: Scenes, row: int) -> list[Thing]:
    """The digits of one scene in raster order."""
    digits = scenes.digit[row].tolist()
    colours = scenes.colour[row].tolist()
    return [
        Thing(cell, digit, COLOUR_NAMES[colours[cell]]) for cell, digit in enumerate(digits) if digit != EMPTY
    ]


def place_names(world: World) -> tuple[str, ...]:
    """The name of each cell, in raster order: "top-left", ... or "row-2-column-4" on grids larger than 3."""
    if world.grid in _ROWS:
        return tuple(f"{row}-{column}" for row in _ROWS[world.grid] for column in _COLUMNS[world.grid])
    side = range(1, world.grid + 1)
    return tuple(f"row-{row}-column-{column}" for row in side for column in side)


def with_evidence(evidence: str, short: str) -> str:
    """An answer that first says what it saw, in the words of a caption, and then answers."""
    return f"{evidence} {EVIDENCE} {short}"


def short_answer(text: str) -> str:
    """What is scored: the words after the evidence, or all of them where there is none."""
    return text.rpartition(f"{EVIDENCE} ")[2].strip()


class Language:
    """Phrases everything that is said about the scenes of one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.places = place_names(world)

    # -- descriptions ----------------------------------------------------------------------------------------

    def caption(self, things: Sequence[Thing]) -> str:
        """The canonical caption, which captioning is scored against: in raster order, what is where."""
        return " , ".join(f"{self.places[thing.cell]} {thing.colour} {thing.digit}" for thing in things)

    def inventory(self, things: Sequence[Thing]) -> str:
        """Every digit from 0 to 9, with its colour and place or "nowhere": dense looking up by content."""
        found = {thing.digit: f"{thing.colour} {self.places[thing.cell]}" for thing in things}
        return " ".join(f"{digit} {found.get(digit, 'nowhere')}" for digit in range(10))

    def listing(self, things: Sequence[Thing]) -> str:
        """Every cell in raster order with its name, empty ones included, all in three words."""
        content = {thing.cell: f"{thing.colour} {thing.digit}" for thing in things}
        return " , ".join(
            f"{place} {content.get(cell, 'empty cell')}" for cell, place in enumerate(self.places)
        )

    def description(self, things: Sequence[Thing], rng: np.random.Generator) -> str:
        """A free description: one of several forms, digits in any order."""
        order = [things[index] for index in rng.permutation(len(things))]
        form = int(rng.integers(3))
        if form == 0:
            parts = [f"a {t.colour} {t.digit} at the {self.places[t.cell]}" for t in order]
            return " and ".join(filter(None, [" , ".join(parts[:-1]), parts[-1]]))
        if form == 1:
            return " , ".join(f"{self.places[t.cell]} : {t.colour} {t.digit}" for t in order)
        return " , ".join(f"{t.colour} {t.digit} {self.places[t.cell]}" for t in order)

    # -- prompts ---------------------------------------------------------------------------------------------

    CAPTION_PROMPTS = ("describe the image", "what is in the image ?", "give a caption", "what do you see ?")
    INVENTORY_PROMPTS = ("list the digits", "which digits are there ?", "name every digit")
    LISTING_PROMPTS = ("list every place", "what is at each place ?")
    DRAW_PROMPTS = ("draw {}", "generate an image of {}", "an image with {}", "please draw : {}")

    def draw_prompt(self, things: Sequence[Thing], rng: np.random.Generator) -> str:
        return _pick(self.DRAW_PROMPTS, rng).format(self.description(things, rng))

    # -- what examples tell ----------------------------------------------------------------------------------

    EXAMPLE_PROMPT = "what ?"

    def tell(self, kind: str, thing: Thing) -> str:
        """What is asked of a digit, out of `BY_EXAMPLE`; the evidence is the same whatever that is."""
        said = {"colour": thing.colour, "digit": str(thing.digit), "place": self.places[thing.cell]}
        return with_evidence(_at(self, thing), said[kind])

    # -- edits -----------------------------------------------------------------------------------------------

    def edit(self, things: Sequence[Thing], rng: np.random.Generator) -> tuple[str, int, str | None]:
        """An instruction that changes one digit.

        Returns:
            The instruction, the cell it changes, and the new colour name (None: the digit is removed). A
            scene's only digit is never removed.
        """
        thing = things[int(rng.integers(len(things)))]
        if len(things) > 1 and rng.random() < 0.5:
            forms = (f"remove the {thing.digit}", f"erase the {thing.digit}", f"take away the {thing.digit}")
            return _pick(forms, rng), thing.cell, None
        colour = _pick([name for name in COLOUR_NAMES if name != thing.colour], rng)
        forms = (
            f"make the {thing.digit} {colour}",
            f"change the {thing.digit} to {colour}",
            f"paint the {thing.digit} {colour}",
        )
        return _pick(forms, rng), thing.cell, colour

    # -- boxes -----------------------------------------------------------------------------------------------

    GROUND_PROMPTS = ("box of the {} ?", "where is the box of the {} ?", "give the box of the {}")
    REFER_PROMPTS = ("what is at {} ?", "what is in the box {} ?", "what do you see at {} ?")
    GROUNDED_CAPTION_PROMPTS = ("describe the image with boxes", "give a caption with boxes")

    def locate(self, thing: Thing, box: str, rng: np.random.Generator) -> tuple[str, str]:
        """A request for the box of a digit, and the box in words."""
        what = f"{thing.colour} {thing.digit}" if rng.random() < 0.5 else f"{thing.digit}"
        return _pick(self.GROUND_PROMPTS, rng).format(what), box

    def refer(self, thing: Thing, box: str, rng: np.random.Generator) -> tuple[str, str]:
        """A question about what is in a box, and its answer."""
        return _pick(self.REFER_PROMPTS, rng).format(box), f"{thing.colour} {thing.digit}"

    def grounded_caption(self, things: Sequence[Thing], boxes: Mapping[int, str]) -> str:
        """The canonical caption with a box after each digit; `boxes` by cell."""
        return " , ".join(f"{_at(self, thing)} {boxes[thing.cell]}" for thing in things)

    # -- questions -------------------------------------------------------------------------------------------

    def ask(self, kind: str, things: Sequence[Thing], rng: np.random.Generator) -> tuple[str, str] | None:
        """A question of the kind and its answer, or None where the scene does not admit one."""
        return QUESTIONS[kind](self, things, rng)

    def vocabulary(self) -> list[str]:
        """Every word that can occur, sorted; after them the words of boxes, where the world has any."""
        rng = np.random.default_rng(0)
        text = [
            "a red 3 at the top-left and : , empty cell nowhere so ?",
            *(self.places + COLOUR_NAMES),
            *map(str, range(19)),
            *(self.CAPTION_PROMPTS + self.INVENTORY_PROMPTS + self.LISTING_PROMPTS),
            *(prompt.format("") for prompt in self.DRAW_PROMPTS),
            "yes no",
        ]
        # Phrasings are drawn often enough that none is missed: few forms, a thousand draws.
        for _ in range(1000):
            count = int(rng.integers(1, min(4, self.world.cells) + 1))
            cells = rng.permutation(self.world.cells)[:count]
            digits = rng.permutation(10)[:count]
            things = [
                Thing(int(cell), int(digit), _pick(COLOUR_NAMES, rng))
                for cell, digit in zip(np.sort(cells), digits, strict=True)
            ]
            text += [self.edit(things, rng)[0], self.description(things, rng)]
            text += [" ".join(pair) for kind in QUESTIONS if (pair := self.ask(kind, things, rng))]
        words = sorted({word for sentence in text for word in sentence.split()})
        if not self.world.locations:
            return words
        # Last, so that a world has the ids of all other words in common with its like without boxes.
        prompts = (*self.GROUND_PROMPTS, *self.REFER_PROMPTS, *self.GROUNDED_CAPTION_PROMPTS)
        more = {word for prompt in prompts for word in prompt.format("").split()}
        return [*words, *sorted(more.difference(words)), *location_words(self.world)]


def _pick(choices: Sequence[Choice], rng: np.random.Generator) -> Choice:
    return choices[int(rng.integers(len(choices)))]


Question = tuple[str, str]


def _at(language: Language, thing: Thing) -> str:
    """A thing as the caption names it: place first."""
    return f"{language.places[thing.cell]} {thing.colour} {thing.digit}"


def _of(language: Language, thing: Thing) -> str:
    """A thing as the inventory names it: digit first."""
    return f"{thing.digit} {thing.colour} {language.places[thing.cell]}"


def _digit_at(language: Language, things: Sequence[Thing], rng: np.random.Generator) -> Question:
    thing = _pick(things, rng)
    place = language.places[thing.cell]
    asked = _pick((f"which digit is {place} ?", f"digit at {place} ?"), rng)
    return asked, with_evidence(_at(language, thing), str(thing.digit))


def _colour_at(language: Language, things: Sequence[Thing], rng: np.random.Generator) -> Question:
    thing = _pick(things, rng)
    place = language.places[thing.cell]
    asked = _pick((f"which colour is {place} ?", f"colour at {place} ?"), rng)
    return asked, with_evidence(_at(language, thing), thing.colour)


def _colour_of(language: Language, things: Sequence[Thing], rng: np.random.Generator) -> Question:
    thing = _pick(things, rng)
    asked = _pick((f"which colour is the {thing.digit} ?", f"colour of the {thing.digit} ?"), rng)
    return asked, with_evidence(_of(language, thing), thing.colour)


def _where(language: Language, things: Sequence[Thing], rng: np.random.Generator) -> Question:
    thing = _pick(things, rng)
    asked = _pick((f"where is the {thing.digit} ?", f"place of the {thing.digit} ?"), rng)
    return asked, with_evidence(_of(language, thing), language.places[thing.cell])


def _exists(language: Language, things: Sequence[Thing], rng: np.random.Generator) -> Question:
    """Balanced as in POPE (arXiv:2305.10355): half the answers are no, half of those nearly right.

    Nearly right is a digit of the scene in another colour.
    """
    present = {thing.digit for thing in things}
    thing = _pick(things, rng)
    with_colour = rng.random() < 0.5 or len(present) == 10  # with all ten there, only colours can be wrong
    digit, colour, evidence, reply = thing.digit, thing.colour, _of(language, thing), "yes"
    if rng.random() < 0.5:
        reply = "no"
        if with_colour:
            colour = _pick([name for name in COLOUR_NAMES if name != thing.colour], rng)
        else:
            digit = _pick([d for d in range(10) if d not in present], rng)
            evidence = f"{digit} nowhere"
    what = f"{colour} {digit}" if with_colour else f"{digit}"
    return _pick((f"is there a {what} ?", f"any {what} ?"), rng), with_evidence(evidence, reply)


def _count(language: Language, things: Sequence[Thing], rng: np.random.Generator) -> Question:
    forms = ("how many digits ?", "number of digits ?")
    return _pick(forms, rng), str(len(things))


def _compare(language: Language, things: Sequence[Thing], rng: np.random.Generator) -> Question | None:
    if len(things) < 2:
        return None
    first, second = (things[index] for index in rng.permutation(len(things))[:2])
    one, two = language.places[first.cell], language.places[second.cell]
    reply = "yes" if first.digit > second.digit else "no"
    evidence = f"{_at(language, first)} , {_at(language, second)}"
    return f"is {one} larger than {two} ?", with_evidence(evidence, reply)


def _add(language: Language, things: Sequence[Thing], rng: np.random.Generator) -> Question | None:
    if len(things) < 2:
        return None
    first, second = (things[index] for index in rng.permutation(len(things))[:2])
    one, two = language.places[first.cell], language.places[second.cell]
    evidence = f"{_at(language, first)} , {_at(language, second)}"
    return f"sum of {one} and {two} ?", with_evidence(evidence, str(first.digit + second.digit))


QUESTIONS: dict[str, Callable[[Language, Sequence[Thing], np.random.Generator], Question | None]] = {
    "digit_at": _digit_at,
    "colour_at": _colour_at,
    "colour_of": _colour_of,
    "where": _where,
    "exists": _exists,
    "count": _count,
    "compare": _compare,
    "add": _add,
}
