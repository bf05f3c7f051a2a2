from __future__ import annotations

from pathlib import Path

import pytest

from lab.errors import LabError
from lab.samples.segments import EOS, SPECIAL_TOKENS
from lab.samples.tokenizer import Tokenizer
from lab.scenes.tasks import SceneTasks


def test_words_come_back(tokenizer: Tokenizer, tasks: SceneTasks) -> None:
    for task in tasks.tasks:
        for row in range(10):
            for segment in tasks.sample(task, row, 0).segments:
                words = [word for word in (segment.text or "").split() if not word.startswith("<")]
                ids = tokenizer.encode(" ".join(words))
                assert len(ids) == len(words)
                assert tokenizer.decode(ids).split() == words


def test_special_tokens_are_single_and_distinct(tokenizer: Tokenizer) -> None:
    ids = [tokenizer[token] for token in SPECIAL_TOKENS]
    assert len(set(ids)) == len(SPECIAL_TOKENS)
    assert tokenizer.encode(" ".join(SPECIAL_TOKENS)) == tuple(ids)
    assert max(ids) < len(tokenizer)


def test_decoding_stops_at_the_end_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(f"<user> red 3 {EOS} blue 4")) == "red 3"
    assert tokenizer.decode([]) == ""


def test_unknown_words_are_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(LabError, match=r"'reed', 'zebra' \(did you mean 'red'\?\)$"):
        tokenizer.encode("a reed 3 and a zebra")


def test_from_disk_it_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert len(again) == len(tokenizer)
    text = f"<bos> <user> where is the 3 ? <assistant> {EOS}"
    assert again.encode(text) == tokenizer.encode(text)
    assert [again[token] for token in SPECIAL_TOKENS] == [tokenizer[token] for token in SPECIAL_TOKENS]


def test_a_place_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=f"{tmp_path}: no tokenizer can be read from there"):
        Tokenizer.load(tmp_path)
