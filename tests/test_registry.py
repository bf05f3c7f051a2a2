"""The folder is the registry: listing, checking and building parts, and what a mistake looks like."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lab import registry
from lab.errors import LabError, nearest
from lab.registry import Parameter, build, catalogue, check, describe, path, words

PART = '''"""A part.

Paper: A Paper, arXiv:1234.56789, section 2
"""

from typing import Literal

__all__ = ["Part"]

class Part:
    """It."""
    def __init__(self, dim_in: int, *, size: int = 4, rate: float = 0.5, kind: Literal["a", "b"] = "a",
                 path: str | None = None, on: bool = False) -> None:
        if size == 13:
            raise ValueError("size 13 is refused")
        self.dim_in, self.size = dim_in, size
'''


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another house of components; its connectors are `part` and what a test adds."""
    folder = tmp_path / "components" / "connectors"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "_hidden.py").touch()
    (folder / "part.py").write_text(PART)
    monkeypatch.setattr(registry, "COMPONENTS", tmp_path / "components")
    return folder


def test_words_are_file_names(house: Path) -> None:
    (house / "another.py").write_text(PART)
    assert words("connector") == ["another", "part"]
    assert words("encoder") == []  # a role whose folder is not there yet
    assert path("connector", "part") == house / "part.py"


def test_describe_reads_the_file(house: Path) -> None:
    part = describe("connector", "part")
    assert (part.role, part.word, part.title) == ("connector", "part", "A part.")
    assert part.paper == "A Paper, arXiv:1234.56789, section 2"
    assert part.parameters == (
        Parameter("size", "int", 4),
        Parameter("rate", "float", 0.5),
        Parameter("kind", 'Literal["a", "b"]', "a"),
        Parameter("path", "str | None", None),
        Parameter("on", "bool", False),
    )


def test_the_catalogue_is_complete_and_sound() -> None:
    rows = catalogue()
    assert {(row.role, row.word) for row in rows} >= {
        *(("encoder", word) for word in ("vit", "patches", "clip")),
        *(("connector", word) for word in ("linear", "mlp", "q_former", "perceiver")),
        *(("text_decoder", word) for word in ("llama", "hf")),
        *(("image_decoder", word) for word in ("diffusion", "transformer")),
        ("visual_head", "regression"),
    }
    assert not [row.fault for row in rows if row.fault]
    assert all(row.title and row.paper for row in rows)
    assert all(parameter.accepts(parameter.default) for row in rows for parameter in row.parameters)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("def (", r"components/connectors/broken\.py:1: cannot be read as Python: invalid syntax"),
        (
            PART.replace('"""A part.', '"""', 1).replace(
                "\nPaper: A Paper, arXiv:1234.56789, section 2\n", ""
            ),
            "docs",
        ),
        (PART.replace("Paper: A", "From a"), r"broken\.py: its docstring has no line 'Paper:"),
        (PART.replace('["Part"]', "[]"), r"broken\.py: __all__ must name the component's one class"),
        (PART.replace('["Part"]', '["Whole"]'), r"broken\.py: class Whole with its own __init__ is missing"),
        (
            PART.replace("size: int = 4", "size: int"),
            r"broken\.py: keyword 'size' needs an annotation and a default",
        ),
        (
            PART.replace("size: int = 4", "size: int = 2 * N"),
            r"broken\.py: the default of 'size' must be a plain",
        ),
    ],
    ids=["syntax", "docstring", "paper", "all", "class", "default", "literal"],
)
def test_a_broken_file_is_named_and_harms_no_other(house: Path, text: str, fault: str) -> None:
    (house / "broken.py").write_text(text)
    with pytest.raises(LabError, match=fault):
        describe("connector", "broken")
    with pytest.raises(LabError, match=fault):
        check("connector", "broken")
    broken, part = catalogue()
    assert broken.fault
    assert not part.fault
    assert check("connector", "part") == ("part", {})


def test_check_gives_word_and_settings() -> None:
    assert check("connector", "q_former") == ("q_former", {})
    assert check("connector", {"name": "q_former", "num_queries": 8}) == ("q_former", {"num_queries": 8})


def test_an_unknown_word_is_named_with_the_nearest_and_all() -> None:
    with pytest.raises(LabError) as caught:
        check("connector", "q_fromer", where="connectors[1]")
    assert str(caught.value) == (
        "connectors[1]: no connector 'q_fromer' (did you mean 'q_former'?); "
        f"have {', '.join(words('connector'))}"
    )
    with pytest.raises(LabError, match=r"no connector 'zzz'; have .*linear"):
        path("connector", "zzz")
    with pytest.raises(LabError, match=r"no role 'conector' \(did you mean 'connector'\?\); have connector"):
        words("conector")


@pytest.mark.parametrize("spec", [None, 3, {}, {"name": 4}, ["linear"]])
def test_a_specification_is_a_word_or_a_mapping(spec: object) -> None:
    with pytest.raises(
        LabError, match=r"connector: expected a word or a mapping with 'name', not .*; have .*linear"
    ):
        check("connector", spec)  # type: ignore[arg-type]


def test_every_mistake_is_named_at_once(house: Path) -> None:
    with pytest.raises(LabError) as caught:
        check("connector", {"name": "part", "sise": 3, "rate": "1e-3", "kind": "c", "on": 1, "size": True})
    message = str(caught.value)
    assert message.startswith(
        "connector part: no setting 'sise' (did you mean 'size'?); have kind, on, path, rate"
    )
    assert "'rate' must be float, not '1e-3' (write 1.0e-3, not 1e-3)" in message
    assert "'kind' must be Literal[\"a\", \"b\"], not 'c'" in message
    assert "'on' must be bool, not 1" in message
    assert "'size' must be int, not True" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("int", [0, -3], [1.0, True, "1", None]),
        ("float", [1.5, 2], [True, "1.5", None]),
        ("bool", [True, False], [0, 1, "true"]),
        ("str", ["", "x"], [1, None]),
        ("int | None", [None, 4], ["none", 1.5]),
        ('Literal["a", 2]', ["a", 2], ["b", 2.0, True, None]),
        ("Literal[True]", [True], [1, False]),
    ],
)
def test_values_fit_annotations(annotation: str, good: list[object], bad: list[object]) -> None:
    parameter = Parameter("x", annotation, None)
    assert all(parameter.accepts(value) for value in good)
    assert not any(parameter.accepts(value) for value in bad)


def test_build_constructs_with_what_composition_knows() -> None:
    connector = build("connector", {"name": "perceiver", "num_latents": 3}, 8, 6, 16)
    assert connector.num_tokens == 3
    assert connector.project.out_features == 6


def test_what_a_constructor_refuses_names_role_and_word() -> None:
    with pytest.raises(LabError, match=r"^encoder vit: image_size 30 is not a multiple of patch_size 8$"):
        build("encoder", "vit", 30)
    with pytest.raises(LabError, match=r"^connector linear: .*argument"):
        build("connector", "linear")


def test_nearest_says_so_when_there_is_nothing() -> None:
    assert nearest("x", []) == "; have none"


def test_listing_and_checking_import_neither_torch_nor_a_part() -> None:
    code = (
        "import sys\n"
        "from lab.registry import catalogue, check\n"
        "catalogue(), check('connector', {'name': 'q_former', 'num_queries': 4})\n"
        "heavy = {'torch', 'transformers', 'components'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
