"""Declarations of published systems: what is read, what is refused, and that sizes are the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.errors import LabError
from lab.graph import system as systems
from lab.graph.description import beside, outlined, weigh
from lab.graph.system import find, names, parameters, read_system

FULL: dict[str, Any] = {
    "image_size": 32,
    "encoder": {"name": "patches", "patch_size": 8},
    "connector": "linear",
    "text_decoder": {"name": "llama", "lora_rank": 2},
    "fusion": "sequence",
    "visual_head": None,
    "image_decoder": None,
    "vocab_size": 50,
    "stages": {
        "align": {
            "trainable": ["connector"],
            "data": ["pairs"],
            "batch_size": 8,
            "learning_rate": 1e-3,
            "sequence": 32,
        }
    },
    "published": {"encoder": "25K"},
}


@pytest.fixture
def declare(tmp_path: Path) -> Any:
    """Write a declaration; keywords replace keys of its full size."""

    def write(top: dict[str, Any] | None = None, **full: Any) -> Path:
        tree = {
            "paper": "A System: Small, arXiv:2301.00001",
            "claims": ["understanding"],
            "full": {**FULL, **full},
        }
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump({**tree, **(top or {})}))
        return file

    return write


def test_reads_a_declaration(declare: Any) -> None:
    system = read_system(declare())
    assert (system.name, system.title, system.paper) == ("mine", "A System: Small", "2301.00001")
    assert system.words() == {
        "encoder": "patches",
        "connector": "linear",
        "text_decoder": "llama",
        "fusion": "sequence",
    }
    assert system.published == {"encoder": 25_000}
    assert system.full is not None
    assert system.full["targets"] == "encoder"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encodr": "vit"}, "unknown key 'full.encodr'.*did you mean 'encoder'"),
        ({"connector": "q_fromer"}, "full.connector: no connector 'q_fromer'.*did you mean 'q_former'"),
        ({"encoder": {"name": "patches", "patch": 8}}, "no setting 'patch'.*did you mean 'patch_size'"),
        ({"encoder": None}, "full.encoder: expected a word"),
        ({"image_size": 0}, "full.image_size: expected a positive number, not 0"),
        ({"targets": "pixels"}, "full.targets: expected encoder, connector or"),
        ({"targets": {"num_tokens": 77}}, "full.targets: expected encoder, connector or"),
        ({"stages": {"alin": {}}}, "no stage 'alin'.*did you mean 'align'"),
        ({"stages": {}}, "missing key 'full.stages'"),
        ({"published": {"visual_head": "1M"}}, "full.published: no role 'visual_head' here"),
        ({"published": {"encoder": "many"}}, "full.published.encoder: expected a number of parameters"),
    ],
)
def test_names_what_is_wrong(declare: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message) as error:
        read_system(declare(**change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainable": ["conector"]}, "align.trainable: no part 'conector'.*did you mean 'connector'"),
        ({"trainable": ["visual_head"]}, "align.trainable: no part 'visual_head'"),
        ({"batch_size": -1}, "align.batch_size: expected a positive number, not -1"),
        ({"learning_rate": "1e-3"}, "align.learning_rate: expected a positive number.*write 1.0e-3"),
        ({"learning_rate": {"connector": 0}}, "align.learning_rate.connector: expected a positive number"),
        ({"batch": 8}, "unknown key 'full.stages.align.batch'.*did you mean 'batch_size'"),
    ],
)
def test_names_what_is_wrong_in_a_stage(declare: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        read_system(declare(stages={"align": {**FULL["stages"]["align"], **change}}))


def test_names_all_mistakes_at_once(declare: Any) -> None:
    file = declare({"paper": "A System", "claims": ["speed"], "sise": 1}, image_size="large")
    with pytest.raises(LabError) as error:
        read_system(file)
    for part in (
        "paper: expected 'Title, arXiv:",
        "claims: no 'speed'",
        "unknown key 'sise'",
        "full.image_size",
    ):
        assert part in str(error.value)


def test_a_stage_may_leave_open_what_its_paper_does_not_state(declare: Any) -> None:
    stage = {**FULL["stages"]["align"], "batch_size": None, "learning_rate": None}
    assert read_system(declare(stages={"align": stage})).full is not None


def test_numbers_of_parameters_are_read_as_they_are_written() -> None:
    assert parameters("6.74B") == 6_740_000_000
    assert parameters("303.2M - 12.6M") == 290_600_000
    assert parameters("129M + 500K") == 129_500_000
    assert parameters(1200) == 1200
    for wrong in ("", "6.74 billion", "6.74B -", "M"):
        with pytest.raises(ValueError, match="expected a number of parameters"):
            parameters(wrong)


def test_finds_by_name_and_by_path(declare: Any) -> None:
    assert find("llava") == systems.SYSTEMS / "llava.yaml"
    assert find(str(declare())).name == "mine.yaml"
    with pytest.raises(LabError, match=r"no system 'llavva'.*did you mean 'llava'"):
        find("llavva")
    assert systems.BASE not in names()


def test_status_comes_from_the_table_of_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "systems.md"
    monkeypatch.setattr(systems, "RESULTS", table)
    assert systems.status("llava") == "not trained here"
    table.write_text(
        "# Systems\n\n| system | vqa | status |\n|---|---|---|\n| `llava` | 0.7 | trained small |\n"
    )
    assert systems.status("llava") == "trained small"
    assert systems.status("git") == "not trained here"


@pytest.mark.parametrize("name", names())
def test_sizes_are_the_published_ones(name: str) -> None:
    system = read_system(find(name))
    assert system.full is not None
    with outlined(system.full) as parts:
        counted = weigh(system.full, parts)
    for roles, here, there, difference in beside(counted, system.published):
        assert abs(difference) < 0.02, f"{roles}: {here:,} here, {there:,} published"
