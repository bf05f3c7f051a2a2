"""Conversations laid out by the template that a tokenizer comes with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

from lab.errors import LabError
from lab.samples.chat import Run, special_of, taking_apart
from lab.samples.segments import BOS, Role, Segment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Characters of Unicode's private use, which no template writes: around a text, and in place of an image
_OPEN, _CLOSE, _IMAGE = "\ue000", "\ue001", "\ue002"
_MARKS = re.compile(f"([{_OPEN}{_CLOSE}{_IMAGE}])")
_BETWEEN = "\n"  # between an image and a text of one turn, as LLaVA has it


class TemplateChat:
    """The layout of a tokenizer's own template.

    A text is rendered with marks around it, which are taken out again, so that the ids are those of
    `apply_chat_template`, and their places in the text say which are supervised. The template runs in
    transformers' sandbox.

    Args:
        tokenizer: a fast one, with a chat template.
        busy: held while the tokenizer works.

    Raises:
        LabError: the tokenizer has no fast form; the template fails, or does not end an answer with a special
            token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, busy: AbstractContextManager[Any]) -> None:
        if not tokenizer.is_fast:
            raise LabError(
                "chat template: its tokenizer has no fast form, whose places in the text are needed"
            )
        self.tokenizer, self._busy = tokenizer, busy
        special = special_of(tokenizer)
        self._apart = taking_apart(special)
        self._encode: Callable[[str], Any] = lru_cache(maxsize=65536)(self._encoded)
        self._in_parts = False
        asked, said = Segment(text="q", role="user"), Segment(text="a", role="assistant", ends=True)
        try:
            text = self._rendered([("user", [asked]), ("assistant", [said])], prompt=False)
        except LabError:
            self._in_parts = True  # templates of models that see want a list of parts
            text = self._rendered([("user", [asked]), ("assistant", [said])], prompt=False)
        after = text.rpartition(_CLOSE)[2]
        ends = [(place, token) for token in special if (place := after.find(token)) >= 0]
        if not ends:
            raise LabError(
                f"chat template: it writes {after!r} after an answer, without a special token, so that "
                "nothing would tell generation to stop; give the tokenizer another chat_template"
            )
        place, self.end = min(ends, key=lambda end: end[0])
        self._closing = after[: place + len(self.end)]

    def lay_out(self, segments: Sequence[Segment]) -> Iterator[Run | Segment]:
        """As `Chat.lay_out`.

        Raises:
            LabError: the template refuses the conversation, or changes what is said in it.
        """
        if not any(segment.role for segment in segments):
            yield from self._document(segments)
            return
        turns = [
            (role, _joined(list(turn)))
            for (role, _), turn in groupby(_numbered(segments), key=lambda one: one[:2])
        ]
        last = turns[-1][1][-1]
        open_ = turns[-1][0] == "assistant" and not last.ends
        text = self._rendered(turns, prompt=turns[-1][0] != "assistant")
        if open_:  # the model goes on from here
            text = text[: max(text.rfind(_CLOSE), text.rfind(_IMAGE)) + 1]
        yield from self._runs(text, [segment for _, turn in turns for segment in turn])

    def said(self, segments: Sequence[Segment]) -> list[int]:
        said = [segment for segment in segments if segment.role == "user" and segment.text]
        return [piece for segment in said for piece in self._encode(self._within_turn(segment))[0]]

    def _document(self, segments: Sequence[Segment]) -> Iterator[Run | Segment]:
        """Text and images in no turns, as web pages have them.

        Of a tokenizer without a beginning the first id is given: nothing stands before it to predict it from.
        """
        begun = False
        for segment in segments:
            if segment.text is None:
                begun = True
                yield segment
                continue
            text = segment.text if segment.verbatim else self._apart(segment.text)
            if segment.verbatim and text == BOS:
                text = self.tokenizer.bos_token or ""
            if segment.ends:
                text = f"{text} {self.end}" if text else self.end
            ids = self._encode(text)[0]
            yield Run(ids, [segment.supervised and (begun or place > 0) for place in range(len(ids))])
            begun = begun or bool(ids)

    def _rendered(self, turns: Sequence[tuple[Role, Sequence[Segment]]], prompt: bool) -> str:
        messages, marks = list[dict[str, Any]](), list[str]()
        for role, turn in turns:
            content = "".join(
                _IMAGE if segment.text is None else f"{_OPEN}{self._within_turn(segment)}{_CLOSE}"
                for segment in turn
            )
            marks += _MARKS.findall(content)
            parts = [{"type": "text", "text": content}]
            messages.append({"role": role, "content": parts if self._in_parts else content})
        try:
            text = str(
                self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            )
        except Exception as error:  # what a template raises, of jinja2 or of Python
            reason = " ".join(str(error).split())[:160]
            raise LabError(
                f"chat template: it refuses {' '.join(role for role, _ in turns)}: {reason}"
            ) from error
        if _MARKS.findall(text) != marks:
            roles = " ".join(role for role, _ in turns)
            raise LabError(f"chat template: of {roles} it does not write every turn once, in this order")
        return text

    def _runs(self, text: str, segments: Sequence[Segment]) -> Iterator[Run | Segment]:
        """Runs of a text with marks; spans of the text without them say what is supervised."""
        images = iter([segment for segment in segments if segment.text is None])
        texts = iter([segment for segment in segments if segment.text is not None])
        said, spans, inside = "", list[tuple[int, int]](), None
        ended = False  # whether the end of a supervised turn has to follow
        for piece in _MARKS.split(text):
            if piece == _OPEN:
                inside = next(texts)
            elif piece == _CLOSE:
                ended = inside is not None and inside.supervised and inside.ends
                inside = None
            elif piece == _IMAGE:
                yield from self._run(said, spans)
                said, spans = "", []
                yield next(images)
            else:
                start = len(said)
                said += piece
                if inside is not None and inside.supervised:
                    spans.append((start, len(said)))
                elif ended and inside is None:
                    if not piece.startswith(self._closing):
                        raise LabError(
                            f"chat template: it ends one answer with {self._closing!r}, another with "
                            f"{piece[:20]!r}"
                        )
                    spans.append((start, start + len(self._closing)))
                    ended = False
        yield from self._run(said, spans)

    def _run(self, text: str, spans: Sequence[tuple[int, int]]) -> Iterator[Run]:
        if text:
            ids, places = self._encode(text)
            yield Run(
                ids,
                [any(start < until and since < stop for since, until in spans) for start, stop in places],
            )

    def _encoded(self, text: str) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """Ids, and where in the text each of them is."""
        with self._busy:
            found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return tuple(found["input_ids"]), tuple(map(tuple, found["offset_mapping"]))

    def _within_turn(self, segment: Segment) -> str:
        """A text; of the data without what means something to the template or to the tokenizer."""
        text = segment.text or ""
        return text if segment.verbatim else self._apart(_MARKS.sub("\ufffd", text.strip()))


def _numbered(segments: Sequence[Segment]) -> Iterator[tuple[Role, int, Segment]]:
    """Segments with their role and the number of their turn; what is outside turns goes to the user's."""
    number, before = 0, ""
    for segment in segments:
        if segment.verbatim and segment.text == BOS:
            continue  # the template's business
        role: Role = segment.role or ("assistant" if segment.supervised else "user")
        number += role != before
        before = role if role == "user" or not segment.ends else ""
        yield role, number, segment


def _joined(turn: Sequence[tuple[Role, int, Segment]]) -> list[Segment]:
    """The segments of a turn, with what stands between them; it is supervised if both sides are."""
    found: list[Segment] = []
    for _, _, segment in turn:
        if found and segment.text != "":
            both = found[-1].supervised and segment.supervised
            found.append(Segment(text=_BETWEEN, supervised=both, verbatim=True))
        found.append(segment)
    return found
