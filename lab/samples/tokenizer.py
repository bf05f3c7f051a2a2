"""Tokenizers in the transformers format: word-level for the built-in world, or any from a folder or name."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.errors import LabError, nearest
from lab.samples.chat import OWN_TEMPLATE, Chat, OwnChat, special_of, taking_apart
from lab.samples.chat_template import TemplateChat
from lab.samples.segments import BOS, EOS, IMAGE_END, IMAGE_START, PAD, SPECIAL_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Tokenizer:
    """Text to ids with the lab's special tokens; encodings of whole segments are remembered.

    Args:
        tokenizer: any transformers tokenizer; special tokens that it lacks are added, so its length can
            exceed the vocabulary of the checkpoint it came with. One with a chat template keeps its own
            beginning, end and padding, and gets the marks of images alone.

    Attributes:
        chat: lays conversations out.
        busy: held while the tokenizer works: its backend allows one thread at a time.
    """

    chat: Chat

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.busy = threading.Lock()
        self.encode = lru_cache(maxsize=65536)(self._encode)
        if tokenizer.chat_template in (None, OWN_TEMPLATE):
            self._add(SPECIAL_TOKENS)
            self.chat = OwnChat(self.encode, special_of(tokenizer))
            names = {token: token for token in SPECIAL_TOKENS}
        else:
            self._add((IMAGE_START, IMAGE_END, *(() if tokenizer.pad_token else (PAD,))))
            self.chat = TemplateChat(tokenizer, self.busy)
            names = {PAD: tokenizer.pad_token or PAD, EOS: self.chat.end, BOS: tokenizer.bos_token or PAD}
            names |= {mark: mark for mark in (IMAGE_START, IMAGE_END)}
        ids = tokenizer.convert_tokens_to_ids(list(names.values()))
        self._ids = dict(zip(names, ids, strict=True))

    def _add(self, tokens: Sequence[str]) -> None:
        self.tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})

    def __len__(self) -> int:
        return len(self.tokenizer)

    def __getitem__(self, special: str) -> int:
        """The id of a special token; of EOS that of the token which ends an answer, whatever its name."""
        return self._ids[special]

    def _encode(self, text: str) -> tuple[int, ...]:
        try:
            with self.busy:
                return tuple(self.tokenizer.encode(text, add_special_tokens=False))
        except Exception as error:  # the one kind that its backend raises; it does not name the word
            known = self.tokenizer.get_vocab()
            unknown = [word for word in self._words(text) if word not in known]
            if not unknown:
                raise
            near = nearest(unknown[0], known).partition(";")[0]
            raise LabError(f"the tokenizer does not know {', '.join(map(repr, unknown))}{near}") from error

    def _words(self, text: str) -> list[str]:
        """A text as a word-level tokenizer splits it."""
        spaced = self.tokenizer.backend_tokenizer.normalizer is None
        return text.split() if spaced else plain_words(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Words of the ids up to the first end token, special tokens left out."""
        ids = list(ids)
        if self[EOS] in ids:
            ids = ids[: ids.index(self[EOS])]
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def load(cls, source: str | Path) -> Tokenizer:
        """From a local folder or a name that transformers knows.

        Raises:
            LabError: there is none.
        """
        from transformers import AutoTokenizer

        try:
            return cls(AutoTokenizer.from_pretrained(str(source)))
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise LabError(f"{source}: no tokenizer can be read from there: {reason}") from error

    @classmethod
    def of_words(cls, words: Sequence[str], more: Sequence[str] = ()) -> Tokenizer:
        """One token a word, split at spaces. A word outside the list raises when it is encoded.

        Args:
            words: of the built-in world.
            more: words of other texts; where there are any, texts are put into the form of `plain_words`.
        """
        from tokenizers import Tokenizer as Backend
        from tokenizers.models import WordLevel
        from tokenizers.pre_tokenizers import WhitespaceSplit
        from transformers import PreTrainedTokenizerFast

        apart = taking_apart(SPECIAL_TOKENS)  # as chats write those that stand in a text
        more = [piece for word in more for piece in apart(word).split()]
        known = dict.fromkeys([*SPECIAL_TOKENS, *words, *more])
        backend = Backend(WordLevel({word: index for index, word in enumerate(known)}, unk_token=None))
        backend.pre_tokenizer = WhitespaceSplit()
        if more:
            backend.normalizer, backend.pre_tokenizer = _plain()
        return cls(
            PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, bos_token=BOS, eos_token=EOS)
        )


def plain_words(text: str) -> list[str]:
    """A text as a word-level tokenizer of data sets has it: lower case, punctuation apart, numbers whole."""
    normaliser, splitter = _plain()
    return [word for word, _ in splitter.pre_tokenize_str(normaliser.normalize_str(text))]


@cache
def _plain() -> tuple[Any, Any]:
    from tokenizers import Regex
    from tokenizers.normalizers import NFC, Lowercase
    from tokenizers.normalizers import Sequence as Steps
    from tokenizers.pre_tokenizers import Sequence as Splits
    from tokenizers.pre_tokenizers import Split, WhitespaceSplit

    marks = Split(Regex(r"[,!?;:\"()\[\]]|\.(?!\d)"), "isolated")
    return Steps([NFC(), Lowercase()]), Splits([WhitespaceSplit(), marks])
