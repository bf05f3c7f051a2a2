"""What is wrong with entries of `datasets`, whose types are right."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lab.config.params import Params
from lab.config.sections import DataSetParams
from lab.config.words import FITS, LOCATION_TASKS, POLICIES, SPLITS, TASKS
from lab.errors import nearest


def names_data_set(name: str) -> bool:
    """Whether a word can name a data set: in a mix, and as a folder."""
    return bool(re.fullmatch(r"[a-z][a-z0-9_]*", name)) and name not in (*TASKS, *LOCATION_TASKS, "of")


def mistakes_in_data_sets(params: Params) -> list[str]:
    """Mistakes in the entries of data sets."""
    mistakes = [
        f"vocabulary: no data set '{name}'{nearest(name, params.datasets)}"
        for name in params.vocabulary
        if name not in params.datasets
    ]
    for name, entry in params.datasets.items():
        if not names_data_set(name):
            mistakes.append(f"datasets.{name}: expected a name of a-z, 0-9 and _ that is no task")
        mistakes += mistakes_in_data_set(f"datasets.{name}", entry)
    return mistakes


def mistakes_in_data_set(where: str, entry: DataSetParams) -> list[str]:
    """Mistakes in the entry of one data set; `where` it stands."""
    from lab.samples.readers.formats import FORMATS  # whose import takes a while

    choices = {"policy": POLICIES, "format": FORMATS, "fit": FITS, "task": ("", "text_to_image")}
    mistakes = [f"{where}.splits: {mistake}" for mistake in _splits(entry.splits)]
    for key, known in choices.items():
        if (word := getattr(entry, key)) not in known:
            mistakes.append(f"{where}.{key}: no '{word}'{nearest(word, filter(None, known))}")
    mistakes += [
        f"'{where}.{key}' must be from 1 to {most:,}, not {value}"
        for key, most in (("tiles", 100), ("limit", 178_000_000))
        if not 1 <= (value := getattr(entry, key)) <= most
    ]
    return mistakes


def _splits(splits: Any) -> list[str]:
    if splits == "own":
        return []
    if not isinstance(splits, Mapping) or not splits:
        return [f"expected own, or a share or a file of each split, not {splits!r}"]
    mistakes = [f"no split '{name}'{nearest(str(name), SPLITS)}" for name in splits if name not in SPLITS]
    values = list(splits.values())
    if all(isinstance(value, str) for value in values):
        return mistakes
    if not all(isinstance(value, (int, float)) and 0 <= value < 1 for value in values):
        return [*mistakes, f"expected shares from 0 to 1, or names of files, not {dict(splits)!r}"]
    if "train" in splits or not 0 < sum(values) < 1:
        mistakes.append("expected shares of validation and test; what they leave is for training")
    return mistakes
