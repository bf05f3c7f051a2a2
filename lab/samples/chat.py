"""Chat templates: how the turns of a sample become ids, and which of them the model learns to produce.

A tokenizer that comes with a chat template (transformers' `tokenizer.chat_template`) lays conversations out
by it. Any other one, that of the built-in world among them, lays them out by the lab's own:

    <bos> [image] <user> question <assistant> answer <eos> <user> ...

Supervised are what the assistant says and the token that ends its turn, never what a template writes around
turns. Which token that is, is found by rendering one turn. A sample that does not end with an answer is a
prompt: it ends with what the template writes before one (`add_generation_prompt`), so that generation starts
where training has the first supervised element.

Special tokens that stand in a text of the data are taken apart, as in "< eos>", by every layout: nobody ends
a turn, or opens an image, from within one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from lab.samples.segments import (
    ASSISTANT,
    BOS,
    EOS,
    IMAGE_END,
    IMAGE_START,
    USER,
    Segment,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The lab's own layout as a template, for whoever reads an arm elsewhere; joined without spaces, so that ids
# are the same
OWN_TEMPLATE = (
    f"{BOS}"
    "{% for message in messages %}"
    "{% set content = message['content'] %}"
    "{% set parts = [{'type': 'text', 'text': content}] if content is string else content %}"
    "{% set text = parts | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') %}"
    "{% if message['role'] == 'user' %}"
    "{% for part in parts if part['type'] == 'image' %}"
    f"{IMAGE_START}<image>{IMAGE_END}"
    "{% endfor %}"
    f"{USER} {{{{ text }}}} {ASSISTANT}"
    "{% elif message['role'] == 'assistant' %}"
    f"{{{{ text }}}} {EOS}"
    "{% else %}"
    "{{ raise_exception('the roles are user and assistant') }}"
    "{% endif %}"
    "{% endfor %}"
)


@dataclass(frozen=True)
class Run:
    """Ids that stand one after the other, and which of them are supervised."""

    ids: Sequence[int]
    supervised: Sequence[bool]


class Chat(Protocol):
    """A way to lay conversations out.

    Attributes:
        end: the token that ends a turn of the assistant's.
    """

    end: str

    def lay_out(self, segments: Sequence[Segment]) -> Iterator[Run | Segment]:
        """Runs of ids, and images between them."""
        ...

    def said(self, segments: Sequence[Segment]) -> list[int]:
        """Ids of what the user says in a sample, for a connector that reads it."""
        ...


class OwnChat:
    """The lab's own layout.

    Args:
        encode: text to ids, special tokens included.
        special: all of these, which texts of the data have taken apart.
    """

    end = EOS

    def __init__(self, encode: Callable[[str], Sequence[int]], special: Iterable[str]) -> None:
        self._encode, self._apart = encode, taking_apart(special)

    def lay_out(self, segments: Sequence[Segment]) -> Iterator[Run | Segment]:
        for segment, text in self._written(segments):
            if text is None:
                yield segment
            else:
                ids = self._encode(text)
                yield Run(ids, [segment.supervised] * len(ids))

    def said(self, segments: Sequence[Segment]) -> list[int]:
        written = self._written(segments)
        said = [text for segment, text in written if text is not None and segment.role == "user"]
        return [piece for text in said for piece in self._encode(text)]

    def _written(self, segments: Sequence[Segment]) -> Iterator[tuple[Segment, str | None]]:
        """Segments with their texts, the marks of turns included."""
        within = False  # a turn of the user's
        for segment in segments:
            text = segment.text
            if text is not None and not segment.verbatim:
                text = self._apart(text)
            if text is not None and segment.role == "user":
                text = " ".join([*([] if within else [USER]), text, *([ASSISTANT] if segment.ends else [])])
            elif text is not None and segment.role in ("assistant", "") and segment.ends:
                text = f"{text} {EOS}" if text else EOS
            yield segment, text
            within = segment.role == "user" and not segment.ends


def special_of(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """All special tokens of a tokenizer, the longest first."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted({*added, *map(str, tokenizer.all_special_tokens)} - {""}, key=lambda one: (-len(one), one))


def taking_apart(special: Iterable[str]) -> Callable[[str], str]:
    """What writes "< eos>" for "<eos>" wherever a special token stands in a text, in any case.

    Any case, since a tokenizer may lower it after that. A token of one letter cannot be taken apart.
    """
    rests: dict[str, list[str]] = {}
    for token in special:
        if len(token) > 1:
            rests.setdefault(token[0], []).append(re.escape(token[1:]))
    if not rests:
        return str
    # only the first letter is consumed, so that a token which begins within another is found too
    pattern = "|".join(f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items())
    return partial(re.compile(pattern, re.IGNORECASE).sub, r"\g<0> ")
