"""Streaming JSON: the same values as the standard library's, with lines, whatever the chunks are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.errors import LabError
from lab.samples.readers import streams

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@pytest.mark.parametrize("indent", [None, 1])
@settings(max_examples=30, deadline=None)
@given(values=st.lists(VALUES, max_size=6), chunk=st.integers(1, 40), ascii_only=st.booleans())
def test_elements_are_those_of_the_array(
    tmp_path_factory: pytest.TempPathFactory,
    indent: int | None,
    values: list[Any],
    chunk: int,
    ascii_only: bool,
) -> None:
    file = tmp_path_factory.mktemp("json") / "x.json"
    tree = {"before": {"a": [1]}, "many": list(values), "rows": values, "after": 1}
    file.write_bytes(
        json.dumps(tree, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "CHUNK", chunk)
        found = [element.value() for element in streams.elements(file, "rows")]
        assert found == values
        assert streams.keys_of(file) == list(tree)


def test_lines_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"a": [\n\n {"x":\n 1},\n 2, 3\n]}')
    assert [element.line for element in streams.elements(file, "a")] == [3, 5, 5]


def test_members_have_keys(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"é": 1, "b": {"c": 2}}')
    assert [(one.key, one.value()) for one in streams.elements(file)] == [("é", 1), ("b", {"c": 2})]


@pytest.mark.parametrize("text", ["[1, 2", "[1 2]", '{"a": [1}', "[" * 100_000, "[1,]"])
def test_what_breaks_off_is_said(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(LabError, match=r"x\.json, line 1: expected"):
        list(streams.elements(file, *(["a"] if text.startswith("{") else [])))
