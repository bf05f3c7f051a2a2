"""Activations of blocks that are computed again for the backward pass instead of kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def checkpointed(
    blocks: Sequence[nn.Module], again: Callable[[], AbstractContextManager[None]] | None = None
) -> Iterator[None]:
    """While open, the blocks keep their inputs alone.

    Args:
        blocks: of a language model.
        again: called as a block runs; gives what has to be open when it runs a second time, such as the
            visual tokens that hooked layers read.
    """

    for block in blocks:
        block.forward = _Twice(block.forward, again)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own


_once: list[bool] = []


@contextmanager
def kept() -> Iterator[None]:
    """While open, checkpointed blocks keep everything: their second run would be counted as work."""
    _once.append(True)
    try:
        yield
    finally:
        _once.pop()


class _Twice:
    def __init__(
        self, forward: Callable[..., Any], again: Callable[[], AbstractContextManager[None]] | None
    ) -> None:
        self.forward, self.again = forward, again

    def __call__(self, *args: Any, **named: Any) -> Any:
        if _once:
            return self.forward(*args, **named)
        return checkpoint(self.forward, *args, use_reentrant=False, context_fn=self.contexts, **named)

    def contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """Of the first run and of the second."""
        return nullcontext(), nullcontext() if self.again is None else self.again()
