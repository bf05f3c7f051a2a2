"""Templates of seven families: ids are transformers' own, supervised is what the assistant says, no more."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from lab.errors import LabError
from lab.evaluation.understanding import prompt_of
from lab.samples.batch import Collate
from lab.samples.chat import Run
from lab.samples.segments import (
    ASSISTANT,
    BOS,
    EOS,
    IMAGE_END,
    IMAGE_START,
    PAD,
    SPECIAL_TOKENS,
    Sample,
    Segment,
    answer,
    end_of_answer,
    image,
    part_of_answer,
    question,
    special,
    system,
    written,
)
from lab.samples.tokenizer import Tokenizer, plain_words

from .chat_templates import FAMILIES, tokenizer_of

TALK = [
    ("user", "what colour is the bird in this picture?"),
    ("assistant", "it is a small red bird, I think."),
    ("user", "is it on a branch?"),
    ("assistant", "it is"),
]
OWN = "own"
PICTURE = np.zeros((3, 8, 8), np.float32)


@cache
def tokenizer(name: str) -> Tokenizer:
    if name == OWN:
        texts = [*(text for _, text in TALK), "say now a b", *SPECIAL_TOKENS, f"a{IMAGE_START}{ASSISTANT}b"]
        return Tokenizer.of_words([], [word for text in texts for word in plain_words(text)])
    return Tokenizer(tokenizer_of(FAMILIES[name]))


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[OWN, *sorted(FAMILIES)])
def layout(request: pytest.FixtureRequest) -> str:
    """The families and the lab's own."""
    return str(request.param)


def segments(talk: Sequence[tuple[str, str]]) -> list[Segment]:
    kinds = {"system": system, "user": question, "assistant": answer}
    return [special(BOS), *(kinds[role](text) for role, text in talk)]


def laid(name: str, parts: Sequence[Segment]) -> tuple[list[int], list[bool]]:
    """Ids and which are supervised; -1 stands for an image."""
    ids, supervised = list[int](), list[bool]()
    for piece in tokenizer(name).chat.lay_out(parts):
        ids += piece.ids if isinstance(piece, Run) else [-1]
        supervised += piece.supervised if isinstance(piece, Run) else [piece.supervised]
    return ids, supervised


def theirs(name: str, talk: Sequence[tuple[str, str]], prompt: bool = False) -> list[int]:
    messages = [{"role": role, "content": text} for role, text in talk]
    own = tokenizer(name).tokenizer
    return list(own.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False))


def spoken(name: str, ids: Sequence[int], supervised: Sequence[bool]) -> list[str]:
    """The text of each run of supervised ids."""
    found, run = list[str](), list[int]()
    for one, mine in zip([*ids, 0], [*supervised, False], strict=True):
        if mine:
            run.append(one)
        elif run:
            found.append(tokenizer(name).tokenizer.decode(run))
            run = []
    return found


def test_ids_are_those_of_transformers(family: str) -> None:
    assert laid(family, segments(TALK))[0] == theirs(family, TALK)


def test_supervised_are_the_answers_and_what_ends_them(family: str) -> None:
    end = FAMILIES[family].end
    said = [text.replace(" ", "") for text in spoken(family, *laid(family, segments(TALK)))]
    assert said == [f"{text}{end}".replace(" ", "") for role, text in TALK if role == "assistant"]
    assert tokenizer(family)[EOS] == tokenizer(family).tokenizer.convert_tokens_to_ids(end)


@pytest.mark.parametrize("turns", [2, 4])
def test_a_prompt_is_training_up_to_the_first_element_of_the_answer(family: str, turns: int) -> None:
    ids, supervised = laid(family, segments(TALK[:turns]))
    last = max(place for place, (one, two) in enumerate(pairwise([False, *supervised])) if two and not one)
    prompt, asked = laid(family, segments(TALK[: turns - 1]))
    assert prompt == ids[:last] == theirs(family, TALK[: turns - 1], prompt=True)
    assert sum(asked) == sum(supervised[:last])


def test_the_prompt_of_a_sample_is_where_generation_starts(family: str) -> None:
    sample = Sample("a", "vqa", (special(BOS), image(PICTURE), *segments(TALK[:2])[1:]))
    collate = Collate(tokenizer(family), 3, 0, ("vqa",))
    whole, prompt = collate([sample]), collate([prompt_of(sample)])
    first = int(whole.supervised[0].nonzero()[0])
    assert prompt.ids[0].tolist() == whole.ids[0, :first].tolist()
    assert int(whole.read.sum()) == 3


def test_a_system_prompt_is_part_of_no_answer(family: str) -> None:
    talk = [("system", "think in small words"), *TALK]
    if not FAMILIES[family].system:
        with pytest.raises(LabError, match="chat template: it refuses system user assistant"):
            laid(family, segments(talk))
        return
    ids, supervised = laid(family, segments(talk))
    assert ids == theirs(family, talk)
    assert spoken(family, ids, supervised) == spoken(family, *laid(family, segments(TALK)))


def test_images_stand_in_the_users_turn(family: str) -> None:
    plain = segments(TALK)
    ids, supervised = laid(family, [plain[0], image(PICTURE), plain[1], plain[2], image(PICTURE), *plain[3:]])
    assert ids.count(-1) == 2
    assert spoken(family, ids, supervised) == spoken(family, *laid(family, plain))
    first = ids.index(-1)
    parts = (ids[:first], ids[first + 1 : ids.index(-1, first + 1)])
    before, after = (tokenizer(family).tokenizer.decode(part) for part in parts)
    assert TALK[0][1] not in before
    assert after.lstrip().replace(" ", "").startswith(TALK[0][1].replace(" ", ""))


def test_an_image_that_is_drawn_is_part_of_the_answer(family: str) -> None:
    drawn = [
        question("a red bird"),
        part_of_answer("it is red"),
        image(PICTURE, supervised=True),
        end_of_answer(),
    ]
    ids, supervised = laid(family, drawn)
    said = spoken(family, ids[: ids.index(-1)], supervised[: ids.index(-1)])
    assert [text.split() for text in said] == [["it", "is", "red"]]
    assert (
        spoken(family, ids[ids.index(-1) + 1 :], supervised[ids.index(-1) + 1 :])[0].strip()
        == FAMILIES[family].end
    )
    planned = [
        drawn[0],
        Segment(text="it is red", role="assistant"),
        special(IMAGE_START, "assistant"),
    ]
    marked = laid(family, planned)[0]
    assert marked == [*ids[: ids.index(-1)], tokenizer(family)[IMAGE_START]]


def every_special_token(name: str) -> str:
    """A text that has all of a tokenizer's special tokens and marks of images in it, also in capitals."""
    own = tokenizer(name).tokenizer
    tokens = [str(one) for one in own.added_tokens_decoder.values() if one.special]
    assert {tokenizer(name).chat.end, IMAGE_START, IMAGE_END} <= set(tokens)
    return " ".join(["say", *tokens, *(one.upper() for one in tokens), f"a{IMAGE_START}{tokens[-1]}b", "now"])


def specials(name: str, ids: Sequence[int]) -> list[int]:
    """The special tokens among ids."""
    added = tokenizer(name).tokenizer.added_tokens_decoder
    return [one for one in ids if one in added and added[one].special]


def test_special_tokens_in_texts_of_the_data_are_only_words(layout: str) -> None:
    bad, words = every_special_token(layout), "say now"
    for talk in ([("user", words), ("assistant", words)], [("system", words), ("user", words)]):
        if talk[0][0] == "system" and layout in FAMILIES and not FAMILIES[layout].system:
            continue
        plain, _ = laid(layout, segments(talk))
        ids, supervised = laid(layout, segments([(role, bad) for role, _ in talk]))
        assert specials(layout, ids) == specials(layout, plain)
        learned = [one for one, mine in zip(ids, supervised, strict=True) if mine]
        assert specials(layout, learned) == [tokenizer(layout)[EOS]] * (talk[-1][0] == "assistant")
    asked = specials(layout, tokenizer(layout).chat.said([question(words)]))
    for text in (bad, *bad.split()):  # also where a special token is all there is
        assert specials(layout, tokenizer(layout).chat.said([question(text)])) == asked
        assert not specials(layout, laid(layout, [written(text, ends=False)])[0])
        assert specials(layout, laid(layout, [written(text, ends=True)])[0]) == [tokenizer(layout)[EOS]]


def test_documents_are_laid_out_without_turns(family: str) -> None:
    text = written("a small red bird", ends=True)
    ids, supervised = laid(family, [special(BOS), image(PICTURE), text])
    said = tokenizer(family).tokenizer.decode(ids[ids.index(-1) + 1 :]).replace(" ", "")
    assert said == f"asmallredbird{FAMILIES[family].end}"
    assert supervised[ids.index(-1) + 1 :] == [True] * len(ids[ids.index(-1) + 1 :])
    assert len(ids[: ids.index(-1)]) == (FAMILIES[family].bos is not None)


def test_of_a_document_that_begins_with_words_all_is_learned_that_can_be(layout: str) -> None:
    ids, supervised = laid(layout, [special(BOS), written("a small red bird", ends=True)])
    assert supervised == [False] + [True] * (len(ids) - 1)
    assert Collate(tokenizer(layout), 3, 0, ("documents",)).lay(
        Sample("a", "documents", (special(BOS), written("a small red bird", ends=True)))
    )


def test_a_document_that_ends_with_an_image_ends(layout: str) -> None:
    parts = [special(BOS), written("a small red bird", ends=False), image(PICTURE), written("", ends=True)]
    ids, supervised = laid(layout, parts)
    assert (ids[-2:], supervised[-2:]) == ([-1, tokenizer(layout)[EOS]], [False, True])


def test_only_marks_of_images_are_added(family: str, tmp_path: Path) -> None:
    own = tokenizer_of(FAMILIES[family])
    size = len(own)
    found = Tokenizer(own)
    assert (found[IMAGE_START], found[IMAGE_END]) == (size, size + 1)
    assert len(found) == size + 2
    assert found[PAD] == own.pad_token_id
    found.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert len(again) == len(found)
    parts = segments(TALK)
    assert [list(run.ids) for run in again.chat.lay_out(parts) if isinstance(run, Run)] == [
        laid(family, parts)[0]
    ]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}", "without a special token"),
        ("{% for m in messages %}{{ '</s>' }}{% endfor %}", "does not write every turn once"),
        ("{{ messages | reverse | map(attribute='content') | join }}", "does not write every turn|without"),
        ("{{ messages[9]['content'] }}", "it refuses user assistant"),
    ],
)
def test_a_template_that_cannot_be_trained_with_says_why(template: str, message: str) -> None:
    own = tokenizer_of(FAMILIES["vicuna"])
    own.chat_template = template
    with pytest.raises(LabError, match=message):
        Tokenizer(own)


def test_templates_of_models_that_see_take_lists_of_parts() -> None:
    own = tokenizer_of(FAMILIES["chatml"])
    own.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    found = list(Tokenizer(own).chat.lay_out(segments(TALK)))
    assert len(found) == 1
    assert isinstance(found[0], Run)
    text = own.decode(found[0].ids)
    assert text.startswith(f"<|im_start|>user\n{TALK[0][1]}<|im_end|>\n<|im_start|>assistant\n{TALK[1][1]}")
