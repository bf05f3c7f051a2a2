"""Records by the names of their fields, as tables and shards have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lab.samples.readers.fields import CAPTION_PROMPT, field, said, with_images
from lab.samples.readers.llava import conversation
from lab.samples.readers.record import BadRecordError, Piece, Record, Turn
from lab.samples.readers.vqav2 import people_said

CAPTION = ("caption", "text", "captions", "sentences", "txt", "alt_text")
QUESTION = ("question", "query", "problem")
ANSWER = ("answers", "answer", "multiple_choice_answer", "label")


def record_of(value: dict[str, Any], images: Sequence[Piece], split: str) -> Record:
    """The record of a row: a conversation, a question with its answers, or captions.

    Raises:
        BadRecordError: none of these, or whatever is wrong with it.
    """
    tags = {key: value[key] for key in ("question_id", "image_id") if isinstance(value.get(key), (int, str))}
    if value.get("conversations") is not None or value.get("messages") is not None:
        return Record(conversation(value, images), split=split, tags=tags)
    if any(value.get(key) is not None for key in QUESTION):
        asked = field(value, *QUESTION)
        answers = people_said(_texts(value, ANSWER))
        (pieces,) = with_images([asked], images)
        return Record((Turn("user", pieces), Turn("assistant", answers[:1])), answers, split, tags)
    texts = tuple(said(text, "caption") for text in _texts(value, CAPTION))
    if not texts:
        raise BadRecordError("empty_answer", "no caption")
    if not images:
        raise BadRecordError("missing_field", f"a caption of no image; it has {', '.join(map(str, value))}")
    turns = (Turn("user", (*images, CAPTION_PROMPT)), Turn("assistant", texts[:1]))
    return Record(turns, texts, split, tags)


def _texts(value: dict[str, Any], names: Sequence[str]) -> list[str]:
    """One text or several, each a text or an object with an `answer` or a `raw` sentence."""
    found = field(value, *names, kind=(str, list))
    return [
        one if isinstance(one, str) else field(one, "answer", "raw", "sent", "caption")
        for one in ([found] if isinstance(found, str) else found)
    ]
