"""A look at a stage's samples before its first step: what would train on nothing, or on the wrong thing.

| fault | what it means |
|---|---|
| refused | the sample cannot be laid out; the message says why |
| silent | nothing in it is supervised and nothing has to be drawn: it costs time and teaches nothing |
| misplaced | positions or marks of images are not those of its images: one was lost, or a text has marks |
| cut | an element that is supervised as text stands amid an image's positions |
| endless | an answer does not end with the token that ends a turn: it was cut off, and teaches not to stop |
| long | it takes more positions than the language model has |

No image is read or rendered, and no random number is drawn from anybody's generator.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from lab.errors import LabError
from lab.samples.batch import Collate, Laid, Stand
from lab.samples.mixture import Mixture
from lab.samples.segments import EOS, IMAGE_END, IMAGE_START, Sample

FAULTS = ("refused", "silent", "misplaced", "cut", "endless", "long")
_NAMED = 3  # samples of a fault that a message names


@dataclass(frozen=True)
class Fault:
    """What is wrong with one sample.

    Attributes:
        kind: one of FAULTS.
        sample: its id.
        source: of the mix.
        detail: more to say.
        position: of the sample in the stage.
    """

    kind: str
    sample: str
    source: str
    detail: str
    position: int


@dataclass(frozen=True)
class Findings:
    """What a scan found.

    Attributes:
        scanned: samples.
        faults: in the order of the samples.
    """

    scanned: int
    faults: tuple[Fault, ...]

    def counts(self) -> dict[str, int]:
        """Fault -> samples that have it, those that occur."""
        found = Counter(fault.kind for fault in self.faults)
        return {kind: found[kind] for kind in FAULTS if found[kind]}

    def message(self) -> str:
        """One line: each kind with its count and its first samples; "" where all is well."""
        parts = []
        for kind, count in self.counts().items():
            named = [fault for fault in self.faults if fault.kind == kind][:_NAMED]
            said = ", ".join(f"{one.sample} of {one.source} ({one.detail})" for one in named)
            parts.append(f"{count} {kind}: {said}{', ...' if count > len(named) else ''}")
        return "; ".join(parts)


def positions_of(mixture: Mixture, count: int, seed: int) -> list[int]:
    """Positions to look at: `count` of a stage's samples, all for 0, and the first of every source.

    Args:
        mixture: the stage's samples.
        count: how many, 0 for all.
        seed: of the choice.
    """
    if not 0 < count < len(mixture):
        return list(range(len(mixture)))
    chosen = set(np.random.default_rng([seed, count]).choice(len(mixture), count, replace=False).tolist())
    return sorted(chosen.union(firsts_of(mixture)))


def firsts_of(mixture: Mixture) -> list[int]:
    """The first position of each source that the stage draws from, in order."""

    def first(source: str) -> int:
        return bisect_left(range(len(mixture)), 1, key=lambda place: mixture.plan.drawn(place + 1)[source])

    return sorted(place for place in map(first, mixture.names) if place < len(mixture))


def scan(mixture: Mixture, collate: Collate, positions: Sequence[int], longest: int | None) -> Findings:
    """Looks at samples of a stage.

    Args:
        mixture: the stage's samples.
        collate: lays them out.
        positions: which.
        longest: positions that the language model has, None where it has no such limit.
    """
    faults: list[Fault] = []
    for position in positions:
        source, name = mixture.source_of(position), f"sample {position}"
        try:
            sample = mixture[position]
            name = sample.id
            found = list(faults_of(sample, collate.lay(sample), collate, longest))
        except LabError as error:
            found = [("refused", str(error))]
        faults += [Fault(kind, name, source, detail, position) for kind, detail in found]
    return Findings(len(positions), tuple(faults))


def faults_of(sample: Sample, laid: Laid, collate: Collate, longest: int | None) -> Iterator[tuple[str, str]]:
    """What is wrong with a sample as it is laid out: kind and detail of each fault."""
    pictures = [segment.supervised for segment in sample.segments if segment.picture is not None]
    if not any(laid.supervised) and Stand.DRAWN not in laid.stands:
        yield "silent", f"{len(laid.ids)} positions"
    for stand, drawn, each in (
        (Stand.READ, False, collate.tokens_read),
        (Stand.DRAWN, True, collate.tokens_drawn),
    ):
        expected, found = pictures.count(drawn) * each, laid.stands.count(stand)
        if expected != found:
            word = "drawn" if drawn else "read"
            yield "misplaced", f"{found} positions of images {word} for {expected} features"
    for mark in (IMAGE_START, IMAGE_END):
        if (marks := laid.ids.count(collate.tokenizer[mark])) != len(pictures):
            yield "misplaced", f"{marks} {mark} for {len(pictures)} images"
    if any(told and stand != Stand.TEXT for told, stand in zip(laid.supervised, laid.stands, strict=True)):
        yield "cut", "a supervised element amid an image"
    start, end = collate.tokenizer[IMAGE_START], collate.tokenizer[EOS]
    last = [place for place, told in enumerate(laid.supervised) if told and _last_of_turn(laid, place, start)]
    if open_ends := [place for place in last if laid.ids[place] != end]:
        word = collate.tokenizer.tokenizer.convert_ids_to_tokens(laid.ids[open_ends[0]])
        yield "endless", f"an answer ends with {word!r}"
    if longest is not None and len(laid.ids) > longest:
        yield "long", f"{len(laid.ids)} positions, {longest} fit"


@dataclass(frozen=True)
class Piece:
    """A stretch of a sample that is one thing to the loss.

    Attributes:
        kind: "said" (supervised text), "given" (other text), "read" or "drawn" (an image's positions).
        text: as the tokenizer writes it, or how many positions.
    """

    kind: str
    text: str


def pieces_of(laid: Laid, collate: Collate) -> list[Piece]:
    """A sample as a person sees it: what it says, what it is given, where its images stand."""

    def kind(place: int) -> str:
        stand = laid.stands[place]
        return stand.name.lower() if stand != Stand.TEXT else "said" if laid.supervised[place] else "given"

    found = []
    for name, places in groupby(range(len(laid.ids)), key=kind):
        ids = [laid.ids[place] for place in places]
        image = name in ("read", "drawn")
        text = (
            f"[{len(ids)} positions]"
            if image
            else collate.tokenizer.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        )
        found.append(Piece(name, text))
    return found


def _last_of_turn(laid: Laid, place: int, start: int) -> bool:
    """Whether what follows a supervised element is neither supervised nor an image, which `start` opens."""
    following = place + 1
    if following == len(laid.ids):
        return True
    image = laid.stands[following] != Stand.TEXT or laid.ids[following] == start
    return not laid.supervised[following] and not image
