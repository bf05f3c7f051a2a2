"""The one exception that is meant for the person at the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class LabError(Exception):
    """A mistake that its reader can mend: one line that names it and what would be right.

    The command line prints `lab: error: <message>` and exits with `code`; `--traceback` shows everything.
    """

    code = 2


def nearest(word: str, valid: Iterable[str]) -> str:
    """End a message about an unknown word: the nearest valid one, if any, and all valid ones.

    Args:
        word: what was asked for.
        valid: what there is.

    Returns:
        For example ` (did you mean 'q_former'?); have linear, mlp, perceiver, q_former`.
    """
    choices = sorted(valid)
    near = get_close_matches(word, choices, n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    return f"{hint}; have {', '.join(choices) or 'none'}"
